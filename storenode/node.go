package storenode

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"slices"
	"time"

	"golang.org/x/time/rate"

	"github.com/ridgekv/ridge/client/pdclient"
	"github.com/ridgekv/ridge/client/storeclient"
	logpb "github.com/ridgekv/ridge/proto/ridge/log/v1"
	metapb "github.com/ridgekv/ridge/proto/ridge/meta/v1"
	pdpb "github.com/ridgekv/ridge/proto/ridge/pd/v1"
	"github.com/ridgekv/ridge/storenode/internal/agent"
	"github.com/ridgekv/ridge/storenode/internal/apply"
	"github.com/ridgekv/ridge/storenode/internal/catalog"
	"github.com/ridgekv/ridge/storenode/internal/engine"
	"github.com/ridgekv/ridge/storenode/internal/evaluate"
	"github.com/ridgekv/ridge/storenode/internal/gateway"
	"github.com/ridgekv/ridge/storenode/internal/raft"
	"github.com/ridgekv/ridge/storenode/internal/service"
)

// knownStartTimeout is how long a start that knows its cluster waits for PD
// before it goes on without.
const knownStartTimeout = 2 * time.Second

// node is everything of a store between open and close.
type node struct {
	s    *Server
	o    Options
	crew *crew
	// run names this run of the process to PD.
	run uint64
	// images bounds the range images sent, at the rate PD asks for.
	images *rate.Limiter

	ident *logpb.StoreIdent
	// welcome is PD's answer to the registration; nil when PD was away.
	welcome *pdpb.RegisterStoreResponse
	// hasEngine is set once engine must be closed.
	hasEngine bool

	tls       *tls.Config
	pd        *pdclient.Client
	pool      *storeclient.Pool
	engine    *engine.Engine
	catalog   *catalog.Catalog
	book      *agent.Book
	clock     *agent.Clock
	host      *raft.Host
	hostRuns  bool
	evaluator *evaluate.Evaluator
	agent     *agent.Agent
	gateway   *gateway.Gateway
}

// boot opens and starts everything in order: engine, identity, catalog, garbage
// collection, Raft, evaluation, agent, door.
func (n *node) boot(ctx context.Context) error {
	for _, step := range []struct {
		name string
		do   func(context.Context) error
	}{
		{"opening the engine", n.openEngine},
		{"joining the cluster", n.join},
		{"loading the catalog", n.loadCatalog},
		{"starting Raft", n.startRaft},
		{"starting evaluation", n.startEvaluation},
		{"opening the door", n.openDoor},
		{"catching up", n.catchUp},
	} {
		n.s.say(step.name)
		began := time.Now()
		if err := step.do(ctx); err != nil {
			return err
		}
		n.o.Logger.Debug("boot", "op", step.name, "took", time.Since(began))
		select {
		case err := <-n.crew.failed:
			return err
		default:
		}
	}
	return nil
}

func (n *node) openEngine(context.Context) error {
	dirs := n.o.directories()
	found, err := dirs.look()
	if err != nil {
		return err
	}
	if err := dirs.checkHalves(found); err != nil {
		return err
	}
	if err := dirs.create(); err != nil {
		return err
	}
	n.engine, err = engine.Open(n.o.engineOptions())
	if err != nil {
		return fmt.Errorf("storenode: %w", err)
	}
	n.hasEngine = true
	n.ident, err = readIdent(n.engine)
	if err != nil {
		return err
	}
	n.o = n.o.withLog(n.ident)
	now, err := n.o.identNow()
	if err != nil {
		return err
	}
	if n.ident != nil {
		err = dirs.checkIdent(n.ident, now, found, len(n.engine.States()))
	} else if found.log {
		err = fmt.Errorf("%w: %s holds a Raft log but the data in %s has no identity: bring the "+
			"engine directory back, or remove both to start as a new store",
			ErrDirectory, dirs.log, dirs.engine)
	}
	if err != nil {
		return err
	}
	n.crew.start("engine", n.engine.Run)
	return nil
}

// identNow is what this start would write, but for the ids.
func (o Options) identNow() (*logpb.StoreIdent, error) {
	host, err := hostName()
	if err != nil {
		return nil, err
	}
	return &logpb.StoreIdent{
		Format: identFormat, HostName: host, LogKind: o.LogKind,
		LogShards: uint32(o.LogShards), ExecShards: uint32(o.ExecShards),
	}, nil
}

