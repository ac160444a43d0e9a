package engine

import (
	"encoding/binary"
	"fmt"
	"math"
	"reflect"
	"strconv"
	"sync"
	"sync/atomic"
	_ "unsafe" // for go:linkname

	"github.com/dgraph-io/badger/v4"
)

// This file, badgerread.go, memtable.go, insert.go, memlog.go and builders.go are the
// only ones that reach past Badger's public interface. newBadgerWriter refuses to work
// with a Badger whose types are not the ones below and in memtable.go; linkname.s lets
// the compiler accept a function without a body.

// writeRequests is what Badger's own writer calls with the requests of its
// transactions, from one goroutine at a time. As nothing else in this package
// commits a Txn, that goroutine is the committer.
//
//go:linkname writeRequests github.com/dgraph-io/badger/v4.(*DB).writeRequests
func writeRequests(db *badger.DB, reqs []*badgerRequest) error

// ensureRoomForWrite is what writeRequests calls before it writes the entries of a
// request into the memtable: a full one is handed to who writes it out, and a new one
// begun.
//
//go:linkname ensureRoomForWrite github.com/dgraph-io/badger/v4.(*DB).ensureRoomForWrite
func ensureRoomForWrite(db *badger.DB) error

// badgerRequest has the fields of Badger's request.
type badgerRequest struct {
	Entries []*badgerEntry
	Ptrs    []badgerPointer
	Wg      sync.WaitGroup
	Err     error
	_       atomic.Int32 // ref
}

// badgerEntry has the fields of badger.Entry.
type badgerEntry struct {
	Key       []byte
	Value     []byte
	ExpiresAt uint64
	version   uint64
	_         uint32 // offset
	UserMeta  byte
	meta      byte
	_         int   // hlen
	_         int64 // valThreshold
}

// badgerPointer has the fields of Badger's valuePointer.
type badgerPointer struct{ Fid, Len, Offset uint32 }

// metaDelete marks a deletion in an entry's meta, beside those that recover.go
// knows.
const metaDelete = 1 << 0

// badgerTxnKey is the key of the mark that ends each commit in the log of a
// memtable.
const badgerTxnKey = "!badger!txn"

// badgerWriter writes commits into Badger as a Txn would, without its map of
// pending writes, its copies and its three goroutines: the entries are in
// memory that the next commit uses again, as the memtable keeps copies. Not
// for concurrent use.
//
// A commit goes into the log of the memtable, then into its skiplist, by code of our
// own. Badger's does it entry by entry, with seven objects for each and a search from
// the top, counts the sizes of values for a threshold that moves, which ours does not,
// and wakes a goroutine for that. What is not the common case, it still does.
//
// The whole commit is in the log before the first row is in the skiplist; Badger has
// them by turns. Nobody can tell: rows of a commit are not read before it is visible,
// and a memtable is written out when the next one was begun, which is between two
// commits.
type badgerWriter struct {
	db       *badger.DB
	layout   *memtableLayout
	inserter inserter
	// badgers is set when Badger has been told to do more than our code does.
	badgers bool
	// thresholdBytes is the size from which values go into Badger's value log.
	thresholdBytes int64
	entries        []badgerEntry
	// keys holds the keys of entries, with their versions.
	keys   []byte
	finish []byte
}

func newBadgerWriter(db *badger.DB) (*badgerWriter, error) {
	if err := checkBadgerTypes(); err != nil {
		return nil, err
	}
	o := db.Opts()
	layout, err := learnMemtable()
	return &badgerWriter{
		db: db, layout: layout, thresholdBytes: o.ValueThreshold,
		badgers: o.SyncWrites || o.MetricsEnabled || o.InMemory || o.VLogPercentile > 0 ||
			len(o.EncryptionKey) > 0,
	}, err
}

// begin starts the next commit, of at most so many entries and bytes of keys.
func (w *badgerWriter) begin(entries, keySizeBytes int) {
	const keep = 1 << 20 // A large commit's memory is not kept.
	if entries > cap(w.entries) || cap(w.entries) > keep/64 && entries < keep/256 {
		w.entries = make([]badgerEntry, 0, entries)
	}
	keySizeBytes += entries * versionBytes
	if keySizeBytes > cap(w.keys) || cap(w.keys) > keep && keySizeBytes < keep/4 {
		w.keys = make([]byte, 0, keySizeBytes)
	}
	clear(w.entries)
	w.entries, w.keys = w.entries[:0], w.keys[:0]
}

