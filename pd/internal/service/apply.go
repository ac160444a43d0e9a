package service

import (
	"context"
	"slices"
	"strings"
	"sync"

	"github.com/ridgekv/ridge/pd/internal/schedule"
	pdpb "github.com/ridgekv/ridge/proto/ridge/pd/v1"
)

const (
	// maxPlans and maxPlannedMoves bound the plans that are remembered, so that
	// they can be carried out; the oldest go first.
	maxPlans        = 8
	maxPlannedMoves = 40_000
)

// plans are the last plans made, the newest last.
type plans struct {
	mu   sync.Mutex
	kept []*schedule.Blueprint
}

func (p *plans) keep(b *schedule.Blueprint) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.kept = slices.DeleteFunc(p.kept, func(o *schedule.Blueprint) bool { return o.ID == b.ID })
	p.kept = append(p.kept, b)
	moves := 0
	for _, o := range p.kept {
		moves += len(o.Moves)
	}
	for len(p.kept) > maxPlans || len(p.kept) > 1 && moves > maxPlannedMoves {
		moves -= len(p.kept[0].Moves)
		p.kept = slices.Delete(p.kept, 0, 1)
	}
}

func (p *plans) find(id string) *schedule.Blueprint {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, b := range p.kept {
		if b.ID == id {
			return b
		}
	}
	return nil
}

// ApplyPlan carries a plan out that was made here.
func (s *Service) ApplyPlan(
	ctx context.Context, req *pdpb.ApplyPlanRequest,
) (*pdpb.ApplyPlanResponse, error) {
	_, l, err := s.confirmed(ctx, req.GetHeader())
	var p *pdpb.PlanProgress
	if err == nil {
		p, err = l.applyPlan(req.GetPlanId())
	}
	return &pdpb.ApplyPlanResponse{Error: s.pdError(err), Progress: p}, nil
}

func (l *Leading) applyPlan(id string) (*pdpb.PlanProgress, error) {
	b := l.plans.find(id)
	switch {
	case b == nil:
		return nil, refuse(pdpb.PDErrorReason_PD_ERROR_REASON_NOT_FOUND,
			"plan %q is not known: it is too old, or PD's leader has changed; make it anew", id)
	case b.Short:
		return nil, refuse(pdpb.PDErrorReason_PD_ERROR_REASON_REFUSED,
			"plan %s would not reach its goal: see the reasons it gives", id)
	}
	p, changed := l.Apply(b)
	if len(changed) > 0 {
		return nil, refuse(pdpb.PDErrorReason_PD_ERROR_REASON_REFUSED,
			"plan %s is not begun, nothing was done: %s: make it anew", id, strings.Join(changed, "; "))
	}
	return p, nil
}

// GetPlanProgress tells how far the last plan is.
func (s *Service) GetPlanProgress(
	_ context.Context, req *pdpb.GetPlanProgressRequest,
) (*pdpb.GetPlanProgressResponse, error) {
	_, l, err := s.lead(req.GetHeader())
	var p *pdpb.PlanProgress
	if err == nil {
		p, err = l.progress(req.GetPlanId())
	}
	return &pdpb.GetPlanProgressResponse{Error: s.pdError(err), Progress: p}, nil
}

// StopPlan begins no more moves of a plan.
func (s *Service) StopPlan(
	ctx context.Context, req *pdpb.StopPlanRequest,
) (*pdpb.StopPlanResponse, error) {
	_, l, err := s.confirmed(ctx, req.GetHeader())
	var p *pdpb.PlanProgress
	if err == nil {
		p, err = l.progress(req.GetPlanId())
	}
	if err == nil && p.GetState() == pdpb.PlanState_PLAN_STATE_RUNNING {
		l.StopPlan("it was stopped by hand")
	}
	return &pdpb.StopPlanResponse{Error: s.pdError(err), Progress: p}, nil
}

func (l *Leading) progress(id string) (*pdpb.PlanProgress, error) {
	p := l.Progress()
	if p == nil || id != "" && p.GetPlanId() != id {
		return nil, refuse(pdpb.PDErrorReason_PD_ERROR_REASON_NOT_FOUND,
			"no such plan was begun since this PD leads; plans end when PD's leader changes")
	}
	return p, nil
}
