package service

import (
	"context"
	"runtime/debug"
	"time"

	"github.com/ridgekv/ridge/proto/errs"
	kvpb "github.com/ridgekv/ridge/proto/ridge/kv/v1"
)

// Get implements KVService.
func (s *Service) Get(ctx context.Context, in *kvpb.GetRequest) (*kvpb.GetResponse, error) {
	r := s.call(ctx, &kvpb.Request{Body: &kvpb.Request_Get{Get: in}})
	if out := r.GetGet(); out != nil {
		return out, nil
	}
	return &kvpb.GetResponse{Error: errorOf(r)}, nil
}

// Put implements KVService.
func (s *Service) Put(ctx context.Context, in *kvpb.PutRequest) (*kvpb.PutResponse, error) {
	r := s.call(ctx, &kvpb.Request{Body: &kvpb.Request_Put{Put: in}})
	if out := r.GetPut(); out != nil {
		return out, nil
	}
	return &kvpb.PutResponse{Error: errorOf(r)}, nil
}

// Delete implements KVService.
func (s *Service) Delete(
	ctx context.Context, in *kvpb.DeleteRequest,
) (*kvpb.DeleteResponse, error) {
	r := s.call(ctx, &kvpb.Request{Body: &kvpb.Request_Delete{Delete: in}})
	if out := r.GetDelete(); out != nil {
		return out, nil
	}
	return &kvpb.DeleteResponse{Error: errorOf(r)}, nil
}

// CompareAndSwap implements KVService.
func (s *Service) CompareAndSwap(
	ctx context.Context, in *kvpb.CompareAndSwapRequest,
) (*kvpb.CompareAndSwapResponse, error) {
	r := s.call(ctx, &kvpb.Request{Body: &kvpb.Request_CompareAndSwap{CompareAndSwap: in}})
	if out := r.GetCompareAndSwap(); out != nil {
		return out, nil
	}
	return &kvpb.CompareAndSwapResponse{Error: errorOf(r)}, nil
}

// BatchGet implements KVService.
func (s *Service) BatchGet(
	ctx context.Context, in *kvpb.BatchGetRequest,
) (*kvpb.BatchGetResponse, error) {
	r := s.call(ctx, &kvpb.Request{Body: &kvpb.Request_BatchGet{BatchGet: in}})
	if out := r.GetBatchGet(); out != nil {
		return out, nil
	}
	return &kvpb.BatchGetResponse{Error: errorOf(r)}, nil
}

// BatchWrite implements KVService.
func (s *Service) BatchWrite(
	ctx context.Context, in *kvpb.BatchWriteRequest,
) (*kvpb.BatchWriteResponse, error) {
	r := s.call(ctx, &kvpb.Request{Body: &kvpb.Request_BatchWrite{BatchWrite: in}})
	if out := r.GetBatchWrite(); out != nil {
		return out, nil
	}
	return &kvpb.BatchWriteResponse{Error: errorOf(r)}, nil
}

// BulkWrite implements KVService.
func (s *Service) BulkWrite(
	ctx context.Context, in *kvpb.BulkWriteRequest,
) (*kvpb.BulkWriteResponse, error) {
	r := s.call(ctx, &kvpb.Request{Body: &kvpb.Request_BulkWrite{BulkWrite: in}})
	if out := r.GetBulkWrite(); out != nil {
		return out, nil
	}
	return &kvpb.BulkWriteResponse{Error: errorOf(r)}, nil
}

// DeleteRange implements KVService.
func (s *Service) DeleteRange(
	ctx context.Context, in *kvpb.DeleteRangeRequest,
) (*kvpb.DeleteRangeResponse, error) {
	r := s.call(ctx, &kvpb.Request{Body: &kvpb.Request_DeleteRange{DeleteRange: in}})
	if out := r.GetDeleteRange(); out != nil {
		return out, nil
	}
	return &kvpb.DeleteRangeResponse{Error: errorOf(r)}, nil
}

// Scan implements KVService. A request that names its range, or was forwarded,
// is answered with one page; any other goes through the gateway, which knows
// how to cross ranges at one timestamp.
func (s *Service) Scan(in *kvpb.ScanRequest, stream kvpb.KVService_ScanServer) error {
	return s.attend(stream.Context(), func(owes *debt) error {
		return s.scan(in, stream, func(out *kvpb.ScanResponse) error {
			owes.begin()
			defer owes.end()
			return stream.Send(out)
		})
	})
}

func (s *Service) scan(
	in *kvpb.ScanRequest, stream kvpb.KVService_ScanServer, send func(*kvpb.ScanResponse) error,
) error {
	request := &kvpb.Request{Body: &kvpb.Request_Scan{Scan: in}}
	if h := in.GetHeader(); h.GetRangeId() != 0 || h.GetForwarded() {
		r := s.call(stream.Context(), request)
		if out := r.GetScan(); out != nil {
			return send(out)
		}
		return send(&kvpb.ScanResponse{Error: errorOf(r)})
	}
	core, err := s.enter()
	if err == nil {
		defer s.leave()
		err = s.door(stream.Context(), core, request)
	}
	if err != nil {
		return send(&kvpb.ScanResponse{Error: errs.ToProto(err)})
	}
	s.metrics.forwarded.Inc()
	return core.Gateway.Scan(stream.Context(), in, send)
}

// call carries one unary request to its answer, which may be a bare error.
func (s *Service) call(ctx context.Context, request *kvpb.Request) (out *kvpb.Response) {
	core, err := s.enter()
	if err != nil {
		return refusal(0, err)
	}
	defer s.leave()
	defer func() {
		if p := recover(); p != nil {
			out = s.panicked(request, p)
		}
	}()
	h := headerOf(request)
	if err := s.door(ctx, core, request); err != nil {
		return refusal(0, err)
	}
	size := sizeOf(request)
	if !s.reserve(size) {
		s.metrics.busy.WithLabelValues(busyBytes).Inc()
		return refusal(0, errs.Busy{Reason: busyBytes})
	}
	defer s.release(size)
	ctx, cancel := patience(ctx, h)
	defer cancel()
	return s.route(ctx, core, request, h)
}

