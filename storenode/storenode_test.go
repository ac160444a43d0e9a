package storenode_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	kvpb "github.com/ridgekv/ridge/proto/ridge/kv/v1"
	metapb "github.com/ridgekv/ridge/proto/ridge/meta/v1"
	pdpb "github.com/ridgekv/ridge/proto/ridge/pd/v1"
	"github.com/ridgekv/ridge/storenode"
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
					Split: &pdpb.SplitOrder{SplitKey: key},
				}})
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
				TransferLeader: &pdpb.TransferLeader{ReplicaId: 12, StoreId: 2},
			}})
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
		pd.order(r.GetLeader().GetStoreId(), &pdpb.Order{
			RangeId: 1,
			Step: &pdpb.Order_RemoveReplica{RemoveReplica: &pdpb.RemoveReplica{
				ReplicaId: 12, StoreId: 2,
			}},
		})
		return len(r.GetRange().GetReplicas()) == 2
	})
	stores[1] = startStore(t, stores[1].options)
	stores[1].waitReady()
	eventually(t, 10*time.Second, "stale replica destroyed", func() bool {
		pd.order(2, &pdpb.Order{RangeId: 1, Step: &pdpb.Order_DestroyReplica{
			DestroyReplica: &pdpb.DestroyReplica{ReplicaId: 12},
		}})
		_, here := pd.local(2, 1)
		return !here
	})
	leader.mustGet("k01", "by the new leader")
}

// Any store answers for any key: single keys, batches, scans and deletes over
// several ranges of other stores.
func TestGateway(t *testing.T) {
	pd := startFakePD(t)
	var stores []*testStore
	for range 2 {
		s := startStore(t, storeOptions(t, t.TempDir(), pd.address))
		s.waitReady()
		stores = append(stores, s)
	}
	eventually(t, 10*time.Second, "first range", func() bool { return pd.report(1) != nil })
	splitAt(t, pd, 1, "k25")
	far := stores[1]
	for i := range 50 {
		far.mustPut(fmt.Sprintf("k%02d", i), fmt.Sprintf("v%d", i))
	}
	far.mustGet("k30", "v30")
	got, err := far.kv().BatchGet(t.Context(), &kvpb.BatchGetRequest{
		Keys: [][]byte{[]byte("k01"), []byte("none"), []byte("k40")},
	})
	if err != nil || got.GetError() != nil || len(got.GetRows()) != 2 ||
		string(got.GetRows()[1].GetValue()) != "v40" {
		t.Fatalf("batch get: %v, %v", got, err)
	}
	swap, err := far.kv().CompareAndSwap(t.Context(), &kvpb.CompareAndSwapRequest{
		Key: []byte("k40"), Expected: []byte("other"), Value: []byte("x"),
	})
	if err != nil || swap.GetError() != nil || swap.GetSwapped() ||
		string(swap.GetCurrent().GetValue()) != "v40" {
		t.Fatalf("swap: %v, %v", swap, err)
	}
	if n := len(far.scan(t, false)); n != 50 {
		t.Fatalf("scan: %d rows", n)
	}
	if rows := far.scan(t, true); string(rows[0].GetKey()) != "k49" {
		t.Fatalf("reverse scan begins at %s", rows[0].GetKey())
	}
	batch, err := far.kv().BatchWrite(t.Context(), &kvpb.BatchWriteRequest{
		Mutations: []*kvpb.Mutation{{Key: []byte("k01")}, {Key: []byte("k40")}},
	})
	if err != nil || batch.GetError().GetInvalidArgument() == nil {
		t.Fatalf("a batch over two ranges: %v, %v", batch, err)
	}
	bulk, err := far.kv().BulkWrite(t.Context(), &kvpb.BulkWriteRequest{
		Mutations: []*kvpb.Mutation{{Key: []byte("k01")}, {Key: []byte("k40")}},
	})
	if err != nil || bulk.GetError() != nil || bulk.GetAppliedCount() != 2 {
		t.Fatalf("bulk: %v, %v", bulk, err)
	}
	del, err := far.kv().DeleteRange(t.Context(), &kvpb.DeleteRangeRequest{
		Start: []byte("k20"), End: []byte("k30"),
	})
	if err != nil || del.GetError() != nil || del.GetDeletedCount() != 10 {
		t.Fatalf("delete range: %v, %v", del, err)
	}
	if n := len(far.scan(t, false)); n != 40 {
		t.Fatalf("scan after the delete: %d rows", n)
	}
	forwarded, err := far.kv().Get(t.Context(), &kvpb.GetRequest{
		Header: &kvpb.Header{Forwarded: true}, Key: []byte("k01"),
	})
	if err != nil || forwarded.GetError().GetRangeNotFound() == nil {
		t.Fatalf("forwarded twice: %v, %v", forwarded, err)
	}
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
				AddLearner: &pdpb.AddLearner{ReplicaId: replicaID, StoreId: storeID},
			}})
		case lagging:
			pd.order(storeID, &pdpb.Order{RangeId: rangeID, Step: &pdpb.Order_CreateReplica{
				CreateReplica: &pdpb.CreateReplica{ReplicaId: replicaID},
			}})
		default:
			pd.order(leader, &pdpb.Order{RangeId: rangeID, Step: &pdpb.Order_Promote{
				Promote: &pdpb.Promote{ReplicaId: replicaID, StoreId: storeID},
			}})
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
				Split: &pdpb.SplitOrder{SplitKey: []byte(key)},
			}})
		}
		return pd.ranges() == before+1 && pd.allLed()
	})
}

