package agent

import (
	"context"
	"sync"
	"time"

	"github.com/ridgekv/ridge/storenode/internal/catalog"
	"github.com/ridgekv/ridge/storenode/internal/engine"
)

// measurePeriod is how often ranges are looked through for what to measure.
const measurePeriod = 500 * time.Millisecond

// sizes remembers how large ranges were when last measured.
type sizes struct {
	mu struct {
		sync.Mutex
		known map[uint64]measured
	}
}

// measured is a measurement and what had been written until then.
type measured struct {
	spanEpoch, written uint64
	engine.Measure
}

func newSizes() *sizes {
	s := &sizes{}
	s.mu.known = map[uint64]measured{}
	return s
}

// estimate is the measured size plus what was written since. It is unknown for
// a span that was never measured: half of a split must not be taken for the
// whole.
func (s *sizes) estimate(r *catalog.Replica) (sizeBytes, keyCount uint64, known bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	m, ok := s.mu.known[r.RangeID()]
	if !ok || m.spanEpoch != r.State().SpanEpoch() {
		return 0, 0, false
	}
	return m.SizeBytes + r.WrittenBytes() - m.written, m.Keys, true
}

// stale reports whether r should be measured: its span is new, or an eighth of
// the split size was written since.
func (s *sizes) stale(r *catalog.Replica, splitSize uint64) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	m, ok := s.mu.known[r.RangeID()]
	return !ok || m.spanEpoch != r.State().SpanEpoch() ||
		r.WrittenBytes()-m.written > splitSize/8
}

func (s *sizes) store(rangeID uint64, m measured) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.mu.known[rangeID] = m
}

// keep forgets all ranges but those in ids.
func (s *sizes) keep(ids map[uint64]bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for id := range s.mu.known {
		if !ids[id] {
			delete(s.mu.known, id)
		}
	}
}

// measures keeps the sizes of led ranges fresh, one range at a time and at most
// a quarter of the time.
func (a *Agent) measures(ctx context.Context) error {
	return every(ctx, measurePeriod, func(ctx context.Context) error {
		ids := map[uint64]bool{}
		for _, r := range a.d.Catalog.Replicas() {
			if !a.d.Host.Leader(r.RangeID()).Self || !r.State().Serving() {
				continue
			}
			ids[r.RangeID()] = true
			if !a.sizes.stale(r, a.splitSize()) {
				continue
			}
			began := time.Now()
			if _, err := a.measure(ctx, r); err != nil {
				a.o.Logger.Warn("cannot measure", "range", r.RangeID(), "op", "measure", "error", err)
			}
			if !sleep(ctx, min(3*time.Since(began), 5*time.Second)) {
				return nil
			}
		}
		a.sizes.keep(ids)
		return nil
	})
}

func (a *Agent) measure(ctx context.Context, r *catalog.Replica) (engine.Measure, error) {
	s, written := r.State(), r.WrittenBytes()
	m, err := a.d.Engine.Measure(ctx, s.Slices())
	if err != nil {
		return engine.Measure{}, err
	}
	a.sizes.store(r.RangeID(), measured{spanEpoch: s.SpanEpoch(), written: written, Measure: m})
	a.metrics.measured.Inc()
	return m, nil
}

// Size is the last estimate of a local range's size, 0 if it is not known.
func (a *Agent) Size(rangeID uint64) uint64 {
	r, ok := a.d.Catalog.Replica(rangeID)
	if !ok {
		return 0
	}
	size, _, _ := a.sizes.estimate(r)
	return size
}
