package raft

import (
	"fmt"
	"os"
	"testing"

	logpb "github.com/ridgekv/ridge/proto/ridge/log/v1"
	"github.com/ridgekv/ridge/storenode/internal/catalog"
	"github.com/ridgekv/ridge/storenode/internal/engine"
)

// TestPreflight: what would panic at every start, or lose entries without a
// word, is one quarantined replica; the rest of the store lives.
func TestPreflight(t *testing.T) {
	for _, c := range []struct {
		name   string
		reason string
		// applied is what the engine claims of range 2 at the next start.
		applied func(a, last uint64) uint64
	}{
		{"ahead", "the log ends at", func(_, last uint64) uint64 { return last + 1 }},
		{"behind", "the log begins after", func(uint64, uint64) uint64 { return 6 }},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := splitStore(t)
			_, last := s.logRange(t, 2)
			s.stopHost(t)
			a := s.applied(t, 2)
			a.Index = c.applied(a.Index, last)
			w := &engine.WriteSet{}
			catalog.StageApplied(w, 2, a)
			must(t, s.engine.Commit(w))
			s.closeEngine(t)
			s.start(t)
			s.checkQuarantined(t, 2, c.reason)
			s.awaitLeader(t, 1, 1)
			s.acquire(t, 1)
			s.put(t, 1, "a", "alive")
			s.restart(t) // and again
			s.checkQuarantined(t, 2, c.reason)
			must(t, s.host.DestroyReplica(testContext(t), 2, 1))
			if _, ok := s.catalog.Replica(2); ok {
				t.Error("a quarantined replica cannot be destroyed")
			}
		})
	}
}

// TestLostLog: an empty log beside a full engine quarantines every replica.
func TestLostLog(t *testing.T) {
	s := splitStore(t)
	s.stop(t)
	must(t, os.RemoveAll(s.options().Dir))
	s.start(t)
	s.checkQuarantined(t, 1, "log is lost")
	s.checkQuarantined(t, 2, "log is lost")
}

// TestForeignLog: the log of another store is refused.
func TestForeignLog(t *testing.T) {
	c := newTestCluster(t, 2)
	must(t, c.stores[1].openOnly(t).Close())
	o := c.stores[2].options()
	o.Dir = c.stores[1].options().Dir
	if h, err := Open(o, Deps{}); err == nil {
		h.Close()
		t.Fatal("the log of another store was opened")
	}
}

// TestCrashInBirth: a birth is taken up again wherever it was cut off.
func TestCrashInBirth(t *testing.T) {
	for _, logged := range []bool{false, true} {
		t.Run(fmt.Sprint("logged=", logged), func(t *testing.T) {
			c := newTestCluster(t, 1)
			s := c.stores[1]
			s.openEngine(t)
			h, err := Open(s.options(), Deps{Engine: s.engine, Catalog: s.catalog})
			must(t, err)
			must(t, h.createFirst(firstRange(1), 1))
			if logged { // the record of it did not get to the disk
				must(t, h.writeBirth(testContext(t), s.state(t, 1)))
				must(t, s.catalog.Edit(1, 1, func(pb *logpb.RangeState) bool {
					pb.LogWritten = false
					return true
				}))
			}
			must(t, h.Close())
			s.closeEngine(t)
			s.start(t)
			s.awaitLeader(t, 1, 1)
			s.acquire(t, 1)
			s.put(t, 1, "a", "1")
		})
	}
}

// splitStore is one store with ranges 1 and 2 and a log snapshot of range 2.
func splitStore(t *testing.T) *testStore {
	t.Helper()
	c := startTestCluster(t, 1, func(o *Options) { o.LogSnapshotEntries = 8 })
	s := c.stores[1]
	s.put(t, 1, "a", "1")
	s.split(t, 1, 2, "k", 1)
	s.awaitLeader(t, 2, 1)
	s.acquire(t, 2)
	for i := range 40 {
		s.put(t, 2, "m", fmt.Sprint(i))
	}
	eventually(t, "log snapshot", func() error {
		if sn, _ := s.host.logDB.GetSnapshot(2, 1); sn.Index < 20 {
			return fmt.Errorf("at %d", sn.Index)
		}
		return nil
	})
	return s
}

func (s *testStore) checkQuarantined(t *testing.T, rangeID uint64, reason string) {
	t.Helper()
	pb := s.state(t, rangeID).PB()
	if pb.GetState() != logpb.ReplicaState_REPLICA_STATE_POISONED ||
		!containsText(pb.GetPoisonReason(), reason) {
		t.Errorf("range %d is %s: %q, want %q", rangeID, pb.GetState(), pb.GetPoisonReason(), reason)
	}
	if _, runs := s.host.replica(rangeID); runs {
		t.Errorf("range %d runs", rangeID)
	}
}
