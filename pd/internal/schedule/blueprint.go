package schedule

import (
	"fmt"
	"hash/fnv"
	"slices"

	"github.com/ridgekv/ridge/pd/internal/operator"
	"github.com/ridgekv/ridge/pd/internal/topology"
	metapb "github.com/ridgekv/ridge/proto/ridge/meta/v1"
)

// Blueprint is a forecast that can be carried out, as long as the cluster is as
// the forecast found it. It is immutable.
type Blueprint struct {
	// ID names the moves and what they rest upon: same id, same plan.
	ID, What string
	Moves    []Move
	// StoreID gets State when all moves are done; 0 is none.
	StoreID uint64
	State   metapb.StoreState
	// Short tells that the goal is not reached when all moves are done.
	Short bool
	// stores are those of the picture, with their states.
	stores []storeState
}

type storeState struct {
	id    uint64
	state metapb.StoreState
}

// NewBlueprint makes a plan of a forecast upon v.
func NewBlueprint(what string, v topology.View, f Forecast) *Blueprint {
	b := &Blueprint{What: what, Moves: f.Moves}
	h := fnv.New64a()
	fmt.Fprint(h, what)
	for _, s := range v.Stores {
		b.stores = append(b.stores, storeState{s.Store.GetStoreId(), v.State(s)})
	}
	fmt.Fprint(h, b.stores)
	for _, m := range b.Moves {
		fmt.Fprint(h, " ", m.Op.RangeID, " ", m.Op.What(), StampOf(m.Before),
			m.Before.Leader.GetStoreId())
	}
	b.ID = fmt.Sprintf("%016x", h.Sum64())
	return b
}

// StoresChanged tells which stores are in another state than the plan found
// them in. Stores that are new do not matter: no move names them.
func (b *Blueprint) StoresChanged(v topology.View) []string {
	var out []string
	for _, s := range b.stores {
		if now := v.State(v.Store(s.id)); now != s.state {
			out = append(out, fmt.Sprintf("store %d is %s, it was %s", s.id, stateText(now),
				stateText(s.state)))
		}
	}
	return out
}

// Stamp changes whenever the members or the span of a range do.
type Stamp struct{ Config, Span uint64 }

// StampOf returns the stamp of a range.
func StampOf(r *topology.Range) Stamp {
	return Stamp{r.Range.GetEpoch().GetConfig(), r.SpanEpoch()}
}

// Changed tells how r, as it is now, differs from what the move was planned upon;
// empty when it does not. s is the stamp it must have: that of the picture, or
// the one which the move before on the same range left.
func (m Move) Changed(r *topology.Range, s Stamp) string {
	id := m.Op.RangeID
	if r == nil {
		return fmt.Sprintf("range %d is gone", id)
	}
	now, leader := StampOf(r), m.Before.Leader.GetStoreId()
	switch {
	case now.Span != s.Span:
		return fmt.Sprintf("range %d was split or merged: its epoch is %d.%d, it was %d.%d", id,
			now.Config, now.Span, s.Config, s.Span)
	case now.Config != s.Config:
		return fmt.Sprintf("the replicas of range %d were changed: its epoch is %d.%d, it was %d.%d",
			id, now.Config, now.Span, s.Config, s.Span)
	case r.Leader.GetStoreId() != leader:
		return fmt.Sprintf("range %d is led by store %d, it was by store %d", id,
			r.Leader.GetStoreId(), leader)
	}
	return ""
}

// Operator makes the move upon r. Replicas that only the forecast has named get
// the id of the replica that is there by now, or a new one on admission.
func (m Move) Operator(r *topology.Range) *operator.Operator {
	op := &operator.Operator{
		RangeID: m.Op.RangeID, By: ByHand, Priority: operator.ByHand, Reason: m.Op.Reason,
		Leader: r.Leader.GetStoreId(), Steps: slices.Clone(m.Op.Steps),
	}
	for i, s := range op.Steps {
		if s.ReplicaID > forecastID {
			op.Steps[i].ReplicaID = on(r, s.StoreID).GetReplicaId()
		}
	}
	return op
}
