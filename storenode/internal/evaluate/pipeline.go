package evaluate

import (
	"errors"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/ridgekv/ridge/proto/errs"
	"github.com/ridgekv/ridge/storenode/internal/apply"
	"github.com/ridgekv/ridge/storenode/internal/catalog"
	"github.com/ridgekv/ridge/storenode/internal/raft"
)

// minVersion is the oldest cluster version that can apply what is written here.
const minVersion = 1

// flight is one numbered entry that is proposed and not yet decided.
type flight struct {
	number uint64
	kind   apply.Kind
	// cmd is proposed byte for byte the same every time.
	cmd []byte
	// items are the requests whose effects it holds, writes the batch they were
	// gathered in; nil for an entry that is no write.
	items  []item
	writes *batch
	// done is told the fate of an entry that is no write.
	done func(fate, string)

	// outstanding proposals have not come back yet. lost: it is known that the
	// last one will not be applied, so it must be proposed again. term is that of
	// the leader here when it was proposed.
	outstanding int
	lost        bool
	term        uint64
	tries       int
	// first and last are when it was proposed, lostAt when it was first found lost.
	first, last, lostAt time.Time
	// refused is why apply refused it, with its number consumed.
	refused string
}

// age is how long ago the oldest request of f came, or else f was proposed.
func (f *flight) age(now time.Time, ev *Evaluator) time.Duration {
	if len(f.items) == 0 {
		return now.Sub(f.first)
	}
	c := f.items[0].c
	return now.Sub(c.deadline.Add(-ev.patience(c.header)))
}

// outcome is what came back of one proposal of one flight.
type outcome struct {
	f *flight
	o raft.Outcome
}

// fate is what became of an entry.
type fate uint8

const (
	fateApplied fate = iota
	// fateNotApplied: it never will be.
	fateNotApplied
	// fateAgain: as fateNotApplied, and this worker holds the next tenure.
	fateAgain
	// fateUnknown: nobody here can tell.
	fateUnknown
	// fateRefused: apply refused it.
	fateRefused
)

// launch numbers an entry, which build encodes, and proposes it.
func (w *worker) launch(f *flight, st *catalog.State, build func(apply.Header) []byte) {
	w.mu.Lock()
	if f.number == 0 {
		w.mu.assigned++
		f.number = w.mu.assigned
	}
	h := apply.Header{
		Kind: f.kind, Tenure: w.mu.tenure, Number: f.number,
		SpanEpoch: st.SpanEpoch(), MinVersion: minVersion,
	}
	w.mu.Unlock()
	f.cmd = build(h)
	f.first = time.Now()
	w.flights = append(w.flights, f)
	w.pace.undecided(w.flights)
	w.ev.metrics.entries.WithLabelValues(f.kind.String()).Inc()
	w.propose(f)
}

// launchMessage is launch for every kind but Write.
func (w *worker) launchMessage(f *flight, st *catalog.State, m proto.Message) {
	w.launch(f, st, func(h apply.Header) []byte { return apply.EncodeMessage(h, m) })
}

// propose hands the entry to the log. All proposals of a range come from its
// worker's goroutine, which keeps their order.
func (w *worker) propose(f *flight) {
	f.outstanding++
	f.tries++
	f.lost, f.last = false, time.Now()
	f.term = w.ev.deps.Host.Leader(w.rangeID).Term
	w.ev.deps.Host.Propose(w.rangeID, f.cmd, w.ev.timing.propose, func(o raft.Outcome) {
		w.mu.Lock()
		w.mu.outcomes = append(w.mu.outcomes, outcome{f: f, o: o})
		w.mu.Unlock()
		w.ring()
	})
}

// decide takes in one outcome. Only apply decides that an entry happened. Of one
// that got no answer in time nothing is known: repropose judges that.
func (w *worker) decide(o outcome) {
	f := o.f
	f.outstanding--
	if !w.flying(f) {
		return
	}
	if o.o.Err != nil {
		f.lost = f.lost || !errors.Is(o.o.Err, raft.ErrUnknown)
		return
	}
	switch o.o.Code {
	case apply.ResultApplied, apply.ResultDuplicate:
		w.settleThrough(f.number)
	case apply.ResultEpochMismatch, apply.ResultRefused:
		w.refusedBy(f, apply.ResultName(o.o.Code), o.o.Data)
	case apply.ResultWrongTenure, apply.ResultPoisoned, apply.ResultHalted:
		// The state tells more: observe looks at it next.
		f.lost = true
	default: // a gap: what is missing came before it in the log, or never came
		f.lost, w.flights[0].lost = true, true
	}
}

