package evaluate

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/ridgekv/ridge/proto/errs"
	kvpb "github.com/ridgekv/ridge/proto/ridge/kv/v1"
	metapb "github.com/ridgekv/ridge/proto/ridge/meta/v1"
	"github.com/ridgekv/ridge/proto/ts"
	"github.com/ridgekv/ridge/storenode/internal/catalog"
	"github.com/ridgekv/ridge/storenode/internal/engine"
	"github.com/ridgekv/ridge/storenode/internal/raft"
)

// Clock is this store's knowledge of the timestamp oracle.
type Clock interface {
	// Seen is the newest timestamp the oracle has given to this store; 0
	// before the first. It never goes back.
	Seen() ts.Timestamp
	// Limit is Seen plus the monotonic time since it was taken plus 1 s: the
	// largest token that is accepted without asking.
	Limit() ts.Timestamp
	// Fresh asks the oracle.
	Fresh(ctx context.Context) (ts.Timestamp, error)
	// Want asks that Seen be kept young (about 20 ms) for a while.
	Want()
}

// Log moves entries and confirms reads. *raft.Host is one; the scripted log of
// the tests is the other.
type Log interface {
	// Propose appends cmd to the log of a range and tells what apply made of
	// it. It never blocks, and keeps the order of calls of one goroutine.
	Propose(rangeID uint64, cmd []byte, timeout time.Duration, done func(raft.Outcome))
	// ReadIndex calls done(nil) when all that was committed before the call is
	// applied here.
	ReadIndex(rangeID uint64, timeout time.Duration, done func(error))
}

// Leaders tells who leads a range and who is a member, as hints.
type Leaders interface {
	Leader(rangeID uint64) raft.Leader
	WatchLeaders(fn func(rangeID uint64, l raft.Leader))
	Membership(rangeID uint64) (replicas []*metapb.Replica, config uint64, ok bool)
}

// Host is what an Evaluator needs of the raft room.
type Host interface {
	Log
	Leaders
}

// Deps is what an Evaluator works with.
type Deps struct {
	Host    Host
	Catalog *catalog.Catalog
	Engine  *engine.Engine
	Clock   Clock
	StoreID uint64
	// Logger. nil: nothing is logged.
	Logger *slog.Logger
	// Registerer receives the metrics of this room; nil: none.
	Registerer prometheus.Registerer
	// DiskFull names a voter's store of the range that is over its disk
	// watermark. nil: never full.
	DiskFull func(rangeID uint64) (storeID uint64, full bool)
	Limits   Limits
}

// Stats counts what was answered for a range since the process started.
type Stats struct {
	ReadOps, WriteOps uint64
	// SpanEpoch is of the span that the range has now.
	SpanEpoch uint64
}

// Evaluator answers requests for the ranges of this store.
type Evaluator struct {
	deps    Deps
	limits  Limits
	timing  timing
	log     *slog.Logger
	metrics *metrics
	pool    *pool
	oracle  *oracle
	// stop ends the workers.
	stop chan struct{}
	// stalled is why the engine takes no growing writes now; nil: it does.
	stalled atomic.Pointer[string]
	// draining: no new request is taken.
	draining atomic.Bool

	// workers maps a range id to its *worker.
	workers sync.Map
	mu      struct {
		sync.Mutex
		// running: workers may be started. It is false before and after Run.
		running bool
	}
	wg sync.WaitGroup
}

// New returns an Evaluator. It starts nothing.
func New(d Deps) *Evaluator { return newEvaluator(d, defaultTiming()) }

func newEvaluator(d Deps, t timing) *Evaluator {
	ev := &Evaluator{
		deps: d, limits: d.Limits.withDefaults(), timing: t,
		log: d.Logger, metrics: newMetrics(d.Registerer), stop: make(chan struct{}),
	}
	if ev.log == nil {
		ev.log = slog.New(slog.DiscardHandler)
	}
	ev.log = ev.log.With("room", "evaluate")
	ev.pool = newPool(ev.limits.Readers)
	ev.oracle = newOracle(d.Clock, t.oracle)
	return ev
}

