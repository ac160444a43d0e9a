package engine

import (
	"bytes"
	"errors"
	"reflect"
	"runtime"
	"sync"
	"testing"
	"time"
	"unsafe"
	"weak"

	"github.com/dgraph-io/badger/v4"

	"github.com/ridgekv/ridge/proto/ts"
)

func openForTest(t *testing.T, o Options) *Engine {
	t.Helper()
	o.Dir = t.TempDir()
	e, err := Open(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = e.Close() }) // What broke it, it tells again.
	return e
}

// After a failure everybody is answered, even while Badger holds a commit up:
// the one in it, and those behind it.
func TestFailureAnswersWhoWaits(t *testing.T) {
	e := openForTest(t, Options{})
	lock, err := field(reflect.TypeFor[badger.DB](), "lock", reflect.Struct)
	if err != nil || lock.Type != reflect.TypeFor[sync.RWMutex]() {
		t.Fatal(lock.Type, err)
	}
	held := at[sync.RWMutex](unsafe.Pointer(e.db), lock.Offset)
	held.Lock()
	answers := make(chan error, 2)
	for range cap(answers) {
		w := &WriteSet{}
		w.Put(20, []byte("k"), Row{CommitTS: 1}) // The same key: two commits.
		go func() { answers <- e.Commit(w) }()
	}
	for e.committer.busySince.Load() == 0 {
		runtime.Gosched()
	}
	broken := errors.New("broken")
	e.fail(broken)
	for range cap(answers) {
		select {
		case err := <-answers:
			if !errors.Is(err, broken) {
				t.Error(err)
			}
		case <-time.After(10 * time.Second):
			t.Error("not answered")
		}
	}
	held.Unlock()
}

// A key that Badger would cut off is refused, and nothing of its commit is
// written.
func TestKeyTooLongForBadger(t *testing.T) {
	e := openForTest(t, Options{})
	w := &WriteSet{}
	w.Put(20, make([]byte, maxStoredKeyBytes-extentSizeBytes), Row{CommitTS: 1})
	if err := e.Commit(w); err != nil {
		t.Fatal(err)
	}
	w = &WriteSet{}
	w.Put(20, []byte("k"), Row{CommitTS: 1})
	w.Put(20, make([]byte, maxStoredKeyBytes), Row{CommitTS: 1})
	if err := e.Commit(w); err == nil {
		t.Error("a key was taken that the memtable cannot hold")
	}
	if _, ok, err := e.View().Get(20, []byte("k")); ok || err != nil {
		t.Error(ok, err)
	}
}

// A memtable that was written out is garbage, though nothing is committed after
// the commit that began the next one.
func TestWriterHoldsNoMemtable(t *testing.T) {
	e := openForTest(t, Options{
		MemTableSizeBytes: 64 << 10, ValueThresholdBytes: 4 << 10,
		BlockCacheSizeBytes: 1 << 20, smallTables: true,
	})
	arena := func() *byte { m := e.committer.badger.layout.of(e.db); return &m.buf[0] }
	first := weak.Make(arena())
	for i := 0; first.Value() == arena(); i++ {
		w := &WriteSet{}
		w.Put(20, []byte{1, byte(i)}, Row{CommitTS: 1, Value: make([]byte, 1000)})
		if err := e.Commit(w); err != nil {
			t.Fatal(err)
		}
	}
	for end := time.Now().Add(10 * time.Second); first.Value() != nil; runtime.GC() {
		if time.Now().After(end) {
			t.Fatal("the memtable is still in memory")
		}
	}
}

// What a caller's Commit used is used again only when nobody holds it any more:
// sets of many callers, some of several sets and commits, are all committed, once and
// in order.
func TestRequestsAreUsedAgain(t *testing.T) {
	e := openForTest(t, Options{})
	const rounds = 200
	var callers sync.WaitGroup
	for c := range 8 {
		callers.Go(func() {
			for n := 1; n <= rounds; n++ {
				sets := make([]*WriteSet, 1+(n+c)%3)
				for i := range sets {
					sets[i] = &WriteSet{}
					sets[i].Reserve(1, 4)
					sets[i].Put(20, []byte{byte(c)}, Row{
						CommitTS: ts.Timestamp(n), Value: []byte{byte(c), byte(n), byte(i), byte(len(sets))},
					})
				}
				if err := e.Commit(sets...); err != nil {
					t.Error(err)
					return
				}
				row, ok, err := e.View().Get(20, []byte{byte(c)})
				want := []byte{byte(c), byte(n), byte(len(sets) - 1), byte(len(sets))}
				if err != nil || !ok || !bytes.Equal(row.Value, want) {
					t.Errorf("%x is read after %x: %t, %v", row.Value, want, ok, err)
					return
				}
			}
		})
	}
	callers.Wait()
}
