package logstore

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"sync"
	"testing"

	"github.com/lni/dragonboat/v4/raftio"
	"github.com/lni/dragonboat/v4/raftpb"
)

// expected is what one replica's log must hold.
type expected struct {
	of       raftio.NodeInfo
	boot     bool
	state    raftpb.State
	least    uint64 // the commit index that may not be lost
	snapshot uint64
	first    uint64
	entries  []raftpb.Entry // entries[i] has index base+i
	base     uint64
}

func newExpected(of raftio.NodeInfo) *expected { return &expected{of: of, first: 1, base: 1} }

func (m *expected) next() uint64 { return m.base + uint64(len(m.entries)) }

func (m *expected) clone() *expected {
	c := *m
	c.entries = append([]raftpb.Entry(nil), m.entries...)
	return &c
}

// step does one random operation on the log and returns what must be held
// after it; m is what was held before.
func (m *expected) step(s *Store, worker uint64, r *rand.Rand) (*expected, error) {
	a := m.clone()
	shard, id := m.of.ShardID, m.of.ReplicaID
	switch k := r.IntN(100); {
	case !m.boot && k < 50:
		a.boot = true
		return a, s.SaveBootstrapInfo(shard, id, raftpb.Bootstrap{
			Addresses: map[uint64]string{id: "s1"}, Type: raftpb.OnDiskStateMachine,
		})
	case k < 3:
		*a = *newExpected(m.of)
		return a, s.RemoveNodeData(shard, id)
	case k < 6:
		*a = *newExpected(m.of)
		a.imported(uint64(5 + r.IntN(50)))
		return a, s.ImportSnapshot(raftpb.Snapshot{
			ShardID: shard, Index: a.snapshot, Term: a.state.Term, Dummy: true,
			OnDiskIndex: a.snapshot, Type: raftpb.OnDiskStateMachine,
		}, id)
	case k < 12 && m.snapshot+1 > m.first:
		a.first = m.first + r.Uint64N(m.snapshot+1-m.first) + 1
		return a, s.RemoveEntriesTo(shard, id, a.first-1)
	case k < 22 && m.state.Commit > m.snapshot:
		a.snapshot = m.snapshot + 1 + r.Uint64N(m.state.Commit-m.snapshot)
		a.least = max(a.least, a.snapshot)
		return a, s.SaveSnapshots([]raftpb.Update{{
			ShardID: shard, ReplicaID: id, Snapshot: raftpb.Snapshot{
				ShardID: shard, Index: a.snapshot, Term: 1, Type: raftpb.OnDiskStateMachine,
			},
		}})
	}
	return a, s.SaveRaftState([]raftpb.Update{a.update(r)}, worker)
}

func (m *expected) imported(index uint64) {
	m.boot, m.snapshot, m.first, m.base = true, index, index+1, index+1
	m.state = raftpb.State{Term: 5, Commit: index}
	m.least = index
}

// update changes m and returns the update that does the same to a log.
func (m *expected) update(r *rand.Rand) raftpb.Update {
	u := raftpb.Update{ShardID: m.of.ShardID, ReplicaID: m.of.ReplicaID}
	durable := false
	if r.IntN(4) == 0 || m.state.Term == 0 {
		m.state.Term++
		m.state.Vote = 0
		durable = true
	}
	if m.state.Vote == 0 && r.IntN(2) == 0 {
		m.state.Vote = uint64(1 + r.IntN(3))
		durable = true
	}
	if r.IntN(20) == 0 {
		index := m.next() + uint64(r.IntN(30))
		u.Snapshot = raftpb.Snapshot{
			ShardID: m.of.ShardID, Index: index, Term: m.state.Term, Type: raftpb.OnDiskStateMachine,
		}
		m.snapshot, m.first, m.base, m.entries = index, index+1, index+1, nil
		m.state.Commit, durable = index, true
	} else if next := m.next(); r.IntN(3) > 0 {
		// From the first that is not committed on, anything may be overwritten.
		from := m.state.Commit + 1
		if r.IntN(4) > 0 {
			from = next
		}
		m.entries = m.entries[:from-m.base]
		for i := range uint64(1 + r.IntN(8)) {
			e := raftpb.Entry{Index: from + i, Term: m.state.Term, Cmd: make([]byte, r.IntN(200))}
			for k := range e.Cmd {
				e.Cmd[k] = byte(r.Uint32())
			}
			u.EntriesToSave = append(u.EntriesToSave, e)
		}
		m.entries = append(m.entries, u.EntriesToSave...)
		durable = true
	}
	if last := m.next() - 1; r.IntN(2) == 0 && last > m.state.Commit {
		// What is committed must have been saved before, or with this update.
		m.state.Commit += 1 + r.Uint64N(last-m.state.Commit)
	}
	if durable {
		m.least = m.state.Commit
	}
	u.State = m.state
	return u
}

