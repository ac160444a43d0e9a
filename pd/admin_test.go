package pd

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"

	metapb "github.com/ridgekv/ridge/proto/ridge/meta/v1"
	pdpb "github.com/ridgekv/ridge/proto/ridge/pd/v1"
)

// refusedWith checks that a call was refused, and that it says so.
func refusedWith(t *testing.T, what string, e *pdpb.PDError, err error, words ...string) {
	t.Helper()
	if err != nil || e == nil {
		t.Errorf("%s: %v, %v; want a refusal", what, e, err)
		return
	}
	for _, w := range words {
		if !strings.Contains(e.GetMessage(), w) {
			t.Errorf("%s: %q does not say %q", what, e.GetMessage(), w)
		}
	}
}

// What a person sets is validated, counts at once, and survives the PD that was
// told; so do the pause and the lines of the journal about both.
func TestSettingsSurviveFailover(t *testing.T) {
	c := startCluster(t, 3, nil)
	ctx := testContext(t)
	admin := c.admin()
	for _, bad := range []map[string]string{
		{"replicas": "2"}, {"replica": "3"}, {"replicas": "5", "store_down_after": "1ms"}, {},
	} {
		r, err := admin.SetSettings(ctx, &pdpb.SetSettingsRequest{Set: bad})
		refusedWith(t, fmt.Sprint(bad), r.GetError(), err)
	}
	r, err := admin.SetSettings(ctx, &pdpb.SetSettingsRequest{
		Set: map[string]string{"replicas": "5", "split_size": "64MB"},
	})
	want(t, "setting", r.GetError(), err, noReason)
	p, err := admin.SetSchedule(ctx, &pdpb.SetScheduleRequest{ForMs: 3_600_000, All: true})
	want(t, "pausing", p.GetError(), err, noReason)
	d := c.nodes[c.leader()].server
	eventually(t, "the journal to be written", func() error {
		for _, x := range d.meta.Load().Journal() {
			if strings.Contains(x.GetWhat(), "paused") {
				return nil
			}
		}
		return errors.New("not yet")
	})
	c.kill(c.leader())
	s, err := c.client().Status(ctx, &pdpb.StatusRequest{})
	want(t, "status", s.GetError(), err, noReason)
	if s.GetConfig().GetReplicas() != 5 || s.GetConfig().GetSplitSizeBytes() != 64<<20 {
		t.Errorf("the next leader tells stores %v", s.GetConfig())
	}
	l, err := c.admin().ListSettings(ctx, &pdpb.ListSettingsRequest{})
	want(t, "listing", l.GetError(), err, noReason)
	for _, x := range l.GetSettings() {
		if x.GetKey() == "replicas" && (!x.GetSet() || x.GetValue() != "5" || x.GetGiven() != "3") {
			t.Errorf("listed %v", x)
		}
	}
	g, err := c.admin().GetSchedule(ctx, &pdpb.GetScheduleRequest{})
	if want(t, "schedule", g.GetError(), err, noReason); !g.GetPause().GetAll() {
		t.Errorf("the pause is gone: %v", g)
	}
	why, err := c.admin().Explain(ctx, &pdpb.ExplainRequest{
		Subject: &pdpb.ExplainRequest_Balance{Balance: true},
	})
	want(t, "explaining", why.GetError(), err, noReason)
	var told []string
	for _, x := range why.GetDecisions() {
		told = append(told, x.GetWhat())
	}
	for _, words := range []string{"setting replicas: 5, was 3", "split_size: 64MiB", "repair too"} {
		if !strings.Contains(strings.Join(told, "\n"), words) {
			t.Errorf("the journal does not tell %q: %q", words, told)
		}
	}
	u, err := c.admin().SetSettings(ctx, &pdpb.SetSettingsRequest{Unset: []string{"replicas"}})
	want(t, "unsetting", u.GetError(), err, noReason)
	s, err = c.client().Status(ctx, &pdpb.StatusRequest{})
	if want(t, "status", s.GetError(), err, noReason); s.GetConfig().GetReplicas() != 3 {
		t.Errorf("unset, but stores are told %v", s.GetConfig())
	}
}

