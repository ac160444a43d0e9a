package pd

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"

	metapb "github.com/ridgekv/ridge/proto/ridge/meta/v1"
	pdpb "github.com/ridgekv/ridge/proto/ridge/pd/v1"
)

const (
	notLeader  = pdpb.PDErrorReason_PD_ERROR_REASON_NOT_LEADER
	mismatch   = pdpb.PDErrorReason_PD_ERROR_REASON_CLUSTER_MISMATCH
	notFound   = pdpb.PDErrorReason_PD_ERROR_REASON_NOT_FOUND
	argument   = pdpb.PDErrorReason_PD_ERROR_REASON_INVALID_ARGUMENT
	gone       = pdpb.PDErrorReason_PD_ERROR_REASON_STORE_GONE
	inUse      = pdpb.PDErrorReason_PD_ERROR_REASON_ADDRESS_IN_USE
	noReason   = pdpb.PDErrorReason_PD_ERROR_REASON_UNSPECIFIED
	noCluster  = pdpb.PDErrorReason_PD_ERROR_REASON_NOT_BOOTSTRAPPED
	notNow     = pdpb.PDErrorReason_PD_ERROR_REASON_UNAVAILABLE
	tooOld     = pdpb.PDErrorReason_PD_ERROR_REASON_TOO_OLD
	maxHoldIDs = 256
)

