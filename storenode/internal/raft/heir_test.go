package raft

import (
	"context"
	"sync"
	"testing"
	"time"
)

// TestTransferToTheDead: Raft refuses proposals while it waits for the heir of
// a transfer, an election timeout each time it is asked. A silent heir is not
// asked for again.
func TestTransferToTheDead(t *testing.T) {
	c := threeVoters(t, shippedTicks)
	lead := c.stores[1]
	lead.put(t, 1, "a", "before")
	c.stores[2].stop(t)
	lead.put(t, 1, "a", "the heir lacks this")
	ctx, cancel := context.WithTimeout(context.Background(), 6*time.Second)
	defer cancel()
	began := time.Now()
	done := make(chan error, 1)
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() { done <- lead.host.TransferLeader(ctx, 1, 2) })
	<-time.After(200 * time.Millisecond)
	lead.host.Suspect(2, true)
	if err := <-done; err == nil {
		t.Fatal("a dead store leads")
	}
	if took := time.Since(began); took > 2*time.Second {
		t.Errorf("asked for a silent heir for %s", took)
	}
	eventually(t, "a write", func() error {
		return applied(lead.propose(t, 1, lead.entry(t, 1, "a", "after")))
	})
	if took := time.Since(began); took > 3500*time.Millisecond {
		t.Errorf("no write for %s", took)
	}
}
