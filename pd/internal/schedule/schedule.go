// Package schedule holds the pure planners: they look at a picture of the
// cluster and say what should change, or why nothing does. Checkers look at one
// range, balancing at all stores. Nothing here reads a clock, draws at random or
// depends on the order of a map.
package schedule

import (
	"cmp"
	"fmt"
	"slices"
	"time"

	"github.com/ridgekv/ridge/pd/internal/operator"
	"github.com/ridgekv/ridge/pd/internal/topology"
	metapb "github.com/ridgekv/ridge/proto/ridge/meta/v1"
)

// The planners by name, as operators and verdicts carry it.
const (
	ByRepair   = "repair"
	BySplit    = "split"
	ByRules    = "rules"
	ByDrain    = "drain"
	ByLeaders  = "leaders"
	ByReplicas = "replicas"
	ByHot      = "hot"
	ByHand     = "hand"
)

// Verdict says why something is left as it is although something is amiss.
type Verdict struct {
	// RangeID or StoreID is what it is about; both 0: the cluster.
	RangeID, StoreID uint64
	// By names the planner.
	By     string
	Reason string
	// Remedy is what would make it possible; empty when time alone will.
	Remedy string
}

// String renders the verdict for people and scripts.
func (w Verdict) String() string {
	if w.Remedy == "" {
		return w.Reason
	}
	return w.Reason + " (" + w.Remedy + ")"
}

// Plan is what planners want of one picture.
type Plan struct {
	// Operators fit the limits together; the most urgent come first.
	Operators []*operator.Operator
	// Verdicts are all refusals: what is amiss and stays so for now.
	Verdicts []Verdict
}

// Schedule plans: checkers for every range, then balancing. It is pure: the same
// picture and flight give the same plan.
func Schedule(v topology.View, f operator.Flight) Plan { return NewPlanner(v, f).Plan() }

// Planner holds what the planners of one pass share.
type Planner struct {
	v      topology.View
	f      operator.Flight
	target Target
	load   Load
	budget *operator.Budget
}

// NewPlanner begins a pass.
func NewPlanner(v topology.View, f operator.Flight) *Planner {
	p := &Planner{
		v: v, f: f, target: TargetOf(v), load: Load{},
		budget: operator.NewBudget(f.Limits, f.Operators),
	}
	for _, o := range f.Operators {
		p.load.add(o)
	}
	return p
}

// Load is how many more replicas each store is about to get, so that not all
// plans choose the same store.
type Load map[uint64]int

func (l Load) add(o *operator.Operator) {
	for _, s := range o.Steps {
		if s.Kind == operator.AddLearner {
			l[s.StoreID]++
		}
	}
}

// want is an operator that is not admitted yet, and its range.
type want struct {
	op *operator.Operator
	r  *topology.Range
}

// Plan asks all planners. It may be called once.
func (p *Planner) Plan() Plan {
	var out Plan
	var wanted []want
	for _, r := range p.v.Ranges {
		if p.f.Busy(r.Range.GetRangeId()) {
			continue
		}
		op, why := p.Check(r)
		if op != nil {
			p.load.add(op)
			wanted = append(wanted, want{op, r})
		}
		if why.Reason != "" {
			out.Verdicts = append(out.Verdicts, why)
		}
	}
	slices.SortStableFunc(wanted, func(a, b want) int {
		return cmp.Compare(a.op.Priority, b.op.Priority)
	})
	for _, w := range wanted {
		if why := p.admit(w.op, w.r); why.Reason != "" {
			out.Verdicts = append(out.Verdicts, why)
			continue
		}
		out.Operators = append(out.Operators, w.op)
	}
	return out
}

// admit takes op into the budget, or says why it must wait.
func (p *Planner) admit(op *operator.Operator, r *topology.Range) Verdict {
	refuse := func(format string, args ...any) Verdict {
		return Verdict{RangeID: op.RangeID, By: op.By, Reason: fmt.Sprintf(format, args...)}
	}
	rest, ok := p.f.Rest(op.RangeID, op.By)
	switch {
	case !ok:
	case rest.Final && rest.SpanEpoch == r.SpanEpoch() && r.SizeBytes() < 2*rest.SizeBytes:
		return refuse("cannot be done: %s", rest.Why)
	case !rest.Final && p.v.Now.Before(rest.Until):
		return refuse("failed %d times, rests for %s: %s", rest.Failures,
			rest.Until.Sub(p.v.Now).Round(time.Second), rest.Why)
	}
	if why := p.budget.Room(op); why != "" {
		return refuse("%s", why)
	}
	p.budget.Take(op)
	return Verdict{}
}

// Check looks at one range. It returns the operator it wants, or a verdict: why
// the range is left as it is although something is amiss. Both are empty when
// all is well. Limits are not asked.
func (p *Planner) Check(r *topology.Range) (*operator.Operator, Verdict) {
	op, why := p.check(r)
	if op != nil {
		op.RangeID, op.Leader = r.Range.GetRangeId(), r.Leader.GetStoreId()
	}
	if why.Reason != "" {
		why.RangeID = r.Range.GetRangeId()
	}
	return op, why
}

func (p *Planner) check(r *topology.Range) (*operator.Operator, Verdict) {
	v := p.v
	if why := unheard(v, r); why != "" {
		return nil, Verdict{By: ByRepair, Reason: why}
	}
	if r.Report.GetHasUnbornChildren() {
		return nil, Verdict{By: ByRepair, Reason: "waits for the birth of a child"}
	}
	op, reason := checkRepair(v, r, p.target, p.load)
	why := Verdict{By: ByRepair, Reason: reason}
	if op != nil {
		op.By, op.Priority = ByRepair, operator.Repair
		if held := feasible(v, r, op.Steps); held != "" {
			return nil, Verdict{By: ByRepair, Reason: held}
		}
		return op, why
	}
	if drain := checkLeader(v, r); drain != nil {
		drain.By, drain.Priority = ByDrain, operator.Drain
		return drain, why
	}
	// A range that cannot be repaired for want of stores may still be divided.
	if split := checkSplit(v, r, reason == ""); split != nil {
		split.By, split.Priority = BySplit, operator.Divide
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
