package pd

import (
	"bytes"
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/ridgekv/ridge/pd/internal/meta"
	"github.com/ridgekv/ridge/pd/internal/operator"
	"github.com/ridgekv/ridge/pd/internal/schedule"
	"github.com/ridgekv/ridge/pd/internal/settings"
	"github.com/ridgekv/ridge/pd/internal/topology"
	"github.com/ridgekv/ridge/pd/internal/tso"
	metapb "github.com/ridgekv/ridge/proto/ridge/meta/v1"
	pdpb "github.com/ridgekv/ridge/proto/ridge/pd/v1"
)

const (
	// passInterval is how often the driver looks at everything. Orders under
	// way are repeated that often.
	passInterval = 200 * time.Millisecond
	// passRest is how many times longer than a pass the driver then rests: planning
	// takes seconds for a million ranges, and must not take a core for itself.
	passRest = 3
	// persistInterval is how often descriptors that changed are written down.
	persistInterval = time.Second
	// maxSplits bounds the splits under way.
	maxSplits = 32
	// maxVerdicts bounds the verdicts that are kept.
	maxVerdicts = 1000
	// silentHeartbeats is how many heartbeats a store may miss before nothing
	// new is placed on it.
	silentHeartbeats = 5
	// maxOperators bounds the operators in flight.
	maxOperators = 1000
	// missingAfter is how long the lists of a store must lack a replica before it
	// is replaced. The child of a split is late on a store that lags behind.
	missingAfter = time.Minute
	// confirmTimeout bounds the question whether this PD still leads.
	confirmTimeout = 2 * time.Second
)

// driver is the one scheduling loop: picture → checkers → admission → orders.
type driver struct {
	s         *Server
	m         *meta.Meta
	topology  *topology.Topology
	operators *operator.Controller
	oracle    *tso.Oracle
	journal   *journal
	carrier   carrier
	refusals  refusals
	began     time.Time
	// emptied says since when stores that leave hold nothing. Only run touches it.
	emptied map[uint64]time.Time
	send    func(map[uint64][]*pdpb.Order)

	mu struct {
		sync.Mutex
		verdicts []*pdpb.Verdict
		waiting  string
	}
}

func newDriver(
	s *Server, m *meta.Meta, t *topology.Topology, c *operator.Controller, o *tso.Oracle,
) *driver {
	return &driver{
		s: s, m: m, topology: t, operators: c, oracle: o, began: time.Now(),
		emptied: map[uint64]time.Time{},
		journal: &journal{m: m, member: s.o.MemberID, writer: o.Epoch()},
	}
}

// settings are those in force now.
func (d *driver) settings() settings.Settings { return inForce(d.s.o, d.m) }

func (d *driver) retention() time.Duration { return d.settings().Retention }

// garbagePatience is how long an emptied store may take to delete what is left of
// its data before it is gone all the same.
const garbagePatience = 5 * time.Minute

// retire declares stores gone that were told to leave and hold nothing more.
func (d *driver) retire(ctx context.Context, v topology.View) {
	emptied := schedule.Emptied(v, d.operators.Flight())
	for id := range d.emptied {
		if !slices.Contains(emptied, id) {
			delete(d.emptied, id)
		}
	}
	for _, id := range emptied {
		if d.emptied[id].IsZero() {
			d.emptied[id] = v.Now
		}
		if v.Store(id).Stats.GetGarbageSlices() > 0 && v.Now.Sub(d.emptied[id]) < garbagePatience {
			continue
		}
		_, err := d.m.Propose(ctx, &pdpb.Command{Command: &pdpb.Command_PutStoreState{
			PutStoreState: &pdpb.PutStoreState{
				StoreId: id, State: metapb.StoreState_STORE_STATE_GONE,
			},
		}})
		if err != nil {
			continue // the next pass tries again
		}
		d.s.o.Logger.Info("store is gone", "store", id, "why", "it was decommissioned and is empty")
		d.journal.add(&pdpb.Decision{
			Kind: pdpb.DecisionKind_DECISION_KIND_STORE, StoreIds: []uint64{id},
			What: fmt.Sprintf("store %d is gone", id), Why: "it was decommissioned and is empty",
		})
	}
}

