package cluster

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"testing"
	"time"

	metapb "github.com/ridgekv/ridge/proto/ridge/meta/v1"
	"github.com/ridgekv/ridge/tests/harness"
)

// TestStoreLives: under a load that checks every acknowledged write, a store is
// drained, restarted and resumed, then decommissioned, called back half way and
// decommissioned again: it ends gone, with no replica, no row and no Raft log.
func TestStoreLives(t *testing.T) {
	c := harness.New(t, harness.Options{Stores: 4})
	kv := c.Client(t)
	for _, at := range []string{"load/h", "load/p", "load/v"} {
		harness.Must(t, c.Split(t.Context(), []byte(at)))
	}
	harness.Must(t, c.AwaitReplicated(t.Context()))
	l := startLoad(t, kv, "load/", 4)
	l.awaitWrites(t, 200)
	leader, err := c.LeaderOf(t.Context(), []byte("load/m"))
	harness.Must(t, err)
	storeID, err := c.StoreID(t.Context(), leader)
	harness.Must(t, err)
	id := strconv.FormatUint(storeID, 10)
	restartDrained(t, c, l, leader, id)
	callBack(t, c, storeID)
	decommission(t, c, l, leader, storeID)
	l.verify(t)
	settled(t, c)
}

// settled demands what must hold after each life: replicas are equal, none is
// left where it is no member, and in no directory is a row without an owner. It
// ends the stores.
func settled(t *testing.T, c *harness.Cluster) {
	t.Helper()
	seen, err := c.AwaitEqual(t.Context(), time.Minute)
	harness.Must(t, err)
	t.Logf("compared %+v", seen)
	harness.Must(t, c.AwaitNoStrays(t.Context(), 30*time.Second))
	harness.Must(t, c.Audit())
}

// state is what PD says of a store.
func state(ctx context.Context, c *harness.Cluster, storeID uint64) (metapb.StoreState, error) {
	r, err := c.PD().ListStores(ctx)
	if err != nil {
		return 0, err
	}
	for _, s := range r.GetStores() {
		if s.GetStore().GetStoreId() == storeID {
			return s.GetStore().GetState(), nil
		}
	}
	return 0, fmt.Errorf("PD does not know store %d", storeID)
}

// callBack begins to decommission a store and cancels that when the first
// replica has left it.
func callBack(t *testing.T, c *harness.Cluster, storeID uint64) {
	t.Helper()
	id := strconv.FormatUint(storeID, 10)
	before := held(t, c, storeID)
	c.Run(t, 0, "store", "decommission", id)
	harness.Must(t, harness.Eventually(t.Context(), time.Minute, "a replica leaves the store",
		func(context.Context) error {
			if n := held(t, c, storeID); n >= before {
				return fmt.Errorf("it has %d replicas, had %d", n, before)
			}
			return nil
		}))
	c.Run(t, 0, "store", "decommission", id, "--cancel")
	now, err := state(t.Context(), c, storeID)
	harness.Must(t, err)
	if now != metapb.StoreState_STORE_STATE_UP {
		t.Errorf("called back, store %d is %s", storeID, now)
	}
	harness.Must(t, c.AwaitReplicated(t.Context()))
}

// held is how many replicas a store has, as far as PD knows.
func held(t *testing.T, c *harness.Cluster, storeID uint64) int {
	t.Helper()
	routes, err := c.Routes(t.Context())
	harness.Must(t, err)
	n := 0
	for _, r := range routes {
		for _, p := range r.GetRange().GetReplicas() {
			if p.GetStoreId() == storeID {
				n++
			}
		}
	}
	return n
}

// awaitGone waits until a store that was told to leave is gone and its process
// has ended by itself, and demands that nothing is left of its data.
func awaitGone(t *testing.T, c *harness.Cluster, p *harness.Process, storeID uint64) {
	t.Helper()
	harness.Must(t, harness.Eventually(t.Context(), 90*time.Second, "the store is gone",
		func(ctx context.Context) error {
			now, err := state(ctx, c, storeID)
			if err == nil && now != metapb.StoreState_STORE_STATE_GONE {
				d, err := c.PD().DescribeStore(ctx, storeID)
				return errors.Join(fmt.Errorf("it is %s: %v", now, d), err)
			}
			return err
		}))
	ended, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	_ = p.Wait(ended) // it ends with an error that says why
	if p.Running() {
		t.Error("the store still runs")
	}
	harness.Must(t, p.Empty())
}

// restartDrained drains a store, restarts it and calls it back.
func restartDrained(t *testing.T, c *harness.Cluster, l *load, p *harness.Process, id string) {
	t.Helper()
	contains(t, c.Run(t, 1, "store", "drain", "99"), "there is no store 99")
	c.Run(t, 0, "store", "drain", id, "--wait", "--wait-timeout", "50s")
	contains(t, c.Run(t, 0, "store", "list"), "draining")
	harness.Must(t, harness.Eventually(t.Context(), 30*time.Second, "the store may restart",
		func(ctx context.Context) error {
			r, err := c.Ridge(ctx, "", "store", "safe-to-restart", id)
			if err == nil && r.Code != 0 {
				err = errors.New(r.Out + r.Err)
			}
			return err
		}))
	l.resetLongest()
	harness.Must(t, p.Stop())
	l.awaitWrites(t, 200)
	// With one store away no other may restart.
	other := c.Stores[0]
	if other == p {
		other = c.Stores[1]
	}
	otherID, err := c.StoreID(t.Context(), other)
	harness.Must(t, err)
	harness.Must(t, harness.Eventually(t.Context(), 30*time.Second, "the others must stay",
		func(ctx context.Context) error {
			r, err := c.Ridge(ctx, "", "store", "safe-to-restart", strconv.FormatUint(otherID, 10))
			if err == nil && (r.Code != 1 || !strings.Contains(r.Out, "not safe")) {
				err = errors.New(r.Out + r.Err)
			}
			return err
		}))
	harness.Must(t, p.Start())
	harness.Must(t, p.AwaitReady(t.Context()))
	if longest, key := l.resetLongest(); longest > 2*time.Second {
		t.Errorf("%s could not be written for %s", key, longest)
	}
	c.Run(t, 0, "store", "resume", id)
	contains(t, c.Run(t, 0, "why", "store", id), "is drained", "is resumed")
}

// decommission empties one of four stores; one of three cannot be.
func decommission(
	t *testing.T, c *harness.Cluster, l *load, p *harness.Process, storeID uint64,
) {
	t.Helper()
	id := strconv.FormatUint(storeID, 10)
	contains(t, c.Run(t, 0, "plan", "decommission", id), "replicas move", "→ 0")
	contains(t, c.Run(t, 0, "what-if", "down", id), "0 of", "lose their quorum")
	c.Run(t, 0, "store", "decommission", id)
	l.awaitWrites(t, 200)
	awaitGone(t, c, p, storeID)
	other, err := c.StoreID(t.Context(), c.Stores[0])
	harness.Must(t, err)
	if other == storeID {
		other, err = c.StoreID(t.Context(), c.Stores[1])
		harness.Must(t, err)
	}
	contains(t, c.Run(t, 1, "store", "decommission", strconv.FormatUint(other, 10)),
		"left that are up: 2", "add a store", "replicas 1")
	contains(t, c.Run(t, 1, "store", "resume", id), "gone")
	contains(t, c.Run(t, 0, "why", "store", id), "is decommissioned", "is gone")
}
