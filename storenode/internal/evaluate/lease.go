package evaluate

import (
	"errors"
	"time"

	logpb "github.com/ridgekv/ridge/proto/ridge/log/v1"
	"github.com/ridgekv/ridge/storenode/internal/apply"
	"github.com/ridgekv/ridge/storenode/internal/catalog"
	"github.com/ridgekv/ridge/storenode/internal/raft"
)

// lead proposes AcquireLease when this replica leads and does not hold the
// lease, or has given up its tenure. That it leads is only the hint to try:
// the entry is refused if the tenure has moved since it was looked at.
func (w *worker) lead(now time.Time, l raft.Leader) {
	if !l.Known || !l.Self || w.acquire.outstanding || now.Before(w.acquire.next) {
		return
	}
	st := w.rep.State()
	if !st.Serving() || w.tenure() != 0 && !w.broken {
		return
	}
	w.acquire.outstanding = true
	w.ev.metrics.acquires.Inc()
	cmd := apply.EncodeMessage(
		apply.Header{Kind: apply.KindAcquireLease, SpanEpoch: st.SpanEpoch(), MinVersion: minVersion},
		&logpb.AcquireLease{
			HolderReplicaId: w.replicaID, HolderStoreId: w.ev.deps.StoreID,
			Nonce: w.nonce, ExpectedTenure: st.Tenure(),
		})
	w.ev.deps.Host.Propose(w.rangeID, cmd, w.ev.timing.acquire, func(o raft.Outcome) {
		w.mu.Lock()
		w.mu.acquired = &o
		w.mu.Unlock()
		w.ring()
	})
}

// acquireReturned spaces the next try. Whether the lease is ours is read from
// the state, never from the outcome.
func (w *worker) acquireReturned(now time.Time, o raft.Outcome) {
	w.acquire.outstanding = false
	if o.Err == nil && (o.Code == apply.ResultApplied || o.Code == apply.ResultRefused) {
		w.acquire.backoff = w.ev.timing.acquireBackoffMin
		if o.Code == apply.ResultApplied {
			return
		}
	}
	if errors.Is(o.Err, raft.ErrNotProposed) {
		// It cost nothing, and a transfer that failed may be over any moment.
		w.acquire.backoff = min(w.acquire.backoff, w.ev.timing.acquireRefused)
	}
	w.acquire.next = now.Add(w.acquire.backoff)
	w.acquire.backoff = min(2*w.acquire.backoff, w.ev.timing.acquireBackoffMax)
}

// adopt begins to evaluate under the tenure of st, which an AcquireLease of
// this worker began. Nothing of an earlier tenure is left.
func (w *worker) adopt(now time.Time, st *catalog.State, applied catalog.Applied) {
	own := w.lastTenure != 0 && st.Previous().GetTenure() == w.lastTenure
	w.lastTenure = st.Tenure()
	if applied.Number != 0 {
		// Only this worker numbers entries of its tenure, and it has not begun.
		w.log.Error("lease with numbers nobody gave away", "tenure", st.Tenure(),
			"number", applied.Number)
		w.broken = true
		return
	}
	w.open, w.broken, w.restUntil = nil, false, time.Time{}
	w.ready, w.readyBound = own, st.ReadBound()
	w.readyAt = now.Add(w.ev.timing.boundStep + w.ev.timing.boundStep/10)
	w.mu.Lock()
	w.mu.tenure, w.mu.assigned, w.mu.applied = st.Tenure(), 0, 0
	w.mu.lastWrite = max(w.mu.lastWrite, applied.MaxCommitTS)
	if !own {
		// What the former holder has answered lies at or below the bound.
		w.mu.maxRead = max(w.mu.maxRead, st.ReadBound())
	}
	w.mu.bound, w.mu.frozen, w.mu.exact = st.ReadBound(), false, false
	w.mu.Unlock()
	w.ev.metrics.tenures.Inc()
	w.log.Info("lease acquired", "tenure", st.Tenure())
}

// lose settles everything of the tenure held, after st showed another one.
func (w *worker) lose(st *catalog.State) {
	tenure := w.tenure()
	fate := fateUnknown
	if p := st.Previous(); p.GetTenure() == tenure {
		w.settleThrough(p.GetLastNumber())
		fate = fateNotApplied
		if st.Lease().GetNonce() == w.nonce {
			fate = fateAgain
		}
	}
	w.log.Info("lease lost", "tenure", tenure, "now", st.Tenure(),
		"holder", st.Lease().GetHolderStoreId(), "undecided", len(w.flights))
	w.leave(fate)
}

// abandon gives a tenure up without knowing what becomes of its entries.
func (w *worker) abandon(why string) {
	w.log.Warn("lease abandoned", "tenure", w.tenure(), "why", why)
	w.leave(fateUnknown)
}

// leave ends the tenure: what is in flight has the given fate.
func (w *worker) leave(f fate) {
	flights := w.flights
	w.flights, w.open, w.ready, w.broken = nil, nil, false, false
	w.pace.undecided(nil)
	w.mu.Lock()
	waiters := w.mu.waiters
	w.mu.waiters = nil
	w.mu.tenure, w.mu.frozen, w.mu.exact = 0, false, false
	w.mu.Unlock()
	// In reverse, so that what is put back into the queue keeps its order.
	for i := len(flights) - 1; i >= 0; i-- {
		w.finish(flights[i], f)
	}
	for _, x := range waiters {
		x.fn(0, w.notLeader())
	}
}
