package cluster

import (
	"context"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/ridgekv/ridge/client"
	"github.com/ridgekv/ridge/proto/keys"
	"github.com/ridgekv/ridge/tests/harness"
)

// TestKills: stores are killed one after the other under load. No acknowledged
// write is lost, no key is unwritable for more than 2 s, replicas end equal.
func TestKills(t *testing.T) {
	kills := 4
	if harness.Long() {
		kills = 20
	}
	c := harness.New(t, harness.Options{})
	kv := c.Client(t)
	for ch := byte('d'); ch <= 'x'; ch += 5 {
		harness.Must(t, c.Split(t.Context(), fmt.Appendf(nil, "load/%c", ch)))
	}
	harness.Must(t, c.AwaitReplicated(t.Context()))
	l := startLoad(t, kv, "load/", 8)
	l.awaitWrites(t, 400)
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 0))
	var worst time.Duration
	for i := range kills {
		l.resetLongest()
		victim := c.Stores[rnd.IntN(len(c.Stores))]
		if i == 0 { // at least once it is a leader's
			leader, err := c.LeaderOf(t.Context(), []byte("load/m"))
			harness.Must(t, err)
			victim = leader
		}
		victim.Kill()
		l.awaitWrites(t, 2000)
		harness.Must(t, victim.Start())
		harness.Must(t, victim.AwaitReady(t.Context()))
		l.awaitWrites(t, 500)
		longest, key := l.resetLongest()
		t.Logf("kill %d of %s: longest time a key could not be written: %s", i+1, victim.Name, longest)
		if longest > 2*time.Second {
			t.Errorf("kill %d of %s: %s could not be written for %s", i+1, victim.Name, key, longest)
		}
		worst = max(worst, longest)
	}
	t.Logf("worst of %d kills: %s", kills, worst)
	l.verify(t)
	_, err := c.AwaitEqual(t.Context(), time.Minute)
	harness.Must(t, err)
}

// TestRestartOfEverything: kill -9 of all processes at once, while writing,
// loses nothing that was acknowledged.
func TestRestartOfEverything(t *testing.T) {
	c := harness.New(t, harness.Options{PDs: 3, SplitSize: "1MB"})
	kv := c.Client(t)
	fill(t, kv, "k/", 3000, 1000)
	for range 2 {
		l := startLoad(t, kv, "load/", 4)
		l.awaitWrites(t, 300)
		harness.Must(t, c.RestartAll(t.Context()))
		l.awaitWrites(t, 100)
		l.verify(t)
	}
	n := 0
	for row, err := range kv.Scan(t.Context(), keys.Prefix([]byte("k/"))) {
		harness.Must(t, err)
		if string(row.Value) != string(value(n, 1000)) {
			t.Fatalf("%s has another value", row.Key)
		}
		n++
	}
	if n != 3000 {
		t.Errorf("%d rows of 3000", n)
	}
	_, err := c.AwaitEqual(t.Context(), time.Minute)
	harness.Must(t, err)
}

// TestRollingRestart: stores that are stopped by SIGTERM hand their leaders
// away: no write fails and none waits for an election.
func TestRollingRestart(t *testing.T) {
	c := harness.New(t, harness.Options{})
	kv := c.Client(t)
	harness.Must(t, c.Split(t.Context(), []byte("load/m")))
	harness.Must(t, c.AwaitReplicated(t.Context()))
	l := startLoad(t, kv, "load/", 4)
	l.awaitWrites(t, 200)
	l.resetLongest()
	for _, p := range c.Stores {
		began := time.Now()
		harness.Must(t, p.Stop())
		t.Logf("%s stopped in %s", p.Name, time.Since(began).Round(time.Millisecond))
		l.awaitWrites(t, 200)
		harness.Must(t, p.Start())
		harness.Must(t, p.AwaitReady(t.Context()))
		harness.Must(t, c.AwaitReplicated(t.Context()))
	}
	longest, key := l.resetLongest()
	t.Logf("longest time a key could not be written: %s (%s)", longest, key)
	if longest > 2*time.Second {
		t.Errorf("%s could not be written for %s", key, longest)
	}
	l.verify(t)
}

// TestLostStoreIsReplaced: a store that stays down loses its replicas to
// another one, which gets them as range images, without a person.
func TestLostStoreIsReplaced(t *testing.T) {
	c := harness.New(t, harness.Options{StoreDownAfter: 4 * time.Second})
	kv := c.Client(t)
	fill(t, kv, "k/", 5000, 500)
	harness.Must(t, c.Split(t.Context(), []byte("k/00002500")))
	harness.Must(t, c.AwaitReplicated(t.Context()))
	_, err := c.AddStore(t.Context())
	harness.Must(t, err)
	lost := c.Stores[0]
	lostID, err := c.StoreID(t.Context(), lost)
	harness.Must(t, err)
	lost.Kill()
	harness.Must(t, harness.Eventually(t.Context(), 2*time.Minute, "no replica is on the lost store",
		func(ctx context.Context) error {
			routes, err := c.Routes(ctx)
			if err != nil {
				return err
			}
			for _, r := range routes {
				for _, p := range r.GetRange().GetReplicas() {
					if p.GetStoreId() == lostID {
						return fmt.Errorf("range %d still is", r.GetRange().GetRangeId())
					}
				}
			}
			return nil
		}))
	seen, err := c.AwaitEqual(t.Context(), time.Minute)
	harness.Must(t, err)
	if seen.Keys != 5000 {
		t.Errorf("compared %+v", seen)
	}
	// It comes back with replicas that are no members any more: they are
	// destroyed, and nothing of them is served.
	harness.Must(t, lost.Start())
	harness.Must(t, lost.AwaitReady(t.Context()))
	checkFilled(t, kv, "k/", 5000, 500)
}

func checkFilled(t *testing.T, kv *client.Client, prefix string, n, size int) {
	t.Helper()
	i := 0
	for row, err := range kv.Scan(t.Context(), keys.Prefix([]byte(prefix))) {
		harness.Must(t, err)
		if want := fmt.Sprintf("%s%08d", prefix, i); string(row.Key) != want ||
			string(row.Value) != string(value(i, size)) {
			t.Fatalf("row %d: key %s, want %s, or another value", i, row.Key, want)
		}
		i++
	}
	if i != n {
		t.Fatalf("%d rows of %d", i, n)
	}
}