// refusedBy handles a refusal by apply. A Write keeps its number, so nothing
// evaluated on top of it can be applied either: the lease is acquired anew.
func (w *worker) refusedBy(f *flight, name string, data []byte) {
	f.refused = name
	if len(data) > 0 {
		f.refused = string(data)
	}
	if f.kind != apply.KindWrite {
		w.settleThrough(f.number)
		return
	}
	w.log.Error("a write was refused by apply", "number", f.number, "why", f.refused)
	f.lost, w.broken = true, true
}

func (w *worker) flying(f *flight) bool {
	for _, g := range w.flights {
		if g == f {
			return true
		}
	}
	return false
}

// settleThrough answers all entries up to number: they are applied.
func (w *worker) settleThrough(number uint64) {
	n := 0
	for n < len(w.flights) && w.flights[n].number <= number {
		n++
	}
	settled := w.flights[:n:n]
	w.flights = w.flights[n:]
	if n > 0 {
		now := time.Now()
		w.pace.settled(settled[0].age(now, w.ev))
		w.pace.decided(now.Sub(settled[0].first))
		w.pace.undecided(w.flights)
	}
	w.mu.Lock()
	var ready []waiter
	if number = min(number, w.mu.assigned); number > w.mu.applied {
		w.mu.applied = number
		ready = takeReady(&w.mu.waiters, w.mu.applied, w.mu.bound)
	}
	w.mu.Unlock()
	for _, f := range settled {
		how := fateApplied
		if f.refused != "" {
			how = fateRefused
		}
		w.finish(f, how)
	}
	for _, x := range ready {
		x.fn(x.at, nil)
	}
}

// finish answers the requests of f.
func (w *worker) finish(f *flight, how fate) {
	if f.done != nil {
		f.done(how, f.refused)
	}
	if how == fateAgain {
		w.putBack(f.items)
		return
	}
	for _, it := range f.items {
		switch how {
		case fateApplied:
			it.applied()
		case fateNotApplied:
			it.c.fail(w.notLeader())
		default:
			it.c.fail(errs.UnknownOutcome{RangeID: w.rangeID})
		}
	}
}

// putBack returns requests that were never applied to the head of the queue:
// the lease is still this worker's, so the caller need not know.
func (w *worker) putBack(items []item) {
	var calls []*call
	for _, it := range items {
		if it.part > 0 {
			it.c.bulk.next -= it.part
			it.c.bulk.flying--
		}
		if it.c.answered.Load() || it.c.queued {
			continue
		}
		it.c.queued = true
		calls = append(calls, it.c)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, c := range calls {
		w.mu.queuedBytes += c.sizeBytes
	}
	w.mu.queue = append(calls, w.mu.queue...)
}

// repropose proposes again, in order, what was lost and all that was evaluated on
// top of it, once all earlier proposals have come back. When that does not help,
// the lease is acquired anew, which settles every number.
//
// An entry without an answer is not lost for that: a disk that is behind takes
// longer than any timeout, and the same bytes once more are what it needs least.
// A leader gives up no entry of its own term, and Raft reports what it does not
// take. So while the replica here has led since in one term, the entry waits for
// Raft or stands in the log, and will be decided. Host.Leader may be behind: a
// leader deposed by then may have sent the entry to its successor, who may have
// lost it. But Leader tells another term in the end, as no replica leads twice
// in one. Should all that be wrong, it is proposed again after timing.forgotten.
func (w *worker) repropose(now time.Time, l raft.Leader) {
	if len(w.flights) == 0 || w.tenure() == 0 || !l.Known || !l.Self || w.broken {
		return // without the leadership another holder's lease settles them
	}
	from := len(w.flights)
	for i, f := range w.flights {
		if f.outstanding > 0 {
			return
		}
		f.lost = f.lost || f.term != l.Term || now.Sub(f.last) >= w.ev.timing.forgotten
		if f.lost {
			from = min(from, i)
		}
	}
	if from == len(w.flights) {
		return
	}
	oldest := w.flights[from]
	if oldest.lostAt.IsZero() {
		oldest.lostAt = now
	}
	if oldest.tries >= w.ev.timing.tries || now.Sub(oldest.lostAt) >= w.ev.timing.undecided {
		w.log.Warn("entries stay undecided, acquiring the lease anew",
			"number", oldest.number, "tries", oldest.tries)
		w.broken = true
	}
	if w.broken || now.Before(w.nextPropose) {
		return
	}
	w.nextPropose = now.Add(min(10*time.Millisecond<<min(oldest.tries, 6), 500*time.Millisecond))
	w.ev.metrics.reproposals.Add(float64(len(w.flights) - from))
	for _, f := range w.flights[from:] {
		w.propose(f)
	}
}
