package raft

import (
	"testing"
	"time"

	sm "github.com/lni/dragonboat/v4/statemachine"
)

// stuck is a machine that does not open until it is released.
type stuck struct {
	sm.IOnDiskStateMachine
	released <-chan struct{}
}

func (s stuck) Open(stop <-chan struct{}) (uint64, error) {
	<-s.released
	return s.IOnDiskStateMachine.Open(stop)
}

// TestOrphanBirth: the store that led the parent dies before it has started
// its replica of the child. The others do not wait for an ordinary election.
func TestOrphanBirth(t *testing.T) {
	c := newTestCluster(t, 3)
	c.opts = shippedTicks
	lead := c.stores[1]
	released := make(chan struct{})
	lead.wrap = func(rangeID, _ uint64, m sm.IOnDiskStateMachine) sm.IOnDiskStateMachine {
		if rangeID == 2 {
			return stuck{m, released}
		}
		return m
	}
	for _, s := range c.stores {
		s.start(t)
	}
	t.Cleanup(func() { close(released) }) // before the stores are stopped
	lead.bearFirst(t)
	c.grow(t, 1, 2, 2)
	c.grow(t, 1, 3, 3)
	lead.put(t, 1, "m", "right")
	began := time.Now()
	lead.split(t, 1, 2, "k", 1, 2, 3)
	heir := c.leader(t, 2)
	took := time.Since(began)
	t.Logf("child led by store %d after %s", heir.id, took)
	if took > 1500*time.Millisecond { // an ordinary election takes 2 to 4 s
		t.Errorf("the child was led after %s", took)
	}
	heir.acquire(t, 2)
	heir.put(t, 2, "z", "new")
}