// compare finds a difference between a log and what it must hold.
func (m *expected) compare(s *Store) error {
	shard, id := m.of.ShardID, m.of.ReplicaID
	_, err := s.GetBootstrapInfo(shard, id)
	if (err == nil) != m.boot {
		return fmt.Errorf("bootstrap %v, want %v", err, m.boot)
	}
	snapshot, err := s.GetSnapshot(shard, id)
	if err != nil || snapshot.Index != m.snapshot {
		return fmt.Errorf("snapshot at %d, %v, want %d", snapshot.Index, err, m.snapshot)
	}
	state, err := s.ReadRaftState(shard, id, snapshot.Index)
	if errors.Is(err, raftio.ErrNoSavedLog) && raftpb.IsEmptyState(m.state) {
		return nil
	}
	if err != nil {
		return err
	}
	if state.State.Term != m.state.Term || state.State.Vote != m.state.Vote ||
		state.State.Commit > m.state.Commit || state.State.Commit < m.least {
		return fmt.Errorf("state %+v, want %+v and %d at least", state.State, m.state, m.least)
	}
	last := snapshot.Index
	if state.EntryCount > 0 {
		last = state.FirstIndex + state.EntryCount - 1
	}
	if want := max(m.next()-1, m.snapshot); last != want {
		return fmt.Errorf("the log ends at %d, want %d", last, want)
	}
	got, _, err := s.IterateEntries(nil, 0, shard, id, m.first, m.next()+5, 1<<40)
	if err != nil {
		return err
	}
	if uint64(len(got)) != m.next()-m.first {
		return fmt.Errorf("%d entries from %d on, want %d", len(got), m.first, m.next()-m.first)
	}
	for i, e := range got {
		want := m.entries[m.first-m.base+uint64(i)]
		if e.Index != want.Index || e.Term != want.Term || string(e.Cmd) != string(want.Cmd) {
			return fmt.Errorf("entry %d is another one", want.Index)
		}
	}
	return nil
}

// seeds are the histories of this run: RIDGE_SEED repeats one of them.
func seeds(n int) []uint64 {
	if v, err := strconv.ParseUint(os.Getenv("RIDGE_SEED"), 10, 64); err == nil {
		return []uint64{v}
	}
	all := make([]uint64, n)
	for i := range all {
		all[i] = rand.Uint64()
	}
	return all
}

// TestCrash: the power fails again and again while several workers write and
// segments are freed. What was acknowledged is there after each failure; what
// was under way is there whole or not at all; nothing else is there.
func TestCrash(t *testing.T) {
	n := 150
	if testing.Short() {
		n = 30
	}
	for _, seed := range seeds(n) {
		t.Run(strconv.FormatUint(seed, 10), func(t *testing.T) { crashHistory(t, seed) })
	}
}

const crashWorkers, crashReplicas = 3, 3