// join makes this store known to PD. A new store waits for PD as long as it
// takes; one that knows its cluster goes on without.
func (n *node) join(ctx context.Context) error {
	var err error
	if n.tls, err = n.o.clientTLS(); err != nil {
		return err
	}
	n.pd, err = pdclient.Open(ctx, pdclient.Options{
		Addresses: n.pdAddresses(), TLS: n.tls, ClusterID: n.ident.GetClusterId(), Logger: n.o.Logger,
		Registerer: n.o.Registerer,
	})
	if err != nil {
		return fmt.Errorf("storenode: %w", err)
	}
	if n.ident != nil {
		n.s.storeID.Store(n.ident.GetStoreId())
		short, cancel := context.WithTimeout(ctx, knownStartTimeout)
		defer cancel()
		n.welcome, err = agent.Register(short, n.pd, n.registration())
		if err != nil && !errors.Is(err, agent.ErrRefused) && ctx.Err() == nil {
			n.o.Logger.Warn("PD is away: starting with the last known addresses",
				"store", n.ident.GetStoreId(), "error", err)
			return nil
		}
		if err != nil {
			return err
		}
		return n.sameIds(n.welcome)
	}
	n.welcome, err = agent.Register(ctx, n.pd, n.registration())
	if err != nil {
		return err
	}
	n.ident, err = n.o.identNow()
	if err != nil {
		return err
	}
	n.ident.ClusterId, n.ident.StoreId = n.welcome.GetClusterId(), n.welcome.GetStoreId()
	n.s.storeID.Store(n.ident.GetStoreId())
	if err := writeIdent(n.engine, n.ident); err != nil {
		return err
	}
	return n.engine.Flush(ctx)
}

// pdAddresses are the configured ones, then those that were heard last: PD's nodes
// may have been replaced since the configuration was written.
func (n *node) pdAddresses() []string {
	addresses := slices.Clone(n.o.PD)
	known, err := agent.KnownPDs(n.engine)
	if err != nil {
		n.o.Logger.Warn("PD's last known addresses cannot be read", "error", err)
	}
	for _, a := range known {
		if !slices.Contains(addresses, a) {
			addresses = append(addresses, a)
		}
	}
	return addresses
}

// sameIds refuses a PD that takes this store for another one.
func (n *node) sameIds(w *pdpb.RegisterStoreResponse) error {
	if w.GetClusterId() == n.ident.GetClusterId() && w.GetStoreId() == n.ident.GetStoreId() {
		return nil
	}
	return fmt.Errorf("%w: it is store %d of cluster %d, PD speaks of store %d of cluster %d: "+
		"correct the PD addresses", ErrDirectory, n.ident.GetStoreId(), n.ident.GetClusterId(),
		w.GetStoreId(), w.GetClusterId())
}

// self is this store as PD shall know it.
func (n *node) self() *metapb.Store {
	return &metapb.Store{
		StoreId: n.ident.GetStoreId(), GrpcAddress: n.o.GRPCAddress,
		RaftAddress: n.o.RaftAddress, Labels: n.o.Labels, Version: n.o.Version,
	}
}

func (n *node) registration() *pdpb.RegisterStoreRequest {
	return &pdpb.RegisterStoreRequest{
		Header: &pdpb.RequestHeader{ClusterId: n.ident.GetClusterId()},
		Store:  n.self(), CapacityBytes: n.engine.Disk().CapacityBytes, Run: n.run,
	}
}

func (n *node) loadCatalog(context.Context) error {
	var err error
	if n.catalog, err = catalog.Load(n.engine); err != nil {
		return fmt.Errorf("storenode: %w", err)
	}
	n.engine.StartGC(n.catalog.MaxCommitTS())
	n.book, err = agent.OpenBook(n.engine)
	if err != nil {
		return err
	}
	n.clock = agent.NewClock(n.pd)
	n.pool = storeclient.New(storeclient.Options{TLS: n.tls, ClusterID: n.ident.GetClusterId})
	return n.book.Learn(n.welcome.GetStores())
}