// startWorld runs stores 1 to n in a world.
func startWorld(t *testing.T, c *cluster, n int) *world {
	t.Helper()
	names := make([]string, n)
	for i := range names {
		names[i] = fmt.Sprint("s", i+1)
	}
	return startStores(t, c, names...)
}

// startStores begins a world of stores that join in turn, so that they get their
// ids in that order.
func startStores(t *testing.T, c *cluster, names ...string) *world {
	t.Helper()
	c.leader()
	w := newWorld(t, c)
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	t.Cleanup(wg.Wait)
	t.Cleanup(cancel)
	for i, name := range names {
		wg.Go(func() { w.store(ctx, name) })
		eventually(t, "a store to join", func() error {
			w.mu.Lock()
			defer w.mu.Unlock()
			if len(w.held) <= i {
				return errors.New("not yet")
			}
			return nil
		})
	}
	return w
}

// What PD did and what it refused is told by the next PD too: begun, step by
// step, done; and a refusal once, however long it lasts.
func TestDecisionsSurviveFailover(t *testing.T) {
	c := startCluster(t, 3, nil)
	w := startWorld(t, c, 4)
	ctx := testContext(t)
	var op *pdpb.OperatorInfo
	eventually(t, "a move to begin", func() error {
		w.mu.Lock()
		free, from := uint64(10), uint64(0)
		for _, m := range w.ranges[1].GetReplicas() {
			free, from = free-m.GetStoreId(), m.GetStoreId()
		}
		n := len(w.ranges[1].GetReplicas())
		w.mu.Unlock()
		if n != 3 {
			return fmt.Errorf("%d replicas", n)
		}
		r, err := c.admin().MoveReplica(ctx, &pdpb.MoveReplicaRequest{
			RangeId: 1, FromStoreId: from, ToStoreId: free,
		})
		op = r.GetOperator()
		return errors.Join(err, asError(r.GetError()))
	})
	told := func() error {
		kinds := map[pdpb.DecisionKind]int{}
		for _, d := range decisions(t, c) {
			if d.GetOperatorId() == op.GetOperatorId() {
				kinds[d.GetKind()]++
			}
		}
		if kinds[pdpb.DecisionKind_DECISION_KIND_BEGAN] != 1 ||
			kinds[pdpb.DecisionKind_DECISION_KIND_DONE] != 1 ||
			kinds[pdpb.DecisionKind_DECISION_KIND_STEP_DONE] != len(op.GetSteps())-1 {
			return fmt.Errorf("operator %v, decisions %v", op, kinds)
		}
		return nil
	}
	eventually(t, "the move to be done", told)
	p, err := c.admin().SetSchedule(ctx, &pdpb.SetScheduleRequest{ForMs: 600_000})
	want(t, "pausing", p.GetError(), err, noReason)
	refused := func() int {
		n := 0
		for _, d := range decisions(t, c) {
			if d.GetKind() == pdpb.DecisionKind_DECISION_KIND_REFUSED &&
				strings.Contains(d.GetWhy(), "paused by hand") {
				n++
			}
		}
		return n
	}
	eventually(t, "a refusal to be told", func() error {
		if refused() == 0 {
			return errors.New("not yet")
		}
		return nil
	})
	leader := c.leader()
	eventually(t, "the journal to be written", func() error {
		j := c.nodes[leader].server.meta.Load().Journal()
		if len(j) == 0 || !strings.Contains(j[len(j)-1].GetWhy(), "paused by hand") {
			return errors.New("not yet")
		}
		return nil
	})
	if n := refused(); n != 1 {
		t.Errorf("one refusal was written %d times", n)
	}
	c.kill(leader)
	eventually(t, "the next PD to tell it", told)
	if refused() == 0 {
		t.Error("the refusal is forgotten")
	}
}

