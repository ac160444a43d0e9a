package engine_test

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/ridgekv/ridge/proto/ts"
	"github.com/ridgekv/ridge/storenode/internal/engine"
)

// Readers at all sorts of views, commits, fills and evictions at once: at
// every view the row cache answers what Badger does, and a writer finds what
// it has just written.
func TestRowCacheAgreesWithBadger(t *testing.T) {
	for name, sizeBytes := range map[string]int64{"off": -1, "tiny": 6 << 10, "large": 4 << 20} {
		t.Run(name, func(t *testing.T) {
			e := open(t, engine.SmallTables(engine.Options{
				Dir: t.TempDir(), RowCacheSizeBytes: sizeBytes,
			}))
			c := &cacheContest{T: t, e: e, keys: 200}
			c.run(4, 3, 150)
			if hits := e.RowCacheHits(); (hits == 0) != (sizeBytes < 0) {
				t.Errorf("%d hits", hits)
			}
			if n := e.RowCacheEvictions(); (n > 0) != (name == "tiny") {
				t.Errorf("%d evictions", n)
			}
		})
	}
}

type cacheContest struct {
	*testing.T
	e     *engine.Engine
	keys  int
	clock atomic.Uint64
}

func (c *cacheContest) run(writers, readers, commits int) {
	var wg, reading sync.WaitGroup
	stop := make(chan struct{})
	for range readers {
		reading.Go(func() {
			views := []engine.View{c.e.View()}
			for {
				select {
				case <-stop:
					return
				default:
				}
				views = append(views, c.e.View())
				if len(views) > 8 {
					views = views[1:]
				}
				c.compare(views[rand.IntN(len(views))])
			}
		})
	}
	for id := range writers {
		wg.Go(func() {
			for range commits {
				c.write(id, writers)
			}
		})
	}
	wg.Wait()
	close(stop)
	reading.Wait()
}

// write changes keys that only writer id changes, as the order of the
// timestamps of a key must be that of its commits.
func (c *cacheContest) write(id, writers int) {
	w := new(engine.WriteSet)
	at := ts.Timestamp(c.clock.Add(1))
	var key []byte
	for range 1 + rand.IntN(4) {
		key = fmt.Appendf(nil, "%04d", id+writers*rand.IntN(c.keys/writers))
		if rand.IntN(6) == 0 {
			w.Delete(20, key, at)
			continue
		}
		value := make([]byte, 8+rand.IntN(200))
		binary.BigEndian.PutUint64(value, uint64(at))
		w.Put(20, key, engine.Row{CommitTS: at, Value: value})
	}
	if err := c.e.Commit(w); err != nil {
		c.Error(err)
		return
	}
	row, ok, err := c.e.View().Newest(20, key)
	if err != nil || !ok || row.CommitTS != at {
		c.Errorf("%s: written at %d, found %v %t %v", key, at, row.CommitTS, ok, err)
	}
}

func (c *cacheContest) compare(v engine.View) {
	key := fmt.Appendf(nil, "%04d", rand.IntN(c.keys))
	at := ts.Timestamp(rand.Uint64N(c.clock.Load() + 1))
	row, ok, err := v.Get(20, key)
	row2, ok2, err2 := v.GetStored(20, key)
	if !c.same(row, row2, ok, ok2, err, err2) {
		c.Errorf("%s at commit %d: the cache says %d %t %v, Badger %d %t %v",
			key, v.Seq(), row.CommitTS, ok, err, row2.CommitTS, ok2, err2)
	}
	row, ok, err = v.GetAt(20, key, at)
	row2, ok2, err2 = v.GetAtStored(20, key, at)
	if !c.same(row, row2, ok, ok2, err, err2) {
		c.Errorf("%s at %d, commit %d: the cache says %d %t %v, Badger %d %t %v",
			key, at, v.Seq(), row.CommitTS, ok, err, row2.CommitTS, ok2, err2)
	}
}

func (c *cacheContest) same(a, b engine.Row, ok, ok2 bool, err, err2 error) bool {
	return err == nil && err2 == nil && ok == ok2 && a.CommitTS == b.CommitTS &&
		a.Deleted == b.Deleted && string(a.Value) == string(b.Value)
}

// The cache has all of a commit before any view shows it: readers of the newest
// view, while a large commit goes through the cache, never see a row of the
// commit before.
func TestRowCacheIsNeverBehindVisible(t *testing.T) {
	const keys, commits = 2000, 40
	e := open(t, engine.Options{Dir: t.TempDir(), RowCacheSizeBytes: 8 << 20})
	key := func(i int) []byte { return fmt.Appendf(nil, "%05d", i) }
	commit := func(at ts.Timestamp) {
		var w engine.WriteSet
		for i := range keys {
			w.Put(20, key(i), engine.Row{CommitTS: at, Value: []byte("v")})
		}
		if err := e.Commit(&w); err != nil {
			t.Error(err)
		}
	}
	commit(1)
	first := e.View().Seq()
	for i := range keys {
		if _, ok, err := e.View().Get(20, key(i)); !ok || err != nil {
			t.Fatal(ok, err)
		}
	}
	var reading sync.WaitGroup
	stop := make(chan struct{})
	for range 2 {
		reading.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				v := e.View()
				i := keys - 1 - rand.IntN(8) // The last that a commit gives to the cache.
				row, ok, err := v.Get(20, key(i))
				want := ts.Timestamp(v.Seq() - first + 1)
				if !ok || err != nil || row.CommitTS != want {
					t.Errorf("key %d at commit %d: %d %t %v, want %d", i, v.Seq(), row.CommitTS, ok, err, want)
					return
				}
			}
		})
	}
	for n := range commits {
		commit(ts.Timestamp(n + 2))
	}
	close(stop)
	reading.Wait()
}

// That a key is absent is known from the view on that found it so, and no view
// before it.
func TestRowCacheAbsenceBegins(t *testing.T) {
	e := open(t, engine.Options{Dir: t.TempDir()})
	put(t, e, "k", "v", 1)
	before := e.View()
	var w engine.WriteSet
	w.Delete(20, []byte("k"), 2)
	if err := e.Commit(&w); err != nil {
		t.Fatal(err)
	}
	for range 2 { // From Badger, then from the cache.
		if row, ok, err := e.View().Get(20, []byte("k")); ok || err != nil {
			t.Errorf("after the delete: %v %t %v", row, ok, err)
		}
		if row, ok, err := before.Get(20, []byte("k")); !ok || err != nil || row.CommitTS != 1 {
			t.Errorf("before the delete: %v %t %v", row, ok, err)
		}
	}
}

// A row that the collector erased is gone for the cache as well.
func TestRowCacheForgetsWhatIsCollected(t *testing.T) {
	e := open(t, engine.Options{Dir: t.TempDir(), CollectAfter: 1})
	put(t, e, "k", "v", 1)
	if _, ok, err := e.View().Get(20, []byte("k")); !ok || err != nil {
		t.Fatal(ok, err)
	}
	var w engine.WriteSet
	w.AddGarbage(engine.Slice{Extent: 20}, false)
	if err := e.Commit(&w); err != nil {
		t.Fatal(err)
	}
	runEngine(t, e)
	eventually(t, "collected", func() bool { return len(e.Garbage()) == 0 })
	if row, ok, err := e.View().Get(20, []byte("k")); ok || err != nil {
		t.Error(row, ok, err)
	}
}
