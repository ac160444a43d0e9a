package engine_test

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	logpb "github.com/ridgekv/ridge/proto/ridge/log/v1"
	"github.com/ridgekv/ridge/proto/ts"
	"github.com/ridgekv/ridge/storenode/internal/engine"
)

// Many callers share commits; each of their sets is seen whole or not at all,
// and what was committed is seen by its committer.
func TestCommitsAreIndivisible(t *testing.T) {
	for _, sync := range []bool{false, true} {
		t.Run(fmt.Sprintf("sync=%t", sync), func(t *testing.T) {
			e := open(t, engine.Options{Dir: t.TempDir(), SyncWrites: sync})
			rounds := 60
			if sync {
				rounds = 15
			}
			indivisible(t, e, rounds)
		})
	}
}

func indivisible(t *testing.T, e *engine.Engine, rounds int) {
	const writers = 8
	var clock atomic.Uint64
	var wg, readers sync.WaitGroup
	stop := make(chan struct{})
	for range 2 {
		readers.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				readPairs(t, e.View(), writers)
			}
		})
	}
	for id := range writers {
		wg.Go(func() {
			for i := range rounds {
				at := ts.Timestamp(clock.Add(1))
				a, b := pair(id, i, at), pair(id, i+1_000_000, at)
				if err := e.Commit(a, b); err != nil {
					t.Error(err)
					return
				}
				r, ok, err := e.View().Get(20, fmt.Appendf(nil, "%d/left", id))
				if err != nil || !ok || binary.BigEndian.Uint64(r.Value) != uint64(i+1_000_000) {
					t.Errorf("own write %d: %v %t %v", i, r, ok, err)
				}
			}
		})
	}
	wg.Wait()
	close(stop)
	readers.Wait()
	// Two sets of one call that write one key cannot share a seq.
	if int(e.Visible()) < 2*rounds {
		t.Errorf("%d commits for %d sets on one key", e.Visible(), 2*rounds)
	}
	for id := range writers {
		n := 0
		for _, err := range e.View().Versions(engine.Slice{Extent: 20}) {
			if err != nil {
				t.Fatal(err)
			}
			n++
		}
		if n != 2*2*rounds*writers {
			t.Fatalf("writer %d: %d versions in all, want %d", id, n, 2*2*rounds*writers)
		}
	}
}

// pair writes one number under two keys.
func pair(id, i int, at ts.Timestamp) *engine.WriteSet {
	w := new(engine.WriteSet)
	value := binary.BigEndian.AppendUint64(nil, uint64(i))
	w.Put(20, fmt.Appendf(nil, "%d/left", id), engine.Row{CommitTS: at, Value: value})
	w.Put(20, fmt.Appendf(nil, "%d/right", id), engine.Row{CommitTS: at, Value: value})
	w.SetApplied(uint64(id), value)
	return w
}

func readPairs(t *testing.T, v engine.View, writers int) {
	id := rand.IntN(writers)
	left, ok, err := v.Get(20, fmt.Appendf(nil, "%d/left", id))
	right, rok, rerr := v.Get(20, fmt.Appendf(nil, "%d/right", id))
	if err != nil || rerr != nil || ok != rok || string(left.Value) != string(right.Value) {
		t.Errorf("seq %d: half a set: %v %v, %v %v", v.Seq(), left, right, err, rerr)
	}
}

func TestCommitAfterClose(t *testing.T) {
	e := open(t, engine.Options{Dir: t.TempDir()})
	put(t, e, "k", "v", 1)
	v, release := e.Pin()
	defer release()
	if err := e.Close(); err != nil {
		t.Fatal(err)
	}
	if err := e.Close(); err != nil {
		t.Fatal(err)
	}
	var w engine.WriteSet
	w.Put(20, []byte("k"), engine.Row{})
	if err := e.Commit(&w); !errors.Is(err, engine.ErrClosed) {
		t.Errorf("commit: %v", err)
	}
	if _, _, err := v.Get(20, []byte("k")); !errors.Is(err, engine.ErrClosed) {
		t.Errorf("get: %v", err)
	}
	for _, err := range v.Scan(engine.ScanOptions{Slices: []engine.Slice{{Extent: 20}}}) {
		if !errors.Is(err, engine.ErrClosed) {
			t.Errorf("scan: %v", err)
		}
	}
}

