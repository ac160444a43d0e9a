package service

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"testing"
	"time"

	"google.golang.org/protobuf/encoding/protowire"

	"github.com/ridgekv/ridge/proto/errs"
	kvpb "github.com/ridgekv/ridge/proto/ridge/kv/v1"
	storepb "github.com/ridgekv/ridge/proto/ridge/store/v1"
)

var goodHello = &kvpb.Hello{ClusterId: testCluster, StoreId: testStore, ApiVersion: 1}

func openStream(t testing.TB, r *rig, hello *kvpb.Hello) kvpb.KVService_StreamClient {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	t.Cleanup(cancel)
	stream, err := r.kv.Stream(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if err := stream.Send(&kvpb.StreamRequest{Hello: hello}); err != nil && !errors.Is(err, io.EOF) {
		t.Fatal(err)
	}
	return stream
}

// collect reads n answers and returns them by id.
func collect(t testing.TB, s kvpb.KVService_StreamClient, n int) map[uint64]*kvpb.Response {
	t.Helper()
	out := map[uint64]*kvpb.Response{}
	for len(out) < n {
		m, err := s.Recv()
		if err != nil {
			t.Fatalf("after %d of %d answers: %v", len(out), n, err)
		}
		if m.GetError() != nil {
			t.Fatalf("stream error: %v", m.GetError())
		}
		for _, r := range m.GetResponses() {
			if out[r.GetId()] != nil {
				t.Fatalf("request %d was answered twice", r.GetId())
			}
			out[r.GetId()] = r
		}
	}
	return out
}

func TestStreamHelloIsCheckedFirst(t *testing.T) {
	r := newRig(t, Options{})
	stream := openStream(t, r, goodHello)
	if m, err := stream.Recv(); err != nil || m.GetError().GetUnavailable() == nil {
		t.Fatalf("before the store is open: %v, %v", m, err)
	}
	r.open()
	for _, hello := range []*kvpb.Hello{
		nil, {ClusterId: 1}, {ClusterId: testCluster}, {ClusterId: testCluster, StoreId: testStore},
	} {
		stream := openStream(t, r, hello)
		if m, err := stream.Recv(); err != nil || m.GetError() == nil {
			t.Fatalf("hello %v: %v, %v", hello, m, err)
		}
		if _, err := stream.Recv(); !errors.Is(err, io.EOF) {
			t.Fatalf("hello %v: the stream goes on: %v", hello, err)
		}
	}
}

func TestStreamAnswersEveryRequestOnce(t *testing.T) {
	r := newRig(t, Options{})
	r.open()
	stream := openStream(t, r, goodHello)
	const n = 3000
	var batch []*kvpb.Request
	for i := range uint64(n) {
		request := getOf(at(1, 4), fmt.Sprintf("k%d", i))
		request.Id = i + 1
		if i%10 == 0 {
			request.GetGet().Header.RangeId = 5
		}
		batch = append(batch, request)
		if len(batch) == 64 || i == n-1 {
			if err := stream.Send(&kvpb.StreamRequest{Requests: batch}); err != nil {
				t.Fatal(err)
			}
			batch = nil
		}
	}
	for id, a := range collect(t, stream, n) {
		if wrong := (id-1)%10 == 0; wrong != (a.GetError().GetRangeNotFound() != nil) {
			t.Fatalf("request %d: %v", id, a)
		}
		if want := fmt.Sprintf("k%d", id-1); a.GetGet() != nil &&
			string(a.GetGet().GetRow().GetValue()) != want {
			t.Fatalf("request %d got the answer of another: %v", id, a)
		}
	}
	if err := stream.CloseSend(); err != nil {
		t.Fatal(err)
	}
	if _, err := stream.Recv(); !errors.Is(err, io.EOF) {
		t.Fatalf("the end: %v", err)
	}
}

// Answers that wait together travel together.
func TestStreamPacksAnswers(t *testing.T) {
	r := newRig(t, Options{})
	r.open()
	r.evaluator.hold = true
	stream := openStream(t, r, goodHello)
	sendGets(t, stream, 500)
	waitFor(t, func() bool { return r.evaluator.waiting() == 500 })
	r.evaluator.release()
	messages, answers := 0, 0
	for answers < 500 {
		m, err := stream.Recv()
		if err != nil {
			t.Fatal(err)
		}
		messages, answers = messages+1, answers+len(m.GetResponses())
	}
	if messages > 250 {
		t.Errorf("500 answers took %d messages", messages)
	}
}

func sendGets(t *testing.T, stream kvpb.KVService_StreamClient, n int) {
	t.Helper()
	var requests []*kvpb.Request
	for i := range uint64(n) {
		request := getOf(at(1, 4), "b")
		request.Id = i + 1
		requests = append(requests, request)
	}
	if err := stream.Send(&kvpb.StreamRequest{Requests: requests}); err != nil {
		t.Fatal(err)
	}
}

func waitFor(t testing.TB, ok func() bool) {
	t.Helper()
	deadline := time.After(10 * time.Second)
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatal("state not reached within 10s")
		}
	}
}

