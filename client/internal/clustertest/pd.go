package clustertest

import (
	"context"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"

	"github.com/ridgekv/ridge/proto/keys"
	kvpb "github.com/ridgekv/ridge/proto/ridge/kv/v1"
	pdpb "github.com/ridgekv/ridge/proto/ridge/pd/v1"
	"github.com/ridgekv/ridge/proto/ts"
)

// PD is one scripted PD node.
type PD struct {
	pdpb.UnimplementedPDServiceServer
	c      *Cluster
	index  int
	server *server

	// Calls counts the unary calls that arrived, TimestampRequests the requests
	// on timestamp streams, TimestampsAsked the timestamps asked for.
	Calls, TimestampRequests, TimestampsAsked atomic.Int64
	// Skew is added to the timestamps of this node.
	Skew atomic.Int64
	// Delay is how long an answer to a timestamp request takes.
	Delay atomic.Int64

	mu struct {
		sync.Mutex
		// refuse, if set, answers every call to the leader.
		refuse func(op string) *pdpb.PDError
		frozen chan struct{}
	}
}

// Address is where the node listens.
func (p *PD) Address() string { return p.server.addr }

// Kill closes every connection of the node.
func (p *PD) Kill() { p.server.kill() }

// Start serves again after Kill.
func (p *PD) Start() { p.server.start(p.register) }

// Refuse lets f answer calls; nil results go on as usual. nil ends it.
func (p *PD) Refuse(f func(op string) *pdpb.PDError) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.mu.refuse = f
}

// Freeze lets the node answer nothing, as SIGSTOP would, until Thaw.
func (p *PD) Freeze() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.mu.frozen = make(chan struct{})
}

// Thaw ends Freeze.
func (p *PD) Thaw() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.mu.frozen != nil {
		close(p.mu.frozen)
		p.mu.frozen = nil
	}
}

func (p *PD) register(r grpc.ServiceRegistrar) { pdpb.RegisterPDServiceServer(r, p) }

// admit counts a call and returns the error to answer, if there is one.
func (p *PD) admit(ctx context.Context, op string, h *pdpb.RequestHeader) *pdpb.PDError {
	p.mu.Lock()
	frozen, refuse := p.mu.frozen, p.mu.refuse
	p.mu.Unlock()
	if frozen != nil {
		select {
		case <-frozen:
		case <-ctx.Done():
		}
	}
	p.c.mu.Lock()
	defer p.c.mu.Unlock()
	if id := h.GetClusterId(); id != 0 && id != ClusterID {
		return &pdpb.PDError{
			Reason:  pdpb.PDErrorReason_PD_ERROR_REASON_CLUSTER_MISMATCH,
			Message: "another cluster", Class: kvpb.ErrorClass_ERROR_CLASS_FAIL,
		}
	}
	if l := p.c.mu.pdLeader; l != p.index {
		e := &pdpb.PDError{
			Reason:  pdpb.PDErrorReason_PD_ERROR_REASON_NOT_LEADER,
			Message: "not the leader", Class: kvpb.ErrorClass_ERROR_CLASS_REROUTE,
		}
		if l >= 0 {
			e.LeaderAddress = p.c.PDs[l].server.addr
		}
		return e
	}
	if refuse != nil {
		return refuse(op)
	}
	return nil
}

// Members implements PDService.
func (p *PD) Members(context.Context, *pdpb.MembersRequest) (*pdpb.MembersResponse, error) {
	p.c.mu.Lock()
	defer p.c.mu.Unlock()
	r := &pdpb.MembersResponse{ClusterId: ClusterID, LeaderId: uint64(p.c.mu.pdLeader + 1)}
	for i, m := range p.c.PDs {
		r.Members = append(r.Members, &pdpb.Member{MemberId: uint64(i + 1), GrpcAddress: m.server.addr})
	}
	return r, nil
}

// Status implements PDService.
func (p *PD) Status(context.Context, *pdpb.StatusRequest) (*pdpb.StatusResponse, error) {
	return &pdpb.StatusResponse{ClusterId: ClusterID, MemberId: uint64(p.index + 1)}, nil
}

// RegisterStore implements PDService.
func (p *PD) RegisterStore(
	ctx context.Context, r *pdpb.RegisterStoreRequest,
) (*pdpb.RegisterStoreResponse, error) {
	p.Calls.Add(1)
	if e := p.admit(ctx, "register store", r.GetHeader()); e != nil {
		return &pdpb.RegisterStoreResponse{Error: e}, nil
	}
	return &pdpb.RegisterStoreResponse{ClusterId: ClusterID, StoreId: 1}, nil
}

// AllocateIds implements PDService.
func (p *PD) AllocateIds(
	ctx context.Context, r *pdpb.AllocateIdsRequest,
) (*pdpb.AllocateIdsResponse, error) {
	p.Calls.Add(1)
	if e := p.admit(ctx, "allocate ids", r.GetHeader()); e != nil {
		return &pdpb.AllocateIdsResponse{Error: e}, nil
	}
	p.c.mu.Lock()
	defer p.c.mu.Unlock()
	first := p.c.mu.nextID + 1
	p.c.mu.nextID += uint64(r.GetCount())
	return &pdpb.AllocateIdsResponse{First: first}, nil
}

// GetSafePoint implements PDService.
func (p *PD) GetSafePoint(
	ctx context.Context, r *pdpb.GetSafePointRequest,
) (*pdpb.GetSafePointResponse, error) {
	p.Calls.Add(1)
	return &pdpb.GetSafePointResponse{Error: p.admit(ctx, "get safe point", r.GetHeader())}, nil
}

