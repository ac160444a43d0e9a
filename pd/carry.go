package pd

import (
	"context"
	"fmt"
	"sync"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/ridgekv/ridge/pd/internal/operator"
	"github.com/ridgekv/ridge/pd/internal/schedule"
	"github.com/ridgekv/ridge/pd/internal/topology"
	pdpb "github.com/ridgekv/ridge/proto/ridge/pd/v1"
)

// stallLimit is how long no move of a plan may be able to begin, with none under
// way, before the plan is given up: balancing waits for it.
const stallLimit = time.Minute

// carrier carries one plan out at a time: its moves, in their order per range,
// under the limits that hold for everything. Before each pass it looks whether
// the cluster still is as the plan found it; else it begins nothing more. What
// is under way ends by itself: each move is whole. It lives and dies with the
// leader, and half a plan is as safe as all of it.
type carrier struct {
	mu struct {
		sync.Mutex
		// run is the last plan that was begun, or nil; progress is what became of it
		// up to the last pass.
		run      *carrying
		progress *pdpb.PlanProgress
		// stop asks the next pass to end it, and says why.
		stop string
	}
}

// carrying is a plan under way. Only the driver's loop touches it once it is
// begun.
type carrying struct {
	plan         *schedule.Blueprint
	began, moved time.Time
	state        pdpb.PlanState
	// pending are the moves not begun, by index; flying are those under way, by
	// operator.
	pending   []int
	flying    map[uint64]int
	done      int
	bytesDone uint64
	// stamps are what the ranges must look like; those that a split makes come in
	// when they are there.
	stamps map[uint64]schedule.Stamp
	// ruleRevision is that of the plan's rule, 0 while it is not set.
	ruleRevision uint64
	changed      []string
	waiting      string
}

// apply begins a plan, unless something is not as the plan found it.
func (d *driver) apply(plan *schedule.Blueprint) (*pdpb.PlanProgress, []string) {
	now := time.Now()
	x := &carrying{
		plan: plan, began: now, moved: now, state: pdpb.PlanState_PLAN_STATE_RUNNING,
		flying: map[uint64]int{}, stamps: map[uint64]schedule.Stamp{},
	}
	for i, m := range plan.Moves {
		x.pending = append(x.pending, i)
		if _, ok := x.stamps[m.Op.RangeID]; !ok && !schedule.Foretold(m.Op.RangeID) {
			x.stamps[m.Op.RangeID] = schedule.StampOf(m.Before)
		}
	}
	changed := x.drift(d.topology, d.view(now))
	for id := range x.stamps {
		if d.operators.Busy(id) {
			changed = append(changed, fmt.Sprintf("range %d is being changed", id))
		}
	}
	c := &d.carrier
	c.mu.Lock()
	defer c.mu.Unlock()
	if p := c.mu.progress; p.GetState() == pdpb.PlanState_PLAN_STATE_RUNNING ||
		p.GetState() == pdpb.PlanState_PLAN_STATE_DONE && p.GetPlanId() == plan.ID {
		if p.GetPlanId() != plan.ID {
			return nil, []string{fmt.Sprintf("plan %s is being carried out: wait for it, or "+
				"`ridge plan stop`", p.GetPlanId())}
		}
		return proto.CloneOf(p), nil // the same call again
	}
	if len(changed) > 0 {
		return nil, changed
	}
	c.mu.run, c.mu.stop, c.mu.progress = x, "", x.progress(now)
	d.journal.add(&pdpb.Decision{
		Kind: pdpb.DecisionKind_DECISION_KIND_ADMIN, Why: "by hand",
		What: fmt.Sprintf("plan %s begins: %s, %d moves", plan.ID, plan.What, len(plan.Moves)),
	})
	return proto.CloneOf(c.mu.progress), nil
}

// planProgress tells how the last plan goes; nil when there was none.
func (d *driver) planProgress() *pdpb.PlanProgress {
	d.carrier.mu.Lock()
	defer d.carrier.mu.Unlock()
	return proto.CloneOf(d.carrier.mu.progress)
}

// stopPlan ends the plan under way with the next pass.
func (d *driver) stopPlan(why string) {
	d.carrier.mu.Lock()
	defer d.carrier.mu.Unlock()
	d.carrier.mu.stop = why
}

// running is the plan under way, or nil.
func (c *carrier) running() (x *carrying, stop string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.mu.progress.GetState() != pdpb.PlanState_PLAN_STATE_RUNNING {
		return nil, ""
	}
	return c.mu.run, c.mu.stop
}

