package raft

import (
	"errors"
	"fmt"
	"os"
	"sync/atomic"
	"testing"
	"time"

	pb "github.com/lni/dragonboat/v4/raftpb"
	sm "github.com/lni/dragonboat/v4/statemachine"
	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"

	logpb "github.com/ridgekv/ridge/proto/ridge/log/v1"
)

// confirmed counts the reads that rounds of this store have confirmed.
func (s *testStore) confirmed() float64 {
	return value(s.host.metrics.confirmed)
}

func (s *testStore) fallbacks(reason string) float64 {
	return value(s.host.metrics.fallbacks.WithLabelValues(reason))
}

func value(c prometheus.Metric) float64 {
	var m dto.Metric
	_ = c.Write(&m)
	return m.GetCounter().GetValue()
}

// awaitRounds reads until rounds confirm the reads of a range, and not Dragonboat.
func (s *testStore) awaitRounds(t *testing.T, rangeID uint64) {
	t.Helper()
	eventually(t, fmt.Sprintf("rounds of store %d", s.id), func() error {
		before := s.confirmed()
		if err := s.readIndex(t, rangeID); err != nil {
			return err
		}
		if s.confirmed() == before {
			return errors.New("Dragonboat was asked")
		}
		return nil
	})
}

// TestRounds: reads of a leader are confirmed by rounds, also after its members and
// the leader have changed, and those of followers and of a single voter are not.
func TestRounds(t *testing.T) {
	c := startTestCluster(t, 3, nil)
	must(t, c.stores[1].readIndex(t, 1))
	c.grow(t, 1, 2, 2)
	c.stores[1].awaitRounds(t, 1)
	c.grow(t, 1, 3, 3)
	c.stores[1].awaitRounds(t, 1)
	must(t, c.stores[2].readIndex(t, 1))
	if n := c.stores[2].confirmed(); n != 0 {
		t.Errorf("%v reads of a follower confirmed", n)
	}
	must(t, c.stores[1].host.TransferLeader(testContext(t), 1, 3))
	c.stores[3].awaitLeader(t, 1, 3)
	c.stores[3].awaitRounds(t, 1)
	c.stores[3].acquire(t, 1)
	c.stores[3].put(t, 1, "a", "1")
	c.stores[3].awaitRounds(t, 1)
	// One voter of three is enough, and one that came back is asked again.
	c.stores[1].stop(t)
	c.stores[3].awaitRounds(t, 1)
	c.stores[1].start(t)
	c.stores[2].stop(t)
	c.stores[3].awaitRounds(t, 1)
}

// partition drops Raft's own messages of range 1 between store 1 and the others while
// it is on. What stores say to each other passes.
func (c *testCluster) partition(on *atomic.Bool) {
	for id, s := range c.stores {
		s.meddle = func(h *Host) {
			admit := h.door.admit
			h.door.admit = func(ms []pb.Message) []pb.Message {
				var kept []pb.Message
				for _, m := range admit(ms) {
					if !on.Load() || id != 1 && m.From != 1 {
						kept = append(kept, m)
					}
				}
				return kept
			}
		}
	}
}

// TestDeposedLeader: a leader that does not hear of its successor answers no read
// from before the writes of that one. The questions get through, so that nothing but
// the promises can tell.
func TestDeposedLeader(t *testing.T) {
	var cut atomic.Bool
	c := newTestCluster(t, 3)
	c.opts = shippedTicks
	c.partition(&cut)
	for _, s := range c.stores {
		s.start(t)
	}
	c.stores[1].bearFirst(t)
	c.grow(t, 1, 2, 2)
	c.grow(t, 1, 3, 3)
	old := c.stores[1]
	old.put(t, 1, "a", "old")
	old.awaitRounds(t, 1)
	cut.Store(true)
	for _, id := range []uint64{2, 3} {
		c.stores[id].host.Suspect(1, true)
	}
	var lead *testStore
	eventually(t, "a successor", func() error {
		for _, id := range []uint64{2, 3} {
			if lead = c.stores[id]; lead.host.Leader(1).Self {
				return nil
			}
		}
		return errors.New("none")
	})
	lead.acquire(t, 1)
	lead.put(t, 1, "a", "new")
	if !old.host.Leader(1).Self {
		t.Fatal("the old leader has heard of its successor: the test shows nothing")
	}
	before := old.fallbacks("denied")
	const reads = 20
	ended := make(chan error, reads)
	for range reads {
		old.host.ReadIndex(1, time.Second, func(err error) {
			if v, _ := old.get(t, 1, "a"); err == nil && v != "new" {
				err = fmt.Errorf("read %q", v)
				t.Error(err)
			}
			ended <- err
		})
	}
	eventually(t, "denied", func() error {
		if n := old.fallbacks("denied") - before; n != reads {
			return fmt.Errorf("%v of %d", n, reads)
		}
		return nil
	})
	cut.Store(false)
	for range reads {
		<-ended
	}
	lead.awaitRounds(t, 1)
}

// gatedMachine applies nothing while the gate is shut.
type gatedMachine struct {
	sm.IOnDiskStateMachine
	gate *atomic.Pointer[chan struct{}]
}