// One entry of the log at its limits fits into one commit, with the smallest
// memtable allowed; what is larger is refused and breaks nothing.
func TestLargestSet(t *testing.T) {
	e := open(t, engine.Options{Dir: t.TempDir(), MemTableSizeBytes: 32 << 20})
	var many, large, tooLarge engine.WriteSet
	for i := range 10_000 {
		many.Put(20, fmt.Appendf(nil, "%0400d", i), engine.Row{CommitTS: 1, ExpiresAt: 1})
	}
	for i := range 4 {
		large.Put(20, []byte{byte(i + 1)},
			engine.Row{CommitTS: 1, ExpiresAt: 1, Value: make([]byte, 1<<20-64)})
	}
	for i := range 6 {
		tooLarge.Put(20, []byte{byte(i)}, engine.Row{CommitTS: 1, Value: make([]byte, 1<<20-64)})
	}
	before := e.Visible()
	if err := e.Commit(&many); err != nil {
		t.Fatal(err)
	}
	if err := e.Commit(&large); err != nil {
		t.Fatal(err)
	}
	if e.Visible() != before+2 {
		t.Errorf("two sets took %d commits", e.Visible()-before)
	}
	if err := e.Commit(&tooLarge); err == nil {
		t.Error("a set of 6 MiB was taken")
	}
	r, ok, err := e.View().Get(20, []byte{1})
	if err != nil || !ok || len(r.Value) != 1<<20-64 {
		t.Errorf("large value: %d bytes, %t, %v", len(r.Value), ok, err)
	}
}

// A key with more versions than an image collects at once.
func TestVersionsOfAHotKey(t *testing.T) {
	e := open(t, engine.Options{Dir: t.TempDir()})
	var w engine.WriteSet
	const n = 5000
	row := func(at int) []byte {
		b := binary.BigEndian.AppendUint64([]byte{1}, uint64(at))
		return append(b, 0)
	}
	for i := range n {
		w.PutImageRow(20, logpb.ImageKind_IMAGE_KIND_DATA, []byte("hot"), row(i+1), false)
	}
	w.Put(20, []byte("a"), engine.Row{CommitTS: 1})
	w.Put(20, []byte("z"), engine.Row{CommitTS: 1})
	if err := e.Commit(&w); err != nil {
		t.Fatal(err)
	}
	var got []string
	last := ts.Timestamp(0)
	for r, err := range e.View().Versions(engine.Slice{Extent: 20}) {
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, string(r.Key))
		if at := ts.Timestamp(binary.BigEndian.Uint64(r.EncodedRow[1:])); string(r.Key) == "hot" {
			if at != last+1 {
				t.Fatalf("version %d after %d", at, last)
			}
			last = at
		}
	}
	if len(got) != n+2 || got[0] != "a" || got[n+1] != "z" {
		t.Errorf("%d versions, want %d; from %s to %s", len(got), n+2, got[0], got[len(got)-1])
	}
}

func TestMetrics(t *testing.T) {
	registry := prometheus.NewPedanticRegistry()
	o := engine.Options{Dir: t.TempDir(), Registerer: registry}
	e := open(t, o)
	put(t, e, "k", "v", 1)
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	names := ""
	for _, f := range families {
		names += f.GetName() + " "
	}
	for _, want := range []string{
		"commit_seconds", "commit_entries", "commit_sets", "flush_seconds", "level_tables",
		"block_cache_hits_total", "stalled", "disk_available_bytes", "visible_seq",
	} {
		if !strings.Contains(names, "ridge_engine_"+want) {
			t.Errorf("no metric %s in %s", want, names)
		}
	}
	if err := e.Close(); err != nil {
		t.Fatal(err)
	}
	open(t, o) // The names are free again.
}

// A flush that fails is never tried again: the engine takes no more commits,
// and Run ends.
func TestFailedFlushIsFatal(t *testing.T) {
	dir := t.TempDir()
	e := open(t, engine.Options{Dir: dir, FlushInterval: time.Hour})
	put(t, e, "k", "v", 1)
	ended := make(chan error, 1)
	go func() { ended <- e.Run(context.Background()) }()
	odd := filepath.Join(dir, "odd.mem")
	if err := os.WriteFile(odd, []byte("x"), 0o644); err != nil {
		t.Fatal(err)
	}
	first := e.Flush(context.Background())
	if err := os.Remove(odd); err != nil {
		t.Fatal(err)
	}
	if again := e.Flush(context.Background()); first == nil || !errors.Is(again, first) {
		t.Errorf("flush: %v, then %v", first, again)
	}
	var w engine.WriteSet
	w.Put(20, []byte("k"), engine.Row{CommitTS: 2})
	if err := e.Commit(&w); !errors.Is(err, first) {
		t.Errorf("commit: %v", err)
	}
	if err := <-ended; !errors.Is(err, first) {
		t.Errorf("run: %v", err)
	}
	if r, ok, err := e.View().Get(20, []byte("k")); err != nil || !ok || r.CommitTS != 1 {
		t.Errorf("get: %v %t %v", r, ok, err)
	}
}

func TestScanEndsWithItsContext(t *testing.T) {
	e := open(t, engine.Options{Dir: t.TempDir()})
	putMany(t, e, 20, 3000)
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	var last error
	n := 0
	o := engine.ScanOptions{Context: ctx, Slices: []engine.Slice{{Extent: 20}}}
	for _, err := range e.View().Scan(o) {
		if n++; n == 10 {
			cancel()
		}
		last = err
	}
	if !errors.Is(last, context.Canceled) || n > 100 {
		t.Errorf("%d rows, then %v", n, last)
	}
}
