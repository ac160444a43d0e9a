package schedule

import (
	"fmt"
	"slices"

	"github.com/ridgekv/ridge/pd/internal/operator"
	"github.com/ridgekv/ridge/pd/internal/topology"
	"github.com/ridgekv/ridge/proto/keys"
	metapb "github.com/ridgekv/ridge/proto/ridge/meta/v1"
)

// Scatter plans how the replicas and the leaders of the ranges that lie within
// span are spread evenly over the stores, each range and each leader counting
// alike. Ranges that are not well, and those that reach beyond the span, stay.
// It is pure. It ends: each move takes from a store and gives to one that has at
// least two fewer, so the sum of squares falls.
func Scatter(
	v topology.View, l operator.Limits, span keys.Span,
) (Forecast, *Refusal) {
	sc := &scatter{
		simulation: newSimulation(v, l), p: NewPlanner(v, operator.Flight{Limits: l}),
		replicas: map[uint64]int{}, leaders: map[uint64]int{}, came: map[uint64]uint64{},
	}
	for _, s := range sc.p.seats {
		if s.up {
			sc.up = append(sc.up, s)
		}
	}
	if len(sc.up) < 2 {
		return Forecast{}, refuse(RefusedState, "add stores, or bring them back",
			"there are fewer than two stores that are up")
	}
	if no := sc.choose(span); no != nil {
		return Forecast{}, no
	}
	for sc.moveOne() || sc.leadOne() {
		if len(sc.out.Moves) >= maxForecast {
			sc.out.Cut = true
			break
		}
	}
	sc.out.Time = sc.lasts(sc.out.Moves)
	sc.out.After = sc.v
	return sc.out, nil
}

type scatter struct {
	*simulation
	// p knows rules, failure domains and stores as they were at the start.
	p  *Planner
	up []*seat
	// chosen are the ranges, as indexes.
	chosen []int
	// replicas and leaders count those of the chosen ranges, by store; came is
	// what the stores have received in bytes.
	replicas, leaders map[uint64]int
	came              map[uint64]uint64
}

// choose takes the ranges within span.
func (sc *scatter) choose(span keys.Span) *Refusal {
	var across []uint64
	for i, r := range sc.v.Ranges {
		own := keys.FromProto(r.Range.GetSpan())
		switch {
		case !span.Overlaps(own):
			continue
		case !span.ContainsSpan(own):
			across = append(across, r.Range.GetRangeId())
			sc.stays(r, "it reaches beyond the span", "split it at the ends of the span first")
			continue
		case !sc.p.settled(r):
			sc.stays(r, "it is not whole, or not heard of", "see `ridge why range`")
			continue
		}
		sc.chosen = append(sc.chosen, i)
		for _, m := range r.Range.GetReplicas() {
			sc.replicas[m.GetStoreId()]++
		}
		sc.leaders[r.Leader.GetStoreId()]++
	}
	switch {
	case len(sc.chosen) > 0:
		return nil
	case len(across) > 0:
		return refuse(RefusedArgument, "split first where the span begins and ends (`ridge range split`)",
			"no range lies within %s; %s reaches beyond it", span, list("range", across))
	}
	return refuse(RefusedState, "wait until they are whole (`ridge why balance`)",
		"no range within %s is well", span)
}

func (sc *scatter) stays(r *topology.Range, why, remedy string) {
	sc.out.Verdicts = append(sc.out.Verdicts, Verdict{
		RangeID: r.Range.GetRangeId(), By: ByHand, Reason: why, Remedy: remedy,
	})
}

// byCount orders stores by a count, the largest first, the first of equals.
func (sc *scatter) byCount(count map[uint64]int) []*seat {
	out := slices.Clone(sc.up)
	slices.SortStableFunc(out, func(a, b *seat) int { return count[b.id] - count[a.id] })
	return out
}

// moveOne moves a replica from a store that has many to one that has at least two
// fewer; false when none can be moved.
func (sc *scatter) moveOne() bool {
	order := sc.byCount(sc.replicas)
	for _, from := range order {
		for _, to := range slices.Backward(order) {
			if sc.replicas[from.id]-sc.replicas[to.id] < 2 {
				break
			}
			if to.low && sc.moveFrom(from, to) {
				return true
			}
		}
	}
	return false
}

