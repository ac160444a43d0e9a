package service

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/ridgekv/ridge/pd/internal/operator"
	"github.com/ridgekv/ridge/pd/internal/schedule"
	"github.com/ridgekv/ridge/pd/internal/topology"
	"github.com/ridgekv/ridge/proto/keys"
	metapb "github.com/ridgekv/ridge/proto/ridge/meta/v1"
	pdpb "github.com/ridgekv/ridge/proto/ridge/pd/v1"
)

// still keeps balancing out of forecasts that are about something else.
const still = "not a part of this plan"

// MakePlan runs the planners on a picture of this cluster. It changes nothing.
func (s *Service) MakePlan(
	_ context.Context, req *pdpb.MakePlanRequest,
) (*pdpb.MakePlanResponse, error) {
	m, l, err := s.lead(req.GetHeader())
	if x := req.GetSubject().GetRule(); err == nil && x != nil {
		if why := m.RuleRefusal(x); why != "" {
			err = invalid("%s", why)
		}
	}
	if err != nil {
		return &pdpb.MakePlanResponse{Error: s.pdError(err)}, nil
	}
	v := l.View(time.Now())
	plan, blueprint, err := foresee(v, l.Operators.Flight().Limits, req.GetSubject())
	if err == nil && blueprint != nil {
		l.plans.keep(blueprint)
	}
	return &pdpb.MakePlanResponse{Error: s.pdError(err), Plan: plan}, nil
}

func foresee(
	v topology.View, limits operator.Limits, subject *pdpb.PlanSubject,
) (*pdpb.Plan, *schedule.Blueprint, error) {
	switch x := subject.GetSubject().(type) {
	case *pdpb.PlanSubject_DrainStoreId:
		return foreseeStore(v, limits, x.DrainStoreId, metapb.StoreState_STORE_STATE_DRAINING)
	case *pdpb.PlanSubject_DecommissionStoreId:
		return foreseeStore(v, limits, x.DecommissionStoreId, metapb.StoreState_STORE_STATE_LEAVING)
	case *pdpb.PlanSubject_Balance:
		v.Still = ""
		f := schedule.Foresee(v, limits, func(o *operator.Operator, _ *topology.Range) bool {
			return o.Priority == operator.Balance
		})
		p, b := planOf("balance", v, f)
		p.Complete = !f.Cut
		p.Blockers = blockersOf(f.Verdicts, func(w schedule.Verdict) bool {
			return w.RangeID == 0 || w.By == schedule.ByReplicas || w.By == schedule.ByLeaders
		})
		return p, b, nil
	case *pdpb.PlanSubject_Scatter:
		return foreseeScatter(v, limits, keys.FromProto(x.Scatter))
	case *pdpb.PlanSubject_Rule:
		p, b := foreseeRule(v, limits, x.Rule)
		return p, b, nil
	}
	return nil, nil, invalid("the plan has no subject")
}

func foreseeStore(
	v topology.View, limits operator.Limits, id uint64, to metapb.StoreState,
) (*pdpb.Plan, *schedule.Blueprint, error) {
	what := fmt.Sprintf("drain store %d", id)
	no := schedule.MayDrain(v, id)
	if to == metapb.StoreState_STORE_STATE_LEAVING {
		what, no = fmt.Sprintf("decommission store %d", id), schedule.MayLeave(v, id)
	}
	if no != nil {
		return nil, nil, refused(no)
	}
	began := schedule.With(v, id, to)
	began.Still = still
	f := schedule.Foresee(began, limits, func(_ *operator.Operator, r *topology.Range) bool {
		return slices.ContainsFunc(r.Range.GetReplicas(), func(m *metapb.Replica) bool {
			return m.GetStoreId() == id
		})
	})
	p, b := planOf(what, v, f)
	b.StoreID, b.State = id, to
	left := schedule.RemainsOn(f.After, id)
	p.Complete = left.Leaders == 0
	if to == metapb.StoreState_STORE_STATE_LEAVING {
		p.Complete = left.Replicas == 0
	}
	b.Short = !p.GetComplete()
	here := idSet(left.Ranges)
	if !p.GetComplete() {
		p.Blockers = blockersOf(f.Verdicts, func(w schedule.Verdict) bool { return here[w.RangeID] })
	}
	return p, b, nil
}

