package apply

import (
	"bytes"

	sm "github.com/lni/dragonboat/v4/statemachine"

	"github.com/ridgekv/ridge/proto/keys"
	logpb "github.com/ridgekv/ridge/proto/ridge/log/v1"
	metapb "github.com/ridgekv/ridge/proto/ridge/meta/v1"
	"github.com/ridgekv/ridge/storenode/internal/catalog"
	"github.com/ridgekv/ridge/storenode/internal/engine"
)

// acquire starts a tenure, unless the tenure in force is not the expected one.
// The first one of a split's child is its birth.
func (b *batch) acquire(w *engine.WriteSet, p *logpb.AcquireLease) sm.Result {
	tenure := b.state.Tenure()
	if p.GetExpectedTenure() != tenure {
		return refused("tenure %d is in force, not %d", tenure, p.GetExpectedTenure())
	}
	last := b.applied.Number
	b.setState(w, func(pb *logpb.RangeState) {
		if tenure > 0 {
			pb.Previous = &logpb.Tenure{Tenure: tenure, LastNumber: last}
		}
		pb.Lease = &logpb.Lease{
			Tenure:          tenure + 1,
			HolderReplicaId: p.GetHolderReplicaId(),
			HolderStoreId:   p.GetHolderStoreId(),
			Nonce:           p.GetNonce(),
		}
		pb.ParentRangeId, pb.BirthStoreId = 0, 0
	})
	b.applied.Number = 0
	b.ring = b.ring || tenure == 0
	return sm.Result{Value: ResultApplied}
}

// raiseReadBound lifts the read bound; it never lowers it.
func (b *batch) raiseReadBound(w *engine.WriteSet, p *logpb.RaiseReadBound) {
	if p.GetReadBound() > uint64(b.state.ReadBound()) {
		b.setState(w, func(pb *logpb.RangeState) { pb.ReadBound = p.GetReadBound() })
	}
}

// setTxnSafePoint lifts the transactions' safe point; it never lowers it.
func (b *batch) setTxnSafePoint(w *engine.WriteSet, p *logpb.SetTxnSafePoint) {
	if p.GetTs() > uint64(b.state.TxnSafePoint()) {
		b.setState(w, func(pb *logpb.RangeState) { pb.TxnSafePoint = p.GetTs() })
	}
}

// split divides the range in one commit. The parent shrinks; the child is
// created with the right half of the slices, unless this store has, had, or is
// just creating a replica of it: then the right half is garbage here.
//
// Everything that is replicated depends only on the entry and on replicated
// state. That no earlier child is unborn and that there are no learners is for
// the leaseholder to see before it proposes: replicas learn of a birth at
// different times, and members are equal where the config index is.
func (b *batch) split(w *engine.WriteSet, index uint64, p *logpb.Split) sm.Result {
	if res := b.checkSplit(p); res.Value != ResultApplied {
		return res
	}
	left, right := b.state.Span().SplitAt(bytes.Clone(p.GetSplitKey()))
	leftSlices, rightSlices := divide(b.state.Slices(), left, right)
	childID, here := p.GetChildRangeId(), uint64(0)
	for _, r := range p.GetChildReplicas() {
		if r.GetStoreId() == b.m.deps.StoreID {
			here = r.GetReplicaId()
		}
	}
	parent := b.state
	makesChild := here != 0 && !b.m.deps.Catalog.HasTombstone(childID) && b.reserve(childID)
	b.setState(w, func(pb *logpb.RangeState) {
		pb.Span = left.Proto()
		pb.SpanEpoch++
		pb.LastChildRangeId = childID
		pb.Slices = slicesProto(leftSlices)
		if makesChild {
			pb.Unborn = append(pb.Unborn, &logpb.UnbornChild{RangeId: childID, SplitIndex: index})
		}
	})
	b.ring = true
	if !makesChild {
		for _, s := range rightSlices {
			w.AddGarbage(s, false)
		}
		return sm.Result{Value: ResultApplied}
	}
	child := catalog.Change{
		RangeID: childID,
		State:   childState(parent, p, here, right, rightSlices),
		Applied: catalog.Applied{Index: catalog.BirthIndex, MaxCommitTS: b.applied.MaxCommitTS},
	}
	catalog.StageState(w, child.State)
	catalog.StageApplied(w, childID, child.Applied)
	b.children = append(b.children, child)
	return sm.Result{Value: ResultApplied}
}