// limits bound the operators.
func limits(s settings.Settings) operator.Limits {
	return operator.Limits{
		StoreMoves: s.StoreMoves, LeaderTransfers: s.LeaderTransfers, Splits: maxSplits,
		Operators: maxOperators, StepTimeout: s.OperatorTimeout,
		ImageBytesPerSecond: s.ImageBytesPerSecond,
	}
}

func (d *driver) run(ctx context.Context) error {
	pass := time.NewTimer(passInterval)
	defer pass.Stop()
	persist := time.NewTicker(persistInterval)
	defer persist.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-pass.C:
			began := time.Now()
			d.pass(ctx, began)
			pass.Reset(max(passInterval, passRest*time.Since(began)))
		case <-persist.C:
			d.persist(ctx)
		}
	}
}

// pass plans once and sends the orders of everything in flight.
//
// Law P5: orders come from the PD that leads. It is asked through the log after
// the last pass, so one that was cut off from its group orders nothing.
func (d *driver) pass(ctx context.Context, now time.Time) {
	confirm, cancel := context.WithTimeout(ctx, confirmTimeout)
	defer cancel()
	if d.oracle.Confirm(confirm) != nil {
		d.mu.Lock()
		d.mu.waiting = "PD's group does not confirm that this node leads"
		d.mu.Unlock()
		return
	}
	d.topology.PutStores(d.m.Stores(), now)
	d.operators.SetLimits(limits(d.settings()))
	v := d.view(now)
	waiting := d.whyWait(v, now)
	var verdicts []*pdpb.Verdict
	if waiting == "" {
		verdicts = d.plan(ctx, v, now)
	}
	d.carry(ctx, v, now)
	d.retire(ctx, v)
	allow := func(r *topology.Range, s operator.Step) string { return schedule.Allow(v, r, s) }
	orders, ended := d.operators.Advance(d.topology.Range, allow, now)
	for _, s := range d.operators.Steps() {
		d.journal.operator(pdpb.DecisionKind_DECISION_KIND_STEP_DONE, &s.Operator,
			s.Operator.Steps[s.Index].String(), fmt.Sprintf("step %d of %d, took %s", s.Index+1,
				len(s.Operator.Steps), s.Took.Round(time.Millisecond)))
	}
	for _, line := range d.refusals.lines(verdicts, now) {
		d.journal.add(line)
	}
	for _, e := range ended {
		d.report(e, now)
		d.moveEnded(e, now)
	}
	d.send(orders)
	d.mu.Lock()
	d.mu.verdicts, d.mu.waiting = verdicts, waiting
	d.mu.Unlock()
	d.measure(v, len(verdicts), time.Since(now))
}

func (d *driver) view(now time.Time) topology.View {
	v, s := d.topology.View(now), d.settings()
	v.DownAfter = s.StoreDownAfter
	v.SilentAfter = silentHeartbeats * s.StoreHeartbeat
	v.MissingAfter, v.StaleAfter = missingAfter, max(s.StoreDownAfter, time.Minute)
	v.Replicas, v.SplitSizeBytes = s.Replicas, s.SplitSizeBytes
	v.SplitLoadOps, v.LocationLabels = s.SplitLoadOps, s.LocationLabels
	v.HighWaterPercent, v.TolerancePercent = s.HighWaterPercent, s.TolerancePercent
	v.Rules = d.m.Rules()
	if p := d.paused(now); p != nil {
		v.Still = "paused by hand until " + utc(p)
	} else {
		v.Still = d.carrier.still()
	}
	return v
}

