package agent

import (
	"testing"
	"time"

	"golang.org/x/time/rate"

	pdpb "github.com/ridgekv/ridge/proto/ridge/pd/v1"
	"github.com/ridgekv/ridge/storenode/internal/evaluate"
)

// TestRates: a steady load is known after a while, an end of it forgotten; a
// counter that began anew, and a range that went, leave nothing behind.
func TestRates(t *testing.T) {
	r, now, c := newRates(), time.Unix(1000, 0), evaluate.Stats{}
	step := func(reads, writes uint64) (uint64, uint64) {
		now = now.Add(time.Second)
		c.ReadOps, c.WriteOps = c.ReadOps+reads, c.WriteOps+writes
		r.take(map[uint64]evaluate.Stats{7: c}, now)
		return r.of(7, c.SpanEpoch)
	}
	var read, write uint64
	for range 60 {
		read, write = step(1000, 10)
	}
	if read < 990 || read > 1000 || write < 9 || write > 10 {
		t.Fatalf("%d reads, %d writes a second", read, write)
	}
	for range 60 {
		read, _ = step(0, 0)
	}
	if read > 1 {
		t.Fatalf("%d reads a second of none", read)
	}
	step(5000, 0)
	c = evaluate.Stats{}
	if read, write = step(0, 0); read != 0 || write != 0 {
		t.Fatalf("%d, %d after the counters began anew", read, write)
	}
	for range 5 {
		step(1000, 0)
	}
	if read, _ = r.of(7, 1); read != 0 {
		t.Fatalf("half of a split is told to bear %d", read)
	}
	c.SpanEpoch = 1
	if read, _ = step(1000, 0); read != 0 {
		t.Fatalf("half of a split bears %d at once", read)
	}
	if read, _ = step(1000, 0); read == 0 {
		t.Fatal("half of a split bears nothing")
	}
	r.take(nil, now)
	if len(r.mu.known) != 0 {
		t.Fatal("a range that went is remembered")
	}
}

// TestImageRate: the rate that PD asks for is that of the limiter which all
// images sent here share; none is none.
func TestImageRate(t *testing.T) {
	a, _ := newTestAgent(t)
	a.d.Images = rate.NewLimiter(rate.Inf, 1)
	for _, n := range []uint64{1 << 20, 5, 5, 0} {
		want := rate.Inf
		if n > 0 {
			want = rate.Limit(n)
		}
		a.Configure(&pdpb.ClusterConfig{ImageBytesPerSecond: n})
		a.Configure(nil)
		if got := a.d.Images.Limit(); got != want {
			t.Fatalf("PD asks for %d, the limiter has %v", n, got)
		}
	}
}
