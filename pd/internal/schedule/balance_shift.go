package schedule

import (
	"cmp"
	"math"
	"slices"

	"github.com/ridgekv/ridge/pd/internal/operator"
	"github.com/ridgekv/ridge/pd/internal/topology"
	metapb "github.com/ridgekv/ridge/proto/ridge/meta/v1"
)

// maxShifts bounds how many changes of one store are paired with those of another.
const maxShifts = 16

// shift is one change that takes load off one store and puts it on another.
type shift struct {
	r     *topology.Range
	steps []operator.Step
	// load, leaders and weight are what it takes along.
	load    float64
	leaders int
	weight  float64
}

// kind selects shifts: hot ones, or those that cost the least load of such as take
// the leadership along, or of such as only hold a replica.
type kind int

const (
	hottest kind = iota
	lightLeaders
	lightFollowers
)

func (k kind) takes(s shift) bool {
	switch k {
	case lightLeaders:
		return s.leaders > 0
	case lightFollowers:
		return s.leaders == 0
	}
	return s.load >= hotGain
}

// shifts are the changes of a kind that bring load from one store to the other,
// the heaviest or else the lightest first: transfers, and moves if copies are
// allowed. What cannot be done now is left out.
func (p *Planner) shifts(from, to *seat, copies bool, k kind) []shift {
	var sized []shift
	for _, i := range from.held {
		if s, ok := p.size(p.v.Ranges[i], from, to, copies); ok && k.takes(s) {
			sized = append(sized, s)
		}
	}
	slices.SortStableFunc(sized, func(a, b shift) int {
		if k == hottest {
			a, b = b, a
		}
		return cmp.Or(cmp.Compare(a.load, b.load), cmp.Compare(a.weight, b.weight))
	})
	out := make([]shift, 0, maxShifts)
	for i := range sized {
		if s := &sized[i]; p.doable(s, from, to) {
			if out = append(out, *s); len(out) == maxShifts {
				break
			}
		}
	}
	return out
}

// size tells what r would take along, without its steps.
func (p *Planner) size(r *topology.Range, from, to *seat, copies bool) (shift, bool) {
	s := shift{r: r}
	leads, there := r.Leader.GetStoreId() == from.id, on(r, to.id) != nil
	if leads {
		s.load, s.leaders = leaderLoad(r), 1
	}
	if !there {
		s.load, s.weight = s.load+float64(r.Report.GetWriteRate()), p.weight(r)
	}
	return s, there && leads || !there && copies
}

// doable reports whether s can be done now, and gives it its steps.
func (p *Planner) doable(s *shift, from, to *seat) bool {
	r := s.r
	if p.f.Busy(r.Range.GetRangeId()) || !p.settled(r) ||
		s.leaders > 0 && !p.mayLead(r, &metapb.Replica{StoreId: to.id}) {
		return false
	}
	if m := on(r, to.id); m != nil {
		s.steps = []operator.Step{transfer(m)}
		return !p.turnsBack(r, operator.TransferLeader, from.id, to.id) && p.begins(s)
	}
	m := on(r, from.id)
	if m == nil || !to.low || p.whyNot(r, p.aimOf(r), to) != "" ||
		p.turnsBack(r, operator.AddLearner, from.id, to.id) {
		return false
	}
	keep := p.seatsOf(r.Range.GetReplicas(), m.GetReplicaId())
	if marginalCost(keep, to) > marginalCost(keep, from) {
		return false
	}
	s.steps = []operator.Step{
		{Kind: operator.AddLearner, StoreID: to.id}, {Kind: operator.Promote, StoreID: to.id},
	}
	if s.leaders > 0 {
		s.steps = append(s.steps, operator.Step{Kind: operator.TransferLeader, StoreID: to.id})
	}
	s.steps = append(s.steps, operator.Step{
		Kind: operator.Remove, ReplicaID: m.GetReplicaId(), StoreID: m.GetStoreId(),
	})
	return p.begins(s)
}

// begins reports whether the operator of s would be admitted now.
func (p *Planner) begins(s *shift) bool { return !p.waits(s.operator(""), s.r) }

