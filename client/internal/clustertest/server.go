package clustertest

import (
	"net"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/keepalive"
)

// server is a gRPC server on a fixed loopback port that can be killed and
// started again.
type server struct {
	t    testing.TB
	addr string

	mu struct {
		sync.Mutex
		grpc   *grpc.Server
		listen net.Listener
		wg     *sync.WaitGroup
	}
}

func newServer(t testing.TB) *server {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &server{t: t, addr: l.Addr().String()}
	s.mu.listen = l
	t.Cleanup(s.kill)
	return s
}

// start serves on the address of the server.
func (s *server) start(register func(grpc.ServiceRegistrar)) {
	s.t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	l := s.mu.listen
	var err error
	for i := 0; l == nil && i < 100; i++ {
		if l, err = net.Listen("tcp", s.addr); err != nil {
			Rest(10 * time.Millisecond) // the old port may linger
		}
	}
	if l == nil {
		s.t.Fatal(err)
	}
	s.mu.listen = nil
	g := grpc.NewServer(grpc.MaxRecvMsgSize(64<<20), grpc.KeepaliveEnforcementPolicy(
		keepalive.EnforcementPolicy{MinTime: time.Second, PermitWithoutStream: true}))
	register(g)
	wg := &sync.WaitGroup{}
	wg.Go(func() { _ = g.Serve(l) })
	s.mu.grpc, s.mu.wg = g, wg
}

// kill closes every connection at once. It is idempotent.
func (s *server) kill() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.mu.listen != nil {
		_ = s.mu.listen.Close()
		s.mu.listen = nil
	}
	if s.mu.grpc != nil {
		s.mu.grpc.Stop()
		s.mu.wg.Wait()
		s.mu.grpc = nil
	}
}
