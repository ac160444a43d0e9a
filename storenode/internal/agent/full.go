package agent

import metapb "github.com/ridgekv/ridge/proto/ridge/meta/v1"

// DiskFull names a store whose disk forbids the range to grow: this one, or
// that of another voter. It is asked for every write, so the common answer is
// cheap.
func (a *Agent) DiskFull(rangeID uint64) (storeID uint64, full bool) {
	if tight(a.d.Engine.Disk().State) {
		return a.d.Self.GetStoreId(), true
	}
	stores := a.d.Book.Full()
	if stores == nil {
		return 0, false
	}
	members, _, _ := a.d.Host.Membership(rangeID)
	for _, p := range members {
		id := p.GetStoreId()
		if p.GetRole() == metapb.Role_ROLE_VOTER && id != a.d.Self.GetStoreId() && stores[id] {
			return id, true
		}
	}
	return 0, false
}

// tight reports whether a disk must not take on more.
func tight(d metapb.DiskState) bool {
	return d == metapb.DiskState_DISK_STATE_HIGH || d == metapb.DiskState_DISK_STATE_FULL
}
