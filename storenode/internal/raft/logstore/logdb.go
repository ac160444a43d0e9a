package logstore

import (
	"fmt"
	"slices"

	"github.com/lni/dragonboat/v4/raftio"
	"github.com/lni/dragonboat/v4/raftpb"
)

var _ raftio.ILogDB = (*Store)(nil)

// Name is the format of the log.
func (s *Store) Name() string { return Name }

// BinaryFormat is the version of the format.
func (s *Store) BinaryFormat() uint32 { return binaryFormat }

// ListNodeInfo lists the replicas that were started.
func (s *Store) ListNodeInfo() ([]raftio.NodeInfo, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var all []raftio.NodeInfo
	for of, r := range s.index.replicas {
		if r.boot != nil {
			all = append(all, of)
		}
	}
	return all, nil
}

// SaveBootstrapInfo keeps how a replica was first started.
func (s *Store) SaveBootstrapInfo(rangeID, replicaID uint64, b raftpb.Bootstrap) error {
	return s.do(func(e *encoder) { e.bootstrap(raftio.GetNodeInfo(rangeID, replicaID), &b) })
}

// GetBootstrapInfo returns what SaveBootstrapInfo or ImportSnapshot has kept.
func (s *Store) GetBootstrapInfo(rangeID, replicaID uint64) (raftpb.Bootstrap, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	r, ok := s.index.replicas[raftio.GetNodeInfo(rangeID, replicaID)]
	if !ok || r.boot == nil {
		return raftpb.Bootstrap{}, raftio.ErrNoBootstrapInfo
	}
	return cloneBootstrap(r.boot), nil
}

// SaveRaftState keeps states, entries and received images, all or nothing, and
// returns when they are durable. A commit index alone is kept in memory until
// the next batch. An entry replaces the one of its index and all after it.
func (s *Store) SaveRaftState(updates []raftpb.Update, worker uint64) error {
	if len(updates) == 0 {
		return nil
	}
	if worker < 1 || worker > uint64(len(s.workers)) {
		panic(fmt.Sprintf("logstore: worker %d of %d", worker, len(s.workers)))
	}
	w := s.workers[worker-1]
	w.reset()
	w.early = w.early[:0]
	for i := range updates {
		early, err := s.encodeUpdate(&w.encoder, &updates[i])
		if err != nil {
			return err
		}
		if early && s.early != nil {
			w.early = append(w.early, &updates[i])
		}
	}
	if len(w.records) == 0 {
		return nil
	}
	for _, u := range w.early {
		s.early(u)
	}
	return s.commit(w.request)
}

// encodeUpdate writes what must be synced of u; what need not be stays with
// the replica. Nobody else saves entries or states of this replica meanwhile.
// It reports whether u brings neither term nor vote nor image.
func (s *Store) encodeUpdate(e *encoder, u *raftpb.Update) (early bool, err error) {
	of := raftio.GetNodeInfo(u.ShardID, u.ReplicaID)
	image := !raftpb.IsEmptySnapshot(u.Snapshot)
	write, reset, err := s.accept(of, u, &image)
	if err != nil || !write {
		return err == nil, err
	}
	if !raftpb.IsEmptyState(reset.state) {
		e.state(of, reset.state)
	}
	if image {
		e.snapshot(of, &u.Snapshot)
	}
	if reset.first > 0 {
		e.index(kindReset, of, reset.first)
	}
	if len(u.EntriesToSave) > 0 {
		e.entries(of, u.EntriesToSave)
	}
	return !image && !reset.promise, nil
}

// accepted is what goes before the entries of an update.
type accepted struct {
	state raftpb.State // empty: the log knows it
	// promise: state has another term or vote than the last one, which is durable,
	// as the worker of a replica saves one after the other.
	promise bool
	first   uint64 // 0: the log goes on
}