// Moves by hand: what makes no sense is refused with the reason; the rest is
// done, unless it is cancelled.
func TestByHand(t *testing.T) {
	c := startCluster(t, 1, nil)
	w := startWorld(t, c, 3)
	w.await("three voters", 1, 1, 2, 3)
	ctx, admin := testContext(t), c.admin()
	for _, x := range []struct {
		rangeID, from, to uint64
		words             string
	}{
		{9, 1, 4, "no range 9: `ridge range list`"},
		{1, 7, 4, "it has them on stores 1, 2 and 3"},
		{1, 1, 2, "a replica on store 2 already"},
		{1, 1, 4, "no store 4"},
	} {
		r, err := admin.MoveReplica(ctx, &pdpb.MoveReplicaRequest{
			RangeId: x.rangeID, FromStoreId: x.from, ToStoreId: x.to,
		})
		refusedWith(t, fmt.Sprint(x), r.GetError(), err, x.words)
	}
	l, err := admin.MoveLeader(ctx, &pdpb.MoveLeaderRequest{RangeId: 1, StoreId: 4})
	refusedWith(t, "leader elsewhere", l.GetError(), err, "no replica on store 4")
	x, err := admin.CancelOperator(ctx, &pdpb.CancelOperatorRequest{OperatorId: 77})
	refusedWith(t, "cancelling nothing", x.GetError(), err, "no operator 77")

	eventually(t, "leadership on store 3", func() error {
		r, err := admin.MoveLeader(ctx, &pdpb.MoveLeaderRequest{RangeId: 1, StoreId: 3})
		if err = errors.Join(err, asError(r.GetError())); err == nil && r.GetOperator() != nil {
			err = errors.New("under way")
		}
		return err
	})
	eventually(t, "an explanation", func() error {
		r, err := admin.Explain(ctx, &pdpb.ExplainRequest{
			Subject: &pdpb.ExplainRequest_Key{Key: []byte("k")},
		})
		if err = errors.Join(err, asError(r.GetError())); err != nil {
			return err
		}
		kinds := map[pdpb.DecisionKind]bool{}
		for _, d := range r.GetDecisions() {
			if strings.Contains(d.GetWhy(), "by hand") {
				kinds[d.GetKind()] = true
			}
		}
		if !kinds[pdpb.DecisionKind_DECISION_KIND_BEGAN] ||
			!kinds[pdpb.DecisionKind_DECISION_KIND_DONE] || len(r.GetFindings()) == 0 {
			return fmt.Errorf("explained %v", r)
		}
		return nil
	})
	for id, words := range map[uint64]string{1: "left that are up: 2", 9: "no store 9"} {
		r, err := admin.DecommissionStore(ctx, &pdpb.DecommissionStoreRequest{StoreId: id})
		refusedWith(t, "decommissioning", r.GetError(), err, words)
		p, err := admin.MakePlan(ctx, &pdpb.MakePlanRequest{Subject: &pdpb.PlanSubject{
			Subject: &pdpb.PlanSubject_DecommissionStoreId{DecommissionStoreId: id},
		}})
		refusedWith(t, "planning it", p.GetError(), err, words)
	}
	rule := &pdpb.PlacementRule{Id: "five", Voters: 5, Span: &metapb.Span{}}
	p, err := admin.MakePlan(ctx, &pdpb.MakePlanRequest{Subject: &pdpb.PlanSubject{
		Subject: &pdpb.PlanSubject_Rule{Rule: rule},
	}})
	refusedWith(t, "planning a rule that nobody can follow", p.GetError(), err, "wants 5 voters",
		"label or add 2 more")
	rule.Voters = 1
	p, err = admin.MakePlan(ctx, &pdpb.MakePlanRequest{Subject: &pdpb.PlanSubject{
		Subject: &pdpb.PlanSubject_Rule{Rule: rule},
	}})
	if want(t, "planning a rule", p.GetError(), err, noReason); len(p.GetPlan().GetMoves()) == 0 {
		t.Errorf("one voter instead of three: %v", p.GetPlan())
	}
	f, err := admin.ForgetStore(ctx, &pdpb.ForgetStoreRequest{StoreId: 1})
	refusedWith(t, "forgetting", f.GetError(), err, "is alive")
	x2, err := admin.WhatIf(ctx, &pdpb.WhatIfRequest{StoreIds: []uint64{1, 2}})
	if want(t, "what if", x2.GetError(), err, noReason); x2.GetLost() != 1 || x2.GetSafe() {
		t.Errorf("two of three stores down: %v", x2)
	}
}
