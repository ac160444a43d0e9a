package pd

import (
	"context"
	"errors"
	"testing"

	metapb "github.com/ridgekv/ridge/proto/ridge/meta/v1"
	pdpb "github.com/ridgekv/ridge/proto/ridge/pd/v1"
)

// What cannot be done is refused with the reason, and with what would make it
// possible; and nothing was done.
func TestRefused(t *testing.T) {
	c := startCluster(t, 1, func(o *Options) { o.LocationLabels = []string{"zone"} })
	w := startStores(t, c, "s1@a", "s2@b", "s3@c")
	w.await("three voters", 1, 1, 2, 3)
	ctx, admin, client := testContext(t), c.admin(), c.client()
	type told = func(context.Context) (*pdpb.PDError, error)
	state := func(to metapb.StoreState, id uint64) told {
		return func(ctx context.Context) (*pdpb.PDError, error) {
			switch to {
			case metapb.StoreState_STORE_STATE_DRAINING:
				r, err := admin.DrainStore(ctx, &pdpb.DrainStoreRequest{StoreId: id})
				return r.GetError(), err
			case metapb.StoreState_STORE_STATE_LEAVING:
				r, err := admin.DecommissionStore(ctx, &pdpb.DecommissionStoreRequest{StoreId: id})
				return r.GetError(), err
			case metapb.StoreState_STORE_STATE_GONE:
				r, err := admin.ForgetStore(ctx, &pdpb.ForgetStoreRequest{StoreId: id})
				return r.GetError(), err
			}
			r, err := admin.ResumeStore(ctx, &pdpb.ResumeStoreRequest{StoreId: id})
			return r.GetError(), err
		}
	}
	plan := func(s *pdpb.PlanSubject) told {
		return func(ctx context.Context) (*pdpb.PDError, error) {
			r, err := admin.MakePlan(ctx, &pdpb.MakePlanRequest{Subject: s})
			return r.GetError(), err
		}
	}
	move := func(id, from, to uint64, force bool) told {
		return func(ctx context.Context) (*pdpb.PDError, error) {
			r, err := admin.MoveReplica(ctx, &pdpb.MoveReplicaRequest{
				RangeId: id, FromStoreId: from, ToStoreId: to, Force: force,
			})
			return r.GetError(), err
		}
	}
	lead := func(id, to uint64) told {
		return func(ctx context.Context) (*pdpb.PDError, error) {
			r, err := admin.MoveLeader(ctx, &pdpb.MoveLeaderRequest{RangeId: id, StoreId: to})
			return r.GetError(), err
		}
	}
	set := func(r *pdpb.PlacementRule) told {
		return func(ctx context.Context) (*pdpb.PDError, error) {
			x, err := client.SetRule(ctx, &pdpb.SetRuleRequest{Rule: r})
			return x.GetError(), err
		}
	}
	why := func(r *pdpb.ExplainRequest) told {
		return func(ctx context.Context) (*pdpb.PDError, error) {
			x, err := admin.Explain(ctx, r)
			return x.GetError(), err
		}
	}
	whatIf := func(restart bool, ids ...uint64) told {
		return func(ctx context.Context) (*pdpb.PDError, error) {
			r, err := admin.WhatIf(ctx, &pdpb.WhatIfRequest{StoreIds: ids, Restart: restart})
			return r.GetError(), err
		}
	}
	const (
		up       = metapb.StoreState_STORE_STATE_UP
		draining = metapb.StoreState_STORE_STATE_DRAINING
		leaving  = metapb.StoreState_STORE_STATE_LEAVING
		gone     = metapb.StoreState_STORE_STATE_GONE
		listed   = "`ridge store list` names them"
	)
	type refusal struct {
		what  string
		call  told
		words []string
	}
	check := func(list []refusal) {
		t.Helper()
		for _, x := range list {
			e, err := x.call(ctx)
			refusedWith(t, x.what, e, err, x.words...)
		}
	}
	check([]refusal{
		{"draining a stranger", state(draining, 9), []string{"no store 9", listed}},
		{"decommissioning a stranger", state(leaving, 9), []string{"no store 9", listed}},
		{"forgetting a stranger", state(gone, 9), []string{"no store 9", listed}},
		{"resuming a stranger", state(up, 9), []string{"no store 9", listed}},
		{"losing a stranger", whatIf(false, 1, 9), []string{"no store 9", listed}},
		{"restarting a stranger", whatIf(true, 9), []string{"no store 9", listed}},
		{"losing nothing", whatIf(false), []string{"no store is named"}},
		{"asking about a stranger", why(&pdpb.ExplainRequest{
			Subject: &pdpb.ExplainRequest_StoreId{StoreId: 9},
		}), []string{"no store 9", listed}},
		{"asking about no range", why(&pdpb.ExplainRequest{
			Subject: &pdpb.ExplainRequest_RangeId{RangeId: 9},
		}), []string{"no range 9", "`ridge range list` names them"}},
		{"moving no range", move(9, 1, 2, false), []string{"no range 9", "`ridge range list`"}},
		{"moving to a stranger", move(1, 1, 9, false), []string{"no store 9", listed}},
		{"moving from where there is none", move(1, 9, 1, false), []string{"on stores 1, 2 and 3"}},
		{"moving to where there is one", move(1, 1, 2, true), []string{
			"has a replica on store 2 already", "choose another store",
		}},
		{"leading no range", lead(9, 1), []string{"no range 9", "`ridge range list`"}},
		{"leading elsewhere", lead(1, 9), []string{"no replica on store 9", "move one there first"}},
		{"too few stores for the replicas", state(leaving, 1), []string{
			"left that are up: 2", "add a store, or set fewer replicas",
		}},
		{"planning that", plan(decommission(1)), []string{"left that are up: 2", "add a store"}},
		{"a rule of a zone that is not there", set(zoneRule("r", "", "", "z")), []string{
			"none fulfil that", "label or add 3 more",
		}},
		{"planning it", plan(planOfRule(zoneRule("r", "", "", "z"))), []string{"label or add 3 more"}},
		{"planning nothing", plan(nil), []string{"no subject"}},
	})
	w.await("nothing to have happened", 1, 1, 2, 3)

	// One more store, in a zone that has a replica; two are drained.
	ctx2, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { w.store(ctx2, "s4@c"); close(done) }()
	defer func() { cancel(); <-done }()
	eventually(t, "the fourth store", func() error {
		r, err := admin.DescribeStore(ctx, &pdpb.DescribeStoreRequest{StoreId: 4})
		if err = errors.Join(err, asError(r.GetError())); err == nil &&
			r.GetStore().GetStats() == nil {
			err = errors.New("not heard yet")
		}
		return err
	})
	e, err := set(&pdpb.PlacementRule{
		Id: "three", Span: &metapb.Span{}, Voters: 3, Constraints: []*pdpb.LabelConstraint{{
			Key: "zone", Op: pdpb.LabelConstraint_OP_NOT_IN, Values: []string{"x"},
		}},
	})(ctx)
	want(t, "a rule", e, err, noReason)
	e, err = state(draining, 1)(ctx)
	want(t, "draining one", e, err, noReason)
	e, err = state(draining, 2)(ctx)
	want(t, "draining two", e, err, noReason)
	heard := func(what string, so func(*pdpb.Route) bool) {
		t.Helper()
		eventually(t, "PD to hear "+what, func() error {
			r, err := admin.Explain(ctx, &pdpb.ExplainRequest{
				Subject: &pdpb.ExplainRequest_RangeId{RangeId: 1},
			})
			if err = errors.Join(err, asError(r.GetError())); err == nil && !so(r.GetRoute()) {
				err = errors.New("not yet")
			}
			return err
		})
	}
	heard("that store 3 leads", func(r *pdpb.Route) bool { return r.GetLeader().GetStoreId() == 3 })
	check([]refusal{
		{"draining the last one", state(draining, 3), []string{
			"could be led by no other store", "add stores or resume drained ones",
		}},
		{"leading on one that drains", lead(1, 1), []string{"draining", "`ridge store resume`"}},
		{"moving into a zone that has one", move(1, 1, 4, false), []string{
			"shares its zone", "choose another store, or --force",
		}},
		{"too few stores that stay up", state(leaving, 4), []string{"left that are up: 1"}},
	})
	for id := range uint64(2) {
		e, err = state(up, id+1)(ctx)
		want(t, "resuming", e, err, noReason)
	}
	e, err = set(zoneRule("three", "", "", "c"))(ctx)
	refusedWith(t, "a rule of two stores", e, err, "wants 3 voters", "label or add 1 more")
	// Three stores fulfil this one: none of them can be spared.
	notA := zoneRule("three", "", "", "a")
	notA.Constraints[0].Op = pdpb.LabelConstraint_OP_NOT_IN
	e, err = set(notA)(ctx)
	want(t, "the rule again", e, err, noReason)
	w.await("the rule to be followed", 1, 2, 3, 4)
	heard("of it", func(r *pdpb.Route) bool { return len(r.GetRange().GetReplicas()) == 3 })
	check([]refusal{
		{"a store that a rule needs", state(leaving, 2), []string{
			`rule "three" wants 3 voters`, "zone not in a", "fulfil that: 2", "label or add 1 more",
		}},
		{"planning that", plan(decommission(2)), []string{`rule "three" wants 3 voters`}},
		{"moving against a rule", move(1, 2, 1, true), []string{
			`rule "three" does not allow range 1 on store 1`, "zone not in a", "or change the rule",
		}},
	})
	w.await("nothing to have happened", 1, 2, 3, 4)
}
