package simtest

import (
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"testing"
	"time"

	"go.uber.org/goleak"

	metapb "github.com/ridgekv/ridge/proto/ridge/meta/v1"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	leaving  = metapb.StoreState_STORE_STATE_LEAVING
	draining = metapb.StoreState_STORE_STATE_DRAINING
	gone     = metapb.StoreState_STORE_STATE_GONE
)

// trial is one scenario with one seed. Its methods end the test when they fail.
type trial struct {
	*testing.T
	*Cluster
	rnd     *rand.Rand
	options Options
	// least is how few replica moves would do, rest the longest time of the virtual
	// clock that PD took to come to rest.
	least int
	rest  time.Duration
}

// scenarios are what a cluster goes through. Each draws its size from the seed.
var scenarios = []struct {
	name string
	run  func(*trial)
}{
	{"lost store", lostStore},
	{"decommission", decommission},
	{"drain", drain},
	{"rolling restart", rollingRestart},
	{"flapping", flapping},
	{"bad network", badNetwork},
	{"PD leader change", leaderChange},
	{"growth", growth},
	{"scale out", scaleOut},
	{"unequal disks", unequalDisks},
	{"zone loss", zoneLoss},
	{"hot span", hotSpan},
}

// TestScenarios runs every scenario, in the long form with many seeds and up to
// ten thousand ranges. RIDGE_SEED replays one.
func TestScenarios(t *testing.T) {
	first, seeds, largest := uint64(1), 1, 100
	if os.Getenv("RIDGE_LONG") != "" {
		seeds, largest = 100/len(scenarios)+1, 10_000
	}
	if s := os.Getenv("RIDGE_SEED"); s != "" {
		n, err := strconv.ParseUint(s, 10, 64)
		if err != nil {
			t.Fatalf("RIDGE_SEED=%s: %v", s, err)
		}
		first, seeds = n, 1
	}
	var out results
	for _, s := range scenarios {
		for i := range seeds {
			seed := first + uint64(i)
			t.Run(fmt.Sprintf("%s/%d", s.name, seed), func(t *testing.T) {
				x := &trial{T: t, rnd: rand.New(rand.NewPCG(seed, 1)), least: -1}
				began := time.Now()
				defer func() { out.add(s.name, seed, x, time.Since(began)) }()
				x.options = x.draw(seed, largest)
				s.run(x)
				x.lawful()
			})
		}
	}
	t.Log(out.String())
}

// draw is a cluster of a size that the seed tells.
func (x *trial) draw(seed uint64, largest int) Options {
	ranges := 20
	for ranges < largest && x.rnd.IntN(5) < 3 {
		ranges *= 3
	}
	o := Options{
		Seed: seed, Stores: 4 + x.rnd.IntN(9), Ranges: min(ranges, largest),
		ImageBytesPerSecond: 64 << 20 << x.rnd.IntN(4), SplitSizeBytes: 128 << 20,
	}
	if o.Ranges > 1000 {
		// Who has so many ranges on a dozen stores raises the limits too: it is over
		// sooner, in virtual time and in real time.
		o.Pass, o.FullReport = 2*time.Second, 30*time.Second
		o.StoreMoves, o.LeaderTransfers = 16, 32
	}
	return o
}

// begin makes the cluster and lets it come to rest.
func (x *trial) begin() {
	x.Helper()
	x.Cluster = New(x.options)
	x.settle(x.repairTime(x.options.Ranges))
	x.Moves, x.Transfers = 0, 0
}

func (x *trial) lawful() {
	x.Helper()
	for _, f := range x.Faults() {
		x.Error(f)
	}
}

// quiet is longer than any planner waits for what its last change did.
const quiet = 45 * time.Second

// settle lets PD come to rest within a bound of virtual time.
func (x *trial) settle(within time.Duration) {
	x.Helper()
	took, err := x.Settle(within, quiet)
	if err != nil {
		x.Fatal(err)
	}
	x.rest = max(x.rest, took)
}

// whole demands that every range has what it should have, that no replica is
// left that is no member, and that nothing happens for an hour.
func (x *trial) whole() {
	x.Helper()
	if bad := x.Whole(); len(bad) > 0 {
		x.Fatalf("%d ranges are not whole: %s; %s", len(bad), bad[0], x.pd.busyWith())
	}
	x.Elapse(2 * time.Minute) // strangers are destroyed once it is certain
	if n := x.Strangers(); n > 0 {
		x.Errorf("%d replicas are left that are no members", n)
	}
	if err := x.Still(time.Hour); err != nil {
		x.Error(err)
	}
}

