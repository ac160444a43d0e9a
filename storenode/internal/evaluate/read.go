package evaluate

import (
	"errors"
	"time"

	"github.com/ridgekv/ridge/proto/errs"
	kvpb "github.com/ridgekv/ridge/proto/ridge/kv/v1"
	"github.com/ridgekv/ridge/proto/ts"
	"github.com/ridgekv/ridge/storenode/internal/catalog"
	"github.com/ridgekv/ridge/storenode/internal/engine"
)

// readPlan is how a read is answered once it may be.
type readPlan struct {
	// at is the timestamp of a snapshot read; 0 reads the newest versions.
	at ts.Timestamp
	// judgedAt is the timestamp TTL is judged by. 0: the newest one, and a row
	// that turns out to be expired must be registered for first.
	judgedAt ts.Timestamp
	// freshened: what the oracle said last is young.
	freshened bool
	// tenure is the one judgedAt was registered under, 0 when it does not
	// matter: rows of a later one may not be mixed with what it judges.
	tenure uint64
}

// startRead sends a read on its way by its consistency level.
func (w *worker) startRead(c *call, t *together) {
	switch {
	case c.snapshot():
		w.startSnapshot(c)
	case c.stale():
		w.startStale(c)
	default:
		c.op.c = c
		t.join(w, &c.op)
	}
}

// startSnapshot checks that T lies in the past and registers it.
func (w *worker) startSnapshot(c *call) {
	if c.at() <= w.ev.deps.Clock.Seen() {
		w.registerSnapshot(c)
		return
	}
	w.ev.oracle.ask(func(t ts.Timestamp, err error) {
		switch {
		case err != nil:
			c.fail(err)
		case c.at() > t:
			c.fail(errs.InvalidArgument{
				Field: "consistency.snapshot_ts", Reason: "lies in the future",
			})
		default:
			w.registerSnapshot(c)
		}
	})
}

func (w *worker) registerSnapshot(c *call) {
	w.register(c, c.at(), func(at ts.Timestamp, err error) {
		if err != nil {
			c.fail(err)
			return
		}
		w.ev.pool.submit(c.kind == KindScan, func() { w.read(c, readPlan{at: at, judgedAt: at}) })
	})
}

// startStale finds out what time it is, to the second.
func (w *worker) startStale(c *call) {
	seen, limit := w.ev.deps.Clock.Seen(), w.ev.deps.Clock.Limit()
	if seen != 0 && limit.Sub(seen) <= 2*time.Second {
		w.readStale(c, seen)
		return
	}
	w.ev.oracle.ask(func(t ts.Timestamp, err error) {
		if err != nil {
			w.reads.join(&readOp{c: c}) // a quorum knows as well
			return
		}
		w.readStale(c, t)
	})
}

// readStale answers from this replica when its newest commit is young enough:
// every commit it lacks lies above that one. Otherwise it asks the quorum.
func (w *worker) readStale(c *call, now ts.Timestamp) {
	want := now.Add(-time.Duration(c.consistency.GetMaxStalenessMs()) * time.Millisecond)
	_, applied := w.rep.Both()
	if max(want, c.token) > applied.MaxCommitTS {
		w.reads.join(&readOp{c: c})
		return
	}
	w.ev.pool.submit(c.kind == KindScan, func() {
		w.read(c, readPlan{judgedAt: max(want, applied.MaxCommitTS)})
	})
}

// read answers c. What it needs to be right (a ReadIndex, a registered
// timestamp) was done before. The state is taken first, and must still be the
// same after reading: a split or an image may have moved the data meanwhile.
func (w *worker) read(c *call, p readPlan) {
	if p.at != 0 {
		release, err := w.ev.deps.Engine.RegisterRead(p.at)
		if err != nil {
			c.fail(w.tooOld(c, err))
			return
		}
		defer release()
	}
	for !c.answered.Load() {
		st, applied := w.rep.Both()
		if err := w.ev.admit(c, st); err != nil {
			c.fail(err)
			return
		}
		if p.tenure != 0 && p.tenure != st.Tenure() {
			w.registerTTL(c)
			return
		}
		if p.at != 0 && p.at < st.HistoryFloor() {
			c.fail(w.tooOld(c, errs.TooOld{
				Requested: uint64(p.at), Floor: uint64(st.HistoryFloor()),
			}))
			return
		}
		g := gather{
			w: w, st: st, applied: applied, view: w.ev.deps.Engine.View(),
			at: p.at, judgedAt: p.judgedAt, strict: p.judgedAt == 0 && !c.stale(),
		}
		resp, err := g.answer(c)
		switch {
		case w.rep.State() != st:
			continue
		case err != nil:
			fault := storeFault(err)
			if _, ok := errors.AsType[errs.Unavailable](fault); ok {
				w.log.Error("read", "err", err)
			}
			c.fail(fault)
		case g.strict && g.sawTTL && !p.freshened && w.ev.oracle.old():
			w.ev.oracle.freshen(func() {
				w.ev.pool.submit(c.kind == KindScan, func() { w.read(c, readPlan{freshened: true}) })
			})
		case g.strict && g.undecided:
			w.registerTTL(c)
		default:
			w.readOps.Add(1)
			if picked() {
				w.samples.note(c.sampleKey(), st.SpanEpoch(), time.Now())
			}
			c.answer(resp)
		}
		return
	}
}

