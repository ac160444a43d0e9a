// Package simtest runs PD's planners, operators and limits on virtual clusters
// in virtual time, and judges what they do.
//
// What is real: schedule, operator, topology and the way of a report into them
// (service.Leading.Ingest). What is virtual: stores, which carry orders out as
// the real ones do (membership changes need the leader, a majority and the
// expected config epoch; images take time), the network, and the clock.
//
// Law: everything that happens follows from Options and the calls made, so a
// seed tells the whole story.
package simtest

import (
	"encoding/binary"
	"fmt"
	"maps"
	"math"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/ridgekv/ridge/pd/internal/operator"
	"github.com/ridgekv/ridge/pd/internal/schedule"
	"github.com/ridgekv/ridge/pd/internal/topology"
	metapb "github.com/ridgekv/ridge/proto/ridge/meta/v1"
	pdpb "github.com/ridgekv/ridge/proto/ridge/pd/v1"
)

// Options describe a virtual cluster. Zero fields are defaults.
type Options struct {
	Seed uint64
	// Stores, Ranges and Replicas are what the cluster begins with. Default 3.
	Stores, Ranges, Replicas int
	// RangeSizeBytes is the size of a range; sizes lie within half of it around
	// it. Default 64 MiB.
	RangeSizeBytes uint64
	// SplitSizeBytes is PD's. Default 96 MiB.
	SplitSizeBytes uint64
	// Capacity is the disk of a store. Default: four times an even share.
	Capacity func(storeID uint64) uint64
	// Labels are those of a store. Default none.
	Labels func(storeID uint64) map[string]string
	// Clustered: neighbours lie on the same stores and are led by the same one, as
	// splits leave them, not in turns.
	Clustered bool
	// ImageBytesPerSecond is how fast a store receives. Default 64 MiB.
	ImageBytesPerSecond uint64
	// StoreMoves and LeaderTransfers are PD's limits. Default 4 and 8.
	StoreMoves, LeaderTransfers int
	// LocationLabels, Rules and TolerancePercent are PD's. Default none, none, 5.
	LocationLabels   []string
	Rules            []*pdpb.PlacementRule
	TolerancePercent int
	// StoreDownAfter is PD's. Default 5 min.
	StoreDownAfter time.Duration
	// Pass, Heartbeat and FullReport are how often PD plans, stores say that they
	// live, and stores report everything. Default 1 s, 1 s, 10 s.
	Pass, Heartbeat, FullReport time.Duration
	// Network hurts messages.
	Network Network
}

// Network is what happens to messages: reports of stores and orders of PD.
type Network struct {
	// Lose, Repeat and Delay are the odds that a message is lost, comes twice,
	// or comes up to MaxDelay late.
	Lose, Repeat, Delay float64
	MaxDelay            time.Duration
}

// Cluster is a virtual cluster and the PD that leads it.
type Cluster struct {
	clock
	// Network may be changed at any time.
	Network Network
	// Pass and FullReport may be changed at any time.
	Pass, FullReport time.Duration

	o      Options
	rnd    *rand.Rand
	stores map[uint64]*store
	ranges []*vrange
	byID   map[uint64]*vrange
	pd     *placer
	nextID uint64
	// plan and allow are those of schedule, but where a test shows that faults of
	// planners are seen.
	plan  func(topology.View, operator.Flight) schedule.Plan
	allow func(topology.View, *topology.Range, operator.Step) string

	// Moves, Transfers and Splits count what was carried out, Planned the
	// operators that were admitted.
	Moves, Transfers, Splits, Planned int
	// lastPlan is when an operator was last admitted.
	lastPlan time.Time
	// worst is the smallest margin that a range had: how many voters more it could
	// have lost.
	worst int
	// faults are the laws that were broken; the first ones are kept.
	faults []string
	// stimulus counts what was done to the cluster from outside: a replica must
	// not come back to a store that it left since the last one.
	stimulus int
}