// door climbs the rungs that need no range.
func (s *Service) door(ctx context.Context, core *Core, request *kvpb.Request) error {
	want, err := identityOf(ctx)
	if err != nil {
		return err
	}
	if err := checkIdentity(core, want); err != nil {
		return err
	}
	return checkArguments(request)
}

// route answers here if this store leads the keys, otherwise through the
// gateway. What names its range, or was forwarded once, is answered here or
// not at all.
func (s *Service) route(
	ctx context.Context, core *Core, request *kvpb.Request, h *kvpb.Header,
) *kvpb.Response {
	if h.GetRangeId() != 0 {
		return s.local(ctx, core, request, h)
	}
	r, here := awaitLeader(ctx, core.Ranges, request)
	if here {
		h.RangeId, h.SpanEpoch = r.State.RangeID(), r.State.SpanEpoch()
		out := s.local(ctx, core, request, h)
		if h.GetForwarded() || !lost(errorOf(out)) {
			return out
		}
		h.RangeId, h.SpanEpoch = 0, 0
		if done := out.GetBulkWrite(); done.GetAppliedCount() > 0 {
			return s.forwardRest(ctx, core, request.GetBulkWrite(), done)
		}
	}
	if h.GetForwarded() {
		return refusal(0, s.stray(core, request))
	}
	s.metrics.forwarded.Inc()
	return core.Gateway.Do(ctx, request)
}

// forwardRest forwards what is left of a BulkWrite of which done is applied: to
// send that again could undo what others have written since.
func (s *Service) forwardRest(
	ctx context.Context, core *Core, in *kvpb.BulkWriteRequest, done *kvpb.BulkWriteResponse,
) *kvpb.Response {
	n := min(done.GetAppliedCount(), uint64(len(in.GetMutations())))
	s.metrics.forwarded.Inc()
	out := core.Gateway.Do(ctx, &kvpb.Request{Body: &kvpb.Request_BulkWrite{
		BulkWrite: &kvpb.BulkWriteRequest{Header: in.GetHeader(), Mutations: in.GetMutations()[n:]},
	}})
	rest := out.GetBulkWrite()
	if rest == nil {
		rest = &kvpb.BulkWriteResponse{Error: errorOf(out)}
	}
	rest.AppliedCount += n
	rest.CommitTs = max(rest.GetCommitTs(), done.GetCommitTs())
	return &kvpb.Response{Body: &kvpb.Response_BulkWrite{BulkWrite: rest}}
}

// electionPatience bounds the wait for a leader of a range that has a replica
// here. This store hears of it at least as soon as any other.
const electionPatience = 2 * time.Second

// awaitLeader is place, but waits while a local range is between leaders.
func awaitLeader(
	ctx context.Context, ranges Ranges, request *kvpb.Request,
) (r Range, here bool) {
	if r, here = place(ranges, request); here || !leaderless(ranges, request) {
		return r, here
	}
	ctx, cancel := context.WithTimeout(ctx, electionPatience)
	defer cancel()
	ticker := time.NewTicker(5 * time.Millisecond)
	defer ticker.Stop()
	for leaderless(ranges, request) {
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return Range{}, false
		}
	}
	return place(ranges, request)
}

// leaderless reports whether the range of request has a replica here and no
// known leader.
func leaderless(ranges Ranges, request *kvpb.Request) bool {
	r, ok := ranges.Lookup(firstKey(request))
	return ok && !r.Led && r.Leader == nil && !anyReplica(request)
}

// lost reports whether e says that nothing was done here and another store
// should be asked.
func lost(e *kvpb.Error) bool {
	return e.GetClass() == kvpb.ErrorClass_ERROR_CLASS_REROUTE &&
		e.GetApplied() == kvpb.Applied_APPLIED_NO
}

// stray tells a forwarded request why it is wrong here.
func (s *Service) stray(core *Core, request *kvpb.Request) error {
	r, ok := core.Ranges.Lookup(firstKey(request))
	if !ok {
		return errs.RangeNotFound{}
	}
	if r.Led {
		return errs.KeyNotInRange{
			Key: firstKey(request), Range: core.Ranges.Describe(r.State.RangeID()),
		}
	}
	return errs.NotLeader{RangeID: r.State.RangeID(), Leader: r.Leader}
}

// local asks this store's own leaseholder and waits.
func (s *Service) local(
	ctx context.Context, core *Core, request *kvpb.Request, h *kvpb.Header,
) *kvpb.Response {
	if err := checkRange(core.Ranges, request, h); err != nil {
		return refusal(0, err)
	}
	answer := make(chan *kvpb.Response, 1)
	core.Evaluator.Submit(request, func(r *kvpb.Response) { answer <- r })
	select {
	case r := <-answer:
		return r
	case <-ctx.Done():
		if writes(request) {
			return refusal(0, errs.UnknownOutcome{RangeID: h.GetRangeId()})
		}
		return refusal(0, ctx.Err())
	}
}

// panicked turns a panic into an answer. The request may have had effects.
func (s *Service) panicked(request *kvpb.Request, p any) *kvpb.Response {
	s.metrics.panics.Inc()
	s.o.Logger.Error("request handler panicked", "panic", p, "stack", string(debug.Stack()))
	if writes(request) {
		return refusal(request.GetId(), errs.UnknownOutcome{})
	}
	return refusal(request.GetId(), errs.Unavailable{Part: "server"})
}