func (m *gatedMachine) Update(es []sm.Entry) ([]sm.Entry, error) {
	if gate := m.gate.Load(); gate != nil {
		<-*gate
	}
	return m.IOnDiskStateMachine.Update(es)
}

// TestSlowLeader: what a follower has applied, and so may have answered, is in every
// read of the leader that begins then, though the leader has yet to apply it.
func TestSlowLeader(t *testing.T) {
	var gate atomic.Pointer[chan struct{}]
	c := newTestCluster(t, 3)
	c.stores[1].wrap = func(_, _ uint64, m sm.IOnDiskStateMachine) sm.IOnDiskStateMachine {
		return &gatedMachine{m, &gate}
	}
	for _, s := range c.stores {
		s.start(t)
	}
	c.stores[1].bearFirst(t)
	c.grow(t, 1, 2, 2)
	c.grow(t, 1, 3, 3)
	lead := c.stores[1]
	lead.put(t, 1, "a", "old")
	lead.awaitRounds(t, 1)
	shut := make(chan struct{})
	gate.Store(&shut)
	applied := make(chan Outcome, 1)
	lead.host.Propose(1, lead.entry(t, 1, "a", "new"), 5*time.Second,
		func(o Outcome) { applied <- o })
	eventually(t, "applied by a follower", func() error {
		if v, _ := c.stores[2].get(t, 1, "a"); v != "new" {
			return fmt.Errorf("it has %q", v)
		}
		return nil
	})
	read := make(chan error, 1)
	lead.host.ReadIndex(1, 5*time.Second, func(err error) { read <- err })
	select {
	case err := <-read:
		t.Error("the read went on before the leader applied what a follower has shown")
		read <- err
	case <-time.After(100 * time.Millisecond):
	}
	gate.Store(nil)
	close(shut)
	must(t, <-read)
	must(t, (<-applied).Err)
	if v, _ := lead.get(t, 1, "a"); v != "new" {
		t.Errorf("read %q", v)
	}
}

// TestOlderReleases: a store that does not know the question is not hurt by it, and
// keeps no read waiting; when it does know it, it is asked.
func TestOlderReleases(t *testing.T) {
	c := newTestCluster(t, 3)
	var seen atomic.Int64
	for _, id := range []uint64{2, 3} {
		c.stores[id].meddle = func(h *Host) {
			h.door.receive = func(ms []pb.Message) []pb.Message {
				for _, m := range ms {
					if m.ShardID == storesRange {
						seen.Add(1)
					}
				}
				return ms
			}
		}
	}
	for _, s := range c.stores {
		s.start(t)
	}
	c.stores[1].bearFirst(t)
	c.grow(t, 1, 2, 2)
	c.grow(t, 1, 3, 3)
	lead := c.stores[1]
	eventually(t, "empty questions", func() error {
		if err := lead.readIndex(t, 1); err != nil {
			return err
		}
		if n := seen.Load(); n < 4 {
			return fmt.Errorf("%d", n)
		}
		return nil
	})
	if n := lead.fallbacks("lost"); n != 0 {
		t.Errorf("%v reads waited for stores that do not know the question", n)
	}
	for _, id := range []uint64{2, 3} {
		c.stores[id].stop(t)
		c.stores[id].meddle = nil
		c.stores[id].start(t)
	}
	c.leader(t, 1).awaitRounds(t, 1)
}

// TestPutBackLogConfirmsNothing: a store whose log was put back has forgotten what it
// promised. Its replica does not start, and nothing is answered for it either.
func TestPutBackLogConfirmsNothing(t *testing.T) {
	c := startTestCluster(t, 3, nil)
	c.grow(t, 1, 2, 2)
	c.grow(t, 1, 3, 3)
	leader, back := c.stores[1], c.stores[2]
	leader.acquire(t, 1)
	leader.put(t, 1, "a", "old")
	ask := appendQuestion(nil, question{rangeID: 1, replicaID: 2, term: leader.host.Leader(1).Term})
	grants := func() bool {
		bits, ok := back.host.confirms.answer(ask)
		return ok && granted(bits, 0)
	}
	eventually(t, "a promise", func() error {
		if !grants() {
			return errors.New("denied")
		}
		return nil
	})
	back.stop(t)
	kept := t.TempDir() + "/log"
	must(t, os.CopyFS(kept, os.DirFS(back.dir+"/log")))
	back.start(t)
	leader.put(t, 1, "a", "new")
	eventually(t, "it is applied", func() error {
		if v, _ := back.get(t, 1, "a"); v != "new" {
			return errors.New("not yet")
		}
		return nil
	})
	back.stop(t)
	must(t, os.RemoveAll(back.dir+"/log"))
	must(t, os.CopyFS(back.dir+"/log", os.DirFS(kept)))
	back.start(t)
	eventually(t, "the replica is kept from starting", func() error {
		r, ok := back.catalog.Replica(1)
		if !ok || r.State().Status() != logpb.ReplicaState_REPLICA_STATE_POISONED {
			return errors.New("not yet")
		}
		return nil
	})
	if grants() {
		t.Error("it confirms by a promise that it has forgotten")
	}
}
