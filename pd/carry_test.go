package pd

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	metapb "github.com/ridgekv/ridge/proto/ridge/meta/v1"
	pdpb "github.com/ridgekv/ridge/proto/ridge/pd/v1"
)

// splitWorld divides the first range of a world at each key.
func splitWorld(t *testing.T, c *cluster, w *world, at ...string) {
	t.Helper()
	for i, key := range at {
		eventually(t, "a split", func() error {
			if _, err := c.client().SplitRange(testContext(t),
				&pdpb.SplitRangeRequest{Key: []byte(key)}); err != nil {
				return err
			}
			w.mu.Lock()
			defer w.mu.Unlock()
			if len(w.ranges) != i+2 {
				return fmt.Errorf("%d ranges", len(w.ranges))
			}
			return nil
		})
	}
}

func decommission(id uint64) *pdpb.PlanSubject {
	return &pdpb.PlanSubject{Subject: &pdpb.PlanSubject_DecommissionStoreId{DecommissionStoreId: id}}
}

// decisions are the lines of the journal, newest first.
func decisions(t *testing.T, c *cluster) []*pdpb.Decision {
	t.Helper()
	r, err := c.admin().Explain(testContext(t), &pdpb.ExplainRequest{
		Subject: &pdpb.ExplainRequest_Balance{Balance: true}, Limit: 4096,
	})
	want(t, "explaining", r.GetError(), err, noReason)
	return r.GetDecisions()
}

// begun makes a plan and begins it, as soon as nothing else is under way.
func begun(t *testing.T, c *cluster, subject *pdpb.PlanSubject) *pdpb.Plan {
	t.Helper()
	ctx := testContext(t)
	var plan *pdpb.Plan
	eventually(t, "a plan to begin", func() error {
		p, err := c.admin().MakePlan(ctx, &pdpb.MakePlanRequest{Subject: subject})
		if err = errors.Join(err, asError(p.GetError())); err != nil {
			return err
		}
		plan = p.GetPlan()
		if !plan.GetComplete() || len(plan.GetMoves()) == 0 {
			return fmt.Errorf("plan %v", plan)
		}
		r, err := c.admin().ApplyPlan(ctx, &pdpb.ApplyPlanRequest{PlanId: plan.GetPlanId()})
		return errors.Join(err, asError(r.GetError()))
	})
	return plan
}

func ended(t *testing.T, c *cluster, id string) *pdpb.PlanProgress {
	t.Helper()
	var p *pdpb.PlanProgress
	eventually(t, "the plan to end", func() error {
		r, err := c.admin().GetPlanProgress(testContext(t), &pdpb.GetPlanProgressRequest{PlanId: id})
		if err = errors.Join(err, asError(r.GetError())); err != nil {
			return err
		}
		if p = r.GetProgress(); p.GetState() == pdpb.PlanState_PLAN_STATE_RUNNING {
			return fmt.Errorf("progress %v", p)
		}
		return nil
	})
	return p
}

// A plan is carried out as it was shown: each of its moves and no other, and then
// the store has its state. What is over is not done twice.
func TestPlanIsCarriedOut(t *testing.T) {
	c := startCluster(t, 1, nil)
	w := startWorld(t, c, 3)
	w.await("three voters", 1, 1, 2, 3)
	splitWorld(t, c, w, "b", "c", "d")
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { w.store(ctx, "s4"); close(done) }()
	defer func() { cancel(); <-done }()
	plan := begun(t, c, decommission(2))
	p := ended(t, c, plan.GetPlanId())
	if p.GetState() != pdpb.PlanState_PLAN_STATE_DONE || int(p.GetDone()) != len(plan.GetMoves()) {
		t.Fatalf("planned %v, ended as %v", plan, p)
	}
	w.mu.Lock()
	for id, r := range w.ranges {
		for _, m := range r.GetReplicas() {
			if m.GetStoreId() == 2 {
				t.Errorf("range %d still has a replica on store 2", id)
			}
		}
	}
	w.mu.Unlock()
	began := map[string]int{}
	for _, d := range decisions(t, c) {
		if d.GetKind() == pdpb.DecisionKind_DECISION_KIND_BEGAN &&
			strings.HasPrefix(d.GetWhy(), "plan "+plan.GetPlanId()) {
			began[fmt.Sprint(d.GetRangeIds(), d.GetWhat())]++
		}
	}
	for _, m := range plan.GetMoves() {
		what := fmt.Sprint([]uint64{m.GetRangeId()}, strings.Join(m.GetSteps(), ", "))
		if began[what]--; began[what] == 0 {
			delete(began, what)
		}
	}
	if len(began) != 0 {
		t.Errorf("more or less was begun than planned: %v", began)
	}
	l, err := c.client().ListStores(testContext(t), &pdpb.ListStoresRequest{})
	want(t, "listing", l.GetError(), err, noReason)
	for _, s := range l.GetStores() {
		switch state := s.GetStore().GetState(); {
		case s.GetStore().GetStoreId() != 2:
		case state != metapb.StoreState_STORE_STATE_LEAVING && state != metapb.StoreState_STORE_STATE_GONE:
			t.Errorf("store 2 is %s", state)
		}
	}
	again, err := c.admin().ApplyPlan(testContext(t), &pdpb.ApplyPlanRequest{PlanId: plan.GetPlanId()})
	if want(t, "the same call", again.GetError(), err, noReason); again.GetProgress().GetState() !=
		pdpb.PlanState_PLAN_STATE_DONE {
		t.Errorf("the same call: %v", again)
	}
}

