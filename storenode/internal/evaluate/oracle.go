package evaluate

import (
	"context"
	"sync"
	"time"

	"github.com/ridgekv/ridge/proto/errs"
	"github.com/ridgekv/ridge/proto/ts"
)

// errPD is the refusal of what needs a fresh timestamp while PD is away.
var errPD = errs.Unavailable{Part: "pd"}

// oracle asks PD for a timestamp on behalf of all who need a fresh one. One
// question is under way at a time; who asks meanwhile shares the next.
type oracle struct {
	clock   Clock
	timeout time.Duration
	bell    chan struct{}
	mu      struct {
		sync.Mutex
		closed bool
		// waiting is bounded by the queues the askers come from.
		waiting []func(ts.Timestamp, error)
		// failed is when the last question was not answered.
		failed time.Time
	}
}

func newOracle(c Clock, timeout time.Duration) *oracle {
	return &oracle{clock: c, timeout: timeout, bell: make(chan struct{}, 1)}
}

// ask calls fn with a timestamp that was taken after ask was called.
func (o *oracle) ask(fn func(ts.Timestamp, error)) {
	o.mu.Lock()
	closed := o.mu.closed
	if !closed {
		o.mu.waiting = append(o.mu.waiting, fn)
	}
	o.mu.Unlock()
	if closed {
		fn(0, errStopping)
		return
	}
	select {
	case o.bell <- struct{}{}:
	default:
	}
}

// young is how old Seen may be when it decides whether a row has expired.
const young = 200 * time.Millisecond

// now is about what the oracle would answer now. It dates what is not compared
// with other timestamps of writes and reads, and nothing else.
func (o *oracle) now() ts.Timestamp {
	limit := o.clock.Limit()
	if limit == 0 {
		return 0
	}
	return limit.Add(-time.Second)
}

// old reports whether Seen is too old to judge a TTL by, and PD may know better.
func (o *oracle) old() bool {
	o.clock.Want()
	if seen := o.clock.Seen(); seen != 0 && o.now().Sub(seen) <= young {
		return false
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	return time.Since(o.mu.failed) > o.timeout
}

// freshen calls fn once Seen is young: a store without writes asks for no
// timestamps, and its rows would never expire. When PD does not answer, fn is
// called with Seen as it is.
func (o *oracle) freshen(fn func()) {
	if !o.old() {
		fn()
		return
	}
	o.ask(func(ts.Timestamp, error) { fn() })
}

func (o *oracle) run(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			o.mu.Lock()
			o.mu.closed = true
			o.mu.Unlock()
			o.reply(0, errStopping)
			return
		case <-o.bell:
		}
		o.mu.Lock()
		waiting := o.mu.waiting
		o.mu.waiting = nil
		o.mu.Unlock()
		if len(waiting) == 0 {
			continue
		}
		asking, cancel := context.WithTimeout(ctx, o.timeout)
		t, err := o.clock.Fresh(asking)
		cancel()
		if err != nil {
			err = errPD
			o.mu.Lock()
			o.mu.failed = time.Now()
			o.mu.Unlock()
		}
		for _, fn := range waiting {
			fn(t, err)
		}
	}
}

func (o *oracle) reply(t ts.Timestamp, err error) {
	o.mu.Lock()
	waiting := o.mu.waiting
	o.mu.waiting = nil
	o.mu.Unlock()
	for _, fn := range waiting {
		fn(t, err)
	}
}
