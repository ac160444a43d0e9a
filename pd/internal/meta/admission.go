package meta

import (
	"fmt"
	"maps"
	"slices"

	"google.golang.org/protobuf/proto"

	metapb "github.com/ridgekv/ridge/proto/ridge/meta/v1"
	pdpb "github.com/ridgekv/ridge/proto/ridge/pd/v1"
)

// admitStore registers a store. The first one to come bears the first range;
// that choice is final, however often it is asked.
func (s *state) admitStore(c *pdpb.AdmitStore) *pdpb.CommandResult {
	in := c.GetStore()
	if in.GetGrpcAddress() == "" || in.GetRaftAddress() == "" {
		return refuse(pdpb.PDErrorReason_PD_ERROR_REASON_INVALID_ARGUMENT,
			"a store needs a gRPC and a Raft address")
	}
	known := s.stores[in.GetStoreId()]
	switch {
	case in.GetStoreId() == 0:
		if again := s.unactivated(in); again != nil {
			known = again
		}
	case known == nil:
		return refuse(pdpb.PDErrorReason_PD_ERROR_REASON_NOT_FOUND, fmt.Sprintf(
			"store %d was never registered here: its directory belongs to another cluster",
			in.GetStoreId()))
	case known.GetStore().GetState() == metapb.StoreState_STORE_STATE_GONE:
		return refuse(pdpb.PDErrorReason_PD_ERROR_REASON_STORE_GONE, fmt.Sprintf(
			"store %d was declared gone: its replicas are replaced; start with an empty directory",
			in.GetStoreId()))
	}
	if other := s.addressOwner(in, known.GetStore().GetStoreId(), c.GetSilentStoreIds()); other != 0 {
		return refuse(pdpb.PDErrorReason_PD_ERROR_REASON_ADDRESS_IN_USE, fmt.Sprintf(
			"store %d is registered at %s / %s; if it is lost, declare it gone",
			other, in.GetGrpcAddress(), in.GetRaftAddress()))
	}
	if known == nil && len(s.stores) >= maxStores {
		return refuse(pdpb.PDErrorReason_PD_ERROR_REASON_UNAVAILABLE, "too many stores")
	}
	return s.putStore(in, known)
}

func (s *state) putStore(in *metapb.Store, known *pdpb.StoreRecord) *pdpb.CommandResult {
	store := proto.CloneOf(in)
	if known == nil {
		store.StoreId = s.nextStoreID
		s.nextStoreID++
		store.State = metapb.StoreState_STORE_STATE_UP
	} else {
		store.StoreId = known.GetStore().GetStoreId()
		store.State = known.GetStore().GetState()
	}
	store.DiskState = metapb.DiskState_DISK_STATE_UNSPECIFIED
	s.stores[store.GetStoreId()] = &pdpb.StoreRecord{
		Store: store, Activated: known.GetActivated(),
	}
	if s.firstRange == nil {
		s.firstRange = bootstrapRange(store.GetStoreId())
		s.ranges[firstRangeID] = s.firstRange
	}
	out := &pdpb.CommandResult{Store: store}
	if !s.firstRangeBorn && s.firstRange.GetReplicas()[0].GetStoreId() == store.GetStoreId() {
		out.FirstRange = s.firstRange
	}
	return out
}

// unactivated finds a store that registered from exactly these addresses and
// was never heard of again: its answer was lost, and this is the repetition.
func (s *state) unactivated(in *metapb.Store) *pdpb.StoreRecord {
	for _, id := range slices.Sorted(maps.Keys(s.stores)) {
		rec := s.stores[id]
		if !rec.GetActivated() && rec.GetStore().GetGrpcAddress() == in.GetGrpcAddress() &&
			rec.GetStore().GetRaftAddress() == in.GetRaftAddress() &&
			rec.GetStore().GetState() != metapb.StoreState_STORE_STATE_GONE {
			return rec
		}
	}
	return nil
}

// addressOwner returns the other store that holds an address of in, or 0.
// A known store may take over the address of one that is silent: after a
// restart of many, addresses may have moved around. A new store may not: it
// could be the emptied directory of the old one.
func (s *state) addressOwner(in *metapb.Store, id uint64, silent []uint64) uint64 {
	for _, other := range slices.Sorted(maps.Keys(s.stores)) {
		o := s.stores[other].GetStore()
		if other == id || o.GetState() == metapb.StoreState_STORE_STATE_GONE ||
			id != 0 && slices.Contains(silent, other) {
			continue
		}
		if o.GetGrpcAddress() == in.GetGrpcAddress() || o.GetRaftAddress() == in.GetRaftAddress() {
			return other
		}
	}
	return 0
}
