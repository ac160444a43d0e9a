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
