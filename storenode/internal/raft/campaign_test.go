package raft

import (
	"fmt"
	"testing"
	"time"

	"github.com/lni/dragonboat/v4"
	pb "github.com/lni/dragonboat/v4/raftpb"
)

// manyRanges is n ranges on three stores, all led by store 1.
func manyRanges(t *testing.T, n int) *testCluster {
	t.Helper()
	c := threeVoters(t, shippedTicks)
	lead := c.stores[1]
	for id := uint64(2); id <= uint64(n); id++ {
		// From the right end to the left, so that it is range 1 that splits.
		lead.split(t, 1, id, startOf(id), 1, 2, 3)
		lead.awaitLeader(t, id, 1)
		lead.acquire(t, id)
		eventually(t, "born", func() error {
			if len(lead.state(t, 1).Unborn()) > 0 {
				return fmt.Errorf("range %d is not born", id)
			}
			return nil
		})
	}
	for _, s := range c.stores {
		for id := uint64(1); id <= uint64(n); id++ {
			s.awaitLeader(t, id, 1)
			s.config(t, id)
		}
	}
	return c
}

// startOf is a key of a range of manyRanges, for all but the first its start.
func startOf(id uint64) string {
	if id == 1 {
		return "a"
	}
	return fmt.Sprintf("k%04d", 9999-id)
}

// TestDeathOfStore: with the shipped ticks an election takes 2 to 4 s; ranges
// of a silent store are led again in well under one.
func TestDeathOfStore(t *testing.T) {
	const ranges = 20
	c := manyRanges(t, ranges)
	c.stores[1].stop(t)
	began := time.Now()
	for _, id := range []uint64{2, 3} {
		c.stores[id].host.Suspect(1, true)
	}
	for id := uint64(1); id <= ranges; id++ {
		c.leader(t, id)
	}
	took := time.Since(began)
	t.Logf("%d ranges led again after %s", ranges, took)
	if took > 900*time.Millisecond {
		t.Errorf("%d ranges were led again after %s", ranges, took)
	}
	led := make(map[uint64]int)
	for id := uint64(1); id <= ranges; id++ {
		s := c.leader(t, id)
		led[s.id]++
		s.acquire(t, id)
		s.put(t, id, startOf(id), "after")
	}
	if led[2] == 0 || led[3] == 0 {
		t.Errorf("the dead store's ranges went to %v, want both", led)
	}
	c.stores[1].start(t)
	for _, id := range []uint64{2, 3} {
		c.stores[id].host.Suspect(1, false)
	}
	eventually(t, "the store is back", func() error {
		return c.stores[1].host.CaughtUp(testContext(t), 1)
	})
}

// TestDeathSoonAfterRestart: after a start the members a survivor has learned
// are those its log began with; for the first range, one store alone. It must
// campaign, or give its vote, by what it has applied.
func TestDeathSoonAfterRestart(t *testing.T) {
	c := threeVoters(t, shippedTicks)
	for _, id := range []uint64{2, 3} {
		r, ok := c.stores[id].host.replica(1)
		if !ok {
			t.Fatalf("store %d has no replica", id)
		}
		c.stores[id].config(t, 1)
		r.members.Store(&members{config: r.members.Load().config, replicas: voters(1)})
		r.leader.Store(&Leader{ReplicaID: 1, Known: true})
	}
	c.stores[1].stop(t)
	began := time.Now()
	for _, id := range []uint64{2, 3} {
		c.stores[id].host.Suspect(1, true)
	}
	c.leader(t, 1)
	if took := time.Since(began); took > 900*time.Millisecond {
		t.Errorf("led again after %s", took)
	}
}

// TestWrongSuspicion: a store that is taken for dead wrongly keeps leading, and
// a leader that takes the others for dead does nothing to itself.
func TestWrongSuspicion(t *testing.T) {
	c := threeVoters(t, shippedTicks)
	lead := c.stores[1]
	before := lead.host.Leader(1)
	lead.host.Suspect(2, true)
	lead.host.Suspect(3, true)
	c.stores[2].host.Suspect(1, true)
	longest := time.Duration(0)
	for end := time.Now().Add(1500 * time.Millisecond); time.Now().Before(end); {
		began := time.Now()
		lead.put(t, 1, "a", "x")
		longest = max(longest, time.Since(began))
	}
	t.Logf("longest write %s", longest)
	if after := lead.host.Leader(1); after != before {
		t.Errorf("led by %+v, was %+v", after, before)
	}
}

// TestNoTimePassesOnALeader looks at the messages themselves.
func TestNoTimePassesOnALeader(t *testing.T) {
	c := startTestCluster(t, 1, nil)
	s := c.stores[1]
	h := newHost(s.host.opts, Deps{Catalog: s.catalog})
	h.nh, h.door = s.host.nh, s.host.door
	r, _ := s.host.replica(1)
	h.replicas.Store(uint64(1), r)
	h.deaths.mu.silent[9] = struct{}{}
	// Even if the note says that a silent store leads: NodeHost knows better.
	h.deaths.ranges[1] = &death{storeID: 9}
	out, _ := h.stepDeaths(time.Now(), nil, time.Now().Add(time.Hour))
	if len(out) != 0 {
		t.Errorf("%d messages for a leader, first %s", len(out), out[0].Type)
	}
	if len(h.deaths.ranges) != 0 {
		t.Error("the note about the range is kept")
	}
}

func TestPassTime(t *testing.T) {
	c := newTestCluster(t, 1)
	h := newHost(c.stores[1].options().withDefaults(), Deps{})
	r := &replica{rangeID: 7, replicaID: 1}
	g := electorateOf(dragonboat.ShardInfo{
		Replicas: map[uint64]string{1: "s1", 2: "s2", 3: "s3"}, LeaderID: 3,
	})
	if g.leader != 3 {
		t.Fatalf("the leader lives on store %d", g.leader)
	}
	silent := map[uint64]struct{}{3: {}}
	rank, ranks := rankOf(7, 1, g, silent)
	if ranks != 2 {
		t.Fatalf("%d ranks, want 2", ranks)
	}
	var counts []int
	for round := range 2 * roundsPerRank {
		out := h.passTime(nil, r, &death{storeID: 3, round: round}, g, silent)
		for _, m := range out {
			if m.Type != pb.LocalTick || m.To != 1 || m.ShardID != 7 {
				t.Fatalf("message %+v", m)
			}
		}
		counts = append(counts, len(out))
	}
	want := []int{19, 19, 0, 0} // of 10 election ticks
	if rank == 1 {
		want = []int{10, 0, 19, 19}
	}
	if fmt.Sprint(counts) != fmt.Sprint(want) {
		t.Errorf("rank %d: ticks per round %v, want %v", rank, counts, want)
	}
	delete(g.stores, 1)
	if out := h.passTime(nil, r, &death{storeID: 3}, g, silent); len(out) != 0 {
		t.Error("time passes for a learner")
	}
}

// TestRanks: all stores agree on the order, and it differs from range to range.
func TestRanks(t *testing.T) {
	first := make(map[uint64]int)
	three := electorate{stores: map[uint64]uint64{11: 1, 12: 2, 13: 3}}
	for rangeID := range uint64(300) {
		seen := make(map[int]uint64)
		for _, store := range []uint64{1, 2, 3} {
			rank, _ := rankOf(rangeID, store, three, nil)
			seen[rank] = store
		}
		if len(seen) != 3 {
			t.Fatalf("range %d: ranks %v", rangeID, seen)
		}
		first[seen[0]]++
	}
	for store, n := range first {
		if n < 60 {
			t.Errorf("store %d is first for %d of 300 ranges", store, n)
		}
	}
}
