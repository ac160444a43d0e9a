package storenode_test

import (
	"fmt"
	"testing"
	"time"

	metapb "github.com/ridgekv/ridge/proto/ridge/meta/v1"
	pdpb "github.com/ridgekv/ridge/proto/ridge/pd/v1"
)

// One store: bootstrap, puts and gets, a restart that keeps them, and a restart
// while PD is away.
func TestOneStore(t *testing.T) {
	pd := startFakePD(t)
	o := storeOptions(t, t.TempDir(), pd.address)
	s := startStore(t, o)
	s.waitReady()
	for i := range 20 {
		s.mustPut(fmt.Sprintf("k%02d", i), fmt.Sprintf("v%d", i))
	}
	s.mustGet("k07", "v7")
	eventually(t, 5*time.Second, "range reported", func() bool {
		return pd.report(1).GetLeader().GetStoreId() == 1
	})
	if err := s.stop(); err != nil {
		t.Fatal(err)
	}

	s = startStore(t, o)
	s.waitReady()
	s.mustGet("k19", "v19")
	s.mustPut("k19", "again")
	if err := s.stop(); err != nil {
		t.Fatal(err)
	}

	pd.stop()
	s = startStore(t, o)
	s.waitReady()
	s.mustGet("k19", "again")
	s.mustPut("k20", "without PD")
	pd.start(t)
	s.mustGet("k20", "without PD")
}

// A split ordered by PD, at a key and in the middle.
func TestSplitOrder(t *testing.T) {
	pd := startFakePD(t)
	s := startStore(t, storeOptions(t, t.TempDir(), pd.address))
	s.waitReady()
	for i := range 50 {
		s.mustPut(fmt.Sprintf("k%02d", i), fmt.Sprintf("v%d", i))
	}
	eventually(t, 5*time.Second, "reported", func() bool { return pd.report(1) != nil })
	for i, key := range [][]byte{[]byte("k30"), nil} {
		want := i + 2
		eventually(t, 10*time.Second, "split", func() bool {
			if pd.ranges() < want {
				pd.order(1, &pdpb.Order{RangeId: 1, Step: &pdpb.Order_Split{
					Split: &pdpb.SplitOrder{SplitKey: key}}})
			}
			return pd.ranges() == want
		})
	}
	for i := range 50 {
		s.mustGet(fmt.Sprintf("k%02d", i), fmt.Sprintf("v%d", i))
	}
	s.mustPut("k45", "new")
	s.mustGet("k45", "new")
}

// Three stores, with PD's orders given by hand: growth to three voters, a split,
// leadership moved, the leader stopped, a replica removed and destroyed.
func TestThreeStoresByHand(t *testing.T) {
	pd := startFakePD(t)
	var stores []*testStore
	for range 3 {
		s := startStore(t, storeOptions(t, t.TempDir(), pd.address))
		s.waitReady()
		stores = append(stores, s)
	}
	for i := range 50 {
		stores[0].mustPut(fmt.Sprintf("k%02d", i), fmt.Sprintf("v%d", i))
	}
	for _, id := range []uint64{2, 3} {
		grow(t, pd, 1, id, 10+id)
	}
	splitAt(t, pd, 1, "k25")
	for i := range 50 {
		stores[0].mustGet(fmt.Sprintf("k%02d", i), fmt.Sprintf("v%d", i))
	}
	eventually(t, 10*time.Second, "leader moved", func() bool {
		leader := pd.report(1).GetLeader().GetStoreId()
		if leader == 1 {
			pd.order(1, &pdpb.Order{RangeId: 1, Step: &pdpb.Order_TransferLeader{
				TransferLeader: &pdpb.TransferLeader{ReplicaId: 12, StoreId: 2}}})
		}
		return leader == 2
	})
	stores[1].mustPut("k01", "by the new leader")
	stores[1].mustGet("k01", "by the new leader")
	if err := stores[1].stop(); err != nil {
		t.Fatal(err)
	}
	eventually(t, 10*time.Second, "leader away from the stopped store", func() bool {
		return pd.report(1).GetLeader().GetStoreId() != 2
	})
	leader := stores[pd.report(1).GetLeader().GetStoreId()-1]
	leader.mustGet("k01", "by the new leader")
	eventually(t, 10*time.Second, "replica of the stopped store removed", func() bool {
		r := pd.report(1)
		pd.order(r.GetLeader().GetStoreId(), &pdpb.Order{RangeId: 1,
			Step: &pdpb.Order_RemoveReplica{RemoveReplica: &pdpb.RemoveReplica{
				ReplicaId: 12, StoreId: 2}}})
		return len(r.GetRange().GetReplicas()) == 2
	})
	stores[1] = startStore(t, stores[1].options)
	stores[1].waitReady()
	eventually(t, 10*time.Second, "stale replica destroyed", func() bool {
		pd.order(2, &pdpb.Order{RangeId: 1, Step: &pdpb.Order_DestroyReplica{
			DestroyReplica: &pdpb.DestroyReplica{ReplicaId: 12}}})
		_, here := pd.local(2, 1)
		return !here
	})
	leader.mustGet("k01", "by the new leader")
}

// grow adds a replica of the range on a store and makes it a voter.
func grow(t *testing.T, pd *fakePD, rangeID, storeID, replicaID uint64) {
	t.Helper()
	role := func() (r metapb.Role, lagging bool) {
		report := pd.report(rangeID)
		for i, p := range report.GetRange().GetReplicas() {
			if p.GetReplicaId() == replicaID {
				return p.GetRole(), report.GetHealth()[i].GetLagging()
			}
		}
		return metapb.Role_ROLE_UNSPECIFIED, true
	}
	eventually(t, 20*time.Second, fmt.Sprintf("store %d holds a voter", storeID), func() bool {
		leader := pd.report(rangeID).GetLeader().GetStoreId()
		switch r, lagging := role(); {
		case r == metapb.Role_ROLE_VOTER:
			return true
		case r == metapb.Role_ROLE_UNSPECIFIED:
			pd.order(leader, &pdpb.Order{RangeId: rangeID, Step: &pdpb.Order_AddLearner{
				AddLearner: &pdpb.AddLearner{ReplicaId: replicaID, StoreId: storeID}}})
		case lagging:
			pd.order(storeID, &pdpb.Order{RangeId: rangeID, Step: &pdpb.Order_CreateReplica{
				CreateReplica: &pdpb.CreateReplica{ReplicaId: replicaID}}})
		default:
			pd.order(leader, &pdpb.Order{RangeId: rangeID, Step: &pdpb.Order_Promote{
				Promote: &pdpb.Promote{ReplicaId: replicaID, StoreId: storeID}}})
		}
		return false
	})
}

// splitAt orders one split and waits until both halves are led.
func splitAt(t *testing.T, pd *fakePD, rangeID uint64, key string) {
	t.Helper()
	before := pd.ranges()
	eventually(t, 10*time.Second, "split at "+key, func() bool {
		if pd.ranges() == before {
			leader := pd.report(rangeID).GetLeader().GetStoreId()
			pd.order(leader, &pdpb.Order{RangeId: rangeID, Step: &pdpb.Order_Split{
				Split: &pdpb.SplitOrder{SplitKey: []byte(key)}}})
		}
		return pd.ranges() == before+1 && pd.allLed()
	})
}
