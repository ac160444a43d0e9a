// Package pd is the placement driver: it admits stores, knows every range,
// hands out ids and timestamps, and decides where replicas live.
package pd

import (
	"context"
	"errors"

	"google.golang.org/grpc"
)

// Server is one PD node.
type Server struct {
	o Options
}

// New checks the options. It starts nothing.
func New(o Options) (*Server, error) {
	if err := o.Validate(); err != nil {
		return nil, err
	}
	return &Server{o: o.withDefaults()}, nil
}

// Register adds PDService to r. Calls are answered UNAVAILABLE until Run has
// opened the node.
func (s *Server) Register(r grpc.ServiceRegistrar) {}

// Run opens the node and serves until ctx ends or the node fails. When it
// returns, nothing of the node is running. It may be called once.
func (s *Server) Run(ctx context.Context) error { return errors.New("pd: not built yet") }

// Ready reports whether this node knows a PD leader and has the cluster's
// state: calls to it are answered or sent on.
func (s *Server) Ready() bool { return false }
