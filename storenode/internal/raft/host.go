// Package raft is all of Dragonboat: it runs the replicas that the catalog
// lists, proposes and confirms reads, changes members, and takes part in
// elections on demand.
//
// Law 4: no replica applies a child's log without the child's base. Every
// range is born with a truncated log on the stores that hold its base; any
// other replica begins empty and can only be sent an image.
package raft

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/lni/dragonboat/v4"
	"github.com/lni/dragonboat/v4/raftio"
	"github.com/lni/dragonboat/v4/raftpb"
	"github.com/lni/dragonboat/v4/statemachine"
	"golang.org/x/time/rate"

	metapb "github.com/ridgekv/ridge/proto/ridge/meta/v1"
	"github.com/ridgekv/ridge/storenode/internal/apply"
	"github.com/ridgekv/ridge/storenode/internal/catalog"
	"github.com/ridgekv/ridge/storenode/internal/engine"
)

// Deps is what a Host works with.
type Deps struct {
	// Engine must be closed after Run has returned, not before.
	Engine  *engine.Engine
	Catalog *catalog.Catalog
	// Checker computes the checksums that entries ask for. Default: none.
	Checker *apply.Checker
	// ImageLimiter bounds the bytes per second of images sent. Default: none.
	ImageLimiter *rate.Limiter
	// ApplyMetrics counts what is applied. Default: not counted.
	ApplyMetrics *apply.Metrics
}

// Host runs the replicas of one store.
type Host struct {
	opts    Options
	engine  *engine.Engine
	catalog *catalog.Catalog
	log     *slog.Logger
	metrics *metrics

	nh    *dragonboat.NodeHost
	logDB raftio.ILogDB
	door  *door
	// intake bounds what has come through the door and is not applied.
	intake *intake
	// send hands a message of a replica to the transport, and never blocks.
	send func(raftpb.Message)
	// newMachine makes the state machine of a replica.
	newMachine func(rangeID, replicaID uint64) statemachine.IOnDiskStateMachine

	// replicas maps a range id to the *replica running here.
	replicas sync.Map
	events   *eventQueue
	births   *births
	deaths   *deaths
	// vacancies are the ranges that nobody leads. Only the campaign loop uses them.
	vacancies map[uint64]*vacancy
	// ticks counts what NodeHost's clock has counted, give or take one.
	ticks atomic.Uint64
	// opened is when NodeHost's clock began.
	opened time.Time

	booted  chan struct{}
	closing atomic.Bool
	// calls and futures are what is in flight; nothing new begins once closing
	// is set under callsMu.
	callsMu sync.RWMutex
	calls   sync.WaitGroup
	futures *futures
	// confirms are the rounds that confirm this store as leader.
	confirms *confirmer
	// introduced are the stores that messages can be delivered to.
	introduced sync.Map

	close struct {
		sync.Once
		err error
	}
	// passes wakes those who wait for the reconciler.
	passes struct {
		sync.Mutex
		done chan struct{}
	}
	hooks struct {
		sync.Mutex
		leader []func(rangeID uint64, l Leader)
		births []func(rangeID uint64, members []*metapb.Replica)
	}
}

// The ways in which a call can fail. All others are unknown outcomes.
var (
	// ErrNotProposed: definitely not in the log.
	ErrNotProposed = errors.New("raft: not proposed")
	// ErrUnknown: may be applied now, later, or never.
	ErrUnknown = errors.New("raft: outcome unknown")
	// ErrNotFound: this store runs no replica of the range.
	ErrNotFound = errors.New("raft: no such replica runs here")
	// ErrNotLeader: the replica here does not lead the range.
	ErrNotLeader = errors.New("raft: this replica does not lead")
	// ErrSilent: the store of the replica is not heard.
	ErrSilent = errors.New("raft: the store of the replica is silent")
	// ErrConfigMoved: the members have changed since the caller looked.
	ErrConfigMoved = errors.New("raft: the members have changed")
	// ErrUnborn: the members of a range must not change until its children
	// are born.
	ErrUnborn = errors.New("raft: the range has unborn children")
	// ErrClosed: the host is closing.
	ErrClosed = errors.New("raft: closed")
)

