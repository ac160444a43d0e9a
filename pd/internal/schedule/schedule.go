// Package schedule holds the pure planners: they look at a picture of the
// cluster and say what should change, or why nothing does.
package schedule

import (
	"fmt"
	"slices"

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
func Check(v topology.View, r *topology.Range, load Load) (*operator.Operator, string) {
	if r.Reported.IsZero() || r.Leader.GetStoreId() == 0 {
		return nil, "its leaseholder has not reported yet"
	}
	if r.Report.GetHasUnbornChildren() {
		return nil, "waits for the birth of a child"
	}
	if op, why := checkRepair(v, r, load); op != nil || why != "" {
		return op, why
	}
	return checkSplit(v, r), ""
}

// checkSplit wants a range divided that has outgrown the split size.
func checkSplit(v topology.View, r *topology.Range) *operator.Operator {
	size := r.Report.GetSizeBytes()
	if size < v.SplitSizeBytes || r.Report.GetKeyCount() < 2 || hasLearners(r) {
		return nil
	}
	return &operator.Operator{
		RangeID: r.Range.GetRangeId(),
		Reason:  fmt.Sprintf("split: %d bytes, the limit is %d", size, v.SplitSizeBytes),
		Steps:   []operator.Step{{Kind: operator.Split}},
	}
}

func hasLearners(r *topology.Range) bool {
	return slices.ContainsFunc(r.Range.GetReplicas(), func(m *metapb.Replica) bool {
		return m.GetRole() == metapb.Role_ROLE_LEARNER
	})
}