// A directory that is not whole, or not of this cluster, is refused.
func TestRefusedDirectories(t *testing.T) {
	pd := startFakePD(t)
	o := storeOptions(t, t.TempDir(), pd.address)
	s := startStore(t, o)
	s.waitReady()
	s.mustPut("k", "v")
	if err := s.stop(); err != nil {
		t.Fatal(err)
	}
	engineDir, logDir := filepath.Join(o.Dir, "engine"), filepath.Join(o.Dir, "log")
	aside := filepath.Join(o.Dir, "aside")
	for _, c := range []struct{ missing, want string }{
		{logDir, "bring the log directory back"},
		{engineDir, "bring the engine directory back"},
	} {
		if err := os.Rename(c.missing, aside); err != nil {
			t.Fatal(err)
		}
		err := runRefused(t, o)
		if !errors.Is(err, storenode.ErrDirectory) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("without %s: %v", c.missing, err)
		}
		if err := os.RemoveAll(c.missing); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(aside, c.missing); err != nil {
			t.Fatal(err)
		}
	}
	shards := o
	shards.LogShards = 2
	if err := runRefused(t, shards); !errors.Is(err, storenode.ErrDirectory) {
		t.Errorf("with other log shards: %v", err)
	}
	other := startFakePD(t)
	other.clusterID = 78
	elsewhere := o
	elsewhere.PD = []string{other.address}
	if err := runRefused(t, elsewhere); err == nil {
		t.Error("started in another cluster")
	}
	s = startStore(t, o)
	s.waitReady()
	s.mustGet("k", "v")
}

// runRefused runs a store that must not start and returns why.
func runRefused(t *testing.T, o storenode.Options) error {
	t.Helper()
	s, err := storenode.New(o)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	err = s.Run(ctx)
	if err == nil {
		t.Error("the store started")
	}
	return err
}

// PD removed this store for ever: it stops, and says so.
func TestGoneStoreStops(t *testing.T) {
	pd := startFakePD(t)
	o := storeOptions(t, t.TempDir(), pd.address)
	s := startStore(t, o)
	s.waitReady()
	if err := s.stop(); err != nil {
		t.Fatal(err)
	}
	pd.setGone()
	if err := runRefused(t, o); err == nil || !strings.Contains(err.Error(), "refuses") {
		t.Errorf("got %v", err)
	}
}

// A store near its capacity refuses growing writes, still deletes, and stops
// cleanly at the last watermark.
func TestDiskFull(t *testing.T) {
	pd := startFakePD(t)
	o := storeOptions(t, t.TempDir(), pd.address)
	o.CapacityBytes = 160 << 20
	o.Engine.DiskInterval = 50 * time.Millisecond
	s := startStore(t, o)
	s.waitReady()
	noise := make([]byte, 128<<10)
	_, _ = rand.NewChaCha8([32]byte{}).Read(noise)
	value := string(noise)
	full := false
	for i := 0; i < 4000 && !full; i++ {
		e := s.put(fmt.Sprintf("k%04d", i), value).GetError()
		full = e.GetDiskFull() != nil
		if e != nil && !full && e.GetBusy() == nil {
			t.Fatalf("put %d: %v", i, e)
		}
	}
	if !full {
		t.Fatal("500 MiB fitted into 160")
	}
	del, err := s.kv().Delete(t.Context(), &kvpb.DeleteRequest{Key: []byte("k0000")})
	if err != nil || del.GetError() != nil {
		t.Fatalf("delete: %v, %v", del, err)
	}
	s.mustGet("k0001", value)
}
