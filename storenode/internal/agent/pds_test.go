package agent

import (
	"fmt"
	"testing"

	"github.com/ridgekv/ridge/storenode/internal/engine"
)

// TestPDsAreKept: where PD is outlives the process, and is written once.
func TestPDsAreKept(t *testing.T) {
	dir := t.TempDir()
	o := engine.Options{Dir: dir, MemTableSizeBytes: 32 << 20}
	for run, list := range [][]string{{"a:1", "b:1"}, {"b:1", "c:1"}, {"c:1"}} {
		e, err := engine.Open(o)
		if err != nil {
			t.Fatal(err)
		}
		known, err := KnownPDs(e)
		want := [][]string{nil, {"a:1", "b:1"}, {"b:1", "c:1"}}[run]
		if err != nil || fmt.Sprint(known) != fmt.Sprint(want) {
			t.Fatalf("run %d: %v, %v", run, known, err)
		}
		seq := e.Visible()
		for range 3 {
			if known, err = keepPDs(e, known, list); err != nil {
				t.Fatal(err)
			}
		}
		if wrote := e.Visible() - seq; wrote != 1 {
			t.Errorf("run %d: %d commits", run, wrote)
		}
		if err := e.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

func FuzzDecodePDs(f *testing.F) {
	b, err := encodePDs([]string{"a:1"})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Add([]byte{pdFormat, 9, 9})
	f.Fuzz(func(t *testing.T, b []byte) {
		list, err := decodePDs(b)
		for _, a := range list {
			if err != nil || a == "" {
				t.Fatalf("accepted %q, %v", a, err)
			}
		}
	})
}