// A plan is not begun upon what has changed, ends as soon as something does, and
// says what; nobody else moves its ranges meanwhile.
func TestPlanDrifts(t *testing.T) {
	c := startCluster(t, 1, func(o *Options) { o.StoreMoves = 1 })
	w := startWorld(t, c, 4)
	splitWorld(t, c, w, "b", "c", "d", "e", "f", "g")
	ctx, admin := testContext(t), c.admin()
	for id, words := range map[string]string{"77": "not known", "": "not known"} {
		r, err := admin.ApplyPlan(ctx, &pdpb.ApplyPlanRequest{PlanId: id})
		refusedWith(t, "no such plan", r.GetError(), err, words)
	}
	g, err := admin.GetPlanProgress(ctx, &pdpb.GetPlanProgressRequest{})
	refusedWith(t, "no progress", g.GetError(), err, "no such plan")
	s, err := admin.StopPlan(ctx, &pdpb.StopPlanRequest{})
	refusedWith(t, "nothing to stop", s.GetError(), err, "no such plan")

	// An old plan: a leader has moved since.
	var old *pdpb.Plan
	eventually(t, "a leader to move after the plan", func() error {
		p, err := admin.MakePlan(ctx, &pdpb.MakePlanRequest{Subject: decommission(2)})
		if err = errors.Join(err, asError(p.GetError())); err != nil {
			return err
		}
		old = p.GetPlan()
		if !old.GetComplete() || len(old.GetMoves()) == 0 {
			return fmt.Errorf("plan %v", old)
		}
		id := old.GetMoves()[0].GetRangeId()
		w.mu.Lock()
		to := uint64(0)
		for _, m := range w.ranges[id].GetReplicas() {
			if m.GetStoreId() != w.leaders[id] {
				to = m.GetStoreId()
			}
		}
		w.mu.Unlock()
		r, err := admin.MoveLeader(ctx, &pdpb.MoveLeaderRequest{RangeId: id, StoreId: to})
		return errors.Join(err, asError(r.GetError()))
	})
	r, err := admin.ApplyPlan(ctx, &pdpb.ApplyPlanRequest{PlanId: old.GetPlanId()})
	refusedWith(t, "an old plan", r.GetError(), err, "nothing was done",
		fmt.Sprintf("range %d", old.GetMoves()[0].GetRangeId()))

	// A store that drains ends it.
	plan := begun(t, c, decommission(2))
	d, err := admin.DrainStore(ctx, &pdpb.DrainStoreRequest{StoreId: 3})
	want(t, "draining", d.GetError(), err, noReason)
	p := ended(t, c, plan.GetPlanId())
	if p.GetState() != pdpb.PlanState_PLAN_STATE_ABORTED || p.GetDone() >= p.GetMoves() ||
		!strings.Contains(strings.Join(p.GetChanged(), "; "), "store 3 is draining, it was up") {
		t.Errorf("store 3 drains, the plan ended as %v", p)
	}
	u, err := admin.ResumeStore(ctx, &pdpb.ResumeStoreRequest{StoreId: 3})
	want(t, "resuming", u.GetError(), err, noReason)

	// By hand.
	plan = begun(t, c, decommission(2))
	s, err = admin.StopPlan(ctx, &pdpb.StopPlanRequest{PlanId: plan.GetPlanId()})
	want(t, "stopping", s.GetError(), err, noReason)
	p = ended(t, c, plan.GetPlanId())
	if p.GetState() != pdpb.PlanState_PLAN_STATE_ABORTED || p.GetDone() >= p.GetMoves() ||
		!strings.Contains(strings.Join(p.GetChanged(), "; "), "stopped by hand") {
		t.Errorf("stopped, the plan ended as %v", p)
	}
	w.routes()
}

// Scattering spreads what lies on three of five stores, over real PD.
func TestScatter(t *testing.T) {
	c := startCluster(t, 1, nil)
	w := startWorld(t, c, 3)
	w.await("three voters", 1, 1, 2, 3)
	splitWorld(t, c, w, "t/", "t/a", "t/b", "t/c", "t/d", "u")
	p, err := c.admin().SetSchedule(testContext(t), &pdpb.SetScheduleRequest{ForMs: 600_000})
	want(t, "pausing", p.GetError(), err, noReason)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{}, 2)
	for _, name := range []string{"s4", "s5"} {
		go func() { w.store(ctx, name); done <- struct{}{} }()
	}
	defer func() { cancel(); <-done; <-done }()
	eventually(t, "five stores", func() error {
		w.mu.Lock()
		defer w.mu.Unlock()
		if len(w.held) != 5 {
			return errors.New("not yet")
		}
		return nil
	})
	bad, err := c.admin().MakePlan(testContext(t), &pdpb.MakePlanRequest{Subject: &pdpb.PlanSubject{
		Subject: &pdpb.PlanSubject_Scatter{Scatter: &metapb.Span{Start: []byte("z"), End: []byte("y")}},
	}})
	refusedWith(t, "an inverted span", bad.GetError(), err, "inverted")
	plan := begun(t, c, &pdpb.PlanSubject{Subject: &pdpb.PlanSubject_Scatter{
		Scatter: &metapb.Span{Start: []byte("t/"), End: []byte("u")},
	}})
	if x := ended(t, c, plan.GetPlanId()); x.GetState() != pdpb.PlanState_PLAN_STATE_DONE {
		t.Fatalf("ended as %v", x)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	replicas, leaders := map[uint64]int{}, map[uint64]int{}
	for id, r := range w.ranges {
		if !strings.HasPrefix(string(r.GetSpan().GetStart()), "t/") {
			continue
		}
		leaders[w.leaders[id]]++
		for _, m := range r.GetReplicas() {
			replicas[m.GetStoreId()]++
		}
	}
	for store := uint64(1); store <= 5; store++ { // five ranges, fifteen replicas
		if replicas[store] != 3 || leaders[store] != 1 {
			t.Errorf("replicas %v, leaders %v", replicas, leaders)
		}
	}
}
