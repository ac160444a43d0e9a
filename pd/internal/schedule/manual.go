package schedule

import (
	"fmt"

	"github.com/ridgekv/ridge/pd/internal/operator"
	"github.com/ridgekv/ridge/pd/internal/topology"
	metapb "github.com/ridgekv/ridge/proto/ridge/meta/v1"
)

// RefusalKind tells a wrong question from a right one at the wrong time.
type RefusalKind int

// The kinds of refusals.
const (
	// RefusedArgument: what is asked for makes no sense.
	RefusedArgument RefusalKind = iota
	// RefusedUnknown: it names something that is not there.
	RefusedUnknown
	// RefusedState: the cluster is not in a state that allows it.
	RefusedState
)

// Refusal is why something that a person asked for is not done, and what would
// make it possible.
type Refusal struct {
	Kind           RefusalKind
	Reason, Remedy string
}

// Error renders the refusal.
func (r *Refusal) Error() string {
	if r.Remedy == "" {
		return r.Reason
	}
	return r.Reason + ": " + r.Remedy
}

func refuse(kind RefusalKind, remedy, format string, args ...any) *Refusal {
	return &Refusal{Kind: kind, Reason: fmt.Sprintf(format, args...), Remedy: remedy}
}

// ManualMove is a move that a person asks for.
type ManualMove struct {
	RangeID, From, To uint64
	// Force moves into a failure domain that holds a replica already.
	Force bool
}

// MoveReplica plans a move by hand, or says why it is refused. r is nil when the range
// is not known.
func MoveReplica(v topology.View, r *topology.Range, m ManualMove) (*operator.Operator, *Refusal) {
	if no := known(v, r, m.RangeID); no != nil {
		return nil, no
	}
	from, to := on(r, m.From), v.Store(m.To)
	switch {
	case from == nil:
		return nil, refuse(RefusedArgument, "", "range %d has no replica on store %d; it has them on %s",
			m.RangeID, m.From, storesOf(r))
	case on(r, m.To) != nil:
		return nil, refuse(RefusedArgument, "choose another store",
			"range %d has a replica on store %d already; it has them on %s", m.RangeID, m.To, storesOf(r))
	case to == nil:
		return nil, refuse(RefusedUnknown, "`ridge store list` names them", "there is no store %d", m.To)
	}
	if why, remedy := CannotReceive(v, to); why != "" {
		return nil, refuse(RefusedState, remedy, "%s", why)
	}
	rule := v.Rule(r.Range.GetSpan().GetStart())
	if rule != nil && !to.Fulfils(rule.GetConstraints()) { // it would be moved away again
		return nil, refuse(RefusedState, fmt.Sprintf("choose one with %s, or change the rule",
			topology.ConstraintText(rule.GetConstraints())), "rule %q does not allow range %d on store %d",
			rule.GetId(), m.RangeID, m.To)
	}
	if label := crowds(v, r, m.From, m.To); label != "" && !m.Force {
		return nil, refuse(RefusedState, "choose another store, or --force",
			"store %d shares its %s with another replica of range %d", m.To, label, m.RangeID)
	}
	op := &operator.Operator{
		RangeID: m.RangeID, Reason: fmt.Sprintf("moved by hand from store %d to %d", m.From, m.To),
	}
	op.Steps = append(op.Steps, operator.Step{Kind: operator.AddLearner, StoreID: m.To})
	if from.GetRole() == metapb.Role_ROLE_VOTER {
		op.Steps = append(op.Steps, operator.Step{Kind: operator.Promote, StoreID: m.To})
	}
	if r.Leader.GetReplicaId() == from.GetReplicaId() {
		op.Steps = append(op.Steps, operator.Step{Kind: operator.TransferLeader, StoreID: m.To})
	}
	op.Steps = append(op.Steps, operator.Step{
		Kind: operator.Remove, ReplicaID: from.GetReplicaId(), StoreID: m.From,
	})
	if held := feasible(v, r, v.Voters(r), op.Steps); held != "" {
		return nil, refuse(RefusedState, "wait until its replicas are well", "range %d: %s",
			m.RangeID, held)
	}
	return op, nil
}

// crowds names the kind of failure domain that the replica on from would come to
// share with another one on to; empty when it shares no more than now.
func crowds(v topology.View, r *topology.Range, from, to uint64) string {
	shared := func(id uint64) (levels int) {
		for _, o := range r.Range.GetReplicas() {
			if o.GetStoreId() == from || v.Store(id) == nil || v.Store(o.GetStoreId()) == nil {
				continue
			}
			a, b := v.Store(id).Store.GetLabels(), v.Store(o.GetStoreId()).Store.GetLabels()
			for i, key := range v.LocationLabels {
				if a[key] == "" || a[key] != b[key] {
					break
				}
				levels = max(levels, i+1)
			}
		}
		return levels
	}
	if now, then := shared(from), shared(to); then > now {
		return v.LocationLabels[then-1]
	}
	return ""
}

// MoveLeader plans a change of leader by hand, or says why it is refused. Both
// are nil when the store leads the range already.
func MoveLeader(
	v topology.View, r *topology.Range, rangeID, storeID uint64,
) (*operator.Operator, *Refusal) {
	if no := known(v, r, rangeID); no != nil {
		return nil, no
	}
	m := on(r, storeID)
	switch {
	case m == nil:
		return nil, refuse(RefusedArgument, "move one there first (`ridge range move`)",
			"range %d has no replica on store %d; it has them on %s", rangeID, storeID, storesOf(r))
	case m.GetRole() != metapb.Role_ROLE_VOTER:
		return nil, refuse(RefusedArgument, "only voters lead",
			"the replica of range %d on store %d is a learner", rangeID, storeID)
	case r.Leader.GetReplicaId() == m.GetReplicaId():
		return nil, nil
	case !alive(v, r, m):
		return nil, refuse(RefusedState, "wait until it is well",
			"the replica of range %d on store %d does not answer or is broken", rangeID, storeID)
	}
	if state := v.State(v.Store(storeID)); state != metapb.StoreState_STORE_STATE_UP {
		return nil, refuse(RefusedState, "`ridge store resume` calls it back",
			"store %d is %s and gives its leaders away", storeID, stateText(state))
	}
	return &operator.Operator{
		RangeID: rangeID, Reason: fmt.Sprintf("leadership moved by hand to store %d", storeID),
		Steps: []operator.Step{transfer(m)},
	}, nil
}

// known refuses a range that nothing can be planned for.
func known(v topology.View, r *topology.Range, rangeID uint64) *Refusal {
	if r == nil {
		return refuse(RefusedUnknown, "`ridge range list` names them", "there is no range %d", rangeID)
	}
	if why := unheard(v, r); why != "" {
		return refuse(RefusedState, "try again when it has a leader", "range %d: %s", rangeID, why)
	}
	if r.Report.GetHasUnbornChildren() {
		return refuse(RefusedState, "try again in a moment", "range %d waits for the birth of a child",
			rangeID)
	}
	return nil
}

// on finds the replica of r on a store; nil when there is none.
func on(r *topology.Range, storeID uint64) *metapb.Replica {
	for _, m := range r.Range.GetReplicas() {
		if m.GetStoreId() == storeID {
			return m
		}
	}
	return nil
}
