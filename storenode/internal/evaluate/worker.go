package evaluate

import (
	"log/slog"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"github.com/ridgekv/ridge/proto/errs"
	metapb "github.com/ridgekv/ridge/proto/ridge/meta/v1"
	"github.com/ridgekv/ridge/proto/ts"
	"github.com/ridgekv/ridge/storenode/internal/apply"
	"github.com/ridgekv/ridge/storenode/internal/catalog"
	"github.com/ridgekv/ridge/storenode/internal/raft"
)

// worker evaluates for one replica of one range. Its goroutine evaluates
// writes one after the other, so it is the latch; everything it alone touches
// stands below mu.
type worker struct {
	ev        *Evaluator
	log       *slog.Logger
	rangeID   uint64
	replicaID uint64
	// nonce names this worker in its lease. It is drawn anew for every worker,
	// so that a lease found in the state is this worker's own or foreign.
	nonce uint64
	rep   *catalog.Replica
	// bell wakes the goroutine; stop ends it.
	bell     chan struct{}
	stop     chan struct{}
	stopOnce sync.Once

	reads             rounds
	readOps, writeOps atomic.Uint64
	samples           samples
	pace              pace
	// pending counts the reads that are not answered.
	pending atomic.Int64

	mu struct {
		sync.Mutex
		// closed is why nothing more is taken; nil while it works.
		closed      error
		queue       []*call
		queuedBytes int
		jobs        []*job
		outcomes    []outcome
		// acquired is what became of the outstanding AcquireLease.
		acquired *raft.Outcome

		// tenure is the one this worker evaluates under; 0 for none.
		tenure uint64
		// assigned is the last number given away, that of an open batch
		// included; applied the last one known to be applied.
		assigned, applied uint64
		// lastWrite is the largest commit_ts given away, maxRead the largest
		// timestamp a read was promised never to change at.
		lastWrite, maxRead ts.Timestamp
		// bound is the applied read_bound.
		bound ts.Timestamp
		// frozen: a split that carries maxRead is under way, so it must stay.
		frozen bool
		// exact: read_bound is no more raised ahead of the need.
		exact   bool
		waiters []waiter
		blocked []waiter
	}

	// flights are the undecided entries, oldest first; those of writes, and the
	// open batch, are the overlay.
	flights []*flight
	open    *batch
	// one holds the effect of the Put or Delete that is being evaluated.
	one [1]apply.Effect

	// lastTenure is the newest tenure ever held.
	lastTenure uint64
	// ready: writes are accepted; before that, until the oracle has passed
	// readyBound or readyAt has come.
	ready      bool
	readyBound ts.Timestamp
	readyAt    time.Time
	// broken: this tenure is given up, the lease must be acquired anew.
	broken  bool
	acquire struct {
		outstanding bool
		backoff     time.Duration
		next        time.Time
	}
	// nextExpire spaces the looks for requests whose time has run out.
	nextExpire time.Time
	// nextPropose spaces repeated proposals.
	nextPropose time.Time
	// restUntil stops evaluation before a transfer.
	restUntil time.Time
}

func newWorker(ev *Evaluator, rep *catalog.Replica) *worker {
	w := &worker{
		ev: ev, rep: rep, rangeID: rep.RangeID(), replicaID: rep.State().ReplicaID(),
		nonce: rand.Uint64() | 1,
		bell:  make(chan struct{}, 1), stop: make(chan struct{}),
	}
	w.log = ev.log.With("range", w.rangeID, "replica", w.replicaID)
	w.reads.w = w
	w.acquire.backoff = ev.timing.acquireBackoffMin
	return w
}

// ring wakes the goroutine of w.
func (w *worker) ring() {
	select {
	case w.bell <- struct{}{}:
	default:
	}
}

// retire ends w: the replica is gone.
func (w *worker) retire() { w.stopOnce.Do(func() { close(w.stop) }) }

// current reports whether rep still is what w was made for.
func (w *worker) current(rep *catalog.Replica) bool {
	return w.rep == rep && rep.State().ReplicaID() == w.replicaID
}

func (w *worker) run(stop <-chan struct{}) {
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for {
		if w.step(time.Now()) {
			timer.Reset(w.ev.timing.tick)
		} else {
			timer.Stop()
		}
		select {
		case <-w.bell:
		case <-timer.C:
		case <-w.stop:
			w.close(errs.RangeNotFound{RangeID: w.rangeID})
			return
		case <-stop:
			w.close(errStopping)
			return
		}
	}
}

// step does all there is to do now. It reports whether something waits that
// only time may settle.
func (w *worker) step(now time.Time) bool {
	l := w.ev.deps.Host.Leader(w.rangeID)
	w.collect(now)
	w.observe(now)
	w.expire(now)
	w.lead(now, l)
	w.unblock(l)
	w.raise(l)
	w.repropose(now, l)
	w.startJobs(now, l)
	w.evaluate(now, l)
	w.turnAway(l)
	w.reads.retry(now)
	return w.waits(l)
}

// collect takes in what became of proposals.
func (w *worker) collect(now time.Time) {
	w.mu.Lock()
	outcomes, acquired := w.mu.outcomes, w.mu.acquired
	w.mu.outcomes, w.mu.acquired = nil, nil
	w.mu.Unlock()
	if acquired != nil {
		w.acquireReturned(now, *acquired)
	}
	for _, o := range outcomes {
		w.decide(o)
	}
}