func crashHistory(t *testing.T, seed uint64) {
	r := rand.New(rand.NewPCG(seed, 0))
	d := newSimDisk()
	var held [crashWorkers][crashReplicas]*expected
	for w := range held {
		for i := range held[w] {
			held[w][i] = newExpected(raftio.GetNodeInfo(uint64(1+w*crashReplicas+i), 7))
		}
	}
	for round := range 8 {
		s, err := open(Options{SegmentBytes: 4 << 10, Workers: crashWorkers}, d)
		if err != nil {
			t.Fatalf("round %d: %v", round, err)
		}
		d.failAfter(r.IntN(400))
		var after [crashWorkers][crashReplicas]*expected
		var wg sync.WaitGroup
		for w := range held {
			seed := r.Uint64()
			wg.Go(func() {
				r := rand.New(rand.NewPCG(seed, 1))
				for range 4000 {
					i := r.IntN(crashReplicas)
					next, err := held[w][i].step(s, uint64(w+1), r)
					if err != nil {
						after[w][i] = next
						return
					}
					held[w][i] = next
				}
			})
		}
		wg.Wait()
		_ = s.Close() // fails, but ends the reclaimer
		d = d.crash(r)
		if r.IntN(2) == 0 { // and again, while the log is read
			d.failAfter(r.IntN(6))
			if s, err := open(Options{SegmentBytes: 4 << 10, Workers: crashWorkers}, d); err == nil {
				_ = s.Close()
			}
			d = d.crash(r)
		}
		s, err = open(Options{SegmentBytes: 4 << 10, Workers: crashWorkers}, d)
		if err != nil {
			t.Fatalf("round %d: after the crash: %v", round, err)
		}
		for w := range held {
			for i, m := range held[w] {
				err := m.compare(s)
				if other := after[w][i]; err != nil && other != nil {
					if err2 := other.compare(s); err2 != nil {
						err = fmt.Errorf("%w; or, with what was under way: %w", err, err2)
					} else {
						err, held[w][i] = nil, other
					}
				}
				if err != nil {
					t.Fatalf("round %d, replica %v: %v", round, m.of, err)
				}
				held[w][i].adopt(s)
			}
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// adopt takes over the commit index that has survived.
func (m *expected) adopt(s *Store) {
	if state, err := s.ReadRaftState(m.of.ShardID, m.of.ReplicaID, m.snapshot); err == nil {
		m.state.Commit = state.State.Commit
	}
}

// TestKilledThenCut: the process ends at any operation while the machine goes
// on, so the next one finds what was written and not synced, and Raft acts on
// it. Then the power fails: what was found, and what was acknowledged since, is
// still there.
func TestKilledThenCut(t *testing.T) {
	for _, forgetful := range []bool{false, true} {
		for _, more := range []int{0, 3} {
			for at := 0; killHistory(t, forgetful, more, at); at++ {
			}
		}
	}
}

// killHistory reports whether the history was longer than at operations.
func killHistory(t *testing.T, forgetful bool, more, at int) bool {
	const ops = 40
	o := Options{SegmentBytes: 1 << 10}
	d := newSimDisk()
	d.forgetful = forgetful
	s, err := open(o, d)
	must(t, err)
	m := newExpected(raftio.GetNodeInfo(1, 7))
	r := rand.New(rand.NewPCG(uint64(more), 2))
	// run does n operations and returns what else may be held if one fails.
	run := func(n int) *expected {
		for range n {
			next, err := m.step(s, 1, r)
			if err != nil {
				return next
			}
			m = next
		}
		return nil
	}
	found := func(what string, other *expected) {
		if err := m.compare(s); err != nil {
			if other == nil || other.compare(s) != nil {
				t.Fatalf("forgetful %v, operation %d, %s: %v", forgetful, at, what, err)
			}
			m = other
		}
		m.adopt(s)
		m.least = m.state.Commit
	}
	d.failAfter(at)
	other := run(ops)
	_ = s.Close() // fails, but ends the reclaimer
	d.failAfter(-1)
	s, err = open(o, d)
	if err != nil {
		t.Fatalf("forgetful %v, operation %d, killed: %v", forgetful, at, err)
	}
	found("killed", other)
	run(more)
	d.failAfter(0)
	_ = s.Close()
	s, err = open(o, d.crash(r))
	if err != nil {
		t.Fatalf("forgetful %v, operation %d, without power: %v", forgetful, at, err)
	}
	found("without power", nil)
	must(t, s.Close())
	return other != nil
}
