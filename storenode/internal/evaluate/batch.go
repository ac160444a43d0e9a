package evaluate

import (
	"bytes"

	"github.com/ridgekv/ridge/proto/errs"
	"github.com/ridgekv/ridge/proto/keys"
	kvpb "github.com/ridgekv/ridge/proto/ridge/kv/v1"
	"github.com/ridgekv/ridge/proto/ts"
	"github.com/ridgekv/ridge/storenode/internal/apply"
	"github.com/ridgekv/ridge/storenode/internal/catalog"
	"github.com/ridgekv/ridge/storenode/internal/engine"
)

// batch is the open entry: it has its number and its commit_ts from its first
// write on, so a snapshot read at or above that timestamp waits for it.
type batch struct {
	number    uint64
	commitTS  ts.Timestamp
	effects   []apply.Effect // the last one of a key wins
	sizeBytes int
	items     []item
	// at finds the last effect of a key among the first indexed effects. It is
	// made when somebody asks: puts and deletes do not.
	at      map[string]int
	indexed int
}

// find is what b makes of key, if anything.
func (b *batch) find(key []byte) (engine.Row, bool) {
	if b.at == nil {
		b.at = make(map[string]int, len(b.effects))
	}
	for ; b.indexed < len(b.effects); b.indexed++ {
		b.at[string(b.effects[b.indexed].Key)] = b.indexed
	}
	i, ok := b.at[string(key)]
	if !ok {
		return engine.Row{}, false
	}
	e := b.effects[i]
	return engine.Row{
		CommitTS: b.commitTS, ExpiresAt: e.ExpiresAt, Value: e.Value, Deleted: e.Delete,
	}, true
}

// item is a request, or part of a BulkWrite, whose effects are in an entry.
type item struct {
	c *call
	// resp is the answer; nil for a Put or Delete, which are told commitTS.
	resp *kvpb.Response
	// part is how many mutations of a BulkWrite the entry holds; 0 for others.
	part     int
	commitTS ts.Timestamp
}

// bulkProgress is how far a BulkWrite has come. Only the worker's goroutine
// touches it.
type bulkProgress struct {
	// next is the first mutation that is not evaluated; applied is how many
	// are known to be applied; flying is how many entries hold some.
	next, applied, flying int
	commitTS              ts.Timestamp
}

// applied answers a request whose entry is applied.
func (it item) applied() {
	if it.part == 0 {
		if it.resp == nil {
			it.resp = committed(it.c.kind, it.commitTS)
		}
		it.c.answer(it.resp)
		return
	}
	b := &it.c.bulk
	b.applied += it.part
	b.flying--
	b.commitTS = max(b.commitTS, it.commitTS)
	if b.applied == len(it.c.keys) {
		it.c.answer(&kvpb.Response{Body: &kvpb.Response_BulkWrite{BulkWrite: &kvpb.BulkWriteResponse{
			AppliedCount: uint64(b.applied), CommitTs: uint64(b.commitTS),
		}}})
	}
}

// committed is the answer to a Put or a Delete, in one allocation.
func committed(k Kind, at ts.Timestamp) *kvpb.Response {
	if k == KindPut {
		var a struct {
			resp kvpb.Response
			body kvpb.Response_Put
			put  kvpb.PutResponse
		}
		a.put.CommitTs, a.body.Put, a.resp.Body = uint64(at), &a.put, &a.body
		return &a.resp
	}
	var a struct {
		resp kvpb.Response
		body kvpb.Response_Delete
		del  kvpb.DeleteResponse
	}
	a.del.CommitTs, a.body.Delete, a.resp.Body = uint64(at), &a.del, &a.body
	return &a.resp
}

// candidate is the commit_ts that a batch opened now would get.
func (w *worker) candidate(token ts.Timestamp) ts.Timestamp {
	if w.open != nil {
		return w.open.commitTS
	}
	seen := w.ev.deps.Clock.Seen()
	w.mu.Lock()
	defer w.mu.Unlock()
	return max(w.mu.lastWrite, w.mu.maxRead, token, seen) + 1
}