// calls is every call that only the leader answers, with an otherwise empty
// request.
var calls = map[string]func(
	context.Context, pdpb.PDServiceClient, *pdpb.RequestHeader,
) (*pdpb.PDError, error){
	"RegisterStore": func(ctx context.Context, c pdpb.PDServiceClient, h *pdpb.RequestHeader) (*pdpb.PDError, error) {
		r, err := c.RegisterStore(ctx, &pdpb.RegisterStoreRequest{Header: h})
		return r.GetError(), err
	},
	"StoreHeartbeat": func(ctx context.Context, c pdpb.PDServiceClient, h *pdpb.RequestHeader) (*pdpb.PDError, error) {
		r, err := c.StoreHeartbeat(ctx, &pdpb.StoreHeartbeatRequest{Header: h})
		return r.GetError(), err
	},
	"AllocateIds": func(ctx context.Context, c pdpb.PDServiceClient, h *pdpb.RequestHeader) (*pdpb.PDError, error) {
		r, err := c.AllocateIds(ctx, &pdpb.AllocateIdsRequest{Header: h})
		return r.GetError(), err
	},
	"AskSplit": func(ctx context.Context, c pdpb.PDServiceClient, h *pdpb.RequestHeader) (*pdpb.PDError, error) {
		r, err := c.AskSplit(ctx, &pdpb.AskSplitRequest{
			Header: h, Range: &metapb.Range{Replicas: []*metapb.Replica{{}}},
		})
		return r.GetError(), err
	},
	"ReportSplit": func(ctx context.Context, c pdpb.PDServiceClient, h *pdpb.RequestHeader) (*pdpb.PDError, error) {
		r, err := c.ReportSplit(ctx, &pdpb.ReportSplitRequest{Header: h})
		return r.GetError(), err
	},
	"GetRoute": func(ctx context.Context, c pdpb.PDServiceClient, h *pdpb.RequestHeader) (*pdpb.PDError, error) {
		r, err := c.GetRoute(ctx, &pdpb.GetRouteRequest{Header: h})
		return r.GetError(), err
	},
	"ListRoutes": func(ctx context.Context, c pdpb.PDServiceClient, h *pdpb.RequestHeader) (*pdpb.PDError, error) {
		r, err := c.ListRoutes(ctx, &pdpb.ListRoutesRequest{Header: h})
		return r.GetError(), err
	},
	"GetRange": func(ctx context.Context, c pdpb.PDServiceClient, h *pdpb.RequestHeader) (*pdpb.PDError, error) {
		r, err := c.GetRange(ctx, &pdpb.GetRangeRequest{Header: h})
		return r.GetError(), err
	},
	"SplitRange": func(ctx context.Context, c pdpb.PDServiceClient, h *pdpb.RequestHeader) (*pdpb.PDError, error) {
		r, err := c.SplitRange(ctx, &pdpb.SplitRangeRequest{Header: h})
		return r.GetError(), err
	},
	"ListStores": func(ctx context.Context, c pdpb.PDServiceClient, h *pdpb.RequestHeader) (*pdpb.PDError, error) {
		r, err := c.ListStores(ctx, &pdpb.ListStoresRequest{Header: h})
		return r.GetError(), err
	},
	"SetRule": func(ctx context.Context, c pdpb.PDServiceClient, h *pdpb.RequestHeader) (*pdpb.PDError, error) {
		r, err := c.SetRule(ctx, &pdpb.SetRuleRequest{Header: h})
		return r.GetError(), err
	},
	"DeleteRule": func(ctx context.Context, c pdpb.PDServiceClient, h *pdpb.RequestHeader) (*pdpb.PDError, error) {
		r, err := c.DeleteRule(ctx, &pdpb.DeleteRuleRequest{Header: h})
		return r.GetError(), err
	},
	"ListRules": func(ctx context.Context, c pdpb.PDServiceClient, h *pdpb.RequestHeader) (*pdpb.PDError, error) {
		r, err := c.ListRules(ctx, &pdpb.ListRulesRequest{Header: h})
		return r.GetError(), err
	},
	"ListOperators": func(ctx context.Context, c pdpb.PDServiceClient, h *pdpb.RequestHeader) (*pdpb.PDError, error) {
		r, err := c.ListOperators(ctx, &pdpb.ListOperatorsRequest{Header: h})
		return r.GetError(), err
	},
	"GetSafePoint": func(ctx context.Context, c pdpb.PDServiceClient, h *pdpb.RequestHeader) (*pdpb.PDError, error) {
		r, err := c.GetSafePoint(ctx, &pdpb.GetSafePointRequest{Header: h})
		return r.GetError(), err
	},
	"SetHold": func(ctx context.Context, c pdpb.PDServiceClient, h *pdpb.RequestHeader) (*pdpb.PDError, error) {
		r, err := c.SetHold(ctx, &pdpb.SetHoldRequest{Header: h})
		return r.GetError(), err
	},
	"ReleaseHold": func(ctx context.Context, c pdpb.PDServiceClient, h *pdpb.RequestHeader) (*pdpb.PDError, error) {
		r, err := c.ReleaseHold(ctx, &pdpb.ReleaseHoldRequest{Header: h})
		return r.GetError(), err
	},
	"WatchRoutes": func(ctx context.Context, c pdpb.PDServiceClient, h *pdpb.RequestHeader) (*pdpb.PDError, error) {
		s, err := c.WatchRoutes(ctx, &pdpb.WatchRoutesRequest{Header: h})
		if err != nil {
			return nil, err
		}
		r, err := s.Recv()
		return r.GetError(), err
	},
	"RangeHeartbeat": func(ctx context.Context, c pdpb.PDServiceClient, h *pdpb.RequestHeader) (*pdpb.PDError, error) {
		s, err := c.RangeHeartbeat(ctx)
		if err != nil {
			return nil, err
		}
		if err := s.Send(&pdpb.RangeHeartbeatRequest{Header: h}); err != nil {
			return nil, err
		}
		r, err := s.Recv()
		return r.GetError(), err
	},
	"Timestamps": func(ctx context.Context, c pdpb.PDServiceClient, h *pdpb.RequestHeader) (*pdpb.PDError, error) {
		s, err := c.Timestamps(ctx)
		if err != nil {
			return nil, err
		}
		if err := s.Send(&pdpb.TimestampsRequest{Header: h}); err != nil {
			return nil, err
		}
		r, err := s.Recv()
		return r.GetError(), err
	},
}

