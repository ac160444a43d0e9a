package cluster

import (
	"context"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/ridgekv/ridge/tests/harness"
)

// TestDev: the development cluster says when it is ready, keeps its data over a
// stop and over a kill -9, and grows.
func TestDev(t *testing.T) {
	t.Parallel()
	pd, err := harness.FreeAddress()
	harness.Must(t, err)
	dir := filepath.Join(t.TempDir(), "dev")
	d := harness.NewProcess(binary(t), "dev", t.TempDir(), pd,
		"dev", "--stores", "3", "--dir", dir, "--pd-listen", pd)
	t.Cleanup(func() {
		d.Kill()
		if t.Failed() {
			t.Log(d.Output())
		}
	})
	start := func() {
		t.Helper()
		before := strings.Count(d.Output(), " is ready\n")
		harness.Must(t, d.Start())
		harness.Must(t, harness.Eventually(t.Context(), time.Minute, "a line says ready",
			func(context.Context) error {
				if strings.Count(d.Output(), " is ready\n") > before {
					return nil
				}
				if !d.Running() {
					t.Fatalf("it has ended:\n%s", d.Output())
				}
				return context.DeadlineExceeded
			}))
	}
	run := func(code int, args ...string) string {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
		defer cancel()
		r, err := harness.Command(ctx, binary(t), "", append(args, "--pd", pd)...)
		harness.Must(t, err)
		if r.Code != code {
			t.Fatalf("ridge %q: %s", args, r)
		}
		return r.Out
	}
	start()
	run(0, "put", "a", "1")
	run(0, "range", "split", "b")
	run(0, "put", "c", "3")
	began := time.Now()
	harness.Must(t, d.Stop())
	if took := time.Since(began); took > 1500*time.Millisecond {
		t.Errorf("it took %s to stop", took)
	}
	start()
	expect(t, run(0, "scan"), "a\t1\nc\t3\n")
	run(0, "put", "d", "4")
	d.Kill()
	start()
	expect(t, run(0, "scan", "--keys-only"), "a\nc\nd\n")
	harness.Must(t, d.Stop())
	d.SetFlag("--stores", "2")
	harness.Must(t, d.Start())
	if err := d.Wait(t.Context()); err == nil {
		t.Error("fewer stores than there are directories are accepted")
	}
	d.SetFlag("--stores", "4")
	start()
	expect(t, run(0, "get", "d"), "4\n")
	if n := strings.Count(run(0, "store", "list"), " up "); n != 4 {
		t.Errorf("%d stores are up", n)
	}
}
