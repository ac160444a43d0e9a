package evaluate

import (
	"sync/atomic"
	"time"

	"github.com/ridgekv/ridge/proto/errs"
)

// pace is how long writes of a range take now. A write whose caller leaves sooner
// than it would be answered is refused, where that is certain, instead of being
// proposed and given up with an unknown outcome: at the door by what writes take
// from there, and once more when its turn to be proposed has come, which is the
// last moment, by what entries take.
//
// It judges only while entries are undecided, and as long after as an entry takes:
// a range that has had nothing to do for a while takes any write, and by it learns
// that it is fast again.
type pace struct {
	// mean is the moving mean of what the oldest write of an entry took, entry that
	// of the entry itself, in nanoseconds.
	mean, entry atomic.Int64
	// oldest is when the oldest undecided entry was first proposed, 0 when there is
	// none; idle is since when there is none. In Unix nanoseconds.
	oldest, idle atomic.Int64
}

// paceMargin is how much longer than the mean a write may well take.
const paceMargin = 3.0 / 2

// minPace is below what pace judges: a range that answers so soon is not behind.
const minPace = 200 * time.Millisecond

// settled takes in an entry that is applied: what it took since its oldest write
// came. Only the worker calls it.
func (p *pace) settled(took time.Duration) { approach(&p.mean, took) }

// decided takes in what it took since it was proposed. Only the worker calls it.
func (p *pace) decided(took time.Duration) { approach(&p.entry, took) }

func approach(mean *atomic.Int64, took time.Duration) {
	old := mean.Load()
	if old == 0 {
		old = int64(took)
	}
	mean.Store(old + (int64(took)-old)/4)
}

// undecided notes the oldest undecided entry. Only the worker calls it.
func (p *pace) undecided(flights []*flight) {
	if len(flights) > 0 {
		p.oldest.Store(flights[0].first.UnixNano())
	} else if p.oldest.Swap(0) != 0 {
		p.idle.Store(time.Now().UnixNano())
	}
}

// expected is how long a write must be ready to wait now if mean is what others
// took; 0 is any time.
func (p *pace) expected(mean time.Duration, now time.Time) time.Duration {
	waited := time.Duration(0)
	if oldest := p.oldest.Load(); oldest != 0 {
		waited = time.Duration(now.UnixNano() - oldest)
	} else if now.UnixNano()-p.idle.Load() >= p.entry.Load() {
		return 0
	}
	if d := max(time.Duration(float64(mean)*paceMargin), waited); d > minPace {
		return d
	}
	return 0
}

// judge refuses, at the door, a write whose caller will not wait long enough.
func (p *pace) judge(patience time.Duration, now time.Time) error {
	return tooLate(p.expected(time.Duration(p.mean.Load()), now), patience)
}

// judgeLast is judge when nothing is left but to propose the write.
func (p *pace) judgeLast(patience time.Duration, now time.Time) error {
	return tooLate(p.expected(time.Duration(p.entry.Load()), now), patience)
}

func tooLate(expected, patience time.Duration) error {
	if expected <= patience {
		return nil
	}
	return errs.Busy{Reason: "range is behind", RetryAfter: min(expected/4, max(patience, 1))}
}
