package cluster

import (
	"context"
	"fmt"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/ridgekv/ridge/client"
	"github.com/ridgekv/ridge/proto/keys"
	"github.com/ridgekv/ridge/tests/harness"
)

// load is a set of writers that overwrite their own keys with rising numbers
// and remember what was acknowledged. After any fault a key must hold its last
// acknowledged number, or a later one whose outcome is unknown.
type load struct {
	kv      *client.Client
	prefix  string
	workers int
	keys    int           // of each worker
	pause   time.Duration // read by the writers: set before they start

	cancel context.CancelFunc
	wg     sync.WaitGroup
	mu     sync.Mutex
	acked  map[string]int
	tried  map[string]int
	writes int
	faults map[string]int
	// longest is the longest time a key was being written without success.
	longest    time.Duration
	longestKey string
}

// startLoad starts writers that rest a little after each write; they end with the
// test at the latest.
func startLoad(t *testing.T, kv *client.Client, prefix string, workers int) *load {
	return startPacedLoad(t, kv, prefix, workers, 2*time.Millisecond)
}

// startPacedLoad starts writers that rest for pause after each write.
func startPacedLoad(
	t *testing.T, kv *client.Client, prefix string, workers int, pause time.Duration,
) *load {
	l := &load{
		kv: kv, prefix: prefix, workers: workers, keys: 20, pause: pause,
		acked: map[string]int{}, tried: map[string]int{}, faults: map[string]int{},
	}
	ctx, cancel := context.WithCancel(context.Background())
	l.cancel = cancel
	for w := range workers {
		l.wg.Go(func() { l.write(ctx, w) })
	}
	t.Cleanup(l.stop)
	return l
}

// key spreads the keys over the alphabet, so that splits at letters part them.
func (l *load) key(worker, i int) string {
	n := worker*l.keys + i
	return fmt.Sprintf("%s%c/%06d", l.prefix, 'a'+n%26, n)
}

func (l *load) write(ctx context.Context, worker int) {
	for n := 1; ctx.Err() == nil; n++ {
		for i := range l.keys {
			key := l.key(worker, i)
			began := time.Now()
			for !l.put(ctx, key, n) {
				if ctx.Err() != nil {
					return
				}
				n++ // a number is used once: 1, 2, 1 would be a fault
				l.note(key, time.Since(began))
			}
			l.note(key, time.Since(began))
			if harness.Rest(ctx, l.pause); ctx.Err() != nil {
				return
			}
		}
	}
}

func (l *load) put(ctx context.Context, key string, n int) bool {
	l.mu.Lock()
	l.tried[key] = n
	l.mu.Unlock()
	// A write is never given up half way by the end of the load: what becomes
	// of it is known before verify looks.
	op, cancel := context.WithTimeout(context.WithoutCancel(ctx), 15*time.Second)
	defer cancel()
	_, err := l.kv.Put(op, []byte(key), []byte(strconv.Itoa(n)))
	l.mu.Lock()
	defer l.mu.Unlock()
	if err != nil {
		if ctx.Err() == nil {
			l.faults[err.Error()]++
		}
		return false
	}
	l.acked[key] = n
	l.writes++
	return true
}

func (l *load) note(key string, took time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if took > l.longest {
		l.longest, l.longestKey = took, key
	}
}

// stop ends the writers and waits for them.
func (l *load) stop() {
	l.cancel()
	l.wg.Wait()
}

// resetLongest begins a new measurement and returns the old one.
func (l *load) resetLongest() (time.Duration, string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	d, k := l.longest, l.longestKey
	l.longest, l.longestKey = 0, ""
	return d, k
}

// awaitWrites waits until n more writes are acknowledged.
func (l *load) awaitWrites(t *testing.T, n int) {
	t.Helper()
	count := func() int {
		l.mu.Lock()
		defer l.mu.Unlock()
		return l.writes
	}
	want := count() + n
	harness.Must(t, harness.Eventually(t.Context(), time.Minute, fmt.Sprintf("%d more writes", n),
		func(context.Context) error {
			if have := count(); have < want {
				return fmt.Errorf("%d of %d; faults %v", have, want, l.faultsSeen())
			}
			return nil
		}))
}

func (l *load) faultsSeen() map[string]int {
	l.mu.Lock()
	defer l.mu.Unlock()
	out := map[string]int{}
	for k, v := range l.faults {
		out[k] = v
	}
	return out
}

// verify stops the writers and compares every key with what was acknowledged,
// by a scan and by gets.
func (l *load) verify(t *testing.T) {
	t.Helper()
	l.stop()
	seen := map[string]string{}
	for row, err := range l.kv.Scan(t.Context(), keys.Prefix([]byte(l.prefix))) {
		harness.Must(t, err)
		seen[string(row.Key)] = string(row.Value)
	}
	if len(l.acked) == 0 {
		t.Fatal("nothing was written")
	}
	for key, acked := range l.acked {
		row, found, err := l.kv.Get(t.Context(), []byte(key))
		harness.Must(t, err)
		n, err := strconv.Atoi(string(row.Value))
		if err != nil || !found || n < acked || n > l.tried[key] {
			t.Errorf("%s holds %q: %d was acknowledged, %d tried", key, row.Value, acked, l.tried[key])
		}
		// A write of unknown outcome may still come between the two reads.
		scanned, err := strconv.Atoi(seen[key])
		if err != nil || scanned < acked || scanned > n {
			t.Errorf("%s: scan finds %q, then get %d; %d was acknowledged", key, seen[key], n, acked)
		}
	}
	t.Logf("%d writes acknowledged on %d keys; errors %v", l.writes, len(l.acked), l.faults)
}
