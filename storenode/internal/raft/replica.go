package raft

import (
	"sync"
	"sync/atomic"

	"github.com/lni/dragonboat/v4/client"

	metapb "github.com/ridgekv/ridge/proto/ridge/meta/v1"
)

// replica is a replica that runs here. A range id is Dragonboat's shard id.
type replica struct {
	rangeID   uint64
	replicaID uint64
	session   *client.Session
	leader    atomic.Pointer[Leader]
	members   atomic.Pointer[members]
	cut       logCut
	// told, anchor, anchoring and applied serve rounds of confirmation: see confirm.go.
	// Anchoring is true while one is made; applied is the newest index that apply has
	// seen, and awaited how many reads wait for it to move.
	told      told
	anchor    atomic.Pointer[anchor]
	anchoring atomic.Bool
	applied   atomic.Uint64
	awaited   atomic.Int32
	// started is set when Dragonboat has taken the replica.
	started atomic.Bool
	// handingOver and handOverEnded: leadership was offered to the others once.
	handingOver, handOverEnded atomic.Bool

	mu struct {
		sync.Mutex
		// changed is closed and dropped when leader or members change; nil
		// while nobody waits.
		changed chan struct{}
	}
}

// Leader says who leads a range, as far as this store knows.
type Leader struct {
	ReplicaID, StoreID, Term uint64
	// Known is false during an election, and where no replica runs.
	Known bool
	// Self: the replica on this store leads.
	Self bool
}

// members is a membership and the config-change index it belongs to.
type members struct {
	config   uint64
	replicas []*metapb.Replica
}

// list returns the members, ordered by replica id.
func (m *members) list() []*metapb.Replica {
	if m == nil {
		return nil
	}
	return m.replicas
}

// find returns the member with the replica id.
func (m *members) find(replicaID uint64) (*metapb.Replica, bool) {
	if m == nil {
		return nil, false
	}
	for _, r := range m.replicas {
		if r.GetReplicaId() == replicaID {
			return r, true
		}
	}
	return nil, false
}

// alone reports whether this replica is the only member as of config, which is
// the newest that the replica has applied.
func (r *replica) alone(config uint64) bool {
	m := r.members.Load()
	return m != nil && m.config == config && len(m.replicas) == 1
}

// Leader returns who leads the range, from memory.
func (h *Host) Leader(rangeID uint64) Leader {
	r, ok := h.replica(rangeID)
	if !ok {
		return Leader{}
	}
	return r.leading()
}

func (r *replica) leading() Leader {
	if l := r.leader.Load(); l != nil {
		return *l
	}
	return Leader{}
}

// changes is closed at the next change of leader or members. Take it first
// and look second.
func (r *replica) changes() <-chan struct{} {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.mu.changed == nil {
		r.mu.changed = make(chan struct{})
	}
	return r.mu.changed
}

func (r *replica) announce() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.mu.changed != nil {
		close(r.mu.changed)
		r.mu.changed = nil
	}
}
