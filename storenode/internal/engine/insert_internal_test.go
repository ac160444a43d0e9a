package engine

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"unsafe"

	"github.com/dgraph-io/badger/v4/skl"
	"github.com/dgraph-io/badger/v4/y"
)

// twoLists is a list that the inserter fills, and one that Badger does.
type twoLists struct {
	ours, theirs *skl.Skiplist
	m            memtable
	in           inserter
}

func newTwoLists(t *testing.T) *twoLists {
	t.Helper()
	layout, err := learnMemtable()
	if err != nil {
		t.Fatal(err)
	}
	l := &twoLists{ours: skl.NewSkiplist(8 << 20), theirs: skl.NewSkiplist(8 << 20)}
	l.m = layout.over(unsafe.Pointer(l.ours))
	return l
}

func (l *twoLists) insert(entries []badgerEntry) {
	l.in.insert(&l.m, entries)
	for _, en := range entries {
		l.theirs.Put(en.Key, y.ValueStruct{
			Value: en.Value, Meta: en.meta, UserMeta: en.UserMeta, ExpiresAt: en.ExpiresAt,
		})
	}
}

// randomEntries are of few keys and versions, in some order or none.
func randomEntries(r *rand.Rand) []badgerEntry {
	entries := make([]badgerEntry, 1+r.IntN(3*waysAtOnce))
	base := r.IntN(4000)
	for i := range entries {
		n := r.IntN(4000)
		if base%2 == 0 {
			n = base + i
		}
		key := y.KeyWithTs(fmt.Appendf(nil, "%0*d", 1+n%7, n), 1+r.Uint64N(3))
		entries[i] = badgerEntry{
			Key: key, Value: fmt.Append(nil, r.Uint32()), ExpiresAt: r.Uint64() >> r.IntN(64),
			meta: byte(r.Uint32()), UserMeta: byte(r.Uint32()),
		}
	}
	return entries
}

// What the inserter inserts, Badger finds as if its own Put had done it, from both
// ends and by key; also a key that comes again. Each level has what it should, and
// the memory used is that of Badger's nodes but for their random heights.
func TestInsertAsBadgerPuts(t *testing.T) {
	r := rand.New(rand.NewPCG(5, 6))
	for range 10 {
		l := newTwoLists(t)
		for range 1 + r.IntN(100) {
			l.insert(randomEntries(r))
		}
		for _, reversed := range []bool{false, true} {
			a, b := l.ours.NewUniIterator(reversed), l.theirs.NewUniIterator(reversed)
			a.Rewind()
			b.Rewind()
			for ; a.Valid() && b.Valid(); a.Next() {
				if !bytes.Equal(a.Key(), b.Key()) || fmt.Sprint(a.Value()) != fmt.Sprint(b.Value()) {
					t.Fatalf("%x %v, but %x %v", a.Key(), a.Value(), b.Key(), b.Value())
				}
				b.Next()
			}
			if a.Valid() || b.Valid() {
				t.Fatal("one of them holds more")
			}
			_, _ = a.Close(), b.Close()
		}
		for _, en := range randomEntries(r) {
			if a, b := l.ours.Get(en.Key), l.theirs.Get(en.Key); fmt.Sprint(a) != fmt.Sprint(b) {
				t.Fatalf("%x: %v, but %v", en.Key, a, b)
			}
		}
		checkLevels(t, &l.m)
		a, b := l.ours.MemSize(), l.theirs.MemSize()
		if d := a - b; d > b/20 || d < -b/20 {
			t.Errorf("%d bytes are used, by Badger's own %d", a, b)
		}
	}
}

// checkLevels follows every level: keys in order, every node on the levels below,
// and nodes exactly on the levels that they have room for.
func checkLevels(t *testing.T, m *memtable) {
	t.Helper()
	below := map[uint32]int{}
	for level := range maxTower {
		on, last := map[uint32]int{}, []byte(nil)
		for n := m.link(m.head, level).Load(); n != 0; n = m.link(n, level).Load() {
			height := int(*at[uint16](unsafe.Pointer(&m.buf[n+m.levels]), 0))
			if _, ok := below[n]; level > 0 && !ok || height <= level {
				t.Fatalf("a node of %d levels is on level %d", height, level)
			}
			if last != nil && y.CompareKeys(last, m.keyOf(n)) >= 0 {
				t.Fatalf("level %d is out of order", level)
			}
			on[n], last = height, m.keyOf(n)
		}
		for n, height := range below {
			if _, ok := on[n]; height > level && !ok {
				t.Fatalf("a node of %d levels is missing on level %d", height, level)
			}
		}
		if len(on) > 0 && level >= int(m.listHeight().Load()) {
			t.Fatalf("the list is lower than a node on level %d", level)
		}
		below = on
	}
}

// Who reads while rows are inserted finds every row of the commits before, whole and
// in order. The race detector watches.
func TestReadWhileInserting(t *testing.T) {
	l := newTwoLists(t)
	r := rand.New(rand.NewPCG(7, 8))
	var batches [][]badgerEntry
	for range 200 {
		batches = append(batches, randomEntries(r))
	}
	var done atomic.Int32 // How many are inserted.
	var readers sync.WaitGroup
	for range 2 {
		readers.Go(func() {
			for n := int32(0); n < int32(len(batches)); {
				n = done.Load()
				if n > 0 {
					for _, en := range batches[n-1] {
						if v := l.ours.Get(en.Key); v.Version != y.ParseTs(en.Key) || len(v.Value) == 0 {
							t.Errorf("%x is not found", en.Key)
							return
						}
					}
				}
				it := l.ours.NewIterator()
				last := []byte(nil)
				for it.SeekToFirst(); it.Valid(); it.Next() {
					if last != nil && y.CompareKeys(last, it.Key()) >= 0 || len(it.Value().Value) == 0 {
						t.Errorf("%x after %x", it.Key(), last)
						return
					}
					last = it.Key()
				}
				_ = it.Close()
			}
		})
	}
	for i, batch := range batches {
		l.in.insert(&l.m, batch)
		done.Store(int32(i + 1))
	}
	readers.Wait()
}
