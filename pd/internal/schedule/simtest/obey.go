package simtest

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"slices"
	"time"

	metapb "github.com/ridgekv/ridge/proto/ridge/meta/v1"
	pdpb "github.com/ridgekv/ridge/proto/ridge/pd/v1"
)

// obey begins an order, unless one of the range is under way on this store or
// too many are.
func (s *store) obey(o *pdpb.Order) {
	id := o.GetRangeId()
	if !s.alive || s.busy[id] || len(s.busy) >= maxOrders {
		return
	}
	if o.GetCreateReplica() != nil && s.held[id] != nil {
		return // refused at once
	}
	s.busy[id] = true
	life := s.life
	took := orderTime/2 + time.Duration(s.c.rnd.Int64N(int64(orderTime)))
	s.c.after(took, func() {
		if s.alive && s.life == life {
			delete(s.busy, id)
			s.carryOut(o)
		}
	})
}

func (s *store) carryOut(o *pdpb.Order) {
	switch step := o.GetStep().(type) {
	case *pdpb.Order_CreateReplica:
		s.create(o.GetRangeId(), step.CreateReplica.GetReplicaId())
		return
	case *pdpb.Order_DestroyReplica:
		s.destroy(o, step.DestroyReplica.GetReplicaId())
		return
	}
	r := s.c.byID[o.GetRangeId()]
	// The leader commits, with a majority.
	if r.leader.GetStoreId() != s.record.GetStoreId() || !s.c.quorum(r) {
		return
	}
	switch step := o.GetStep().(type) {
	case *pdpb.Order_TransferLeader:
		m := find(r.desc, step.TransferLeader.GetReplicaId())
		if m.GetRole() == metapb.Role_ROLE_VOTER && s.c.serves(m, r) && m != r.leader {
			s.c.Transfers++
			s.c.lead(r, m)
		}
	case *pdpb.Order_Split:
		if r.desc.GetEpoch().GetSpan() == o.GetEpoch().GetSpan() {
			s.c.split(r, step.Split.GetSplitKey())
		}
	default:
		if r.desc.GetEpoch().GetConfig() == o.GetEpoch().GetConfig() {
			s.c.changeMembers(r, o)
		}
	}
}

// create makes room for a replica that will be sent its image.
func (s *store) create(rangeID, replicaID uint64) {
	r := s.c.byID[rangeID]
	if s.tombs[replicaID] || s.held[rangeID] != nil {
		return // removed for ever; there already; or another one is still here
	}
	s.held[rangeID] = &replica{id: replicaID, r: r}
	s.note(rangeID)
	s.receive(s.held[rangeID])
}

// destroy takes a replica away that PD calls a stranger.
func (s *store) destroy(o *pdpb.Order, replicaID uint64) {
	p := s.held[o.GetRangeId()]
	if p == nil || p.id != replicaID {
		return
	}
	if find(p.r.desc, replicaID) != nil {
		if o.GetEpoch().GetConfig() >= p.r.desc.GetEpoch().GetConfig() {
			s.c.fault("range %d: its member on store %d is condemned", o.GetRangeId(),
				s.record.GetStoreId())
		}
		return
	}
	delete(s.held, o.GetRangeId())
	delete(s.images, o.GetRangeId())
	s.tombs[replicaID] = true
	if p.full {
		s.used -= p.r.size
	}
	s.dropped = true
	s.look()
}

// changeMembers adds, promotes or removes a replica.
func (c *Cluster) changeMembers(r *vrange, o *pdpb.Order) {
	members, what := slices.Clone(r.desc.GetReplicas()), ""
	index := func(id uint64) int {
		return slices.IndexFunc(members, func(m *metapb.Replica) bool { return m.GetReplicaId() == id })
	}
	switch step := o.GetStep().(type) {
	case *pdpb.Order_AddLearner:
		a := step.AddLearner
		if index(a.GetReplicaId()) >= 0 {
			return
		}
		what = fmt.Sprintf("add learner on store %d", a.GetStoreId())
		for _, m := range members {
			if m.GetStoreId() == a.GetStoreId() {
				c.fault("range %d: %s, which holds one", r.desc.GetRangeId(), what)
				return
			}
		}
		r.adding = c.stimulus
		members = append(members, &metapb.Replica{
			ReplicaId: a.GetReplicaId(), StoreId: a.GetStoreId(), Role: metapb.Role_ROLE_LEARNER,
		})
	case *pdpb.Order_Promote:
		i := index(step.Promote.GetReplicaId())
		if i < 0 || members[i].GetRole() == metapb.Role_ROLE_VOTER {
			return
		}
		store := members[i].GetStoreId()
		what = fmt.Sprintf("promote on store %d", store)
		members[i] = &metapb.Replica{
			ReplicaId: members[i].GetReplicaId(), StoreId: store, Role: metapb.Role_ROLE_VOTER,
		}
		c.Moves++
		if at, was := r.left[store]; was && at == c.stimulus {
			c.fault("range %d comes back to store %d, which it left", r.desc.GetRangeId(), store)
		}
	case *pdpb.Order_RemoveReplica:
		i := index(step.RemoveReplica.GetReplicaId())
		if i < 0 {
			return
		}
		m := members[i]
		what = fmt.Sprintf("remove from store %d", m.GetStoreId())
		if m == r.leader {
			c.fault("range %d: %s, its leader", r.desc.GetRangeId(), what)
			return
		}
		if m.GetRole() == metapb.Role_ROLE_VOTER {
			r.left[m.GetStoreId()] = c.stimulus
			if r.adding > 0 {
				r.left[m.GetStoreId()] = r.adding
			}
			r.adding = 0
		}
		members = slices.Delete(members, i, i+1)
	}
	c.putMembers(r, members, what)
}

