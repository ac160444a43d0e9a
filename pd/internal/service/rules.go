package service

import (
	"context"
	"fmt"

	pdpb "github.com/ridgekv/ridge/proto/ridge/pd/v1"
)

// SetRule creates or replaces a placement rule.
func (s *Service) SetRule(
	ctx context.Context, req *pdpb.SetRuleRequest,
) (*pdpb.SetRuleResponse, error) {
	m, l, err := s.confirmed(ctx, req.GetHeader())
	if err != nil {
		return &pdpb.SetRuleResponse{Error: s.pdError(err)}, nil
	}
	r, err := fromResult(m.Propose(ctx, &pdpb.Command{Command: &pdpb.Command_PutRule{
		PutRule: &pdpb.PutRule{Rule: req.GetRule()},
	}}))
	if err == nil {
		s.o.Logger.Info("placement rule is set", "rule", r.GetRule().GetId(),
			"revision", r.GetRule().GetRevision())
		l.admin(fmt.Sprintf("placement rule %q is set", r.GetRule().GetId()))
	}
	return &pdpb.SetRuleResponse{Error: s.pdError(err), Rule: r.GetRule()}, nil
}

// DeleteRule removes a placement rule.
func (s *Service) DeleteRule(
	ctx context.Context, req *pdpb.DeleteRuleRequest,
) (*pdpb.DeleteRuleResponse, error) {
	m, l, err := s.confirmed(ctx, req.GetHeader())
	if err != nil {
		return &pdpb.DeleteRuleResponse{Error: s.pdError(err)}, nil
	}
	_, err = fromResult(m.Propose(ctx, &pdpb.Command{Command: &pdpb.Command_DropRule{
		DropRule: &pdpb.DropRule{Id: req.GetId()},
	}}))
	if err == nil {
		l.admin(fmt.Sprintf("placement rule %q is deleted", req.GetId()))
	}
	return &pdpb.DeleteRuleResponse{Error: s.pdError(err)}, nil
}

// ListRules lists the placement rules.
func (s *Service) ListRules(
	_ context.Context, req *pdpb.ListRulesRequest,
) (*pdpb.ListRulesResponse, error) {
	m, _, err := s.lead(req.GetHeader())
	if err != nil {
		return &pdpb.ListRulesResponse{Error: s.pdError(err)}, nil
	}
	return &pdpb.ListRulesResponse{Rules: m.Rules()}, nil
}
