package cluster

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ridgekv/ridge/proto/errs"
	"github.com/ridgekv/ridge/tests/harness"
)

// TestDiskStates: a store whose disk fills up from outside first refuses to
// grow, then stops in good order; with room again it comes back as if nothing
// had happened.
func TestDiskStates(t *testing.T) {
	t.Parallel()
	const mb = 1 << 20
	c := harness.New(t, harness.Options{Capacity: "512MB"})
	kv := c.Client(t)
	fill(t, kv, "k/", 1000, 1000)
	p := c.Stores[2]
	// 10 % of the capacity is where a store stops growing, 3 % where it stops.
	lastRoom := int64(-1)
	use := func(bytes int64) {
		t.Helper()
		path := filepath.Join(p.Dir, "log", "foreign")
		f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY, 0o600)
		harness.Must(t, err)
		harness.Must(t, unix.Fallocate(int(f.Fd()), 0, 0, bytes))
		harness.Must(t, f.Close())
	}
	// What the store says of its disk is up to a second old, and its own files
	// grow meanwhile: go half of the way each time.
	foreign := int64(0)
	harness.Must(t, harness.Eventually(t.Context(), 40*time.Second, "puts are refused",
		func(ctx context.Context) error {
			_, err := kv.Put(ctx, []byte("k/new"), []byte("v"))
			if _, ok := errors.AsType[errs.DiskFull](err); ok {
				return nil
			}
			if room := available(t, p); room != lastRoom {
				lastRoom = room
				foreign += max(room-34*mb, 0) / 2
				use(foreign)
			}
			return errors.Join(err, errors.New("not yet"))
		}))
	if _, err := kv.Delete(t.Context(), []byte("k/00000000")); err != nil {
		t.Errorf("a delete is refused: %v", err)
	}
	use(foreign + available(t, p) - 4*mb)
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	if err := p.Wait(ctx); err == nil || ctx.Err() != nil {
		t.Errorf("the store went on: %v", err)
	}
	// Started again it says so again; it must not eat what is left.
	harness.Must(t, p.Start())
	if err := p.Wait(ctx); err == nil || ctx.Err() != nil {
		t.Errorf("the store went on with a full disk: %v", err)
	}
	out := p.Output()
	if !strings.Contains(out, "the disk is full") {
		t.Error("the log does not say that the disk is full")
	}
	for _, word := range []string{"panic", "SIGBUS", "goroutine "} {
		if strings.Contains(out, word) {
			t.Errorf("the store did not stop in good order: its log has %q", word)
		}
	}
	// The others go on, and are not held up by a store that is away.
	if _, err := kv.Delete(t.Context(), []byte("k/00000001")); err != nil {
		t.Errorf("a delete is refused: %v", err)
	}
	harness.Must(t, os.Remove(filepath.Join(p.Dir, "log", "foreign")))
	harness.Must(t, p.Start())
	harness.Must(t, p.AwaitReady(t.Context()))
	harness.Must(t, harness.Eventually(t.Context(), 20*time.Second, "puts are taken again",
		func(ctx context.Context) error {
			_, err := kv.Put(ctx, []byte("k/new"), []byte("v"))
			return err
		}))
	seen, err := c.AwaitEqual(t.Context(), time.Minute)
	harness.Must(t, err)
	if seen.Keys != 999 {
		t.Errorf("%d keys, want 999", seen.Keys)
	}
}

// available is how much room the engine sees.
func available(t *testing.T, p *harness.Process) int64 {
	t.Helper()
	text, err := p.HTTPGet(t.Context(), "/metrics")
	harness.Must(t, err)
	for line := range strings.Lines(text) {
		value, ok := strings.CutPrefix(line, "ridge_engine_disk_available_bytes ")
		if !ok {
			continue
		}
		n, err := strconv.ParseFloat(strings.TrimSpace(value), 64)
		harness.Must(t, err)
		return int64(n)
	}
	t.Fatal("the store does not tell what is available")
	return 0
}