// Run works until ctx ends. When it returns, every request was answered. It
// may be called once.
func (ev *Evaluator) Run(ctx context.Context) error {
	var background sync.WaitGroup
	for range ev.limits.Readers {
		background.Go(ev.pool.work)
	}
	background.Go(func() { ev.oracle.run(ctx) })
	background.Go(func() { ev.sweepAll(ctx) })
	background.Go(func() { ev.watchEngine(ctx) })
	ev.mu.Lock()
	ev.mu.running = true
	ev.mu.Unlock()
	ev.deps.Host.WatchLeaders(ev.leaderChanged)
	ev.lookAround(ctx)

	ev.mu.Lock()
	ev.mu.running = false
	ev.mu.Unlock()
	close(ev.stop)
	ev.wg.Wait()
	ev.pool.close()
	background.Wait()
	return nil
}

// lookAround starts and ends workers as replicas come and go.
func (ev *Evaluator) lookAround(ctx context.Context) {
	ticker := time.NewTicker(ev.timing.look)
	defer ticker.Stop()
	for {
		for _, rep := range ev.deps.Catalog.Replicas() {
			if ev.deps.Host.Leader(rep.RangeID()).Self {
				if w := ev.worker(rep); w != nil {
					w.ring()
				}
			}
		}
		ev.workers.Range(func(id, v any) bool {
			w := v.(*worker)
			if rep, ok := ev.deps.Catalog.Replica(w.rangeID); !ok || !w.current(rep) {
				ev.workers.CompareAndDelete(id, v)
				w.retire()
			}
			return true
		})
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
	}
}

// watchEngine keeps growing writes out while the engine is behind: Badger would
// stop all writers at once, for seconds.
func (ev *Evaluator) watchEngine(ctx context.Context) {
	ticker := time.NewTicker(ev.timing.stall)
	defer ticker.Stop()
	for {
		if reason, stalled := ev.deps.Engine.Stalled(); stalled {
			ev.stalled.Store(&reason)
		} else {
			ev.stalled.Store(nil)
		}
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
	}
}

// leaderChanged is called by the host. It must not block.
func (ev *Evaluator) leaderChanged(rangeID uint64, l raft.Leader) {
	if v, ok := ev.workers.Load(rangeID); ok {
		v.(*worker).ring()
		return
	}
	if rep, ok := ev.deps.Catalog.Replica(rangeID); ok && l.Self {
		if w := ev.worker(rep); w != nil {
			w.ring()
		}
	}
}

// worker finds or starts the worker of a replica; nil when not running.
func (ev *Evaluator) worker(rep *catalog.Replica) *worker {
	if v, ok := ev.workers.Load(rep.RangeID()); ok && v.(*worker).current(rep) {
		return v.(*worker)
	}
	ev.mu.Lock()
	defer ev.mu.Unlock()
	if !ev.mu.running {
		return nil
	}
	if v, ok := ev.workers.Load(rep.RangeID()); ok {
		if v.(*worker).current(rep) {
			return v.(*worker)
		}
		v.(*worker).retire()
	}
	w := newWorker(ev, rep)
	ev.workers.Store(rep.RangeID(), w)
	ev.wg.Go(func() { w.run(ev.stop) })
	return w
}

// Submit evaluates one request and calls respond exactly once, perhaps before
// Submit returns. It never blocks, and respond must not. header.range_id must
// be set. A Scan is answered with one page.
func (ev *Evaluator) Submit(req *kvpb.Request, respond func(*kvpb.Response)) {
	ev.submit(newCall(req, respondFunc(respond)), nil)
}

// submit is Submit of a call; what it begins waits for the others of t.
func (ev *Evaluator) submit(c *call, t *together) {
	ev.metrics.requests[c.kind].Inc()
	w, err := ev.admitAtDoor(c)
	if err != nil {
		c.fail(err)
		return
	}
	c.deadline = time.Now().Add(ev.patience(c.header))
	switch {
	case !c.kind.Write():
		ev.submitRead(w, c, t)
	case c.token <= max(ev.deps.Clock.Limit(), ev.deps.Clock.Seen()):
		if c.judgesTTL() && w.rep.State().HasTTL() {
			ev.oracle.freshen(func() { w.enqueue(c, nil) })
			return
		}
		w.enqueue(c, t)
	default:
		ev.oracle.ask(func(t ts.Timestamp, err error) {
			switch {
			case err != nil:
				c.fail(err)
			case c.token > t:
				c.fail(errs.InvalidArgument{Field: "token", Reason: "lies in the future"})
			default:
				w.enqueue(c, nil)
			}
		})
	}
}

