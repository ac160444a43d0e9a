package evaluate

import (
	"testing"
	"time"

	"github.com/ridgekv/ridge/storenode/internal/apply"
)

// Raft refuses all proposals while it hands the leadership to somebody who does
// not take it. When that is over the lease must not be far away.
func TestLeaseSoonAfterRefusals(t *testing.T) {
	c := newCluster(t, 1)
	s := c.stores[0]
	s.kill()
	defer s.start()
	rep, _ := s.catalog.Replica(rangeOne)
	w := newWorker(newEvaluator(s.ev.deps, defaultTiming()), rep)
	c.setScript(func(uint64, uint64, apply.Entry) action { return refuse })
	c.lead(rangeOne, 1)
	end := time.Now().Add(1400 * time.Millisecond)
	eventually(t, "time passes", func() bool {
		w.step(time.Now())
		return time.Now().After(end)
	})
	c.setScript(nil)
	began := time.Now()
	eventually(t, "the lease", func() bool {
		w.step(time.Now())
		return w.tenure() != 0
	})
	if took := time.Since(began); took > 500*time.Millisecond {
		t.Errorf("the lease came after %s", took)
	}
}
