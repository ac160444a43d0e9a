package schedule

import (
	"cmp"
	"fmt"
	"math"
	"slices"

	"github.com/ridgekv/ridge/pd/internal/operator"
	"github.com/ridgekv/ridge/pd/internal/topology"
	metapb "github.com/ridgekv/ridge/proto/ridge/meta/v1"
)

// Balancing compares stores that are up with each other. Each planner has a
// number that every operator of it lowers by a fixed least amount, and it begins
// only when two stores lie farther apart than the tolerance; the planners after
// it may not bring them that far apart again. So it ends, and then stays still.
//
//	leaders   sum over stores of leaders²
//	replicas  sum over stores of share · fullness²
//	hot       sum over stores of load²; what it does leaves the others at rest

var (
	byLeaders  = planner{ByLeaders, operator.Balance}
	byReplicas = planner{ByReplicas, operator.Balance}
	byHot      = planner{ByHot, operator.Balance}
)

// Score is how much a store has, with everything in flight done.
type Score struct {
	StoreID           uint64
	Leaders, Replicas int
	// Weight is what balancing of replicas compares, before the store's share.
	Weight, Share float64
	// Load is operations per second, led and followed.
	Load float64
}

// Scores tells how much every store has, by id.
func (p *Planner) Scores() []Score {
	out := make([]Score, 0, len(p.seats))
	for _, s := range p.seats {
		out = append(out, Score{
			StoreID: s.id, Leaders: s.leaders, Replicas: s.replicas,
			Weight: s.weight, Share: s.share, Load: s.load,
		})
	}
	return out
}

// balance evens out what the checkers leave. emit is told of each operator and
// says whether it was admitted.
func (p *Planner) balance(out *Plan) {
	if p.v.Still != "" {
		out.Verdicts = append(out.Verdicts, Verdict{
			By: ByReplicas, Reason: "nothing is balanced: " + p.v.Still,
		})
		return
	}
	var up []*seat
	for _, s := range p.seats {
		if s.up {
			up = append(up, s)
		}
	}
	if len(up) < 2 {
		return
	}
	p.balanceReplicas(up, out)
	moved := len(out.Operators)
	p.balanceLeaders(up, out)
	if len(out.Operators) == moved {
		p.balanceLoad(up, out)
	}
}

// propose admits a balancing operator, and notes why not if it must wait.
func (p *Planner) propose(op *operator.Operator, r *topology.Range, out *Plan) bool {
	op.RangeID, op.Leader = r.Range.GetRangeId(), r.Leader.GetStoreId()
	if feasible(p.v, r, p.aimOf(r).voters, op.Steps) != "" || p.admit(op, r).Reason != "" {
		return false
	}
	p.take(op, r)
	out.Operators = append(out.Operators, op)
	return true
}

// settled reports whether r is whole and at rest: balancing touches no other.
func (p *Planner) settled(r *topology.Range) bool {
	id := r.Range.GetRangeId()
	if p.taken[id] || unheard(p.v, r) != "" || r.Report.GetHasUnbornChildren() {
		return false
	}
	want := p.aimOf(r)
	for _, m := range r.Range.GetReplicas() {
		if m.GetRole() != metapb.Role_ROLE_VOTER || !alive(p.v, r, m) ||
			r.Health(m.GetReplicaId()).GetLagging() || !r.Word(m.GetReplicaId()).Held() {
			return false
		}
	}
	n := len(r.Range.GetReplicas())
	return n >= want.target && n <= want.voters && n%2 == 1
}

// leaderStep is how many leaders apart two stores must be for a transfer.
func (p *Planner) leaderStep(up []*seat) int {
	sum := 0
	for _, s := range up {
		sum += s.leaders
	}
	mean := float64(sum) / float64(len(up))
	return max(2, int(math.Ceil(mean*float64(p.v.TolerancePercent)/100)))
}

// balanceLeaders transfers leaders from the stores with most to those with
// fewest.
func (p *Planner) balanceLeaders(up []*seat, out *Plan) {
	step := p.leaderStep(up)
	done := map[uint64]bool{}
	for len(done) < len(up) {
		from := most(up, func(s *seat) float64 {
			if done[s.id] {
				return math.Inf(-1)
			}
			return float64(s.leaders)
		})
		fewest := most(up, func(s *seat) float64 { return -float64(s.leaders) })
		if from.leaders-fewest.leaders < step {
			return
		}
		if !p.giveLeader(from, fewest, step, out) {
			done[from.id] = true
		}
	}
}

