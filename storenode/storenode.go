// Package storenode is a store: it holds replicas of ranges in one engine,
// takes part in their Raft groups and serves their data.
package storenode

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/time/rate"
	"google.golang.org/grpc"

	"github.com/ridgekv/ridge/storenode/internal/engine"
	"github.com/ridgekv/ridge/storenode/internal/service"
)

// ErrNotReady is why Readiness fails before the store has booted and after it
// began to stop.
var ErrNotReady = errors.New("storenode: not ready")

// Server is one store. Make it with New, Register it on a gRPC server that
// listens at Options.GRPCAddress, then Run it.
type Server struct {
	options Options
	door    *service.Service
	storeID atomic.Uint64
	// step says what the store is doing; empty when it serves.
	step atomic.Pointer[string]
}

// New checks the options. It starts and opens nothing.
func New(options Options) (*Server, error) {
	if err := options.Validate(); err != nil {
		return nil, fmt.Errorf("storenode: options: %w", err)
	}
	o := options.withDefaults()
	s := &Server{options: o, door: service.New(service.Options{
		Logger: o.Logger, Registerer: o.Registerer, InFlightBytes: o.Budget().inFlightBytes(),
	})}
	s.say("not started")
	return s, nil
}

// Register adds KVService and StoreService to r. Calls that arrive before the
// store is ready, or after it began to stop, answer Unavailable.
func (s *Server) Register(r grpc.ServiceRegistrar) { s.door.Register(r) }

// Ready reports whether the store serves: it is registered and its replicas
// are started.
func (s *Server) Ready() bool { return s.Readiness() == nil }

// Readiness says why the store does not serve yet; nil when it does.
func (s *Server) Readiness() error {
	if step := *s.step.Load(); step != "" {
		return fmt.Errorf("%w: %s", ErrNotReady, step)
	}
	return nil
}

// StoreID is the id PD gave this store; 0 until it is known.
func (s *Server) StoreID() uint64 { return s.storeID.Load() }

// say notes what the store is doing.
func (s *Server) say(step string) { s.step.Store(&step) }

// imageBurst is what may leave at once below a bound of the image rate.
const imageBurst = 1 << 20

// newRun draws the name of a run; it is never 0.
func newRun() uint64 {
	var b [8]byte
	_, _ = rand.Read(b[:]) // never fails
	return binary.LittleEndian.Uint64(b[:]) | 1
}

// Run opens the directory, joins the cluster and serves until ctx ends. Then it
// hands its leaders away, answers what is in flight and closes in order; the
// gRPC server must keep running until Run has returned. It may be called once.
func (s *Server) Run(ctx context.Context) error {
	n := &node{
		s: s, o: s.options, crew: newCrew(), run: newRun(),
		images: rate.NewLimiter(rate.Inf, imageBurst),
	}
	defer s.say("stopped")
	err := n.boot(ctx)
	if err != nil && ctx.Err() != nil && !errors.Is(err, ErrDirectory) {
		n.o.Logger.Info("store stops before it served", "error", err)
		err = nil
	} else if err == nil {
		s.say("")
		n.o.Logger.Info("store serves", "store", s.StoreID())
		select {
		case <-ctx.Done():
		case err = <-n.crew.failed:
		}
		s.say("stopping")
		// At the last watermark of the disk the engine still commits.
		n.drain(err == nil || errors.Is(err, engine.ErrDiskFull))
	}
	return errors.Join(err, n.close())
}

// crew runs the rooms of a store and stops them in reverse order.
type crew struct {
	wg      sync.WaitGroup
	members []member
	// failed gets the first error of a member.
	failed chan error
}

type member struct {
	name   string
	cancel context.CancelFunc
	done   chan struct{}
}

func newCrew() *crew { return &crew{failed: make(chan error, 1)} }

// start runs one member until stop.
func (c *crew) start(name string, run func(context.Context) error) {
	ctx, cancel := context.WithCancel(context.Background())
	m := member{name: name, cancel: cancel, done: make(chan struct{})}
	c.members = append(c.members, m)
	c.wg.Go(func() {
		defer close(m.done)
		if err := run(ctx); err != nil && !errors.Is(err, context.Canceled) {
			select {
			case c.failed <- fmt.Errorf("storenode: %s: %w", name, err):
			default:
			}
		}
	})
}

// stopDownTo ends the members started after the named one, the last one first,
// each before the next; "" ends all.
func (c *crew) stopDownTo(name string) {
	for i := len(c.members) - 1; i >= 0 && c.members[i].name != name; i-- {
		c.members[i].cancel()
		<-c.members[i].done
		c.members = c.members[:i]
	}
}

// drain hands the leaders away and answers what is in flight. After a failure
// only the latter is tried, and briefly.
func (n *node) drain(healthy bool) {
	timeout := n.o.DrainTimeout
	if !healthy {
		timeout = min(timeout, 500*time.Millisecond)
	}
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	began := time.Now()
	n.agent.StopOrders()
	if healthy {
		away, cancel := context.WithTimeout(ctx, timeout*3/5)
		n.agent.HandAway(away)
		cancel()
	}
	err := errors.Join(n.s.door.Drain(ctx), n.evaluator.DrainAll(ctx))
	n.o.Logger.Info("store drained", "store", n.s.StoreID(), "took", time.Since(began),
		"error", err)
}