// beginTogether reports whether all of them would be admitted.
func (p *Planner) beginTogether(swap []*shift) bool {
	ops := make([]*operator.Operator, len(swap))
	for i, s := range swap {
		ops[i] = s.operator("")
		if slices.ContainsFunc(swap[:i], func(o *shift) bool { return o.r == s.r }) {
			return false
		}
	}
	return p.budget.RoomForAll(ops) == ""
}

func (s *shift) operator(why string) *operator.Operator {
	op := byHot.operator(why, s.steps)
	op.RememberFor = coolFor
	op.RangeID, op.Leader = s.r.Range.GetRangeId(), s.r.Leader.GetStoreId()
	return op
}

// swap is what may change places between two stores, most load first.
type swap struct {
	from, to *seat
	// hot lie on from, cold on to; there and back hold followers that only weigh.
	hot, cold, there, back []shift
}

func (p *Planner) swapOf(from, to *seat, copies bool) *swap {
	x := &swap{from: from, to: to, hot: p.shifts(from, to, copies, hottest)}
	if len(x.hot) == 0 {
		return x
	}
	x.cold = p.shifts(to, from, copies, lightLeaders)
	if copies {
		x.there = p.shifts(from, to, true, lightFollowers)
		x.back = p.shifts(to, from, true, lightFollowers)
		x.cold = append(x.cold, x.back...)
	}
	return x
}

// best is the change of one to three ranges that helps most, and how much: a hot
// one goes, a cold one comes for the number of leaders, one more for the bytes.
func (p *Planner) best(x *swap, up []*seat) ([]*shift, float64) {
	var out []*shift
	step, most := p.leaderStep(up), 0.0
	for i := range x.hot {
		h := &x.hot[i]
		for k := -1; k < len(x.cold); k++ {
			set, load, n, w := []*shift{h}, h.load, h.leaders, h.weight
			if k >= 0 {
				c := &x.cold[k]
				set, load, n, w = append(set, c), load-c.load, n-c.leaders, w-c.weight
			}
			if n < 0 || load < h.load/2 || helps(x.from, x.to, load) <= most ||
				!keepsLeaders(up, x.from, x.to, n, step) {
				continue
			}
			if !p.keepsWeights(up, x.from, x.to, w) {
				s, sign := p.counterweight(x, up, w)
				if s == nil || load+sign*s.load < h.load/2 {
					continue
				}
				set, load = append(set, s), load+sign*s.load
			}
			if gain := helps(x.from, x.to, load); gain > most && p.beginTogether(set) {
				out, most = set, gain
			}
		}
	}
	return out, most
}

// counterweight is the follower whose move makes up best for w bytes that go from
// one store to the other; its sign is 1 if it goes the same way. It is nil when
// none makes the planner of replicas rest.
func (p *Planner) counterweight(x *swap, up []*seat, w float64) (*shift, float64) {
	from, sign := x.back, -1.0
	if w < 0 {
		from, sign = x.there, 1.0
	}
	var best *shift
	for i := range from {
		s := &from[i]
		if best == nil || math.Abs(w+sign*s.weight) < math.Abs(w+sign*best.weight) {
			best = s
		}
	}
	if best == nil || !p.keepsWeights(up, x.from, x.to, w+sign*best.weight) {
		return nil, 0
	}
	return best, sign
}

// keepsWeights reports whether the planner of replicas does not turn back what
// takes w bytes from one store to the other: either the sum of squares does not
// rise, or neither store then lies so far from any that a replica would move.
func (p *Planner) keepsWeights(up []*seat, from, to *seat, w float64) bool {
	f, t := (from.weight-w)/from.share, (to.weight+w)/to.share
	if w == 0 || f*f*from.share+t*t*to.share <=
		from.fullness()*from.weight+to.fullness()*to.weight {
		return true
	}
	gap := p.gap(up)
	quiet := func(high, low float64, a, b *seat) bool {
		least := max(1, float64(p.v.SplitSizeBytes)/4)
		return high-low <= math.Max(gap, least/a.share+least/b.share)
	}
	if !quiet(f, t, from, to) || !quiet(t, f, to, from) {
		return false
	}
	for _, s := range up {
		if s == from || s == to {
			continue
		}
		x := s.fullness()
		if !quiet(x, f, s, from) || !quiet(f, x, from, s) ||
			!quiet(x, t, s, to) || !quiet(t, x, to, s) {
			return false
		}
	}
	return true
}