// add appends an entry. The value must stay as it is until commit returns.
func (w *badgerWriter) add(seq Seq, key, value []byte, expiresAt uint64, meta byte) {
	from := len(w.keys)
	w.keys = binary.BigEndian.AppendUint64(append(w.keys, key...), math.MaxUint64-uint64(seq))
	w.entries = append(w.entries, badgerEntry{
		Key: w.keys[from:len(w.keys):len(w.keys)], Value: value,
		ExpiresAt: expiresAt, version: uint64(seq), meta: meta,
	})
}

// commit writes the entries added since begin and the mark that ends them.
func (w *badgerWriter) commit(seq Seq) error {
	rows := len(w.entries)
	w.finish = strconv.AppendUint(w.finish[:0], uint64(seq), 10)
	w.add(seq, []byte(badgerTxnKey), w.finish, 0, metaFinTxn)
	ours, records, memory := !w.badgers, 0, 0
	for i := range w.entries {
		en := &w.entries[i]
		ours = ours && int64(len(en.Value)) < w.thresholdBytes
		records += recordBytes(en)
		memory += w.layout.entryBytes(en)
	}
	if !ours {
		return w.commitByBadger()
	}
	if err := ensureRoomForWrite(w.db); err != nil {
		return err
	}
	m := w.layout.of(w.db)
	log, writeAt := m.log()
	log = log[*writeAt:]
	if records+maxRecordHeaderBytes > len(log) || int(m.usedBytes().Load())+memory > len(m.buf) {
		return w.commitByBadger()
	}
	*writeAt += uint32(putRecords(log, w.entries))
	w.inserter.insert(&m, w.entries[:rows])
	newest := at[uint64](m.mt, m.maxVersion)
	*newest = max(*newest, uint64(seq))
	return nil
}

// commitByBadger writes the entries as Badger does.
func (w *badgerWriter) commitByBadger() error {
	request := &badgerRequest{Entries: make([]*badgerEntry, len(w.entries))}
	for i := range w.entries {
		request.Entries[i] = &w.entries[i]
	}
	request.Wg.Add(1)
	return writeRequests(w.db, []*badgerRequest{request})
}

// checkBadgerTypes compares the types above with Badger's own, which a value
// of the type DB leads to.
func checkBadgerTypes() error {
	ch, ok := reflect.TypeFor[badger.DB]().FieldByName("writeCh")
	if !ok || ch.Type.Kind() != reflect.Chan || ch.Type.Elem().Kind() != reflect.Pointer {
		return errBadgerMoved("DB.writeCh")
	}
	request := ch.Type.Elem().Elem()
	if err := sameFields(request, reflect.TypeFor[badgerRequest]()); err != nil {
		return err
	}
	pointers, _ := request.FieldByName("Ptrs")
	if err := sameFields(pointers.Type.Elem(), reflect.TypeFor[badgerPointer]()); err != nil {
		return err
	}
	return sameFields(reflect.TypeFor[badger.Entry](), reflect.TypeFor[badgerEntry]())
}

// sameFields reports the first field in which two structs differ; ours named _
// may have any name. Pointers and slices are the same when both are: what they
// lead to is compared apart.
func sameFields(theirs, ours reflect.Type) error {
	if theirs.Kind() != reflect.Struct || theirs.NumField() != ours.NumField() ||
		theirs.Size() != ours.Size() {
		return errBadgerMoved(theirs.String())
	}
	for i := range ours.NumField() {
		t, o := theirs.Field(i), ours.Field(i)
		if t.Name != o.Name && o.Name != "_" || t.Offset != o.Offset || t.Type.Kind() != o.Type.Kind() ||
			t.Type.Size() != o.Type.Size() {
			return errBadgerMoved(theirs.String() + "." + t.Name)
		}
	}
	return nil
}

func errBadgerMoved(what string) error {
	return fmt.Errorf("engine: this Badger's %s is not as the engine knows it", what)
}

// field finds a field of one of Badger's structs, which must have this kind.
func field(t reflect.Type, name string, kind reflect.Kind) (reflect.StructField, error) {
	if t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	f, ok := t.FieldByName(name)
	if !ok || f.Type.Kind() != kind {
		return f, errBadgerMoved(t.String() + "." + name)
	}
	return f, nil
}
