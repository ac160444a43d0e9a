package raft

import (
	"testing"
	"time"
)

// TestRestartOfAllStores: when all stores were stopped, nobody has died and
// nobody leads. Ranges do not wait for an ordinary election, which takes 5 to
// 10 s with the shipped ticks.
func TestRestartOfAllStores(t *testing.T) {
	const ranges = 20
	c := manyRanges(t, ranges)
	const bound = 3 * time.Second
	var took []time.Duration
	for try := 0; try < 3 && (try == 0 || took[try-1] > bound); try++ { // a busy machine may stall
		for _, s := range c.stores {
			s.stop(t)
		}
		for _, s := range c.stores {
			s.start(t)
		}
		began := time.Now()
		for id := uint64(1); id <= ranges; id++ {
			c.leader(t, id)
		}
		took = append(took, time.Since(began))
	}
	t.Logf("%d ranges led again after %s", ranges, took)
	if took[len(took)-1] > bound {
		t.Errorf("%d ranges were led again after %s", ranges, took)
	}
	for id := uint64(1); id <= ranges; id++ {
		s := c.leader(t, id)
		s.acquire(t, id)
		s.put(t, id, startOf(id), "after")
	}
	for _, s := range c.stores {
		for id := uint64(1); id <= ranges; id++ {
			eventually(t, "caught up", func() error {
				return s.host.CaughtUp(testContext(t), id)
			})
		}
	}
}

// TestRestartOfOne: a store that is restarted alone finds leaders and does not
// disturb them.
func TestRestartOfOne(t *testing.T) {
	c := manyRanges(t, 5)
	lead := c.stores[1]
	var before []Leader
	for id := uint64(1); id <= 5; id++ {
		before = append(before, lead.host.Leader(id))
	}
	c.stores[2].stop(t)
	c.stores[2].start(t)
	for id := uint64(1); id <= 5; id++ {
		eventually(t, "caught up", func() error {
			return c.stores[2].host.CaughtUp(testContext(t), id)
		})
		if after := lead.host.Leader(id); after != before[id-1] {
			t.Errorf("range %d is led by %+v, was by %+v", id, after, before[id-1])
		}
	}
}
