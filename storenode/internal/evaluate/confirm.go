package evaluate

import (
	"sync/atomic"
	"time"

	kvpb "github.com/ridgekv/ridge/proto/ridge/kv/v1"
	logpb "github.com/ridgekv/ridge/proto/ridge/log/v1"
	"github.com/ridgekv/ridge/proto/ts"
	"github.com/ridgekv/ridge/storenode/internal/apply"
	"github.com/ridgekv/ridge/storenode/internal/raft"
)

// waiter waits until all numbers up to number are applied and read_bound
// covers at. fn is called once, without locks held.
type waiter struct {
	c      *call
	number uint64
	at     ts.Timestamp
	fn     func(at ts.Timestamp, err error)
}

// takeReady removes and returns the waiters that wait no longer.
func takeReady(ws *[]waiter, applied uint64, bound ts.Timestamp) []waiter {
	return takeIf(ws, func(x waiter) bool { return x.number <= applied && x.at <= bound })
}

// takeExpired removes and returns the waiters whose caller has gone.
func takeExpired(ws *[]waiter, now time.Time) []waiter {
	return takeIf(ws, func(x waiter) bool { return x.c.expired(now) })
}

func takeIf(ws *[]waiter, pred func(waiter) bool) []waiter {
	var out []waiter
	kept := (*ws)[:0]
	for _, x := range *ws {
		if pred(x) {
			out = append(out, x)
		} else {
			kept = append(kept, x)
		}
	}
	clear((*ws)[len(kept):])
	*ws = kept
	return out
}

// register promises a read that nothing at or below at will change any more,
// and calls fn when that holds: every entry that has a number by now, the open
// batch included, is applied, and read_bound covers at, so that no later
// leaseholder commits there either. At 0 it takes the newest timestamp of this
// range and tells it to fn. It waits while the lease is on its way here, and
// while the state names a tenure that the worker has not looked at: whoever
// holds it may have answered at later timestamps than are known here.
func (w *worker) register(c *call, at ts.Timestamp, fn func(ts.Timestamp, error)) {
	seen := w.ev.deps.Clock.Seen()
	w.mu.Lock()
	if err := w.mu.closed; err != nil {
		w.mu.Unlock()
		fn(0, err)
		return
	}
	if w.mu.tenure == 0 || w.mu.frozen || w.mu.tenure != w.rep.State().Tenure() {
		w.mu.blocked = append(w.mu.blocked, waiter{c: c, at: at, fn: fn})
		w.mu.Unlock()
		w.ring()
		return
	}
	if at == 0 {
		at = max(w.mu.lastWrite, w.mu.maxRead, seen)
	}
	w.mu.maxRead = max(w.mu.maxRead, at)
	if w.mu.applied >= w.mu.assigned && w.mu.bound >= at {
		w.mu.Unlock()
		fn(at, nil)
		return
	}
	w.mu.waiters = append(w.mu.waiters, waiter{c: c, number: w.mu.assigned, at: at, fn: fn})
	w.mu.Unlock()
	w.ring()
}

// judge is the timestamp by which a linearizable read judges TTL, and whether
// this worker may: it must hold the tenure that the read found in force.
func (w *worker) judge(tenure uint64) (ts.Timestamp, bool) {
	seen := w.ev.deps.Clock.Seen()
	w.mu.Lock()
	defer w.mu.Unlock()
	return max(w.mu.lastWrite, w.mu.maxRead, seen), w.mu.tenure != 0 && w.mu.tenure == tenure
}

// unblock lets the reads in that waited for the lease or for a split.
func (w *worker) unblock(l raft.Leader) {
	w.mu.Lock()
	away := w.mu.tenure == 0 && l.Known && !l.Self
	var let []waiter
	if away || w.mu.tenure != 0 && !w.mu.frozen {
		let, w.mu.blocked = w.mu.blocked, nil
	}
	w.mu.Unlock()
	for _, x := range let {
		if away {
			x.fn(0, w.notLeader())
		} else {
			w.register(x.c, x.at, x.fn)
		}
	}
}

// noteBound takes in the read_bound applied under the tenure held.
func (w *worker) noteBound(bound ts.Timestamp) {
	w.mu.Lock()
	var ready []waiter
	if bound > w.mu.bound {
		w.mu.bound = bound
		ready = takeReady(&w.mu.waiters, w.mu.applied, bound)
	}
	w.mu.Unlock()
	for _, x := range ready {
		x.fn(x.at, nil)
	}
}

// raise proposes a higher read_bound when somebody waits for one.
func (w *worker) raise(l raft.Leader) {
	if w.broken || !l.Known || !l.Self {
		return
	}
	for _, f := range w.flights {
		if f.kind == apply.KindRaiseReadBound {
			return
		}
	}
	seen := w.ev.deps.Clock.Seen()
	w.mu.Lock()
	var want ts.Timestamp
	for _, x := range w.mu.waiters {
		want = max(want, x.at)
	}
	skip := w.mu.tenure == 0 || w.mu.frozen || want <= w.mu.bound
	if !w.mu.exact {
		want = max(want, seen).Add(w.ev.timing.boundStep)
	}
	w.mu.Unlock()
	if skip {
		return
	}
	w.launchMessage(&flight{kind: apply.KindRaiseReadBound}, w.rep.State(),
		&logpb.RaiseReadBound{ReadBound: uint64(want)})
}

// confirmation answers a write that writes nothing, as a read: when all it was
// evaluated upon is applied, a ReadIndex begun after it arrived has passed, and
// the lease is still the one it was evaluated under.
type confirmation struct {
	w      *worker
	c      *call
	resp   *kvpb.Response
	tenure uint64
	left   atomic.Int32
}

// confirm answers c, which was evaluated at commitTS and has no effect.
func (w *worker) confirm(c *call, d decision, commitTS ts.Timestamp) {
	if c.kind == KindSweep {
		c.answer(d.resp)
		return
	}
	k := &confirmation{w: w, c: c, resp: d.resp}
	k.left.Store(2)
	w.mu.Lock()
	k.tenure = w.mu.tenure
	x := waiter{c: c, number: w.mu.assigned, fn: func(_ ts.Timestamp, err error) { k.part(err) }}
	if d.sawExpired && w.open == nil {
		// No entry at commitTS will tell a successor how late it already was.
		w.mu.maxRead = max(w.mu.maxRead, commitTS)
		x.at = commitTS
	}
	ready := w.mu.applied >= x.number && w.mu.bound >= x.at
	if !ready {
		w.mu.waiters = append(w.mu.waiters, x)
	}
	w.mu.Unlock()
	if ready {
		k.part(nil)
	}
	w.reads.join(&readOp{c: c, confirm: k})
}

// part is called once for each of the two conditions.
func (k *confirmation) part(err error) {
	if err != nil {
		k.c.fail(err)
		return
	}
	if k.left.Add(-1) > 0 {
		return
	}
	if st := k.w.rep.State(); st.Tenure() != k.tenure || !st.Serving() {
		k.c.fail(k.w.notLeader())
		return
	}
	k.c.answer(k.resp)
}
