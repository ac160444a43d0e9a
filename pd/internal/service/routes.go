package service

import (
	"context"
	"time"

	"google.golang.org/grpc"

	"github.com/ridgekv/ridge/pd/internal/topology"
	"github.com/ridgekv/ridge/proto/keys"
	pdpb "github.com/ridgekv/ridge/proto/ridge/pd/v1"
)

// routePage bounds one answer.
const routePage = 1000

// GetRoute finds the range that holds a key.
func (s *Service) GetRoute(
	_ context.Context, req *pdpb.GetRouteRequest,
) (*pdpb.GetRouteResponse, error) {
	m, l, err := s.lead(req.GetHeader())
	if err == nil && len(req.GetKey()) > keys.MaxKeySizeBytes+1 {
		err = invalid("key of %d bytes", len(req.GetKey()))
	}
	if err != nil {
		return &pdpb.GetRouteResponse{Error: s.pdError(err)}, nil
	}
	r := l.Topology.Find(req.GetKey())
	if r == nil {
		if first, _ := m.FirstRange(); first == nil {
			err = refuse(pdpb.PDErrorReason_PD_ERROR_REASON_NOT_BOOTSTRAPPED,
				"no store has joined this cluster yet: start one")
		} else {
			err = refuse(pdpb.PDErrorReason_PD_ERROR_REASON_UNAVAILABLE,
				"no store has reported the range of this key yet")
		}
		return &pdpb.GetRouteResponse{Error: s.pdError(err)}, nil
	}
	return &pdpb.GetRouteResponse{Route: r.Route(), Stores: s.stores(l)}, nil
}

// ListRoutes lists the ranges of a span in order.
func (s *Service) ListRoutes(
	_ context.Context, req *pdpb.ListRoutesRequest,
) (*pdpb.ListRoutesResponse, error) {
	_, l, err := s.lead(req.GetHeader())
	span := keys.FromProto(req.GetSpan())
	if err == nil && !span.Valid() {
		err = invalid("span %s is inverted or empty", span)
	}
	if err != nil {
		return &pdpb.ListRoutesResponse{Error: s.pdError(err)}, nil
	}
	limit := routePage
	if n := int(req.GetLimit()); n > 0 {
		limit = min(n, routePage)
	}
	found, more := l.Topology.List(span, limit)
	out := &pdpb.ListRoutesResponse{Stores: s.stores(l), More: more}
	for _, r := range found {
		out.Routes = append(out.Routes, r.Route())
	}
	return out, nil
}

// GetRange finds a range by its id.
func (s *Service) GetRange(
	_ context.Context, req *pdpb.GetRangeRequest,
) (*pdpb.GetRangeResponse, error) {
	_, l, err := s.lead(req.GetHeader())
	if err != nil {
		return &pdpb.GetRangeResponse{Error: s.pdError(err)}, nil
	}
	r := l.Topology.Range(req.GetRangeId())
	if r == nil {
		err = refuse(pdpb.PDErrorReason_PD_ERROR_REASON_NOT_FOUND, "no range %d", req.GetRangeId())
		return &pdpb.GetRangeResponse{Error: s.pdError(err)}, nil
	}
	return &pdpb.GetRangeResponse{Route: r.Route(), Health: r.Report.GetHealth()}, nil
}

// WatchRoutes sends the routes of a span, and every change from then on.
func (s *Service) WatchRoutes(
	req *pdpb.WatchRoutesRequest, stream grpc.ServerStreamingServer[pdpb.WatchRoutesResponse],
) error {
	_, l, err := s.lead(req.GetHeader())
	span := keys.FromProto(req.GetSpan())
	if err == nil && !span.Valid() {
		err = invalid("span %s is inverted or empty", span)
	}
	seen := uint64(0)
	for synced := false; err == nil; synced = true {
		revision, next := l.Topology.Changed()
		if err := s.sendRoutes(l, span, seen, !synced, stream); err != nil {
			return err
		}
		seen = revision
		select {
		case <-stream.Context().Done():
			return stream.Context().Err()
		case <-l.Done:
			err = s.notLeader()
		case <-next:
			// Changes come in bursts: let some gather.
			select {
			case <-stream.Context().Done():
				return stream.Context().Err()
			case <-time.After(5 * time.Millisecond):
			}
		}
	}
	return stream.Send(&pdpb.WatchRoutesResponse{Error: s.pdError(err)})
}

