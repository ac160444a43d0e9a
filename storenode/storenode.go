// Package storenode is a store: it holds replicas of ranges in one engine,
// takes part in their Raft groups and serves their data.
package storenode

import (
	"context"
	"errors"
	"fmt"

	"google.golang.org/grpc"
)

// ErrNotReady is why Readiness fails before the store has booted.
var ErrNotReady = errors.New("storenode: not ready")

// Server is one store. Make it with New, Register it on a gRPC server that
// listens at Options.GRPCAddress, then Run it.
type Server struct {
	options Options
}

// New checks the options. It starts and opens nothing.
func New(options Options) (*Server, error) {
	if err := options.Validate(); err != nil {
		return nil, fmt.Errorf("storenode: options: %w", err)
	}
	return &Server{options: options.withDefaults()}, nil
}

// Register adds KVService and StoreService to r. Calls that arrive before the
// store is ready, or after it began to stop, answer Unavailable.
func (s *Server) Register(r grpc.ServiceRegistrar) {}

// Run opens the directory, joins the cluster and serves until ctx ends. Then it
// hands its leaders away, answers what is in flight and closes in order; the
// gRPC server must keep running until Run has returned.
func (s *Server) Run(ctx context.Context) error {
	<-ctx.Done()
	return nil
}

// Ready reports whether the store serves: it is registered and its replicas
// are started.
func (s *Server) Ready() bool { return s.Readiness() == nil }

// Readiness says why the store does not serve yet; nil when it does.
func (s *Server) Readiness() error { return ErrNotReady }

// StoreID is the id PD gave this store; 0 until it is known.
func (s *Server) StoreID() uint64 { return 0 }
