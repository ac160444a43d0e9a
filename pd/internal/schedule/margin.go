package schedule

import (
	"fmt"
	"slices"

	"github.com/ridgekv/ridge/pd/internal/operator"
	"github.com/ridgekv/ridge/pd/internal/topology"
	metapb "github.com/ridgekv/ridge/proto/ridge/meta/v1"
)

// quorum counts the voters of a range, and those of them that answer.
type quorum struct{ voters, live int }

// margin is how many live voters can be lost before the range stands still;
// negative when it does already.
func (q quorum) margin() int { return q.live - (q.voters/2 + 1) }

// alive reports whether m is on a store heard of lately and fit to serve.
func alive(v topology.View, r *topology.Range, m *metapb.Replica) bool {
	return !v.Silent(v.Store(m.GetStoreId())) && unfit(v, r, m) == ""
}

// unfit says why a replica on a living store will never be a copy again.
func unfit(v topology.View, r *topology.Range, m *metapb.Replica) string {
	h, w := r.Health(m.GetReplicaId()), r.Word(m.GetReplicaId())
	switch {
	case h.GetPoisoned() || w.Poisoned:
		return fmt.Sprintf("replica on store %d is poisoned", m.GetStoreId())
	case h.GetMissing() || !w.MissingFrom.IsZero() && v.MissingAfter > 0 &&
		w.MissingTo.Sub(w.MissingFrom) >= v.MissingAfter:
		return fmt.Sprintf("store %d does not hold its replica", m.GetStoreId())
	}
	return ""
}

// counts reports whether m is taken for a copy that serves, now or soon: its
// store is heard, and neither down nor gone.
func counts(v topology.View, r *topology.Range, m *metapb.Replica) bool {
	state := v.State(v.Store(m.GetStoreId()))
	return alive(v, r, m) && state != metapb.StoreState_STORE_STATE_DOWN &&
		state != metapb.StoreState_STORE_STATE_GONE
}

// unbegun says that a voter which counts is not held by its store yet, as far as
// is known: the child of a split, on a store that has not applied the split.
func unbegun(v topology.View, r *topology.Range, m *metapb.Replica) string {
	if m.GetRole() != metapb.Role_ROLE_VOTER || r.Word(m.GetReplicaId()).Held() ||
		!counts(v, r, m) {
		return ""
	}
	return fmt.Sprintf("store %d has not begun its replica", m.GetStoreId())
}

// Allow says why a step must wait; empty when it may be taken.
//
// Law P4: no step leaves a range without a majority of live voters, nor with a
// smaller margin than it has, unless that is the margin of a full set.
//
// Law P12: no replica goes before its store has begun it, unless it is lost.
func Allow(v topology.View, r *topology.Range, s operator.Step) string {
	if s.Kind != operator.Remove && s.StoreID != 0 && v.Silent(v.Store(s.StoreID)) {
		return fmt.Sprintf("store %d is silent", s.StoreID)
	}
	return allow(v, r, v.Voters(r), r.Range.GetReplicas(), s)
}

func allow(
	v topology.View, r *topology.Range, full int, members []*metapb.Replica, s operator.Step,
) string {
	if m := r.Replica(s.ReplicaID); s.Kind == operator.Remove && m != nil {
		if why := unbegun(v, r, m); why != "" {
			return why + ", and must learn of the range's splits first"
		}
	}
	before := count(v, r, members)
	after := count(v, r, apply(members, s))
	if after == before || after.margin() >= max(0, min(before.margin(), (full-1)/2)) {
		return ""
	}
	return fmt.Sprintf("%s would leave %d of %d voters alive", s, after.live, after.voters)
}

func count(v topology.View, r *topology.Range, members []*metapb.Replica) quorum {
	var q quorum
	for _, m := range members {
		if m.GetRole() != metapb.Role_ROLE_VOTER {
			continue
		}
		q.voters++
		if alive(v, r, m) {
			q.live++
		}
	}
	return q
}

// apply returns the members after a step.
func apply(members []*metapb.Replica, s operator.Step) []*metapb.Replica {
	same := func(m *metapb.Replica) bool {
		return m.GetStoreId() == s.StoreID &&
			(s.ReplicaID == 0 || m.GetReplicaId() == s.ReplicaID)
	}
	switch s.Kind {
	case operator.Remove:
		return slices.DeleteFunc(slices.Clone(members), same)
	case operator.AddLearner, operator.Promote:
		role := metapb.Role_ROLE_LEARNER
		if i := slices.IndexFunc(members, same); i >= 0 && s.Kind == operator.AddLearner {
			role = members[i].GetRole()
		}
		if s.Kind == operator.Promote {
			role = metapb.Role_ROLE_VOTER
		}
		return append(slices.DeleteFunc(slices.Clone(members), same), &metapb.Replica{
			ReplicaId: s.ReplicaID, StoreId: s.StoreID, Role: role,
		})
	}
	return members
}

// After returns the range as it is when a step has been carried out by healthy
// stores. Plans are tried out with it; a split is not divided here.
func After(r *topology.Range, s operator.Step) *topology.Range {
	next := *r
	next.Range = &metapb.Range{
		RangeId: r.Range.GetRangeId(), Span: r.Range.GetSpan(), Epoch: r.Range.GetEpoch(),
		Replicas: apply(r.Range.GetReplicas(), s),
	}
	if s.Kind == operator.TransferLeader {
		next.Leader = &metapb.Leader{
			ReplicaId: s.ReplicaID, StoreId: s.StoreID, Term: r.Leader.GetTerm() + 1,
		}
	}
	return &next
}

// feasible says which step of a plan would have to wait; empty when none.
func feasible(v topology.View, r *topology.Range, full int, steps []operator.Step) string {
	members := r.Range.GetReplicas()
	for _, s := range steps {
		if why := allow(v, r, full, members, s); why != "" {
			return why
		}
		members = apply(members, s)
	}
	return ""
}