func (n *node) startRaft(ctx context.Context) error {
	checker := apply.NewChecker(n.engine, n.o.Logger)
	budget := n.o.Budget()
	n.o.Logger.Info("memory", "parts", budget.String())
	o := raft.Options{
		Dir: n.o.directories().log, ClusterID: n.ident.GetClusterId(),
		StoreID: n.ident.GetStoreId(), ListenAddress: n.o.RaftListenAddress,
		AdvertiseAddress: n.o.RaftAddress, Resolve: n.book.Resolve, Tick: n.o.Tick,
		ExecShards: n.o.ExecShards, LogShards: n.o.LogShards, LogKind: n.o.LogKind,
		IntakeBytes: uint64(budget.intakeBytes()), SendQueueBytes: uint64(budget.SendQueue),
		Logger: n.o.Logger, Registerer: n.o.Registerer,
	}
	if t := n.o.TLS; t != nil {
		o.TLS = &raft.TLSFiles{CA: t.CA, Cert: t.Cert, Key: t.Key}
	}
	var err error
	n.host, err = raft.Open(o, raft.Deps{
		Engine: n.engine, Catalog: n.catalog, Checker: checker, ImageLimiter: n.images,
		ApplyMetrics: apply.NewMetrics(n.o.Registerer),
	})
	if err != nil {
		return fmt.Errorf("storenode: %w", err)
	}
	n.evaluator = evaluate.New(evaluate.Deps{
		Host: n.host, Catalog: n.catalog, Engine: n.engine, Clock: n.clock,
		StoreID: n.ident.GetStoreId(), Logger: n.o.Logger, Registerer: n.o.Registerer,
		DiskFull: func(rangeID uint64) (uint64, bool) { return n.agent.DiskFull(rangeID) },
	})
	n.newAgent()
	n.crew.start("checker", checker.Run)
	n.crew.start("raft", n.host.Run)
	n.hostRuns = true
	select {
	case <-n.host.Booted():
		return nil
	case err := <-n.crew.failed:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (n *node) newAgent() {
	n.agent = agent.New(agent.Options{
		HeartbeatInterval:      n.o.HeartbeatInterval,
		RangeHeartbeatInterval: n.o.RangeHeartbeatInterval,
		PingInterval:           n.o.PingInterval, SilenceAfter: n.o.SilenceAfter, Run: n.run,
		Logger: n.o.Logger.With("store", n.ident.GetStoreId()), Registerer: n.o.Registerer,
	}, agent.Deps{
		ClusterID: n.ident.GetClusterId(), Self: n.self(), PD: n.pd, Pool: n.pool,
		Clock: n.clock, Book: n.book, Engine: n.engine, Catalog: n.catalog, Host: n.host,
		Evaluator: n.evaluator, Images: n.images,
	})
	n.host.Births(n.agent.ChildBorn)
	n.host.WatchLeaders(func(uint64, raft.Leader) { n.agent.Kick() })
}

// startEvaluation starts the rooms that need running replicas, and bears the
// first range if PD said so.
func (n *node) startEvaluation(ctx context.Context) error {
	n.crew.start("evaluate", n.evaluator.Run)
	if n.welcome != nil {
		if err := n.agent.Welcome(ctx, n.welcome); err != nil {
			return err
		}
	} else {
		n.crew.start("registration", func(ctx context.Context) error {
			welcome, err := agent.Register(ctx, n.pd, n.registration())
			if err != nil {
				if ctx.Err() != nil {
					return nil
				}
				return err
			}
			if err := n.sameIds(welcome); err != nil {
				return err
			}
			n.o.Logger.Info("PD is back", "store", n.ident.GetStoreId())
			return n.agent.Welcome(ctx, welcome)
		})
	}
	n.crew.start("agent", n.agent.Run)
	return nil
}

func (n *node) openDoor(ctx context.Context) error {
	var err error
	n.gateway, err = gateway.Open(ctx, gateway.Options{
		PD: n.pd, TLS: n.tls, Logger: n.o.Logger,
	})
	if err != nil {
		return fmt.Errorf("storenode: %w", err)
	}
	n.s.door.Open(&service.Core{
		ClusterID: n.ident.GetClusterId(), StoreID: n.ident.GetStoreId(),
		Evaluator: n.evaluator, Gateway: n.gateway, Pong: n.agent.Pong,
		Ranges: service.Local{Catalog: n.catalog, Leaders: n.host, Leases: n.evaluator},
		Store: &service.Store{
			ClusterID: n.ident.GetClusterId(), Self: n.self(), Engine: n.engine,
			Catalog: n.catalog, Leaders: n.host, Leases: n.evaluator, Children: n.host,
			Hand: n.agent,
		},
	})
	return nil
}

// catchUpTimeout bounds how long a store that serves is not called ready: a
// cluster that starts as a whole must not wait for itself.
const catchUpTimeout = 10 * time.Second

// catchUp keeps the store from being called ready before its replicas follow
// their leaders: who restarts one store after another looks at readiness.
func (n *node) catchUp(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, catchUpTimeout)
	defer cancel()
	if err := n.agent.CatchUp(ctx); err != nil {
		n.o.Logger.Warn("not all replicas have caught up", "store", n.ident.GetStoreId())
	}
	return nil
}

// close undoes boot as far as it came, in reverse order.
func (n *node) close() error {
	n.s.door.Close()
	var faults []error
	note := func(err error) {
		if err != nil {
			faults = append(faults, err)
		}
	}
	if n.gateway != nil {
		note(n.gateway.Close())
	}
	n.crew.stopDownTo("engine")
	if n.host != nil && !n.hostRuns {
		note(n.host.Close())
	}
	if n.pool != nil {
		note(n.pool.Close())
	}
	if n.pd != nil {
		note(n.pd.Close())
	}
	n.crew.stopDownTo("")
	if n.hasEngine {
		note(n.engine.Close())
	}
	if err := errors.Join(faults...); err != nil {
		return fmt.Errorf("storenode: close: %w", err)
	}
	return nil
}