// vrange is the truth about a range. Its messages are never changed in place.
type vrange struct {
	desc *metapb.Range
	// leader is nil while nobody leads.
	leader     *metapb.Replica
	term       uint64
	size, keys uint64
	reads      uint64 // per second
	writes     uint64
	opsSince   time.Time
	readOps    uint64 // until opsSince
	writeOps   uint64
	applied    uint64
	// left is the stimulus at which the removal of a voter was begun, by store;
	// adding that of the learner that was added for the next one.
	left     map[uint64]int
	adding   int
	electing bool
}

// String shows the range as people see it.
func (r *vrange) String() string {
	out := fmt.Sprintf("range %d on", r.desc.GetRangeId())
	for _, m := range r.desc.GetReplicas() {
		out += fmt.Sprintf(" %d", m.GetStoreId())
		if m.GetRole() == metapb.Role_ROLE_LEARNER {
			out += "(learner)"
		}
		if m == r.leader {
			out += "*"
		}
	}
	return out
}

// genesis is when virtual time begins.
var genesis = time.Unix(1_700_000_000, 0)

func setDefault[T comparable](p *T, v T) {
	var zero T
	if *p == zero {
		*p = v
	}
}

// New makes a cluster whose replicas are spread evenly, and lets PD lead it.
func New(o Options) *Cluster {
	setDefault(&o.Stores, 3)
	setDefault(&o.Ranges, 3)
	setDefault(&o.Replicas, 3)
	setDefault(&o.RangeSizeBytes, 64<<20)
	setDefault(&o.SplitSizeBytes, 96<<20)
	setDefault(&o.ImageBytesPerSecond, 64<<20)
	setDefault(&o.StoreMoves, 4)
	setDefault(&o.LeaderTransfers, 8)
	setDefault(&o.TolerancePercent, 5)
	setDefault(&o.StoreDownAfter, 5*time.Minute)
	setDefault(&o.Pass, time.Second)
	setDefault(&o.Heartbeat, time.Second)
	setDefault(&o.FullReport, 10*time.Second)
	if o.Capacity == nil {
		even := o.RangeSizeBytes * uint64(o.Ranges*o.Replicas/o.Stores+1)
		o.Capacity = func(uint64) uint64 { return 4 * even }
	}
	c := &Cluster{
		o: o, rnd: rand.New(rand.NewPCG(o.Seed, 0)), nextID: 1000,
		stores: map[uint64]*store{}, byID: map[uint64]*vrange{},
		Network: o.Network, Pass: o.Pass, FullReport: o.FullReport,
		plan: schedule.Schedule, allow: schedule.Allow, worst: math.MaxInt,
	}
	c.now = genesis
	c.lastPlan = c.now
	for range o.Stores {
		c.admit()
	}
	for i := range o.Ranges {
		c.addRange(c.evenRange(i))
	}
	c.ChangeLeader()
	for _, id := range c.storeIDs() {
		c.stores[id].boot()
	}
	c.tick()
	return c
}

// evenRange is the i-th range: its replicas lie on the stores in turn.
func (c *Cluster) evenRange(i int) *vrange {
	r := &vrange{
		desc: &metapb.Range{
			RangeId: c.id(), Epoch: &metapb.Epoch{Config: 5, Span: 1},
			Span: &metapb.Span{Start: c.key(i), End: c.key(i + 1)},
		},
		term: 2, size: c.o.RangeSizeBytes/2 + c.rnd.Uint64N(c.o.RangeSizeBytes), keys: 1000,
		opsSince: c.now, applied: 100, left: map[uint64]int{},
	}
	// In turns, neighbours share stores no more than others do.
	first, stride := i, 1+i/c.o.Stores%max(1, c.o.Stores/c.o.Replicas)
	if c.o.Clustered {
		first, stride = i*c.o.Stores/c.o.Ranges, 1
	}
	for k := range min(c.o.Replicas, c.o.Stores) {
		r.desc.Replicas = append(r.desc.Replicas, &metapb.Replica{
			ReplicaId: c.id(), StoreId: uint64((first+k*stride)%c.o.Stores) + 1,
			Role: metapb.Role_ROLE_VOTER,
		})
	}
	c.setLeader(r, r.desc.Replicas[0])
	return r
}

