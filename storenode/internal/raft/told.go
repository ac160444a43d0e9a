package raft

import (
	"context"
	"sync/atomic"
	"time"

	"github.com/lni/dragonboat/v4"
	pb "github.com/lni/dragonboat/v4/raftpb"

	metapb "github.com/ridgekv/ridge/proto/ridge/meta/v1"
)

// told is what messages of this replica have said. It is noted before they leave:
// whatever another store knows from here is in it.
type told struct {
	// commit is the highest commit index.
	commit atomic.Uint64
	// hidden is the newest entry that apply does not see: a membership change, or one
	// without a command, such as the first of a term. nil: none yet.
	hidden atomic.Pointer[position]
}

// position is the index of an entry, and the term of the leader who sent it.
type position struct{ term, index uint64 }

// noteTold notes what is about to leave. Followers learn what is committed from
// these messages, and from images, which hold no more than is applied here.
func (h *Host) noteTold(messages []pb.Message) {
	for i := range messages {
		m := &messages[i]
		if m.Type != pb.Replicate && m.Type != pb.Heartbeat {
			continue
		}
		if r, ok := h.replica(m.ShardID); ok && r.replicaID == m.From {
			r.told.note(m)
		}
	}
}

func (t *told) note(m *pb.Message) {
	for i := range m.Entries {
		if e := &m.Entries[i]; e.Type == pb.ConfigChangeEntry || len(e.Cmd) == 0 {
			t.hide(&position{term: m.Term, index: e.Index})
		}
	}
	for {
		old := t.commit.Load()
		if m.Commit <= old || t.commit.CompareAndSwap(old, m.Commit) {
			return
		}
	}
}

func (t *told) hide(p *position) {
	for {
		old := t.hidden.Load()
		if old != nil && (p.term < old.term || p.term == old.term && p.index <= old.index) {
			return
		}
		if t.hidden.CompareAndSwap(old, p) {
			return
		}
	}
}

// voter is a voter on another store.
type voter struct{ storeID, replicaID uint64 }

// anchor is what rounds take for granted of a range that is led here: see confirm.go.
type anchor struct {
	term uint64
	// base: all up to it was applied when the anchor was made.
	base uint64
	// need is the majority, which this replica is one of.
	need   int
	others []voter
}

// holds reports whether no entry was sent that the anchor does not know, and that may
// change the members or move no applied index.
func (a *anchor) holds(r *replica) bool {
	p := r.told.hidden.Load()
	return p != nil && p.term == a.term && p.index <= a.base
}

// anchored returns the anchor of a replica that leads, or why there is none.
func (r *replica) anchored() (a *anchor, reason string) {
	l := r.leading()
	if !l.Self {
		return nil, "follower"
	}
	a = r.anchor.Load()
	switch {
	case a == nil || a.term != l.Term:
		return nil, "unanchored"
	case !a.holds(r):
		return nil, "members"
	}
	return a, ""
}

// anchoring is an anchor in the making, and what was so before its ReadIndex began.
type anchoring struct {
	r            *replica
	term, commit uint64
}

// beginAnchor is called before a ReadIndex of Dragonboat begins. It returns nil when
// that cannot make an anchor, or need not.
func (r *replica) beginAnchor() *anchoring {
	l := r.leading()
	if !l.Self || l.Term == 0 {
		return nil
	}
	if m := r.members.Load(); m != nil && m.voters() < 2 {
		return nil
	}
	if _, reason := r.anchored(); reason == "" || !r.anchoring.CompareAndSwap(false, true) {
		return nil
	}
	return &anchoring{r: r, term: l.Term, commit: r.told.commit.Load()}
}

// endAnchor is called when that ReadIndex has ended.
func (c *confirmer) endAnchor(x *anchoring, confirmed bool) {
	if !confirmed || c.promised.Load() == nil {
		x.r.anchoring.Store(false)
		return
	}
	c.mu.Lock()
	c.mu.anchors = append(c.mu.anchors, x)
	c.mu.Unlock()
	ring(c.anchorBell)
}

// runAnchors makes anchors. It is a loop of its own, as NodeHost tells the members
// behind a lock that it holds while it waits for the disk.
func (c *confirmer) runAnchors(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-c.anchorBell:
			c.makeAnchors()
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(anchorPause):
		}
	}
}

func (c *confirmer) makeAnchors() {
	c.mu.Lock()
	anchors := c.mu.anchors
	c.mu.anchors = nil
	c.mu.Unlock()
	if len(anchors) == 0 {
		return
	}
	infos := c.infos()
	for _, x := range anchors {
		x.r.setAnchor(x, infos[x.r.rangeID])
	}
}

// voters counts those who vote.
func (m *members) voters() (n int) {
	for _, v := range m.replicas {
		if v.GetRole() == metapb.Role_ROLE_VOTER {
			n++
		}
	}
	return n
}

// setAnchor makes the anchor if the members that are known are those Raft counts by,
// of which info was taken after the ReadIndex had ended.
func (r *replica) setAnchor(x *anchoring, info dragonboat.ShardInfo) {
	defer r.anchoring.Store(false)
	m := r.members.Load()
	if m == nil || info.ReplicaID != r.replicaID || info.ConfigChangeIndex != m.config {
		return
	}
	a := &anchor{term: x.term, base: max(x.commit, m.config)}
	self := false
	for _, v := range m.replicas {
		if v.GetRole() != metapb.Role_ROLE_VOTER {
			continue
		}
		if v.GetReplicaId() == r.replicaID {
			self = true
			continue
		}
		if v.GetStoreId() == 0 {
			return // a target that names no store
		}
		a.others = append(a.others, voter{storeID: v.GetStoreId(), replicaID: v.GetReplicaId()})
	}
	a.need = (len(a.others)+1)/2 + 1
	if self && len(a.others) > 0 && a.holds(r) {
		r.anchor.Store(a)
	}
}
