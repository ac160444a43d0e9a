package schedule

import (
	"bytes"
	"fmt"
	"hash/fnv"
	"maps"
	"slices"

	"google.golang.org/protobuf/proto"

	"github.com/ridgekv/ridge/pd/internal/operator"
	"github.com/ridgekv/ridge/pd/internal/topology"
	metapb "github.com/ridgekv/ridge/proto/ridge/meta/v1"
	pdpb "github.com/ridgekv/ridge/proto/ridge/pd/v1"
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
	// Rule is set before the first move; nil is none.
	Rule *pdpb.PlacementRule
	// Short tells that the goal is not reached when all moves are done.
	Short bool
	// stores are those of the picture, with their states; rules those in force,
	// with their revisions.
	stores []storeState
	rules  []ruleRevision
}

type ruleRevision struct {
	id       string
	revision uint64
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
	for _, r := range v.Rules {
		b.rules = append(b.rules, ruleRevision{r.GetId(), r.GetRevision()})
	}
	fmt.Fprint(h, b.stores, b.rules)
	for _, m := range b.Moves {
		fmt.Fprint(h, " ", m.Op.RangeID, " ", m.Op.What(), StampOf(m.Before),
			m.Before.Leader.GetStoreId())
	}
	b.ID = fmt.Sprintf("%016x", h.Sum64())
	return b
}

// SetsRule makes the plan one that sets a rule first.
func (b *Blueprint) SetsRule(rule *pdpb.PlacementRule) {
	b.Rule = proto.CloneOf(rule)
	text, err := proto.MarshalOptions{Deterministic: true}.Marshal(b.Rule)
	if err != nil {
		panic(fmt.Sprintf("schedule: encode a rule: %v", err)) // it came as a message
	}
	h := fnv.New64a()
	fmt.Fprint(h, b.ID, text)
	b.ID = fmt.Sprintf("%016x", h.Sum64())
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

// RulesChanged tells which placement rules are not as the plan found them. own is
// the revision that the plan's own rule was given, 0 before it was set.
func (b *Blueprint) RulesChanged(v topology.View, own uint64) []string {
	expected := map[string]uint64{}
	for _, r := range b.rules {
		expected[r.id] = r.revision
	}
	if own != 0 {
		expected[b.Rule.GetId()] = own
	}
	var out []string
	for _, r := range v.Rules {
		was, known := expected[r.GetId()]
		delete(expected, r.GetId())
		switch {
		case !known:
			out = append(out, fmt.Sprintf("rule %q is new", r.GetId()))
		case was != r.GetRevision():
			out = append(out, fmt.Sprintf("rule %q was changed", r.GetId()))
		}
	}
	for _, id := range slices.Sorted(maps.Keys(expected)) {
		out = append(out, fmt.Sprintf("rule %q was deleted", id))
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
	if r == nil {
		return fmt.Sprintf("range %d is gone", m.Op.RangeID)
	}
	id := r.Range.GetRangeId()
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

// Find is the range that a move is about, by the truth of now. One that the
// forecast made up is the child of a split: it has its span and its members once
// it is there, and until then it is nil. wrong says why it will never be there.
func (m Move) Find(t *topology.Topology) (r *topology.Range, wrong string) {
	if !Foretold(m.Op.RangeID) {
		return t.Range(m.Op.RangeID), ""
	}
	want := m.Before.Range.GetSpan()
	r = t.Find(want.GetStart())
	if r == nil || r.Reported.IsZero() || r.Leader.GetStoreId() == 0 ||
		!bytes.Equal(r.Range.GetSpan().GetStart(), want.GetStart()) {
		return nil, ""
	}
	if !bytes.Equal(r.Range.GetSpan().GetEnd(), want.GetEnd()) {
		return nil, fmt.Sprintf("range %d has another end than the plan gives it",
			r.Range.GetRangeId())
	}
	if lacks(r, m.Before) != 0 || lacks(m.Before, r) != 0 {
		return nil, fmt.Sprintf("range %d has replicas on other stores than the range it was "+
			"divided from", r.Range.GetRangeId())
	}
	return r, ""
}

// Operator makes the move upon r. Replicas that only the forecast has named get
// the id of the replica that is there by now, or a new one on admission.
func (m Move) Operator(r *topology.Range) *operator.Operator {
	op := &operator.Operator{
		RangeID: r.Range.GetRangeId(), By: ByHand, Priority: operator.ByHand, Reason: m.Op.Reason,
		Leader: r.Leader.GetStoreId(), Steps: slices.Clone(m.Op.Steps),
	}
	for i, s := range op.Steps {
		if Foretold(s.ReplicaID) {
			op.Steps[i].ReplicaID = on(r, s.StoreID).GetReplicaId()
		}
	}
	return op
}
