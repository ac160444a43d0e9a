package evaluate

import (
	"slices"
	"sync"
	"time"

	kvpb "github.com/ridgekv/ridge/proto/ridge/kv/v1"
)

// rounds shares ReadIndex rounds among the reads of a range: a read joins the
// next round to begin, and at most maxRounds are under way.
type rounds struct {
	w  *worker
	mu struct {
		sync.Mutex
		closed error
		// waiting joins the next round; failed joins one again at retryAt.
		waiting, failed []*readOp
		retryAt         time.Time
		// flying are the rounds under way.
		flying []*round
	}
}

// round is one ReadIndex.
type round struct{ ops []*readOp }

// readOp waits for one ReadIndex that begins after it joined.
type readOp struct {
	c *call
	// confirm is the write without effect that it confirms; nil for reads.
	confirm *confirmation
}

// join adds reads to the next round and begins it if there is room.
func (r *rounds) join(ops ...*readOp) {
	r.mu.Lock()
	if err := r.mu.closed; err != nil {
		r.mu.Unlock()
		for _, op := range ops {
			op.fail(err)
		}
		return
	}
	r.mu.waiting = append(r.mu.waiting, ops...)
	x := r.nextLocked()
	r.mu.Unlock()
	r.begin(x)
}

// nextLocked makes a round of all that wait; nil when there is no room, or
// nobody waits.
func (r *rounds) nextLocked() *round {
	if len(r.mu.waiting) == 0 || len(r.mu.flying) >= maxRounds {
		return nil
	}
	x := &round{ops: r.mu.waiting}
	r.mu.waiting = nil
	r.mu.flying = append(r.mu.flying, x)
	return x
}

func (r *rounds) begin(x *round) {
	if x == nil {
		return
	}
	ev := r.w.ev
	ev.metrics.readRounds.Inc()
	ev.deps.Host.ReadIndex(r.w.rangeID, ev.timing.readIndex, func(err error) { r.ended(x, err) })
}

// ended hands the reads of a round to the readers, or lets them try again.
func (r *rounds) ended(x *round, err error) {
	r.mu.Lock()
	if i := slices.Index(r.mu.flying, x); i >= 0 {
		r.mu.flying = slices.Delete(r.mu.flying, i, i+1)
	}
	closed := r.mu.closed
	next := r.nextLocked()
	r.mu.Unlock()
	switch {
	case closed != nil: // answered by close
	case err != nil:
		r.fellThrough(x.ops)
	default:
		r.begin(next)
		r.w.ev.pool.answerOps(r.w, x.ops)
		return
	}
	r.begin(next)
}

// fellThrough is for reads whose round no quorum confirmed.
func (r *rounds) fellThrough(ops []*readOp) {
	l := r.w.ev.deps.Host.Leader(r.w.rangeID)
	now := time.Now()
	var again []*readOp
	for _, op := range ops {
		switch {
		case op.c.expired(now):
			op.fail(errQuorum)
		case l.Known && !l.Self && !op.c.stale():
			op.fail(r.w.notLeader())
		default:
			again = append(again, op)
		}
	}
	if len(again) == 0 {
		return
	}
	r.mu.Lock()
	closed := r.mu.closed
	if closed == nil {
		r.mu.failed = append(r.mu.failed, again...)
		r.mu.retryAt = now.Add(r.w.ev.timing.tick)
	}
	r.mu.Unlock()
	if closed != nil {
		for _, op := range again {
			op.fail(closed)
		}
		return
	}
	r.w.ring()
}

// retry lets reads join again whose round has failed.
func (r *rounds) retry(now time.Time) {
	r.mu.Lock()
	var ops []*readOp
	if len(r.mu.failed) > 0 && !now.Before(r.mu.retryAt) {
		ops, r.mu.failed = r.mu.failed, nil
	}
	r.mu.Unlock()
	if len(ops) > 0 {
		r.join(ops...)
	}
}

func (r *rounds) waitsForRetry() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.mu.failed) > 0
}

// close answers all that wait, those of rounds under way included.
func (r *rounds) close(reason error) {
	r.mu.Lock()
	r.mu.closed = reason
	ops := append(r.mu.waiting, r.mu.failed...)
	for _, x := range r.mu.flying {
		ops = append(ops, x.ops...)
	}
	r.mu.waiting, r.mu.failed = nil, nil
	r.mu.Unlock()
	for _, op := range ops {
		op.fail(reason)
	}
}

func (op *readOp) fail(err error) {
	if op.confirm != nil {
		op.confirm.part(err)
		return
	}
	op.c.fail(err)
}

// run answers the read; a reader calls it after the round.
func (op *readOp) run(w *worker) {
	switch {
	case op.confirm != nil:
		op.confirm.part(nil)
	case op.c.expired(time.Now()):
		op.c.fail(errReader)
	default:
		w.read(op.c, readPlan{})
	}
}

// runAll answers the point reads of a round from one state and one view: the
// state is taken after the round, and still the same after the last read. What
// needs more (an error, a row with a TTL, a state that has moved) goes through
// read by itself.
func (w *worker) runAll(ops []*readOp) {
	now := time.Now()
	st, applied := w.rep.Both()
	view := w.ev.deps.Engine.View()
	answers := make([]*kvpb.Response, len(ops))
	for i, op := range ops {
		if op.confirm != nil || op.c.answered.Load() || op.c.expired(now) ||
			w.ev.admit(op.c, st) != nil {
			continue
		}
		g := gather{w: w, st: st, applied: applied, view: view, strict: !op.c.stale()}
		if resp, err := g.answer(op.c); err == nil && !g.sawTTL {
			answers[i] = resp
		}
	}
	moved, answered := w.rep.State() != st, uint64(0)
	for i, op := range ops {
		if moved || answers[i] == nil {
			op.run(w)
			continue
		}
		if picked() { // before the answer, which may free the request
			w.samples.note(op.c.sampleKey(), st.SpanEpoch(), now)
		}
		op.c.answer(answers[i])
		answered++
	}
	w.readOps.Add(answered)
}
