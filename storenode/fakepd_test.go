package storenode_test

import (
	"bytes"
	"context"
	"slices"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"

	"github.com/ridgekv/ridge/proto/keys"
	metapb "github.com/ridgekv/ridge/proto/ridge/meta/v1"
	pdpb "github.com/ridgekv/ridge/proto/ridge/pd/v1"
	"github.com/ridgekv/ridge/proto/ts"
)

// fakePD is a PD of one node that gives orders only when told to.
type fakePD struct {
	pdpb.UnimplementedPDServiceServer
	address   string
	clusterID uint64
	stop      func()

	mu struct {
		sync.Mutex
		last    ts.Timestamp
		nextID  uint64
		stores  map[uint64]*metapb.Store
		first   *metapb.Range
		reports map[uint64]*pdpb.RangeReport
		locals  map[uint64]map[uint64]*pdpb.LocalReplica
		streams map[uint64]pdpb.PDService_RangeHeartbeatServer
		gone    bool
	}
}

func startFakePD(t *testing.T) *fakePD {
	t.Helper()
	p := &fakePD{address: freePort(t), clusterID: 77}
	p.mu.stores = map[uint64]*metapb.Store{}
	p.mu.reports = map[uint64]*pdpb.RangeReport{}
	p.mu.locals = map[uint64]map[uint64]*pdpb.LocalReplica{}
	p.mu.streams = map[uint64]pdpb.PDService_RangeHeartbeatServer{}
	p.mu.nextID = 100
	p.start(t)
	t.Cleanup(func() { p.stop() })
	return p
}

func (p *fakePD) start(t *testing.T) {
	p.stop = listen(t, p.address, nil, func(r grpc.ServiceRegistrar) {
		pdpb.RegisterPDServiceServer(r, p)
	})
}

func (p *fakePD) now() ts.Timestamp {
	p.mu.last = max(p.mu.last+1, ts.FromTime(time.Now()))
	return p.mu.last
}

func (p *fakePD) list() []*metapb.Store {
	var out []*metapb.Store
	for _, s := range p.mu.stores {
		out = append(out, s)
	}
	return out
}

func (p *fakePD) Members(
	context.Context, *pdpb.MembersRequest,
) (*pdpb.MembersResponse, error) {
	return &pdpb.MembersResponse{
		ClusterId: p.clusterID, LeaderId: 1,
		Members: []*pdpb.Member{{MemberId: 1, GrpcAddress: p.address}},
	}, nil
}

func (p *fakePD) RegisterStore(
	_ context.Context, r *pdpb.RegisterStoreRequest,
) (*pdpb.RegisterStoreResponse, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.mu.gone {
		return &pdpb.RegisterStoreResponse{Error: &pdpb.PDError{
			Reason: pdpb.PDErrorReason_PD_ERROR_REASON_STORE_GONE, Message: "gone",
		}}, nil
	}
	s := r.GetStore()
	if s.GetStoreId() == 0 {
		s.StoreId = uint64(len(p.mu.stores) + 1)
	}
	s.State = metapb.StoreState_STORE_STATE_UP
	p.mu.stores[s.GetStoreId()] = s
	if p.mu.first == nil {
		p.mu.first = &metapb.Range{
			RangeId: 1, Span: &metapb.Span{}, Epoch: &metapb.Epoch{Config: 5, Span: 1},
			Replicas: []*metapb.Replica{{
				ReplicaId: 1, StoreId: s.GetStoreId(), Role: metapb.Role_ROLE_VOTER,
			}},
		}
	}
	out := &pdpb.RegisterStoreResponse{
		ClusterId: p.clusterID, StoreId: s.GetStoreId(), Stores: p.list(),
		Timestamp: uint64(p.now()),
	}
	if p.mu.first.GetReplicas()[0].GetStoreId() == s.GetStoreId() &&
		len(p.mu.locals[s.GetStoreId()]) == 0 {
		out.FirstRange = p.mu.first
	}
	return out, nil
}

func (p *fakePD) StoreHeartbeat(
	context.Context, *pdpb.StoreHeartbeatRequest,
) (*pdpb.StoreHeartbeatResponse, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return &pdpb.StoreHeartbeatResponse{Stores: p.list()}, nil
}

func (p *fakePD) RangeHeartbeat(stream pdpb.PDService_RangeHeartbeatServer) error {
	for {
		m, err := stream.Recv()
		if err != nil {
			return nil
		}
		p.mu.Lock()
		id := m.GetStoreId()
		p.mu.streams[id] = stream
		if m.GetComplete() || p.mu.locals[id] == nil {
			p.mu.locals[id] = map[uint64]*pdpb.LocalReplica{}
		}
		for _, l := range m.GetReplicas() {
			p.mu.locals[id][l.GetRangeId()] = l
		}
		for _, r := range m.GetRanges() {
			p.mu.reports[r.GetRange().GetRangeId()] = r
		}
		p.mu.Unlock()
	}
}

