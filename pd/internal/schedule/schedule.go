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

// planner makes operators and refusals in the name of one planner.
type planner struct {
	by       string
	priority operator.Priority
}

var (
	repair = planner{ByRepair, operator.Repair}
	divide = planner{BySplit, operator.Divide}
	rules  = planner{ByRules, operator.Rules}
	drain  = planner{ByDrain, operator.Drain}
)

func (b planner) operator(reason string, steps []operator.Step) *operator.Operator {
	return &operator.Operator{
		By: b.by, Priority: b.priority, Reason: b.by + ": " + reason, Steps: steps,
	}
}

func (b planner) refuse(reason, remedy string) Verdict {
	return Verdict{By: b.by, Reason: reason, Remedy: remedy}
}

// Planner holds what the planners of one pass share.
type Planner struct {
	v      topology.View
	f      operator.Flight
	budget *operator.Budget
	// seats are the stores, by id.
	seats []*seat
	// standard is what is wanted where no rule is; segments begin where rules
	// begin or end.
	standard *aim
	segments []segment
	// taken are ranges that were given an operator in this pass.
	taken map[uint64]bool
}

// NewPlanner begins a pass.
func NewPlanner(v topology.View, f operator.Flight) *Planner {
	p := &Planner{
		v: v, f: f, budget: operator.NewBudget(f.Limits, f.Operators), taken: map[uint64]bool{},
	}
	p.seatStores()
	p.aims()
	p.weigh()
	return p
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
			p.take(op, r)
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
	p.balance(&out)
	return out
}

// admit takes op into the budget, or says why it must wait.
func (p *Planner) admit(op *operator.Operator, r *topology.Range) Verdict {
	why := p.mustWait(op, r)
	if why.Reason == "" {
		p.budget.Take(op)
	}
	return why
}

// mustWait says why op cannot begin now: it failed, or there is no room for it.
func (p *Planner) mustWait(op *operator.Operator, r *topology.Range) Verdict {
	refuse := func(remedy, format string, args ...any) Verdict {
		return Verdict{
			RangeID: op.RangeID, By: op.By, Reason: fmt.Sprintf(format, args...), Remedy: remedy,
		}
	}
	rest, ok := p.f.Rest(op.RangeID, op.By)
	switch {
	case !ok:
	case rest.Final && rest.SpanEpoch == r.SpanEpoch() && r.SizeBytes() < 2*rest.SizeBytes:
		return refuse("", "cannot be done: %s", rest.Why)
	case !rest.Final && p.v.Now.Before(rest.Until):
		return refuse("", "failed %d times, rests for %s: %s", rest.Failures,
			rest.Until.Sub(p.v.Now).Round(time.Second), rest.Why)
	}
	if why := p.budget.Room(op); why != "" {
		return refuse("it goes on when those are done, or with a higher limit", "%s", why)
	}
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
	if why := unheard(p.v, r); why != "" {
		return nil, repair.refuse(why, "")
	}
	if r.Report.GetHasUnbornChildren() {
		return nil, repair.refuse("waits for the birth of a child", "")
	}
	want := p.aimOf(r)
	s := p.sortReplicas(r, want)
	op, why := p.checkRepair(r, want, s)
	if op != nil && op.By == ByRules {
		// Not all of a range that crosses the end of a rule shall go where it says.
		if cut := p.divideFirst(r); cut != nil {
			return cut, why
		}
	}
	if op != nil {
		if held := feasible(p.v, r, want.voters, op.Steps); held != "" {
			return nil, Verdict{By: op.By, Reason: held}
		}
		return op, why
	}
	op, stays := p.checkLeader(r, want, s)
	if op != nil {
		return op, why
	}
	// A range that cannot be repaired for want of stores may still be divided.
	op, whole := p.checkSplit(r, why.Reason == "")
	for _, next := range []Verdict{stays, whole} {
		if why.Reason == "" {
			why = next
		}
	}
	return op, why
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

// checkLeader moves leadership away from a store that is to give it up, and to
// where the rule prefers it.
func (p *Planner) checkLeader(
	r *topology.Range, want *aim, s replicas,
) (*operator.Operator, Verdict) {
	store := r.Leader.GetStoreId()
	state := p.v.State(p.v.Store(store))
	if state == metapb.StoreState_STORE_STATE_DRAINING ||
		state == metapb.StoreState_STORE_STATE_LEAVING {
		to := p.successor(r, s.voters)
		if to == nil {
			return nil, drain.refuse(fmt.Sprintf(
				"store %d keeps this leader: no other voter of the range can lead", store),
				"bring the stores of its other voters back, or cancel the drain")
		}
		return drain.operator(fmt.Sprintf("store %d gives its leaders away", store),
			[]operator.Step{transfer(to)}), Verdict{}
	}
	leader := r.Replica(r.Leader.GetReplicaId())
	if len(want.rule.GetLeaderPreference()) == 0 || leader == nil ||
		p.preferred(want.rule, leader) {
		return nil, Verdict{}
	}
	to := p.successor(r, s.voters)
	if to == nil || !p.preferred(want.rule, to) {
		return nil, rules.refuse(fmt.Sprintf(
			"rule %q prefers another leader, and no voter there can lead", want.rule.GetId()),
			"constrain voters of the rule to the stores it prefers")
	}
	return rules.operator(fmt.Sprintf("rule %q prefers store %d to lead", want.rule.GetId(),
		to.GetStoreId()), []operator.Step{transfer(to)}), Verdict{}
}