func foreseeScatter(
	v topology.View, limits operator.Limits, span keys.Span,
) (*pdpb.Plan, *schedule.Blueprint, error) {
	if !span.Valid() {
		return nil, nil, invalid("span %s is inverted or empty", span)
	}
	f, no := schedule.Scatter(v, limits, span)
	if no != nil {
		return nil, nil, refused(no)
	}
	p, b := planOf("scatter "+span.String(), v, f)
	p.Complete = !f.Cut && len(f.Verdicts) == 0
	p.Blockers = blockersOf(f.Verdicts, func(schedule.Verdict) bool { return true })
	return p, b, nil
}

func foreseeRule(
	v topology.View, limits operator.Limits, rule *pdpb.PlacementRule,
) (*pdpb.Plan, *schedule.Blueprint) {
	began := v
	began.Still = still
	f := schedule.ForeseeRule(began, limits, rule)
	p, b := planOf("rule "+rule.GetId(), v, f)
	b.SetsRule(rule)
	p.PlanId = b.ID
	p.Blockers = blockersOf(f.Verdicts, func(w schedule.Verdict) bool {
		return slices.ContainsFunc(f.After.Ranges, func(r *topology.Range) bool {
			return r.Range.GetRangeId() == w.RangeID &&
				f.After.Rule(r.Range.GetSpan().GetStart()).GetId() == rule.GetId()
		})
	})
	p.Complete = !f.Cut && len(p.GetBlockers()) == 0
	b.Short = !p.GetComplete()
	return p, b
}

// planOf renders a forecast upon v.
func planOf(what string, v topology.View, f schedule.Forecast) (*pdpb.Plan, *schedule.Blueprint) {
	b := schedule.NewBlueprint(what, v, f)
	p := &pdpb.Plan{
		PlanId: b.ID, What: what, EstimateMs: uint64(f.Time.Milliseconds()),
	}
	for i, m := range f.Moves {
		move := &pdpb.PlannedMove{
			RangeId: m.Op.RangeID, Reason: m.Op.Reason, Bytes: m.Bytes, Margin: int32(m.Margin),
		}
		for _, s := range m.Op.Steps {
			move.Steps = append(move.Steps, s.String())
		}
		p.Moves = append(p.Moves, move)
		if schedule.Foretold(m.Op.RangeID) {
			move.RangeId, move.Start = 0, m.Before.Range.GetSpan().GetStart()
		}
		switch p.Bytes += m.Bytes; {
		case m.Replica():
			p.ReplicaMoves++
		case m.Divides():
			p.Splits++
		case m.TransfersLeader():
			p.LeaderMoves++
		}
		if i == 0 || move.GetMargin() < p.GetLowestMargin() {
			p.LowestMargin, p.LowestRangeId = move.GetMargin(), move.GetRangeId()
		}
		before := int32(schedule.Margin(v, m.Before))
		if i == 0 || before < p.GetMarginBefore() {
			p.MarginBefore = before
		}
	}
	p.Stores = forecasts(v, f.After)
	return p, b
}

func forecasts(v, after topology.View) []*pdpb.StoreForecast {
	var out []*pdpb.StoreForecast
	for _, s := range v.Stores {
		id := s.Store.GetStoreId()
		if v.State(s) == metapb.StoreState_STORE_STATE_GONE {
			continue
		}
		a, b := schedule.RemainsOn(v, id), schedule.RemainsOn(after, id)
		out = append(out, &pdpb.StoreForecast{
			StoreId: id, State: after.State(after.Store(id)),
			Replicas: uint32(a.Replicas), ReplicasAfter: uint32(b.Replicas),
			Leaders: uint32(a.Leaders), LeadersAfter: uint32(b.Leaders),
			Bytes: a.Bytes, BytesAfter: b.Bytes, AvailableBytes: s.Stats.GetAvailableBytes(),
		})
	}
	return out
}

