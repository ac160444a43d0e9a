// Package serve owns what a process listens on. Law: it holds the only
// grpc.NewServer, so limits, keepalive, TLS and recovery are the same
// everywhere.
package serve

import (
	"context"
	"crypto/tls"
	"fmt"
	"log/slog"
	"net"
	"runtime/debug"
	"sync"
	"time"

	"github.com/grpc-ecosystem/go-grpc-middleware/v2/interceptors/recovery"
	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/reflection"
	"google.golang.org/grpc/status"

	"github.com/ridgekv/ridge/proto/wire"
)

const (
	// maxMessageBytes bounds one message in each direction: several entries of
	// 4 MiB, and no more than a hostile caller may make us hold.
	maxMessageBytes = 16 << 20
	// minPing is how often a client may send keepalives. Ours do every 10 s.
	minPing     = 4 * time.Second
	pingAfter   = 20 * time.Second
	pingTimeout = 5 * time.Second
	windowBytes = 4 << 20
	// maxStreams bounds the concurrent calls of one connection.
	maxStreams = 10_000
	// closeTimeout bounds waiting for calls when the server stops.
	closeTimeout = 500 * time.Millisecond
)

// Options configure a Server.
type Options struct {
	Listener net.Listener
	// TLS is the server side; nil means plain text.
	TLS *tls.Config
	// Readiness says why the process does not serve; nil when it does. The
	// gRPC health service follows it.
	Readiness  func() error
	Logger     *slog.Logger
	Registerer prometheus.Registerer
}

// Server is a gRPC server with health and reflection. Register services on it,
// then Run it.
type Server struct {
	o      Options
	server *grpc.Server
	health *health.Server
}

// New makes a server. It serves nothing yet.
func New(o Options) (*Server, error) {
	m, err := newMetrics(o.Registerer)
	if err != nil {
		return nil, fmt.Errorf("serve: metrics: %w", err)
	}
	saved := recovery.WithRecoveryHandlerContext(func(_ context.Context, p any) error {
		m.panics.Inc()
		o.Logger.Error("a handler panicked", "op", "serve", "panic", p, "stack", string(debug.Stack()))
		return status.Error(codes.Internal, "the server made a mistake; it is in its log")
	})
	options := []grpc.ServerOption{
		grpc.ChainUnaryInterceptor(m.unary, recovery.UnaryServerInterceptor(saved)),
		grpc.ChainStreamInterceptor(m.stream, recovery.StreamServerInterceptor(saved)),
		grpc.ForceServerCodecV2(wire.Codec{}),
		grpc.MaxRecvMsgSize(maxMessageBytes),
		grpc.MaxSendMsgSize(maxMessageBytes),
		grpc.MaxConcurrentStreams(maxStreams),
		grpc.InitialWindowSize(windowBytes),
		grpc.InitialConnWindowSize(windowBytes),
		grpc.ConnectionTimeout(10 * time.Second),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{
			MinTime: minPing, PermitWithoutStream: true,
		}),
		grpc.KeepaliveParams(keepalive.ServerParameters{Time: pingAfter, Timeout: pingTimeout}),
	}
	if o.TLS != nil {
		options = append(options, grpc.Creds(credentials.NewTLS(o.TLS)))
	}
	s := &Server{o: o, server: grpc.NewServer(options...), health: health.NewServer()}
	s.health.SetServingStatus("", healthpb.HealthCheckResponse_NOT_SERVING)
	healthpb.RegisterHealthServer(s.server, s.health)
	return s, nil
}

// RegisterService implements grpc.ServiceRegistrar.
func (s *Server) RegisterService(d *grpc.ServiceDesc, service any) {
	s.server.RegisterService(d, service)
}

// Run serves until ctx ends, then lets calls finish for a moment and closes.
func (s *Server) Run(ctx context.Context) error {
	reflection.Register(s.server)
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	wg.Go(func() { s.watchHealth(ctx) })
	wg.Go(func() {
		<-ctx.Done()
		s.stop()
	})
	if err := s.server.Serve(s.o.Listener); err != nil {
		return fmt.Errorf("serve: grpc on %s: %w", s.o.Listener.Addr(), err)
	}
	return nil
}

// watchHealth copies the readiness into the gRPC health service.
func (s *Server) watchHealth(ctx context.Context) {
	ticker := time.NewTicker(100 * time.Millisecond)
	defer ticker.Stop()
	for {
		state := healthpb.HealthCheckResponse_SERVING
		if s.o.Readiness() != nil {
			state = healthpb.HealthCheckResponse_NOT_SERVING
		}
		s.health.SetServingStatus("", state)
		select {
		case <-ctx.Done():
			s.health.Shutdown()
			return
		case <-ticker.C:
		}
	}
}

func (s *Server) stop() {
	var wg sync.WaitGroup
	done := make(chan struct{})
	wg.Go(func() {
		s.server.GracefulStop()
		close(done)
	})
	timer := time.NewTimer(closeTimeout)
	defer timer.Stop()
	select {
	case <-done:
	case <-timer.C:
		s.server.Stop() // ends streams that clients keep open, and GracefulStop
	}
	wg.Wait()
}