// TestEveryCall: each call names the leader elsewhere, refuses another
// cluster's callers, and survives a request with nothing in it.
func TestEveryCall(t *testing.T) {
	if want := len(pdpb.PDService_ServiceDesc.Methods) + len(pdpb.PDService_ServiceDesc.Streams) - 2; len(calls) != want {
		t.Fatalf("%d calls are tested, there are %d", len(calls), want) // not Members and Status
	}
	c := startCluster(t, 3, nil)
	at := c.leader()
	address := c.nodes[at].o.self().GRPCAddress
	follower := c.nodes[(at+1)%3].client
	var cluster uint64
	eventually(t, "the follower to know the cluster", func() error {
		r, err := follower.Members(testContext(t), &pdpb.MembersRequest{})
		cluster = r.GetClusterId()
		if err == nil && (r.GetLeaderId() != uint64(at+1) || cluster == 0 || len(r.GetMembers()) != 3) {
			err = fmt.Errorf("members %v", r)
		}
		return err
	})
	for name, call := range calls {
		e, err := call(testContext(t), follower, nil)
		if err != nil || e.GetReason() != notLeader || e.GetLeaderAddress() != address {
			t.Errorf("%s at a follower: %v, %v; the leader is at %s", name, e, err, address)
		}
		for _, client := range []pdpb.PDServiceClient{follower, c.nodes[at].client} {
			e, err := call(testContext(t), client, &pdpb.RequestHeader{ClusterId: cluster + 1})
			if err != nil || e.GetReason() != mismatch {
				t.Errorf("%s for another cluster: %v, %v", name, e, err)
			}
		}
		if name == "WatchRoutes" {
			continue // the whole span is a fine span
		}
		e, err = call(testContext(t), c.nodes[at].client, &pdpb.RequestHeader{ClusterId: cluster})
		if err != nil || e.GetReason() == notLeader || e.GetReason() == mismatch {
			t.Errorf("%s at the leader: %v, %v", name, e, err)
		}
	}
	for i := range c.nodes {
		r, err := c.nodes[i].client.Status(testContext(t), &pdpb.StatusRequest{})
		if err != nil || r.GetError() != nil || r.GetMemberId() != uint64(i+1) || r.GetBootstrapped() {
			t.Errorf("status of %d: %v, %v", i+1, r, err)
		}
	}
}

// raw sends bytes as they are.
type raw struct{}

var _ encoding.Codec = raw{}

func (raw) Name() string                    { return "proto" }
func (raw) Marshal(v any) ([]byte, error)   { return *v.(*[]byte), nil }
func (raw) Unmarshal(b []byte, v any) error { *v.(*[]byte) = b; return nil }

// fill gives a message fields that no store would send.
func fill(random *rand.Rand, m protoreflect.Message, depth int) {
	value := func(f protoreflect.FieldDescriptor) protoreflect.Value {
		numbers := []uint64{0, 1, 2, 3, math.MaxUint32, math.MaxUint64, random.Uint64()}
		n := numbers[random.IntN(len(numbers))]
		switch f.Kind() {
		case protoreflect.BoolKind:
			return protoreflect.ValueOfBool(n%2 == 1)
		case protoreflect.EnumKind:
			return protoreflect.ValueOfEnum(protoreflect.EnumNumber(n % 9))
		case protoreflect.Uint32Kind:
			return protoreflect.ValueOfUint32(uint32(n))
		case protoreflect.Uint64Kind:
			return protoreflect.ValueOfUint64(n)
		case protoreflect.StringKind:
			return protoreflect.ValueOfString(strings.Repeat("x", int(n%4)))
		}
		return protoreflect.ValueOfBytes([]byte(strings.Repeat("\xff", int(n%4))))
	}
	fields := m.Descriptor().Fields()
	for i := range fields.Len() {
		f := fields.Get(i)
		switch {
		case depth == 0 || random.IntN(4) == 0 || f.IsMap():
		case f.IsList() && f.Message() != nil:
			list := m.Mutable(f).List()
			for range random.IntN(4) {
				fill(random, list.AppendMutable().Message(), depth-1)
			}
		case f.IsList():
		case f.Message() != nil && f.Message().Name() == "RequestHeader":
		case f.Message() != nil:
			fill(random, m.Mutable(f).Message(), depth-1)
		default:
			m.Set(f, value(f))
		}
	}
}

// TestNoise: whatever comes, PD goes on.
func TestNoise(t *testing.T) {
	c := startCluster(t, 1, nil)
	client := c.client()
	register(t, client, 0, "a")
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 1))
	service := pdpb.File_ridge_pd_v1_pd_proto.Services().ByName("PDService")
	for i := range service.Methods().Len() {
		d := service.Methods().Get(i)
		method := "/ridge.pd.v1.PDService/" + string(d.Name())
		kind, err := protoregistry.GlobalTypes.FindMessageByName(d.Input().FullName())
		if err != nil {
			t.Fatal(err)
		}
		for range 100 {
			in := kind.New()
			fill(random, in, 5)
			body, err := proto.Marshal(in.Interface())
			if err != nil {
				t.Fatal(err)
			}
			if d.IsStreamingClient() || d.IsStreamingServer() {
				noise(t, c.nodes[0].conn, method, body)
				continue
			}
			var answer []byte
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
			err = c.nodes[0].conn.Invoke(ctx, method, &body, &answer, grpc.ForceCodec(raw{}))
			cancel()
			if err != nil {
				t.Errorf("%s(%v): %v", method, in, err)
			}
		}
	}
	if _, err := client.GetRoute(testContext(t), &pdpb.GetRouteRequest{Key: []byte("k")}); err != nil {
		t.Error(err)
	}
	// Strings that are no text do not come through the door.
	bad := []byte("\x12\x03\x12\x01\xff")
	var answer []byte
	err := c.nodes[0].conn.Invoke(testContext(t), "/ridge.pd.v1.PDService/RegisterStore", &bad, &answer,
		grpc.ForceCodec(raw{}))
	if status.Code(err).String() != "Internal" {
		t.Errorf("an address that is no text: %v", err)
	}
	// Past the door they are refused by the log.
	r, err := c.nodes[0].server.service.SetHold(testContext(t), &pdpb.SetHoldRequest{
		HoldId: "\xff", Ts: math.MaxUint64, TtlMs: 1000,
	})
	if err != nil || r.GetError() == nil {
		t.Errorf("a hold whose name is no text: %v, %v", r, err)
	}
	if e, err := calls["GetSafePoint"](testContext(t), client, nil); e != nil || err != nil {
		t.Errorf("afterwards: %v, %v", e, err)
	}
}

