package schedule

import (
	"cmp"
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/ridgekv/ridge/pd/internal/operator"
	"github.com/ridgekv/ridge/pd/internal/topology"
	metapb "github.com/ridgekv/ridge/proto/ridge/meta/v1"
)

// maxTargets bounds the stores that one full store is compared with in a pass.
const maxTargets = 8

// fullPause is how long a replica stays on a disk that is too full before it is
// brought back to where it came from.
const fullPause = 5 * time.Minute

// balanceReplicas moves replicas from the fullest stores to the emptiest, by
// what they weigh for their share of the disks.
func (p *Planner) balanceReplicas(up []*seat, out *Plan) {
	p.allFull(up, out)
	done := map[uint64]bool{}
	for len(done) < len(up) {
		from := most(up, func(s *seat) float64 {
			switch {
			case done[s.id]:
				return math.Inf(-1)
			case p.over(s): // a disk that is too full comes first
				return math.MaxFloat64
			}
			return s.fullness()
		})
		if !p.giveReplica(from, up, out) {
			done[from.id] = true
		}
	}
}

// over reports whether a disk is above its high watermark.
func (p *Planner) over(s *seat) bool {
	return p.v.HighWaterPercent > 0 && s.usedPercent >= p.v.HighWaterPercent
}

// gap is how far apart two stores may lie before a replica moves.
func (p *Planner) gap(up []*seat) float64 {
	sum, share := 0.0, 0.0
	for _, s := range up {
		sum, share = sum+s.weight, share+s.share
	}
	return sum / share * float64(p.v.TolerancePercent) / 100
}

// giveReplica moves one replica away from a store; false when there is none to
// move.
func (p *Planner) giveReplica(from *seat, up []*seat, out *Plan) bool {
	gap := p.gap(up)
	targets := slices.DeleteFunc(slices.Clone(up), func(s *seat) bool {
		if p.over(from) {
			return s == from || !s.low
		}
		return s == from || !s.low || from.fullness()-s.fullness() <= gap
	})
	slices.SortFunc(targets, func(a, b *seat) int {
		return cmp.Or(cmp.Compare(a.fullness(), b.fullness()), cmp.Compare(a.id, b.id))
	})
	refused := map[string]int{}
	for _, to := range targets[:min(maxTargets, len(targets))] {
		if why := p.budget.RoomToReceive(to.id, operator.Balance); why != "" {
			refused[why] += len(from.held) // none of them need be looked at
			continue
		}
		r, steps := p.candidate(from, to, refused)
		if r == nil {
			continue
		}
		return p.propose(byReplicas.operator(fmt.Sprintf("store %d has %s, store %d has %s",
			from.id, inBytes(from.fullness()), to.id, inBytes(to.fullness())), steps), r, out)
	}
	if full := p.tooFull(from, up, gap); len(targets) == 0 && len(full) > 0 {
		out.Verdicts = append(out.Verdicts, Verdict{
			StoreID: from.id, By: ByReplicas,
			Reason: fmt.Sprintf("has %s, and the disks of all stores that have less are too full: %s",
				inBytes(from.fullness()), disks(full)),
			Remedy: p.roomRemedy(),
		})
		return false
	}
	p.stuck(from, targets, refused, out)
	return false
}

// allFull says that no store may be given a replica, if it is for want of disk: then
// nothing is moved, however unevenly the stores are filled.
func (p *Planner) allFull(up []*seat, out *Plan) {
	if slices.ContainsFunc(up, func(s *seat) bool { return s.low || !p.nearlyFull(s) }) {
		return
	}
	out.Verdicts = append(out.Verdicts, Verdict{
		By: ByReplicas, Reason: "no replica is moved: all disks are too full: " + disks(up),
		Remedy: p.roomRemedy(),
	})
}

// tooFull are the stores that have less than from and would be given of it, were it
// not for their disks. It is nobody when all are: that was said.
func (p *Planner) tooFull(from *seat, up []*seat, gap float64) []*seat {
	if p.over(from) || !slices.ContainsFunc(up, func(s *seat) bool { return !p.nearlyFull(s) }) {
		return nil
	}
	w := from.weight / float64(max(1, from.replicas))
	return slices.DeleteFunc(slices.Clone(up), func(s *seat) bool {
		return s == from || !p.nearlyFull(s) || from.fullness()-s.fullness() <= gap ||
			from.fullness()-w/from.share < s.fullness()+w/s.share
	})
}

// nearlyFull reports whether balancing gives a store nothing more because of its disk.
func (p *Planner) nearlyFull(s *seat) bool {
	return p.v.HighWaterPercent > 0 && s.usedPercent >= p.v.HighWaterPercent-lowGap
}

// disks tells how full a few disks are.
func disks(seats []*seat) string {
	const most = 8
	var parts []string
	for _, s := range seats[:min(most, len(seats))] {
		parts = append(parts, fmt.Sprintf("store %d %d %%", s.id, s.usedPercent))
	}
	if len(seats) > most {
		parts = append(parts, fmt.Sprintf("%d more", len(seats)-most))
	}
	return strings.Join(parts, ", ")
}

