package raft

import (
	"runtime"
	"sync"
)

// finished are the reads that may go on, and the few goroutines that tell them. What
// reads a connection must not: they answer clients.
type finished struct {
	mu     sync.Mutex
	more   *sync.Cond
	reads  []*read
	closed bool
}

func (f *finished) add(reads []*read) {
	if len(reads) == 0 {
		return
	}
	f.mu.Lock()
	closed := f.closed
	if !closed {
		f.reads = append(f.reads, reads...)
	}
	f.mu.Unlock()
	if closed { // They were confirmed while the others ended.
		for _, x := range reads {
			x.done(ErrClosed)
		}
		return
	}
	f.more.Signal()
}

// finishers are more than evaluate lets read from the disk here (its Readers), so
// one is left that hands reads over to evaluate's own goroutines.
func finishers() int { return max(4, 2*runtime.GOMAXPROCS(0)) + 2 }

// work ends when f is closed and empty. A goroutine wakes the next one, so one that
// waits for the disk holds up nobody.
func (f *finished) work() {
	for {
		f.mu.Lock()
		for len(f.reads) == 0 && !f.closed {
			f.more.Wait()
		}
		if len(f.reads) == 0 {
			f.mu.Unlock()
			return
		}
		x := f.reads[0]
		f.reads[0] = nil
		f.reads = f.reads[1:]
		others := len(f.reads) > 0
		f.mu.Unlock()
		if others {
			f.more.Signal()
		}
		x.done(nil)
	}
}

func (f *finished) close() {
	f.mu.Lock()
	f.closed = true
	f.mu.Unlock()
	f.more.Broadcast()
}