func (p *fakePD) Timestamps(stream pdpb.PDService_TimestampsServer) error {
	for {
		m, err := stream.Recv()
		if err != nil {
			return nil
		}
		p.mu.Lock()
		first := p.now()
		p.mu.last += ts.Timestamp(m.GetCount())
		p.mu.Unlock()
		err = stream.Send(&pdpb.TimestampsResponse{First: uint64(first), Count: m.GetCount()})
		if err != nil {
			return err
		}
	}
}

func (p *fakePD) AskSplit(
	_ context.Context, r *pdpb.AskSplitRequest,
) (*pdpb.AskSplitResponse, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	out := &pdpb.AskSplitResponse{}
	for range r.GetRange().GetReplicas() {
		p.mu.nextID++
		out.ChildReplicaIds = append(out.ChildReplicaIds, p.mu.nextID)
	}
	p.mu.nextID++
	out.ChildRangeId = p.mu.nextID
	return out, nil
}

func (p *fakePD) ReportSplit(
	_ context.Context, r *pdpb.ReportSplitRequest,
) (*pdpb.ReportSplitResponse, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, half := range []*pdpb.RangeReport{r.GetLeft(), r.GetRight()} {
		p.mu.reports[half.GetRange().GetRangeId()] = half
	}
	return &pdpb.ReportSplitResponse{}, nil
}

func (p *fakePD) GetSafePoint(
	context.Context, *pdpb.GetSafePointRequest,
) (*pdpb.GetSafePointResponse, error) {
	return &pdpb.GetSafePointResponse{}, nil
}

func (p *fakePD) GetRoute(
	_ context.Context, r *pdpb.GetRouteRequest,
) (*pdpb.GetRouteResponse, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	out := &pdpb.GetRouteResponse{Stores: p.list()}
	for _, report := range p.mu.reports {
		if keys.FromProto(report.GetRange().GetSpan()).Contains(r.GetKey()) &&
			report.GetRange().GetEpoch().GetSpan() >= out.GetRoute().GetRange().GetEpoch().GetSpan() {
			out.Route = &pdpb.Route{Range: report.GetRange(), Leader: report.GetLeader()}
		}
	}
	if out.GetRoute() == nil {
		out.Error = &pdpb.PDError{Reason: pdpb.PDErrorReason_PD_ERROR_REASON_NOT_FOUND}
	}
	return out, nil
}

func (p *fakePD) ListRoutes(
	_ context.Context, r *pdpb.ListRoutesRequest,
) (*pdpb.ListRoutesResponse, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	out := &pdpb.ListRoutesResponse{Stores: p.list()}
	for _, report := range p.mu.reports {
		if keys.FromProto(report.GetRange().GetSpan()).Overlaps(keys.FromProto(r.GetSpan())) {
			out.Routes = append(out.Routes,
				&pdpb.Route{Range: report.GetRange(), Leader: report.GetLeader()})
		}
	}
	slices.SortFunc(out.Routes, func(a, b *pdpb.Route) int {
		return bytes.Compare(a.GetRange().GetSpan().GetStart(), b.GetRange().GetSpan().GetStart())
	})
	return out, nil
}

// report is the newest report of a range.
func (p *fakePD) report(rangeID uint64) *pdpb.RangeReport {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.mu.reports[rangeID]
}

// ranges lists the ids of all reported ranges.
func (p *fakePD) ranges() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.mu.reports)
}

// order sends an order to a store, at the epoch last reported.
func (p *fakePD) order(storeID uint64, o *pdpb.Order) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	stream := p.mu.streams[storeID]
	if stream == nil {
		return false
	}
	o.Epoch = p.mu.reports[o.GetRangeId()].GetRange().GetEpoch()
	return stream.Send(&pdpb.RangeHeartbeatResponse{Orders: []*pdpb.Order{o}}) == nil
}

// local is what a store says about its replica of a range.
func (p *fakePD) local(storeID, rangeID uint64) (*pdpb.LocalReplica, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	l, ok := p.mu.locals[storeID][rangeID]
	return l, ok
}

// allLed reports whether every range has told its leader itself.
func (p *fakePD) allLed() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, r := range p.mu.reports {
		if r.GetLeader().GetTerm() == 0 {
			return false
		}
	}
	return true
}

func (p *fakePD) setGone() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.mu.gone = true
}