// whyWait holds planning back while people want it so, and after a change of
// leader until most ranges have told how they are.
func (d *driver) whyWait(v topology.View, now time.Time) string {
	if p := d.paused(now); p.GetAll() {
		return "paused by hand, repair too, until " + utc(p)
	}
	reported := 0
	for _, r := range v.Ranges {
		if !r.Reported.IsZero() {
			reported++
		}
	}
	if 10*reported >= 9*len(v.Ranges) || now.Sub(d.began) > d.s.o.ScheduleAfter {
		return ""
	}
	return fmt.Sprintf("%d of %d ranges have reported since this PD leads", reported, len(v.Ranges))
}

// paused is the pause in force, or nil.
func (d *driver) paused(now time.Time) *pdpb.Pause {
	if p := d.m.Pause(); uint64(now.UnixMilli()) < p.GetUntilUnixMs() {
		return p
	}
	return nil
}

// utc renders the end of a pause.
func utc(p *pdpb.Pause) string {
	return time.UnixMilli(int64(p.GetUntilUnixMs())).UTC().Format(time.RFC3339)
}

// plan asks the planners and begins what they want.
func (d *driver) plan(ctx context.Context, v topology.View, now time.Time) []*pdpb.Verdict {
	plan := schedule.Schedule(v, d.operators.Flight())
	verdicts := make([]*pdpb.Verdict, 0, min(len(plan.Verdicts), maxVerdicts))
	say := func(w schedule.Verdict) {
		if len(verdicts) < maxVerdicts {
			verdicts = append(verdicts, &pdpb.Verdict{
				RangeId: w.RangeID, StoreId: w.StoreID, By: w.By, Reason: w.Reason, Remedy: w.Remedy,
			})
		}
	}
	for _, w := range plan.Verdicts {
		say(w)
	}
	claimed, pause := d.claims(), d.paused(now)
	for _, op := range plan.Operators {
		why := ""
		switch {
		case op.By == schedule.BySplit && pause != nil:
			why = "splitting is paused by hand until " + utc(pause)
		case claimed[op.RangeID] && op.Priority > operator.Repair:
			why = "it waits for the plan under way"
		default:
			why = d.admit(ctx, op, now)
		}
		if why != "" {
			say(schedule.Verdict{RangeID: op.RangeID, By: op.By, Reason: why})
		}
	}
	return verdicts
}

// admit gives the operator its ids and begins it; else it says why not.
func (d *driver) admit(ctx context.Context, op *operator.Operator, now time.Time) string {
	if why := d.operators.Room(op); why != "" {
		return why
	}
	if err := d.name(ctx, op); err != nil {
		return err.Error()
	}
	r := d.topology.Range(op.RangeID)
	if r == nil {
		return "the range is gone"
	}
	if err := d.operators.Admit(op, r, now); err != nil {
		return err.Error()
	}
	d.noteBegan(op)
	return ""
}

func (d *driver) noteBegan(op *operator.Operator) {
	d.s.o.Logger.Info("operator begins", "range", op.RangeID, "by", op.By, "op", op.String())
	d.journal.operator(pdpb.DecisionKind_DECISION_KIND_BEGAN, op, op.What(), op.Reason)
}

// begin starts an operator that a person asked for; it says why not, or nothing.
func (d *driver) begin(ctx context.Context, op *operator.Operator) string {
	op.By, op.Priority = schedule.ByHand, operator.ByHand
	return d.admit(ctx, op, time.Now())
}

// name gives new replicas their ids, which are never used again.
func (d *driver) name(ctx context.Context, op *operator.Operator) error {
	named := map[uint64]uint64{}
	for i, s := range op.Steps {
		if s.StoreID == 0 || s.ReplicaID != 0 {
			continue
		}
		if named[s.StoreID] == 0 {
			r, err := d.m.Propose(ctx, &pdpb.Command{Command: &pdpb.Command_AllocateIds{
				AllocateIds: &pdpb.AllocateIDs{Count: 1},
			}})
			if err != nil {
				return fmt.Errorf("pd: name a replica: %w", err)
			}
			named[s.StoreID] = r.GetFirstId()
		}
		op.Steps[i].ReplicaID = named[s.StoreID]
	}
	return nil
}

