package engine_test

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/ridgekv/ridge/proto/keys"
	"github.com/ridgekv/ridge/storenode/internal/engine"
)

// runEngine runs e until the test ends or stop is called, which returns what
// Run returned.
func runEngine(t testing.TB, e *engine.Engine) (stop func() error) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	done := false
	go func() { ended <- e.Run(ctx) }()
	stop = func() error {
		if done {
			return nil
		}
		done = true
		cancel()
		return <-ended
	}
	t.Cleanup(func() { _ = stop() })
	return stop
}

// eventually waits for a condition.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	limit := time.After(20 * time.Second)
	for !ok() {
		select {
		case <-tick.C:
		case <-limit:
			t.Fatalf("not within 20s: %s", what)
		}
	}
}

func rows(t testing.TB, e *engine.Engine, s engine.Slice) int {
	t.Helper()
	n := 0
	for _, err := range e.View().Scan(engine.ScanOptions{Slices: []engine.Slice{s}}) {
		if err != nil {
			t.Fatal(err)
		}
		n++
	}
	return n
}

func putMany(t testing.TB, e *engine.Engine, x engine.Extent, n int) {
	t.Helper()
	for i := 0; i < n; i += 500 {
		var w engine.WriteSet
		for k := i; k < min(n, i+500); k++ {
			w.Put(x, fmt.Appendf(nil, "%05d", k), engine.Row{CommitTS: 1, Value: []byte("v")})
		}
		if err := e.Commit(&w); err != nil {
			t.Fatal(err)
		}
	}
}

func TestCollector(t *testing.T) {
	o := engine.Options{
		Dir: t.TempDir(), CollectAfter: time.Millisecond, CollectRowsPerSecond: 1 << 20,
	}
	e := open(t, o)
	const old, receiving = 20, 21
	putMany(t, e, old, 3000)
	putMany(t, e, receiving, 100)
	middle := engine.Slice{Extent: old, Span: keys.Span{Start: []byte("01000"), End: []byte("02500")}}
	var w engine.WriteSet
	w.AddGarbage(middle, false)
	w.AddGarbage(engine.Slice{Extent: receiving}, true)
	if err := e.Commit(&w); err != nil {
		t.Fatal(err)
	}
	if n := rows(t, e, middle); n != 1500 {
		t.Fatalf("%d rows listed", n)
	}
	stop := runEngine(t, e)
	eventually(t, "the slice is collected", func() bool { return len(e.Garbage()) == 1 })
	if n := rows(t, e, middle); n != 0 {
		t.Errorf("%d rows are left", n)
	}
	if n := rows(t, e, engine.Slice{Extent: old}); n != 1500 {
		t.Errorf("%d rows beside the slice, want 1500", n)
	}
	if n := rows(t, e, engine.Slice{Extent: receiving}); n != 100 {
		t.Errorf("%d rows in the extent being received", n)
	}
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	if err := e.Close(); err != nil {
		t.Fatal(err)
	}
	// The next run knows nothing of the image: its remains go.
	e = open(t, o)
	if g := e.Garbage(); len(g) != 1 || g[0].Slice.Extent != receiving || !g[0].Receiving {
		t.Errorf("garbage after a restart: %v", g)
	}
	runEngine(t, e)
	eventually(t, "the remains are collected", func() bool { return len(e.Garbage()) == 0 })
	if n := rows(t, e, engine.Slice{Extent: receiving}); n != 0 {
		t.Errorf("%d rows are left of the image", n)
	}
}

