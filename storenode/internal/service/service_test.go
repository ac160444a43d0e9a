package service

import (
	"context"
	"net"
	"sync"
	"testing"

	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/ridgekv/ridge/proto/errs"
	"github.com/ridgekv/ridge/proto/keys"
	kvpb "github.com/ridgekv/ridge/proto/ridge/kv/v1"
	logpb "github.com/ridgekv/ridge/proto/ridge/log/v1"
	metapb "github.com/ridgekv/ridge/proto/ridge/meta/v1"
	storepb "github.com/ridgekv/ridge/proto/ridge/store/v1"
	"github.com/ridgekv/ridge/proto/wire"
	"github.com/ridgekv/ridge/storenode/internal/catalog"
	"github.com/ridgekv/ridge/storenode/internal/evaluate"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	testCluster = 7
	testStore   = 3
)

// fakeRanges holds range 1 [a,m) led here and range 2 [m,z) led by store 9,
// both at span epoch 4.
type fakeRanges struct {
	mu     sync.Mutex
	ranges []Range
	looked int
}

func (f *fakeRanges) set(id uint64, change func(*Range)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for i := range f.ranges {
		if f.ranges[i].State.RangeID() == id {
			change(&f.ranges[i])
		}
	}
}

func (f *fakeRanges) lookups() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.looked
}

func newFakeRanges() *fakeRanges {
	state := func(id uint64, start, end string) *catalog.State {
		span := &metapb.Span{Start: []byte(start), End: []byte(end)}
		return catalog.NewState(&logpb.RangeState{
			RangeId: id, ReplicaId: id, Span: span, SpanEpoch: 4,
			State:  logpb.ReplicaState_REPLICA_STATE_NORMAL,
			Role:   metapb.Role_ROLE_VOTER,
			Slices: []*logpb.Slice{{Extent: 1, Span: span}},
		})
	}
	return &fakeRanges{ranges: []Range{
		{State: state(1, "a", "m"), Led: true},
		{State: state(2, "m", "z"), Leader: &metapb.Leader{ReplicaId: 8, StoreId: 9, Term: 2}},
	}}
}

func (f *fakeRanges) Range(id uint64) (Range, bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.looked++
	for _, r := range f.ranges {
		if r.State.RangeID() == id {
			return r, true
		}
	}
	return Range{}, false
}

func (f *fakeRanges) Lookup(key []byte) (Range, bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.looked++
	for _, r := range f.ranges {
		if r.State.Span().Contains(key) {
			return r, true
		}
	}
	return Range{}, false
}

func (f *fakeRanges) Describe(id uint64) *metapb.Range { return &metapb.Range{RangeId: id} }

// fakeEvaluator answers every request as told; by default with success.
type fakeEvaluator struct {
	mu     sync.Mutex
	answer func(*kvpb.Request) *kvpb.Response
	// held are requests that are not answered yet, when hold is set.
	hold bool
	held []func()
}

func (f *fakeEvaluator) SubmitAll(all []evaluate.Submission) {
	for _, s := range all {
		f.Submit(s.Request, s.To.Answer)
	}
}

func (f *fakeEvaluator) Submit(r *kvpb.Request, respond func(*kvpb.Response)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	answer := f.answer
	if answer == nil {
		answer = echo
	}
	if f.hold {
		f.held = append(f.held, func() { respond(answer(r)) })
		return
	}
	respond(answer(r))
}

func (f *fakeEvaluator) release() {
	f.mu.Lock()
	held := f.held
	f.held, f.hold = nil, false
	f.mu.Unlock()
	for _, h := range held {
		h()
	}
}

func (f *fakeEvaluator) waiting() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.held)
}

