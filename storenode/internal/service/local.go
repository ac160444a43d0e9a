package service

import (
	metapb "github.com/ridgekv/ridge/proto/ridge/meta/v1"
	"github.com/ridgekv/ridge/storenode/internal/catalog"
	"github.com/ridgekv/ridge/storenode/internal/raft"
)

// Leaders knows who leads a range; raft.Host does.
type Leaders interface {
	Leader(rangeID uint64) raft.Leader
	Membership(rangeID uint64) (replicas []*metapb.Replica, config uint64, ok bool)
}

// Leases knows where this store holds the lease; evaluate.Evaluator does.
type Leases interface {
	Leaseholder(rangeID uint64) bool
}

// Local is Ranges of a running store.
type Local struct {
	Catalog *catalog.Catalog
	Leaders Leaders
	Leases  Leases
}

// Range implements Ranges. A replica that cannot serve is not found, so that
// callers look elsewhere.
func (l Local) Range(rangeID uint64) (Range, bool) {
	r, ok := l.Catalog.Replica(rangeID)
	if !ok || !r.State().Serving() {
		return Range{}, false
	}
	return l.view(r), true
}

// Lookup implements Ranges.
func (l Local) Lookup(key []byte) (Range, bool) {
	r, ok := l.Catalog.Lookup(key)
	if !ok {
		return Range{}, false
	}
	return l.view(r), true
}

func (l Local) view(r *catalog.Replica) Range {
	s := r.State()
	leader := l.Leaders.Leader(r.RangeID())
	v := Range{
		State: s,
		Led:   leader.Self || l.Leases.Leaseholder(r.RangeID()),
	}
	if leader.Known && !leader.Self {
		v.Leader = &metapb.Leader{
			ReplicaId: leader.ReplicaID, StoreId: leader.StoreID, Term: leader.Term,
		}
	}
	return v
}

// Describe implements Ranges.
func (l Local) Describe(rangeID uint64) *metapb.Range {
	out := &metapb.Range{RangeId: rangeID, Epoch: &metapb.Epoch{}}
	if r, ok := l.Catalog.Replica(rangeID); ok {
		out.Span, out.Epoch.Span = r.State().Span().Proto(), r.State().SpanEpoch()
	}
	if members, config, ok := l.Leaders.Membership(rangeID); ok {
		out.Replicas, out.Epoch.Config = members, config
	}
	return out
}
