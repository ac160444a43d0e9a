package engine

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/dgraph-io/badger/v4"
	logpb "github.com/ridgekv/ridge/proto/ridge/log/v1"
	"golang.org/x/time/rate"
	"google.golang.org/protobuf/proto"

	"github.com/ridgekv/ridge/proto/keys"
)

// extentCounter hands out extents. An extent that was handed out is never
// handed out again, not even after a crash: the commit that first writes to
// an extent holds the counter.
type extentCounter struct {
	mu struct {
		sync.Mutex
		last, durable Extent
	}
}

func (c *extentCounter) init(last Extent) { c.mu.last, c.mu.durable = last, last }

// NewExtent hands out an extent that was never used. The commit of w, even if
// nothing else is in it, or of any set that writes to the extent, makes that
// durable.
func (e *Engine) NewExtent(w *WriteSet) Extent {
	e.extents.mu.Lock()
	defer e.extents.mu.Unlock()
	e.extents.mu.last++
	w.noteExtent(e.extents.mu.last)
	return e.extents.mu.last
}

// NewestExtent is the last extent that was handed out. All are at most that.
func (e *Engine) NewestExtent() Extent {
	e.extents.mu.Lock()
	defer e.extents.mu.Unlock()
	return e.extents.mu.last
}

// toPersist tells what a commit that writes to extent x must write first.
func (c *extentCounter) toPersist(x Extent) (Extent, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.mu.last = max(c.mu.last, x)
	return c.mu.last, x > c.mu.durable
}

func (c *extentCounter) persisted(x Extent) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.mu.durable = max(c.mu.durable, x)
}

// GarbageSlice is one entry of the garbage list.
type GarbageSlice struct {
	Slice Slice
	// Receiving: a range image is being written into it.
	Receiving bool
}

type garbageChange struct {
	slice     Slice
	receiving bool
	remove    bool
}

// garbageList mirrors the records x|garbage/. The committer changes it after
// the commit that changes them.
type garbageList struct {
	mu struct {
		sync.Mutex
		entries map[string]garbageEntry
	}
}

type garbageEntry struct {
	GarbageSlice
	// listed is when it may have had its last reader; zero for entries of
	// earlier runs, whose readers are gone.
	listed time.Time
	// ours: received in this run, so not to be touched.
	ours bool
}

func (g *garbageList) change(changes []garbageChange, now time.Time) {
	if len(changes) == 0 {
		return
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, c := range changes {
		key := string(garbageKey(c.slice))
		if c.remove {
			delete(g.mu.entries, key)
			continue
		}
		g.mu.entries[key] = garbageEntry{
			GarbageSlice: GarbageSlice{Slice: c.slice, Receiving: c.receiving},
			listed:       now, ours: c.receiving,
		}
	}
}

// due returns the entries whose data may be deleted.
func (g *garbageList) due(now time.Time, after time.Duration) []garbageEntry {
	g.mu.Lock()
	defer g.mu.Unlock()
	var out []garbageEntry
	for _, en := range g.mu.entries {
		if !en.ours && now.Sub(en.listed) >= after {
			out = append(out, en)
		}
	}
	sortGarbage(out, func(en garbageEntry) Slice { return en.Slice })
	return out
}

// lists reports whether the entry is still on the list as it was.
func (g *garbageList) lists(en garbageEntry) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	now, ok := g.mu.entries[string(garbageKey(en.Slice))]
	return ok && now.listed.Equal(en.listed) && now.Slice.Span.Equal(en.Slice.Span)
}

// Garbage returns the garbage list.
func (e *Engine) Garbage() []GarbageSlice {
	e.garbage.mu.Lock()
	defer e.garbage.mu.Unlock()
	out := make([]GarbageSlice, 0, len(e.garbage.mu.entries))
	for _, en := range e.garbage.mu.entries {
		out = append(out, en.GarbageSlice)
	}
	sortGarbage(out, func(g GarbageSlice) Slice { return g.Slice })
	return out
}

func sortGarbage[T any](list []T, slice func(T) Slice) {
	slices.SortFunc(list, func(a, b T) int {
		return bytes.Compare(garbageKey(slice(a)), garbageKey(slice(b)))
	})
}