// split admits a manual split; it says why not, or nothing.
func (d *driver) split(r *topology.Range, key []byte) string {
	op := &operator.Operator{
		RangeID: r.Range.GetRangeId(), By: schedule.ByHand, Priority: operator.ByHand,
		Reason: "split: asked for by hand", Leader: r.Leader.GetStoreId(),
		Steps: schedule.SplitSteps(r, bytes.Clone(key)),
	}
	switch {
	case r.Leader.GetStoreId() == 0 || r.Reported.IsZero():
		return "its leaseholder has not reported yet"
	case r.Report.GetHasUnbornChildren():
		return "waits for the birth of a child"
	}
	if why := d.operators.Room(op); why != "" {
		return why
	}
	if err := d.operators.Admit(op, r, time.Now()); err != nil {
		return err.Error()
	}
	d.noteBegan(op)
	return ""
}

func (d *driver) report(e operator.Ended, now time.Time) {
	took := now.Sub(e.Operator.Began).Round(time.Millisecond)
	if e.Failure != "" {
		d.s.metrics.operators.WithLabelValues("failed").Inc()
		d.journal.operator(pdpb.DecisionKind_DECISION_KIND_FAILED, e.Operator, e.Operator.What(),
			e.Failure)
		d.s.o.Logger.Warn("operator given up",
			"range", e.Operator.RangeID, "op", e.Operator.String(), "why", e.Failure, "took", took)
		return
	}
	d.s.metrics.operators.WithLabelValues("done").Inc()
	d.journal.operator(pdpb.DecisionKind_DECISION_KIND_DONE, e.Operator, e.Operator.What(),
		fmt.Sprintf("took %s; %s", took, e.Operator.Reason))
	d.s.o.Logger.Info("operator done",
		"range", e.Operator.RangeID, "op", e.Operator.String(), "took", took)
}

// persist writes changed descriptors down, so that the next start is fast. It
// is never needed for correctness.
func (d *driver) persist(ctx context.Context) {
	ranges, dropped := d.topology.TakeDirty()
	ranges = d.withBirth(ranges)
	if len(ranges)+len(dropped) == 0 {
		return
	}
	_, err := d.m.Propose(ctx, &pdpb.Command{Command: &pdpb.Command_PutRanges{
		PutRanges: &pdpb.PutRanges{Ranges: ranges, DroppedRangeIds: dropped},
	}})
	if err != nil {
		d.topology.PutBack(ranges, dropped)
	}
}

// withBirth adds the first range, once it was reported, until it is written down
// that it was: after that its store is never again told to bear it.
func (d *driver) withBirth(ranges []*metapb.Range) []*metapb.Range {
	first, born := d.m.FirstRange()
	if born || first == nil {
		return ranges
	}
	r := d.topology.Range(first.GetRangeId())
	if r == nil || r.Reported.IsZero() {
		return ranges
	}
	return append(ranges, r.Range)
}

func (d *driver) verdictList() []*pdpb.Verdict {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.mu.verdicts
}

func (d *driver) waiting() string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.mu.waiting
}

func (d *driver) measure(v topology.View, verdicts int, took time.Duration) {
	m := d.s.metrics
	m.ranges.Set(float64(len(v.Ranges)))
	m.verdicts.Set(float64(verdicts))
	m.inFlight.Set(float64(len(d.operators.List(v.Now))))
	m.pass.Observe(took.Seconds())
	count := map[metapb.StoreState]int{}
	for _, s := range v.Stores {
		count[v.State(s)]++
	}
	for state, name := range metapb.StoreState_name {
		if state != 0 {
			m.stores.WithLabelValues(name).Set(float64(count[metapb.StoreState(state)]))
		}
	}
}
