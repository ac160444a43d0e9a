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

	"github.com/ridgekv/ridge/pd/internal/members"
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
	o = o.named().withDefaults()
	s := &Server{o: o, metrics: newMetrics(o.Registerer)}
	s.service = service.New(service.Options{Version: o.Version, Logger: o.Logger})
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
	id, err := s.identify(ctx)
	if err != nil {
		if ctx.Err() != nil {
			return nil
		}
		return fmt.Errorf("pd: %w", err)
	}
	self := s.o.self() // by the options; the id may be another than they say
	m, err := s.open(id)
	if err != nil {
		return fmt.Errorf("pd: %w", err)
	}
	defer m.Close()
	s.meta.Store(m)
	defer s.meta.Store(nil)
	s.service.Open(m)
	defer s.service.Open(nil)
	ctx, cancel := context.WithCancel(ctx)
	l := newLeadership(s, m, s.founders(id))
	attendance := members.Attendance{
		Meta: m, Identity: id, Dir: s.o.Dir, GRPCAddress: self.GRPCAddress,
		Peers: s.o.Peers, Log: s.o.Logger,
	}
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	errc := make(chan error, 3)
	wg.Go(func() { errc <- l.listen(ctx) })
	wg.Go(func() { errc <- l.run(ctx) })
	wg.Go(func() { errc <- attendance.Run(ctx) })
	if err := <-errc; err != nil && !errors.Is(err, context.Canceled) {
		return fmt.Errorf("pd: %w", err)
	}
	return nil
}

// MemberID is the id of this node among PD's; 0 until it is known.
func (s *Server) MemberID() uint64 {
	if m := s.meta.Load(); m != nil {
		return m.MemberID()
	}
	return 0
}

// Ready reports whether this node has its vote, knows a PD leader and has the
// cluster's state: calls to it are answered or sent on, and it counts.
func (s *Server) Ready() bool {
	m := s.meta.Load()
	if m == nil || m.Leader() == 0 || m.ClusterID() == 0 {
		return false
	}
	self := m.Member(m.MemberID())
	return self != nil && !self.GetJoining()
}