func TestStreamSeatsAndBytesAreBounded(t *testing.T) {
	for _, c := range []struct {
		name   string
		o      Options
		size   int
		reason string
	}{
		{"seats", Options{StreamSeats: 10}, 1, "stream requests"},
		{"bytes", Options{StreamBytes: 100_000}, 9_000, "stream bytes"},
		{"all bytes", Options{InFlightBytes: 100_000}, 9_000, "bytes in flight"},
	} {
		r := newRig(t, c.o)
		r.open()
		r.evaluator.hold = true
		stream := openStream(t, r, goodHello)
		for i := range uint64(20) {
			request := putOf(at(1, 4), "b", c.size)
			request.Id = i + 1
			m := &kvpb.StreamRequest{Requests: []*kvpb.Request{request}}
			if err := stream.Send(m); err != nil {
				t.Fatal(err)
			}
		}
		for id, a := range collect(t, stream, 10) {
			if a.GetError().GetBusy().GetReason() != c.reason {
				t.Fatalf("%s: request %d: %v", c.name, id, a)
			}
		}
		r.evaluator.release()
		collect(t, stream, 10)
		waitFor(t, func() bool { return r.s.bytes.Load() == 0 })
	}
}

// The requests of a message share its memory, so one that waits keeps all of it,
// whatever became of the others.
func TestAMessageIsCountedUntilItsLastAnswer(t *testing.T) {
	r := newRig(t, Options{StreamBytes: 1 << 20})
	r.open()
	r.evaluator.hold = true
	stream := openStream(t, r, goodHello)
	get := getOf(at(1, 4), "b")
	get.Id = 1
	elsewhere := putOf(at(99, 1), "b", 600_000)
	elsewhere.Id = 2
	junk := getOf(at(99, 1), "b")
	junk.Id = 3
	unknown := protowire.AppendTag(nil, 1000, protowire.BytesType)
	unknown = protowire.AppendBytes(unknown, make([]byte, 300_000))
	junk.GetGet().ProtoReflect().SetUnknown(unknown)
	m := &kvpb.StreamRequest{Requests: []*kvpb.Request{get, elsewhere, junk}}
	if err := stream.Send(m); err != nil {
		t.Fatal(err)
	}
	for id, a := range collect(t, stream, 2) {
		if a.GetError().GetRangeNotFound() == nil {
			t.Fatalf("request %d: %v", id, a)
		}
	}
	if n := r.s.bytes.Load(); n < 900_000 {
		t.Errorf("%d bytes are counted, the message is there", n)
	}
	m = &kvpb.StreamRequest{Requests: []*kvpb.Request{putOf(at(1, 4), "b", 200_000)}}
	if err := stream.Send(m); err != nil {
		t.Fatal(err)
	}
	if a := collect(t, stream, 1)[0]; a.GetError().GetBusy().GetReason() != "stream bytes" {
		t.Errorf("beyond the bound: %v", a)
	}
	r.evaluator.release()
	collect(t, stream, 1)
	waitFor(t, func() bool { return r.s.bytes.Load() == 0 })
}