// admitAtDoor is the guard ladder of this room: range, request, epoch, span,
// leader.
func (ev *Evaluator) admitAtDoor(c *call) (*worker, error) {
	if c.kind == KindUnknown {
		return nil, errs.InvalidArgument{Field: "body", Reason: "unknown request"}
	}
	rep, ok := ev.deps.Catalog.Replica(c.header.GetRangeId())
	if !ok {
		return nil, errs.RangeNotFound{RangeID: c.header.GetRangeId()}
	}
	if err := c.validate(); err != nil {
		return nil, err
	}
	if err := ev.admit(c, rep.State()); err != nil {
		return nil, err
	}
	l := ev.deps.Host.Leader(rep.RangeID())
	if (l.Known && !l.Self || ev.draining.Load()) && !c.stale() {
		return nil, ev.notLeader(rep.RangeID(), rep)
	}
	w := ev.worker(rep)
	if w == nil {
		return nil, errStopping
	}
	return w, nil
}

// admit checks c against a state: at the door, and again when it is evaluated
// or answered.
func (ev *Evaluator) admit(c *call, st *catalog.State) error {
	if !st.Serving() {
		return errs.NotLeader{RangeID: st.RangeID()}
	}
	if err := CheckHeader(c.kind, c.header, st); err != nil {
		if e, ok := errors.AsType[errs.EpochMismatch](err); ok {
			e.Current = ev.current(c, st)
			return e
		}
		return err
	}
	return c.checkSpan(st)
}

// patience is how long the caller of a request waits.
func (ev *Evaluator) patience(h *kvpb.Header) time.Duration {
	if h.GetTimeoutMs() == 0 {
		return ev.timing.request
	}
	return min(time.Duration(h.GetTimeoutMs())*time.Millisecond, ev.timing.requestMax)
}

func (ev *Evaluator) submitRead(w *worker, c *call, t *together) {
	if w.pending.Add(1) > int64(ev.limits.PendingReads) {
		w.pending.Add(-1)
		ev.metrics.refusals.WithLabelValues("reads").Inc()
		c.fail(errs.Busy{Reason: "range reads", RetryAfter: 10 * time.Millisecond})
		return
	}
	c.reads = w
	w.startRead(c, t)
}

// enqueue puts a write into the queue, which is bounded.
func (w *worker) enqueue(c *call, t *together) {
	l := w.ev.limits
	now := time.Now()
	late := w.pace.judge(c.deadline.Sub(now), now)
	w.mu.Lock()
	err, bound := w.mu.closed, "closed"
	if err == nil && late != nil {
		err, bound = late, "pace"
	}
	if err == nil && (len(w.mu.queue) >= l.QueuedWrites ||
		len(w.mu.queue) > 0 && w.mu.queuedBytes+c.sizeBytes > l.QueuedWriteBytes) {
		err, bound = errs.Busy{Reason: "range queue", RetryAfter: 20 * time.Millisecond}, "queue"
	}
	if reason := w.ev.stalled.Load(); err == nil && reason != nil && c.grows() {
		err = errs.Busy{Reason: "engine: " + *reason, RetryAfter: w.ev.timing.stall}
		bound = "engine"
	}
	if err == nil {
		w.mu.queue = append(w.mu.queue, c)
		w.mu.queuedBytes += c.sizeBytes
		c.queued = true
	}
	w.mu.Unlock()
	if err != nil {
		w.ev.metrics.refusals.WithLabelValues(bound).Inc()
		c.fail(err)
		return
	}
	t.ring(w)
}

// Stats returns the counters of a range.
func (ev *Evaluator) Stats(rangeID uint64) Stats {
	v, ok := ev.workers.Load(rangeID)
	if !ok {
		return Stats{}
	}
	w := v.(*worker)
	return Stats{
		ReadOps: w.readOps.Load(), WriteOps: w.writeOps.Load(), SpanEpoch: w.rep.State().SpanEpoch(),
	}
}

// Leaseholder reports whether this store evaluates for the range.
func (ev *Evaluator) Leaseholder(rangeID uint64) bool {
	v, ok := ev.workers.Load(rangeID)
	if !ok {
		return false
	}
	w := v.(*worker)
	tenure := w.tenure()
	return tenure != 0 && w.rep.State().Tenure() == tenure
}