// The swap commit takes the new slice off the list and puts the old one on.
func TestSwap(t *testing.T) {
	o := engine.Options{Dir: t.TempDir(), CollectAfter: time.Hour}
	e := open(t, o)
	var list engine.WriteSet
	x := e.NewExtent(&list)
	list.AddGarbage(engine.Slice{Extent: x}, true)
	if err := e.Commit(&list); err != nil {
		t.Fatal(err)
	}
	var swap engine.WriteSet
	swap.RemoveGarbage(engine.Slice{Extent: x})
	swap.AddGarbage(engine.Slice{Extent: 3, Span: keys.Prefix([]byte("p"))}, false)
	if err := e.Commit(&swap); err != nil {
		t.Fatal(err)
	}
	want := fmt.Sprint([]engine.GarbageSlice{
		{Slice: engine.Slice{Extent: 3, Span: keys.Prefix([]byte("p"))}},
	})
	if got := fmt.Sprint(e.Garbage()); got != want {
		t.Errorf("garbage %s, want %s", got, want)
	}
	if err := e.Close(); err != nil {
		t.Fatal(err)
	}
	e = open(t, o)
	if got := fmt.Sprint(e.Garbage()); got != want {
		t.Errorf("garbage after a restart %s, want %s", got, want)
	}
}

// An extent is never handed out twice, in whatever order the sets that hold
// the counter are committed.
func TestExtentsAreNotReused(t *testing.T) {
	o := engine.SmallTables(engine.Options{Dir: t.TempDir()})
	e := open(t, o)
	var a, b, unused engine.WriteSet
	first, second := e.NewExtent(&a), e.NewExtent(&b)
	third := e.NewExtent(&unused)
	b.Put(second, []byte("k"), engine.Row{CommitTS: 1})
	a.Put(first, []byte("k"), engine.Row{CommitTS: 1})
	if err := e.Commit(&b); err != nil {
		t.Fatal(err)
	}
	if err := e.Commit(&a); err != nil {
		t.Fatal(err)
	}
	if first == second || second == third {
		t.Fatalf("extents %d, %d, %d", first, second, third)
	}
	o.Dir = takeImage(t, o).dir
	e = open(t, o)
	if x := e.NewExtent(new(engine.WriteSet)); x <= second {
		t.Errorf("extent %d after %d", x, second)
	}
}

func TestFlush(t *testing.T) {
	o := engine.SmallTables(engine.Options{Dir: t.TempDir(), FlushInterval: time.Millisecond})
	e := open(t, o)
	ctx := context.Background()
	put(t, e, "a", "", 1)
	if e.Flushed() != 0 {
		t.Fatalf("flushed %d before a flush", e.Flushed())
	}
	if err := e.Flush(ctx); err != nil || e.Flushed() != e.Visible() {
		t.Fatalf("flushed %d of %d: %v", e.Flushed(), e.Visible(), err)
	}
	defer e.HoldMemtables()()
	putMany(t, e, 20, 5) // 5 rows; the set limit of small tables is low.
	for range 100 {
		put(t, e, "b", string(make([]byte, 3000)), 2)
	}
	if err := e.Flush(ctx); err != nil {
		t.Fatal(err)
	}
	files, err := engine.MemFiles(o.Dir)
	if err != nil {
		t.Fatal(err)
	}
	// All but the last have had their last write and need no other sync.
	for i, synced := 0, e.SyncedFiles(); i < len(files)-1; i++ {
		var n int
		if _, err := fmt.Sscanf(files[i].Path[len(o.Dir)+1:], "%05d.mem", &n); err != nil {
			t.Fatal(err)
		}
		if !synced[n] {
			t.Errorf("file %d of %d is not noted as synced: %v", n, len(files), synced)
		}
	}
	gone, cancel := context.WithCancel(ctx)
	cancel()
	runEngine(t, e)
	put(t, e, "c", "", 3)
	eventually(t, "flushed by itself", func() bool { return e.Flushed() == e.Visible() })
	if err := e.Flush(gone); err != nil && !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

// An extent that was handed out and committed stays handed out, even when
// nothing was ever written to it.
func TestExtentWithoutRows(t *testing.T) {
	o := engine.SmallTables(engine.Options{Dir: t.TempDir()})
	e := open(t, o)
	var w engine.WriteSet
	first := e.NewExtent(&w)
	if err := e.Commit(&w); err != nil {
		t.Fatal(err)
	}
	if err := e.Close(); err != nil {
		t.Fatal(err)
	}
	e = open(t, o)
	if again := e.NewExtent(&w); again == first {
		t.Errorf("extent %d was handed out twice", again)
	}
}