// noise sends one message on a stream and hears what there is to hear.
func noise(t *testing.T, conn *grpc.ClientConn, method string, body []byte) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	stream, err := conn.NewStream(ctx, &grpc.StreamDesc{ClientStreams: true, ServerStreams: true},
		method, grpc.ForceCodec(raw{}))
	if err != nil {
		t.Fatal(err)
	}
	var answer []byte
	err = errors.Join(stream.SendMsg(&body), stream.CloseSend())
	if err == nil && !strings.HasSuffix(method, "WatchRoutes") {
		for err = stream.RecvMsg(&answer); err == nil; err = stream.RecvMsg(&answer) {
			continue
		}
	}
	if err != nil && !errors.Is(err, io.EOF) {
		t.Errorf("%s(%x): %v", method, body, err)
	}
}

// want checks how a call ended.
func want(t *testing.T, what string, e *pdpb.PDError, err error, reason pdpb.PDErrorReason) {
	t.Helper()
	if err != nil || e.GetReason() != reason {
		t.Errorf("%s: %v, %v; want %v", what, e, err, reason)
	}
}

func TestArguments(t *testing.T) {
	c := startCluster(t, 1, nil)
	client, ctx := c.client(), testContext(t)
	for n, reason := range map[uint32]pdpb.PDErrorReason{
		0: argument, 1: noReason, 65536: noReason, 65537: argument, math.MaxUint32: argument,
	} {
		r, err := client.AllocateIds(ctx, &pdpb.AllocateIdsRequest{Count: n})
		want(t, fmt.Sprint(n, " ids"), r.GetError(), err, reason)
	}
	many := &metapb.Range{Replicas: make([]*metapb.Replica, 101)}
	for i := range many.Replicas {
		many.Replicas[i] = &metapb.Replica{}
	}
	for _, r := range []*metapb.Range{nil, {}, many} {
		a, err := client.AskSplit(ctx, &pdpb.AskSplitRequest{Range: r})
		want(t, "ids of a child", a.GetError(), err, argument)
	}
	a, err := client.AskSplit(ctx, &pdpb.AskSplitRequest{Range: &metapb.Range{Replicas: many.Replicas[:3]}})
	if err != nil || a.GetError() != nil || len(a.GetChildReplicaIds()) != 3 ||
		a.GetChildReplicaIds()[0] != a.GetChildRangeId()+1 {
		t.Errorf("ids of a child: %v, %v", a, err)
	}
	for _, span := range []*metapb.Span{
		{Start: []byte("b"), End: []byte("a")}, {Start: []byte("b"), End: []byte("b")},
	} {
		l, err := client.ListRoutes(ctx, &pdpb.ListRoutesRequest{Span: span})
		want(t, "routes of no span", l.GetError(), err, argument)
		w, err := client.WatchRoutes(ctx, &pdpb.WatchRoutesRequest{Span: span})
		if err != nil {
			t.Fatal(err)
		}
		r, err := w.Recv()
		want(t, "a watch of no span", r.GetError(), err, argument)
	}
	long := make([]byte, 5000)
	g, err := client.GetRoute(ctx, &pdpb.GetRouteRequest{Key: long})
	want(t, "the route of a long key", g.GetError(), err, argument)
	for _, key := range [][]byte{nil, long} {
		s, err := client.SplitRange(ctx, &pdpb.SplitRangeRequest{Key: key})
		want(t, "a split at a bad key", s.GetError(), err, argument)
	}
	for name, r := range map[string]*pdpb.SetHoldRequest{
		"nameless":   {Ts: math.MaxUint64, TtlMs: 1},
		"long name":  {HoldId: strings.Repeat("x", maxHoldIDs+1), Ts: math.MaxUint64, TtlMs: 1},
		"no time":    {HoldId: "x", Ts: math.MaxUint64},
		"for ever":   {HoldId: "x", Ts: math.MaxUint64, TtlMs: math.MaxUint64},
		"for a week": {HoldId: "x", Ts: math.MaxUint64, TtlMs: 7 * 24 * 3600 * 1000},
	} {
		h, err := client.SetHold(ctx, r)
		want(t, "a hold, "+name, h.GetError(), err, argument)
	}
	for name, s := range map[string]*metapb.Store{
		"none": nil, "nowhere": {}, "one address": {GrpcAddress: "a:1"},
		"too large": {GrpcAddress: "a:1", RaftAddress: "a:2", Version: strings.Repeat("x", 70_000)},
	} {
		r, err := client.RegisterStore(ctx, &pdpb.RegisterStoreRequest{Store: s})
		want(t, "a store, "+name, r.GetError(), err, argument)
	}
	r, err := client.GetRoute(ctx, &pdpb.GetRouteRequest{Key: []byte("k")})
	want(t, "a route before any store", r.GetError(), err, noCluster)
	n, err := client.GetRange(ctx, &pdpb.GetRangeRequest{RangeId: 1})
	want(t, "a range before any store", n.GetError(), err, notFound)
	// Reports of nothing, of a split by nobody, of spans that are none.
	p, err := client.ReportSplit(ctx, &pdpb.ReportSplitRequest{
		Left: &pdpb.RangeReport{}, Right: &pdpb.RangeReport{Range: &metapb.Range{
			RangeId: 9, Span: &metapb.Span{Start: []byte("b"), End: []byte("a")},
		}},
	})
	want(t, "a split of nothing", p.GetError(), err, noReason)
	list, err := client.ListRoutes(ctx, &pdpb.ListRoutesRequest{Limit: math.MaxUint32})
	if err != nil || list.GetError() != nil || len(list.GetRoutes()) != 0 || list.GetMore() {
		t.Errorf("routes of nothing: %v, %v", list, err)
	}
}

