package service

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"google.golang.org/grpc/metadata"

	"github.com/ridgekv/ridge/client/storeclient"
	"github.com/ridgekv/ridge/proto/errs"
	"github.com/ridgekv/ridge/proto/keys"
	kvpb "github.com/ridgekv/ridge/proto/ridge/kv/v1"
)

// The first error names the true cause: every request below is wrong in all
// the ways that come after the one it is refused for.
func TestLadderOrder(t *testing.T) {
	r := newRig(t, Options{InFlightBytes: 1})
	r.open()
	for _, c := range []struct {
		name           string
		cluster, store string
		get            *kvpb.GetRequest
		want           error
	}{
		{
			"cluster", "8", "4", &kvpb.GetRequest{Header: at(9, 1)},
			errs.ClusterMismatch{Want: 8, Have: 7},
		},
		{
			"store", "7", "4", &kvpb.GetRequest{Header: at(9, 1)},
			errs.StoreMismatch{Want: 4, Have: 3},
		},
		{
			"metadata", "7", "x", &kvpb.GetRequest{Header: at(9, 1)},
			errs.InvalidArgument{Field: storeclient.StoreIDKey, Reason: "not a decimal number"},
		},
		{
			"argument", "7", "3", &kvpb.GetRequest{Header: at(9, 1)},
			errs.InvalidArgument{Field: "key", Reason: "empty"},
		},
		{
			"argument size", "7", "3", &kvpb.GetRequest{Header: at(9, 1), Key: []byte(longKey)},
			errs.TooLarge{
				What: "key", SizeBytes: keys.MaxKeySizeBytes + 1,
				Limit: keys.MaxKeySizeBytes,
			},
		},
		{
			"load of the store", "7", "3", &kvpb.GetRequest{Header: at(9, 1), Key: []byte("q")},
			errs.Busy{Reason: "bytes in flight"},
		},
	} {
		ctx := metadata.AppendToOutgoingContext(t.Context(),
			storeclient.ClusterIDKey, c.cluster, storeclient.StoreIDKey, c.store)
		out, err := r.kv.Get(ctx, c.get)
		if err != nil {
			t.Fatal(err)
		}
		got := errs.FromProto(out.GetError())
		if fmt.Sprint(got) != fmt.Sprint(c.want) || fmt.Sprintf("%T", got) != fmt.Sprintf("%T", c.want) {
			t.Errorf("%s: got %T %v, want %v", c.name, got, got, c.want)
		}
	}
}

// The rungs from range to leader.
func TestLadderOfRanges(t *testing.T) {
	ranges := newFakeRanges()
	stale := getOf(at(2, 4), "q")
	stale.GetGet().Consistency = &kvpb.Consistency{
		Level: kvpb.ConsistencyLevel_CONSISTENCY_LEVEL_STALE,
	}
	scan := func(rangeID uint64, start, end string) *kvpb.Request {
		return &kvpb.Request{Body: &kvpb.Request_Scan{Scan: &kvpb.ScanRequest{
			Header: at(rangeID, 4), Start: []byte(start), End: []byte(end),
		}}}
	}
	for _, c := range []struct {
		name    string
		request *kvpb.Request
		want    string
	}{
		{"no range named", getOf(at(0, 1), "q"), "errs.RangeNotFound"},
		{"range before epoch", getOf(at(9, 1), "q"), "errs.RangeNotFound"},
		{"epoch before span", getOf(at(2, 3), "a"), "errs.EpochMismatch"},
		{"epoch of the future", getOf(at(1, 5), "b"), "errs.EpochMismatch"},
		{"span before leader", getOf(at(2, 4), "a"), "errs.KeyNotInRange"},
		{"span of a scan", scan(2, "a", "b"), "errs.KeyNotInRange"},
		{"leader", getOf(at(2, 4), "q"), "errs.NotLeader"},
		{"leader of a write", putOf(at(2, 4), "q", 1), "errs.NotLeader"},
		{"stale reads need none", stale, "<nil>"},
		{"no epoch given", getOf(at(1, 0), "b"), "<nil>"},
		{"right", getOf(at(1, 4), "b"), "<nil>"},
		{"right scan", scan(1, "b", "c"), "<nil>"},
	} {
		err := checkRange(ranges, c.request, headerOf(c.request))
		if got := fmt.Sprintf("%T", err); got != c.want {
			t.Errorf("%s: got %s (%v), want %s", c.name, got, err, c.want)
		}
	}
	err := checkRange(ranges, getOf(at(1, 3), "q"), at(1, 3))
	if e, _ := err.(errs.EpochMismatch); len(e.Current) != 2 || e.Current[1].GetRangeId() != 2 {
		t.Errorf("an epoch mismatch should name the range of the key too: %v", err)
	}
}

