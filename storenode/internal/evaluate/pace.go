package evaluate

import (
	"sync/atomic"
	"time"

	"github.com/ridgekv/ridge/proto/errs"
)

// pace is how long writes of a range take now. A write whose caller leaves sooner
// than it would be answered is refused at the door, where that is certain, instead
// of being proposed and given up with an unknown outcome.
//
// It judges only while entries are undecided: a range with nothing to do takes any
// write, and by it learns that it is fast again.
type pace struct {
	// mean is the moving mean of what the oldest write of an entry took, in
	// nanoseconds; oldest is when the oldest undecided entry was first proposed,
	// in Unix nanoseconds, 0 when there is none.
	mean, oldest atomic.Int64
}

// paceMargin is how much longer than the mean a write may well take.
const paceMargin = 3.0 / 2

// minPace is below what pace judges: a range that answers so soon is not behind.
const minPace = 200 * time.Millisecond

// settled takes in an entry that is applied. Only the worker calls it.
func (p *pace) settled(took time.Duration) {
	old := p.mean.Load()
	p.mean.Store(old + (int64(took)-old)/4)
}

// undecided notes the oldest undecided entry. Only the worker calls it.
func (p *pace) undecided(flights []*flight) {
	at := int64(0)
	if len(flights) > 0 {
		at = flights[0].first.UnixNano()
	}
	p.oldest.Store(at)
}

// expected is how long a write that comes now must be ready to wait; 0 is any
// time.
func (p *pace) expected(now time.Time) time.Duration {
	oldest := p.oldest.Load()
	if oldest == 0 {
		return 0
	}
	mean := time.Duration(float64(p.mean.Load()) * paceMargin)
	if d := max(mean, time.Duration(now.UnixNano()-oldest)); d > minPace {
		return d
	}
	return 0
}

// judge refuses a write whose caller will not wait long enough.
func (p *pace) judge(patience time.Duration, now time.Time) error {
	if d := p.expected(now); d > patience {
		return errs.Busy{Reason: "range is behind", RetryAfter: min(d/4, patience)}
	}
	return nil
}
