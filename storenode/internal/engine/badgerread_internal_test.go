package engine

import (
	"bytes"
	"fmt"
	"testing"

	"github.com/dgraph-io/badger/v4"
	"pgregory.net/rapid"

	"github.com/ridgekv/ridge/proto/keys"
	"github.com/ridgekv/ridge/proto/ts"
)

// TestForwardIsBadgers: a forward scan sees what Badger's own iterator gives, over
// memtables, tables of level 0 and below, and the value log, at the newest versions
// and at older ones.
func TestForwardIsBadgers(t *testing.T) {
	dirs := t
	rapid.Check(t, func(t *rapid.T) {
		e, err := Open(Options{
			Dir: dirs.TempDir(), MemTableSizeBytes: 64 << 10, ValueThresholdBytes: 4 << 10,
			smallTables: true,
		})
		if err != nil {
			t.Fatal(err)
		}
		defer func() {
			if err := e.Close(); err != nil {
				t.Error(err)
			}
		}()
		x := firstExtent
		var now ts.Timestamp
		var views []View
		for range rapid.IntRange(1, 6).Draw(t, "rounds") {
			for range rapid.IntRange(1, 30).Draw(t, "commits") {
				w := &WriteSet{}
				now++
				key := fmt.Appendf(nil, "%c", 'a'+rapid.IntRange(0, 9).Draw(t, "key"))
				if rapid.IntRange(0, 4).Draw(t, "delete") == 0 {
					w.Delete(x, key, now)
				} else {
					n := rapid.SampledFrom([]int{0, 5, 3000, 5000}).Draw(t, "size")
					w.Put(x, key, Row{CommitTS: now, Value: bytes.Repeat(key, n)})
				}
				if err := e.Commit(w); err != nil {
					t.Fatal(err)
				}
			}
			views = append(views, e.View())
			if rapid.Bool().Draw(t, "flatten") {
				if err := e.db.Flatten(1); err != nil {
					t.Fatal(err)
				}
			}
		}
		for _, v := range views {
			o := ScanOptions{
				Slices: []Slice{{Extent: x}},
				At:     ts.Timestamp(rapid.Uint64Range(0, uint64(now)).Draw(t, "at")),
				Span:   keys.Span{Start: []byte("b"), End: []byte("h")},
			}
			want := badgersRows(t, v, o)
			var got []string
			if err := v.Visit(o, func(key []byte, row Row) bool {
				got = append(got, fmt.Sprintf("%s=%d@%d", key, len(row.Value), row.CommitTS))
				return true
			}); err != nil || fmt.Sprint(got) != fmt.Sprint(want) {
				t.Fatalf("at %d of %d: got %v, %v, want %v", o.At, v.seq, got, err, want)
			}
		}
	})
}

// badgersRows is the scan of o by Badger's iterator over all versions.
func badgersRows(t *rapid.T, v View, o ScanOptions) (rows []string) {
	b := boundsOf(kindData, o.Slices[0].Extent, o.Span)
	it := v.txn.NewIterator(badger.IteratorOptions{AllVersions: true})
	defer it.Close()
	var decided []byte
	for it.Seek(b.lo); it.Valid() && bytes.Compare(it.Item().Key(), b.hi) < 0; it.Next() {
		key := it.Item().KeyCopy(nil)
		if bytes.Equal(key, decided) {
			continue
		}
		row, erased, err := itemRow(it.Item())
		if err != nil || erased {
			t.Fatal(erased, err)
		}
		if o.At != 0 && row.CommitTS > o.At {
			continue
		}
		if decided = key; !row.Deleted {
			rows = append(rows,
				fmt.Sprintf("%s=%d@%d", key[extentSizeBytes:], len(row.Value), row.CommitTS))
		}
	}
	return rows
}

func TestMovedIteratorIsRefused(t *testing.T) {
	if err := checkBadgerIterator(); err != nil {
		t.Fatal(err)
	}
}
