package engine

import (
	"bufio"
	"bytes"
	"os"
	"path/filepath"
	"testing"

	"github.com/ridgekv/ridge/proto/keys"
	"github.com/ridgekv/ridge/proto/ts"
)

func FuzzRow(f *testing.F) {
	for _, r := range []Row{
		{CommitTS: 1, Value: []byte("v")}, {CommitTS: 2, ExpiresAt: 3}, {CommitTS: 4, Deleted: true},
	} {
		f.Add(appendRow(nil, r))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := decodeRow(b)
		if err != nil {
			return
		}
		if got := appendRow(nil, r); !bytes.Equal(got, b) {
			t.Errorf("%x decodes to %+v, which encodes to %x", b, r, got)
		}
		if at, err := rowCommitTS(b); err != nil || at != r.CommitTS {
			t.Errorf("commit_ts %d, %v; want %d", at, err, r.CommitTS)
		}
	})
}

// The encoding is on disk and in images: it must not change by accident.
func TestRowGolden(t *testing.T) {
	for want, r := range map[string]Row{
		"\x01\x00\x00\x00\x00\x00\x00\x01\x02\x00v":                                 {CommitTS: 0x102, Value: []byte("v")},
		"\x01\x00\x00\x00\x00\x00\x00\x00\x03\x01\x00\x00\x00\x00\x00\x00\x00\x04v": {CommitTS: 3, ExpiresAt: 4, Value: []byte("v")},
		"\x01\x00\x00\x00\x00\x00\x00\x00\x05\x02":                                  {CommitTS: 5, Deleted: true},
	} {
		if got := string(appendRow(nil, r)); got != want {
			t.Errorf("%+v: %q, want %q", r, got, want)
		}
	}
	if got := string(appendExtentKey(nil, kindData, 0x10203, []byte("k"))); got != "d\x00\x01\x02\x03k" {
		t.Errorf("key %q", got)
	}
	if got := string(rangeKey(kindApplied, 7)); got != "a\x00\x00\x00\x00\x00\x00\x00\x07" {
		t.Errorf("range key %q", got)
	}
}

func FuzzGarbage(f *testing.F) {
	f.Add([]byte{recordVersion, 10, 2, 8, 3})
	f.Fuzz(func(t *testing.T, b []byte) { _, _ = decodeGarbage(b) })
}

func FuzzMemFile(f *testing.F) {
	dir := f.TempDir()
	o := Options{Dir: dir, smallTables: true, MemTableSizeBytes: 64 << 10, ValueThresholdBytes: 4 << 10}
	e, err := Open(o)
	if err != nil {
		f.Fatal(err)
	}
	for i := range ts.Timestamp(5) {
		var w WriteSet
		w.Put(20, []byte("k"), Row{CommitTS: i})
		if err := e.Commit(&w); err != nil {
			f.Fatal(err)
		}
	}
	b, err := os.ReadFile(filepath.Join(dir, "00001.mem"))
	if err != nil {
		f.Fatal(err)
	}
	if err := e.Close(); err != nil {
		f.Fatal(err)
	}
	f.Add(b[memHeaderBytes:2048])
	f.Fuzz(func(t *testing.T, b []byte) {
		log, err := readMemLog(bufio.NewReader(bytes.NewReader(b)))
		if err == nil && log.commits > 0 && log.last-log.first != Seq(log.commits-1) {
			t.Errorf("%d commits from %d to %d", log.commits, log.first, log.last)
		}
		if log.endBytes > int64(len(b))+memHeaderBytes {
			t.Errorf("ends at %d of %d", log.endBytes, len(b))
		}
	})
}

func TestBounds(t *testing.T) {
	for _, test := range []struct{ start, end, lo, hi, prefix string }{
		{"", "", "d\x00\x00\x00\x01", "d\x00\x00\x00\x02", "d\x00\x00\x00\x01"},
		{"ab", "", "d\x00\x00\x00\x01ab", "d\x00\x00\x00\x02", "d\x00\x00\x00\x01"},
		{"abc", "abd", "d\x00\x00\x00\x01abc", "d\x00\x00\x00\x01abd", "d\x00\x00\x00\x01ab"},
		{"", "b", "d\x00\x00\x00\x01", "d\x00\x00\x00\x01b", "d\x00\x00\x00\x01"},
	} {
		b := boundsOf(kindData, 1, keys.Span{Start: []byte(test.start), End: []byte(test.end)})
		if string(b.lo) != test.lo || string(b.hi) != test.hi || string(b.prefix) != test.prefix {
			t.Errorf("%q..%q: %q", test.start, test.end, b)
		}
	}
}