func TestStoresAndHolds(t *testing.T) {
	c := startCluster(t, 1, func(o *Options) { o.Retention = time.Second })
	client, ctx := c.client(), testContext(t)
	if r := register(t, client, 0, "a"); r.GetStoreId() != 1 || r.GetTimestamp() == 0 ||
		r.GetConfig().GetReplicas() != 3 || len(r.GetStores()) != 1 || r.GetClusterId() == 0 {
		t.Fatalf("registered as %v", r)
	}
	heartbeat(t, client, 1)
	want(t, "its address", register(t, client, 0, "a").GetError(), nil, inUse)
	want(t, "a stranger", register(t, client, 7, "z").GetError(), nil, notFound)
	h, err := client.StoreHeartbeat(ctx, &pdpb.StoreHeartbeatRequest{StoreId: 7})
	want(t, "the heartbeat of a stranger", h.GetError(), err, notFound)
	h, err = client.StoreHeartbeat(ctx, &pdpb.StoreHeartbeatRequest{StoreId: 1})
	want(t, "a heartbeat", h.GetError(), err, noReason)
	first := h.GetStoresVersion()
	h, err = client.StoreHeartbeat(ctx, &pdpb.StoreHeartbeatRequest{
		StoreId: 1, StoresVersion: first,
	})
	want(t, "one that knows all stores", h.GetError(), err, noReason)
	if len(h.GetStores()) != 0 || h.GetStoresVersion() != first {
		t.Errorf("told again: %v", h)
	}
	register(t, client, 0, "b")
	eventually(t, "news of the other store", func() error {
		h, err := client.StoreHeartbeat(ctx, &pdpb.StoreHeartbeatRequest{
			StoreId: 1, StoresVersion: first,
		})
		if err = errors.Join(err, asError(h.GetError())); err == nil &&
			(len(h.GetStores()) != 1 || h.GetStores()[0].GetStoreId() != 2) {
			err = fmt.Errorf("answer %v", h)
		}
		return err
	})
	s, err := c.admin().ForgetStore(ctx, &pdpb.ForgetStoreRequest{StoreId: 1})
	refusedWith(t, "forgetting a store that is heard", s.GetError(), err, "is alive")
	s, err = c.admin().ForgetStore(ctx, &pdpb.ForgetStoreRequest{StoreId: 2})
	want(t, "gone", s.GetError(), err, noReason)
	h, err = client.StoreHeartbeat(ctx, &pdpb.StoreHeartbeatRequest{StoreId: 2})
	want(t, "the heartbeat of one that is gone", h.GetError(), err, gone)
	stream, err := client.RangeHeartbeat(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if err := stream.Send(&pdpb.RangeHeartbeatRequest{StoreId: 2}); err != nil {
		t.Fatal(err)
	}
	answer, err := stream.Recv()
	want(t, "the reports of one that is gone", answer.GetError(), err, gone)
	eventually(t, "silence to show", func() error {
		l, err := client.ListStores(ctx, &pdpb.ListStoresRequest{})
		if err == nil && (len(l.GetStores()) != 2 || l.GetStores()[0].GetStore().GetState() !=
			metapb.StoreState_STORE_STATE_DOWN ||
			l.GetStores()[1].GetStore().GetState() != metapb.StoreState_STORE_STATE_GONE) {
			err = fmt.Errorf("stores %v", l)
		}
		return err
	})
	testHolds(t, client)
}

// testHolds: history is kept for a hold, and no longer.
func testHolds(t *testing.T, client pdpb.PDServiceClient) {
	t.Helper()
	ctx := testContext(t)
	points := func() *pdpb.GetSafePointResponse {
		r, err := client.GetSafePoint(ctx, &pdpb.GetSafePointRequest{})
		want(t, "safe points", r.GetError(), err, noReason)
		return r
	}
	above := func(txn uint64) {
		t.Helper()
		eventually(t, "the safe points to rise", func() error {
			if p := points(); p.GetTxnSafePoint() <= txn || p.GetGcSafePoint() <= txn {
				return fmt.Errorf("points %v", p)
			}
			return nil
		})
	}
	above(0)
	// Well above what the next rounds raise the points to, and below now.
	at := points().GetTxnSafePoint() + 500<<18
	h, err := client.SetHold(ctx, &pdpb.SetHoldRequest{HoldId: "backup", Ts: at, TtlMs: 60_000})
	want(t, "a hold", h.GetError(), err, noReason)
	eventually(t, "the points to reach the hold", func() error {
		if p := points(); p.GetTxnSafePoint() != at || len(p.GetHolds()) != 1 {
			return fmt.Errorf("points %v", p)
		}
		return nil
	})
	h, err = client.SetHold(ctx, &pdpb.SetHoldRequest{HoldId: "late", Ts: at - 1, TtlMs: 60_000})
	want(t, "a hold on what is forgotten", h.GetError(), err, tooOld)
	for range 2 {
		r, err := client.ReleaseHold(ctx, &pdpb.ReleaseHoldRequest{HoldId: "backup"})
		want(t, "a release", r.GetError(), err, noReason)
	}
	above(at)
}

func TestTimestampsStream(t *testing.T) {
	c := startCluster(t, 1, nil)
	stream, err := c.client().Timestamps(testContext(t))
	if err != nil {
		t.Fatal(err)
	}
	counts := []uint32{1, 1000, 1 << 18, 1, 7}
	for _, n := range counts { // all are under way before the first is answered
		if err := stream.Send(&pdpb.TimestampsRequest{Count: n}); err != nil {
			t.Fatal(err)
		}
	}
	last := uint64(0)
	for _, n := range counts {
		r, err := stream.Recv()
		if err != nil || r.GetError() != nil || r.GetCount() != n || r.GetFirst() <= last {
			t.Fatalf("%d timestamps after %d: %v, %v", n, last, r, err)
		}
		last = r.GetFirst() + uint64(n) - 1
	}
	for _, n := range []uint32{0, 1<<18 + 1, math.MaxUint32} {
		bad, err := c.client().Timestamps(testContext(t))
		if err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(bad.Send(&pdpb.TimestampsRequest{Count: 1}),
			bad.Send(&pdpb.TimestampsRequest{Count: n})); err != nil {
			t.Fatal(err)
		}
		r, err := bad.Recv()
		want(t, "what came before a bad count", r.GetError(), err, noReason)
		r, err = bad.Recv()
		want(t, fmt.Sprint(n, " timestamps"), r.GetError(), err, argument)
	}
}
