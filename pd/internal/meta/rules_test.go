package meta

import (
	"strings"
	"testing"

	metapb "github.com/ridgekv/ridge/proto/ridge/meta/v1"
	pdpb "github.com/ridgekv/ridge/proto/ridge/pd/v1"
)

// rule wants voters on stores whose label has one of the values.
func rule(id, start, end string, voters uint32, label ...string) *pdpb.PlacementRule {
	r := &pdpb.PlacementRule{
		Id: id, Voters: voters, Span: &metapb.Span{Start: []byte(start), End: []byte(end)},
	}
	if len(label) > 0 {
		r.Constraints = []*pdpb.LabelConstraint{{
			Key: label[0], Op: pdpb.LabelConstraint_OP_IN, Values: label[1:],
		}}
	}
	return r
}

func putRule(r *pdpb.PlacementRule) *pdpb.Command {
	return &pdpb.Command{Command: &pdpb.Command_PutRule{PutRule: &pdpb.PutRule{Rule: r}}}
}

func TestRules(t *testing.T) {
	s := newState()
	s.config = &pdpb.ClusterConfig{Replicas: 3}
	for i, zone := range []string{"east", "east", "east", "west", ""} {
		st := store(0, string(rune('a'+i)))
		if zone != "" {
			st.Labels = map[string]string{"zone": zone}
		}
		s.apply(admit(st))
	}
	s.apply(setState(3, metapb.StoreState_STORE_STATE_LEAVING))
	notWest := rule("not", "x", "y", 3, "zone", "west")
	notWest.Constraints[0].Op = pdpb.LabelConstraint_OP_NOT_IN
	noValue := rule("n", "x", "y", 1, "zone")
	for _, c := range []struct {
		name string
		rule *pdpb.PlacementRule
		want string // part of the refusal; empty: taken
	}{
		{"all", rule("all", "", "", 0), ""},
		{"within it", rule("mid", "b", "m", 1, "zone", "west"), ""},
		{"within that", rule("in", "c", "d", 1, "zone", "east"), ""},
		{"again", rule("in", "c", "e", 1, "zone", "east"), ""},
		{"across", rule("x", "a", "c", 1), `across that of rule "mid"`},
		{"the same span", rule("x", "b", "m", 1), `rule "mid" has the same span`},
		{"too many", rule("x", "p", "q", 3, "zone", "east"), "label or add 1 more"},
		{"as configured", rule("x", "p", "q", 0, "zone", "east"), "it wants 3 voters"},
		{"nobody", rule("x", "p", "q", 1, "zone", "north"), "none fulfil that"},
		{"two values", rule("two", "p", "q", 3, "zone", "east", "west"), ""},
		{"the unlabelled too", notWest, ""},
		{"even", rule("x", "p", "q", 2), "2 voters"},
		{"nine", rule("x", "p", "q", 9), "9 voters"},
		{"inverted", rule("x", "q", "p", 1), "inverted"},
		{"no id", rule("", "p", "q", 1), "needs an id"},
		{"no values", noValue, "a key, in or not in, and values"},
		{"long", rule("x", "p", strings.Repeat("q", 9000), 1), "too long"},
	} {
		r := s.apply(putRule(c.rule))
		if c.want == "" && r.GetReason() != 0 || !strings.Contains(r.GetMessage(), c.want) ||
			c.want != "" && r.GetReason() == 0 {
			t.Errorf("%s: %v", c.name, r)
		}
	}
	if len(s.rules) != 5 || s.rules["in"].GetRevision() <= s.rules["mid"].GetRevision() {
		t.Fatalf("rules %v", s.rules)
	}
	drop := &pdpb.Command{Command: &pdpb.Command_DropRule{DropRule: &pdpb.DropRule{Id: "in"}}}
	if r := s.apply(drop); r.GetReason() != 0 {
		t.Fatal(r)
	}
	if r := s.apply(drop); r.GetReason() != pdpb.PDErrorReason_PD_ERROR_REASON_NOT_FOUND {
		t.Fatal(r)
	}
	back := stateFromProto(s.proto())
	if len(back.rules) != 4 || back.ruleRevision != s.ruleRevision {
		t.Fatalf("restored %v", back.rules)
	}
}
