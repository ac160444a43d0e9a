package pd

import (
	"testing"

	metapb "github.com/ridgekv/ridge/proto/ridge/meta/v1"
	pdpb "github.com/ridgekv/ridge/proto/ridge/pd/v1"
)

// TestRulesSurviveFailover: a rule is judged, numbered, replaced, listed and
// deleted, and the next leader of PD knows it.
func TestRulesSurviveFailover(t *testing.T) {
	c := startCluster(t, 3, nil)
	ctx := testContext(t)
	for _, name := range []string{"s1", "s2", "s3"} {
		register(t, c.client(), 0, name)
	}
	rule := func(id, start, end string, voters uint32) *pdpb.SetRuleRequest {
		return &pdpb.SetRuleRequest{Rule: &pdpb.PlacementRule{
			Id: id, Span: &metapb.Span{Start: []byte(start), End: []byte(end)}, Voters: voters,
		}}
	}
	first, err := c.client().SetRule(ctx, rule("users", "a", "m", 3))
	want(t, "a rule", first.GetError(), err, noReason)
	second, err := c.client().SetRule(ctx, rule("users", "a", "k", 3))
	want(t, "the rule again", second.GetError(), err, noReason)
	if second.GetRule().GetRevision() <= first.GetRule().GetRevision() {
		t.Errorf("revisions %d, then %d", first.GetRule().GetRevision(),
			second.GetRule().GetRevision())
	}
	for what, bad := range map[string]*pdpb.SetRuleRequest{
		"half within another": rule("half", "c", "p", 3),
		"even":                rule("even", "p", "q", 2),
		"empty span":          rule("empty", "q", "p", 3),
		"no name":             rule("", "p", "q", 3),
	} {
		r, err := c.client().SetRule(ctx, bad)
		refusedWith(t, what, r.GetError(), err)
	}
	inner, err := c.client().SetRule(ctx, rule("inner", "b", "c", 1))
	want(t, "a rule within", inner.GetError(), err, noReason)
	c.kill(c.leader())
	l, err := c.client().ListRules(ctx, &pdpb.ListRulesRequest{})
	want(t, "the list", l.GetError(), err, noReason)
	if len(l.GetRules()) != 2 {
		t.Fatalf("the next leader knows %v", l.GetRules())
	}
	for _, r := range l.GetRules() {
		if r.GetId() == "users" && string(r.GetSpan().GetEnd()) != "k" {
			t.Errorf("an old rule is back: %v", r)
		}
	}
	d, err := c.client().DeleteRule(ctx, &pdpb.DeleteRuleRequest{Id: "users"})
	want(t, "deleting", d.GetError(), err, noReason)
	l, err = c.client().ListRules(ctx, &pdpb.ListRulesRequest{})
	want(t, "the list", l.GetError(), err, noReason)
	if len(l.GetRules()) != 1 || l.GetRules()[0].GetId() != "inner" {
		t.Errorf("left are %v", l.GetRules())
	}
}
