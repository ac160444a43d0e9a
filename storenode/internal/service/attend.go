package service

import (
	"context"
	"runtime/debug"
	"sync/atomic"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

const (
	// debtTimeout is how long a caller may owe us something: the Hello of a
	// stream, or room for an answer. Only a caller that is broken or hostile
	// takes so long, and its answers stand in everybody's budget.
	debtTimeout = 30 * time.Second
	// drainDebtTimeout is the same while the store drains.
	drainDebtTimeout = time.Second
)

// debt is what a caller owes: since when, 0 for nothing.
type debt struct{ since atomic.Int64 }

func (d *debt) begin() { d.since.Store(time.Now().UnixNano()) }
func (d *debt) end()   { d.since.Store(0) }

func (d *debt) older(than time.Duration) bool {
	since := d.since.Load()
	return since != 0 && time.Since(time.Unix(0, since)) > than
}

// attend runs f, which speaks with the caller of one stream, and leaves it when
// the caller is in debt for too long: gRPC ends a blocked Send or Recv when the
// handler returns, and only then.
func (s *Service) attend(ctx context.Context, f func(owes *debt) error) error {
	owes, done := &debt{}, make(chan error, 1)
	s.readers.Go(func() {
		defer func() {
			if p := recover(); p != nil {
				s.metrics.panics.Inc()
				s.o.Logger.Error("stream handler panicked", "panic", p, "stack", string(debug.Stack()))
				done <- status.Error(codes.Internal, "the store made a mistake; it is in its log")
			}
		}()
		done <- f(owes)
	})
	limit, draining := s.o.debtTimeout, s.draining
	ticker := time.NewTicker(limit / 4)
	defer ticker.Stop()
	for {
		select {
		case err := <-done:
			return err
		case <-ctx.Done():
			return ctx.Err()
		case <-draining:
			draining, limit = nil, min(limit, drainDebtTimeout)
			ticker.Reset(limit / 4)
		case <-ticker.C:
			if owes.older(limit) {
				s.metrics.debtors.Inc()
				return status.Error(codes.ResourceExhausted, "the caller does not read, or says no Hello")
			}
		}
	}
}
