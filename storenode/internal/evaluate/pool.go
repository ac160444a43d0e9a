package evaluate

import (
	"sync"
	"sync/atomic"
)

// pool is the few goroutines that answer reads. Its queues are bounded by the
// pending reads of each range. Scans have a queue of their own and at most
// half of the goroutines, so that they cannot hold up point reads.
type pool struct {
	readers int
	// guests are goroutines of the raft room that answer reads.
	guests atomic.Int32
	mu     struct {
		sync.Mutex
		points, scans []func()
		scanning      int
		closed        bool
	}
	more *sync.Cond
}

func newPool(readers int) *pool {
	p := &pool{readers: readers}
	p.more = sync.NewCond(&p.mu)
	return p
}

// submit runs fn in a reader, or at once when the pool is closed: then fn
// finds its call answered.
func (p *pool) submit(scan bool, fns ...func()) {
	p.mu.Lock()
	closed := p.mu.closed
	switch {
	case closed:
	case scan:
		p.mu.scans = append(p.mu.scans, fns...)
	default:
		p.mu.points = append(p.mu.points, fns...)
	}
	p.mu.Unlock()
	if closed {
		for _, fn := range fns {
			fn()
		}
		return
	}
	if len(fns) == 1 {
		p.more.Signal()
		return
	}
	p.more.Broadcast()
}

// answerOps answers the reads of one round. The goroutine that heard of the end
// of the round answers the first chunk of point reads itself, which saves a
// hand-off, unless as many do so already as there are readers. Scans and all
// other chunks go to the readers.
func (p *pool) answerOps(w *worker, ops []*readOp) {
	points := ops[:0] // The round is over; nobody else looks at its list.
	for _, op := range ops {
		if op.confirm == nil && op.c.kind == KindScan {
			p.submit(true, func() { op.run(w) })
			continue
		}
		points = append(points, op)
	}
	if len(points) == 0 {
		return
	}
	var own []*readOp
	defer p.guests.Add(-1)
	if p.guests.Add(1) <= int32(p.readers) {
		own = points[:min(readChunk, len(points))]
		points = points[len(own):]
	}
	var fns []func()
	for len(points) > 0 {
		chunk := points[:min(readChunk, len(points))]
		points = points[len(chunk):]
		fns = append(fns, func() { w.runAll(chunk) })
	}
	if len(fns) > 0 {
		p.submit(false, fns...)
	}
	if len(own) > 0 {
		w.runAll(own)
	}
}

// work is one reader. It ends when the pool is closed and empty.
func (p *pool) work() {
	for {
		fn, scan := p.next()
		if fn == nil {
			return
		}
		fn()
		if scan {
			p.mu.Lock()
			p.mu.scanning--
			p.mu.Unlock()
			p.more.Signal()
		}
	}
}

func (p *pool) next() (fn func(), scan bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for {
		room := p.mu.scanning < max(1, p.readers/2)
		switch {
		case len(p.mu.points) > 0:
			fn = p.mu.points[0]
			p.mu.points[0] = nil
			p.mu.points = p.mu.points[1:]
			return fn, false
		case len(p.mu.scans) > 0 && room:
			fn = p.mu.scans[0]
			p.mu.scans[0] = nil
			p.mu.scans = p.mu.scans[1:]
			p.mu.scanning++
			return fn, true
		case p.mu.closed && len(p.mu.scans) == 0:
			return nil, false
		}
		p.more.Wait()
	}
}

// close lets the readers end.
func (p *pool) close() {
	p.mu.Lock()
	p.mu.closed = true
	p.mu.Unlock()
	p.more.Broadcast()
}