// carry moves the plan under way on, if there is one.
func (d *driver) carry(ctx context.Context, v topology.View, now time.Time) {
	x, stop := d.carrier.running()
	if x == nil {
		return
	}
	flight := map[uint64]bool{}
	for _, o := range d.operators.Flight().Operators {
		flight[o.ID] = true
	}
	for id, i := range x.flying {
		if !flight[id] {
			x.abort(fmt.Sprintf("the move of range %d was cancelled", x.plan.Moves[i].Op.RangeID))
		}
	}
	if stop != "" {
		x.abort(stop)
	}
	x.abort(x.drift(d.topology, v)...)
	if x.state == pdpb.PlanState_PLAN_STATE_RUNNING && x.plan.Rule != nil && x.ruleRevision == 0 {
		d.setRule(ctx, x)
	}
	if x.state == pdpb.PlanState_PLAN_STATE_RUNNING {
		d.beginMoves(ctx, x, now)
	}
	if x.state == pdpb.PlanState_PLAN_STATE_RUNNING && len(x.pending)+len(x.flying) == 0 {
		d.reach(ctx, x, now)
	}
	d.publish(x, now)
}

// setRule sets the rule of the plan, before the first move: moves against the
// rules in force would be turned back. From then on the planners want what the
// plan does; they leave its ranges to it.
func (d *driver) setRule(ctx context.Context, x *carrying) {
	r, err := d.m.Propose(ctx, &pdpb.Command{Command: &pdpb.Command_PutRule{
		PutRule: &pdpb.PutRule{Rule: x.plan.Rule},
	}})
	switch {
	case err != nil:
		x.abort(fmt.Sprintf("rule %q may not have been set (`ridge rule list` tells): %v",
			x.plan.Rule.GetId(), err))
	case r.GetReason() != pdpb.PDErrorReason_PD_ERROR_REASON_UNSPECIFIED:
		x.abort(fmt.Sprintf("rule %q was refused: %s", x.plan.Rule.GetId(), r.GetMessage()))
	default:
		x.ruleRevision = r.GetRule().GetRevision()
		d.journal.add(&pdpb.Decision{
			Kind: pdpb.DecisionKind_DECISION_KIND_ADMIN, Why: "plan " + x.plan.ID,
			What: fmt.Sprintf("placement rule %q is set", x.plan.Rule.GetId()),
		})
	}
}

// beginMoves admits what the limits allow. A move waits for the one before it on
// its range, and for nothing else.
func (d *driver) beginMoves(ctx context.Context, x *carrying, now time.Time) {
	waits := map[uint64]bool{}
	for _, i := range x.flying {
		waits[x.plan.Moves[i].Op.RangeID] = true
	}
	var rest []int
	x.waiting = ""
	for _, i := range x.pending {
		m := x.plan.Moves[i]
		r, _ := m.Find(d.topology)
		if waits[m.Op.RangeID] || r == nil {
			rest = append(rest, i)
			if r == nil {
				x.waiting = "a range is not there yet that a split makes"
			}
			continue
		}
		waits[m.Op.RangeID] = true
		op := m.Operator(r)
		op.Reason = "plan " + x.plan.ID + ": " + op.Reason
		if why := d.admit(ctx, op, now); why != "" {
			x.waiting = fmt.Sprintf("range %d: %s", op.RangeID, why)
			rest = append(rest, i)
			continue
		}
		x.flying[op.ID], x.moved = i, now
	}
	x.pending = rest
	if len(x.flying) == 0 && now.Sub(x.moved) > stallLimit {
		x.abort(fmt.Sprintf("no move could begin for %s: %s", stallLimit, x.waiting))
	}
}

// reach gives the store of the plan its state, now that all moves are done.
func (d *driver) reach(ctx context.Context, x *carrying, now time.Time) {
	if id := x.plan.StoreID; id != 0 {
		if no := schedule.MayBecome(d.view(now), id, x.plan.State); no != nil {
			x.abort(no.Error())
			return
		}
		_, err := d.m.Propose(ctx, &pdpb.Command{Command: &pdpb.Command_PutStoreState{
			PutStoreState: &pdpb.PutStoreState{StoreId: id, State: x.plan.State},
		}})
		if err != nil {
			return // the next pass tries again
		}
		d.topology.PutStores(d.m.Stores(), now)
	}
	x.state = pdpb.PlanState_PLAN_STATE_DONE
	what := fmt.Sprintf("plan %s is carried out: %s", x.plan.ID, x.plan.What)
	d.s.o.Logger.Info("plan is carried out", "plan", x.plan.ID, "what", x.plan.What)
	line := &pdpb.Decision{
		Kind: pdpb.DecisionKind_DECISION_KIND_DONE, What: what,
		Why: fmt.Sprintf("took %s; by hand", now.Sub(x.began).Round(time.Millisecond)),
	}
	if x.plan.StoreID != 0 {
		line.StoreIds = []uint64{x.plan.StoreID}
	}
	d.journal.add(line)
}

