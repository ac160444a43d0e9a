package raft

import (
	"sync"
	"time"

	"github.com/lni/dragonboat/v4"
)

const (
	// sweepTime is how often futures are looked through for those that
	// Dragonboat has forgotten. They end up to three sweeps late.
	sweepTime = 250 * time.Millisecond
	// idleSweeps is how many sweeps a waiter may be spare before it ends.
	idleSweeps = 8
)

// future is a call whose answer is awaited; one of proposed and confirmed is
// set and is called once.
type future struct {
	rangeID uint64
	// rs is nil when the call was refused; err then says why.
	rs        *dragonboat.RequestState
	err       error
	proposed  func(Outcome)
	confirmed func(error)
	// anchoring is nil unless the ReadIndex may make an anchor.
	anchoring *anchoring
}

// futures waits for the answers to calls, one goroutine each, because
// Dragonboat gives each its own channel. The goroutines are kept for the next
// calls: a new one would grow its stack anew under every callback. Nor does a
// call set a timer: Dragonboat itself counts timeouts, and the few that it
// forgets are found by a sweep. It forgets a ReadIndex that is on its way into
// a replica that stops, and counts nothing while a replica waits for the disk.
//
// Invariant: a waiter is in all from its start to its end, and in idle exactly
// while nothing is or will be in its next. So next <- never blocks, and who
// takes a waiter out of idle may close its next.
//
// There are as many waiters as calls in flight at once, which the queues of
// Dragonboat bound, and fewer once they have been spare for a while.
type futures struct {
	// end passes an answer on; answered is false when there was none.
	end  func(f future, res dragonboat.RequestResult, answered bool)
	quit chan struct{}
	wg   sync.WaitGroup

	mu struct {
		sync.Mutex
		all  map[*waiter]struct{}
		idle []*waiter // the longest idle first
		// spare of idle have not been needed lately.
		spare int
		// sweeps counts time; it stands still while there is no waiter.
		sweeps   uint64
		sweeping bool
		closed   bool
	}
}

// waiter is a goroutine that waits for one future at a time.
type waiter struct {
	next chan future
	// nudge makes it look at its limit. A nudge may come late and meet the
	// next future, so it proves nothing.
	nudge chan struct{}
	// limit is the last sweep that its future may live to see; 0: it is idle.
	// Guarded by futures.mu.
	limit uint64
	// reads is the range of the ReadIndex that it waits for, 0: none; lost, that
	// there will be no answer. Guarded by futures.mu.
	reads uint64
	lost  bool
}

func newFutures(end func(future, dragonboat.RequestResult, bool)) *futures {
	fs := &futures{end: end, quit: make(chan struct{})}
	fs.mu.all = make(map[*waiter]struct{})
	return fs
}

// start passes on, from another goroutine, the answer to f, or that there was
// none in time. It never blocks. It must not be called once close was.
func (fs *futures) start(f future, patience time.Duration) {
	fs.mu.Lock()
	w := fs.takeLocked()
	// The division drops part of a sweep, and the next sweep may be a late one.
	w.limit = fs.mu.sweeps + uint64(patience/sweepTime) + 2
	w.reads, w.lost = 0, false
	if f.confirmed != nil {
		w.reads = f.rangeID
	}
	fs.mu.Unlock()
	w.next <- f
}

// takeLocked takes the waiter that was busy last: its stack is warm, and those
// below it are spare.
func (fs *futures) takeLocked() *waiter {
	if n := len(fs.mu.idle); n > 0 {
		w := fs.mu.idle[n-1]
		fs.mu.idle = fs.mu.idle[:n-1]
		fs.mu.spare = min(fs.mu.spare, n-1)
		return w
	}
	w := &waiter{next: make(chan future, 1), nudge: make(chan struct{}, 1)}
	fs.mu.all[w] = struct{}{}
	fs.mu.spare = 0
	fs.wg.Go(func() { fs.serve(w) })
	if !fs.mu.sweeping {
		fs.mu.sweeping = true
		fs.wg.Go(fs.sweep)
	}
	return w
}

func (fs *futures) serve(w *waiter) {
	for f := range w.next {
		var res dragonboat.RequestResult
		answered := false
		if f.rs != nil {
			res, answered = fs.wait(w, f.rs)
		}
		fs.end(f, res, answered)
		if !fs.park(w) {
			return
		}
	}
}

// wait waits for an answer. Only an answered request may be released: until
// then Dragonboat may write to it.
func (fs *futures) wait(
	w *waiter, rs *dragonboat.RequestState,
) (dragonboat.RequestResult, bool) {
	for {
		select {
		case res := <-rs.AppliedC():
			rs.Release()
			return res, true
		case <-w.nudge:
			if !fs.overdue(w) {
				continue
			}
		}
		select {
		case res := <-rs.AppliedC():
			rs.Release()
			return res, true
		default:
			return dragonboat.RequestResult{}, false
		}
	}
}

func (fs *futures) overdue(w *waiter) bool {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	return fs.mu.closed || w.lost || fs.mu.sweeps > w.limit
}

// giveUp ends the ReadIndexes of a range that has lost its leader: Dragonboat
// forgets those that it had taken, and who waits may ask the next leader at once.
func (fs *futures) giveUp(rangeID uint64) {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	for w := range fs.mu.all {
		if w.limit != 0 && w.reads == rangeID {
			w.lost = true
			w.poke()
		}
	}
}

// park makes w idle. It reports false when w shall end instead.
func (fs *futures) park(w *waiter) bool {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	w.limit = 0
	if fs.mu.closed {
		delete(fs.mu.all, w)
		return false
	}
	fs.mu.idle = append(fs.mu.idle, w)
	return true
}

// sweep runs while there are waiters.
func (fs *futures) sweep() {
	ticker := time.NewTicker(sweepTime)
	defer ticker.Stop()
	for {
		select {
		case <-fs.quit:
			return
		case <-ticker.C:
			if !fs.sweepOnce() {
				return
			}
		}
	}
}

func (fs *futures) sweepOnce() bool {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	fs.mu.sweeps++
	for w := range fs.mu.all {
		if w.limit != 0 && fs.mu.sweeps > w.limit {
			w.poke()
		}
	}
	if fs.mu.sweeps%idleSweeps == 0 {
		fs.retireLocked(fs.mu.spare)
	}
	fs.mu.sweeping = len(fs.mu.all) > 0
	return fs.mu.sweeping
}

// retireLocked ends the n that were idle longest.
func (fs *futures) retireLocked(n int) {
	for _, w := range fs.mu.idle[:n] {
		delete(fs.mu.all, w)
		close(w.next)
	}
	kept := copy(fs.mu.idle, fs.mu.idle[n:])
	clear(fs.mu.idle[kept:])
	fs.mu.idle = fs.mu.idle[:kept]
	fs.mu.spare = kept
}

// close ends every future and waits until all have been passed on. NodeHost
// must have closed: what it has not answered it never will.
func (fs *futures) close() {
	fs.mu.Lock()
	fs.mu.closed, fs.mu.sweeping = true, false
	fs.retireLocked(len(fs.mu.idle))
	for w := range fs.mu.all {
		w.poke()
	}
	fs.mu.Unlock()
	close(fs.quit)
	fs.wg.Wait()
}

func (w *waiter) poke() {
	select {
	case w.nudge <- struct{}{}:
	default: // one that it has not seen will do
	}
}
