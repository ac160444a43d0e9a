package evaluate

import (
	"bytes"
	"time"

	"github.com/ridgekv/ridge/proto/errs"
	"github.com/ridgekv/ridge/proto/keys"
	kvpb "github.com/ridgekv/ridge/proto/ridge/kv/v1"
	"github.com/ridgekv/ridge/proto/ts"
	"github.com/ridgekv/ridge/storenode/internal/apply"
	"github.com/ridgekv/ridge/storenode/internal/catalog"
	"github.com/ridgekv/ridge/storenode/internal/engine"
	"github.com/ridgekv/ridge/storenode/internal/raft"
)

// evaluate turns queued writes into entries while the pipeline has room.
func (w *worker) evaluate(now time.Time, l raft.Leader) {
	for w.writesInFlight() < maxInFlight && !w.jobWaits() && w.mayEvaluate(now, l) {
		st := w.rep.State()
		if st.Tenure() != w.tenure() || !st.Serving() || !w.fill(now, st) {
			return
		}
	}
}

func (w *worker) writesInFlight() int {
	n := 0
	for _, f := range w.flights {
		if f.kind == apply.KindWrite {
			n++
		}
	}
	return n
}

// verdict is what became of the call at the head of the queue.
type verdict uint8

const (
	// taken: it is answered, or its effects are in the open batch.
	taken verdict = iota
	// full: it must wait for the next batch.
	full
	// again: a part was taken and the rest must wait for the next batch.
	again
)

// fill gathers one entry and proposes it. It reports whether it did.
func (w *worker) fill(now time.Time, st *catalog.State) bool {
	// Others only append to the queue, so what is there now stays as it is.
	w.mu.Lock()
	waiting := w.mu.queue
	w.mu.Unlock()
	n := 0
	for _, c := range waiting {
		if c.answered.Load() || c.expired(now) {
			w.failQueued(c, errDeadline)
		} else if err := w.tooLate(c, now); err != nil {
			w.failQueued(c, err)
		} else if w.take(c, st) != taken {
			break
		}
		n++
	}
	w.pop(n)
	if n > 0 || w.open != nil {
		w.ev.deps.Clock.Want()
	}
	if w.open == nil {
		return false
	}
	w.closeBatch(st)
	return true
}

// tooLate refuses a write that would hardly be decided while its caller waits: as
// long as it is not proposed that is certain. Of a BulkWrite a part may be.
func (w *worker) tooLate(c *call, now time.Time) error {
	if c.bulk.next > 0 {
		return nil
	}
	err := w.pace.judgeLast(c.deadline.Sub(now), now)
	if err != nil {
		w.ev.metrics.refusals.WithLabelValues("pace").Inc()
	}
	return err
}

// pop takes the first n calls off the queue.
func (w *worker) pop(n int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, c := range w.mu.queue[:n] {
		w.mu.queuedBytes -= c.sizeBytes
		c.queued = false
	}
	clear(w.mu.queue[:n])
	w.mu.queue = w.mu.queue[n:]
}

// take evaluates one write.
func (w *worker) take(c *call, st *catalog.State) verdict {
	if err := w.admitWrite(c, st); err != nil {
		w.failQueued(c, err)
		return taken
	}
	if c.kind == KindDeleteRange && (len(w.flights) > 0 || w.open != nil) {
		return full // it reads applied state only
	}
	for {
		if w.open != nil && c.token >= w.open.commitTS {
			return full
		}
		commitTS := w.candidate(c.token)
		d, err := w.decideWrite(c, st, commitTS)
		switch {
		case err != nil:
			w.failQueued(c, err)
			return taken
		case len(d.effects) == 0 && c.kind == KindBulkWrite:
			return full
		case len(d.effects) == 0:
			w.confirm(c, d, commitTS)
			return taken
		case !w.open.fits(d.effects):
			return full
		case w.open == nil && !w.openBatch(commitTS):
			continue // a read came between: judge again, later
		}
		w.writeOps.Add(1)
		if picked() {
			w.samples.note(c.sampleKey(), st.SpanEpoch(), time.Now())
		}
		w.add(d.effects, item{c: c, resp: d.resp, part: d.part})
		if c.kind == KindBulkWrite {
			if c.bulk.next += d.part; c.bulk.next < len(c.keys) {
				return again
			}
		}
		return taken
	}
}

