package service

import (
	"context"
	"fmt"
	"time"

	"github.com/ridgekv/ridge/pd/internal/schedule"
	metapb "github.com/ridgekv/ridge/proto/ridge/meta/v1"
	pdpb "github.com/ridgekv/ridge/proto/ridge/pd/v1"
)

// becomes gives a store a state that a person wants, if it is possible.
func (s *Service) becomes(
	ctx context.Context, h *pdpb.RequestHeader, storeID uint64, to metapb.StoreState, verb string,
) (*metapb.Store, error) {
	m, l, err := s.confirmed(ctx, h)
	if err != nil {
		return nil, err
	}
	rec, ok := m.Store(storeID)
	if !ok {
		return nil, refuse(pdpb.PDErrorReason_PD_ERROR_REASON_NOT_FOUND,
			"there is no store %d: `ridge store list` names them", storeID)
	}
	if rec.GetStore().GetState() == to {
		return rec.GetStore(), nil
	}
	if no := schedule.MayBecome(l.View(time.Now()), storeID, to); no != nil {
		return nil, refused(no)
	}
	r, err := fromResult(m.Propose(ctx, &pdpb.Command{Command: &pdpb.Command_PutStoreState{
		PutStoreState: &pdpb.PutStoreState{StoreId: storeID, State: to},
	}}))
	if err != nil {
		return nil, err
	}
	putStore(m, l, storeID)
	l.admin(fmt.Sprintf("store %d %s", storeID, verb), storeID)
	return r.GetStore(), nil
}

// DrainStore lets a store give its leaders away.
func (s *Service) DrainStore(
	ctx context.Context, req *pdpb.DrainStoreRequest,
) (*pdpb.DrainStoreResponse, error) {
	st, err := s.becomes(ctx, req.GetHeader(), req.GetStoreId(),
		metapb.StoreState_STORE_STATE_DRAINING, "is drained: it gives its leaders away")
	return &pdpb.DrainStoreResponse{Error: s.pdError(err), Store: st}, nil
}

// DecommissionStore lets a store give its replicas away and go for ever.
func (s *Service) DecommissionStore(
	ctx context.Context, req *pdpb.DecommissionStoreRequest,
) (*pdpb.DecommissionStoreResponse, error) {
	st, err := s.becomes(ctx, req.GetHeader(), req.GetStoreId(),
		metapb.StoreState_STORE_STATE_LEAVING, "is decommissioned: its replicas move away")
	return &pdpb.DecommissionStoreResponse{Error: s.pdError(err), Store: st}, nil
}

// ResumeStore calls a store back that drains or leaves.
func (s *Service) ResumeStore(
	ctx context.Context, req *pdpb.ResumeStoreRequest,
) (*pdpb.ResumeStoreResponse, error) {
	st, err := s.becomes(ctx, req.GetHeader(), req.GetStoreId(),
		metapb.StoreState_STORE_STATE_UP, "is resumed")
	return &pdpb.ResumeStoreResponse{Error: s.pdError(err), Store: st}, nil
}

// ForgetStore declares a store gone that is lost.
func (s *Service) ForgetStore(
	ctx context.Context, req *pdpb.ForgetStoreRequest,
) (*pdpb.ForgetStoreResponse, error) {
	st, err := s.becomes(ctx, req.GetHeader(), req.GetStoreId(),
		metapb.StoreState_STORE_STATE_GONE, "is declared lost: it is gone")
	return &pdpb.ForgetStoreResponse{Error: s.pdError(err), Store: st}, nil
}

// DescribeStore tells what is left on a store, and what keeps it there.
func (s *Service) DescribeStore(
	_ context.Context, req *pdpb.DescribeStoreRequest,
) (*pdpb.DescribeStoreResponse, error) {
	_, l, err := s.lead(req.GetHeader())
	if err != nil {
		return &pdpb.DescribeStoreResponse{Error: s.pdError(err)}, nil
	}
	v := l.View(time.Now())
	out := &pdpb.DescribeStoreResponse{}
	for _, info := range s.storeInfos(l) {
		if info.GetStore().GetStoreId() == req.GetStoreId() {
			out.Store = info
		}
	}
	if out.GetStore() == nil {
		err = refuse(pdpb.PDErrorReason_PD_ERROR_REASON_NOT_FOUND,
			"there is no store %d: `ridge store list` names them", req.GetStoreId())
		return &pdpb.DescribeStoreResponse{Error: s.pdError(err)}, nil
	}
	left := schedule.RemainsOn(v, req.GetStoreId())
	out.Leaders, out.Replicas, out.Bytes = uint32(left.Leaders), uint32(left.Replicas), left.Bytes
	out.Held = uint32(out.GetStore().GetStats().GetRangeCount())
	here := idSet(left.Ranges)
	for _, o := range l.Operators.List(v.Now) {
		if here[o.GetRangeId()] {
			out.Moving++
		}
	}
	out.Blockers = gather(l.Verdicts(), func(w *pdpb.Verdict) bool {
		return here[w.GetRangeId()] || w.GetStoreId() == req.GetStoreId() ||
			w.GetRangeId() == 0 && w.GetStoreId() == 0
	})
	if w := l.Waiting(); w != "" {
		out.Blockers = append(out.Blockers, &pdpb.Blocker{Reason: "nothing is planned: " + w})
	}
	return out, nil
}

func idSet(ids []uint64) map[uint64]bool {
	out := make(map[uint64]bool, len(ids))
	for _, id := range ids {
		out[id] = true
	}
	return out
}

// maxNamed bounds the ranges that a blocker names.
const maxNamed = 16

// gather sums up verdicts by what they say.
func gather(verdicts []*pdpb.Verdict, about func(*pdpb.Verdict) bool) []*pdpb.Blocker {
	var out []*pdpb.Blocker
	at := map[string]*pdpb.Blocker{}
	for _, w := range verdicts {
		if !about(w) {
			continue
		}
		b := at[w.GetReason()+"\x00"+w.GetRemedy()]
		if b == nil {
			b = &pdpb.Blocker{Reason: w.GetReason(), Remedy: w.GetRemedy()}
			at[w.GetReason()+"\x00"+w.GetRemedy()] = b
			out = append(out, b)
		}
		if w.GetRangeId() == 0 {
			continue
		}
		b.RangeCount++
		if len(b.GetRangeIds()) < maxNamed {
			b.RangeIds = append(b.RangeIds, w.GetRangeId())
		}
	}
	return out
}
