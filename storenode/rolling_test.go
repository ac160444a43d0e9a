package storenode_test

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/ridgekv/ridge/client"
)

// writer puts numbered values under one key until stopped. No acknowledged
// value may be lost.
type writer struct {
	key     string
	acked   int
	sent    int
	unknown int
	gap     time.Duration
	err     error
}

func (w *writer) run(ctx context.Context, c *client.Client) {
	last := time.Now()
	for n := 1; ctx.Err() == nil; n++ {
		w.sent = n
		_, err := c.Put(context.WithoutCancel(ctx), []byte(w.key), fmt.Appendf(nil, "%d", n))
		w.gap = max(w.gap, time.Since(last))
		last = time.Now()
		switch {
		case err == nil:
			w.acked = n
		case client.IsUnknown(err):
			w.unknown++
		default:
			w.err = err
			return
		}
	}
}

// A rolling restart under load: every store stops cleanly and starts again,
// nothing acknowledged is lost, and no writer waits long.
func TestRollingRestart(t *testing.T) {
	pd := startFakePD(t)
	var stores []*testStore
	for range 3 {
		s := startStore(t, storeOptions(t, t.TempDir(), pd.address))
		s.waitReady()
		stores = append(stores, s)
	}
	eventually(t, 10*time.Second, "first range", func() bool { return pd.report(1) != nil })
	grow(t, pd, 1, 2, 12)
	grow(t, pd, 1, 3, 13)
	for _, key := range []string{"k6", "k4", "k2"} {
		splitAt(t, pd, 1, key)
	}
	c, err := client.Open(t.Context(), client.Options{PD: []string{pd.address}})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	writers := make([]*writer, 8)
	for i := range writers {
		writers[i] = &writer{key: fmt.Sprintf("k%d", i)}
		wg.Go(func() { writers[i].run(ctx, c) })
	}
	for i, s := range stores {
		if err := s.stop(); err != nil {
			t.Error(err)
		}
		stores[i] = startStore(t, s.options)
		stores[i].waitReady()
		eventually(t, 10*time.Second, "the store takes part again", func() bool {
			l, here := pd.local(uint64(i+1), 1)
			return here && l.GetLed()
		})
	}
	cancel()
	wg.Wait()
	for _, w := range writers {
		t.Logf("%s: %d acked, %d unknown, longest wait %v", w.key, w.acked, w.unknown, w.gap)
		if w.err != nil {
			t.Errorf("%s: %v", w.key, w.err)
		}
		if w.gap > 5*time.Second {
			t.Errorf("%s: a write waited %v", w.key, w.gap)
		}
		row, found, err := c.Get(t.Context(), []byte(w.key))
		var n int
		if err == nil && found {
			_, err = fmt.Sscan(string(row.Value), &n)
		}
		if err != nil || n < w.acked || n > w.sent {
			t.Errorf("%s: holds %d (%v), acked %d, sent %d", w.key, n, err, w.acked, w.sent)
		}
	}
}
