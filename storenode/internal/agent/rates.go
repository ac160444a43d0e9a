package agent

import (
	"sync"
	"time"

	"github.com/ridgekv/ridge/storenode/internal/evaluate"
)

// rateMemory is the time after which an old rate counts for half.
const rateMemory = 5 * time.Second

// rates turns the counters of operations into operations per second, lately. It
// holds one entry per replica here.
type rates struct {
	mu struct {
		sync.Mutex
		known map[uint64]opRate
	}
}

// opRate is what a range bears, and the counters it was taken from.
type opRate struct {
	at          time.Time
	seen        evaluate.Stats
	read, write float64
}

func newRates() *rates {
	r := &rates{}
	r.mu.known = map[uint64]opRate{}
	return r
}

// take replaces everything known by what the counters say now. Ranges that are
// not among them are forgotten.
func (r *rates) take(counters map[uint64]evaluate.Stats, now time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	next := make(map[uint64]opRate, len(counters))
	for id, c := range counters {
		old, ok := r.mu.known[id]
		passed := now.Sub(old.at).Seconds()
		switch {
		case !ok || c.SpanEpoch != old.seen.SpanEpoch ||
			c.ReadOps < old.seen.ReadOps || c.WriteOps < old.seen.WriteOps:
			next[id] = opRate{at: now, seen: c}
			continue
		case passed <= 0:
			next[id] = old
			continue
		}
		weight := passed / (passed + rateMemory.Seconds())
		mix := func(old float64, ops uint64) float64 {
			return old + weight*(float64(ops)/passed-old)
		}
		next[id] = opRate{
			at: now, seen: c, read: mix(old.read, c.ReadOps-old.seen.ReadOps),
			write: mix(old.write, c.WriteOps-old.seen.WriteOps),
		}
	}
	r.mu.known = next
}

// of returns the operations per second of a range. Of another span than was
// counted nothing is known: half of a split does not bear what the whole bore.
func (r *rates) of(rangeID, spanEpoch uint64) (read, write uint64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	k := r.mu.known[rangeID]
	if k.seen.SpanEpoch != spanEpoch {
		return 0, 0
	}
	return uint64(k.read), uint64(k.write)
}