func TestHello(t *testing.T) {
	core := &Core{ClusterID: testCluster, StoreID: testStore}
	for _, c := range []struct {
		hello *kvpb.Hello
		want  string
	}{
		{nil, "errs.InvalidArgument"},
		{&kvpb.Hello{ClusterId: 8, StoreId: 9, ApiVersion: 2}, "errs.ClusterMismatch"},
		{&kvpb.Hello{StoreId: 9, ApiVersion: 2}, "errs.ClusterMismatch"},
		{&kvpb.Hello{ClusterId: 7, StoreId: 9, ApiVersion: 2}, "errs.StoreMismatch"},
		{&kvpb.Hello{ClusterId: 7, StoreId: 3, ApiVersion: 2}, "errs.InvalidArgument"},
		{&kvpb.Hello{ClusterId: 7, StoreId: 3, ApiVersion: 1}, "<nil>"},
	} {
		if got := fmt.Sprintf("%T", checkHello(core, c.hello)); got != c.want {
			t.Errorf("%v: got %s, want %s", c.hello, got, c.want)
		}
	}
}

func TestArguments(t *testing.T) {
	many := make([]*kvpb.Mutation, keys.MaxEntryKeys+1)
	for i := range many {
		many[i] = &kvpb.Mutation{Key: []byte("b")}
	}
	big := []*kvpb.Mutation{}
	for range 5 {
		big = append(big, &kvpb.Mutation{Key: []byte("b"), Value: make([]byte, 1<<20-64)})
	}
	batch := func(ms []*kvpb.Mutation) *kvpb.Request {
		return &kvpb.Request{Body: &kvpb.Request_BatchWrite{
			BatchWrite: &kvpb.BatchWriteRequest{Mutations: ms},
		}}
	}
	for _, c := range []struct {
		name    string
		request *kvpb.Request
		want    string
	}{
		{"no body", &kvpb.Request{}, "errs.InvalidArgument"},
		{"nil in a body", &kvpb.Request{Body: &kvpb.Request_Put{}}, "errs.InvalidArgument"},
		{"value", putOf(nil, "b", keys.MaxValueSizeBytes+1), "errs.TooLarge"},
		{"largest value", putOf(nil, "b", keys.MaxValueSizeBytes), "<nil>"},
		{"empty batch", batch(nil), "errs.InvalidArgument"},
		{"nil in a batch", batch([]*kvpb.Mutation{nil}), "errs.InvalidArgument"},
		{"long batch", batch(many), "errs.TooLarge"},
		{"large batch", batch(big), "errs.TooLarge"},
		{"empty span", &kvpb.Request{Body: &kvpb.Request_Scan{Scan: &kvpb.ScanRequest{
			Start: []byte("b"), End: []byte("b"),
		}}}, "errs.InvalidArgument"},
		{"whole span", &kvpb.Request{Body: &kvpb.Request_Scan{}}, "<nil>"},
	} {
		headerOf(c.request)
		if got := fmt.Sprintf("%T", checkArguments(c.request)); got != c.want {
			t.Errorf("%s: got %s, want %s", c.name, got, c.want)
		}
	}
}

// Where a unary request goes: here, through the gateway, or back.
func TestLocalOrGateway(t *testing.T) {
	r := newRig(t, Options{})
	r.open()
	for _, c := range []struct {
		name    string
		header  *kvpb.Header
		key     string
		forward bool
		want    string
	}{
		{"led here", nil, "b", false, "<nil>"},
		{"led elsewhere", nil, "q", true, "<nil>"},
		{"unknown here", nil, "zz", true, "<nil>"},
		{"names its range", at(2, 4), "q", false, "errs.NotLeader"},
		{"forwarded once", &kvpb.Header{Forwarded: true}, "q", false, "errs.NotLeader"},
		{"forwarded, unknown", &kvpb.Header{Forwarded: true}, "zz", false, "errs.RangeNotFound"},
		{"forwarded, led here", &kvpb.Header{Forwarded: true}, "b", false, "<nil>"},
	} {
		before := r.gateway.count()
		out, err := r.kv.Get(t.Context(), &kvpb.GetRequest{Header: c.header, Key: []byte(c.key)})
		if err != nil {
			t.Fatal(err)
		}
		if forwarded := r.gateway.count() > before; forwarded != c.forward {
			t.Errorf("%s: forwarded %v", c.name, forwarded)
		}
		if got := fmt.Sprintf("%T", errs.FromProto(out.GetError())); got != c.want {
			t.Errorf("%s: got %s, want %s", c.name, got, c.want)
		}
	}
}

