package service

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/ridgekv/ridge/pd/internal/meta"
	"github.com/ridgekv/ridge/pd/internal/schedule"
	"github.com/ridgekv/ridge/pd/internal/topology"
	metapb "github.com/ridgekv/ridge/proto/ridge/meta/v1"
	pdpb "github.com/ridgekv/ridge/proto/ridge/pd/v1"
)

// defaultDecisions is how many decisions are told when nobody asks for more.
const defaultDecisions = 20

// Explain tells the last decisions about something, and why nothing else is done.
func (s *Service) Explain(
	_ context.Context, req *pdpb.ExplainRequest,
) (*pdpb.ExplainResponse, error) {
	m, l, err := s.lead(req.GetHeader())
	if err != nil {
		return &pdpb.ExplainResponse{Error: s.pdError(err)}, nil
	}
	now := time.Now()
	out := &pdpb.ExplainResponse{Waiting: l.Waiting(), Pause: running(m.Pause(), now)}
	a := answer{s: s, l: l, out: out, v: l.View(now)}
	switch subject := req.GetSubject().(type) {
	case *pdpb.ExplainRequest_RangeId:
		err = a.aboutRange(l.Topology.Range(subject.RangeId), fmt.Sprintf(
			"there is no range %d: `ridge range list` names them", subject.RangeId))
	case *pdpb.ExplainRequest_Key:
		err = a.aboutRange(l.Topology.Find(subject.Key), "no range is known to hold the key")
	case *pdpb.ExplainRequest_StoreId:
		err = a.aboutStore(subject.StoreId)
	default:
		a.aboutBalance()
	}
	if err != nil {
		return &pdpb.ExplainResponse{Error: s.pdError(err)}, nil
	}
	a.tell(m, int(req.GetLimit()))
	return out, nil
}

// answer is an explanation on its way.
type answer struct {
	s   *Service
	l   *Leading
	v   topology.View
	out *pdpb.ExplainResponse
	// rangeID, storeID are what the question is about; both 0: everything.
	rangeID, storeID uint64
}

func (a *answer) find(format string, args ...any) {
	a.out.Findings = append(a.out.Findings, fmt.Sprintf(format, args...))
}

func (a *answer) aboutRange(r *topology.Range, missing string) error {
	if r == nil {
		return refuse(pdpb.PDErrorReason_PD_ERROR_REASON_NOT_FOUND, "%s", missing)
	}
	a.rangeID = r.Range.GetRangeId()
	a.out.Route, a.out.Health = r.Route(), r.Report.GetHealth()
	for _, info := range a.s.storeInfos(a.l) {
		if slices.ContainsFunc(r.Range.GetReplicas(), func(m *metapb.Replica) bool {
			return m.GetStoreId() == info.GetStore().GetStoreId()
		}) {
			a.out.Stores = append(a.out.Stores, info)
		}
	}
	for _, line := range schedule.Condition(a.v, r) {
		a.find("%s", line)
	}
	return nil
}

func (a *answer) aboutStore(id uint64) error {
	for _, info := range a.s.storeInfos(a.l) {
		if info.GetStore().GetStoreId() == id {
			a.out.Stores = append(a.out.Stores, info)
		}
	}
	if len(a.out.GetStores()) == 0 {
		return refuse(pdpb.PDErrorReason_PD_ERROR_REASON_NOT_FOUND,
			"there is no store %d: `ridge store list` names them", id)
	}
	a.storeID = id
	left := schedule.RemainsOn(a.v, id)
	a.find("%d replicas, %d of them lead, %d bytes", left.Replicas, left.Leaders, left.Bytes)
	if why, remedy := schedule.CannotReceive(a.v, a.v.Store(id)); why != "" {
		if remedy != "" {
			why += " (" + remedy + ")"
		}
		a.find("gets no new replicas: %s", why)
	}
	return nil
}

func (a *answer) aboutBalance() {
	a.out.Stores = a.s.storeInfos(a.l)
	if p := a.out.GetPause(); p != nil {
		a.find("balancing is paused until %s",
			time.UnixMilli(int64(p.GetUntilUnixMs())).UTC().Format(time.RFC3339))
	}
}

// tell adds what is in flight, what is refused, and what was decided.
func (a *answer) tell(m *meta.Meta, limit int) {
	here := map[uint64]bool{a.rangeID: true}
	if a.storeID != 0 {
		here = idSet(schedule.RemainsOn(a.v, a.storeID).Ranges)
	}
	all := a.rangeID == 0 && a.storeID == 0
	balance := func(by string) bool {
		return by == schedule.ByLeaders || by == schedule.ByReplicas || by == schedule.ByHot
	}
	for _, o := range a.l.Operators.List(a.v.Now) {
		if here[o.GetRangeId()] || all && balance(o.GetBy()) {
			a.out.Operators = append(a.out.Operators, o)
		}
	}
	a.out.Blockers = gather(a.l.Verdicts(), func(w *pdpb.Verdict) bool {
		if all {
			return balance(w.GetBy()) || w.GetRangeId() == 0
		}
		return here[w.GetRangeId()] && w.GetRangeId() != 0 ||
			w.GetStoreId() == a.storeID && w.GetStoreId() != 0
	})
	decisions := a.l.Journal()
	if limit <= 0 {
		limit = defaultDecisions
	}
	for _, d := range slices.Backward(decisions) {
		if len(a.out.GetDecisions()) >= min(limit, meta.JournalSize) {
			return
		}
		if all || a.rangeID != 0 && slices.Contains(d.GetRangeIds(), a.rangeID) ||
			a.storeID != 0 && slices.Contains(d.GetStoreIds(), a.storeID) {
			a.out.Decisions = append(a.out.Decisions, d)
		}
	}
}