// admitWrite checks again what the door has checked, and the disk.
func (w *worker) admitWrite(c *call, st *catalog.State) error {
	if err := w.ev.admit(c, st); err != nil {
		return err
	}
	if w.ev.deps.DiskFull != nil && c.grows() {
		if store, isFull := w.ev.deps.DiskFull(w.rangeID); isFull {
			return errs.DiskFull{StoreID: store}
		}
	}
	return nil
}

// decision is what a write comes to.
type decision struct {
	effects []apply.Effect
	// resp is the answer; nil for a Put or Delete.
	resp *kvpb.Response
	// part is how many mutations of a BulkWrite are decided.
	part int
	// sawExpired: it depends on a row being expired at commit_ts.
	sawExpired bool
}

// decideWrite evaluates c at commitTS: conditions are judged against what is
// applied and in flight, TTL against commitTS.
func (w *worker) decideWrite(c *call, st *catalog.State, commitTS ts.Timestamp) (decision, error) {
	var d decision
	born := w.born(commitTS)
	switch b := c.req.GetBody().(type) {
	case *kvpb.Request_Put:
		w.one[0] = put(b.Put.GetKey(), b.Put.GetValue(), b.Put.GetTtlMs(), born)
		d.effects = w.one[:]
	case *kvpb.Request_Delete:
		w.one[0] = apply.Effect{Key: b.Delete.GetKey(), Delete: true}
		d.effects = w.one[:]
	case *kvpb.Request_BatchWrite:
		d.effects = mutations(b.BatchWrite.GetMutations(), born)
		d.resp = &kvpb.Response{Body: &kvpb.Response_BatchWrite{
			BatchWrite: &kvpb.BatchWriteResponse{CommitTs: uint64(commitTS)},
		}}
	case *kvpb.Request_BulkWrite:
		d.effects = w.nextPart(b.BulkWrite.GetMutations()[c.bulk.next:], born)
		d.part = len(d.effects)
	case *kvpb.Request_CompareAndSwap:
		return w.decideSwap(b.CompareAndSwap, commitTS)
	case *kvpb.Request_DeleteRange:
		return w.decideDeleteRange(c, b.DeleteRange, st, commitTS)
	default:
		return w.decideSweep(c, commitTS)
	}
	return d, nil
}

// born is when a TTL begins. The first commit_ts after a silence lies back as far
// as the silence was long.
func (w *worker) born(commitTS ts.Timestamp) ts.Timestamp {
	return max(commitTS, w.ev.oracle.now())
}

func put(key, value []byte, ttlMillis uint64, born ts.Timestamp) apply.Effect {
	e := apply.Effect{Key: key, Value: value}
	if ttlMillis > 0 {
		e.ExpiresAt = born.Add(time.Duration(ttlMillis) * time.Millisecond)
	}
	return e
}

func mutation(m *kvpb.Mutation, born ts.Timestamp) apply.Effect {
	if m.GetDelete() {
		return apply.Effect{Key: m.GetKey(), Delete: true}
	}
	return put(m.GetKey(), m.GetValue(), m.GetTtlMs(), born)
}

func mutations(ms []*kvpb.Mutation, born ts.Timestamp) []apply.Effect {
	out := make([]apply.Effect, len(ms))
	for i, m := range ms {
		out[i] = mutation(m, born)
	}
	return out
}

// nextPart is as much of ms as the open batch, or a new one, can take.
func (w *worker) nextPart(ms []*kvpb.Mutation, born ts.Timestamp) []apply.Effect {
	size, count := apply.EntryOverheadBytes, 0
	if w.open != nil {
		size, count = w.open.sizeBytes, len(w.open.effects)
	}
	out := make([]apply.Effect, 0, min(len(ms), keys.MaxEntryKeys))
	for _, m := range ms {
		e := mutation(m, born)
		size += apply.EffectSizeBytes(e)
		if count++; size > keys.MaxEntrySizeBytes || count > keys.MaxEntryKeys {
			break
		}
		out = append(out, e)
	}
	return out
}