// accept takes the state of u and decides what must be written. It clears
// image if the log has a newer one.
func (s *Store) accept(of raftio.NodeInfo, u *raftpb.Update, image *bool) (bool, accepted, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	r := s.index.replica(of)
	*image = *image && u.Snapshot.Index > r.snapshot.Index
	write := *image || len(u.EntriesToSave) > 0
	a := accepted{}
	if !raftpb.IsEmptyState(u.State) && u.State != r.state {
		a.promise = needsSync(r.state, u.State)
		write = write || a.promise
		r.state, r.lateState = u.State, true
	}
	if !write {
		if r.lateState {
			s.postpone(r)
		}
		return false, a, nil
	}
	if r.lateState {
		a.state, r.lateState = r.state, false
	}
	next := r.next()
	if *image {
		next, a.first = u.Snapshot.Index+1, u.Snapshot.Index+1
	}
	if len(u.EntriesToSave) == 0 {
		return true, a, nil
	}
	switch first := u.EntriesToSave[0].Index; {
	case *image && first < next:
		a.first = first
	case first < r.first, first > next && (len(r.runs) > 0 || *image):
		return false, a, fmt.Errorf("logstore: replica %d of range %d: entry %d does not follow "+
			"a log from %d to %d", of.ReplicaID, of.ShardID, first, r.first, next-1)
	case first > next:
		a.first = first
	}
	return true, a, nil
}

// Terms returns the newest term that each replica's log was given, saved or about to
// be, or 0 for those the log knows no term of. No vote in a later term has left: it
// would have been given here, and saved, before.
func (s *Store) Terms(of []raftio.NodeInfo) []uint64 {
	terms := make([]uint64, len(of))
	s.mu.Lock()
	defer s.mu.Unlock()
	for i := range of {
		if r, ok := s.index.replicas[of[i]]; ok {
			terms[i] = r.state.Term
		}
	}
	return terms
}

// ReadRaftState returns the state of a replica and the entries after a
// snapshot.
func (s *Store) ReadRaftState(rangeID, replicaID, snapshot uint64) (raftio.RaftState, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	r, ok := s.index.replicas[raftio.GetNodeInfo(rangeID, replicaID)]
	if !ok || raftpb.IsEmptyState(r.state) {
		return raftio.RaftState{}, raftio.ErrNoSavedLog
	}
	state := raftio.RaftState{State: r.state, FirstIndex: snapshot}
	// The commit index in the log may lag behind a snapshot, which holds only
	// what was committed. Raft insists that it does not.
	state.State.Commit = max(state.State.Commit, r.snapshot.Index, snapshot)
	if first := max(r.first, snapshot+1); len(r.runs) > 0 && first < r.next() {
		state.FirstIndex, state.EntryCount = first, r.next()-first
	}
	return state, nil
}

// RemoveEntriesTo drops entries up to and including index. It is not synced:
// entries that come back after a power failure do no harm.
func (s *Store) RemoveEntriesTo(rangeID, replicaID, index uint64) error {
	s.mu.Lock()
	r, ok := s.index.replicas[raftio.GetNodeInfo(rangeID, replicaID)]
	if ok && index+1 > r.first {
		s.index.trim(r, min(index+1, r.next()))
		r.lateTrim = true
		s.postpone(r)
	}
	s.mu.Unlock()
	s.ring()
	return nil
}

// CompactEntriesTo has nothing to do: space is reclaimed all the time.
func (s *Store) CompactEntriesTo(uint64, uint64, uint64) (<-chan struct{}, error) {
	done := make(chan struct{})
	close(done)
	s.ring()
	return done, nil
}

// SaveSnapshots keeps the records of log snapshots that are newer than the
// known ones.
func (s *Store) SaveSnapshots(updates []raftpb.Update) error {
	var newer []*raftpb.Update
	s.mu.Lock()
	for i := range updates {
		u := &updates[i]
		r := s.index.replica(raftio.GetNodeInfo(u.ShardID, u.ReplicaID))
		if !raftpb.IsEmptySnapshot(u.Snapshot) && u.Snapshot.Index > r.snapshot.Index {
			newer = append(newer, u)
		}
	}
	s.mu.Unlock()
	if len(newer) == 0 {
		return nil
	}
	return s.do(func(e *encoder) {
		for _, u := range newer {
			e.snapshot(raftio.GetNodeInfo(u.ShardID, u.ReplicaID), &u.Snapshot)
		}
	})
}

