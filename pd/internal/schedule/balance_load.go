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
	// hotGain is the least that a change must take off, in operations per second.
	// It is no part of the store's load: that of many small ranges goes by many
	// small changes.
	hotGain = hotOps / 10
	// coolFor is how long copies made for the load are not turned back: to spread
	// that of many ranges may take as long.
	coolFor = time.Hour
	// maxHotChanges bounds the changes of one pass. Each is searched for.
	maxHotChanges = 16
)

// balanceLoad takes load off the stores that bear most and can be helped: by
// changes of one range, or by such as change places where the number of leaders
// or the bytes ask for it. A store gets all of a pass's changes at once, since it
// then rests until its reports show them.
func (p *Planner) balanceLoad(up []*seat, out *Plan) {
	sum := 0.0
	for _, s := range up {
		sum += s.load
	}
	mean := sum / float64(len(up))
	isHot := func(s *seat) bool { return s.load >= mean*hotFactor && s.load-mean >= hotOps }
	unsettled := p.unsettled()
	targets := slices.DeleteFunc(slices.Clone(up), func(s *seat) bool { return unsettled[s.id] })
	hot := slices.DeleteFunc(slices.Clone(targets), func(s *seat) bool { return !isHot(s) })
	slices.SortFunc(hot, func(a, b *seat) int {
		return cmp.Or(cmp.Compare(b.load, a.load), cmp.Compare(a.id, b.id))
	})
	changes := 0
	for _, from := range hot {
		helped := false
		for changes < maxHotChanges && isHot(from) && p.coolAny(from, up, targets, out) {
			helped = true
			changes++
		}
		if changes == maxHotChanges {
			return
		}
		if !helped {
			out.Verdicts = append(out.Verdicts, Verdict{
				StoreID: from.id, By: ByHot, Reason: fmt.Sprintf(
					"bears %.0f operations/s, the mean is %.0f, and no change of one range helps",
					from.load, mean),
				Remedy: "split_load_ops lets ranges be divided by load",
			})
		}
	}
}

// coolAny plans the change that helps a store most, towards those that bear least
// now: one without copies if there is any.
func (p *Planner) coolAny(from *seat, up, targets []*seat, out *Plan) bool {
	slices.SortFunc(targets, func(a, b *seat) int {
		return cmp.Or(cmp.Compare(a.load, b.load), cmp.Compare(a.id, b.id))
	})
	least := targets[:min(maxTargets, len(targets))]
	return p.cool(from, up, least, false, out) || p.cool(from, up, least, true, out)
}

// unsettled are the stores that balancing changed lately, or does now.
func (p *Planner) unsettled() map[uint64]bool {
	out := map[uint64]bool{}
	for _, m := range p.f.Recent {
		if p.v.Now.Sub(m.At) < hotPause {
			out[m.From], out[m.To] = true, true
		}
	}
	for _, o := range p.f.Operators {
		out[o.Leader] = true
		for _, step := range o.Steps {
			out[step.StoreID] = true
		}
	}
	return out
}

// helps judges the change of x operations per second from one store to another:
// how far the worse of both comes down; 0 when it does not enough.
func helps(from, to *seat, x float64) float64 {
	gain := from.load - math.Max(from.load-x, to.load+x)
	if gain < hotGain {
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
		if to == from || from.load-to.load < 2*hotGain {
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
// takes n of them from one store to the other: either the sum of squares does not
// rise, or neither store then leads a step more or fewer than any.
func keepsLeaders(up []*seat, from, to *seat, n, step int) bool {
	f, t := from.leaders-n, to.leaders+n
	if n == 0 || f*f+t*t <= from.leaders*from.leaders+to.leaders*to.leaders {
		return true
	}
	for _, s := range up {
		if s != from && s != to && (t-s.leaders >= step || s.leaders-f >= step) {
			return false
		}
	}
	return t-f < step
}
