package raft

import (
	"context"
	"sync"
	"testing"
	"time"
)

// TestTransferToTheDead: Raft refuses proposals while it waits for the heir of
// a transfer, an election timeout each time it is asked: 5 s. A silent heir is
// not asked for again, and the range takes proposals as soon as the call ends.
func TestTransferToTheDead(t *testing.T) {
	for _, tt := range []struct {
		name    string
		suspect bool
	}{
		{"heir found silent", true},
		{"call ends", false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := threeVoters(t, shippedTicks)
			lead := c.stores[1]
			lead.put(t, 1, "a", "before")
			c.stores[2].stop(t)
			lead.put(t, 1, "a", "the heir lacks this")
			patience := 500 * time.Millisecond
			if tt.suspect {
				patience = 6 * time.Second
			}
			ctx, cancel := context.WithTimeout(context.Background(), patience)
			defer cancel()
			began := time.Now()
			done := make(chan error, 1)
			var wg sync.WaitGroup
			defer wg.Wait()
			wg.Go(func() { done <- lead.host.TransferLeader(ctx, 1, 2) })
			<-time.After(200 * time.Millisecond)
			lead.host.Suspect(2, tt.suspect)
			if err := <-done; err == nil {
				t.Fatal("a dead store leads")
			}
			if took := time.Since(began); took > 2*time.Second {
				t.Errorf("asked for a silent heir for %s", took)
			}
			eventually(t, "a write", func() error {
				return applied(lead.propose(t, 1, lead.entry(t, 1, "a", "after")))
			})
			took := time.Since(began)
			t.Logf("written after %s", took)
			if took > 2500*time.Millisecond {
				t.Errorf("no write for %s", took)
			}
			if l := lead.host.Leader(1); !l.Self {
				t.Errorf("the leader stepped down: %+v", l)
			}
		})
	}
}

// TestHeirThatDoesNotCome: while a transfer is asked for again and again, to an
// heir that does not take it, the range takes proposals in between.
func TestHeirThatDoesNotCome(t *testing.T) {
	c := threeVoters(t, shippedTicks)
	lead := c.stores[1]
	lead.put(t, 1, "a", "before")
	c.stores[2].stop(t) // and nobody says that it is silent
	lead.put(t, 1, "a", "the heir lacks this")
	ctx, cancel := context.WithTimeout(context.Background(), 4*time.Second)
	defer cancel()
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() {
		if err := lead.host.TransferLeader(ctx, 1, 2); err == nil {
			t.Error("a dead store leads")
		}
	})
	var worst time.Duration
	for last := time.Now(); ctx.Err() == nil; {
		if applied(lead.propose(t, 1, lead.entry(t, 1, "a", "meanwhile"))) == nil {
			last = time.Now()
		}
		worst = max(worst, time.Since(last))
	}
	t.Logf("longest time without a write: %s", worst)
	if worst > 1500*time.Millisecond {
		t.Errorf("no write for %s", worst)
	}
	if l := lead.host.Leader(1); !l.Self {
		t.Errorf("the leader stepped down: %+v", l)
	}
}
