package cluster

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/ridgekv/ridge/client"
	"github.com/ridgekv/ridge/tests/harness"
)

// readers read keys again and again and remember what failed.
type readers struct {
	cancel context.CancelFunc
	wg     sync.WaitGroup
	mu     sync.Mutex
	reads  int
	// longest is the longest time a read took.
	longest time.Duration
	faults  map[string]int
}

// startReaders reads the keys of a load with plain, linearizable gets.
func startReaders(t *testing.T, kv *client.Client, l *load, n int) *readers {
	r := &readers{faults: map[string]int{}}
	ctx, cancel := context.WithCancel(context.Background())
	r.cancel = cancel
	for w := range n {
		r.wg.Go(func() {
			for i := 0; ctx.Err() == nil; i++ {
				r.read(ctx, kv, l.key(w%l.workers, i%l.keys))
				harness.Rest(ctx, 2*time.Millisecond)
			}
		})
	}
	t.Cleanup(r.stop)
	return r
}

func (r *readers) read(ctx context.Context, kv *client.Client, key string) {
	began := time.Now()
	op, cancel := context.WithTimeout(context.WithoutCancel(ctx), 15*time.Second)
	defer cancel()
	_, _, err := kv.Get(op, []byte(key))
	r.mu.Lock()
	defer r.mu.Unlock()
	r.reads++
	r.longest = max(r.longest, time.Since(began))
	if err != nil {
		r.faults[err.Error()]++
	}
}

func (r *readers) stop() {
	r.cancel()
	r.wg.Wait()
}

// unharmed ends the workload and demands that no operation failed, that none
// took longer than gap, and that every acknowledged write is there.
func unharmed(t *testing.T, l *load, r *readers, gap time.Duration) {
	t.Helper()
	l.verify(t)
	r.stop()
	longest, key := l.resetLongest()
	t.Logf("%d reads, longest %s; longest write %s", r.reads, r.longest, longest)
	if len(l.faults) > 0 || len(r.faults) > 0 {
		t.Errorf("operations failed: writes %v, reads %v", l.faults, r.faults)
	}
	if longest > gap || r.longest > gap {
		t.Errorf("%s could not be written for %s, a read took %s", key, longest, r.longest)
	}
}

// TestPDLeaderKilled: PD's leader is killed under load, twice. Plain reads and
// writes go on without PD; timestamps, which need it, are back within 2 s and
// never go back. The dead one is soon ready again, and the last leader splits.
func TestPDLeaderKilled(t *testing.T) {
	c := harness.New(t, harness.Options{PDs: 3})
	kv := c.Client(t)
	harness.Must(t, c.Split(t.Context(), []byte("load/m")))
	harness.Must(t, c.AwaitReplicated(t.Context()))
	l := startLoad(t, kv, "load/", 4)
	r := startReaders(t, kv, l, 4)
	l.awaitWrites(t, 200)
	l.resetLongest()
	for range 2 {
		leader, err := c.PDLeader(t.Context())
		harness.Must(t, err)
		before, err := kv.Timestamp(t.Context())
		harness.Must(t, err)
		leader.Kill()
		began := time.Now()
		after, err := kv.Timestamp(t.Context())
		harness.Must(t, err)
		gap := time.Since(began)
		t.Logf("%s killed: timestamps are back after %s", leader.Name, gap.Round(time.Millisecond))
		if gap > 2*time.Second {
			t.Errorf("no timestamps for %s", gap)
		}
		if after <= before {
			t.Errorf("timestamp %d after %d", after, before)
		}
		l.awaitWrites(t, 200)
		next, err := c.PDLeader(t.Context())
		harness.Must(t, err)
		if next == leader {
			t.Errorf("%s is dead and named as PD's leader", next.Name)
		}
		harness.Must(t, leader.Start())
		began = time.Now()
		harness.Must(t, leader.AwaitReady(t.Context()))
		if took := time.Since(began); took > 5*time.Second {
			t.Errorf("%s was ready %s after its start", leader.Name, took)
		}
	}
	unharmed(t, l, r, time.Second)
	harness.Must(t, c.Split(t.Context(), []byte("load/s")))
	_, err := c.AwaitEqual(t.Context(), time.Minute)
	harness.Must(t, err)
}

// TestRollingRestartOfAll: every PD and then every store is stopped by SIGTERM
// and started again, under load, the next one when the last is ready. No
// operation fails, and every acknowledged write is there.
func TestRollingRestartOfAll(t *testing.T) {
	c := harness.New(t, harness.Options{PDs: 3})
	kv := c.Client(t)
	for _, at := range []string{"load/h", "load/p"} {
		harness.Must(t, c.Split(t.Context(), []byte(at)))
	}
	harness.Must(t, c.AwaitReplicated(t.Context()))
	l := startLoad(t, kv, "load/", 4)
	r := startReaders(t, kv, l, 4)
	l.awaitWrites(t, 200)
	l.resetLongest()
	for _, p := range c.PDs {
		harness.Must(t, p.Restart(t.Context()))
		harness.Must(t, harness.Eventually(t.Context(), 10*time.Second, "timestamps after "+p.Name,
			func(ctx context.Context) error { _, err := kv.Timestamp(ctx); return err }))
		l.awaitWrites(t, 100)
	}
	for _, p := range c.Stores {
		began := time.Now()
		harness.Must(t, p.Stop())
		t.Logf("%s stopped in %s", p.Name, time.Since(began).Round(time.Millisecond))
		l.awaitWrites(t, 50)
		harness.Must(t, p.Start())
		harness.Must(t, p.AwaitReady(t.Context()))
		harness.Must(t, c.AwaitReplicated(t.Context()))
		l.awaitWrites(t, 100)
	}
	unharmed(t, l, r, 2*time.Second)
	seen, err := c.AwaitEqual(t.Context(), time.Minute)
	harness.Must(t, err)
	if want := fmt.Sprint(3, 9); fmt.Sprint(seen.Ranges, seen.Replicas) != want {
		t.Errorf("compared %+v", seen)
	}
}
