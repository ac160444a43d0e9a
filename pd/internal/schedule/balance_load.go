package schedule

import (
	"cmp"
	"fmt"
	"math"
	"slices"
	"time"
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

// balanceLoad takes load off the store that bears most and can be helped: by one
// change, or by two that change places where the number of leaders or the bytes
// ask for it.
func (p *Planner) balanceLoad(up []*seat, out *Plan) {
	sum := 0.0
	for _, s := range up {
		sum += s.load
	}
	mean := sum / float64(len(up))
	hot := slices.DeleteFunc(slices.Clone(up), func(s *seat) bool {
		return s.load < mean*hotFactor || s.load-mean < hotOps || p.unsettled(s)
	})
	slices.SortFunc(hot, func(a, b *seat) int {
		return cmp.Or(cmp.Compare(b.load, a.load), cmp.Compare(a.id, b.id))
	})
	targets := slices.DeleteFunc(slices.Clone(up), p.unsettled)
	slices.SortFunc(targets, func(a, b *seat) int {
		return cmp.Or(cmp.Compare(a.load, b.load), cmp.Compare(a.id, b.id))
	})
	targets = targets[:min(maxTargets, len(targets))]
	for _, from := range hot {
		for _, copies := range []bool{false, true} {
			if p.cool(from, up, targets, copies, out) {
				return
			}
		}
		out.Verdicts = append(out.Verdicts, Verdict{
			StoreID: from.id, By: ByHot, Reason: fmt.Sprintf(
				"bears %.0f operations/s, the mean is %.0f, and no change of one range helps",
				from.load, mean),
			Remedy: "split_load_ops lets ranges be divided by load",
		})
	}
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

// cool plans the change that helps one store most, copies of replicas included
// or not; false when none does.
func (p *Planner) cool(from *seat, up, targets []*seat, copies bool, out *Plan) bool {
	var best []*shift
	var at *seat
	most := 0.0
	for _, to := range targets {
		if to == from || from.load-to.load < 2*from.load*hotGain {
			continue // no change could help enough
		}
		if set, gain := p.best(p.swapOf(from, to, copies), up); gain > most {
			best, at, most = set, to, gain
		}
	}
	why := ""
	for i, s := range best {
		if i == 0 {
			why = fmt.Sprintf("store %d bears %.0f operations/s, store %d %.0f",
				from.id, from.load, at.id, at.load)
		}
		if !p.propose(s.operator(why), s.r, out) {
			return i > 0
		}
		why = "in exchange for a hot range"
	}
	return len(best) > 0
}

// keepsLeaders reports whether the planner of leaders does not turn back what
// takes n of them from one store to the other.
func keepsLeaders(from, to *seat, n, step int) bool {
	return n == 0 || to.leaders+n-(from.leaders-n) < step
}