// movesWithin bounds the moves by a factor over the least number.
func (x *trial) movesWithin(factor float64, least int) {
	x.Helper()
	x.least = least
	if float64(x.Moves) > factor*float64(least)+1 {
		x.Errorf("%d moves, %d would do", x.Moves, least)
	}
}

// any is a store.
func (x *trial) any() uint64 { return x.storeIDs()[x.rnd.IntN(len(x.stores))] }

// repairTime bounds how long n replicas take to move: images of 64 MiB on
// average, and what the steps of an operator take, in StoreMoves at a time.
func (x *trial) repairTime(n int) time.Duration {
	image := time.Duration(x.o.RangeSizeBytes * uint64(time.Second) / x.o.ImageBytesPerSecond)
	return 2*time.Minute + time.Duration(n)*(8*x.Pass/time.Duration(x.o.StoreMoves)+2*image)
}

func lostStore(x *trial) {
	x.begin()
	lost := x.any()
	n := len(x.stores[lost].held)
	x.Kill(lost)
	x.Elapse(x.o.StoreDownAfter)
	x.settle(x.repairTime(n))
	x.whole()
	x.movesWithin(1, n)
	if s := x.Shares()[lost]; s.Replicas != 0 {
		x.Errorf("the lost store has %+v", s)
	}
	x.Start(lost)
	x.settle(x.repairTime(n))
	x.whole()
}

func decommission(x *trial) {
	x.begin()
	id := x.any()
	n := len(x.stores[id].held)
	x.SetState(id, leaving)
	x.settle(x.repairTime(n))
	x.whole()
	x.movesWithin(1, n)
	if s := x.stores[id]; len(s.held) != 0 || s.used != 0 {
		x.Errorf("the store still holds %d replicas, %d bytes", len(s.held), s.used)
	}
	x.SetState(id, gone)
	x.Kill(id)
	x.settle(5 * time.Minute)
	x.whole()
}

func drain(x *trial) {
	x.begin()
	id := x.any()
	x.SetState(id, draining)
	x.settle(10 * time.Minute)
	if s := x.Shares()[id]; s.Leaders != 0 || x.Moves != 0 {
		x.Errorf("%+v after %d moves", s, x.Moves)
	}
	x.SetState(id, metapb.StoreState_STORE_STATE_UP)
	x.settle(10 * time.Minute)
	x.whole()
}

func rollingRestart(x *trial) {
	x.begin()
	for _, id := range x.storeIDs() {
		x.Kill(id)
		x.Elapse(time.Duration(1+x.rnd.IntN(60)) * time.Second)
		x.Start(id)
		x.Elapse(10 * time.Second)
	}
	x.settle(10 * time.Minute)
	x.whole()
	x.movesWithin(0, 0)
}

func flapping(x *trial) {
	x.begin()
	id := x.any()
	for range 20 {
		x.Kill(id)
		x.Elapse(time.Duration(x.rnd.Int64N(int64(8 * time.Minute))))
		x.Start(id)
		x.Elapse(time.Duration(x.rnd.Int64N(int64(3 * time.Minute))))
	}
	x.settle(x.repairTime(2 * len(x.ranges)))
	x.whole()
}

func badNetwork(x *trial) {
	x.begin()
	x.Network = Network{Lose: 0.2, Repeat: 0.2, Delay: 0.3, MaxDelay: 8 * time.Second}
	lost := x.any()
	n := len(x.stores[lost].held)
	x.Kill(lost)
	x.Elapse(x.o.StoreDownAfter)
	x.Settle(4*x.repairTime(n), 30*time.Second)
	x.Network = Network{}
	x.settle(x.repairTime(n))
	x.whole()
}

func leaderChange(x *trial) {
	x.begin()
	lost := x.any()
	n := len(x.stores[lost].held)
	x.Kill(lost)
	x.Elapse(x.o.StoreDownAfter)
	const changes = 5
	for range changes {
		x.Elapse(time.Duration(x.rnd.Int64N(int64(time.Minute))))
		x.ChangeLeader()
	}
	x.Elapse(x.o.StoreDownAfter) // a new leader takes the lost store for one that may come
	x.settle(x.repairTime(n))
	x.whole()
	// A new leader knows nothing of what was in flight, and may end a move that had
	// its new voter in another way.
	x.movesWithin(1, n+changes)
}

func growth(x *trial) {
	x.begin()
	x.stimulus++
	for _, r := range x.ranges {
		r.size *= 1 + x.rnd.Uint64N(6)
	}
	x.settle(20 * time.Minute)
	for _, r := range x.ranges {
		if r.size >= x.o.SplitSizeBytes {
			x.Fatalf("%s has %d bytes", r, r.size)
		}
	}
	x.whole()
}
