package evaluate

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ridgekv/ridge/proto/errs"
	"github.com/ridgekv/ridge/storenode/internal/apply"
	"github.com/ridgekv/ridge/storenode/internal/catalog"
)

// A job whose caller has gone before it began never begins: a transfer would
// stop the writes of a range that nobody moves any more.
func TestForgottenJobDoesNotBegin(t *testing.T) {
	c := newCluster(t, 2)
	s := c.stores[0]
	c.lead(rangeOne, 1)
	s.holds()
	w, err := s.ev.leading(rangeOne)
	if err != nil {
		t.Fatal(err)
	}
	c.lead(rangeOne, 0) // an election
	w.ring()
	eventually(t, "the step that may not know of it is over", func() bool { return len(w.bell) == 0 })
	var begun atomic.Bool
	j := newJob(true)
	j.begin = func(time.Time, *catalog.State) {
		begun.Store(true)
		j.finish(nil)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Millisecond)
	defer cancel()
	if err := w.do(ctx, j); err == nil {
		t.Fatal("done without a leader")
	}
	c.lead(rangeOne, 1)
	s.mustPut("a", "b")
	if begun.Load() {
		t.Error("it began after its caller had gone")
	}
}

// TestSettled: once it has returned, no split that was proposed before takes place,
// even one whose caller was told that nobody knows.
func TestSettled(t *testing.T) {
	for name, late := range map[string]bool{"applied": false, "in the log too late": true} {
		t.Run(name, func(t *testing.T) {
			c := newCluster(t, 2)
			c.lead(rangeOne, 1)
			s := c.stores[0]
			s.mustPut("a", "b")
			tries := 0
			c.setScript(func(_, _ uint64, e apply.Entry) action {
				if e.Kind == apply.KindSplit {
					if tries++; tries == 1 || late {
						return limbo
					}
				}
				return deliver
			})
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
			defer cancel()
			_, _, err := s.ev.Split(ctx, rangeOne, []byte("m"), c.child(2, 11, 12))
			if _, ok := errors.AsType[errs.UnknownOutcome](err); !ok {
				t.Fatalf("the outcome of the split should be unknown: %v", err)
			}
			if err := s.ev.Settled(t.Context(), rangeOne); err != nil {
				t.Fatal(err)
			}
			r, _ := s.catalog.Replica(rangeOne)
			settled := r.State().SpanEpoch()
			if late != (settled == 1) {
				t.Errorf("settled at span epoch %d", settled)
			}
			c.releaseLimbo(rangeOne, nil)
			s.mustPut("a", "c")
			if now := r.State().SpanEpoch(); now != settled {
				t.Errorf("span epoch %d, it was settled at %d", now, settled)
			}
			if err := c.stores[1].ev.Settled(t.Context(), rangeOne); err == nil {
				t.Error("settled where another store leads")
			}
		})
	}
}