// alive reports whether a row exists at a timestamp.
func alive(row engine.Row, found bool, at ts.Timestamp) bool {
	return found && (row.ExpiresAt == 0 || row.ExpiresAt > at)
}

func (w *worker) decideSwap(
	r *kvpb.CompareAndSwapRequest, commitTS ts.Timestamp,
) (decision, error) {
	var d decision
	row, stored, err := w.lookup(r.GetKey())
	if err != nil {
		return d, err
	}
	found := alive(row, stored, commitTS)
	d.sawExpired = stored && !found
	matches := !found
	if !r.GetExpectedAbsent() {
		matches = found && bytes.Equal(row.Value, r.GetExpected())
	}
	resp := &kvpb.CompareAndSwapResponse{}
	d.resp = &kvpb.Response{Body: &kvpb.Response_CompareAndSwap{CompareAndSwap: resp}}
	switch {
	case matches && r.GetDelete():
		d.effects = []apply.Effect{{Key: r.GetKey(), Delete: true}}
	case matches:
		d.effects = []apply.Effect{put(r.GetKey(), r.GetValue(), r.GetTtlMs(), w.born(commitTS))}
	case found:
		resp.Found, resp.Current = true, rowProto(r.GetKey(), row)
		resp.Token = uint64(row.CommitTS)
		return d, nil
	default:
		resp.Token = uint64(w.newest())
		return d, nil
	}
	resp.Swapped, resp.CommitTs, resp.Token = true, uint64(commitTS), uint64(commitTS)
	return d, nil
}

// newest is the largest commit_ts given away: what an absence depends on.
func (w *worker) newest() ts.Timestamp {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.mu.lastWrite
}

// decideDeleteRange deletes one chunk. The pipeline is empty, so the engine
// shows all there is.
func (w *worker) decideDeleteRange(
	c *call, r *kvpb.DeleteRangeRequest, st *catalog.State, commitTS ts.Timestamp,
) (decision, error) {
	limit := deleteChunk
	if n := int(r.GetLimit()); n > 0 {
		limit = min(n, limit)
	}
	var d decision
	resp := &kvpb.DeleteRangeResponse{}
	d.resp = &kvpb.Response{Body: &kvpb.Response_DeleteRange{DeleteRange: resp}}
	size := apply.EntryOverheadBytes
	for kr, err := range w.ev.deps.Engine.View().Scan(engine.ScanOptions{
		Slices: st.Slices(), Span: c.span, KeysOnly: true, Limit: limit + 1,
	}) {
		if err != nil {
			w.log.Error("scan for DeleteRange", "err", err)
			return d, storeFault(err)
		}
		e := apply.Effect{Key: kr.Key, Delete: true}
		size += apply.EffectSizeBytes(e)
		if len(d.effects) == limit || size > keys.MaxEntrySizeBytes {
			resp.ResumeKey = kr.Key
			break
		}
		d.effects = append(d.effects, e)
		if alive(kr.Row, true, commitTS) {
			resp.DeletedCount++
		}
	}
	if w.rep.State() != st {
		return decision{}, w.notLeader() // its data may have moved under the scan
	}
	if len(d.effects) > 0 {
		resp.CommitTs = uint64(commitTS)
	}
	return d, nil
}

// sweepRow is a row that had expired when the sweep came by.
type sweepRow struct {
	key      []byte
	commitTS ts.Timestamp
}

// decideSweep deletes rows that are still the ones the sweep saw, and expired.
func (w *worker) decideSweep(c *call, commitTS ts.Timestamp) (decision, error) {
	d := decision{resp: &kvpb.Response{}}
	for _, s := range c.sweep {
		row, stored, err := w.lookup(s.key)
		if err != nil {
			return d, err
		}
		if stored && row.CommitTS == s.commitTS && !alive(row, true, commitTS) {
			d.effects = append(d.effects, apply.Effect{Key: s.key, Delete: true})
		}
	}
	return d, nil
}