// openBatch opens a batch at commitTS. It fails when a read was promised
// something at that timestamp since it was computed.
func (w *worker) openBatch(commitTS ts.Timestamp) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	if max(w.mu.lastWrite, w.mu.maxRead) >= commitTS {
		return false
	}
	w.mu.lastWrite = commitTS
	w.mu.assigned++
	w.open = &batch{
		number: w.mu.assigned, commitTS: commitTS, sizeBytes: apply.EntryOverheadBytes,
	}
	if n := min(len(w.mu.queue), keys.MaxEntryKeys); n > 1 {
		w.open.effects, w.open.items = make([]apply.Effect, 0, n), make([]item, 0, n)
	}
	return true
}

// fits reports whether effects still fit into b, as one.
func (b *batch) fits(effects []apply.Effect) bool {
	if b == nil {
		return true
	}
	size := b.sizeBytes
	for _, e := range effects {
		size += apply.EffectSizeBytes(e)
	}
	return size <= keys.MaxEntrySizeBytes && len(b.effects)+len(effects) <= keys.MaxEntryKeys
}

// add puts the effects of one request into the open batch.
func (w *worker) add(effects []apply.Effect, it item) {
	b := w.open
	for _, e := range effects {
		b.sizeBytes += apply.EffectSizeBytes(e)
	}
	b.effects = append(b.effects, effects...)
	it.commitTS = b.commitTS
	if it.part > 0 {
		it.c.bulk.flying++
	}
	b.items = append(b.items, it)
}

// closeBatch proposes the open batch.
func (w *worker) closeBatch(st *catalog.State) {
	b := w.open
	w.open = nil
	f := &flight{number: b.number, kind: apply.KindWrite, items: b.items, writes: b}
	w.ev.metrics.batchWrites.Observe(float64(len(b.items)))
	w.launch(f, st, func(h apply.Header) []byte {
		return apply.EncodeWrite(h, b.commitTS, b.effects)
	})
}

// inFlight is what the newest of the undecided entries that touches key makes of
// it: the overlay.
func (w *worker) inFlight(key []byte) (engine.Row, bool) {
	if w.open != nil {
		if row, ok := w.open.find(key); ok {
			return row, true
		}
	}
	for i := len(w.flights) - 1; i >= 0; i-- {
		if b := w.flights[i].writes; b != nil {
			if row, ok := b.find(key); ok {
				return row, true
			}
		}
	}
	return engine.Row{}, false
}

// lookup is the row of key as evaluation sees it: what is in flight on top of
// what is applied. The overlay is asked first and the view taken second; a row
// leaves the overlay only after it is visible.
func (w *worker) lookup(key []byte) (engine.Row, bool, error) {
	if row, ok := w.inFlight(key); ok {
		return row, !row.Deleted, nil
	}
	for {
		st := w.rep.State()
		x, ok := sliceOf(st, key)
		if !ok || !st.Serving() {
			return engine.Row{}, false, errs.NotLeader{RangeID: w.rangeID}
		}
		row, found, err := w.ev.deps.Engine.View().Get(x, key)
		if err != nil {
			w.log.Error("read for evaluation", "err", err)
			return row, false, storeFault(err)
		}
		if w.rep.State() == st {
			return row, found, nil
		}
	}
}

// sliceOf is the extent of st that holds key.
func sliceOf(st *catalog.State, key []byte) (engine.Extent, bool) {
	slices := st.Slices()
	lo, hi := 0, len(slices)
	for lo < hi {
		if m := (lo + hi) / 2; bytes.Compare(slices[m].Span.Start, key) <= 0 {
			lo = m + 1
		} else {
			hi = m
		}
	}
	if lo == 0 || !slices[lo-1].Span.Contains(key) {
		return 0, false
	}
	return slices[lo-1].Extent, true
}
