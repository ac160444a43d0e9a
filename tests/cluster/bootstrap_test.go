package cluster

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/ridgekv/ridge/tests/harness"
)

// TestGrowth: one PD and one store serve; with two more stores every range gets
// three voters, under load, and all replicas are equal.
func TestGrowth(t *testing.T) {
	c := harness.New(t, harness.Options{Stores: 1})
	kv := c.Client(t)
	fill(t, kv, "before/", 2000, 100)
	l := startLoad(t, kv, "load/", 4)
	l.awaitWrites(t, 100)
	for range 2 {
		_, err := c.AddStore(t.Context())
		harness.Must(t, err)
	}
	harness.Must(t, c.AwaitReplicated(t.Context()))
	l.awaitWrites(t, 100)
	l.verify(t)
	seen, err := c.AwaitEqual(t.Context(), time.Minute)
	harness.Must(t, err)
	if seen.Keys < 2000 || seen.Replicas < 3 {
		t.Errorf("compared %+v", seen)
	}
}

// TestThreePDs: three PD nodes elect a leader; when it is killed, another one
// serves, and data is served all the time.
func TestThreePDs(t *testing.T) {
	c := harness.New(t, harness.Options{PDs: 3, Stores: 3})
	kv := c.Client(t)
	l := startLoad(t, kv, "load/", 4)
	l.awaitWrites(t, 200)
	first, err := c.PDLeader(t.Context())
	harness.Must(t, err)
	first.Kill()
	harness.Must(t, harness.Eventually(t.Context(), 20*time.Second, "another PD leads",
		func(ctx context.Context) error {
			next, err := c.PDLeader(ctx)
			if err == nil && next == first {
				err = errors.New("the dead one is still named")
			}
			if err != nil {
				return err
			}
			_, err = kv.Timestamp(ctx)
			return err
		}))
	l.awaitWrites(t, 200)
	harness.Must(t, c.Split(t.Context(), []byte("load/m")))
	harness.Must(t, first.Start())
	harness.Must(t, first.AwaitReady(t.Context()))
	l.awaitWrites(t, 200)
	l.verify(t)
	_, err = c.AwaitEqual(t.Context(), time.Minute)
	harness.Must(t, err)
}

// TestTwoStoresRegisterAtOnce: whoever wins bears the first range, and there is
// one cluster.
func TestTwoStoresRegisterAtOnce(t *testing.T) {
	c := harness.New(t, harness.Options{Stores: 3, Unready: true})
	harness.Must(t, c.AwaitReplicated(t.Context()))
	stores, err := c.PD().ListStores(t.Context())
	harness.Must(t, err)
	if len(stores.GetStores()) != 3 {
		t.Errorf("stores: %v", stores.GetStores())
	}
}