// moveEnded takes in how an operator ended, if it is one of the plan's.
func (d *driver) moveEnded(e operator.Ended, now time.Time) {
	x, _ := d.carrier.running()
	if x == nil {
		return
	}
	i, mine := x.flying[e.Operator.ID]
	if !mine {
		return
	}
	delete(x.flying, e.Operator.ID)
	if e.Failure != "" {
		x.abort(fmt.Sprintf("the move of range %d failed: %s", e.Operator.RangeID, e.Failure))
	} else {
		x.done, x.moved = x.done+1, now
		x.bytesDone += x.plan.Moves[i].Bytes
		if r := d.topology.Range(e.Operator.RangeID); r != nil {
			x.stamps[x.plan.Moves[i].Op.RangeID] = schedule.StampOf(r)
		}
	}
	d.publish(x, now)
}

// publish shows how far the plan is, and writes down how it ended.
func (d *driver) publish(x *carrying, now time.Time) {
	c := &d.carrier
	c.mu.Lock()
	was := c.mu.progress.GetState()
	c.mu.progress = x.progress(now)
	c.mu.Unlock()
	if x.state != pdpb.PlanState_PLAN_STATE_ABORTED ||
		was == pdpb.PlanState_PLAN_STATE_ABORTED {
		return
	}
	why := fmt.Sprintf("%d of %d moves were done, %d are under way; ", x.done, len(x.plan.Moves),
		len(x.flying))
	for i, s := range x.changed {
		if i > 0 {
			why += "; "
		}
		why += s
	}
	d.s.o.Logger.Warn("plan is given up", "plan", x.plan.ID, "why", why)
	d.journal.add(&pdpb.Decision{
		Kind: pdpb.DecisionKind_DECISION_KIND_FAILED, Why: why,
		What: fmt.Sprintf("plan %s is given up: %s", x.plan.ID, x.plan.What),
	})
}

// maxChanges bounds the changes that are told.
const maxChanges = 16

// drift tells what is not as the plan expects it, for the moves not begun.
func (x *carrying) drift(t *topology.Topology, v topology.View) []string {
	changed := append(x.plan.StoresChanged(v), x.plan.RulesChanged(v, x.ruleRevision)...)
	seen := map[uint64]bool{}
	for _, i := range x.flying {
		seen[x.plan.Moves[i].Op.RangeID] = true
	}
	for _, i := range x.pending {
		m := x.plan.Moves[i]
		if seen[m.Op.RangeID] || len(changed) >= maxChanges {
			continue
		}
		seen[m.Op.RangeID] = true
		r, why := m.Find(t)
		if schedule.Foretold(m.Op.RangeID) && r != nil {
			if _, met := x.stamps[m.Op.RangeID]; !met {
				x.stamps[m.Op.RangeID] = schedule.StampOf(r)
			}
		}
		if why == "" && (r != nil || !schedule.Foretold(m.Op.RangeID)) {
			why = m.Changed(r, x.stamps[m.Op.RangeID])
		}
		if why != "" {
			changed = append(changed, why)
		}
	}
	return changed
}

func (x *carrying) abort(why ...string) {
	if len(why) == 0 {
		return
	}
	if x.state != pdpb.PlanState_PLAN_STATE_ABORTED && x.ruleRevision != 0 {
		why = append(why, fmt.Sprintf("rule %q stays set, and planning follows it from here",
			x.plan.Rule.GetId()))
	}
	x.state = pdpb.PlanState_PLAN_STATE_ABORTED
	x.changed = append(x.changed, why...)
}

// claims are the ranges that the plan under way will move: other planners, but for
// repair, leave them alone.
func (d *driver) claims() map[uint64]bool {
	out := map[uint64]bool{}
	if x, _ := d.carrier.running(); x != nil {
		for _, i := range x.pending {
			if r, _ := x.plan.Moves[i].Find(d.topology); r != nil {
				out[r.Range.GetRangeId()] = true
			}
		}
	}
	return out
}

func (x *carrying) progress(now time.Time) *pdpb.PlanProgress {
	p := &pdpb.PlanProgress{
		PlanId: x.plan.ID, What: x.plan.What, State: x.state,
		Moves: uint32(len(x.plan.Moves)), Done: uint32(x.done), UnderWay: uint32(len(x.flying)),
		BytesDone: x.bytesDone, ElapsedMs: uint64(now.Sub(x.began).Milliseconds()),
		Changed: x.changed, Waiting: x.waiting,
	}
	for _, m := range x.plan.Moves {
		p.Bytes += m.Bytes
	}
	return p
}

// still says why nothing is balanced while a plan is under way.
func (c *carrier) still() string {
	if x, _ := c.running(); x != nil {
		return "plan " + x.plan.ID + " is being carried out (`ridge plan status`)"
	}
	return ""
}