func TestPanicsBecomeErrors(t *testing.T) {
	r := newRig(t, Options{})
	r.open()
	r.evaluator.answer = func(*kvpb.Request) *kvpb.Response { panic("a bug") }
	get, err := r.kv.Get(t.Context(), &kvpb.GetRequest{Key: []byte("b")})
	if err != nil || get.GetError().GetUnavailable() == nil {
		t.Fatalf("get: %v, %v", get, err)
	}
	put, err := r.kv.Put(t.Context(), &kvpb.PutRequest{Key: []byte("b")})
	if err != nil || put.GetError().GetUnknownOutcome() == nil {
		t.Fatalf("put: %v, %v", put, err)
	}
	stream := openStream(t, r, goodHello)
	request := putOf(at(1, 4), "b", 1)
	request.Id = 4
	if err := stream.Send(&kvpb.StreamRequest{Requests: []*kvpb.Request{request}}); err != nil {
		t.Fatal(err)
	}
	if a := collect(t, stream, 1)[4]; a.GetError().GetUnknownOutcome() == nil {
		t.Fatalf("stream: %v", a)
	}
	list, err := r.store.ListReplicas(t.Context(), &storepb.ListReplicasRequest{})
	if err != nil || list.GetError() == nil {
		t.Fatalf("list: %v, %v", list, err)
	}
}

// A draining store answers what is in flight, refuses the rest, and ends its
// streams; StoreService goes on until Close.
func TestDrain(t *testing.T) {
	r := newRig(t, Options{})
	r.open()
	r.evaluator.hold = true
	stream := openStream(t, r, goodHello)
	sendGets(t, stream, 5)
	waitFor(t, func() bool { return r.evaluator.waiting() == 5 })
	drained := make(chan error, 1)
	go func() { drained <- r.s.Drain(context.Background()) }()
	waitFor(t, func() bool {
		out, err := r.kv.Get(t.Context(), &kvpb.GetRequest{Key: []byte("b")})
		return err == nil && out.GetError().GetUnavailable() != nil
	})
	if _, err := r.store.Status(t.Context(), &storepb.StatusRequest{}); err != nil {
		t.Fatal(err)
	}
	r.evaluator.release()
	if a := collect(t, stream, 5); a[3].GetGet() == nil {
		t.Fatalf("in flight: %v", a)
	}
	m, err := stream.Recv()
	if err != nil || m.GetError().GetUnavailable() == nil {
		t.Fatalf("end of the stream: %v, %v", m, err)
	}
	if err := <-drained; err != nil {
		t.Fatal(err)
	}
	r.s.Close()
	out, err := r.store.Status(t.Context(), &storepb.StatusRequest{})
	if err != nil || out.GetError().GetUnavailable() == nil {
		t.Fatalf("after Close: %v, %v", out, err)
	}
}

func TestDeadlineOfAWriteIsUnknown(t *testing.T) {
	r := newRig(t, Options{})
	r.open()
	r.evaluator.hold = true
	h := &kvpb.Header{TimeoutMs: 20}
	put, err := r.kv.Put(t.Context(), &kvpb.PutRequest{Header: h, Key: []byte("b")})
	if err != nil || put.GetError().GetUnknownOutcome() == nil {
		t.Fatalf("put: %v, %v", put, err)
	}
	get, err := r.kv.Get(t.Context(), &kvpb.GetRequest{Header: h, Key: []byte("b")})
	if err != nil || get.GetError().GetApplied() != kvpb.Applied_APPLIED_NO {
		t.Fatalf("get: %v, %v", get, err)
	}
	r.evaluator.release()
}

func TestScanPagesComeThroughTheGateway(t *testing.T) {
	r := newRig(t, Options{})
	r.open()
	for _, c := range []struct {
		header *kvpb.Header
		pages  int
	}{{nil, 2}, {at(1, 4), 1}, {&kvpb.Header{Forwarded: true}, 1}} {
		stream, err := r.kv.Scan(t.Context(), &kvpb.ScanRequest{
			Header: c.header, Start: []byte("b"), End: []byte("c"),
		})
		if err != nil {
			t.Fatal(err)
		}
		pages := 0
		for {
			m, err := stream.Recv()
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil || m.GetError() != nil {
				t.Fatal(m, err)
			}
			pages++
		}
		if pages != c.pages {
			t.Errorf("header %v: %d pages, want %d", c.header, pages, c.pages)
		}
	}
}

func TestPingAnswersAtOnce(t *testing.T) {
	r := newRig(t, Options{})
	r.open()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	stream, err := r.store.Ping(ctx)
	if err != nil {
		t.Fatal(err)
	}
	for seq := range uint64(3) {
		if err := stream.Send(&storepb.PingRequest{Seq: seq}); err != nil {
			t.Fatal(err)
		}
		if m, err := stream.Recv(); err != nil || m.GetSeq() != seq || m.GetError() != nil {
			t.Fatal(m, err)
		}
	}
	r.s.Close()
	if err := stream.Send(&storepb.PingRequest{}); err != nil {
		t.Fatal(err)
	}
	if m, err := stream.Recv(); err != nil || m.GetError() == nil {
		t.Fatalf("a closed store answers pings: %v, %v", m, err)
	}
}