// observe looks at the replica: what was applied, and whose lease it is.
func (w *worker) observe(now time.Time) {
	st, applied := w.rep.Both()
	tenure := w.tenure()
	if tenure != 0 {
		switch {
		case st.Tenure() != tenure:
			w.lose(st)
		case !st.Serving():
			w.settleThrough(applied.Number)
			w.abandon("the replica stopped")
		default:
			w.settleThrough(applied.Number)
			w.noteBound(st.ReadBound())
			return
		}
	}
	l := st.Lease()
	if st.Serving() && l.GetNonce() == w.nonce && l.GetHolderReplicaId() == w.replicaID &&
		l.GetTenure() > w.lastTenure {
		w.adopt(now, st, applied)
	}
}

func (w *worker) tenure() uint64 {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.mu.tenure
}

// mayEvaluate reports whether writes may be evaluated now.
func (w *worker) mayEvaluate(now time.Time, l raft.Leader) bool {
	if w.tenure() == 0 || w.broken || !l.Known || !l.Self || now.Before(w.restUntil) {
		return false
	}
	if !w.restUntil.IsZero() { // the transfer did not come
		w.restUntil = time.Time{}
		w.mu.Lock()
		w.mu.exact = false
		w.mu.Unlock()
	}
	if !w.ready {
		w.ev.deps.Clock.Want()
		seen := w.ev.deps.Clock.Seen()
		w.ready = seen != 0 && seen >= w.readyBound || !now.Before(w.readyAt)
	}
	return w.ready
}

// turnAway answers what waits here although another replica leads.
func (w *worker) turnAway(l raft.Leader) {
	if !l.Known || l.Self {
		return
	}
	w.mu.Lock()
	calls, jobs := w.mu.queue, w.mu.jobs
	w.mu.queue, w.mu.queuedBytes, w.mu.jobs = nil, 0, nil
	w.mu.Unlock()
	for _, c := range calls {
		w.failQueued(c, w.notLeader())
	}
	for _, j := range jobs {
		j.finish(w.notLeader())
	}
}

// expire answers the requests whose time has run out.
func (w *worker) expire(now time.Time) {
	if now.Before(w.nextExpire) {
		return
	}
	w.nextExpire = now.Add(w.ev.timing.tick)
	for _, f := range w.flights {
		for _, it := range f.items {
			if it.c.expired(now) {
				it.c.fail(errs.UnknownOutcome{RangeID: w.rangeID})
			}
		}
	}
	var late []*call
	w.mu.Lock()
	kept := w.mu.queue[:0]
	for _, c := range w.mu.queue {
		if c.answered.Load() || c.expired(now) {
			w.mu.queuedBytes -= c.sizeBytes
			late = append(late, c)
			continue
		}
		kept = append(kept, c)
	}
	clear(w.mu.queue[len(kept):])
	w.mu.queue = kept
	gone := takeExpired(&w.mu.waiters, now)
	gone = append(gone, takeExpired(&w.mu.blocked, now)...)
	w.mu.Unlock()
	for _, c := range late {
		w.failQueued(c, errDeadline)
	}
	for _, x := range gone {
		x.fn(0, errDeadline)
	}
}

// failQueued answers a write that waits in the queue: nothing was done, unless
// it is a BulkWrite of which a part is in flight.
func (w *worker) failQueued(c *call, err error) {
	if c.bulk.flying > 0 {
		err = errs.UnknownOutcome{RangeID: w.rangeID}
	}
	c.fail(err)
}

// waits reports whether something is under way that only a tick may end.
func (w *worker) waits(l raft.Leader) bool {
	w.mu.Lock()
	busy := len(w.mu.queue) > 0 || len(w.mu.jobs) > 0 || len(w.mu.waiters) > 0 ||
		len(w.mu.blocked) > 0 ||
		w.mu.tenure == 0 && l.Known && l.Self && w.rep.State().Serving()
	w.mu.Unlock()
	return busy || len(w.flights) > 0 || w.broken || w.acquire.outstanding ||
		w.reads.waitsForRetry()
}

// close answers everything w holds. It takes nothing more.
func (w *worker) close(reason error) {
	w.mu.Lock()
	w.mu.closed = reason
	calls, jobs := w.mu.queue, w.mu.jobs
	waiting := append(w.mu.waiters, w.mu.blocked...)
	w.mu.queue, w.mu.jobs, w.mu.waiters, w.mu.blocked = nil, nil, nil, nil
	w.mu.tenure = 0
	w.mu.Unlock()
	for _, f := range w.flights {
		w.finish(f, fateUnknown)
	}
	w.flights = nil
	for _, c := range calls {
		w.failQueued(c, reason)
	}
	for _, j := range jobs {
		j.finish(reason)
	}
	for _, x := range waiting {
		x.fn(0, reason)
	}
	w.reads.close(reason)
}

// notLeader is the refusal of a replica that does not evaluate, with the best
// hint there is.
func (w *worker) notLeader() error { return w.ev.notLeader(w.rangeID, w.rep) }

func (ev *Evaluator) notLeader(rangeID uint64, rep *catalog.Replica) error {
	e := errs.NotLeader{RangeID: rangeID}
	if l := ev.deps.Host.Leader(rangeID); l.Known {
		e.Leader = &metapb.Leader{ReplicaId: l.ReplicaID, StoreId: l.StoreID, Term: l.Term}
		return e
	}
	if lease := rep.State().Lease(); lease.GetHolderStoreId() != ev.deps.StoreID {
		e.Leader = &metapb.Leader{
			ReplicaId: lease.GetHolderReplicaId(), StoreId: lease.GetHolderStoreId(),
		}
	}
	return e
}