// checkSplit decides whether a split takes place, or halts the replica when it
// cannot be decided.
func (b *batch) checkSplit(p *logpb.Split) sm.Result {
	span := b.state.Span()
	switch {
	case p.GetChildRangeId() == 0 || p.GetChildRangeId() == b.m.rangeID:
		return refused("child range id %d", p.GetChildRangeId())
	case p.GetChildRangeId() == b.state.LastChildRangeID():
		// Taken for a late one, it would make the right half garbage.
		return refused("range %d was split off already", p.GetChildRangeId())
	case len(p.GetChildReplicas()) == 0:
		return refused("the child has no replicas")
	case len(p.GetSplitKey()) == 0 || len(p.GetSplitKey()) > keys.MaxKeySizeBytes ||
		!span.Contains(p.GetSplitKey()) || bytes.Equal(p.GetSplitKey(), span.Start):
		return refused("split key %q does not lie inside %s", p.GetSplitKey(), span)
	}
	for _, r := range p.GetChildReplicas() {
		if r.GetReplicaId() == 0 || r.GetStoreId() == 0 || r.GetRole() != metapb.Role_ROLE_VOTER {
			return refused("child replica %d on store %d is a %s",
				r.GetReplicaId(), r.GetStoreId(), r.GetRole())
		}
	}
	config, known := uint64(0), false
	if b.m.deps.ConfigIndex != nil {
		config, known = b.m.deps.ConfigIndex(b.m.rangeID)
	}
	switch {
	case !known:
		return b.halt("a split met an unknown config index")
	case config != p.GetExpectedConfig():
		return refused("config index is %d, not %d", config, p.GetExpectedConfig())
	}
	return sm.Result{Value: ResultApplied}
}

// reserve claims the child's range id. A child that an earlier entry of this
// batch made is reserved too.
func (b *batch) reserve(childID uint64) bool { return b.m.deps.Catalog.Reserve(childID) }

// childState is the record of a split's child on this store.
func childState(
	parent *catalog.State, p *logpb.Split, replicaID uint64, span keys.Span, slices []engine.Slice,
) *catalog.State {
	pb := parent.Replicated()
	pb.RangeId = p.GetChildRangeId()
	pb.Span = span.Proto()
	pb.SpanEpoch++
	pb.Lease, pb.Previous, pb.LastChildRangeId = nil, nil, 0
	pb.ReadBound = p.GetMaxReadTs()
	pb.HistoryFloor = uint64(parent.HistoryFloor())
	pb.ReplicaId = replicaID
	pb.Role = metapb.Role_ROLE_VOTER
	pb.State = logpb.ReplicaState_REPLICA_STATE_NORMAL
	pb.Slices = slicesProto(slices)
	pb.BirthMembers = p.GetChildReplicas()
	pb.ParentRangeId = parent.RangeID()
	pb.BirthStoreId = parent.Lease().GetHolderStoreId()
	return catalog.NewState(pb)
}

// divide cuts ordered slices between two spans that meet.
func divide(slices []engine.Slice, left, right keys.Span) (l, r []engine.Slice) {
	for _, s := range slices {
		if part := s.Span.Intersect(left); part.Valid() && s.Span.Overlaps(left) {
			l = append(l, engine.Slice{Extent: s.Extent, Span: part})
		}
		if part := s.Span.Intersect(right); part.Valid() && s.Span.Overlaps(right) {
			r = append(r, engine.Slice{Extent: s.Extent, Span: part})
		}
	}
	return l, r
}

func slicesProto(slices []engine.Slice) []*logpb.Slice {
	out := make([]*logpb.Slice, 0, len(slices))
	for _, s := range slices {
		out = append(out, &logpb.Slice{Extent: uint32(s.Extent), Span: s.Span.Proto()})
	}
	return out
}