func (p *Planner) roomRemedy() string {
	return fmt.Sprintf("balancing fills a disk to %d %%, %d below high_water_percent: "+
		"add a store or a larger disk, or raise it", p.v.HighWaterPercent-lowGap, lowGap)
}

// stuck says why nothing moves off a store although it is fuller than others.
func (p *Planner) stuck(from *seat, targets []*seat, refused map[string]int, out *Plan) {
	delete(refused, "too large a step")
	if len(targets) == 0 && !p.over(from) || len(refused) == 0 && len(targets) > 0 {
		return
	}
	var parts []string
	for _, why := range slices.Sorted(maps.Keys(refused)) {
		parts = append(parts, fmt.Sprintf("%d: %s", refused[why], why))
	}
	why := fmt.Sprintf("has %s, others have less, and no replica can move now",
		inBytes(from.fullness()))
	remedy := strings.Join(parts, "; ")
	if p.over(from) {
		why = fmt.Sprintf("disk is %d %% full, and no replica can move away", from.usedPercent)
		remedy = strings.Join(append(parts, "add a store or a larger disk"), "; ")
	}
	out.Verdicts = append(out.Verdicts, Verdict{
		StoreID: from.id, By: ByReplicas, Reason: why, Remedy: remedy,
	})
}

// candidate is the range whose replica shall move from one store to the other,
// and how: of those that lessen the difference, the one nearest to the mean
// weight, rather one that does not lead. refused counts why not.
func (p *Planner) candidate(
	from, to *seat, refused map[string]int,
) (*topology.Range, []operator.Step) {
	var best *topology.Range
	var replica *metapb.Replica
	mean, off := from.weight/float64(max(1, from.replicas)), math.Inf(1)
	for _, i := range from.held {
		r := p.v.Ranges[i]
		m := on(r, from.id)
		if m == nil {
			continue
		}
		w := p.weight(r)
		distance := math.Abs(w - mean)
		if r.Leader.GetReplicaId() == m.GetReplicaId() {
			distance += mean
		}
		if distance >= off {
			continue
		}
		if why := p.immovable(r, m, from, to, w); why != "" {
			refused[why]++
			continue
		}
		best, replica, off = r, m, distance
	}
	if best == nil {
		return nil, nil
	}
	s := p.sortReplicas(best, p.aimOf(best))
	return best, p.move(best, s, replica, to)
}

// immovable says why the replica of r on one store is not moved to another.
func (p *Planner) immovable(
	r *topology.Range, m *metapb.Replica, from, to *seat, w float64,
) string {
	want := p.aimOf(r)
	switch {
	case !p.over(from) && from.fullness()-w/from.share < to.fullness()+w/to.share:
		return "too large a step"
	case on(r, to.id) != nil:
		return "the emptier store has one"
	case p.unbegun(r):
		return "a store has not begun its replica of the range"
	case p.f.Busy(r.Range.GetRangeId()) || !p.settled(r):
		return "another change is under way, or its range is not well"
	case want.rule != nil && !to.store.Fulfils(want.rule.GetConstraints()):
		return fmt.Sprintf("rule %q keeps it away from there", want.rule.GetId())
	case p.cameLately(r, from, to):
		return "it came from there lately"
	}
	if len(p.v.LocationLabels) > 0 {
		keep := p.seatsOf(r.Range.GetReplicas(), m.GetReplicaId())
		if marginalCost(keep, to) > marginalCost(keep, from) {
			return "it would share a failure domain there"
		}
	}
	op := operator.Operator{
		RangeID: r.Range.GetRangeId(), By: ByReplicas, Priority: operator.Balance,
		Leader: r.Leader.GetStoreId(),
		Steps:  []operator.Step{{Kind: operator.AddLearner, StoreID: to.id}},
	}
	return p.mustWait(&op, r).Reason
}

// cameLately reports whether a replica of r left a store so lately that it is not
// brought back. A disk that is too full cannot wait as long as the bytes of others:
// of four stores, none but that one may be able to take it.
func (p *Planner) cameLately(r *topology.Range, from, to *seat) bool {
	return slices.ContainsFunc(p.f.Moved(r.Range.GetRangeId()), func(m operator.Recent) bool {
		return m.Kind == operator.AddLearner && m.From == to.id &&
			(!p.over(from) || m.At.IsZero() || p.v.Now.Sub(m.At) <= fullPause)
	})
}

// unbegun reports whether the range is the child of a split that a store has yet to
// apply.
func (p *Planner) unbegun(r *topology.Range) bool {
	return slices.ContainsFunc(r.Range.GetReplicas(), func(m *metapb.Replica) bool {
		return unbegun(p.v, r, m) != ""
	})
}

// inBytes renders a weight for people.
func inBytes(w float64) string {
	switch {
	case w >= 1<<30:
		return fmt.Sprintf("%.1f GiB", w/(1<<30))
	case w >= 1<<20:
		return fmt.Sprintf("%.1f MiB", w/(1<<20))
	}
	return fmt.Sprintf("%.0f KiB", w/(1<<10))
}
