package cluster

import (
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/ridgekv/ridge/proto/keys"
	"github.com/ridgekv/ridge/tests/harness"
)

// TestPowerCut: all stores lose their power at once, while writing and
// splitting, and each loses something of what it had not yet flushed. No
// acknowledged write is lost, no replica is given up, replicas end equal.
func TestPowerCut(t *testing.T) {
	t.Parallel()
	const rows = 20_000
	rounds := 4
	if harness.Long() {
		rounds = 25
	}
	seed := rand.Uint64()
	if s, err := strconv.ParseUint(os.Getenv("RIDGE_SEED"), 10, 64); err == nil {
		seed = s
	}
	t.Logf("RIDGE_SEED=%d", seed)
	rnd := rand.New(rand.NewPCG(seed, 0))
	c := harness.New(t, harness.Options{StoreFlags: []string{"--log-level", "debug"}})
	kv := c.Client(t)
	fill(t, kv, "k/", rows, 1000) // enough for a cut of the log
	for round := range rounds {
		l := startPacedLoad(t, kv, fmt.Sprintf("load/%02d/", round), 8, 0)
		l.awaitWrites(t, 200+rnd.IntN(2000))
		if rnd.IntN(2) == 0 {
			at := fmt.Appendf(nil, "load/%02d/%c", round, 'a'+rnd.IntN(26))
			harness.Must(t, c.Split(t.Context(), at))
		}
		l.awaitWrites(t, 1+rnd.IntN(300))
		for _, p := range c.Stores {
			p.Kill()
		}
		for _, p := range c.Stores {
			done, err := p.PowerCut(rnd)
			harness.Must(t, err)
			t.Logf("round %d: %s", round, strings.Join(done, "; "))
		}
		for _, p := range c.Stores {
			harness.Must(t, p.Start())
		}
		for _, p := range c.Stores {
			harness.Must(t, p.AwaitReady(t.Context()))
		}
		l.awaitWrites(t, 50)
		l.verify(t)
		for _, p := range c.Stores {
			if out := p.Output(); strings.Contains(out, "quarantined") ||
				strings.Contains(out, "poisoned") {
				t.Fatalf("round %d: %s gave up a replica", round, p.Name)
			}
		}
	}
	n := 0
	for row, err := range kv.Scan(t.Context(), keys.Prefix([]byte("k/"))) {
		harness.Must(t, err)
		if string(row.Value) != string(value(n, 1000)) {
			t.Fatalf("%s has another value", row.Key)
		}
		n++
	}
	if n != rows {
		t.Errorf("%d rows of %d", n, rows)
	}
	_, err := c.AwaitEqual(t.Context(), time.Minute)
	harness.Must(t, err)
}