func blockersOf(verdicts []schedule.Verdict, about func(schedule.Verdict) bool) []*pdpb.Blocker {
	var out []*pdpb.Verdict
	for _, w := range verdicts {
		if about(w) {
			out = append(out, &pdpb.Verdict{
				RangeId: w.RangeID, StoreId: w.StoreID, By: w.By, Reason: w.Reason, Remedy: w.Remedy,
			})
		}
	}
	return gather(out, func(*pdpb.Verdict) bool { return true })
}

// WhatIf tells what the loss of stores would mean. It changes nothing.
func (s *Service) WhatIf(
	ctx context.Context, req *pdpb.WhatIfRequest,
) (*pdpb.WhatIfResponse, error) {
	_, l, err := s.confirmed(ctx, req.GetHeader())
	if err != nil {
		return &pdpb.WhatIfResponse{Error: s.pdError(err)}, nil
	}
	v := l.View(time.Now())
	out, err := whatIf(v, l.Operators.Flight().Limits, req)
	if err != nil {
		return &pdpb.WhatIfResponse{Error: s.pdError(err)}, nil
	}
	return out, nil
}

func whatIf(
	v topology.View, limits operator.Limits, req *pdpb.WhatIfRequest,
) (*pdpb.WhatIfResponse, error) {
	if len(req.GetStoreIds()) == 0 {
		return nil, invalid("no store is named")
	}
	for _, id := range req.GetStoreIds() {
		if s := v.Store(id); s == nil || v.State(s) == metapb.StoreState_STORE_STATE_GONE {
			return nil, refuse(pdpb.PDErrorReason_PD_ERROR_REASON_NOT_FOUND,
				"there is no store %d, or it is gone: `ridge store list` names them", id)
		}
	}
	out := &pdpb.WhatIfResponse{Ranges: uint32(len(v.Ranges)), Safe: true}
	var why []*pdpb.Verdict
	for _, x := range schedule.Losses(v, req.GetRestart(), req.GetStoreIds()...) {
		if !x.Lost {
			out.Weakened++
			continue
		}
		out.Lost++
		out.Safe = false
		if len(out.GetLostRangeIds()) < 1000 {
			out.LostRangeIds = append(out.LostRangeIds, x.RangeID)
		}
		reason := fmt.Sprintf("%d of %d voters would be left", x.Live, x.Voters)
		if x.Why != "" {
			reason += "; " + x.Why
		}
		why = append(why, &pdpb.Verdict{RangeId: x.RangeID, Reason: reason})
	}
	for _, r := range v.Ranges {
		if slices.Contains(req.GetStoreIds(), r.Leader.GetStoreId()) {
			out.Led++
		}
	}
	out.Blockers = gather(why, func(*pdpb.Verdict) bool { return true })
	if req.GetRestart() {
		return out, nil
	}
	down := schedule.Without(v, req.GetStoreIds()...)
	down.Still = still
	f := schedule.Foresee(down, limits, func(*operator.Operator, *topology.Range) bool { return true })
	out.Plan, _ = planOf("repair", down, f)
	out.NeededBytes = out.GetPlan().GetBytes()
	for _, s := range down.Stores {
		if down.Receives(s) {
			out.FreeBytes += s.Stats.GetAvailableBytes()
		}
	}
	out.Blockers = append(out.Blockers, blockersOf(f.Verdicts, func(w schedule.Verdict) bool {
		return w.RangeID != 0 && !slices.Contains(out.GetLostRangeIds(), w.RangeID)
	})...)
	out.Plan.Complete = len(out.GetBlockers()) == 0
	return out, nil
}
