package storeclient_test

import (
	"context"
	"errors"
	"net"
	"strings"
	"sync"
	"testing"

	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"

	"github.com/ridgekv/ridge/client/storeclient"
	kvpb "github.com/ridgekv/ridge/proto/ridge/kv/v1"
	storepb "github.com/ridgekv/ridge/proto/ridge/store/v1"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// store answers Status with the metadata it was sent.
type store struct {
	storepb.UnimplementedStoreServiceServer
	kvpb.UnimplementedKVServiceServer
}

func (store) Status(
	ctx context.Context, _ *storepb.StatusRequest,
) (*storepb.StatusResponse, error) {
	md, _ := metadata.FromIncomingContext(ctx)
	if strings.Join(md.Get(storeclient.ClusterIDKey), ",") != "42" {
		return nil, errors.New("no cluster id")
	}
	n := uint64(len(md.Get(storeclient.StoreIDKey)))
	return &storepb.StatusResponse{RangeCount: n}, nil
}

func (store) Ping(s grpc.BidiStreamingServer[storepb.PingRequest, storepb.PingResponse]) error {
	for {
		r, err := s.Recv()
		if err != nil {
			return nil
		}
		if err := s.Send(&storepb.PingResponse{Seq: r.GetSeq()}); err != nil {
			return err
		}
	}
}

func serve(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	g := grpc.NewServer()
	storepb.RegisterStoreServiceServer(g, store{})
	kvpb.RegisterKVServiceServer(g, store{})
	var wg sync.WaitGroup
	wg.Go(func() { _ = g.Serve(l) })
	t.Cleanup(func() { g.Stop(); wg.Wait() })
	return l.Addr().String()
}

func TestPool(t *testing.T) {
	addr := serve(t)
	p := storeclient.New(storeclient.Options{ClusterID: func() uint64 { return 42 }})
	defer p.Close()
	s := p.Store(addr)
	r, err := s.Status(t.Context(), &storepb.StatusRequest{})
	if err != nil || r.GetRangeCount() != 0 {
		t.Fatalf("got %v, %v", r, err)
	}
	ctx := storeclient.WithStoreID(t.Context(), 7)
	if r, err = s.Status(ctx, &storepb.StatusRequest{}); err != nil || r.GetRangeCount() != 1 {
		t.Fatalf("got %v, %v", r, err)
	}
	ping, err := s.Ping(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := ping.Send(&storepb.PingRequest{Seq: 3}); err != nil {
		t.Fatal(err)
	}
	if r, err := ping.Recv(); err != nil || r.GetSeq() != 3 {
		t.Fatalf("got %v, %v", r, err)
	}
	if _, err := p.KV(addr).Get(t.Context(), &kvpb.GetRequest{}); err == nil ||
		!strings.Contains(err.Error(), "not implemented") {
		t.Fatalf("got %v", err)
	}
	p.Forget(addr) // the client that was made before keeps working
	if _, err := s.Status(t.Context(), &storepb.StatusRequest{}); err != nil {
		t.Fatal(err)
	}
	if _, err := ping.Recv(); err == nil {
		t.Error("the stream survived Forget")
	}
	if err := p.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Status(t.Context(), &storepb.StatusRequest{}); err == nil ||
		!strings.Contains(err.Error(), storeclient.ErrClosed.Error()) {
		t.Errorf("got %v", err)
	}
	if _, err := s.Ping(t.Context()); err == nil {
		t.Error("a stream was opened after Close")
	}
}
