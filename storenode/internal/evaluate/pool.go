package evaluate

import (
	"sync"
)

// pool is the few goroutines that answer reads. Its queues are bounded by the
// pending reads of each range. Scans have a queue of their own and at most
// half of the goroutines, so that they cannot hold up point reads.
type pool struct {
	readers int
	mu      struct {
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

// submitOps hands the reads of one round over, in chunks.
func (p *pool) submitOps(w *worker, ops []*readOp) {
	var points []*readOp
	for _, op := range ops {
		if op.confirm == nil && op.c.kind == KindScan {
			p.submit(true, func() { op.run(w) })
			continue
		}
		points = append(points, op)
	}
	var fns []func()
	for len(points) > 0 {
		n := min(readChunk, len(points))
		chunk := points[:n]
		points = points[n:]
		fns = append(fns, func() {
			for _, op := range chunk {
				op.run(w)
			}
		})
	}
	if len(fns) > 0 {
		p.submit(false, fns...)
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
