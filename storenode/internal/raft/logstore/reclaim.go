package logstore

import (
	"errors"
	"fmt"
	"math"

	"github.com/lni/dragonboat/v4/raftio"
)

// moveBytes is how much of a segment is moved with one batch.
const moveBytes = 1 << 20

// reclaim frees the oldest segment, again and again, when there is reason to.
func (s *Store) reclaim() {
	for {
		select {
		case <-s.closing:
			return
		case <-s.bell:
		}
		for s.due() {
			if err := s.freeOldest(); err != nil {
				s.mu.Lock()
				if s.failed == nil {
					s.failed = fmt.Errorf("%w: reclaim: %w", ErrFailed, err)
				}
				s.mu.Unlock()
				return
			}
			select {
			case <-s.closing:
				return
			default:
			}
		}
	}
}

// due reports whether the oldest segment should go: nothing in it is alive, or
// more than half of the log is dead, and two segments' worth of it besides.
func (s *Store) due() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.index.segments) < 2 || s.failed != nil {
		return false
	}
	total, live := s.index.size()
	return s.index.segments[0].live == 0 || total > 2*live+2*s.segmentBytes
}

// freeOldest moves what is alive in the oldest segment to the head, and removes
// it. The order is what makes it safe: moved, synced, removed.
func (s *Store) freeOldest() error {
	s.mu.Lock()
	oldest := s.index.segments[0]
	s.mu.Unlock()
	if err := s.moveRuns(oldest); err != nil {
		return err
	}
	// Also when nothing is left to move: the batch tells the log of trims that
	// it does not know of yet. Without them the removed entries would be
	// missing at the next start.
	r := newRequest()
	r.front = func(e *encoder) { s.moveMeta(e, oldest.id) }
	if err := s.commit(r); err != nil {
		return err
	}
	s.mu.Lock()
	if oldest.live != 0 {
		s.mu.Unlock()
		return fmt.Errorf("logstore: %d bytes of %s are still alive", oldest.live,
			segmentName(oldest.id))
	}
	s.index.segments = s.index.segments[1:]
	s.mu.Unlock()
	oldest.use.Lock() // who reads it has found it before
	err := oldest.file.Close()
	oldest.use.Unlock()
	s.count.reclaimed.Add(1)
	// Synced, so that of several removed segments none but the newest can come
	// back: the log has no holes.
	return errors.Join(err, s.disk.Remove(segmentName(oldest.id)), s.disk.Sync())
}

// candidate is a run to be moved.
type candidate struct {
	replica *replica
	first   uint64
	at      place
	body    []byte
}

// moveRuns writes all runs of a segment again. The segment stays open: only
// the reclaimer closes it.
func (s *Store) moveRuns(from *segment) error {
	var chunk []candidate
	size := uint32(0)
	flush := func() error {
		if len(chunk) == 0 {
			return nil
		}
		r := newRequest()
		moving := chunk
		r.front = func(e *encoder) { s.moveChunk(e, moving) }
		chunk, size = nil, 0
		return s.commit(r)
	}
	for _, of := range s.replicas() {
		for _, c := range s.runsIn(of, from.id) {
			c.body = make([]byte, c.at.size)
			if _, err := from.file.ReadAt(c.body, int64(c.at.off)); err != nil {
				return err
			}
			if err := decodeRun(c.body, math.MaxUint64, nil); err != nil {
				return fmt.Errorf("%w: %s at %d: %w", ErrCorrupt, segmentName(from.id), c.at.off, err)
			}
			chunk = append(chunk, c)
			if size += c.at.size; size >= moveBytes {
				if err := flush(); err != nil {
					return err
				}
			}
		}
	}
	return flush()
}

func (s *Store) replicas() []raftio.NodeInfo {
	s.mu.Lock()
	defer s.mu.Unlock()
	all := make([]raftio.NodeInfo, 0, len(s.index.replicas))
	for of := range s.index.replicas {
		all = append(all, of)
	}
	return all
}

// runsIn finds the runs of a replica that lie in a segment.
func (s *Store) runsIn(of raftio.NodeInfo, id uint32) []candidate {
	s.mu.Lock()
	defer s.mu.Unlock()
	r, ok := s.index.replicas[of]
	if !ok {
		return nil
	}
	var all []candidate
	for _, run := range r.runs {
		if run.at.segment == id {
			all = append(all, candidate{replica: r, first: r.firstOf(run), at: run.at})
		}
	}
	return all
}

// moveChunk writes those runs that are still alive: since they were read, some
// may have been trimmed or overwritten. Nothing that is written between this
// look and the moved record concerns them, because what is looked at is
// everything before this batch, and the moved records come first in it. It
// needs s.mu.
func (s *Store) moveChunk(e *encoder, chunk []candidate) {
	for _, c := range chunk {
		r := c.replica
		i := r.find(max(c.first, r.first))
		if r.gone || i == len(r.runs) || r.runs[i].at != c.at {
			continue
		}
		e.moved(r.of, r.firstOf(r.runs[i]), r.runs[i].count, c.body)
		s.count.moved.Add(uint64(len(c.body)))
	}
}

// moveMeta writes again what is newest of each replica's metadata and lies in
// a segment. It needs s.mu.
func (s *Store) moveMeta(e *encoder, id uint32) {
	for of, r := range s.index.replicas {
		if r.newest[metaBootstrap].segment == id {
			e.bootstrap(of, r.boot)
		}
		if r.newest[metaState].segment == id {
			e.state(of, r.logged)
		}
		if r.newest[metaSnapshot].segment == id {
			e.snapshot(of, &r.snapshot)
		}
		if r.newest[metaIndex].segment == id {
			e.index(kindTrim, of, r.first)
		}
	}
}
