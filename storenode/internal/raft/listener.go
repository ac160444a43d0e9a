package raft

import (
	"context"
	"sync"

	"github.com/lni/dragonboat/v4/raftio"

	metapb "github.com/ridgekv/ridge/proto/ridge/meta/v1"
)

// eventQueue takes Dragonboat's callbacks. They run on its own workers, some
// under its locks, so they only note what has changed. It holds at most one
// note of a kind per range.
type eventQueue struct {
	mu struct {
		sync.Mutex
		// leaders are the newest leaders; nil means look again.
		leaders map[uint64]*raftio.LeaderInfo
		members map[uint64]struct{}
		removed map[raftio.NodeInfo]struct{}
	}
	leaderBell, memberBell, removedBell chan struct{}
}

func newEventQueue() *eventQueue {
	q := &eventQueue{
		leaderBell:  make(chan struct{}, 1),
		memberBell:  make(chan struct{}, 1),
		removedBell: make(chan struct{}, 1),
	}
	q.mu.leaders = make(map[uint64]*raftio.LeaderInfo)
	q.mu.members = make(map[uint64]struct{})
	q.mu.removed = make(map[raftio.NodeInfo]struct{})
	return q
}

// LeaderUpdated notes a new leader, or that there is none.
func (q *eventQueue) LeaderUpdated(info raftio.LeaderInfo) { q.noteLeader(info.ShardID, &info) }

// MembershipChanged notes new members.
func (q *eventQueue) MembershipChanged(info raftio.NodeInfo) { q.noteMembers(info.ShardID) }

// NodeReady notes that a replica has read its log.
func (q *eventQueue) NodeReady(info raftio.NodeInfo) { q.noteMembers(info.ShardID) }

// NodeDeleted notes that a replica has applied its own removal.
func (q *eventQueue) NodeDeleted(info raftio.NodeInfo) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.mu.removed[info] = struct{}{}
	ring(q.removedBell)
}

// The rest of raftio.ISystemEventListener is of no interest.

func (q *eventQueue) NodeHostShuttingDown()                       {}
func (q *eventQueue) NodeUnloaded(raftio.NodeInfo)                {}
func (q *eventQueue) ConnectionEstablished(raftio.ConnectionInfo) {}
func (q *eventQueue) ConnectionFailed(raftio.ConnectionInfo)      {}
func (q *eventQueue) SendSnapshotStarted(raftio.SnapshotInfo)     {}
func (q *eventQueue) SendSnapshotCompleted(raftio.SnapshotInfo)   {}
func (q *eventQueue) SendSnapshotAborted(raftio.SnapshotInfo)     {}
func (q *eventQueue) SnapshotReceived(raftio.SnapshotInfo)        {}
func (q *eventQueue) SnapshotRecovered(raftio.SnapshotInfo)       {}
func (q *eventQueue) SnapshotCreated(raftio.SnapshotInfo)         {}
func (q *eventQueue) SnapshotCompacted(raftio.SnapshotInfo)       {}
func (q *eventQueue) LogCompacted(raftio.EntryInfo)               {}
func (q *eventQueue) LogDBCompacted(raftio.EntryInfo)             {}

func (q *eventQueue) noteLeader(rangeID uint64, info *raftio.LeaderInfo) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if _, ok := q.mu.leaders[rangeID]; !ok || info != nil {
		q.mu.leaders[rangeID] = info
	}
	ring(q.leaderBell)
}

func (q *eventQueue) noteMembers(rangeID uint64) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.mu.members[rangeID] = struct{}{}
	ring(q.memberBell)
}

func (q *eventQueue) takeLeaders() map[uint64]*raftio.LeaderInfo {
	q.mu.Lock()
	defer q.mu.Unlock()
	out := q.mu.leaders
	q.mu.leaders = make(map[uint64]*raftio.LeaderInfo)
	return out
}

func (q *eventQueue) takeMembers() map[uint64]struct{} {
	q.mu.Lock()
	defer q.mu.Unlock()
	out := q.mu.members
	q.mu.members = make(map[uint64]struct{})
	return out
}

func (q *eventQueue) takeRemoved() map[raftio.NodeInfo]struct{} {
	q.mu.Lock()
	defer q.mu.Unlock()
	out := q.mu.removed
	q.mu.removed = make(map[raftio.NodeInfo]struct{})
	return out
}

func ring(bell chan struct{}) {
	select {
	case bell <- struct{}{}:
	default:
	}
}

// WatchLeaders calls fn whenever what Leader answers has changed. It may leave
// out intermediate states, never the last one. fn must not block. Call it
// before Run.
func (h *Host) WatchLeaders(fn func(rangeID uint64, l Leader)) {
	h.hooks.Lock()
	defer h.hooks.Unlock()
	h.hooks.leader = append(h.hooks.leader, fn)
}

// Births calls fn when the replica of a child was started here: the other
// members' stores want to hear of it (ChildStarted). fn must not block. Call
// it before Run.
func (h *Host) Births(fn func(rangeID uint64, members []*metapb.Replica)) {
	h.hooks.Lock()
	defer h.hooks.Unlock()
	h.hooks.births = append(h.hooks.births, fn)
}

// listen is the only writer of leaders.
func (h *Host) listen(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-h.events.leaderBell:
		}
		for rangeID, info := range h.events.takeLeaders() {
			h.leaderUpdated(rangeID, info)
		}
	}
}

func (h *Host) leaderUpdated(rangeID uint64, info *raftio.LeaderInfo) {
	r, ok := h.replica(rangeID)
	if !ok {
		h.tellLeader(rangeID, Leader{})
		return
	}
	before := r.leading()
	now := before
	if info != nil {
		if info.ReplicaID != r.replicaID {
			return // of a replica that was here before
		}
		now = Leader{
			ReplicaID: info.LeaderID, Term: info.Term, Known: info.LeaderID != raftio.NoLeader,
			Self: info.LeaderID == r.replicaID,
		}
	}
	now.StoreID = 0
	if m, ok := r.members.Load().find(now.ReplicaID); ok && now.Known {
		now.StoreID = m.GetStoreId()
	}
	if now.Self {
		now.StoreID = h.opts.StoreID
	}
	if now == before {
		return
	}
	r.leader.Store(&now)
	r.announce()
	h.metrics.leaderChanges.inc()
	if before.Known {
		h.futures.giveUp(rangeID)
	}
	h.tellLeader(rangeID, now)
}

func (h *Host) tellLeader(rangeID uint64, l Leader) {
	h.hooks.Lock()
	hooks := h.hooks.leader
	h.hooks.Unlock()
	for _, fn := range hooks {
		fn(rangeID, l)
	}
	h.births.ring()
	h.deaths.ring()
}