func (e *Engine) loadGarbage(v View) error {
	e.garbage.mu.entries = make(map[string]garbageEntry)
	records, err := v.records(storeKey(storeGarbage))
	if err != nil {
		return err
	}
	for key, b := range records {
		s, err := decodeGarbage(b)
		if err != nil {
			return fmt.Errorf("engine: garbage record %q: %w", key, err)
		}
		e.garbage.mu.entries[key] = garbageEntry{GarbageSlice: s}
	}
	return nil
}

func decodeGarbage(b []byte) (GarbageSlice, error) {
	if len(b) == 0 || b[0] != recordVersion {
		return GarbageSlice{}, errors.New("unknown format")
	}
	var p logpb.GarbageSlice
	if err := proto.Unmarshal(b[1:], &p); err != nil {
		return GarbageSlice{}, err
	}
	return GarbageSlice{
		Slice: Slice{
			Extent: Extent(p.GetSlice().GetExtent()),
			Span:   keys.FromProto(p.GetSlice().GetSpan()),
		},
		Receiving: p.GetReceiving(),
	}, nil
}

// collectRows is how many rows the collector deletes in one commit.
const collectRows = 500

// SetEmptying makes the collector delete what is on the garbage list at once
// instead of minutes later. The caller knows that no range is left here which
// anybody could be reading.
func (e *Engine) SetEmptying(emptying bool) { e.emptying.Store(emptying) }

// runCollector deletes the data of the garbage list, little by little.
func (e *Engine) runCollector(ctx context.Context) error {
	limit := rate.NewLimiter(rate.Limit(e.opt.CollectRowsPerSecond),
		max(collectRows, e.opt.CollectRowsPerSecond))
	interval := min(time.Second, max(e.opt.CollectAfter/4, 10*time.Millisecond))
	return every(ctx, interval, func(ctx context.Context) error {
		after := e.opt.CollectAfter
		if e.emptying.Load() {
			after = min(after, time.Second)
		}
		for _, en := range e.garbage.due(time.Now(), after) {
			if err := e.collect(ctx, limit, en); err != nil {
				return err
			}
		}
		return nil
	})
}

// collect deletes the data of one slice and then its entry. A crash in
// between leaves the entry, so the next run goes on.
func (e *Engine) collect(ctx context.Context, limit *rate.Limiter, en garbageEntry) error {
	for _, kind := range []byte{kindData, kindLock, kindTxn} {
		b := boundsOf(kind, en.Slice.Extent, en.Slice.Span)
		for pos := b.lo; pos != nil; {
			if limit.WaitN(ctx, collectRows) != nil {
				return nil // ctx ends, or will before there is room.
			}
			if _, stalled := e.Stalled(); stalled {
				continue
			}
			if !e.garbage.lists(en) {
				return nil
			}
			var w WriteSet
			var err error
			if pos, err = e.View().eraseFrom(&w, b, pos); err != nil {
				return err
			}
			if err := e.Commit(&w); err != nil {
				return err
			}
			e.metrics.collected.Add(float64(len(w.ops)))
		}
	}
	if !e.garbage.lists(en) {
		return nil
	}
	var w WriteSet
	w.RemoveGarbage(en.Slice)
	if err := e.Commit(&w); err != nil {
		return err
	}
	e.opt.Logger.Info("collected a slice", "op", "collect", "slice", en.Slice.String())
	return nil
}

// eraseFrom adds erasures of the next rows from pos on to w. It returns where
// to go on; nil at the end. Delete marks need no erasure.
func (v View) eraseFrom(w *WriteSet, b bounds, pos []byte) (next []byte, err error) {
	release, err := v.e.pins.hold(v.seq)
	if err != nil {
		return nil, err
	}
	defer release()
	if err := v.e.enter(); err != nil {
		return nil, err
	}
	defer v.e.leave()
	it := v.txn.NewIterator(badger.IteratorOptions{Prefix: b.prefix})
	defer it.Close()
	for it.Seek(pos); it.Valid(); it.Next() {
		key := it.Item().Key()
		if bytes.Compare(key, b.hi) >= 0 {
			return nil, nil
		}
		w.erase(key)
		if len(w.ops) == collectRows {
			return keys.Next(key), nil
		}
	}
	return nil, nil
}
