package cluster

import (
	"context"
	"fmt"
	"maps"
	"math"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ridgekv/ridge/tests/harness"
)

// TestFifthStore: sixteen ranges that were born on one store have their leaders
// spread over four within seconds; then a fifth store joins under load. Replicas
// and leaders end even, within 10 % or one, and stay where they are.
func TestFifthStore(t *testing.T) {
	t.Parallel()
	// However full this machine's disk is, all stores share it.
	c := harness.New(t, harness.Options{Stores: 4, PDFlags: []string{"--high-water", "100"}})
	kv := c.Client(t)
	l := startLoad(t, kv, "load/", 4)
	for ch := byte('b'); ch <= 'p'; ch++ {
		harness.Must(t, c.Split(t.Context(), fmt.Appendf(nil, "load/%c", ch)))
	}
	began := time.Now()
	awaitEven(t, c, 4, 20*time.Second)
	t.Logf("even on four stores %s after the last split", time.Since(began).Round(time.Millisecond))
	_, err := c.AddStore(t.Context())
	harness.Must(t, err)
	began = time.Now()
	awaitEven(t, c, 5, time.Minute)
	t.Logf("even on five stores after %s", time.Since(began).Round(time.Millisecond))

	harness.Must(t, harness.Eventually(t.Context(), 20*time.Second, "no operator in flight",
		func(ctx context.Context) error {
			r, err := c.PD().ListOperators(ctx)
			if err == nil && len(r.GetOperators()) > 0 {
				err = fmt.Errorf("in flight: %v", r.GetOperators())
			}
			return err
		}))
	before := whereabouts(t, c)
	for range 25 {
		l.awaitWrites(t, 20)
		harness.Rest(t.Context(), 200*time.Millisecond)
		if now := whereabouts(t, c); !maps.Equal(before, now) {
			t.Fatalf("it does not stay still:\n%v\n%v", before, now)
		}
	}
	l.verify(t)
	// Well below the minute after which PD misses a replica that was split away.
	_, err = c.AwaitEqual(t.Context(), 20*time.Second)
	harness.Must(t, err)
}

// whereabouts is where every range is, and who leads it.
func whereabouts(t *testing.T, c *harness.Cluster) map[uint64]string {
	t.Helper()
	routes, err := c.Routes(t.Context())
	harness.Must(t, err)
	out := map[uint64]string{}
	for _, r := range routes {
		out[r.GetRange().GetRangeId()] = fmt.Sprint(r.GetRange().GetReplicas(),
			r.GetLeader().GetStoreId())
	}
	return out
}

// awaitEven waits until no store has more or fewer replicas or leaders than the
// mean, but for 10 % or one.
func awaitEven(t *testing.T, c *harness.Cluster, stores int, within time.Duration) {
	t.Helper()
	harness.Must(t, harness.Eventually(t.Context(), within, "an even cluster",
		func(ctx context.Context) error {
			routes, err := c.Routes(ctx)
			if err != nil {
				return err
			}
			leaders, replicas := map[uint64]int{}, map[uint64]int{}
			for _, r := range routes {
				leaders[r.GetLeader().GetStoreId()]++
				for _, m := range r.GetRange().GetReplicas() {
					replicas[m.GetStoreId()]++
				}
			}
			if why := uneven(leaders, stores, len(routes)); why != "" {
				return fmt.Errorf("leaders: %s", why)
			}
			if why := uneven(replicas, stores, 3*len(routes)); why != "" {
				return fmt.Errorf("replicas: %s", why)
			}
			return nil
		}))
}

func uneven(have map[uint64]int, stores, total int) string {
	mean := float64(total) / float64(stores)
	off := math.Max(0.1*mean, 1)
	for _, n := range have {
		if math.Abs(float64(n)-mean) > off {
			return fmt.Sprintf("%v, the mean is %.1f", have, mean)
		}
	}
	if len(have) != stores {
		return fmt.Sprintf("%v, on %d stores", have, len(have))
	}
	return ""
}

// TestHotSpan: a span that bears too much is divided by the keys that are asked
// for, its leaders spread over more than one store, and no write is lost. One key
// that bears too much is named and not divided.
func TestHotSpan(t *testing.T) {
	t.Parallel()
	c := harness.New(t, harness.Options{
		PDFlags: []string{"--split-load=200"},
	})
	kv := c.Client(t)
	l := startLoad(t, kv, "load/", 8)
	began := time.Now()
	harness.Must(t, harness.Eventually(t.Context(), 40*time.Second, "leaders on several stores",
		func(ctx context.Context) error {
			routes, err := c.Routes(ctx)
			if err != nil {
				return err
			}
			leaders := map[uint64]int{}
			for _, r := range routes {
				leaders[r.GetLeader().GetStoreId()]++
			}
			if len(routes) < 2 || len(leaders) < 2 {
				return fmt.Errorf("%d ranges, leaders %v", len(routes), leaders)
			}
			return nil
		}))
	t.Logf("divided and spread after %s", time.Since(began).Round(time.Millisecond))
	l.verify(t)
	hot := []byte("one key")
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	for range 8 {
		wg.Go(func() {
			for ctx.Err() == nil {
				_, _ = kv.Put(ctx, hot, []byte("x"))
			}
		})
	}
	harness.Must(t, harness.Eventually(t.Context(), 40*time.Second, "the hot key is named",
		func(ctx context.Context) error {
			out, err := c.Ridge(ctx, "", "why", "range", string(hot))
			if err == nil && !strings.Contains(out.String(), "a key cannot be divided") {
				err = fmt.Errorf("%s", out)
			}
			return err
		}))
}