// Open starts NodeHost without any replica. The caller must call Run or Close.
func Open(o Options, d Deps) (*Host, error) {
	if err := o.Validate(); err != nil {
		return nil, err
	}
	h := newHost(o.withDefaults(), d)
	if err := h.openNodeHost(); err != nil {
		return nil, err
	}
	return h, nil
}

func newHost(o Options, d Deps) *Host {
	h := &Host{
		opts: o, engine: d.Engine, catalog: d.Catalog,
		log:    o.Logger.With("store", o.StoreID),
		booted: make(chan struct{}),
		door:   &door{resolve: o.Resolve},
		events: newEventQueue(),
		births: newBirths(),
		deaths: newDeaths(),

		vacancies: make(map[uint64]*vacancy),
	}
	h.newMachine = func(rangeID, replicaID uint64) statemachine.IOnDiskStateMachine {
		return apply.New(apply.Deps{
			Engine: d.Engine, Catalog: d.Catalog, StoreID: o.StoreID, Logger: h.log,
			ConfigIndex: h.ConfigIndex, ImageLimiter: d.ImageLimiter, Checker: d.Checker,
			Metrics: d.ApplyMetrics,
		}, rangeID, replicaID)
	}
	h.metrics = newMetrics(o.Registerer, h)
	h.futures = newFutures(h.ended)
	h.send = func(m raftpb.Message) { sendMessage(h.nh, m) }
	h.intake = newIntake(o.IntakeBytes, h.metrics.intakeDropped)
	h.door.admit = h.intake.admit
	h.confirms = newConfirmer(o.StoreID, h.metrics)
	h.confirms.deliver, h.confirms.infos = h.deliver, h.shardInfos
	h.confirms.plain = func(x *read) { h.plainRead(x.r.rangeID, x.timeout, x.done) }
	h.door.receive, h.door.leaving = h.confirms.receive, h.noteTold
	return h
}

// Run starts the replicas that the catalog lists and keeps them as it says,
// until ctx ends. Then it stops the log snapshots, waits for those under way,
// and closes NodeHost. It returns early only for a failure of the engine.
func (h *Host) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var wg sync.WaitGroup
	for _, loop := range []func(context.Context) error{
		h.listen, h.reconcile, h.cutLogs, h.campaign, h.refreshMembers, h.confirms.run,
		h.confirms.runAnchors,
	} {
		wg.Go(func() {
			if err := loop(ctx); err != nil && ctx.Err() == nil {
				cancel(err)
			}
		})
	}
	<-ctx.Done()
	wg.Wait()
	err := context.Cause(ctx)
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		err = nil
	}
	return errors.Join(err, h.Close())
}

// Close closes NodeHost. Run does it; Close alone is for a Host that was never
// run. It may be called twice.
func (h *Host) Close() error {
	h.close.Do(func() {
		h.callsMu.Lock()
		h.closing.Store(true)
		h.callsMu.Unlock()
		h.stopCuttingLogs()
		h.door.fence()
		h.close.err = guard("close", h.nh.Close)
		h.futures.close()
		h.calls.Wait()
	})
	return h.close.err
}

// Booted is closed when every replica of the catalog was started or refused
// once.
func (h *Host) Booted() <-chan struct{} { return h.booted }

// replica finds the running replica of a range.
func (h *Host) replica(rangeID uint64) (*replica, bool) {
	r, ok := h.replicas.Load(rangeID)
	if !ok {
		return nil, false
	}
	return r.(*replica), true
}

// call makes a short call of NodeHost, which may not be touched while and after
// it closes.
func (h *Host) call(f func() error) error {
	h.callsMu.RLock()
	defer h.callsMu.RUnlock()
	if h.closing.Load() {
		return ErrClosed
	}
	return f()
}

// future runs wait in a goroutine that Close waits for. It reports false when
// the host is closing.
func (h *Host) future(wait func()) bool {
	h.callsMu.RLock()
	defer h.callsMu.RUnlock()
	if h.closing.Load() {
		return false
	}
	h.calls.Go(wait)
	return true
}

// guard turns Dragonboat's habit of panicking into an error, where a panic
// says that the call failed and not that the process is in danger.
func guard(op string, f func()) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("raft: %s: %v", op, p)
		}
	}()
	f()
	return nil
}