// GetRoute implements PDService.
func (p *PD) GetRoute(
	ctx context.Context, r *pdpb.GetRouteRequest,
) (*pdpb.GetRouteResponse, error) {
	p.Calls.Add(1)
	if e := p.admit(ctx, "get route", r.GetHeader()); e != nil {
		return &pdpb.GetRouteResponse{Error: e}, nil
	}
	p.c.mu.Lock()
	defer p.c.mu.Unlock()
	for _, rt := range p.c.routesLocked() {
		if keys.FromProto(rt.Range.Span).Contains(r.Key) {
			return &pdpb.GetRouteResponse{Route: rt, Stores: p.c.storesLocked()}, nil
		}
	}
	return &pdpb.GetRouteResponse{Error: &pdpb.PDError{
		Reason: pdpb.PDErrorReason_PD_ERROR_REASON_NOT_FOUND,
	}}, nil
}

// ListRoutes implements PDService.
func (p *PD) ListRoutes(
	ctx context.Context, r *pdpb.ListRoutesRequest,
) (*pdpb.ListRoutesResponse, error) {
	p.Calls.Add(1)
	if e := p.admit(ctx, "list routes", r.GetHeader()); e != nil {
		return &pdpb.ListRoutesResponse{Error: e}, nil
	}
	p.c.mu.Lock()
	defer p.c.mu.Unlock()
	resp := &pdpb.ListRoutesResponse{Stores: p.c.storesLocked()}
	for _, rt := range p.c.routesLocked() {
		if !keys.FromProto(rt.Range.Span).Overlaps(keys.FromProto(r.Span)) {
			continue
		}
		if r.Limit > 0 && len(resp.Routes) == int(r.Limit) {
			resp.More = true
			break
		}
		resp.Routes = append(resp.Routes, rt)
	}
	return resp, nil
}

// ListStores implements PDService.
func (p *PD) ListStores(
	ctx context.Context, r *pdpb.ListStoresRequest,
) (*pdpb.ListStoresResponse, error) {
	p.Calls.Add(1)
	if e := p.admit(ctx, "list stores", r.GetHeader()); e != nil {
		return &pdpb.ListStoresResponse{Error: e}, nil
	}
	p.c.mu.Lock()
	defer p.c.mu.Unlock()
	resp := &pdpb.ListStoresResponse{}
	for _, s := range p.c.storesLocked() {
		resp.Stores = append(resp.Stores, &pdpb.StoreInfo{Store: s})
	}
	return resp, nil
}

// WatchRoutes implements PDService.
func (p *PD) WatchRoutes(
	r *pdpb.WatchRoutesRequest, stream grpc.ServerStreamingServer[pdpb.WatchRoutesResponse],
) error {
	bell := make(chan struct{}, 1)
	p.c.mu.Lock()
	p.c.mu.watchers[bell] = true
	p.c.mu.Unlock()
	defer func() {
		p.c.mu.Lock()
		delete(p.c.mu.watchers, bell)
		p.c.mu.Unlock()
	}()
	for {
		if e := p.admit(stream.Context(), "watch routes", r.GetHeader()); e != nil {
			return stream.Send(&pdpb.WatchRoutesResponse{Error: e})
		}
		p.c.mu.Lock()
		resp := &pdpb.WatchRoutesResponse{
			Routes: p.c.routesLocked(), Stores: p.c.storesLocked(), Synced: true,
		}
		p.c.mu.Unlock()
		if err := stream.Send(resp); err != nil {
			return err
		}
		select {
		case <-bell:
		case <-stream.Context().Done():
			return nil
		}
	}
}

// RangeHeartbeat implements PDService: each report earns one order.
func (p *PD) RangeHeartbeat(
	stream grpc.BidiStreamingServer[pdpb.RangeHeartbeatRequest, pdpb.RangeHeartbeatResponse],
) error {
	for {
		r, err := stream.Recv()
		if err != nil {
			return nil
		}
		resp := &pdpb.RangeHeartbeatResponse{
			Error:  p.admit(stream.Context(), "range heartbeat", r.GetHeader()),
			Orders: []*pdpb.Order{{RangeId: uint64(len(r.Ranges)), OperatorId: uint64(p.index)}},
		}
		if err := stream.Send(resp); err != nil || resp.Error != nil {
			return err
		}
	}
}

// Timestamps implements PDService.
func (p *PD) Timestamps(
	stream grpc.BidiStreamingServer[pdpb.TimestampsRequest, pdpb.TimestampsResponse],
) error {
	for {
		r, err := stream.Recv()
		if err != nil {
			return nil
		}
		p.TimestampRequests.Add(1)
		p.TimestampsAsked.Add(int64(r.GetCount()))
		if d := time.Duration(p.Delay.Load()); d > 0 {
			Rest(d)
		}
		resp := &pdpb.TimestampsResponse{
			Error: p.admit(stream.Context(), "timestamps", r.GetHeader()), Count: r.GetCount(),
		}
		if resp.Error == nil {
			p.c.mu.Lock()
			first := p.c.timestampsLocked(uint64(r.GetCount()))
			p.c.mu.Unlock()
			resp.First = uint64(first + ts.Timestamp(p.Skew.Load()))
		}
		if err := stream.Send(resp); err != nil {
			return err
		}
	}
}
