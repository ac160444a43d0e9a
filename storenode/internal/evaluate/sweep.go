package evaluate

import (
	"context"
	"time"

	"github.com/ridgekv/ridge/proto/keys"
	kvpb "github.com/ridgekv/ridge/proto/ridge/kv/v1"
	"github.com/ridgekv/ridge/storenode/internal/engine"
)

// sweepScanMax is how many rows one step of a sweep looks at. A step is one
// view, and views do not live long.
const sweepScanMax = 50_000

// sweepAll looks through the ranges evaluated here for expired rows, and
// deletes them by ordinary entries. It is the only thing that reclaims them.
func (ev *Evaluator) sweepAll(ctx context.Context) {
	if ev.limits.SweepInterval < 0 {
		return
	}
	ticker := time.NewTicker(ev.limits.SweepInterval)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		ev.workers.Range(func(_, v any) bool {
			if w := v.(*worker); w.rep.State().HasTTL() && w.tenure() != 0 {
				w.sweepRange(ctx)
			}
			return ctx.Err() == nil
		})
	}
}

// sweepRange goes once through the range, a chunk of expired rows at a time.
func (w *worker) sweepRange(ctx context.Context) {
	asking, cancel := context.WithTimeout(ctx, w.ev.timing.oracle)
	_, _ = w.ev.deps.Clock.Fresh(asking) // PD away: rows that expired before will do
	cancel()
	next := w.rep.State().Span().Start
	for {
		rows, resume, ok := w.expiredRows(ctx, next)
		if !ok {
			return
		}
		if len(rows) > 0 && !w.submitSweep(ctx, rows) {
			return
		}
		if next = resume; next == nil {
			return
		}
	}
}

// expiredRows finds rows that have expired by now, from a key on. resume is
// where to go on, nil at the end.
func (w *worker) expiredRows(
	ctx context.Context, from []byte,
) (rows []sweepRow, resume []byte, ok bool) {
	st := w.rep.State()
	span := st.Span().Intersect(keys.Span{Start: from})
	if !st.Serving() || !span.Valid() {
		return nil, nil, false
	}
	now, examined := w.ev.deps.Clock.Seen(), 0
	for kr, err := range w.ev.deps.Engine.View().Scan(engine.ScanOptions{
		Context: ctx, Slices: st.Slices(), Span: span, KeysOnly: true,
	}) {
		if err != nil {
			w.log.Error("sweep", "err", err)
			return nil, nil, false
		}
		if examined++; len(rows) == sweepChunk || examined > sweepScanMax {
			return rows, kr.Key, true
		}
		if !alive(kr.Row, true, now) {
			rows = append(rows, sweepRow{key: kr.Key, commitTS: kr.Row.CommitTS})
		}
	}
	return rows, nil, true
}

// submitSweep deletes rows through the queue, as a write like any other.
func (w *worker) submitSweep(ctx context.Context, rows []sweepRow) bool {
	done := make(chan bool, 1)
	c := &call{
		kind: KindSweep, header: &kvpb.Header{RangeId: w.rangeID}, req: &kvpb.Request{},
		sweep: rows, deadline: time.Now().Add(w.ev.timing.request),
		to: respondFunc(func(r *kvpb.Response) { done <- r.GetError() == nil }),
	}
	for _, r := range rows {
		c.keys = append(c.keys, r.key)
		c.sizeBytes += len(r.key)
	}
	w.enqueue(c, nil)
	select {
	case ok := <-done:
		if ok {
			w.ev.metrics.swept.Add(float64(len(rows)))
		}
		return ok
	case <-ctx.Done():
		return false
	}
}
