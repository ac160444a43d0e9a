package cluster

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"testing"
	"time"

	metapb "github.com/ridgekv/ridge/proto/ridge/meta/v1"
	"github.com/ridgekv/ridge/tests/harness"
)

// TestLostStores: under load, a store that stays down loses its replicas to
// another one, which gets them as range images, without a person. It comes back
// and cleans up after itself. Then another one is lost for good and forgotten: it
// is replaced at once and never taken in again.
func TestLostStores(t *testing.T) {
	t.Parallel()
	c := harness.New(t, harness.Options{Stores: 4, StoreDownAfter: 4 * time.Second})
	kv := c.Client(t)
	fill(t, kv, "k/", 5000, 500)
	for _, at := range []string{"k/00002500", "load/m"} {
		harness.Must(t, c.Split(t.Context(), []byte(at)))
	}
	harness.Must(t, c.AwaitReplicated(t.Context()))
	l := startLoad(t, kv, "load/", 4)
	l.awaitWrites(t, 100)
	lost, err := c.LeaderOf(t.Context(), []byte("k/"))
	harness.Must(t, err)
	lostID, err := c.StoreID(t.Context(), lost)
	harness.Must(t, err)
	lost.Kill()
	awaitReplaced(t, c, lostID)
	l.awaitWrites(t, 100)
	// What it still has is of no member any more: it is destroyed, and nothing of
	// it is served.
	harness.Must(t, lost.Start())
	harness.Must(t, lost.AwaitReady(t.Context()))
	harness.Must(t, c.AwaitNoStrays(t.Context(), 30*time.Second))
	l.awaitWrites(t, 100)
	forget(t, c, l)
	l.verify(t)
	checkFilled(t, kv, "k/", 5000, 500)
	seen, err := c.AwaitEqual(t.Context(), time.Minute)
	harness.Must(t, err)
	t.Logf("compared %+v", seen)
	harness.Must(t, c.AwaitNoStrays(t.Context(), 30*time.Second))
	harness.Must(t, c.Audit())
}

// awaitReplaced waits until no range has a replica on the store.
func awaitReplaced(t *testing.T, c *harness.Cluster, storeID uint64) {
	t.Helper()
	harness.Must(t, harness.Eventually(t.Context(), 2*time.Minute, "no replica is on the lost store",
		func(context.Context) error {
			if n := held(t, c, storeID); n > 0 {
				return fmt.Errorf("%d are", n)
			}
			return nil
		}))
	harness.Must(t, c.AwaitReplicated(t.Context()))
}

// forget loses a store for good. PD would wait for an hour for it.
func forget(t *testing.T, c *harness.Cluster, l *load) {
	t.Helper()
	c.Run(t, 0, "config", "set", "store_down_after", "1h")
	lost, err := c.LeaderOf(t.Context(), []byte("load/a"))
	harness.Must(t, err)
	storeID, err := c.StoreID(t.Context(), lost)
	harness.Must(t, err)
	id := strconv.FormatUint(storeID, 10)
	contains(t, c.Run(t, 2, "store", "forget", id), "--yes")
	contains(t, c.Run(t, 1, "store", "forget", id, "--yes"), "is alive")
	lost.Kill()
	harness.Must(t, harness.Eventually(t.Context(), time.Minute, "the store can be forgotten",
		func(ctx context.Context) error {
			r, err := c.Ridge(ctx, "", "store", "forget", id, "--yes")
			if err == nil && r.Code != 0 {
				err = errors.New(r.Err)
			}
			return err
		}))
	now, err := state(t.Context(), c, storeID)
	harness.Must(t, err)
	if now != metapb.StoreState_STORE_STATE_GONE {
		t.Errorf("forgotten, the store is %s", now)
	}
	awaitReplaced(t, c, storeID)
	l.awaitWrites(t, 100)
	harness.Must(t, lost.Start())
	ended, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	if err := lost.Wait(ended); err == nil || ended.Err() != nil {
		t.Errorf("a store that is gone was taken in again: %v", err)
	}
	contains(t, c.Run(t, 0, "why", "store", id), "is gone")
}