// echo answers success; a Get finds its key as value.
func echo(r *kvpb.Request) *kvpb.Response {
	switch b := r.GetBody().(type) {
	case *kvpb.Request_Get:
		return &kvpb.Response{Body: &kvpb.Response_Get{Get: &kvpb.GetResponse{
			Found: true, Row: &kvpb.Row{Key: b.Get.GetKey(), Value: b.Get.GetKey()},
		}}}
	case *kvpb.Request_Put:
		return &kvpb.Response{Body: &kvpb.Response_Put{Put: &kvpb.PutResponse{CommitTs: 5}}}
	case *kvpb.Request_Scan:
		return &kvpb.Response{Body: &kvpb.Response_Scan{Scan: &kvpb.ScanResponse{More: true}}}
	}
	return &kvpb.Response{Body: &kvpb.Response_Error{Error: errs.ToProto(errs.Busy{Reason: "?"})}}
}

// fakeGateway notes what it was given.
type fakeGateway struct {
	mu    sync.Mutex
	got   []*kvpb.Request
	scans int
	// answer, if set, is what it answers.
	answer *kvpb.Response
}

func (f *fakeGateway) Do(_ context.Context, r *kvpb.Request) *kvpb.Response {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.got = append(f.got, r)
	if f.answer != nil {
		return f.answer
	}
	return &kvpb.Response{Body: &kvpb.Response_Get{Get: &kvpb.GetResponse{Token: 99}}}
}

func (f *fakeGateway) Scan(
	_ context.Context, _ *kvpb.ScanRequest, send func(*kvpb.ScanResponse) error,
) error {
	f.mu.Lock()
	f.scans++
	f.mu.Unlock()
	if err := send(&kvpb.ScanResponse{More: true}); err != nil {
		return err
	}
	return send(&kvpb.ScanResponse{})
}

func (f *fakeGateway) count() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.got)
}

type fakeStore struct {
	storepb.UnimplementedStoreServiceServer
}

func (fakeStore) Status(
	context.Context, *storepb.StatusRequest,
) (*storepb.StatusResponse, error) {
	return &storepb.StatusResponse{RangeCount: 2}, nil
}

func (fakeStore) ListReplicas(
	context.Context, *storepb.ListReplicasRequest,
) (*storepb.ListReplicasResponse, error) {
	panic("a bug")
}

// rig is a door with fakes behind it, on loopback.
type rig struct {
	s         *Service
	ranges    *fakeRanges
	evaluator *fakeEvaluator
	gateway   *fakeGateway
	kv        kvpb.KVServiceClient
	store     storepb.StoreServiceClient
}

func newRig(t testing.TB, o Options) *rig {
	r := &rig{
		s: New(o), ranges: newFakeRanges(), evaluator: &fakeEvaluator{}, gateway: &fakeGateway{},
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer(grpc.ForceServerCodecV2(wire.Codec{}))
	r.s.Register(server)
	var wg sync.WaitGroup
	wg.Go(func() { _ = server.Serve(l) })
	conn, err := grpc.NewClient(l.Addr().String(),
		grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	r.kv, r.store = kvpb.NewKVServiceClient(conn), storepb.NewStoreServiceClient(conn)
	t.Cleanup(func() {
		_ = conn.Close()
		server.Stop()
		wg.Wait()
		r.s.readers.Wait()
	})
	return r
}

func (r *rig) open() {
	r.s.Open(&Core{
		ClusterID: testCluster, StoreID: testStore, Evaluator: r.evaluator, Ranges: r.ranges,
		Gateway: r.gateway, Store: fakeStore{},
		Pong: func(m *storepb.PingRequest) *storepb.PingResponse {
			return &storepb.PingResponse{StoreId: testStore, Seq: m.GetSeq()}
		},
	})
}

func getOf(h *kvpb.Header, key string) *kvpb.Request {
	return &kvpb.Request{Body: &kvpb.Request_Get{Get: &kvpb.GetRequest{
		Header: h, Key: []byte(key),
	}}}
}

func putOf(h *kvpb.Header, key string, size int) *kvpb.Request {
	return &kvpb.Request{Body: &kvpb.Request_Put{Put: &kvpb.PutRequest{
		Header: h, Key: []byte(key), Value: make([]byte, size),
	}}}
}

func at(rangeID, epoch uint64) *kvpb.Header {
	return &kvpb.Header{RangeId: rangeID, SpanEpoch: epoch}
}

var longKey = string(make([]byte, keys.MaxKeySizeBytes+1))