func (c *Cluster) putMembers(r *vrange, members []*metapb.Replica, what string) {
	old := r.desc
	c.judgeStep(r, members, what)
	r.desc = &metapb.Range{
		RangeId: old.GetRangeId(), Span: old.GetSpan(), Replicas: members,
		Epoch: &metapb.Epoch{Config: old.GetEpoch().GetConfig() + 3, Span: old.GetEpoch().GetSpan()},
	}
	r.leader = find(r.desc, r.leader.GetReplicaId()) // on the same store
	for _, m := range slices.Concat(old.GetReplicas(), members) {
		s := c.stores[m.GetStoreId()]
		p := s.held[old.GetRangeId()]
		if p == nil || !s.alive {
			continue
		}
		if find(r.desc, p.id) == nil {
			p.config = r.desc.GetEpoch().GetConfig()
			delete(s.images, old.GetRangeId())
		}
		s.receive(p)
		s.note(old.GetRangeId())
	}
	c.judge(r, what)
}

// split divides r in the middle, or at key. The child has its replicas where r
// has its own: it is there at once, on whoever lives.
func (c *Cluster) split(r *vrange, key []byte) {
	old := r.desc.GetSpan()
	if len(key) == 0 {
		key = middle(old.GetStart(), old.GetEnd())
	}
	if bytes.Compare(key, old.GetStart()) <= 0 ||
		len(old.GetEnd()) > 0 && bytes.Compare(key, old.GetEnd()) >= 0 {
		return
	}
	for _, m := range r.desc.GetReplicas() {
		if m.GetRole() == metapb.Role_ROLE_LEARNER {
			return
		}
	}
	c.Splits++
	epoch := &metapb.Epoch{Config: 5, Span: r.desc.GetEpoch().GetSpan() + 1}
	child := &vrange{
		desc: &metapb.Range{
			RangeId: c.id(), Epoch: epoch, Span: &metapb.Span{Start: key, End: old.GetEnd()},
		},
		term: 6, size: r.size / 2, keys: r.keys / 2, reads: r.reads / 2, writes: r.writes / 2,
		opsSince: c.now, applied: 10, left: map[uint64]int{},
	}
	r.settleOps(c.now)
	r.size, r.keys = r.size-child.size, r.keys-child.keys
	r.reads, r.writes = r.reads-child.reads, r.writes-child.writes
	r.desc = &metapb.Range{
		RangeId: r.desc.GetRangeId(), Span: &metapb.Span{Start: old.GetStart(), End: key},
		Epoch:    &metapb.Epoch{Config: r.desc.GetEpoch().GetConfig(), Span: epoch.GetSpan()},
		Replicas: r.desc.GetReplicas(),
	}
	for _, m := range r.desc.GetReplicas() {
		p := &metapb.Replica{ReplicaId: c.id(), StoreId: m.GetStoreId(), Role: m.GetRole()}
		child.desc.Replicas = append(child.desc.Replicas, p)
		if m == r.leader {
			c.setLeader(child, p)
		}
		s := c.stores[m.GetStoreId()]
		full := s.held[r.desc.GetRangeId()].full
		s.held[child.desc.GetRangeId()] = &replica{id: p.GetReplicaId(), full: full, r: child}
		s.note(child.desc.GetRangeId())
		s.note(r.desc.GetRangeId())
	}
	c.ranges = append(c.ranges, child)
	c.byID[child.desc.GetRangeId()] = child
	// The leader tells both halves at once.
	pd, left, right := c.pd, c.rangeReport(r), c.rangeReport(child)
	c.message(func() { pd.reportSplit(left, right) })
}

// settleOps writes down the operations counted until now: the rates change.
func (r *vrange) settleOps(now time.Time) {
	seconds := now.Sub(r.opsSince).Seconds()
	r.readOps += uint64(seconds * float64(r.reads))
	r.writeOps += uint64(seconds * float64(r.writes))
	r.opsSince = now
}

// middle is a key between two.
func middle(start, end []byte) []byte {
	low, high := number(start, 0), number(end, 1<<63)
	return binary.BigEndian.AppendUint64(nil, low+(high-low)/2)
}

func number(key []byte, none uint64) uint64 {
	if len(key) == 0 {
		return none
	}
	return binary.BigEndian.Uint64(key)
}
