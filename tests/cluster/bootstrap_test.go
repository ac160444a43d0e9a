package cluster

import (
	"testing"
	"time"

	"github.com/ridgekv/ridge/tests/harness"
)

// TestGrowth: one PD and one store serve; with two more stores every range gets
// three voters, under load, and all replicas are equal.
func TestGrowth(t *testing.T) {
	t.Parallel()
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

// TestStoresRegisterAtOnce: whoever wins bears the first range, and there is
// one cluster.
func TestStoresRegisterAtOnce(t *testing.T) {
	t.Parallel()
	c := harness.New(t, harness.Options{Stores: 3, Unready: true})
	harness.Must(t, c.AwaitReplicated(t.Context()))
	stores, err := c.PD().ListStores(t.Context())
	harness.Must(t, err)
	if len(stores.GetStores()) != 3 {
		t.Errorf("stores: %v", stores.GetStores())
	}
}
