package service

import (
	"context"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	kvpb "github.com/ridgekv/ridge/proto/ridge/kv/v1"
)

// A caller that opens a stream and says nothing must not hold up a store that
// stops, nor stay for ever.
func TestStreamWithoutHelloEnds(t *testing.T) {
	r := newRig(t, Options{})
	r.open()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	if _, err := r.kv.Stream(ctx); err != nil {
		t.Fatal(err)
	}
	waitFor(t, func() bool {
		r.s.mu.Lock()
		defer r.s.mu.Unlock()
		return r.s.mu.calls == 1
	})
	draining, done := context.WithTimeout(t.Context(), 5*time.Second)
	defer done()
	if err := r.s.Drain(draining); err != nil {
		t.Fatal("the silent stream holds the store up:", err)
	}
}

// What a caller does not read stands in the budget of all callers. It is let go
// of in the end, and what was refused never counts.
func TestStreamThatNeverReads(t *testing.T) {
	r := newRig(t, Options{
		StreamSeats: 4, debtTimeout: 500 * time.Millisecond,
	})
	r.open()
	r.evaluator.answer = func(*kvpb.Request) *kvpb.Response {
		return &kvpb.Response{Body: &kvpb.Response_Get{Get: &kvpb.GetResponse{
			Found: true, Row: &kvpb.Row{Value: make([]byte, 1<<20)},
		}}}
	}
	stream := openStream(t, r, goodHello)
	var requests []*kvpb.Request
	for i := range uint64(4) {
		request := putOf(at(1, 4), "b", 50_000)
		request.Id = i + 1
		requests = append(requests, request)
	}
	for range 2 { // the second half is refused
		if err := stream.Send(&kvpb.StreamRequest{Requests: requests}); err != nil {
			t.Fatal(err)
		}
	}
	// 4 answers of 1 MiB wait, 4 refusals of nearly nothing, and two messages.
	waitFor(t, func() bool {
		n := r.s.bytes.Load()
		return n > 3<<20 && n < 5<<20
	})
	waitFor(t, func() bool { return r.s.bytes.Load() == 0 })
	for {
		if _, err := stream.Recv(); err != nil {
			if status.Code(err) != codes.ResourceExhausted {
				t.Fatal(err)
			}
			return
		}
	}
}
