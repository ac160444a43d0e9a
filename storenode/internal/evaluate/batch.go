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
	effects   []apply.Effect
	at        map[string]int // key → effect; the last one of a key wins
	sizeBytes int
	items     []item
}

// overlayRow is what an entry that is not yet applied makes of a key.
type overlayRow struct {
	number uint64
	row    engine.Row
}

// item is a request, or part of a BulkWrite, whose effects are in an entry.
type item struct {
	c    *call
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
		number: w.mu.assigned, commitTS: commitTS,
		at: make(map[string]int), sizeBytes: apply.EntryOverheadBytes,
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

// add puts the effects of one request into the open batch and the overlay.
func (w *worker) add(effects []apply.Effect, it item) {
	b := w.open
	for _, e := range effects {
		k := string(e.Key)
		if i, ok := b.at[k]; ok {
			b.sizeBytes += apply.EffectSizeBytes(e) - apply.EffectSizeBytes(b.effects[i])
			b.effects[i] = e
		} else {
			b.at[k] = len(b.effects)
			b.effects = append(b.effects, e)
			b.sizeBytes += apply.EffectSizeBytes(e)
		}
		w.overlay[k] = overlayRow{number: b.number, row: engine.Row{
			CommitTS: b.commitTS, ExpiresAt: e.ExpiresAt, Value: e.Value, Deleted: e.Delete,
		}}
	}
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
	f := &flight{number: b.number, kind: apply.KindWrite, items: b.items}
	f.keys = make([]string, 0, len(b.at))
	for k := range b.at {
		f.keys = append(f.keys, k)
	}
	w.ev.metrics.batchWrites.Observe(float64(len(b.items)))
	w.launch(f, st, func(h apply.Header) []byte {
		return apply.EncodeWrite(h, b.commitTS, b.effects)
	})
}

// lookup is the row of key as evaluation sees it: what is in flight on top of
// what is applied. The overlay is asked first and the view taken second; a row
// leaves the overlay only after it is visible.
func (w *worker) lookup(key []byte) (engine.Row, bool, error) {
	if o, ok := w.overlay[string(key)]; ok {
		return o.row, !o.row.Deleted, nil
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
