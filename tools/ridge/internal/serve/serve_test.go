package serve

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	reflectionpb "google.golang.org/grpc/reflection/grpc_reflection_v1"
	"google.golang.org/grpc/status"

	kvpb "github.com/ridgekv/ridge/proto/ridge/kv/v1"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

type panicking struct {
	kvpb.UnimplementedKVServiceServer
}

func (panicking) Get(context.Context, *kvpb.GetRequest) (*kvpb.GetResponse, error) {
	panic("a hostile message")
}

func (panicking) Stream(grpc.BidiStreamingServer[kvpb.StreamRequest, kvpb.StreamResponse]) error {
	panic("another")
}

func start(t *testing.T, readiness func() error) *grpc.ClientConn {
	t.Helper()
	listener, err := Listen("grpc", "--listen", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server, err := New(Options{
		Listener: listener, Readiness: readiness, Logger: slog.New(slog.DiscardHandler),
		Registerer: prometheus.NewRegistry(),
	})
	if err != nil {
		t.Fatal(err)
	}
	kvpb.RegisterKVServiceServer(server, panicking{})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- server.Run(ctx) }()
	conn, err := grpc.NewClient("passthrough:///"+listener.Addr().String(),
		grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		_ = conn.Close()
	})
	return conn
}

// TestPanicIsAnError: whatever a handler does, the server lives on.
func TestPanicIsAnError(t *testing.T) {
	conn := start(t, func() error { return nil })
	kv := kvpb.NewKVServiceClient(conn)
	for range 3 {
		if _, err := kv.Get(t.Context(), &kvpb.GetRequest{}); status.Code(err) != codes.Internal {
			t.Fatalf("unary: %v", err)
		}
		s, err := kv.Stream(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if _, err := s.Recv(); status.Code(err) != codes.Internal {
			t.Fatalf("stream: %v", err)
		}
	}
}

// TestStopWithOpenStreams: a client that keeps a stream open does not keep the
// server from stopping.
func TestStopWithOpenStreams(t *testing.T) {
	conn := start(t, func() error { return nil })
	w, err := healthpb.NewHealthClient(conn).Watch(t.Context(), &healthpb.HealthCheckRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Recv(); err != nil {
		t.Fatal(err)
	}
}

func TestHealthFollowsReadiness(t *testing.T) {
	var ready atomic.Bool
	conn := start(t, func() error {
		if ready.Load() {
			return nil
		}
		return errors.New("not yet")
	})
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	w, err := healthpb.NewHealthClient(conn).Watch(ctx, &healthpb.HealthCheckRequest{})
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []healthpb.HealthCheckResponse_ServingStatus{
		healthpb.HealthCheckResponse_NOT_SERVING, healthpb.HealthCheckResponse_SERVING,
	} {
		got, err := w.Recv()
		if err != nil || got.GetStatus() != want {
			t.Fatalf("got %v, %v; want %v", got, err, want)
		}
		ready.Store(true)
	}
}

func TestPortInUse(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	_, err = Listen("grpc", "--listen", l.Addr().String())
	if err == nil || !strings.Contains(err.Error(), "in use by another process") ||
		!strings.Contains(err.Error(), "--listen") {
		t.Errorf("got %v", err)
	}
	if err := Probe("raft", "--raft-listen", l.Addr().String()); err == nil {
		t.Error("Probe accepts a port in use")
	}
}

func TestLock(t *testing.T) {
	dir := t.TempDir() + "/store"
	release, err := Lock(dir, "store")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Lock(dir, "store"); err == nil || !strings.Contains(err.Error(), "in use by another process") {
		t.Errorf("a second lock: %v", err)
	}
	release()
	release, err = Lock(dir, "store")
	if err != nil {
		t.Fatalf("after release: %v", err)
	}
	release()
	if _, err := Lock(dir, "pd"); err == nil || !strings.Contains(err.Error(), "belongs to `ridge store`") {
		t.Errorf("a PD in the directory of a store: %v", err)
	}
	release, err = Lock(dir, "store")
	if err != nil {
		t.Fatalf("after the refusal: %v", err)
	}
	release()
}

func TestTLSFiles(t *testing.T) {
	if c, err := (Files{}).Server(); c != nil || err != nil {
		t.Errorf("no files: %v, %v", c, err)
	}
	for _, f := range []Files{{CA: "a"}, {CA: "/nope", Cert: "/nope", Key: "/nope"}} {
		if _, err := f.Client(); err == nil {
			t.Errorf("%v is accepted", f)
		}
	}
}

// TestReflection: a caller without our protos learns what is served.
func TestReflection(t *testing.T) {
	conn := start(t, func() error { return nil })
	stream, err := reflectionpb.NewServerReflectionClient(conn).ServerReflectionInfo(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	ask := &reflectionpb.ServerReflectionRequest{
		MessageRequest: &reflectionpb.ServerReflectionRequest_ListServices{},
	}
	if err := stream.Send(ask); err != nil {
		t.Fatal(err)
	}
	answer, err := stream.Recv()
	if err != nil {
		t.Fatal(err)
	}
	names := map[string]bool{}
	for _, s := range answer.GetListServicesResponse().GetService() {
		names[s.GetName()] = true
	}
	if !names["ridge.kv.v1.KVService"] || !names["grpc.health.v1.Health"] {
		t.Errorf("listed: %v", names)
	}
}
