// Package pd is the placement driver: it admits stores, knows every range,
// hands out ids and timestamps, and decides where replicas live.
package pd

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"

	"google.golang.org/grpc"

	"github.com/ridgekv/ridge/pd/internal/meta"
	"github.com/ridgekv/ridge/pd/internal/service"
	pdpb "github.com/ridgekv/ridge/proto/ridge/pd/v1"
)

// Server is one PD node. Make it with New, Register it on a gRPC server that
// listens at this member's GRPCAddress, then Run it.
type Server struct {
	o       Options
	service *service.Service
	metrics *metrics
	meta    atomic.Pointer[meta.Meta]
}

// New checks the options. It starts nothing.
func New(o Options) (*Server, error) {
	if err := o.Validate(); err != nil {
		return nil, err
	}
	o = o.withDefaults()
	s := &Server{o: o, metrics: newMetrics(o.Registerer)}
	so := service.Options{MemberID: o.MemberID, Version: o.Version, Logger: o.Logger}
	for _, m := range o.Members {
		so.Members = append(so.Members, &pdpb.Member{
			MemberId: m.ID, GrpcAddress: m.GRPCAddress, RaftAddress: m.RaftAddress,
		})
	}
	s.service = service.New(so)
	return s, nil
}

// Register adds PDService and PDAdminService to r. Calls are answered
// UNAVAILABLE until Run has opened the node.
func (s *Server) Register(r grpc.ServiceRegistrar) {
	pdpb.RegisterPDServiceServer(r, s.service)
	pdpb.RegisterPDAdminServiceServer(r, s.service)
}

// Run opens the node and serves until ctx ends or the node fails. When it
// returns, nothing of the node is running. It may be called once.
func (s *Server) Run(ctx context.Context) error {
	m, err := meta.Open(s.metaOptions())
	if err != nil {
		return fmt.Errorf("pd: %w", err)
	}
	defer m.Close()
	s.meta.Store(m)
	defer s.meta.Store(nil)
	s.service.Open(m)
	defer s.service.Open(nil)
	ctx, cancel := context.WithCancel(ctx)
	l := newLeadership(s, m)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	errc := make(chan error, 2)
	wg.Go(func() { errc <- l.listen(ctx) })
	wg.Go(func() { errc <- l.run(ctx) })
	if err := <-errc; err != nil && !errors.Is(err, context.Canceled) {
		return fmt.Errorf("pd: %w", err)
	}
	return nil
}

func (s *Server) metaOptions() meta.Options {
	out := meta.Options{
		Dir: s.o.Dir, MemberID: s.o.MemberID, Members: map[uint64]string{},
		ListenAddress: s.o.RaftListenAddress, Tick: s.o.Tick, Logger: s.o.Logger,
	}
	for _, m := range s.o.Members {
		out.Members[m.ID] = m.RaftAddress
	}
	if s.o.TLS != nil {
		out.TLS = &meta.TLSFiles{CA: s.o.TLS.CA, Cert: s.o.TLS.Cert, Key: s.o.TLS.Key}
	}
	return out
}

// Ready reports whether this node knows a PD leader and has the cluster's
// state: calls to it are answered or sent on.
func (s *Server) Ready() bool {
	m := s.meta.Load()
	return m != nil && m.Leader() != 0 && m.ClusterID() != 0
}