// registerTTL is for a linearizable read that met a row it may not yet call
// expired, or alive: the timestamp it judges by must be one that no later
// leaseholder, and no write in flight, can fall behind.
func (w *worker) registerTTL(c *call) {
	tenure := w.rep.State().Tenure()
	w.register(c, 0, func(at ts.Timestamp, err error) {
		if err != nil {
			c.fail(err)
			return
		}
		w.ev.pool.submit(c.kind == KindScan, func() {
			w.read(c, readPlan{judgedAt: at, tenure: tenure})
		})
	})
}

// tooOld names where an interrupted scan would go on.
func (w *worker) tooOld(c *call, err error) error {
	e, ok := errors.AsType[errs.TooOld](err)
	if !ok {
		return storeFault(err)
	}
	if s := c.req.GetScan(); s != nil {
		if e.ResumeKey = s.GetStart(); s.GetReverse() {
			e.ResumeKey = s.GetEnd()
		}
	}
	return e
}

// gather reads rows for one answer from one view.
type gather struct {
	w       *worker
	st      *catalog.State
	applied catalog.Applied
	view    engine.View
	at      ts.Timestamp
	// judgedAt judges TTL; 0 until the first row with one asks the worker what
	// the newest timestamp is, which may come after reading: what was said
	// before this read came is then known all the more. strict: only rows that
	// are alive by it, and only if mayJudge, may be answered; else undecided is
	// set.
	judgedAt  ts.Timestamp
	strict    bool
	mayJudge  bool
	undecided bool
	// sawTTL: it met a row with a TTL.
	sawTTL bool
	// newest is the largest commit_ts among the rows found.
	newest ts.Timestamp
}

// keep judges the TTL of a stored row.
func (g *gather) keep(row engine.Row) bool {
	if row.ExpiresAt != 0 {
		g.sawTTL = true
		if g.judgedAt == 0 {
			g.judgedAt, g.mayJudge = g.w.judge(g.st.Tenure())
		}
		ok := alive(row, true, g.judgedAt)
		if g.strict && (!ok || !g.mayJudge) {
			g.undecided = true
		}
		if !ok {
			return false
		}
	}
	g.newest = max(g.newest, row.CommitTS)
	return true
}

func (g *gather) get(key []byte) (engine.Row, bool, error) {
	x, ok := sliceOf(g.st, key)
	if !ok {
		return engine.Row{}, false, nil // admit has checked; the state is immutable
	}
	var row engine.Row
	var err error
	if g.at != 0 {
		row, ok, err = g.view.GetAt(x, key, g.at)
	} else {
		row, ok, err = g.view.Get(x, key)
	}
	return row, ok && err == nil && g.keep(row), err
}

// token is the highest timestamp an answer depends on: that of its rows, or
// for an absence the newest commit of the range.
func (g *gather) token(absent bool) uint64 {
	if g.at != 0 {
		return uint64(g.at)
	}
	if absent {
		return uint64(max(g.applied.MaxCommitTS, g.w.newest()))
	}
	return uint64(g.newest)
}

// getAnswer is the answer to a Get in one piece of memory.
type getAnswer struct {
	response kvpb.Response
	body     kvpb.Response_Get
	get      kvpb.GetResponse
	row      kvpb.Row
}

func (g *gather) answerGet(key []byte) (*kvpb.Response, error) {
	row, found, err := g.get(key)
	if err != nil {
		return nil, err
	}
	a := &getAnswer{}
	a.response.Body, a.body.Get = &a.body, &a.get
	a.get.Found, a.get.Token = found, g.token(!found)
	if found {
		a.get.Row = &a.row
		a.row.Key, a.row.Value = key, row.Value
		a.row.CommitTs, a.row.ExpiresAt = uint64(row.CommitTS), uint64(row.ExpiresAt)
	}
	return &a.response, nil
}

func (g *gather) answer(c *call) (*kvpb.Response, error) {
	switch b := c.req.GetBody().(type) {
	case *kvpb.Request_Get:
		return g.answerGet(b.Get.GetKey())
	case *kvpb.Request_BatchGet:
		return g.answerBatch(c.keys)
	default:
		return g.page(c)
	}
}

// answerBatch is the answer to a BatchGet: the rows that exist, in the order of
// the keys.
func (g *gather) answerBatch(ks [][]byte) (*kvpb.Response, error) {
	out := &kvpb.BatchGetResponse{Rows: make([]*kvpb.Row, 0, len(ks))}
	slab := make([]kvpb.Row, len(ks)) // they come and go together
	size := 0
	for i, k := range ks {
		row, found, err := g.get(k)
		if err != nil {
			return nil, err
		}
		if !found {
			continue
		}
		// An answer that gRPC refuses to send would end the whole stream.
		if size += len(k) + len(row.Value); size > maxPageBytes {
			return nil, errs.TooLarge{
				What: "answer of a BatchGet", SizeBytes: uint64(size), Limit: maxPageBytes,
			}
		}
		to := &slab[i]
		to.Key, to.Value = k, row.Value
		to.CommitTs, to.ExpiresAt = uint64(row.CommitTS), uint64(row.ExpiresAt)
		out.Rows = append(out.Rows, to)
	}
	out.Token = g.token(len(out.Rows) < len(ks))
	return &kvpb.Response{Body: &kvpb.Response_BatchGet{BatchGet: out}}, nil
}

func rowProto(key []byte, row engine.Row) *kvpb.Row {
	return &kvpb.Row{
		Key: key, Value: row.Value,
		CommitTs: uint64(row.CommitTS), ExpiresAt: uint64(row.ExpiresAt),
	}
}
