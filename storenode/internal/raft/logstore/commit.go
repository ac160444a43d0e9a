package logstore

import (
	"errors"
	"fmt"
	"runtime"
	"sync"
)

// request is one caller's part of a batch.
type request struct {
	encoder
	// front is called under Store.mu before the batch is laid out, to write
	// what depends on everything before this batch. What it writes comes first.
	front func(*encoder)
	// turn wakes the caller: true to lead the next batch, false when its own
	// has ended with err.
	turn chan bool
	err  error
}

func newRequest() *request { return &request{turn: make(chan bool, 1)} }

// queue is who waits for a batch.
type queue struct {
	sync.Mutex
	waiting []*request
	// busy: somebody leads.
	busy bool
}

// take empties the queue, but for what would make the batch too large.
func (q *queue) take() []*request {
	q.Lock()
	defer q.Unlock()
	n, size := 0, 0
	for n < len(q.waiting) && (n == 0 || size+len(q.waiting[n].buf) <= maxPayloadBytes) {
		size += len(q.waiting[n].buf)
		n++
	}
	batch := q.waiting[:n:n]
	q.waiting = append([]*request(nil), q.waiting[n:]...)
	return batch
}

// pass lets the next caller lead, if there is one.
func (q *queue) pass() {
	q.Lock()
	defer q.Unlock()
	if len(q.waiting) == 0 {
		q.busy = false
		return
	}
	q.waiting[0].turn <- true
}

// commit makes r durable. Callers that come while a batch is being synced are
// in the next one together, and the first of them writes it.
func (s *Store) commit(r *request) error {
	s.queue.Lock()
	s.queue.waiting = append(s.queue.waiting, r)
	lead := !s.queue.busy
	s.queue.busy = true
	s.queue.Unlock()
	if !lead && !<-r.turn {
		return r.err
	}
	// Whoever can run does so first, and may join: where the processors are the
	// bottleneck, that is fewer syncs. On an idle machine nobody waits.
	runtime.Gosched()
	batch := s.queue.take()
	err := s.write(batch)
	s.queue.pass()
	for _, other := range batch {
		if other != r {
			other.err = err
			other.turn <- false
		}
	}
	return err
}

// write writes one batch. Only one caller is in it at a time.
func (s *Store) write(batch []*request) error {
	s.front.reset()
	s.mu.Lock()
	err := s.failed
	if err == nil {
		s.writeFront(batch)
	}
	s.mu.Unlock()
	if err != nil {
		return err
	}
	size := int64(batchHeadBytes + len(s.front.buf) + batchAlign)
	for _, r := range batch {
		size += int64(len(r.buf))
	}
	if s.head.end > headerBytes && s.head.end+size > s.segmentBytes {
		err = s.roll()
	}
	if err == nil {
		err = s.append(batch, size)
	}
	if err != nil {
		// What a failed write or sync has left nobody knows, so nothing may be
		// written after it, nor the same again. The next start finds out.
		err = fmt.Errorf("%w: %w", ErrFailed, err)
		s.mu.Lock()
		s.failed = err
		s.mu.Unlock()
	}
	return err
}

// writeFront writes what goes before the requests: what the log still has to
// be told of replicas, and moved records. It needs s.mu.
func (s *Store) writeFront(batch []*request) {
	for _, r := range s.late {
		r.late = false
		if r.gone {
			continue
		}
		if r.lateState {
			s.front.state(r.of, r.state)
			r.logged = r.state // what is moved after it must not be older
		}
		if r.lateTrim {
			s.front.index(kindTrim, r.of, r.first)
		}
		r.lateState, r.lateTrim = false, false
	}
	clear(s.late)
	s.late = s.late[:0]
	for _, r := range batch {
		if r.front != nil {
			r.front(&s.front)
		}
	}
}

// append writes and syncs the batch, and then makes it known.
func (s *Store) append(batch []*request, size int64) error {
	head := s.head
	buf := append(s.buf[:0], make([]byte, batchHeadBytes)...)
	buf = append(buf, s.front.buf...)
	for _, r := range batch {
		buf = append(buf, r.buf...)
	}
	buf = head.seal(buf, s.sequence)
	if cap(buf) <= 8<<20 {
		s.buf = buf
	}
	if err := head.reserve(head.end+size, min(allocateBytes, s.segmentBytes)); err != nil {
		return err
	}
	if _, err := head.file.WriteAt(buf, head.end); err != nil {
		return err
	}
	if err := head.writeAhead(int64(len(buf)), head.end+int64(len(buf))); err != nil {
		return err
	}
	if err := head.file.Sync(); err != nil {
		return err
	}
	s.count.syncs.Add(1)
	s.count.bytes.Add(uint64(len(buf)))
	s.mu.Lock()
	defer s.mu.Unlock()
	off := uint32(head.end) + batchHeadBytes
	s.publish(&s.front, off)
	off += uint32(len(s.front.buf))
	for _, r := range batch {
		s.publish(&r.encoder, off)
		off += uint32(len(r.buf))
	}
	head.end += int64(len(buf))
	s.sequence++
	return nil
}

// publish puts durable records into the index. It needs s.mu.
func (s *Store) publish(e *encoder, off uint32) {
	for _, rec := range e.records {
		s.index.apply(rec, place{segment: s.head.id, off: off + rec.off, size: rec.size})
	}
}

// roll begins the next segment.
func (s *Store) roll() error {
	old := s.head
	next, err := createSegment(s.disk, old.id+1, s.sequence, old.end)
	if err != nil {
		return err
	}
	// Only gives back what was reserved: the next segment says where this one
	// ends.
	if err := old.file.Truncate(old.end); err != nil {
		return errors.Join(err, next.file.Close())
	}
	s.mu.Lock()
	s.index.segments = append(s.index.segments, next)
	s.mu.Unlock()
	s.head = next
	s.ring()
	return nil
}
