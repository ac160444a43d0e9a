package agent

import metapb "github.com/ridgekv/ridge/proto/ridge/meta/v1"

// DiskFull names a voter's store of the range that refuses growing writes.
// It is asked for every write, so the common answer is cheap.
func DiskFull(b *Book, groups Groups, rangeID uint64) (storeID uint64, full bool) {
	stores := b.Full()
	if stores == nil {
		return 0, false
	}
	members, _, _ := groups.Membership(rangeID)
	for _, p := range members {
		if p.GetRole() == metapb.Role_ROLE_VOTER && stores[p.GetStoreId()] {
			return p.GetStoreId(), true
		}
	}
	return 0, false
}
