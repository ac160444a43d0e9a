package schedule

import (
	"fmt"
	"math"
	"time"

	"github.com/ridgekv/ridge/pd/internal/operator"
	"github.com/ridgekv/ridge/pd/internal/topology"
	metapb "github.com/ridgekv/ridge/proto/ridge/meta/v1"
)

const (
	// hotFactor is how far above the mean a store's load must be, and hotOps how
	// much at least, in operations per second.
	hotFactor = 1.3
	hotOps    = 1000
	// hotPause is how long a store that balancing changed is left alone: reports
	// of load follow what they measure.
	hotPause = 30 * time.Second
	// hotGain is the least part of a store's load that a change must take off.
	hotGain = 0.05
)

// balanceLoad takes load off the store that bears most: it transfers a leader,
// and one with little load back if the number of leaders asks for it; if no
// transfer helps it moves a replica.
func (p *Planner) balanceLoad(up []*seat, out *Plan) {
	sum := 0.0
	for _, s := range up {
		sum += s.load
	}
	mean := sum / float64(len(up))
	from := most(up, func(s *seat) float64 { return s.load })
	if from.load < mean*hotFactor || from.load-mean < hotOps || p.unsettled(from) {
		return
	}
	if p.coolByTransfer(from, up, out) || p.coolByMove(from, up, out) {
		return
	}
	out.Verdicts = append(out.Verdicts, Verdict{
		StoreID: from.id, By: ByHot, Reason: fmt.Sprintf(
			"bears %.0f operations/s, the mean is %.0f, and no change of one range helps",
			from.load, mean),
		Remedy: "split_load_ops lets ranges be divided by load",
	})
}

// unsettled reports whether balancing changed a store lately, or does now.
func (p *Planner) unsettled(s *seat) bool {
	for _, m := range p.f.Recent {
		if (m.From == s.id || m.To == s.id) && p.v.Now.Sub(m.At) < hotPause {
			return true
		}
	}
	for _, o := range p.f.Operators {
		for _, step := range o.Steps {
			if o.Leader == s.id || step.StoreID == s.id {
				return true
			}
		}
	}
	return false
}

// helps judges the change of x operations per second from one store to another:
// how far the worse of both comes down; 0 when it does not enough.
func helps(from, to *seat, x float64) float64 {
	gain := from.load - math.Max(from.load-x, to.load+x)
	if gain < from.load*hotGain {
		return 0
	}
	return gain
}

func (p *Planner) coolByTransfer(from *seat, up []*seat, out *Plan) bool {
	var best, back *topology.Range
	var to, home *metapb.Replica
	step, most := p.leaderStep(up), 0.0
	for _, i := range from.led {
		r := p.v.Ranges[i]
		x := leaderLoad(r)
		if p.f.Busy(r.Range.GetRangeId()) || x < hotOps/10 || !p.settled(r) {
			continue
		}
		for _, m := range r.Range.GetReplicas() {
			s := p.seat(m.GetStoreId())
			if s == nil || s == from || !s.up || !p.mayLead(r, m) || p.unsettled(s) ||
				p.turnsBack(r, operator.TransferLeader, from.id, s.id) || helps(from, s, x) <= most {
				continue
			}
			var cold *topology.Range
			var cm *metapb.Replica
			if s.leaders+1-(from.leaders-1) >= step {
				if cold, cm = p.coldLeader(s, from, x/2); cold == nil {
					continue
				}
			}
			best, to, back, home, most = r, m, cold, cm, helps(from, s, x)
		}
	}
	if best == nil {
		return false
	}
	why := fmt.Sprintf("store %d bears %.0f operations/s, store %d %.0f", from.id, from.load,
		to.GetStoreId(), p.seat(to.GetStoreId()).load)
	if !p.propose(byHot.operator(why, []operator.Step{transfer(to)}), best, out) {
		return false
	}
	if back != nil {
		p.propose(byHot.operator(why+", and this keeps the number of leaders",
			[]operator.Step{transfer(home)}), back, out)
	}
	return true
}

// coldLeader is a range that one store leads and the other could, with at most
// so much load.
func (p *Planner) coldLeader(
	at, to *seat, limit float64,
) (*topology.Range, *metapb.Replica) {
	var best *topology.Range
	var home *metapb.Replica
	for _, i := range at.led {
		r := p.v.Ranges[i]
		m := on(r, to.id)
		if x := leaderLoad(r); m == nil || x > limit || p.f.Busy(r.Range.GetRangeId()) ||
			!p.settled(r) || !p.mayLead(r, m) ||
			p.turnsBack(r, operator.TransferLeader, at.id, to.id) {
			continue
		} else if best == nil || x < leaderLoad(best) {
			best, home = r, m
		}
	}
	return best, home
}

// coolByMove moves the leading replica of a range that no other member's store
// could bear to the store with the least load, which then leads it.
func (p *Planner) coolByMove(from *seat, up []*seat, out *Plan) bool {
	to := most(up, func(s *seat) float64 { return -s.load })
	gap, step := p.gap(up), p.leaderStep(up)
	if to == from || !to.low || p.unsettled(to) || to.leaders+1-(from.leaders-1) >= step {
		return false
	}
	var best *topology.Range
	gain := 0.0
	for _, i := range from.led {
		r := p.v.Ranges[i]
		m := on(r, from.id)
		x, w := leaderLoad(r)+float64(r.Report.GetWriteRate()), p.weight(r)
		after := (to.weight+w)/to.share - (from.weight-w)/from.share
		// Read only once it is known to help: the rest costs more.
		if m == nil || helps(from, to, x) <= gain || after > gap+2*w/to.share ||
			p.whyNot(r, p.aimOf(r), to) != "" ||
			p.f.Busy(r.Range.GetRangeId()) || !p.settled(r) ||
			p.turnsBack(r, operator.AddLearner, from.id, to.id) {
			continue
		}
		keep := p.seatsOf(r.Range.GetReplicas(), m.GetReplicaId())
		if marginalCost(keep, to) > marginalCost(keep, from) ||
			!p.mayLead(r, &metapb.Replica{StoreId: to.id}) {
			continue
		}
		best, gain = r, helps(from, to, x)
	}
	if best == nil {
		return false
	}
	m := on(best, from.id)
	return p.propose(byHot.operator(fmt.Sprintf(
		"store %d bears %.0f operations/s, store %d %.0f", from.id, from.load, to.id, to.load),
		[]operator.Step{
			{Kind: operator.AddLearner, StoreID: to.id},
			{Kind: operator.Promote, StoreID: to.id},
			{Kind: operator.TransferLeader, StoreID: to.id},
			{Kind: operator.Remove, ReplicaID: m.GetReplicaId(), StoreID: m.GetStoreId()},
		}), best, out)
}
