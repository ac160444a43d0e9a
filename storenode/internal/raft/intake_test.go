package raft

import (
	"fmt"
	"strings"
	"sync"
	"testing"

	pb "github.com/lni/dragonboat/v4/raftpb"
	sm "github.com/lni/dragonboat/v4/statemachine"
	"github.com/prometheus/client_golang/prometheus"
	"pgregory.net/rapid"
)

func newTestIntake(limit uint64) *intake {
	return newIntake(limit, counter{prometheus.NewCounter(prometheus.CounterOpts{Name: "dropped"})})
}

// replicate is a message with entries of the sizes given; 0 is one that apply
// does not see.
func replicate(rangeID, after uint64, sizes ...int) []pb.Message {
	m := pb.Message{Type: pb.Replicate, ShardID: rangeID, LogIndex: after}
	for i, size := range sizes {
		m.Entries = append(m.Entries, pb.Entry{
			Index: after + 1 + uint64(i), Cmd: make([]byte, size),
		})
	}
	return []pb.Message{m}
}

func TestIntakeCounts(t *testing.T) {
	in := newTestIntake(100)
	in.begin(1, 5)
	in.begin(2, 5)
	step := func(what string, ms []pb.Message, admitted bool, held uint64) {
		t.Helper()
		if got := len(in.admit(ms)) == 1; got != admitted || in.heldBytes() != held {
			t.Fatalf("%s: admitted %t, %d bytes held; want %t and %d",
				what, got, in.heldBytes(), admitted, held)
		}
	}
	step("first", replicate(1, 5, 40, 10), true, 50)
	step("second", replicate(1, 7, 40), true, 90)
	step("over the limit", replicate(1, 8, 11), false, 90)
	step("a probe", replicate(1, 8), true, 90)
	step("a heartbeat", []pb.Message{{Type: pb.Heartbeat, ShardID: 1}}, true, 90)
	step("entries that apply does not see", replicate(1, 8, 0, 0), true, 90)
	step("a range without a backlog", replicate(2, 5, 300), true, 390)
	step("its second message", replicate(2, 6, 1), false, 390)
	step("the same again", replicate(2, 5, 300), true, 390)
	step("another leader's entry instead", replicate(2, 5, 20), true, 110)
	step("a range that does not run here", replicate(9, 5, 1000), true, 110)
	in.advance(1, 6)
	step("half of a message is applied", replicate(1, 8, 1), false, 110)
	in.advance(1, 7)
	step("all of it is", replicate(1, 8, 30), true, 90)
	step("an entry that is applied", replicate(1, 6, 50), true, 90)
	in.end(1)
	step("a range that has stopped", replicate(1, 9, 50), true, 20)
	in.advance(2, 6)
	step("nothing is left", replicate(2, 6), true, 0)
}

// What a deposed leader has sent arrives late and Raft throws it away. Nothing of
// it is ever applied, so on a range without writes it would be counted for ever.
func TestIntakeOfADeposedLeader(t *testing.T) {
	in := newTestIntake(100)
	in.begin(1, 5)
	in.begin(2, 5)
	send := func(term uint64, ms []pb.Message) {
		t.Helper()
		ms[0].Term = term
		if len(in.admit(ms)) != 1 {
			t.Fatal("not admitted")
		}
	}
	send(3, replicate(1, 5, 0)) // the new leader's first entry
	send(2, replicate(1, 5, 90, 90))
	if held := in.heldBytes(); held != 0 {
		t.Errorf("%d bytes held that will never be applied", held)
	}
	send(3, replicate(2, 5, 10))
	send(3, replicate(2, 6, 10)) // no other range pays for it
}

// TestIntakeBound: whatever leaders send and however slowly it is applied, the
// bound holds, and once everything is applied nothing is counted.
func TestIntakeBound(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		const limit, largest = 1000, 300
		in := newTestIntake(limit)
		last, applied := map[uint64]uint64{}, map[uint64]uint64{}
		ranges := rapid.IntRange(1, 4).Draw(t, "ranges")
		for id := range uint64(ranges) {
			in.begin(id, 5)
			last[id], applied[id] = 5, 5
		}
		for range rapid.IntRange(1, 200).Draw(t, "steps") {
			id := rapid.Uint64Range(0, uint64(ranges)-1).Draw(t, "range")
			if rapid.Bool().Draw(t, "apply") {
				applied[id] = rapid.Uint64Range(applied[id], last[id]).Draw(t, "applied")
				in.advance(id, applied[id])
			} else {
				after := rapid.Uint64Range(applied[id], last[id]).Draw(t, "after")
				size := rapid.IntRange(0, largest).Draw(t, "size")
				if len(in.admit(replicate(id, after, size))) == 1 {
					last[id] = after + 1
				}
			}
			if held := in.heldBytes(); held > limit+uint64(ranges)*largest {
				t.Fatalf("%d bytes held", held)
			}
		}
		for id := range uint64(ranges) {
			in.advance(id, last[id])
		}
		if held := in.heldBytes(); held != 0 {
			t.Fatalf("everything is applied and %d bytes are held", held)
		}
	})
}

// slowMachine applies nothing while its gate is locked.
type slowMachine struct {
	sm.IOnDiskStateMachine
	gate *sync.RWMutex
}

func (m *slowMachine) Update(es []sm.Entry) ([]sm.Entry, error) {
	m.gate.RLock()
	defer m.gate.RUnlock()
	return m.IOnDiskStateMachine.Update(es)
}

// TestSlowFollower: a follower that cannot apply holds no more than its limit,
// does not hold up the others, and catches up afterwards.
func TestSlowFollower(t *testing.T) {
	const limit = 8 << 20
	gate := &sync.RWMutex{}
	c := newTestCluster(t, 3)
	c.opts = func(o *Options) { o.IntakeBytes = limit }
	c.stores[3].wrap = func(_, _ uint64, m sm.IOnDiskStateMachine) sm.IOnDiskStateMachine {
		return &slowMachine{IOnDiskStateMachine: m, gate: gate}
	}
	for _, s := range c.stores {
		s.start(t)
	}
	lead := c.stores[1]
	lead.bearFirst(t)
	for id := uint64(2); id <= 3; id++ {
		c.grow(t, 1, id, id)
	}
	lead.acquire(t, 1)
	gate.Lock()
	unlock := sync.OnceFunc(gate.Unlock)
	defer unlock()
	value := strings.Repeat("v", 1<<20-100)
	for i := range 14 {
		lead.put(t, 1, fmt.Sprintf("k%02d", i), value)
		if held := c.stores[3].host.intake.heldBytes(); held > limit+2<<20 {
			t.Fatalf("%d bytes are held", held)
		}
	}
	if held := c.stores[3].host.intake.heldBytes(); held < limit/2 {
		t.Errorf("only %d bytes are held: the follower was not slow", held)
	}
	unlock()
	want := lead.applied(t, 1)
	eventually(t, "catching up", func() error {
		if got := c.stores[3].applied(t, 1); got != want {
			return fmt.Errorf("applied %+v, want %+v", got, want)
		}
		if held := c.stores[3].host.intake.heldBytes(); held != 0 {
			return fmt.Errorf("%d bytes are held", held)
		}
		return nil
	})
}
