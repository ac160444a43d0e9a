package smoke

import (
	"path/filepath"
	"testing"
	"time"
)

func TestParse(t *testing.T) {
	got := parse("engine", `goos: linux
BenchmarkCommit/rows=500/callers=4-2   100	 2000 ns/op	 250000 rows/s	 640 B/op	 12 allocs/op
BenchmarkGet/cache/hit-2 	 500000	 1600.5 ns/op	 0 B/op	 0 allocs/op
PASS`)
	want := []Seen{
		{Name: "engine/Commit/rows=500/callers=4", NsPerOp: 2000, Bytes: 640, Allocs: 12, Rows: 250000},
		{Name: "engine/Get/cache/hit", NsPerOp: 1600.5},
	}
	if len(got) != 2 || got[0] != want[0] || got[1] != want[1] {
		t.Fatalf("got %+v", got)
	}
}

func TestCompare(t *testing.T) {
	was := &Line{
		Allocs: map[string]int64{"engine/Get/cache/hit": 0, "client/RoundTrip/get": 100},
		Ratios: map[string]float64{"fell": 1, "noise": 1, "rose": 1},
	}
	now := Line{
		Allocs: map[string]int64{"engine/Get/cache/hit": 1, "client/RoundTrip/get": 103, "new": 7},
		Ratios: map[string]float64{"fell": 0.6, "noise": 0.7, "rose": 2},
	}
	worse := map[string]bool{}
	for _, c := range Compare(was, now, IsExact, Bounds{Ratio: 0.35, Allocs: 0.03}) {
		worse[c.Name] = c.Worse
	}
	for name, want := range map[string]bool{
		"engine/Get/cache/hit": true, "client/RoundTrip/get": false, "new": false,
		"fell": true, "noise": false, "rose": false,
	} {
		if got, told := worse[name]; !told || got != want {
			t.Errorf("%s: told %t, worse %t, want %t", name, told, got, want)
		}
	}
	for _, c := range Compare(nil, now, IsExact, Bounds{}) {
		if c.Worse || c.Known {
			t.Errorf("the first line cannot be worse: %+v", c)
		}
	}
}

func TestHistory(t *testing.T) {
	path := filepath.Join(t.TempDir(), "smoke.jsonl")
	if last, err := Last(path); last != nil || err != nil {
		t.Fatal(last, err)
	}
	day := time.Date(2026, 11, 22, 0, 0, 0, 0, time.UTC)
	// As after a merge: the newest is not the last.
	for i, commit := range []string{"b", "c", "a"} {
		at := day.Add(time.Duration([]int{1, 2, 0}[i]) * time.Hour)
		if err := (Line{Date: at, Commit: commit}).Append(path); err != nil {
			t.Fatal(err)
		}
	}
	if last, err := Last(path); err != nil || last.Commit != "c" {
		t.Fatal(last, err)
	}
}
