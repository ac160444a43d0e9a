package pd

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	metapb "github.com/ridgekv/ridge/proto/ridge/meta/v1"
	pdpb "github.com/ridgekv/ridge/proto/ridge/pd/v1"
)

// zoneRule wants a span on the stores of a zone.
func zoneRule(id, start, end, zone string) *pdpb.PlacementRule {
	return &pdpb.PlacementRule{
		Id: id, Voters: 3, Span: &metapb.Span{Start: []byte(start), End: []byte(end)},
		Constraints: []*pdpb.LabelConstraint{{
			Key: "zone", Op: pdpb.LabelConstraint_OP_IN, Values: []string{zone},
		}},
	}
}

func planOfRule(r *pdpb.PlacementRule) *pdpb.PlanSubject {
	return &pdpb.PlanSubject{Subject: &pdpb.PlanSubject_Rule{Rule: r}}
}

// sixStores begins a world of three stores, which have all ranges, and adds three
// of the zone eu; nothing is balanced.
func sixStores(t *testing.T) (*cluster, *world) {
	t.Helper()
	c := startCluster(t, 1, nil)
	w := startWorld(t, c, 3)
	w.await("three voters", 1, 1, 2, 3)
	p, err := c.admin().SetSchedule(testContext(t), &pdpb.SetScheduleRequest{ForMs: 600_000})
	want(t, "pausing", p.GetError(), err, noReason)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{}, 3)
	for _, name := range []string{"s4@eu", "s5@eu", "s6@eu"} {
		go func() { w.store(ctx, name); done <- struct{}{} }()
	}
	t.Cleanup(func() { cancel(); <-done; <-done; <-done })
	eventually(t, "six stores that are heard", func() error {
		r, err := c.client().ListStores(testContext(t), &pdpb.ListStoresRequest{})
		if err = errors.Join(err, asError(r.GetError())); err != nil {
			return err
		}
		for _, s := range r.GetStores() {
			if s.GetStats() == nil || s.GetStore().GetState() != metapb.StoreState_STORE_STATE_UP {
				return fmt.Errorf("store %v", s)
			}
		}
		if len(r.GetStores()) != 6 {
			return fmt.Errorf("%d stores", len(r.GetStores()))
		}
		return nil
	})
	return c, w
}

// A rule that is planned and applied is set, ranges are divided where it begins
// and ends, and what lies within moves; nothing else does.
func TestRuleIsCarriedOut(t *testing.T) {
	c, w := sixStores(t)
	subject := planOfRule(zoneRule("eu", "eu/", "eu0", "eu"))
	plan := begun(t, c, subject)
	if plan.GetSplits() != 2 || plan.GetReplicaMoves() != 3 || plan.GetLowestMargin() != 1 {
		t.Errorf("plan %v", plan)
	}
	p := ended(t, c, plan.GetPlanId())
	if p.GetState() != pdpb.PlanState_PLAN_STATE_DONE || int(p.GetDone()) != len(plan.GetMoves()) {
		t.Fatalf("planned %v, ended as %v", plan, p)
	}
	w.mu.Lock()
	for id, r := range w.ranges {
		first := uint64(1)
		if string(r.GetSpan().GetStart()) == "eu/" {
			first = 4
		}
		for _, m := range r.GetReplicas() {
			if m.GetStoreId() < first || m.GetStoreId() > first+2 {
				t.Errorf("range %d: %v", id, r)
			}
		}
	}
	if len(w.ranges) != 3 {
		t.Errorf("%d ranges", len(w.ranges))
	}
	w.mu.Unlock()
	rules, err := c.client().ListRules(testContext(t), &pdpb.ListRulesRequest{})
	want(t, "listing", rules.GetError(), err, noReason)
	if len(rules.GetRules()) != 1 || rules.GetRules()[0].GetId() != "eu" {
		t.Errorf("rules %v", rules)
	}
	began := 0
	for _, d := range decisions(t, c) {
		if d.GetKind() != pdpb.DecisionKind_DECISION_KIND_BEGAN {
			continue
		}
		if strings.HasPrefix(d.GetWhy(), "plan "+plan.GetPlanId()) {
			began++
		}
	}
	if began != len(plan.GetMoves()) {
		t.Errorf("%d moves were planned, %d begun", len(plan.GetMoves()), began)
	}
	w.routes()
}

// A plan of a rule that nobody can follow does not begin; one that rests upon
// other rules neither; one whose rules change ends, and says what stays.
func TestRulePlanDrifts(t *testing.T) {
	c, _ := sixStores(t)
	ctx, admin := testContext(t), c.admin()
	bad, err := admin.MakePlan(ctx, &pdpb.MakePlanRequest{
		Subject: planOfRule(zoneRule("us", "us/", "us0", "us")),
	})
	refusedWith(t, "a rule nobody can follow", bad.GetError(), err, "label or add 3 more")
	old, err := admin.MakePlan(ctx, &pdpb.MakePlanRequest{
		Subject: planOfRule(zoneRule("eu", "eu/", "eu0", "eu")),
	})
	want(t, "a plan", old.GetError(), err, noReason)
	set, err := c.client().SetRule(ctx, &pdpb.SetRuleRequest{Rule: &pdpb.PlacementRule{
		Id: "other", Voters: 3, Span: &metapb.Span{Start: []byte("x"), End: []byte("y")},
	}})
	want(t, "another rule", set.GetError(), err, noReason)
	r, err := admin.ApplyPlan(ctx, &pdpb.ApplyPlanRequest{PlanId: old.GetPlan().GetPlanId()})
	refusedWith(t, "an old plan", r.GetError(), err, "nothing was done", `rule "other" is new`)

	plan := begun(t, c, planOfRule(zoneRule("eu", "", "", "eu")))
	eventually(t, "the rule to be set", func() error {
		l, err := c.client().ListRules(ctx, &pdpb.ListRulesRequest{})
		if err == nil && !slices.ContainsFunc(l.GetRules(), func(r *pdpb.PlacementRule) bool {
			return r.GetId() == "eu"
		}) {
			err = errors.New("not yet")
		}
		return err
	})
	gone, err := c.client().DeleteRule(ctx, &pdpb.DeleteRuleRequest{Id: "other"})
	want(t, "deleting a rule", gone.GetError(), err, noReason)
	p := ended(t, c, plan.GetPlanId())
	changed := strings.Join(p.GetChanged(), "; ")
	if p.GetState() != pdpb.PlanState_PLAN_STATE_ABORTED ||
		!strings.Contains(changed, `rule "other" was deleted`) ||
		!strings.Contains(changed, `rule "eu" stays set`) {
		t.Errorf("ended as %v", p)
	}
}
