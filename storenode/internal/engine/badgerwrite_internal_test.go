package engine

import (
	"bytes"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"reflect"
	"slices"
	"testing"

	"github.com/dgraph-io/badger/v4"
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

func openedBadger(t *testing.T, o Options) *badger.DB {
	t.Helper()
	if o.Dir == "" {
		o.Dir = t.TempDir()
	}
	db, err := badger.OpenManaged(o.withDefaults().badger())
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

// onlyLog is what the only *.mem file holds, without its header, which has a random
// number.
func onlyLog(t *testing.T, db *badger.DB) []byte {
	t.Helper()
	dir := db.Opts().Dir
	files, err := memFiles(dir)
	if err != nil || len(files) != 1 {
		t.Fatal(files, err)
	}
	b, err := os.ReadFile(memPath(dir, files[0]))
	if err != nil {
		t.Fatal(err)
	}
	return b[memHeaderBytes:]
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
	ours, theirs := openedBadger(t, Options{}), openedBadger(t, Options{})
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
	if a, b := onlyLog(t, ours), onlyLog(t, theirs); !bytes.Equal(a, b) || len(bytes.Trim(a, "\x00")) < 1000 {
		t.Error("the logs differ")
	}
}

// A commit of several rows is in the log and in the memtable as Badger's own writer
// would have it, also where the memtable is full, and where values are so large
// that Badger writes them.
func TestWriterWritesWhatBadgerWrites(t *testing.T) {
	for _, o := range []Options{
		{},
		{MemTableSizeBytes: 64 << 10, ValueThresholdBytes: 4 << 10, smallTables: true},
	} {
		ours, theirs := openedBadger(t, o), openedBadger(t, o)
		var writers []*badgerWriter
		for _, db := range []*badger.DB{ours, theirs} {
			w, err := newBadgerWriter(db)
			if err != nil {
				t.Fatal(err)
			}
			writers = append(writers, w)
		}
		writers[1].badgers = true
		random := rand.New(rand.NewPCG(1, 2))
		for seq := Seq(1); seq < 200; seq++ {
			writeRandom(t, random, seq, writers...)
		}
		if o.MemTableSizeBytes == 0 {
			if a, b := onlyLog(t, ours), onlyLog(t, theirs); !bytes.Equal(a, b) {
				t.Error("the logs differ")
			}
		}
		if a, b := allVersions(t, ours), allVersions(t, theirs); !slices.Equal(a, b) {
			t.Errorf("%d versions and %d, or others", len(a), len(b))
		}
		a, b := writers[0].layout.of(ours), writers[1].layout.of(theirs)
		if x, y := *at[uint64](a.mt, a.maxVersion), *at[uint64](b.mt, b.maxVersion); x != y || x == 0 {
			t.Errorf("the newest version is %d and %d", x, y)
		}
	}
}

// writeRandom writes one commit, the same by all writers.
func writeRandom(t *testing.T, random *rand.Rand, seq Seq, writers ...*badgerWriter) {
	t.Helper()
	rows := 1 + random.IntN(40)
	for _, w := range writers {
		w.begin(rows+1, rows*30+len(badgerTxnKey))
	}
	for i := range rows {
		// As in a commit: in order, the last few not.
		key, size := fmt.Appendf(nil, "d%03d%0*d", i*20+random.IntN(20), random.IntN(9), i), random.IntN(99)
		if i > 3 && i == rows-1 {
			key = []byte("c")
		}
		if random.IntN(300) == 0 {
			size = 8 << 10
		}
		value := make([]byte, size)
		for j := range value {
			value[j] = byte(random.Uint32())
		}
		expiresAt, meta := uint64(0), byte(metaTxn)
		switch random.IntN(5) {
		case 0:
			value, meta = nil, metaTxn|metaDelete
		case 1:
			expiresAt = deleteMarkExpiry
		case 2:
			expiresAt = 1 << 50
		}
		for _, w := range writers {
			w.add(seq, key, value, expiresAt, meta)
		}
	}
	for _, w := range writers {
		if err := w.commit(seq); err != nil {
			t.Fatal(err)
		}
	}
}

// allVersions are all that db holds.
func allVersions(t *testing.T, db *badger.DB) []string {
	t.Helper()
	txn := db.NewTransactionAt(math.MaxUint64, false)
	defer txn.Discard()
	it := txn.NewIterator(badger.IteratorOptions{AllVersions: true})
	defer it.Close()
	var out []string
	for it.Rewind(); it.Valid(); it.Next() {
		i := it.Item()
		v, err := i.ValueCopy(nil)
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, fmt.Sprintf("%s@%d %x until %d, deleted %t",
			i.Key(), i.Version(), v, i.ExpiresAt(), i.IsDeletedOrExpired()))
	}
	return out
}

// A log that was cut off anywhere is read back by Badger, and by recovery, as the
// commits that were whole.
func TestTornLogIsAPrefix(t *testing.T) {
	db := openedBadger(t, Options{})
	w, err := newBadgerWriter(db)
	if err != nil {
		t.Fatal(err)
	}
	random := rand.New(rand.NewPCG(3, 4))
	ends, versions := []int{memHeaderBytes}, [][]string{nil}
	for seq := Seq(1); ends[len(ends)-1] < 900 && seq < 100; seq++ {
		rows := 1 + random.IntN(3)
		w.begin(rows+1, rows*9+len(badgerTxnKey))
		for i := range rows {
			w.add(seq, fmt.Appendf(nil, "d%d", i), make([]byte, random.IntN(40)), 0, metaTxn)
		}
		if err := w.commit(seq); err != nil {
			t.Fatal(err)
		}
		m := w.layout.of(db)
		_, writeAt := m.log()
		ends, versions = append(ends, int(*writeAt)), append(versions, allVersions(t, db))
	}
	dir := db.Opts().Dir
	files, err := memFiles(dir)
	if err != nil {
		t.Fatal(err)
	}
	whole, err := os.ReadFile(memPath(dir, files[0]))
	if err != nil {
		t.Fatal(err)
	}
	path := memPath(t.TempDir(), 1)
	small := Options{MemTableSizeBytes: 64 << 10, ValueThresholdBytes: 4 << 10, smallTables: true}
	last := ends[len(ends)-1]
	for cut := memHeaderBytes; cut <= last; cut++ {
		commits := 0
		for commits+1 < len(ends) && ends[commits+1] <= cut {
			commits++
		}
		torn := make([]byte, last+100)
		copy(torn, whole[:cut])
		if err := os.WriteFile(path, torn, 0o600); err != nil {
			t.Fatal(err)
		}
		log, err := readMemFile(path)
		if err != nil || log.commits != commits || log.endBytes != int64(ends[commits])*int64(min(commits, 1)) {
			t.Fatalf("cut at %d: %d commits up to byte %d, %v; they are %d",
				cut, log.commits, log.endBytes, err, commits)
		}
		if cut < ends[len(ends)-3] && cut%7 != 0 {
			continue // Badger takes its time to open.
		}
		small.Dir = t.TempDir()
		if err := os.WriteFile(memPath(small.Dir, 1), torn, 0o600); err != nil {
			t.Fatal(err)
		}
		if got := allVersions(t, openedBadger(t, small)); !slices.Equal(got, versions[commits]) {
			t.Fatalf("cut at %d: Badger reads %d versions, of %d commits", cut, len(got), commits)
		}
	}
}
