package raft

import (
	"errors"
	"fmt"
	"time"

	"github.com/lni/dragonboat/v4"
	pb "github.com/lni/dragonboat/v4/raftpb"
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
	h.callsMu.RLock()
	defer h.callsMu.RUnlock()
	if h.closing.Load() {
		time.AfterFunc(0, func() {
			done(Outcome{Err: fmt.Errorf("%w: %w", ErrNotProposed, ErrClosed)})
		})
		return
	}
	timeout = h.atLeastTicks(timeout)
	rs, err := h.propose(rangeID, cmd, timeout)
	h.futures.start(future{rangeID: rangeID, rs: rs, err: err, proposed: done}, timeout+graceTime)
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

func outcomeOf(res dragonboat.RequestResult, ok bool) Outcome {
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
	h.callsMu.RLock()
	defer h.callsMu.RUnlock()
	if h.closing.Load() {
		time.AfterFunc(0, func() { done(ErrClosed) })
		return
	}
	timeout = h.atLeastTicks(timeout)
	if r, ok := h.replica(rangeID); !ok || !h.confirms.join(r, timeout, done) {
		h.askRaft(rangeID, timeout, done)
	}
}

// plainRead is ReadIndex by Dragonboat alone.
func (h *Host) plainRead(rangeID uint64, timeout time.Duration, done func(error)) {
	h.callsMu.RLock()
	defer h.callsMu.RUnlock()
	if h.closing.Load() {
		time.AfterFunc(0, func() { done(ErrClosed) })
		return
	}
	h.askRaft(rangeID, timeout, done)
}

// askRaft needs callsMu.
func (h *Host) askRaft(rangeID uint64, timeout time.Duration, done func(error)) {
	f := future{rangeID: rangeID, confirmed: done}
	if r, ok := h.replica(rangeID); ok {
		f.anchoring = r.beginAnchor()
	}
	f.rs, f.err = h.nh.ReadIndex(rangeID, timeout)
	h.futures.start(f, timeout+graceTime)
}

// deliver sends a message to another store. It never blocks.
func (h *Host) deliver(storeID uint64, m pb.Message) {
	h.callsMu.RLock()
	defer h.callsMu.RUnlock()
	if h.closing.Load() {
		return
	}
	if _, known := h.introduced.Load(storeID); !known {
		h.door.introduce(h.opts.StoreID, storeID)
		h.introduced.Store(storeID, struct{}{})
	}
	h.send(m)
}

// ended passes on what became of a call, in the goroutine that waited for it.
func (h *Host) ended(f future, res dragonboat.RequestResult, answered bool) {
	if f.proposed != nil {
		out := Outcome{Err: f.err}
		if f.err == nil {
			out = outcomeOf(res, answered)
		}
		h.metrics.proposals.inc(outcomeName(out.Err))
		f.proposed(out)
		return
	}
	err := f.err
	if err == nil {
		err = confirmed(res, answered)
	}
	if f.anchoring != nil {
		h.confirms.endAnchor(f.anchoring, err == nil)
	}
	h.metrics.reads.inc(readName(err))
	if err != nil {
		err = fmt.Errorf("raft: read index of range %d: %w", f.rangeID, err)
	}
	f.confirmed(err)
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

// await waits for the answer to a request in its caller's goroutine. Only an
// answered request may be released; the garbage collector has the others.
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