// A local leaseholder that turns out to be another sends the request on, once,
// and only when nothing was done.
func TestLostRequestsAreForwarded(t *testing.T) {
	r := newRig(t, Options{})
	r.open()
	for _, c := range []struct {
		err     error
		forward bool
	}{
		{errs.NotLeader{RangeID: 1}, true},
		{errs.EpochMismatch{RangeID: 1}, true},
		{errs.UnknownOutcome{RangeID: 1}, false},
		{errs.Busy{Reason: "range queue"}, false},
	} {
		r.evaluator.answer = func(*kvpb.Request) *kvpb.Response { return refusal(0, c.err) }
		before := r.gateway.count()
		if _, err := r.kv.Put(context.Background(), &kvpb.PutRequest{Key: []byte("b")}); err != nil {
			t.Fatal(err)
		}
		if forwarded := r.gateway.count() > before; forwarded != c.forward {
			t.Errorf("%v: forwarded %v", c.err, forwarded)
		}
	}
}

// No caller makes a store work on one call for weeks.
func TestPatienceIsBounded(t *testing.T) {
	for _, ms := range []uint32{0, 1, 5000, 1 << 31, 1<<32 - 1} {
		h := &kvpb.Header{TimeoutMs: ms}
		ctx, cancel := patience(t.Context(), h)
		deadline, ok := ctx.Deadline()
		cancel()
		if !ok || time.Until(deadline) > maxTimeout || h.GetTimeoutMs() > 60_000 {
			t.Errorf("%d ms: until %v, header %v", ms, deadline, h)
		}
	}
}

// What is applied of a BulkWrite is not sent again: others may have written
// the same keys since.
func TestOnlyTheRestOfABulkIsForwarded(t *testing.T) {
	r := newRig(t, Options{})
	r.open()
	r.evaluator.answer = func(*kvpb.Request) *kvpb.Response {
		return &kvpb.Response{Body: &kvpb.Response_BulkWrite{BulkWrite: &kvpb.BulkWriteResponse{
			Error: errs.ToProto(errs.NotLeader{RangeID: 1}), AppliedCount: 2, CommitTs: 7,
		}}}
	}
	r.gateway.answer = &kvpb.Response{Body: &kvpb.Response_BulkWrite{
		BulkWrite: &kvpb.BulkWriteResponse{AppliedCount: 1, CommitTs: 9},
	}}
	out, err := r.kv.BulkWrite(t.Context(), &kvpb.BulkWriteRequest{Mutations: []*kvpb.Mutation{
		{Key: []byte("b")}, {Key: []byte("c")}, {Key: []byte("d")},
	}})
	if err != nil || out.GetError() != nil || out.GetAppliedCount() != 3 || out.GetCommitTs() != 9 {
		t.Fatal(out, err)
	}
	if r.gateway.count() != 1 {
		t.Fatal("not forwarded once")
	}
	left := r.gateway.got[0].GetBulkWrite()
	if len(left.GetMutations()) != 1 || string(left.GetMutations()[0].GetKey()) != "d" ||
		left.GetHeader().GetRangeId() != 0 {
		t.Fatal("forwarded:", left)
	}
}

// Between two leaders a request waits for the next one instead of wandering
// off.
func TestElectionIsWaitedFor(t *testing.T) {
	r := newRig(t, Options{})
	r.open()
	r.ranges.set(1, func(v *Range) { v.Led = false })
	answered := make(chan error, 1)
	go func() {
		out, err := r.kv.Get(context.Background(), &kvpb.GetRequest{Key: []byte("b")})
		answered <- errors.Join(err, errs.FromProto(out.GetError()))
	}()
	waitFor(t, func() bool { return r.ranges.lookups() > 10 })
	r.ranges.set(1, func(v *Range) { v.Led = true })
	if err := <-answered; err != nil || r.gateway.count() != 0 {
		t.Errorf("got %v, forwarded %d", err, r.gateway.count())
	}
}
