package cluster

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math"
	"slices"
	"strings"
	"testing"

	"github.com/ridgekv/ridge/proto/keys"
	"github.com/ridgekv/ridge/tests/harness"
)

// benchReport is the part of the report that scripts live on.
type benchReport struct {
	Config struct {
		Workload, Distribution string
		Seed                   uint64
	}
	Operations          int64
	Failed              int64   `json:"failed_operations"`
	OperationsPerSecond float64 `json:"operations_per_second"`
	Kinds               []struct {
		Kind    string
		Rows    int64
		Missing int64 `json:"missing_keys"`
		P50Us   int64 `json:"p50_us"`
		P99Us   int64 `json:"p99_us"`
		MaxUs   int64 `json:"max_us"`
	}
	OpenLoop *struct {
		Due        int64 `json:"due_operations"`
		NotStarted int64 `json:"not_started_operations"`
	} `json:"open_loop"`
}

func parseBench(t *testing.T, r harness.Result) benchReport {
	t.Helper()
	var out benchReport
	if err := json.Unmarshal([]byte(r.Out), &out); err != nil {
		t.Fatalf("%v in %s", err, r)
	}
	return out
}

// TestBench: the keyspace is split and filled, every workload runs without a
// failure and finds the keys it reads, and what is wrong is told.
func TestBench(t *testing.T) {
	t.Parallel()
	c := harness.New(t, harness.Options{})
	contains(t, c.Run(t, 1, "bench", "run", "-w", "read", "--keys", "1000"),
		"64 of 64 that were looked at are missing", "ridge bench load --keys 1000")
	contains(t, c.Run(t, 2, "bench", "run", "-w", "nothing", "--callers", "0"),
		"--workload", "--callers")

	const n = 4
	c.Run(t, 0, "put", "bench", "below")
	c.Run(t, 0, "put", "bench0", "above") // '0' comes behind '/'
	loaded := c.Run(t, 0, "bench", "load", "--keys", "5000", "--presplit", fmt.Sprint(n),
		"--batch-size", "700")
	contains(t, loaded, "4 ranges; led by store 1: ", "loaded 5,000 keys of 128 B")
	if strings.Contains(loaded.Err, "unevenly") {
		t.Errorf("the leaders are not spread: %s", loaded)
	}
	checkBenchRanges(t, c, n)

	// The runs end by count: in a window of some time that follows a warm-up, a
	// busy machine may not begin a single operation.
	for _, w := range strings.Fields("a b c d e f read write scan batch batch-read batch-write hot") {
		t.Run(w, func(t *testing.T) {
			r := parseBench(t, c.Run(t, 0, "bench", "run", "-w", w, "--keys", "5000", "-o", "json",
				"--callers", "8", "--operations", "300", "--warmup", "30ms", "--fail-on-error",
				"--scan-length", "20", "--batch-size", "16", "--seed", "5"))
			if r.Operations != 300 || r.Failed != 0 || r.OperationsPerSecond <= 0 || r.Config.Seed != 5 ||
				r.Config.Workload != w {
				t.Errorf("%+v", r)
			}
			for _, k := range r.Kinds {
				if k.Missing != 0 || k.Rows == 0 || k.P50Us <= 0 || k.P99Us < k.P50Us || k.MaxUs < k.P99Us {
					t.Errorf("%+v", k)
				}
			}
		})
	}
	for _, level := range []string{"stale", "snapshot"} {
		r := parseBench(t, c.Run(t, 0, "bench", "run", "-w", "b", "--keys", "5000", "-o", "json",
			"--callers", "8", "--operations", "500", "--warmup", "0", "--fail-on-error", "--consistency", level))
		if r.Operations != 500 {
			t.Errorf("%s: %+v", level, r)
		}
	}
	checkOpenLoop(t, c)

	contains(t, c.Run(t, 0, "bench", "clean"), "removed ")
	expect(t, c.Run(t, 0, "scan", "--from", "bench", "--to", "bench1").Out, "bench\tbelow\nbench0\tabove\n")
}

// checkBenchRanges: the keyspace is n ranges with equal shares, cut off from
// its neighbours, and each has a leader.
func checkBenchRanges(t *testing.T, c *harness.Cluster, n int) {
	t.Helper()
	routes, err := c.Routes(t.Context())
	harness.Must(t, err)
	var starts []string
	for _, r := range routes {
		span := keys.FromProto(r.GetRange().GetSpan())
		if bytes.HasPrefix(span.Start, []byte("bench/")) {
			starts = append(starts, string(span.Start))
		}
		if r.GetLeader().GetStoreId() == 0 {
			t.Errorf("range %d has no leader", r.GetRange().GetRangeId())
		}
	}
	want := []string{"bench/", "bench/4000000000000000", "bench/8000000000000000", "bench/c000000000000000"}
	if !slices.Equal(starts, want) || len(routes) != n+2 {
		t.Errorf("ranges begin at %q, %d in all", starts, len(routes))
	}
}

func checkOpenLoop(t *testing.T, c *harness.Cluster) {
	t.Helper()
	r := c.Run(t, 0, "bench", "run", "-w", "read", "--keys", "5000", "--rate", "200", "--callers", "32",
		"--duration", "1s", "--warmup", "100ms", "--progress", "always", "-o", "json")
	contains(t, r, " ops/s  p50 ")
	b := parseBench(t, r)
	if b.OpenLoop == nil || b.OpenLoop.Due != 200 || b.OpenLoop.NotStarted != 0 || b.Operations != 200 {
		t.Errorf("%s", r)
	}
	if math.Abs(b.OperationsPerSecond-200) > 20 {
		t.Errorf("%.0f operations/s", b.OperationsPerSecond)
	}
	contains(t, c.Run(t, 0, "bench", "run", "-w", "hot", "--keys", "5000", "--operations", "100",
		"--warmup", "0"),
		"OPERATION", "P99.9", "read", "update", "all", "workload hot (uniform)", "seed ")
	for _, p := range c.Stores {
		p.Pause()
	}
	contains(t, c.Run(t, 1, "bench", "run", "-w", "write", "--keys", "5000", "--operations", "4",
		"--callers", "2", "--warmup", "0", "--timeout", "300ms"), "no operation succeeded, 4 failed", "for example: ")
	for _, p := range c.Stores {
		p.Resume()
	}
}
