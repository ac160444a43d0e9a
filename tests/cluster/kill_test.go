package cluster

import (
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
	t.Parallel()
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