// GetSnapshot returns the newest record, which is empty when there is none.
func (s *Store) GetSnapshot(rangeID, replicaID uint64) (raftpb.Snapshot, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if r, ok := s.index.replicas[raftio.GetNodeInfo(rangeID, replicaID)]; ok {
		return cloneSnapshot(&r.snapshot), nil
	}
	return raftpb.Snapshot{}, nil
}

// RemoveNodeData forgets a replica, which must not run.
func (s *Store) RemoveNodeData(rangeID, replicaID uint64) error {
	err := s.do(func(e *encoder) { e.removed(raftio.GetNodeInfo(rangeID, replicaID)) })
	s.ring()
	return err
}

// ImportSnapshot makes a log that begins after a snapshot, in place of what
// there was. The replica must not run.
func (s *Store) ImportSnapshot(snapshot raftpb.Snapshot, replicaID uint64) error {
	if snapshot.Type == raftpb.UnknownStateMachine {
		panic("logstore: a snapshot of an unknown state machine")
	}
	of := raftio.GetNodeInfo(snapshot.ShardID, replicaID)
	state := raftpb.State{Term: snapshot.Term, Commit: snapshot.Index}
	err := s.do(func(e *encoder) {
		e.removed(of)
		e.bootstrap(of, &raftpb.Bootstrap{Join: true, Type: snapshot.Type})
		e.state(of, state)
		e.snapshot(of, &snapshot)
		e.index(kindReset, of, snapshot.Index+1)
	})
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if r, ok := s.index.replicas[of]; ok {
		r.state = state
	}
	return nil
}

// IterateEntries appends the entries from low up to high, until size is above
// maxSize or one is missing.
func (s *Store) IterateEntries(
	entries []raftpb.Entry, size, rangeID, replicaID, low, high, maxSize uint64,
) ([]raftpb.Entry, uint64, error) {
	of, full := raftio.GetNodeInfo(rangeID, replicaID), false
	for low < high && !full {
		pieces, unpin := s.pin(of, low, high)
		if len(pieces) == 0 {
			break
		}
		for _, p := range pieces {
			if full {
				break
			}
			body, err := p.read()
			if err == nil {
				err = decodeRun(body, low, func(x raftpb.Entry) bool {
					if x.Index >= p.end || x.Index >= high {
						return false
					}
					entries, size = append(entries, x), size+uint64(x.SizeUpperLimit())
					low, full = x.Index+1, size > maxSize
					return !full
				})
			}
			if err != nil {
				unpin()
				return nil, 0, fmt.Errorf("%w: replica %d of range %d, entry %d, %s at %d: %w",
					ErrCorrupt, replicaID, rangeID, low, segmentName(p.segment.id), p.at.off, err)
			}
		}
		unpin()
	}
	return entries, size, nil
}

// piece is a run that is about to be read.
type piece struct {
	segment *segment
	at      place
	// end is the index after its last valid entry.
	end uint64
}

func (p piece) read() ([]byte, error) {
	body := make([]byte, p.at.size)
	_, err := p.segment.file.ReadAt(body, int64(p.at.off))
	return body, err
}

// piecesAtOnce bounds how many runs are looked up at a time.
const piecesAtOnce = 64

// pin finds the next runs from low on. Their files stay open until unpin.
func (s *Store) pin(of raftio.NodeInfo, low, high uint64) (pieces []piece, unpin func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	r, ok := s.index.replicas[of]
	if !ok || low < r.first {
		return nil, nil
	}
	var held []*segment
	for _, run := range r.runs[r.find(low):] {
		if r.firstOf(run) >= high || len(pieces) == piecesAtOnce {
			break
		}
		seg := s.index.segment(run.at.segment)
		if !slices.Contains(held, seg) {
			seg.use.RLock()
			held = append(held, seg)
		}
		pieces = append(pieces, piece{segment: seg, at: run.at, end: r.end(run)})
	}
	return pieces, func() {
		for _, seg := range held {
			seg.use.RUnlock()
		}
	}
}