// sendRoutes sends the routes that changed after revision seen.
func (s *Service) sendRoutes(
	l *Leading, span keys.Span, seen uint64, first bool,
	stream grpc.ServerStreamingServer[pdpb.WatchRoutesResponse],
) error {
	out := &pdpb.WatchRoutesResponse{Stores: s.stores(l)}
	for from, more := span, true; more; {
		var found []*topology.Range
		found, more = l.Topology.List(from, routePage)
		for _, r := range found {
			if r.Revision > seen || first {
				out.Routes = append(out.Routes, r.Route())
			}
			from.Start = r.Range.GetSpan().GetEnd()
		}
		if len(out.Routes) >= routePage {
			if err := stream.Send(out); err != nil {
				return err
			}
			out = &pdpb.WatchRoutesResponse{}
		}
	}
	out.Synced = first
	return stream.Send(out)
}

// SplitRange asks the leaseholder of a key to split there.
func (s *Service) SplitRange(
	_ context.Context, req *pdpb.SplitRangeRequest,
) (*pdpb.SplitRangeResponse, error) {
	_, l, err := s.lead(req.GetHeader())
	if err == nil && (len(req.GetKey()) == 0 || len(req.GetKey()) > keys.MaxKeySizeBytes) {
		err = invalid("split key of %d bytes, the limits are 1 and %d",
			len(req.GetKey()), keys.MaxKeySizeBytes)
	}
	if err != nil {
		return &pdpb.SplitRangeResponse{Error: s.pdError(err)}, nil
	}
	r := l.Topology.Find(req.GetKey())
	switch {
	case r == nil:
		err = refuse(pdpb.PDErrorReason_PD_ERROR_REASON_UNAVAILABLE, "the range is not known yet")
	case string(r.Range.GetSpan().GetStart()) == string(req.GetKey()):
		return &pdpb.SplitRangeResponse{Range: r.Range}, nil // it is split there already
	default:
		if why := l.Split(r, req.GetKey()); why != "" {
			err = refuse(pdpb.PDErrorReason_PD_ERROR_REASON_UNAVAILABLE, "%s", why)
		}
	}
	if err != nil {
		return &pdpb.SplitRangeResponse{Error: s.pdError(err)}, nil
	}
	return &pdpb.SplitRangeResponse{Range: r.Range}, nil
}

// AskSplit reserves the ids of a child.
func (s *Service) AskSplit(
	ctx context.Context, req *pdpb.AskSplitRequest,
) (*pdpb.AskSplitResponse, error) {
	n := len(req.GetRange().GetReplicas())
	if n == 0 || n > 100 {
		return &pdpb.AskSplitResponse{Error: s.pdError(invalid("a range with %d replicas", n))}, nil
	}
	first, err := s.allocate(ctx, req.GetHeader(), uint32(n+1))
	if err != nil {
		return &pdpb.AskSplitResponse{Error: s.pdError(err)}, nil
	}
	out := &pdpb.AskSplitResponse{ChildRangeId: first}
	for i := range n {
		out.ChildReplicaIds = append(out.ChildReplicaIds, first+1+uint64(i))
	}
	return out, nil
}

// ReportSplit takes both halves of a split at once. The parent comes first: it
// makes room for the child.
func (s *Service) ReportSplit(
	_ context.Context, req *pdpb.ReportSplitRequest,
) (*pdpb.ReportSplitResponse, error) {
	m, l, err := s.lead(req.GetHeader())
	if id := req.GetLeft().GetLeader().GetStoreId(); err == nil && id != 0 {
		_, err = s.registered(m, l, id)
	}
	if err != nil {
		return &pdpb.ReportSplitResponse{Error: s.pdError(err)}, nil
	}
	now := time.Now()
	for _, half := range []*pdpb.RangeReport{req.GetLeft(), req.GetRight()} {
		if half != nil {
			l.Topology.Report(half, now)
		}
	}
	return &pdpb.ReportSplitResponse{}, nil
}
