package meta

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"unicode/utf8"

	"google.golang.org/protobuf/proto"

	"github.com/ridgekv/ridge/proto/keys"
	metapb "github.com/ridgekv/ridge/proto/ridge/meta/v1"
	pdpb "github.com/ridgekv/ridge/proto/ridge/pd/v1"
)

const (
	// maxRules and maxRuleBytes bound what rules take.
	maxRules     = 1000
	maxRuleBytes = 16 << 10
	maxVoters    = 7
)

// putRule creates or replaces a placement rule.
//
// The spans of two rules are disjoint or one lies strictly within the other, so
// that at every key the rules form a chain and the narrowest one decides. That
// order does not depend on when a rule was made.
func (s *state) putRule(c *pdpb.PutRule) *pdpb.CommandResult {
	in := c.GetRule()
	if why := s.ruleRefusal(in); why != "" {
		return refuse(pdpb.PDErrorReason_PD_ERROR_REASON_INVALID_ARGUMENT, why)
	}
	rule := proto.CloneOf(in)
	s.ruleRevision++
	rule.Revision = s.ruleRevision
	s.rules[rule.GetId()] = rule
	return &pdpb.CommandResult{Rule: rule}
}

// ruleRefusal says why a rule is not taken, and what would help.
func (s *state) ruleRefusal(in *pdpb.PlacementRule) string {
	why := ruleFault(in)
	if why == "" {
		why = s.ruleConflict(in)
	}
	if why == "" {
		why = s.ruleUnsatisfied(in)
	}
	if why == "" && s.rules[in.GetId()] == nil && len(s.rules) >= maxRules {
		why = fmt.Sprintf("there are %d rules: delete one first", len(s.rules))
	}
	return why
}

// RuleRefusal says why a rule would not be taken now; empty when it would.
func (m *Meta) RuleRefusal(in *pdpb.PlacementRule) string {
	m.machine.mu.RLock()
	defer m.machine.mu.RUnlock()
	return m.machine.mu.state.ruleRefusal(in)
}

func (s *state) dropRule(c *pdpb.DropRule) *pdpb.CommandResult {
	if s.rules[c.GetId()] == nil {
		return refuse(pdpb.PDErrorReason_PD_ERROR_REASON_NOT_FOUND,
			fmt.Sprintf("there is no rule %q", c.GetId()))
	}
	delete(s.rules, c.GetId())
	s.ruleRevision++
	return &pdpb.CommandResult{}
}

// ruleFault says what is wrong with a rule in itself.
func ruleFault(r *pdpb.PlacementRule) string {
	span := keys.FromProto(r.GetSpan())
	switch n := r.GetVoters(); {
	case r.GetId() == "" || len(r.GetId()) > 256 || !utf8.ValidString(r.GetId()):
		return "a rule needs an id of 1 to 256 bytes of text"
	case proto.Size(r) > maxRuleBytes:
		return fmt.Sprintf("a rule of %d bytes; the limit is %d", proto.Size(r), maxRuleBytes)
	case !span.Valid() || len(span.Start) > keys.MaxKeySizeBytes ||
		len(span.End) > keys.MaxKeySizeBytes:
		return fmt.Sprintf("span %s is inverted, empty or has a key that is too long", span)
	case n > maxVoters || n != 0 && n%2 == 0:
		return fmt.Sprintf("%d voters: 1, 3, 5 or 7, or 0 for as many as configured", n)
	}
	for _, c := range slices.Concat(r.GetConstraints(), r.GetLeaderPreference()) {
		if c.GetKey() == "" || len(c.GetValues()) == 0 ||
			c.GetOp() != pdpb.LabelConstraint_OP_IN && c.GetOp() != pdpb.LabelConstraint_OP_NOT_IN {
			return "a constraint needs a key, in or not in, and values"
		}
	}
	return ""
}

// ruleConflict names the rule whose span lies across that of r.
func (s *state) ruleConflict(r *pdpb.PlacementRule) string {
	span := keys.FromProto(r.GetSpan())
	for _, id := range slices.Sorted(maps.Keys(s.rules)) {
		other := keys.FromProto(s.rules[id].GetSpan())
		switch {
		case id == r.GetId() || !span.Overlaps(other):
		case span.Equal(other):
			return fmt.Sprintf("rule %q has the same span: change that one", id)
		case !span.ContainsSpan(other) && !other.ContainsSpan(span):
			return fmt.Sprintf("its span lies across that of rule %q, %s: rules are disjoint, "+
				"or one lies within the other and decides there; divide the span at that rule's ends",
				id, other)
		}
	}
	return ""
}

// ruleUnsatisfied says why the stores there are cannot follow r.
func (s *state) ruleUnsatisfied(r *pdpb.PlacementRule) string {
	if len(r.GetConstraints()) == 0 && r.GetVoters() == 0 {
		return ""
	}
	need := int(r.GetVoters())
	if need == 0 {
		need = int(s.config.GetReplicas())
	}
	var fit, others []string
	for _, id := range slices.Sorted(maps.Keys(s.stores)) {
		st := s.stores[id].GetStore()
		switch st.GetState() {
		case metapb.StoreState_STORE_STATE_GONE, metapb.StoreState_STORE_STATE_LEAVING:
			continue
		}
		if Fulfils(st.GetLabels(), r.GetConstraints()) {
			fit = append(fit, fmt.Sprint(id))
		} else {
			others = append(others, fmt.Sprint(id))
		}
	}
	if len(fit) >= need {
		return ""
	}
	return fmt.Sprintf("it wants %d voters on stores with %s: of the stores that stay, %s fulfil "+
		"that and %s do not; label or add %d more, or ask for fewer voters", need,
		ConstraintText(r.GetConstraints()), list(fit), list(others), need-len(fit))
}

func list(ids []string) string {
	if len(ids) == 0 {
		return "none"
	}
	return strings.Join(ids, ", ")
}

// Fulfils reports whether a store with these labels fulfils all constraints.
func Fulfils(labels map[string]string, constraints []*pdpb.LabelConstraint) bool {
	for _, c := range constraints {
		in := slices.Contains(c.GetValues(), labels[c.GetKey()])
		if in != (c.GetOp() == pdpb.LabelConstraint_OP_IN) {
			return false
		}
	}
	return true
}

// ConstraintText renders constraints for people.
func ConstraintText(constraints []*pdpb.LabelConstraint) string {
	if len(constraints) == 0 {
		return "any labels"
	}
	parts := make([]string, len(constraints))
	for i, c := range constraints {
		op := "in"
		if c.GetOp() == pdpb.LabelConstraint_OP_NOT_IN {
			op = "not in"
		}
		parts[i] = fmt.Sprintf("%s %s %s", c.GetKey(), op, strings.Join(c.GetValues(), "|"))
	}
	return strings.Join(parts, " and ")
}
