package cluster

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/ridgekv/ridge/tests/harness"
)

// TestCommands: what a user types, what it prints, how it ends.
func TestCommands(t *testing.T) {
	t.Parallel()
	c := harness.New(t, harness.Options{SplitSize: "256KB"})
	t.Run("data", func(t *testing.T) { checkData(t, c) })
	t.Run("scan", func(t *testing.T) { checkScan(t, c) })
	t.Run("json", func(t *testing.T) { checkJSON(t, c) })
	t.Run("bad input", func(t *testing.T) { checkBadInput(t, c) })
	t.Run("load and dump", func(t *testing.T) { checkLoadAndDump(t, c) })
	t.Run("second process", func(t *testing.T) { checkSecondProcess(t, c) })
	t.Run("endpoints", func(t *testing.T) { checkEndpoints(t, c) })
}

func expect(t *testing.T, got, want string) {
	t.Helper()
	if got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

func contains(t *testing.T, r harness.Result, words ...string) {
	t.Helper()
	for _, w := range words {
		if !strings.Contains(r.Out+r.Err, w) {
			t.Errorf("no %q in %s", w, r)
		}
	}
}

func checkData(t *testing.T, c *harness.Cluster) {
	c.Run(t, 0, "put", "k", "v")
	expect(t, c.Run(t, 0, "get", "k").Out, "v\n")
	contains(t, c.Run(t, 1, "get", "nothing"), "key not found")
	contains(t, c.Run(t, 1, "cas", "k", "w", "x"), "not swapped: the value is v")
	c.Run(t, 0, "cas", "k", "v", "x")
	expect(t, c.Run(t, 0, "get", "k").Out, "x\n")
	c.Run(t, 1, "cas", "k", "y", "--absent")
	c.Run(t, 0, "cas", "new", "y", "--absent")
	c.Run(t, 0, "cas", "new", "y", "--delete")
	c.Run(t, 1, "get", "new")
	c.Run(t, 0, "delete", "k")
	c.Run(t, 1, "get", "k")
	c.Run(t, 0, "delete", "k")
	c.Run(t, 0, "put", "--b64", "/wA=", "AP8=")
	expect(t, c.Run(t, 0, "get", "--b64", "/wA=").Out, "\x00\xff\n")
	c.Run(t, 0, "put", "short", "life", "--ttl", "300ms")
	harness.Must(t, harness.Eventually(t.Context(), 20*time.Second, "the row expires",
		func(ctx context.Context) error {
			r, err := c.Ridge(ctx, "", "get", "short")
			if err == nil && r.Code != 1 {
				err = fmt.Errorf("still there: %s", r)
			}
			return err
		}))
}

func checkScan(t *testing.T, c *harness.Cluster) {
	for _, k := range []string{"s/a", "s/b", "s/c", "t/a"} {
		c.Run(t, 0, "put", k, "value of "+k)
	}
	expect(t, c.Run(t, 0, "scan", "--prefix", "s/").Out,
		"s/a\tvalue of s/a\ns/b\tvalue of s/b\ns/c\tvalue of s/c\n")
	expect(t, c.Run(t, 0, "scan", "--prefix", "s/", "--reverse", "--limit", "2", "--keys-only").Out,
		"s/c\ns/b\n")
	expect(t, c.Run(t, 0, "scan", "--from", "s/b", "--to", "t/b", "--keys-only").Out,
		"s/b\ns/c\nt/a\n")
	expect(t, c.Run(t, 0, "scan", "--prefix", "none/").Out, "")
	c.Run(t, 0, "put", "u/\n", "a\tb")
	expect(t, c.Run(t, 0, "scan", "--prefix", "u/").Out, "\"u/\\n\"\t\"a\\tb\"\n")
}

func checkJSON(t *testing.T, c *harness.Cluster) {
	var ranges struct {
		Ranges []struct {
			RangeID  uint64 `json:"range_id"`
			Replicas []struct {
				ReplicaID uint64 `json:"replica_id"`
				StoreID   uint64 `json:"store_id"`
				Role      string `json:"role"`
			} `json:"replicas"`
			Span struct{ Start, End string }
		} `json:"ranges"`
	}
	c.Run(t, 0, "range", "split", "m")
	decode(t, c.Run(t, 0, "range", "list", "-o", "json").Out, &ranges)
	if len(ranges.Ranges) < 2 || ranges.Ranges[0].RangeID == 0 || len(ranges.Ranges[0].Replicas) != 3 ||
		ranges.Ranges[0].Replicas[0].Role != "voter" {
		t.Errorf("ranges: %+v", ranges)
	}
	var stores struct {
		Stores []struct {
			StoreID uint64 `json:"store_id"`
			State   string `json:"state"`
		} `json:"stores"`
	}
	decode(t, c.Run(t, 0, "store", "list", "-o", "json").Out, &stores)
	if len(stores.Stores) != 3 || stores.Stores[0].StoreID == 0 || stores.Stores[0].State != "up" {
		t.Errorf("stores: %+v", stores)
	}
	var status struct {
		ClusterID    uint64 `json:"cluster_id"`
		Bootstrapped bool   `json:"bootstrapped"`
		StoreCount   int    `json:"store_count"`
	}
	decode(t, c.Run(t, 0, "status", "-o", "json").Out, &status)
	if status.ClusterID == 0 || !status.Bootstrapped || status.StoreCount != 3 {
		t.Errorf("status: %+v", status)
	}
	id := fmt.Sprint(ranges.Ranges[0].RangeID)
	contains(t, c.Run(t, 0, "range", "show", id), "REPLICA", "voter")
	contains(t, c.Run(t, 0, "range", "show", id, "-o", "json"), `"range_id":`+id)
	contains(t, c.Run(t, 0, "range", "list"), "RANGE", "+inf")
	contains(t, c.Run(t, 0, "store", "list"), "STORE", "up")
	contains(t, c.Run(t, 0, "status"), "bootstrapped")
	contains(t, c.Run(t, 0, "put", "k", "v", "-o", "json"), `"commit_ts":`)
	contains(t, c.Run(t, 0, "get", "k", "-o", "json"), `"value":"v"`)
	contains(t, c.Run(t, 1, "cas", "k", "w", "x", "-o", "json"), `"swapped":false`)
	contains(t, c.Run(t, 0, "scan", "--from", "k", "--to", "l", "-o", "json"), `"key":"k"`)
}

func decode(t *testing.T, text string, v any) {
	t.Helper()
	if err := json.Unmarshal([]byte(text), v); err != nil {
		t.Fatalf("%v in %s", err, text)
	}
}

func checkBadInput(t *testing.T, c *harness.Cluster) {
	contains(t, c.Run(t, 1, "put", "", "v"), "empty")
	contains(t, c.Run(t, 1, "put", strings.Repeat("k", 4097), "v"), "at most 4096")
	c.Run(t, 0, "put", strings.Repeat("k", 4096), "v")
	contains(t, c.Run(t, 1, "range", "show", "999999"), "999999")
	contains(t, c.Run(t, 2, "scan", "--from", "b", "--to", "a"), "not below")
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	r, err := harness.Command(ctx, binary(t), "", "get", "k", "--pd", "127.0.0.1:1", "--timeout", "2s")
	harness.Must(t, err)
	if r.Code != 1 || r.Err == "" {
		t.Errorf("no PD: %s", r)
	}
}

func binary(t *testing.T) string {
	t.Helper()
	b, err := harness.Binary()
	harness.Must(t, err)
	return b
}

func checkLoadAndDump(t *testing.T, c *harness.Cluster) {
	dir := t.TempDir()
	in, out := filepath.Join(dir, "in.jsonl"), filepath.Join(dir, "out.jsonl")
	var b strings.Builder
	for i := range 5000 {
		fmt.Fprintf(&b, "{\"key\":\"l/%05d\",\"value\":\"%s\"}\n", i, strings.Repeat("v", 200))
	}
	b.WriteString("{\"key_b64\":\"bC//\",\"value_b64\":\"/wEC\"}\n")
	harness.Must(t, os.WriteFile(in, []byte(b.String()), 0o600))
	contains(t, c.Run(t, 0, "load", in), "loaded 5,001 rows")
	c.Run(t, 0, "dump", out, "--prefix", "l/")
	got, err := os.ReadFile(out)
	harness.Must(t, err)
	if string(got) != b.String() {
		t.Errorf("the dump differs: %d bytes, want %d", len(got), b.Len())
	}
	c.Run(t, 1, "dump", filepath.Join(dir, "missing", "x"))
	points, err := c.PD().GetSafePoint(t.Context())
	harness.Must(t, err)
	if len(points.GetHolds()) > 0 {
		t.Errorf("dumps that have ended hold the history: %v", points.GetHolds())
	}
	resume := filepath.Join(dir, "progress")
	harness.Must(t, os.WriteFile(in, []byte("{\"key\":\"l2/a\",\"value\":\"1\"}\n{\"key\":\"l2/b\",\"va"), 0o600))
	contains(t, c.Run(t, 1, "load", in, "--resume", resume), "line 2", "cut off")
	expect(t, c.Run(t, 0, "get", "l2/a").Out, "1\n")
	harness.Must(t, os.WriteFile(in,
		[]byte("{\"key\":\"l2/a\",\"value\":\"1\"}\n{\"key\":\"l2/b\",\"value\":\"2\"}\n"), 0o600))
	contains(t, c.Run(t, 0, "load", in, "--resume", resume), "loaded 1 rows")
	expect(t, c.Run(t, 0, "get", "l2/b").Out, "2\n")
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	r, err := c.Ridge(ctx, "{\"key\":\"l3\",\"value\":\"stdin\"}", "load", "-")
	if err != nil || r.Code != 0 {
		t.Errorf("load -: %v %s", err, r)
	}
	expect(t, c.Run(t, 0, "get", "l3").Out, "stdin\n")
}

// checkSecondProcess: nothing that is started beside a running process hurts
// it.
func checkSecondProcess(t *testing.T, c *harness.Cluster) {
	s, pd := c.Stores[0], c.PDs[0]
	free := func() string {
		a, err := harness.FreeAddress()
		harness.Must(t, err)
		return a
	}
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	fails := func(words string, args ...string) {
		t.Helper()
		r, err := harness.Command(ctx, binary(t), "", args...)
		harness.Must(t, err)
		if r.Code != 1 {
			t.Errorf("%q: %s", args, r)
		}
		contains(t, r, words)
	}
	fails("in use by another process", "store", "--dir", s.Dir, "--pd", pd.GRPC,
		"--listen", free(), "--raft-listen", free(), "--http-listen", free())
	fails("--listen", "store", "--dir", t.TempDir(), "--pd", pd.GRPC,
		"--listen", s.GRPC, "--raft-listen", free(), "--http-listen", free())
	fails("--raft-listen", "store", "--dir", t.TempDir(), "--pd", pd.GRPC,
		"--listen", free(), "--raft-listen", s.Raft, "--http-listen", free())
	fails("in use by another process", "pd", "--dir", pd.Dir, "--listen", free(),
		"--raft-listen", free(), "--http-listen", free())
	c.Run(t, 0, "put", "still", "there")
}

func checkEndpoints(t *testing.T, c *harness.Cluster) {
	for _, p := range c.Processes() {
		for path, want := range map[string]string{
			"/healthz": "ok", "/readyz": "ready", "/metrics": "ridge_serve_calls_total",
			"/debug/pprof/": "goroutine",
		} {
			body, err := p.HTTPGet(t.Context(), path)
			if err != nil || !strings.Contains(body, want) {
				t.Errorf("%s%s: %v", p.Name, path, err)
			}
		}
	}
}
