package catalog

import (
	"context"
	"sync"
	"sync/atomic"
)

// Replica is what this store holds of one range. It is shared by all rooms and
// stays the same for as long as the store holds the replica.
type Replica struct {
	rangeID uint64
	now     atomic.Pointer[published]
	written atomic.Uint64
	// token belongs to whoever changes the record m|range: apply while it
	// applies entries, Edit. It is held across a commit, which is why it is a
	// channel and not a mutex.
	token chan struct{}
	mu    struct {
		sync.Mutex
		// changed is closed and dropped at the next publication; nil while
		// nobody waits.
		changed chan struct{}
	}
}

// published is one consistent pair.
type published struct {
	state   *State
	applied Applied
}

func newReplica(rangeID uint64, s *State, a Applied) *Replica {
	r := &Replica{rangeID: rangeID, token: make(chan struct{}, 1)}
	r.now.Store(&published{state: s, applied: a})
	return r
}

// RangeID names the range.
func (r *Replica) RangeID() uint64 { return r.rangeID }

// State is the newest state whose commit is visible.
func (r *Replica) State() *State { return r.now.Load().state }

// Applied is how far the replica has applied its log, visibly.
func (r *Replica) Applied() Applied { return r.now.Load().applied }

// Both returns a state and an applied record that belong together.
func (r *Replica) Both() (*State, Applied) {
	p := r.now.Load()
	return p.state, p.applied
}

// WrittenBytes counts the bytes put into the range since this process began.
func (r *Replica) WrittenBytes() uint64 { return r.written.Load() }

// AddWritten adds to WrittenBytes. Only apply calls it.
func (r *Replica) AddWritten(sizeBytes uint64) { r.written.Add(sizeBytes) }

// Lock takes the right to change the record m|range; Unlock gives it back.
// Only apply and this package call it.
func (r *Replica) Lock() { r.token <- struct{}{} }

// Unlock gives the right back.
func (r *Replica) Unlock() { <-r.token }

// AppliedChanged is closed when something newer than the present state or
// applied record is published. Take it first and look second.
func (r *Replica) AppliedChanged() <-chan struct{} {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.mu.changed == nil {
		r.mu.changed = make(chan struct{})
	}
	return r.mu.changed
}

// WaitApplied waits until pred holds of what is published. It returns the
// context's error when that ends first.
func (r *Replica) WaitApplied(ctx context.Context, pred func(Applied, *State) bool) error {
	for {
		if p := r.now.Load(); pred(p.applied, p.state) {
			return nil
		}
		changed := r.AppliedChanged()
		if p := r.now.Load(); pred(p.applied, p.state) {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// publish makes s and a what everybody sees and wakes those who wait.
func (r *Replica) publish(s *State, a Applied) {
	r.now.Store(&published{state: s, applied: a})
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.mu.changed != nil {
		close(r.mu.changed)
		r.mu.changed = nil
	}
}