// FuzzStream sends hostile messages: every request is answered once and the
// store lives.
func FuzzStream(f *testing.F) {
	r := newRig(f, Options{StreamSeats: 16})
	r.open()
	long := []byte(longKey)
	f.Add(uint64(1), uint64(4), []byte("b"), []byte("c"), uint8(0), uint8(3))
	f.Add(^uint64(0), ^uint64(0), []byte{}, []byte{}, uint8(9), uint8(200))
	f.Add(uint64(2), uint64(0), long, long, uint8(8), uint8(1))
	f.Fuzz(func(t *testing.T, rangeID, epoch uint64, key, value []byte, kind, n uint8) {
		stream := openStream(t, r, goodHello)
		m := &kvpb.StreamRequest{Hello: goodHello}
		for i := range uint64(n) + 1 {
			m.Requests = append(m.Requests, hostile(i, rangeID, epoch, key, value, kind+uint8(i)))
		}
		if err := stream.Send(m); err != nil {
			t.Fatal(err)
		}
		var ids []uint64
		for id := range collect(t, stream, len(m.GetRequests())) {
			ids = append(ids, id)
		}
		slices.Sort(ids)
		for i, id := range ids {
			if id != uint64(i) {
				t.Fatalf("answers %v", ids)
			}
		}
	})
}

// hostile is a request that a careless or malicious caller may send.
func hostile(id, rangeID, epoch uint64, key, value []byte, kind uint8) *kvpb.Request {
	h := &kvpb.Header{RangeId: rangeID, SpanEpoch: epoch, Token: epoch, TimeoutMs: uint32(epoch)}
	if kind >= 128 {
		h = nil
	}
	ms := []*kvpb.Mutation{{Key: key, Value: value}, {}}
	out := &kvpb.Request{Id: id}
	switch kind % 12 {
	case 0:
		out.Body = &kvpb.Request_Get{Get: &kvpb.GetRequest{
			Header: h, Key: key,
			Consistency: &kvpb.Consistency{Level: kvpb.ConsistencyLevel(kind)},
		}}
	case 1:
		out.Body = &kvpb.Request_Put{Put: &kvpb.PutRequest{Header: h, Key: key, Value: value}}
	case 2:
		out.Body = &kvpb.Request_Delete{Delete: &kvpb.DeleteRequest{Header: h, Key: key}}
	case 3:
		out.Body = &kvpb.Request_CompareAndSwap{
			CompareAndSwap: &kvpb.CompareAndSwapRequest{Header: h, Key: key, Value: value},
		}
	case 4:
		out.Body = &kvpb.Request_BatchGet{
			BatchGet: &kvpb.BatchGetRequest{Header: h, Keys: [][]byte{key, value, nil}},
		}
	case 5:
		out.Body = &kvpb.Request_BatchWrite{
			BatchWrite: &kvpb.BatchWriteRequest{Header: h, Mutations: ms},
		}
	case 6:
		out.Body = &kvpb.Request_BulkWrite{
			BulkWrite: &kvpb.BulkWriteRequest{Header: h, Mutations: ms},
		}
	case 7:
		out.Body = &kvpb.Request_DeleteRange{
			DeleteRange: &kvpb.DeleteRangeRequest{Header: h, Start: key, End: value},
		}
	case 8:
		out.Body = &kvpb.Request_Scan{
			Scan: &kvpb.ScanRequest{Header: h, Start: key, End: value, Reverse: kind > 64},
		}
	case 9:
		out.Body = &kvpb.Request_Get{}
	case 10:
		out.Body = &kvpb.Request_BatchWrite{}
	}
	return out
}

// Every error the door makes itself has a class, so that a thin client knows
// what to do.
func TestRefusalsHaveAClass(t *testing.T) {
	for _, err := range []error{
		errs.Busy{Reason: "x"}, errs.Unavailable{Part: "store"}, context.DeadlineExceeded,
	} {
		if e := errorOf(refusal(1, err)); e.GetClass() == kvpb.ErrorClass_ERROR_CLASS_UNSPECIFIED {
			t.Errorf("%v: no class", err)
		}
	}
}