// giveLeader transfers one leader away from a store, to one that has at least
// step fewer; best to the one that has the fewest of all.
func (p *Planner) giveLeader(from, fewest *seat, step int, out *Plan) bool {
	least := from.leaders - step + 1
	r, to := p.givable(from, func(s *seat) bool {
		better := s.leaders < least
		if better {
			least = s.leaders
		}
		return better
	}, func(s *seat) bool { return s.leaders <= fewest.leaders })
	if r == nil {
		return p.giveThrough(from, step, out)
	}
	return p.proposeTransfer(from, r, to, out)
}

// maxGoBetweens bounds the search for a store in the middle.
const maxGoBetweens = 16

// giveThrough transfers two leaders: one from a store in the middle to one that
// has at least step fewer than from, and one from from to the store in the
// middle, whose number stays as it was. A store that shares no range with those
// that lead few, or only such as have just left them, gives leaders away so.
func (p *Planner) giveThrough(from *seat, step int, out *Plan) bool {
	tried := map[*seat]bool{}
	for len(tried) < maxGoBetweens {
		var middle *seat
		first, toMiddle := p.givable(from, func(s *seat) bool {
			return !tried[s] && s.leaders < from.leaders
		}, func(s *seat) bool { middle = s; return true })
		if first == nil {
			return false
		}
		tried[middle] = true
		second, to := p.givable(middle, func(s *seat) bool {
			return s != from && s.leaders <= from.leaders-step && s.leaders < middle.leaders
		}, func(*seat) bool { return true })
		if second != nil && p.proposeTransfer(middle, second, to, out) {
			p.proposeTransfer(from, first, toMiddle, out)
			return true
		}
	}
	return false
}

// givable finds a range whose leadership from may give to a store that is
// wanted, and the member there; the last one found, or the first that is good
// enough.
func (p *Planner) givable(
	from *seat, wanted, enough func(*seat) bool,
) (best *topology.Range, to *metapb.Replica) {
	for _, i := range from.led {
		r := p.v.Ranges[i]
		if p.f.Busy(r.Range.GetRangeId()) || !p.settled(r) {
			continue
		}
		for _, m := range r.Range.GetReplicas() {
			s := p.seat(m.GetStoreId())
			if s == nil || s == from || !s.up || !p.mayLead(r, m) ||
				p.turnsBack(r, operator.TransferLeader, from.id, s.id) {
				continue
			}
			op := operator.Operator{
				RangeID: r.Range.GetRangeId(), By: ByLeaders, Priority: operator.Balance,
				Leader: from.id, Steps: []operator.Step{transfer(m)},
			}
			if p.waits(&op, r) || !wanted(s) {
				continue
			}
			best, to = r, m
			if enough(s) {
				return best, to
			}
		}
	}
	return best, to
}

func (p *Planner) proposeTransfer(
	from *seat, r *topology.Range, to *metapb.Replica, out *Plan,
) bool {
	return p.propose(byLeaders.operator(fmt.Sprintf("store %d leads %d, store %d leads %d",
		from.id, from.leaders, to.GetStoreId(), p.seat(to.GetStoreId()).leaders),
		[]operator.Step{transfer(to)}), r, out)
}

// mayLead reports whether a rule lets m lead, if the present leader is where the
// rule prefers it.
func (p *Planner) mayLead(r *topology.Range, m *metapb.Replica) bool {
	rule := p.aimOf(r).rule
	return len(rule.GetLeaderPreference()) == 0 || p.preferred(rule, m)
}

// turnsBack reports whether a change would bring a range, or its leadership, back
// to the store that it left lately.
func (p *Planner) turnsBack(r *topology.Range, kind operator.Kind, from, to uint64) bool {
	return slices.ContainsFunc(p.f.Moved(r.Range.GetRangeId()), func(m operator.Recent) bool {
		return m.Kind == kind && m.From == to && (m.To == from || kind == operator.AddLearner)
	})
}

// waits reports whether op would not be admitted now.
func (p *Planner) waits(op *operator.Operator, r *topology.Range) bool {
	return p.mustWait(op, r).Reason != ""
}

// most is the seat with the largest value, the first of equals.
func most(seats []*seat, value func(*seat) float64) *seat {
	return slices.MaxFunc(seats, func(a, b *seat) int {
		return cmp.Or(cmp.Compare(value(a), value(b)), cmp.Compare(b.id, a.id))
	})
}
