package agent

import (
	"context"
	"sync/atomic"
	"time"

	"github.com/ridgekv/ridge/proto/ts"
)

const (
	// clockPeriod is how old Seen may get while somebody wants it.
	clockPeriod = 20 * time.Millisecond
	// clockWanted is how long one Want keeps it young.
	clockWanted = time.Second
	// clockTimeout bounds one question to PD.
	clockTimeout = 2 * time.Second
	// clockAhead is how far a token may lie ahead of what PD can have given.
	clockAhead = time.Second
)

// Oracle gives timestamps; pdclient.Client does.
type Oracle interface {
	Timestamp(ctx context.Context) (ts.Timestamp, error)
}

// Clock is this store's knowledge of the timestamp oracle. It implements
// evaluate.Clock.
type Clock struct {
	oracle Oracle
	seen   atomic.Pointer[sighting]
	wanted atomic.Int64 // until when, in nanoseconds since start
	start  time.Time
	bell   chan struct{}
}

// sighting is a timestamp with the moment it was known by.
type sighting struct {
	ts   ts.Timestamp
	when time.Time
}

// NewClock returns a clock that has seen nothing.
func NewClock(oracle Oracle) *Clock {
	c := &Clock{oracle: oracle, start: time.Now(), bell: make(chan struct{}, 1)}
	c.seen.Store(&sighting{when: c.start})
	return c
}

// Seen is the newest timestamp that PD has given to this store, 0 for none.
func (c *Clock) Seen() ts.Timestamp { return c.seen.Load().ts }

// Limit is the largest token that is accepted without asking PD: what PD can
// have given out by now, plus a second. 0 as long as PD has given nothing.
func (c *Clock) Limit() ts.Timestamp {
	s := c.seen.Load()
	if s.ts == 0 {
		return 0
	}
	return s.ts.Add(time.Since(s.when) + clockAhead)
}

// Fresh asks PD.
func (c *Clock) Fresh(ctx context.Context) (ts.Timestamp, error) {
	before := time.Now()
	t, err := c.oracle.Timestamp(ctx)
	if err != nil {
		return 0, err
	}
	c.saw(t, before)
	return t, nil
}

// Want asks that Seen be kept young for the next second.
func (c *Clock) Want() {
	now := int64(time.Since(c.start))
	if until := c.wanted.Load(); until-now > int64(clockWanted/2) {
		return // Cheap: this is called for every write.
	}
	c.wanted.Store(now + int64(clockWanted))
	select {
	case c.bell <- struct{}{}:
	default:
	}
}

// Saw notes a timestamp that came with another answer of PD.
func (c *Clock) Saw(t ts.Timestamp) { c.saw(t, time.Now()) }

// saw notes that t was given not before when.
func (c *Clock) saw(t ts.Timestamp, when time.Time) {
	next := &sighting{ts: t, when: when}
	for {
		old := c.seen.Load()
		if t <= old.ts || c.seen.CompareAndSwap(old, next) {
			return
		}
	}
}

// Run keeps Seen young while it is wanted.
func (c *Clock) Run(ctx context.Context) error {
	ticker := time.NewTicker(clockPeriod)
	defer ticker.Stop()
	pause := time.Duration(0)
	for {
		if int64(time.Since(c.start)) >= c.wanted.Load() {
			select {
			case <-c.bell:
			case <-ctx.Done():
				return nil
			}
		}
		one, cancel := context.WithTimeout(ctx, clockTimeout)
		_, err := c.Fresh(one)
		cancel()
		pause = nextPause(pause, err)
		if pause > 0 && !sleep(ctx, pause) {
			return nil
		}
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return nil
		}
	}
}

// nextPause doubles from 20 ms to 1 s while err goes on.
func nextPause(pause time.Duration, err error) time.Duration {
	if err == nil {
		return 0
	}
	return min(max(2*pause, 20*time.Millisecond), time.Second)
}

// sleep waits for d and reports whether ctx still lives.
func sleep(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}