// key is where the i-th range begins: nowhere for the first, and no end for the
// last.
func (c *Cluster) key(i int) []byte {
	if i == 0 || i == c.o.Ranges {
		return nil
	}
	return binary.BigEndian.AppendUint64(nil, uint64(i)<<32)
}

func (c *Cluster) addRange(r *vrange) {
	c.ranges = append(c.ranges, r)
	c.byID[r.desc.GetRangeId()] = r
	for _, m := range r.desc.GetReplicas() {
		s := c.stores[m.GetStoreId()]
		s.held[r.desc.GetRangeId()] = &replica{id: m.GetReplicaId(), full: true, r: r}
		s.used += r.size
	}
}

func (c *Cluster) id() uint64 {
	c.nextID++
	return c.nextID
}

func (c *Cluster) storeIDs() []uint64 { return slices.Sorted(maps.Keys(c.stores)) }

// tick lets PD plan again and again, and operators go on between.
func (c *Cluster) tick() {
	c.after(min(c.Pass, advancePeriod), func() {
		if c.now.Sub(c.pd.planned) >= c.Pass {
			c.pd.pass()
		}
		c.pd.advance()
		c.tick()
	})
}

// advancePeriod is how often operators are looked at. PD does it with each pass,
// but its passes are closer together than large virtual clusters can afford.
const advancePeriod = 500 * time.Millisecond

// Elapse lets d pass.
func (c *Cluster) Elapse(d time.Duration) { c.run(d) }

// Now is the virtual time.
func (c *Cluster) Now() time.Time { return c.now }

// Settle lets time pass until PD has wanted nothing for quiet, for as long as
// within. It returns how long it took until the last operator ended.
func (c *Cluster) Settle(within, quiet time.Duration) (time.Duration, error) {
	began, end := c.now, c.now.Add(within)
	last := c.now
	for c.now.Before(end) {
		c.run(c.Pass)
		if c.lastPlan.After(last) {
			last = c.lastPlan
		}
		if n := len(c.pd.operators.List(c.now)); n > 0 {
			last = c.now
		}
		if c.now.Sub(last) >= quiet {
			return last.Sub(began), nil
		}
	}
	return within, fmt.Errorf("not at rest after %s: %s", within, c.pd.busyWith())
}

// Still lets d pass, in which PD must want nothing.
func (c *Cluster) Still(d time.Duration) error {
	planned := c.Planned
	pass, full := c.Pass, c.FullReport
	// Nothing happens, so it may be looked at less often.
	c.Pass, c.FullReport = max(pass, 30*time.Second), max(full, 2*time.Minute)
	defer func() { c.Pass, c.FullReport = pass, full }()
	c.run(d)
	if c.Planned != planned {
		return fmt.Errorf("%d operators in %s of rest: %s", c.Planned-planned, d, c.pd.lastOperator)
	}
	return nil
}

// fault notes that a law was broken.
func (c *Cluster) fault(format string, args ...any) {
	if len(c.faults) < 20 {
		at := c.now.Sub(genesis)
		c.faults = append(c.faults, fmt.Sprintf("%s: ", at)+fmt.Sprintf(format, args...))
	}
}

// Faults are the laws that were broken so far.
func (c *Cluster) Faults() []string { return c.faults }

// message lets do happen at the other end of the network: soon, late, twice or
// never.
func (c *Cluster) message(do func()) {
	n := c.Network
	delay := time.Duration(1+c.rnd.IntN(10)) * time.Millisecond
	if n.Delay > 0 && c.rnd.Float64() < n.Delay {
		delay += time.Duration(c.rnd.Int64N(int64(n.MaxDelay)))
	}
	if n.Repeat > 0 && c.rnd.Float64() < n.Repeat {
		c.after(delay+time.Duration(c.rnd.Int64N(int64(max(n.MaxDelay, time.Second)))), do)
	}
	if n.Lose > 0 && c.rnd.Float64() < n.Lose {
		return
	}
	c.after(delay, do)
}
