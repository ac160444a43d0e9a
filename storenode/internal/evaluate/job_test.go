package evaluate

import (
	"context"
	"sync/atomic"
	"testing"
	"time"

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
