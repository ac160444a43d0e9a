// Package agent is PD's hand on a store: it reports what the store holds, does
// what PD orders, keeps the clock, and watches the other stores.
package agent

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/time/rate"

	"github.com/ridgekv/ridge/client/pdclient"
	"github.com/ridgekv/ridge/client/storeclient"
	metapb "github.com/ridgekv/ridge/proto/ridge/meta/v1"
	pdpb "github.com/ridgekv/ridge/proto/ridge/pd/v1"
	"github.com/ridgekv/ridge/storenode/internal/catalog"
	"github.com/ridgekv/ridge/storenode/internal/engine"
	"github.com/ridgekv/ridge/storenode/internal/evaluate"
	"github.com/ridgekv/ridge/storenode/internal/raft"
)

// ErrRefused ends Run: PD does not accept this store any more.
var ErrRefused = errors.New("agent: PD refuses this store")

// Members changes who takes part in a range. raft.Host does it.
type Members interface {
	AddLearner(ctx context.Context, rangeID, replicaID, storeID, expectedConfig uint64) error
	Promote(ctx context.Context, rangeID, replicaID, storeID, expectedConfig uint64) error
	RemoveReplica(ctx context.Context, rangeID, replicaID, expectedConfig uint64) error
	TransferLeader(ctx context.Context, rangeID, replicaID uint64) error
}

// Replicas makes and unmakes the replicas of this store. raft.Host does it.
type Replicas interface {
	BearFirst(ctx context.Context, first *metapb.Range) error
	CreateLearner(ctx context.Context, rangeID, replicaID uint64) error
	DestroyReplica(ctx context.Context, rangeID, replicaID uint64) error
	CaughtUp(ctx context.Context, rangeID uint64) error
}

// Groups is what is known of the Raft groups here. raft.Host knows it.
type Groups interface {
	Leader(rangeID uint64) raft.Leader
	Membership(rangeID uint64) (replicas []*metapb.Replica, config uint64, ok bool)
	Suspect(storeID uint64, silent bool)
}

// Host is all of raft that the agent uses.
type Host interface {
	Members
	Replicas
	Groups
}

// Leaseholder is what the agent needs of the room that evaluates.
type Leaseholder interface {
	Split(ctx context.Context, rangeID uint64, splitKey []byte, child evaluate.SplitChild) (
		left, right *metapb.Range, err error)
	PrepareTransfer(ctx context.Context, rangeID uint64) error
	Leaseholder(rangeID uint64) bool
	Stats(rangeID uint64) evaluate.Stats
}

// Pipeline is what the agent needs of what the leaseholder has proposed.
type Pipeline interface {
	// Settled returns when all of it is decided, and applied here.
	Settled(ctx context.Context, rangeID uint64) error
}

// Sampler tells where in its span the load of a range falls.
type Sampler interface {
	LoadOf(rangeID uint64) evaluate.Load
}

// Evaluator is all of evaluate that the agent uses.
type Evaluator interface {
	Leaseholder
	Pipeline
	Sampler
}

// Options are the intervals of the agent.
type Options struct {
	// HeartbeatInterval, RangeHeartbeatInterval, PingInterval and SilenceAfter
	// are as in storenode.Options; all must be set.
	HeartbeatInterval, RangeHeartbeatInterval time.Duration
	PingInterval, SilenceAfter                time.Duration
	// Run names this run of the process to PD.
	Run        uint64
	Logger     *slog.Logger
	Registerer prometheus.Registerer
}

// Deps are the rooms and clients the agent works with.
type Deps struct {
	ClusterID uint64
	// Self is this store as it is told to PD.
	Self      *metapb.Store
	PD        *pdclient.Client
	Pool      *storeclient.Pool
	Clock     *Clock
	Book      *Book
	Engine    *engine.Engine
	Catalog   *catalog.Catalog
	Host      Host
	Evaluator Evaluator
	// Images bounds the range images sent here, at the rate PD asks for.
	Images *rate.Limiter
}

// Agent is PD's hand on one store.
type Agent struct {
	o       Options
	d       Deps
	metrics *metrics
	started time.Time
	// kick asks for a look at what has changed.
	kick chan struct{}
	// births carries the children that were started here.
	births chan birth
	// config is what PD last said of its configuration.
	config atomic.Pointer[pdpb.ClusterConfig]
	// draining stops orders.
	draining atomic.Bool
	// storesVersion says what the book has learned. Only heartbeats touches it.
	storesVersion uint64

	sizes  *sizes
	rates  *rates
	health *health
	watch  *watch

	// workers run orders; busy names their ranges.
	workers sync.WaitGroup
	mu      struct {
		sync.Mutex
		busy map[uint64]struct{}
		// failures wait for the next report.
		failures []*pdpb.OrderFailure
	}
}

// New returns an agent that does nothing yet.
func New(o Options, d Deps) *Agent {
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	a := &Agent{
		o: o, d: d, metrics: newMetrics(o.Registerer), started: time.Now(),
		kick: make(chan struct{}, 1), births: make(chan birth, 1024),
		sizes: newSizes(), rates: newRates(), health: newHealth(), watch: newWatch(o.SilenceAfter),
	}
	a.mu.busy = map[uint64]struct{}{}
	a.config.Store(&pdpb.ClusterConfig{})
	return a
}

// Kick makes the agent look for changes to report now.
func (a *Agent) Kick() {
	select {
	case a.kick <- struct{}{}:
	default:
	}
}

// Configure takes over what PD says of its configuration.
func (a *Agent) Configure(c *pdpb.ClusterConfig) {
	if c == nil {
		return
	}
	a.config.Store(c)
	if a.d.Images == nil {
		return
	}
	limit := rate.Inf
	if n := c.GetImageBytesPerSecond(); n > 0 {
		limit = rate.Limit(n)
	}
	if a.d.Images.Limit() != limit {
		a.d.Images.SetLimit(limit)
	}
}

// StopOrders makes the agent take no more orders, before the store drains.
func (a *Agent) StopOrders() { a.draining.Store(true) }

// Run does everything until ctx ends, or until the store must stop. All orders
// under way have ended when it returns.
func (a *Agent) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	jobs := []func(context.Context) error{
		a.d.Clock.Run, a.heartbeats, a.reports, a.measures, a.lookAfterLearners,
		a.readAsLearner, a.pings, a.tellBirths,
	}
	var wg sync.WaitGroup
	results := make(chan error, len(jobs))
	for _, job := range jobs {
		wg.Go(func() { results <- job(ctx) })
	}
	var first error
	for range jobs {
		if err := <-results; err != nil && first == nil {
			first = err
			cancel()
		}
	}
	cancel()
	wg.Wait()
	a.workers.Wait()
	return first
}

// describe returns the descriptor of a local replica's range, as far as it is
// known here.
func (a *Agent) describe(r *catalog.Replica) *metapb.Range {
	s := r.State()
	members, config, _ := a.d.Host.Membership(r.RangeID())
	return &metapb.Range{
		RangeId: r.RangeID(), Span: s.Span().Proto(), Replicas: members,
		Epoch: &metapb.Epoch{Config: config, Span: s.SpanEpoch()},
	}
}

// every calls f each period until ctx ends or f fails.
func every(ctx context.Context, period time.Duration, f func(context.Context) error) error {
	ticker := time.NewTicker(period)
	defer ticker.Stop()
	for {
		if err := f(ctx); err != nil {
			return err
		}
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return nil
		}
	}
}