func (sc *scatter) moveFrom(from, to *seat) bool {
	for _, leads := range []bool{false, true} { // rather one that does not lead
		for _, i := range sc.chosen {
			r := sc.v.Ranges[i]
			m := on(r, from.id)
			if m == nil || on(r, to.id) != nil || (r.Leader.GetStoreId() == from.id) != leads ||
				!sc.fits(r, m, to) {
				continue
			}
			steps := []operator.Step{
				{Kind: operator.AddLearner, StoreID: to.id}, {Kind: operator.Promote, StoreID: to.id},
			}
			if leads {
				steps = append(steps, operator.Step{Kind: operator.TransferLeader, StoreID: to.id})
			}
			steps = append(steps, operator.Step{
				Kind: operator.Remove, StoreID: from.id, ReplicaID: m.GetReplicaId(),
			})
			if sc.take(i, steps, fmt.Sprintf("scatter: store %d has %d replicas, store %d has %d",
				from.id, sc.replicas[from.id], to.id, sc.replicas[to.id])) {
				return true
			}
		}
	}
	return false
}

// fits reports whether the replica m of r may move to a store: its rule allows it
// there, it is no less apart from the others, and there is room.
func (sc *scatter) fits(r *topology.Range, m *metapb.Replica, to *seat) bool {
	rule := sc.p.aimOf(r).rule
	keep := sc.p.seatsOf(r.Range.GetReplicas(), m.GetReplicaId())
	from := sc.p.seat(m.GetStoreId())
	return (rule == nil || to.store.Fulfils(rule.GetConstraints())) &&
		(r.Leader.GetReplicaId() != m.GetReplicaId() || len(rule.GetLeaderPreference()) == 0 ||
			to.store.Fulfils(rule.GetLeaderPreference())) &&
		marginalCost(keep, to) <= marginalCost(keep, from) &&
		(to.store.Stats.GetCapacityBytes() == 0 ||
			sc.came[to.id]+r.Report.GetSizeBytes() <= to.store.Stats.GetAvailableBytes()/2)
}

// leadOne transfers leaders along a way from a store that leads many to one that
// leads at least two fewer; false when there is none.
func (sc *scatter) leadOne() bool {
	for _, from := range sc.byCount(sc.leaders) {
		if way := sc.leaderWay(from); way != nil {
			for _, t := range way {
				r := sc.v.Ranges[t.i]
				to := on(r, t.to)
				if !sc.take(t.i, []operator.Step{transfer(to)}, fmt.Sprintf(
					"scatter: store %d leads %d, store %d leads %d", r.Leader.GetStoreId(),
					sc.leaders[r.Leader.GetStoreId()], t.to, sc.leaders[t.to])) {
					return false
				}
			}
			return true
		}
	}
	return false
}

// handover is the transfer of one of the ranges to a store.
type handover struct {
	i  int
	to uint64
}

// leaderWay finds, breadth first, transfers that take one leader from a store and
// give one to a store that has at least two fewer.
func (sc *scatter) leaderWay(from *seat) []handover {
	ways := map[uint64][]handover{from.id: {}}
	for queue := []uint64{from.id}; len(queue) > 0; queue = queue[1:] {
		at := queue[0]
		for _, i := range sc.chosen {
			r := sc.v.Ranges[i]
			if r.Leader.GetStoreId() != at {
				continue
			}
			for _, m := range r.Range.GetReplicas() {
				s := sc.p.seat(m.GetStoreId())
				if _, seen := ways[m.GetStoreId()]; seen || s == nil || !s.up ||
					!sc.p.mayLead(r, m) {
					continue
				}
				way := append(slices.Clone(ways[at]), handover{i, s.id})
				if sc.leaders[s.id] <= sc.leaders[from.id]-2 {
					return way
				}
				ways[s.id] = way
				queue = append(queue, s.id)
			}
		}
	}
	return nil
}

// take carries steps out on the picture, and counts.
func (sc *scatter) take(i int, steps []operator.Step, why string) bool {
	before := sc.v.Ranges[i]
	op := &operator.Operator{
		RangeID: before.Range.GetRangeId(), By: ByHand, Priority: operator.ByHand, Reason: why,
		Leader: before.Leader.GetStoreId(), Steps: steps,
	}
	if !sc.carryOut(op, i) {
		return false
	}
	after := sc.v.Ranges[i]
	for _, m := range before.Range.GetReplicas() {
		sc.replicas[m.GetStoreId()]--
	}
	for _, m := range after.Range.GetReplicas() {
		sc.replicas[m.GetStoreId()]++
		if on(before, m.GetStoreId()) == nil {
			sc.came[m.GetStoreId()] += before.Report.GetSizeBytes()
		}
	}
	sc.leaders[before.Leader.GetStoreId()]--
	sc.leaders[after.Leader.GetStoreId()]++
	return true
}
