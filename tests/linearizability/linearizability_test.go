package linearizability

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"
	"go.uber.org/goleak"

	"github.com/ridgekv/ridge/client"
	"github.com/ridgekv/ridge/tests/harness"
)

func TestMain(m *testing.M) {
	code := m.Run()
	harness.RemoveBinary()
	if code == 0 {
		if err := goleak.Find(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			code = 1
		}
	}
	os.Exit(code)
}

// seed is RIDGE_SEED, or a new one. It decides the operations, not the
// interleaving.
func seed(t *testing.T) uint64 {
	s, err := strconv.ParseUint(os.Getenv("RIDGE_SEED"), 10, 64)
	if err != nil {
		s = rand.Uint64()
	}
	t.Logf("RIDGE_SEED=%d", s)
	return s
}

// duration is RIDGE_DURATION in the long form, else short.
func duration(t *testing.T, short time.Duration) time.Duration {
	if !harness.Long() {
		return short
	}
	d, err := time.ParseDuration(os.Getenv("RIDGE_DURATION"))
	if err != nil {
		t.Logf("RIDGE_DURATION: %v; 2m is used", err)
		return 2 * time.Minute
	}
	return d
}

// clients opens n clients, each with a route cache of its own.
func clients(t *testing.T, c *harness.Cluster, n int) []*client.Client {
	out := make([]*client.Client, n)
	for i := range out {
		out[i] = c.Client(t)
	}
	return out
}

// check hands the history to porcupine. A picture of what went wrong is kept.
func check(t *testing.T, h *History) porcupine.CheckResult {
	ops, unknown := h.Operations()
	began := time.Now()
	result, info := porcupine.CheckOperationsVerbose(Model(), ops, 3*time.Minute)
	t.Logf("%d operations, %d of unknown outcome: %s, found in %s",
		len(ops), unknown, result, time.Since(began).Round(time.Millisecond))
	if result == porcupine.Illegal && os.Getenv("RIDGE_KEEP") != "" {
		if f, err := os.CreateTemp("", "ridge-history-*.html"); err == nil {
			_ = porcupine.Visualize(Model(), info, f)
			t.Logf("picture: %s", f.Name())
			_ = f.Close()
		}
	}
	return result
}

// TestLinearizable: Get, Put, CompareAndSwap, Delete, BatchGet and BatchWrite
// through the client are linearizable while stores are killed, paused and
// restarted and ranges split.
func TestLinearizable(t *testing.T) {
	c := harness.New(t, harness.Options{})
	s := seed(t)
	w := Workload{
		Groups: 40, Workers: 12, Pause: 8 * time.Millisecond,
		OpTimeout: 5 * time.Second, Seed: s, Clients: clients(t, c, 3),
	}
	h := NewHistory()
	ctx, cancel := context.WithTimeout(t.Context(), duration(t, 12*time.Second))
	defer cancel()
	var wg sync.WaitGroup
	wg.Go(func() { w.Run(ctx, h) })
	wg.Go(func() { nemesis(ctx, t, c, s, w.Groups) })
	wg.Wait()
	// The healed phase must make progress, and what it reads counts.
	for _, p := range c.Stores {
		if !p.Running() {
			harness.Must(t, p.Start())
		}
		harness.Must(t, p.AwaitReady(t.Context()))
	}
	before, _ := h.Operations()
	healed, cancel := context.WithTimeout(t.Context(), 3*time.Second)
	defer cancel()
	w.Seed++
	w.Run(healed, h)
	if after, _ := h.Operations(); len(after) < len(before)+100 {
		t.Fatalf("only %d operations succeeded in 3s after the faults", len(after)-len(before))
	}
	if result := check(t, h); result != porcupine.Ok {
		t.Fatalf("the history is not linearizable: %s (RIDGE_KEEP=1 keeps a picture)", result)
	}
	_, err := c.AwaitEqual(t.Context(), time.Minute)
	harness.Must(t, err)
}

// nemesis hurts the cluster until ctx ends and leaves it running.
func nemesis(ctx context.Context, t *testing.T, c *harness.Cluster, seed uint64, groups int) {
	rng := rand.New(rand.NewPCG(seed, 99))
	for round := 0; ctx.Err() == nil; round++ {
		if round%3 == 0 {
			key := Boundary(1 + rng.IntN(groups-1))
			splitting, cancel := context.WithTimeout(ctx, 10*time.Second)
			if err := c.Split(splitting, key); err != nil && ctx.Err() == nil {
				t.Errorf("split at %s: %v", key, err)
			}
			cancel()
		}
		victim := c.Stores[rng.IntN(len(c.Stores))]
		if rng.IntN(3) > 0 {
			victim.Kill()
			harness.Rest(ctx, time.Duration(rng.IntN(1500))*time.Millisecond)
			if err := victim.Start(); err != nil {
				t.Errorf("restart of %s: %v", victim.Name, err)
				return
			}
			if err := victim.AwaitReady(context.WithoutCancel(ctx)); err != nil {
				t.Errorf("restart of %s: %v", victim.Name, err)
				return
			}
		} else {
			victim.Pause()
			harness.Rest(ctx, time.Duration(500+rng.IntN(2000))*time.Millisecond)
			victim.Resume()
		}
		harness.Rest(ctx, time.Duration(500+rng.IntN(1500))*time.Millisecond)
	}
}

// TestCheckerSeesStaleReads: the same workload without faults, in which now and
// then a linearizable read is answered by a snapshot of a moment ago. The
// checker must notice, or its silence elsewhere means nothing.
func TestCheckerSeesStaleReads(t *testing.T) {
	c := harness.New(t, harness.Options{})
	w := Workload{
		Groups: 4, Workers: 8, Pause: 2 * time.Millisecond,
		OpTimeout: 5 * time.Second, Seed: seed(t), Clients: clients(t, c, 2),
	}
	past, err := w.Clients[0].Timestamp(t.Context())
	harness.Must(t, err)
	var mu sync.Mutex
	n := 0
	w.Corrupt = func(ctx context.Context, kv *client.Client, in Input, out Output) Output {
		mu.Lock()
		n++
		at, stale := past, n%20 == 0
		if stale {
			if now, err := kv.Timestamp(ctx); err == nil {
				past = now
			}
		}
		mu.Unlock()
		if !stale {
			return out
		}
		row, _, err := kv.Get(ctx, Key(in.Group, in.Slot), client.WithConsistency(client.Snapshot(at)))
		if err != nil {
			return out
		}
		return Output{Value: string(row.Value)}
	}
	h := NewHistory()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	w.Run(ctx, h)
	if result := check(t, h); result != porcupine.Illegal {
		t.Fatalf("stale reads were injected and the checker says: %s", result)
	}
}
