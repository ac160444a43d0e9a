package engine

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"os"
	"reflect"
	"testing"

	"github.com/dgraph-io/badger/v4"
	"github.com/dgraph-io/badger/v4/skl"
	"github.com/dgraph-io/badger/v4/y"
)

// openedEngine is an engine in a directory of its own, closed with the test.
func openedEngine(t *testing.T) *Engine {
	t.Helper()
	e, err := Open(Options{Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := e.Close(); err != nil {
			t.Error(err)
		}
	})
	return e
}

// The types that are laid over Badger's are compared field by field; another
// name, place or kind is found.
func TestBadgerTypes(t *testing.T) {
	if err := checkBadgerTypes(); err != nil {
		t.Error(err)
	}
	theirs := reflect.TypeFor[struct{ Fid, Len, Offset uint32 }]()
	for _, ours := range []reflect.Type{
		reflect.TypeFor[struct{ Fid, Len, Other uint32 }](),
		reflect.TypeFor[struct{ Fid, Len uint32 }](),
		reflect.TypeFor[struct{ Len, Fid, Offset uint32 }](),
		reflect.TypeFor[struct{ Fid, Len, Offset int32 }](),
	} {
		if err := sameFields(theirs, ours); err == nil {
			t.Errorf("%v is taken for %v", ours, theirs)
		}
	}
}

// What the writer writes is, byte for byte, what Badger's Txn writes: the log
// of the memtable says so.
func TestWriterWritesWhatTxnWrites(t *testing.T) {
	openBadger := func() *badger.DB {
		o := Options{Dir: t.TempDir()}.withDefaults()
		db, err := badger.OpenManaged(o.badger())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := db.Close(); err != nil {
				t.Error(err)
			}
		})
		return db
	}
	ours, theirs := openBadger(), openBadger()
	w, err := newBadgerWriter(ours)
	if err != nil {
		t.Fatal(err)
	}
	for seq := Seq(1); seq < 50; seq++ {
		// One entry, as a Txn orders several by chance.
		key, value := fmt.Appendf(nil, "d%d", rand.IntN(9)), make([]byte, rand.IntN(300))
		txn := theirs.NewTransactionAt(0, true)
		w.begin(2, len(key)+len(badgerTxnKey))
		switch rand.IntN(3) {
		case 0:
			err = txn.Delete(key)
			w.add(seq, key, nil, 0, metaTxn|metaDelete)
		case 1:
			e := badger.NewEntry(key, value)
			e.ExpiresAt = deleteMarkExpiry
			err = txn.SetEntry(e)
			w.add(seq, key, value, deleteMarkExpiry, metaTxn)
		default:
			err = txn.Set(key, value)
			w.add(seq, key, value, 0, metaTxn)
		}
		if err == nil {
			err = txn.CommitAt(uint64(seq), nil)
		}
		if err == nil {
			err = w.commit(seq)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	read := func(db *badger.DB) []byte {
		dir := db.Opts().Dir
		files, err := memFiles(dir)
		if err != nil || len(files) != 1 {
			t.Fatal(files, err)
		}
		b, err := os.ReadFile(memPath(dir, files[0]))
		if err != nil {
			t.Fatal(err)
		}
		return b[memHeaderBytes:] // The header holds a random number.
	}
	if a, b := read(ours), read(theirs); !bytes.Equal(a, b) || len(bytes.Trim(a, "\x00")) < 1000 {
		t.Error("the logs differ")
	}
}

// The ways that are warmed are the ones that an insert goes: each ends at the
// nodes between which Badger would put its key.
func TestWarmerFindsTheWay(t *testing.T) {
	e := openedEngine(t)
	random := func() []byte { return binary.BigEndian.AppendUint64(nil, rand.Uint64N(1<<14)) }
	commit := func(rows int) {
		w := &WriteSet{}
		for range rows {
			w.Put(20, random(), Row{CommitTS: 1, Value: make([]byte, rand.IntN(200))})
		}
		if err := e.Commit(w); err != nil {
			t.Fatal(err)
		}
	}
	w := e.committer.badger.warm
	for range 30 {
		commit(500)
		entries := make([]badgerEntry, rand.IntN(warmWays+1))
		for i := range entries {
			key := appendExtentKey(nil, kindData, 20, random())
			entries[i].Key = y.KeyWithTs(key, uint64(e.Visible())+1)
		}
		w.leastBytes = 0
		w.warm(entries)
		list, buf := w.memtable()
		for i, en := range entries {
			if w.ways[i].level != 0 {
				t.Fatalf("a way ends on level %d", w.ways[i].level)
			}
			it := (*skl.Skiplist)(list).NewIterator()
			it.SeekForPrev(en.Key)
			if !it.Valid() != (w.ways[i].at == w.start(list, buf).at) ||
				it.Valid() && !bytes.Equal(it.Key(), w.keyOf(buf, w.ways[i].at)) {
				t.Fatalf("the way to %x ends elsewhere", en.Key)
			}
			it.Seek(en.Key)
			if it.Valid() != (w.ways[i].next != 0) ||
				it.Valid() && !bytes.Equal(it.Key(), w.keyOf(buf, w.ways[i].next)) {
				t.Fatalf("after the way to %x comes another node", en.Key)
			}
			if err := it.Close(); err != nil {
				t.Fatal(err)
			}
		}
	}
}
