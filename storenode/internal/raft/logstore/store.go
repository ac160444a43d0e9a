package logstore

import (
	"errors"
	"fmt"
	"sync"
	"sync/atomic"

	"github.com/lni/dragonboat/v4/raftpb"
)

// Name is the format of the log, for flag files and identities.
const Name = "ridge-log"

// binaryFormat is what Dragonboat notes of the format in its flag file.
const binaryFormat = 1001

// ErrFailed: a write or a sync has failed. The store must stop.
var ErrFailed = errors.New("logstore: the log cannot be written any more")

// ErrCorrupt: acknowledged data cannot be read.
var ErrCorrupt = errors.New("logstore: the log is damaged")

// Options configure a Store. The zero value of a field is its default.
type Options struct {
	// Dir holds the segments and nothing else. Required.
	Dir string
	// SegmentBytes is the size of a segment. Default 32 MiB. Besides what is
	// alive twice, two of them may be occupied.
	SegmentBytes int64
	// Workers is the number of callers of SaveRaftState. Default 1.
	Workers int
	// Early is called by SaveRaftState before it waits for the disk, with every
	// update that brings no new term, vote or image. It may take messages out of
	// it. Default: not called.
	Early func(u *raftpb.Update)
}

// Store is a Raft log for all replicas of a store. It implements raftio.ILogDB.
type Store struct {
	disk         disk
	segmentBytes int64
	// workers are the callers of SaveRaftState.
	workers []*worker
	early   func(*raftpb.Update)

	queue queue
	// What follows belongs to whoever leads a write.
	head     *segment
	sequence uint64
	front    encoder
	buf      []byte

	mu sync.Mutex
	// index, late and failed are guarded by mu.
	index index
	// late are the replicas of which the log still has to be told something.
	late   []*replica
	failed error

	bell    chan struct{}
	closing chan struct{}
	wg      sync.WaitGroup
	closed  sync.Once

	count struct{ syncs, bytes, moved, reclaimed atomic.Uint64 }
}

// worker is a caller of SaveRaftState; early are those of its updates that bring
// no new term, vote or image.
type worker struct {
	*request
	early []*raftpb.Update
}

// Open reads the log in a directory, or begins one.
func Open(o Options) (*Store, error) {
	d, err := newDirectory(o.Dir)
	if err != nil {
		return nil, err
	}
	return open(o, d)
}

func open(o Options, d disk) (*Store, error) {
	if o.SegmentBytes == 0 {
		o.SegmentBytes = 32 << 20
	}
	s := &Store{
		disk: d, segmentBytes: o.SegmentBytes, index: newIndex(), early: o.Early,
		bell: make(chan struct{}, 1), closing: make(chan struct{}),
	}
	for range max(o.Workers, 1) {
		s.workers = append(s.workers, &worker{request: newRequest()})
	}
	if err := s.recover(); err != nil {
		return nil, errors.Join(err, s.closeFiles())
	}
	s.wg.Go(s.reclaim)
	s.ring()
	return s, nil
}

// Close writes what the log still has to be told, and closes it. No call may
// be under way.
func (s *Store) Close() error {
	var err error
	s.closed.Do(func() {
		close(s.closing)
		s.wg.Wait()
		// Also when there is nothing to tell: a batch says that everything
		// before it was synced.
		err = s.commit(newRequest())
		err = errors.Join(err, s.closeFiles())
	})
	return err
}

func (s *Store) closeFiles() error {
	var errs []error
	for _, seg := range s.index.segments {
		errs = append(errs, seg.file.Close())
	}
	s.index.segments = nil
	return errors.Join(errs...)
}

// ring wakes the reclaimer.
func (s *Store) ring() {
	select {
	case s.bell <- struct{}{}:
	default:
	}
}

// Stats describe a log.
type Stats struct {
	// Syncs and Bytes were written since the start; Moved of them to free
	// Reclaimed segments.
	Syncs, Bytes, Moved, Reclaimed uint64
	// Segments occupy SizeBytes, of which LiveBytes are needed.
	Segments             int
	SizeBytes, LiveBytes int64
}

// Stats are the numbers of now.
func (s *Store) Stats() Stats {
	s.mu.Lock()
	defer s.mu.Unlock()
	total, live := s.index.size()
	return Stats{
		Syncs: s.count.syncs.Load(), Bytes: s.count.bytes.Load(), Moved: s.count.moved.Load(),
		Reclaimed: s.count.reclaimed.Load(), Segments: len(s.index.segments),
		SizeBytes: total, LiveBytes: live,
	}
}

// postpone notes that the log still has to be told of r. It needs s.mu.
func (s *Store) postpone(r *replica) {
	if !r.late {
		r.late = true
		s.late = append(s.late, r)
	}
}

// do commits one record or a few outside of the workers.
func (s *Store) do(f func(*encoder)) error {
	r := newRequest()
	f(&r.encoder)
	if err := s.commit(r); err != nil {
		return fmt.Errorf("logstore: %w", err)
	}
	return nil
}

// needsSync reports whether a state may not be lost: votes and terms may not,
// a commit index is known again from the leader.
func needsSync(was, now raftpb.State) bool {
	return was.Term != now.Term || was.Vote != now.Vote
}
