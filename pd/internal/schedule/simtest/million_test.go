package simtest

import (
	"math/rand/v2"
	"os"
	"runtime"
	"testing"
	"time"
)

// TestMillion: a thousand stores with a million ranges lose one store and, while
// it is being replaced, PD's leader. Only in the long form.
func TestMillion(t *testing.T) {
	if os.Getenv("RIDGE_LONG") == "" {
		t.Skip("takes minutes and gigabytes: make sim")
	}
	began := time.Now()
	x := &trial{T: t, rnd: rand.New(rand.NewPCG(1, 1)), Cluster: New(Options{
		Seed: 1, Stores: 1000, Ranges: 1_000_000, ImageBytesPerSecond: 256 << 20,
		Pass: 10 * time.Second, FullReport: time.Minute, StoreDownAfter: 2 * time.Minute,
	})}
	x.settle(time.Minute)
	t.Logf("a million ranges are at rest after %s", time.Since(began).Round(time.Second))
	lost := x.any()
	n := len(x.stores[lost].held)
	x.Kill(lost)
	x.Elapse(x.o.StoreDownAfter + 40*time.Second)
	x.ChangeLeader()
	x.Elapse(x.o.StoreDownAfter)
	x.settle(20 * time.Minute)
	if bad := x.Whole(); len(bad) > 0 {
		t.Fatalf("%d ranges are not whole: %s; %s", len(bad), bad[0], x.pd.busyWith())
	}
	x.movesWithin(1, n)
	if err := x.Still(5 * time.Minute); err != nil {
		t.Error(err)
	}
	x.lawful()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	t.Logf("%d replicas lost, %d moves; longest pass %s; %s virtual in %s; %d MiB from the system",
		n, x.Moves, x.pd.longest.Round(time.Millisecond),
		x.now.Sub(genesis).Round(time.Second),
		time.Since(began).Round(time.Second), m.Sys>>20)
}
