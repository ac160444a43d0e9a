package simtest

import (
	"fmt"
	"slices"
)

// balanced demands that stores are filled alike, for the size of their disks,
// and lead alike, within 10 % of the mean or what one range makes.
func (x *trial) balanced() {
	x.Helper()
	var bytes, leaders, capacity, stores float64
	shares := x.Shares()
	for id, s := range shares {
		if x.stores[id].alive {
			bytes, leaders = bytes+float64(s.Bytes), leaders+float64(s.Leaders)
			capacity, stores = capacity+float64(x.stores[id].capacity), stores+1
		}
	}
	for _, id := range x.storeIDs() {
		s := shares[id]
		if !x.stores[id].alive {
			continue
		}
		want := bytes * float64(x.stores[id].capacity) / capacity
		x.near(fmt.Sprintf("bytes on store %d", id), float64(s.Bytes), want,
			2*float64(x.o.RangeSizeBytes))
		x.near(fmt.Sprintf("leaders on store %d", id), float64(s.Leaders), leaders/stores, 2)
	}
}

func (x *trial) near(what string, have, want, slack float64) {
	x.Helper()
	if d := max(have-want, want-have); d > max(0.1*want, slack) {
		x.Errorf("%s: %.0f, evenly it were %.0f", what, have, want)
	}
}

// scaleOut: new stores get their share, and little else moves.
func scaleOut(x *trial) {
	x.options.Stores = []int{4, 10}[x.rnd.IntN(2)]
	more := 1
	if x.options.Stores == 10 {
		more = 10
	}
	x.begin()
	for range more {
		x.AddStore()
	}
	all := 3 * len(x.ranges)
	least := all * more / len(x.stores)
	x.settle(x.repairTime(all))
	x.balanced()
	x.whole()
	x.movesWithin(1.25, least+more)
}

// unequalDisks: a store with a larger disk holds more.
func unequalDisks(x *trial) {
	base := x.options.RangeSizeBytes
	if base == 0 {
		base = 64 << 20
	}
	base *= uint64(3 * x.options.Ranges / x.options.Stores)
	x.options.Capacity = func(id uint64) uint64 { return base * (3 + id%3) }
	x.Cluster = New(x.options)
	least := x.surplus()
	x.settle(x.repairTime(x.options.Ranges))
	x.balanced()
	x.whole()
	// Ranges differ by up to a factor of three, and lighter ones may move.
	x.movesWithin(1.5, least)
}

// surplus is how many replicas of the usual size lie on stores that have more
// than their share of the disks.
func (x *trial) surplus() int {
	var bytes, capacity, over float64
	shares := x.Shares()
	for id, s := range shares {
		bytes, capacity = bytes+float64(s.Bytes), capacity+float64(x.stores[id].capacity)
	}
	for id, s := range shares {
		over += max(0, float64(s.Bytes)-bytes*float64(x.stores[id].capacity)/capacity)
	}
	return int(over / float64(x.o.RangeSizeBytes))
}

// together counts the ranges of which two replicas share a zone.
func (x *trial) together() int {
	n := 0
	for _, r := range x.ranges {
		var zones []string
		for _, m := range r.desc.GetReplicas() {
			zones = append(zones, x.stores[m.GetStoreId()].record.GetLabels()["zone"])
		}
		slices.Sort(zones)
		if len(slices.Compact(zones)) < len(r.desc.GetReplicas()) {
			n++
		}
	}
	return n
}

// zoneLoss: replicas lie in zones of their own; when a zone is lost no range is,
// and when it comes back they lie apart again.
func zoneLoss(x *trial) {
	zone := func(id uint64) string { return fmt.Sprint("z", id%3) }
	x.options.Stores = 6 + 3*x.rnd.IntN(3)
	x.options.LocationLabels = []string{"zone"}
	x.options.Labels = func(id uint64) map[string]string { return map[string]string{"zone": zone(id)} }
	x.begin()
	if n := x.together(); n > 0 {
		x.Fatalf("%d ranges have two replicas in a zone", n)
	}
	lost := zone(x.any())
	for _, id := range x.storeIDs() {
		if zone(id) == lost {
			x.Kill(id)
		}
	}
	x.Elapse(x.o.StoreDownAfter)
	x.settle(x.repairTime(3 * len(x.ranges)))
	x.whole()
	for _, id := range x.storeIDs() {
		x.Start(id)
	}
	x.settle(x.repairTime(3 * len(x.ranges)))
	if n := x.together(); n > 0 {
		x.Errorf("%d ranges have two replicas in a zone", n)
	}
	x.balanced()
	x.whole()
}

// hotSpan: neighbouring ranges, which few stores lead, bear nearly all the load;
// it is spread.
func hotSpan(x *trial) {
	x.options.Clustered = true
	x.begin()
	hot := len(x.ranges) / 5
	first := x.rnd.IntN(len(x.ranges) - hot)
	x.stimulus++
	for i, r := range x.ranges {
		r.reads, r.writes = 10, 2
		if i >= first && i < first+hot {
			r.reads = 4000
		}
	}
	if most, mean := x.heat(); most < 2*mean {
		x.Fatalf("the span is not hot: a store bears %d operations/s, the mean is %d", most, mean)
	}
	x.settle(x.repairTime(2 * len(x.ranges)))
	if most, mean := x.heat(); most > mean*3/2+4000 {
		x.Errorf("a store bears %d operations/s, the mean is %d", most, mean)
	}
	x.whole()
}

// heat is what the store under the most load bears, and what all do on average.
func (x *trial) heat() (most, mean uint64) {
	var sum uint64
	for _, s := range x.Shares() {
		sum, most = sum+s.Reads+s.Writes, max(most, s.Reads+s.Writes)
	}
	return most, sum / uint64(len(x.stores))
}
