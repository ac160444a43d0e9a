// Package schedule holds the pure planners: they look at a picture of the
// cluster and say what should change, or why nothing does.
package schedule

import (
	"fmt"
	"time"

	"github.com/ridgekv/ridge/pd/internal/operator"
	"github.com/ridgekv/ridge/pd/internal/topology"
	metapb "github.com/ridgekv/ridge/proto/ridge/meta/v1"
)

// Load is how many more replicas each store is about to get; planners of one
// pass share it, so that they do not all choose the same store.
type Load map[uint64]int

// Check looks at one range. It returns the operator it wants, or a verdict: why
// the range is left as it is although something is amiss. Both are empty when
// all is well.
func Check(
	v topology.View, r *topology.Range, target Target, load Load,
) (*operator.Operator, string) {
	if why := unheard(v, r); why != "" {
		return nil, why
	}
	if r.Report.GetHasUnbornChildren() {
		return nil, "waits for the birth of a child"
	}
	op, why := checkRepair(v, r, target, load)
	if op != nil {
		if held := feasible(v, r, op.Steps); held != "" {
			return nil, held
		}
		return op, why
	}
	if drain := checkLeader(v, r); drain != nil {
		return drain, why
	}
	// A range that cannot be repaired for want of stores may still be divided.
	if split := checkSplit(v, r, why == ""); split != nil {
		return split, why
	}
	return nil, why
}

// unheard says why nothing is known that a plan could rest upon. Orders go to
// the leaseholder's store: while it is silent they would reach nobody.
func unheard(v topology.View, r *topology.Range) string {
	store := v.Store(r.Leader.GetStoreId())
	switch {
	case r.Reported.IsZero() || r.Leader.GetStoreId() == 0:
		return "its leaseholder has not reported yet"
	case v.Silent(store):
		return fmt.Sprintf("its leaseholder's store %d is silent", r.Leader.GetStoreId())
	case v.StaleAfter > 0 && v.Now.Sub(r.Reported) > v.StaleAfter:
		return fmt.Sprintf("its leaseholder has not reported for %s",
			v.Now.Sub(r.Reported).Round(time.Second))
	}
	return ""
}

// checkLeader moves leadership away from a store that is to give it up.
func checkLeader(v topology.View, r *topology.Range) *operator.Operator {
	state := v.State(v.Store(r.Leader.GetStoreId()))
	if state != metapb.StoreState_STORE_STATE_DRAINING &&
		state != metapb.StoreState_STORE_STATE_LEAVING {
		return nil
	}
	to := successor(v, r, sortReplicas(v, r).voters)
	if to == nil {
		return nil
	}
	return &operator.Operator{
		RangeID: r.Range.GetRangeId(),
		Reason:  fmt.Sprintf("drain: store %d gives its leaders away", r.Leader.GetStoreId()),
		Steps:   []operator.Step{transfer(to)},
	}
}

// checkSplit wants a range divided that has outgrown the split size. settled
// tells that nothing is amiss: learners it has then are spare ones.
func checkSplit(v topology.View, r *topology.Range, settled bool) *operator.Operator {
	size := r.Report.GetSizeBytes()
	steps := SplitSteps(r, nil)
	if size < v.SplitSizeBytes || r.Report.GetKeyCount() < 2 || len(steps) > 1 && !settled {
		return nil
	}
	return &operator.Operator{
		RangeID: r.Range.GetRangeId(),
		Reason:  fmt.Sprintf("split: %d bytes, the limit is %d", size, v.SplitSizeBytes),
		Steps:   steps,
	}
}

// SplitSteps divides r at key, or in its middle. A range with learners is not
// divided, so they go first, and both halves get new ones: else the ranges of a
// cluster of two stores, which all have one, would grow for ever.
func SplitSteps(r *topology.Range, key []byte) []operator.Step {
	var steps []operator.Step
	for _, m := range r.Range.GetReplicas() {
		if m.GetRole() == metapb.Role_ROLE_LEARNER {
			steps = append(steps, operator.Step{
				Kind: operator.Remove, ReplicaID: m.GetReplicaId(), StoreID: m.GetStoreId(),
			})
		}
	}
	return append(steps, operator.Step{Kind: operator.Split, Key: key})
}
