package raft

import (
	"errors"
	"fmt"
	"time"

	"github.com/lni/dragonboat/v4"
)

// graceTime is how long after its timeout an answer of Dragonboat is waited
// for. It counts timeouts in ticks of a replica, and a replica that waits for
// the disk does not tick.
const graceTime = 2 * time.Second

// Outcome is what became of a proposal. Err is nil when the entry was applied
// here; Code then tells how (apply.Result...).
type Outcome struct {
	Code uint64
	Data []byte
	// Err wraps ErrNotProposed (definite) or ErrUnknown.
	Err error
}

// Propose puts an entry into the log of a range that is led here. It never
// blocks, keeps the order of the calls of one goroutine, and copies cmd. done
// is called once, from another goroutine, in any order.
func (h *Host) Propose(
	rangeID uint64, cmd []byte, timeout time.Duration, done func(Outcome),
) {
	timeout = h.atLeastTicks(timeout)
	h.promise(func() func() {
		rs, err := h.propose(rangeID, cmd, timeout)
		return func() {
			out := Outcome{Err: err}
			if err == nil {
				out = h.outcome(rs, timeout)
			}
			h.metrics.proposals.inc(outcomeName(out.Err))
			done(out)
		}
	}, func() { done(Outcome{Err: fmt.Errorf("%w: %w", ErrNotProposed, ErrClosed)}) })
}

func (h *Host) propose(
	rangeID uint64, cmd []byte, timeout time.Duration,
) (*dragonboat.RequestState, error) {
	r, ok := h.replica(rangeID)
	if !ok {
		return nil, fmt.Errorf("%w: %w: range %d", ErrNotProposed, ErrNotFound, rangeID)
	}
	// A follower would forward it, and never learn if it was lost on the way.
	if !r.leading().Self {
		return nil, fmt.Errorf("%w: %w: range %d", ErrNotProposed, ErrNotLeader, rangeID)
	}
	rs, err := h.nh.Propose(r.session, cmd, timeout)
	if err != nil {
		// All that Propose itself returns is definite: the entry was refused
		// or taken back out of the queue.
		return nil, fmt.Errorf("%w: range %d: %w", ErrNotProposed, rangeID, err)
	}
	return rs, nil
}

func (h *Host) outcome(rs *dragonboat.RequestState, timeout time.Duration) Outcome {
	res, ok := await(rs, timeout)
	switch {
	case !ok:
		return Outcome{Err: fmt.Errorf("%w: no answer", ErrUnknown)}
	case res.Completed():
		value := res.GetResult()
		return Outcome{Code: value.Value, Data: value.Data}
	case res.Dropped():
		return Outcome{Err: fmt.Errorf("%w: dropped by the leader", ErrNotProposed)}
	case res.Timeout():
		return Outcome{Err: fmt.Errorf("%w: timeout", ErrUnknown)}
	case res.Terminated():
		return Outcome{Err: fmt.Errorf("%w: the replica stopped", ErrUnknown)}
	}
	return Outcome{Err: fmt.Errorf("%w: rejected", ErrUnknown)}
}

// ReadIndex confirms that what is applied here when done(nil) is called
// includes all that was acknowledged anywhere before the call. It proves
// nothing about leadership: a follower asks its leader. It never blocks; done
// is called once, from another goroutine. All errors may be retried.
func (h *Host) ReadIndex(rangeID uint64, timeout time.Duration, done func(error)) {
	timeout = h.atLeastTicks(timeout)
	h.promise(func() func() {
		rs, err := h.nh.ReadIndex(rangeID, timeout)
		return func() {
			if err == nil {
				err = confirmed(await(rs, timeout))
			}
			h.metrics.reads.inc(readName(err))
			if err != nil {
				err = fmt.Errorf("raft: read index of range %d: %w", rangeID, err)
			}
			done(err)
		}
	}, func() { done(ErrClosed) })
}

func confirmed(res dragonboat.RequestResult, ok bool) error {
	switch {
	case ok && res.Completed():
		return nil
	case ok && res.Dropped():
		return dragonboat.ErrShardNotReady
	case ok && res.Terminated():
		return dragonboat.ErrShardClosed
	}
	return dragonboat.ErrTimeout
}

func readName(err error) string {
	switch {
	case err == nil:
		return "confirmed"
	case errors.Is(err, dragonboat.ErrTimeout):
		return "lost"
	}
	return "refused"
}

// promise makes a call that answers later: begin makes it and returns what
// waits for the answer. refuse is called instead when the host is closing.
// Answers come from other goroutines, so a caller may hold its locks.
func (h *Host) promise(begin func() (wait func()), refuse func()) {
	h.callsMu.RLock()
	defer h.callsMu.RUnlock()
	if h.closing.Load() {
		time.AfterFunc(0, refuse)
		return
	}
	h.calls.Go(begin())
}

// await waits for the answer to a request. Only an answered request may be
// released; an abandoned one is left to the garbage collector.
func await(
	rs *dragonboat.RequestState, timeout time.Duration,
) (dragonboat.RequestResult, bool) {
	timer := time.NewTimer(timeout + graceTime)
	defer timer.Stop()
	select {
	case res := <-rs.AppliedC():
		rs.Release()
		return res, true
	case <-timer.C:
		return dragonboat.RequestResult{}, false
	}
}

// atLeastTicks lengthens a timeout to what Dragonboat accepts and can keep.
func (h *Host) atLeastTicks(timeout time.Duration) time.Duration {
	return max(timeout, 2*h.opts.Tick)
}

func outcomeName(err error) string {
	switch {
	case err == nil:
		return "applied"
	case errors.Is(err, ErrNotProposed):
		return "not_proposed"
	}
	return "unknown"
}
