package schedule

import (
	"cmp"
	"math"
	"slices"
	"time"

	"github.com/ridgekv/ridge/pd/internal/operator"
	"github.com/ridgekv/ridge/pd/internal/topology"
	metapb "github.com/ridgekv/ridge/proto/ridge/meta/v1"
	pdpb "github.com/ridgekv/ridge/proto/ridge/pd/v1"
)

const (
	// maxForecast bounds the moves of a forecast: it runs while PD serves.
	maxForecast = 20_000
	// unboundRate is what a store is taken to send as images, in bytes a second,
	// when nothing bounds it.
	unboundRate = 64 << 20
	// stepTime is what a membership change or a transfer is taken to last.
	stepTime = 500 * time.Millisecond
	// forecastID is above all ids that PD gives: replicas that exist in forecasts
	// only.
	forecastID = 1 << 62
)

// Forecast is what the planners would do to a picture, one after the other, until
// they want nothing more.
type Forecast struct {
	Moves []Move
	// After is the picture at the end.
	After topology.View
	// Verdicts are what the planners refuse at the end.
	Verdicts []Verdict
	// Time is about how long it takes under the limits.
	Time time.Duration
	// Cut tells that the forecast was given up half way: it has too many moves.
	Cut bool
}

// Move is an operator of a forecast.
type Move struct {
	Op *operator.Operator
	// Before is the range as the operator finds it.
	Before *topology.Range
	// Bytes are copied over the network.
	Bytes uint64
	// Margin is how many live voters the range can lose at the worst moment.
	Margin int
}

// Replica reports whether the move copies a replica.
func (m Move) Replica() bool {
	return slices.ContainsFunc(m.Op.Steps, func(s operator.Step) bool {
		return s.Kind == operator.AddLearner
	})
}

// Foresee runs the planners on v until they want nothing more that concerns is
// asked about. Splits are left out: they copy nothing. It is pure.
func Foresee(
	v topology.View, l operator.Limits, concerns func(*operator.Operator, *topology.Range) bool,
) Forecast {
	s := newSimulation(v, l)
	for round := 0; ; round++ {
		plan := Schedule(s.v, operator.Flight{Limits: s.wide, Recent: s.recent})
		s.out.Verdicts = plan.Verdicts
		progress := false
		began := len(s.out.Moves)
		for _, op := range plan.Operators {
			i := s.index[op.RangeID]
			if divides(op) || !concerns(op, s.v.Ranges[i]) {
				continue
			}
			if len(s.out.Moves) == maxForecast {
				s.out.Cut = true
				break
			}
			progress = s.carryOut(op, i) || progress
		}
		s.out.Time += s.lasts(s.out.Moves[began:])
		if !progress || s.out.Cut || round > maxForecast {
			s.out.After = s.v
			return s.out
		}
	}
}

func divides(op *operator.Operator) bool {
	return slices.ContainsFunc(op.Steps, func(s operator.Step) bool {
		return s.Kind == operator.Split
	})
}

// simulation is a picture that operators change at once.
type simulation struct {
	v      topology.View
	limits operator.Limits
	// wide are the limits of a round. Their order is that of production, but
	// rounds are cheaper the fewer there are.
	wide   operator.Limits
	index  map[uint64]int
	recent []operator.Recent
	nextID uint64
	out    Forecast
}

func newSimulation(v topology.View, l operator.Limits) *simulation {
	s := &simulation{v: v, limits: l, wide: l, index: map[uint64]int{}, nextID: forecastID}
	s.wide.Operators, s.wide.Splits = math.MaxInt, math.MaxInt
	s.v.Ranges, s.v.Stores = slices.Clone(v.Ranges), slices.Clone(v.Stores)
	for i, r := range s.v.Ranges {
		s.index[r.Range.GetRangeId()] = i
	}
	return s
}

// carryOut takes the steps of op; false when one is not allowed.
func (s *simulation) carryOut(op *operator.Operator, i int) bool {
	r := s.v.Ranges[i]
	m := Move{Op: op, Before: r, Margin: count(s.v, r, r.Range.GetReplicas()).margin()}
	named := map[uint64]uint64{}
	for k, step := range op.Steps {
		if step.ReplicaID == 0 && step.StoreID != 0 {
			if named[step.StoreID] == 0 {
				s.nextID++
				named[step.StoreID] = s.nextID
			}
			step.ReplicaID = named[step.StoreID]
			op.Steps[k] = step
		}
		if Allow(s.v, r, step) != "" {
			return false
		}
		if step.Kind == operator.AddLearner && r.Replica(step.ReplicaID) == nil {
			m.Bytes += r.Report.GetSizeBytes()
		}
		r = After(r, step)
		m.Margin = min(m.Margin, count(s.v, r, r.Range.GetReplicas()).margin())
	}
	s.weigh(m.Before, -1)
	s.weigh(r, 1)
	s.v.Ranges[i] = r
	s.remember(m.Before, r)
	s.out.Moves = append(s.out.Moves, m)
	return true
}

// weigh adds a range to what its stores report, or takes it away.
func (s *simulation) weigh(r *topology.Range, by int64) {
	for _, m := range r.Range.GetReplicas() {
		i, ok := slices.BinarySearchFunc(s.v.Stores, m.GetStoreId(),
			func(x *topology.Store, id uint64) int { return cmp.Compare(x.Store.GetStoreId(), id) })
		if !ok || s.v.Stores[i].Stats == nil {
			continue
		}
		next := *s.v.Stores[i]
		old, size := next.Stats, r.Report.GetSizeBytes()
		next.Stats = &pdpb.StoreStats{
			CapacityBytes: old.GetCapacityBytes(), StartedAtUnixMs: old.GetStartedAtUnixMs(),
			RangeCount:     plus(old.GetRangeCount(), by, 1),
			LeaderCount:    old.GetLeaderCount(),
			UsedBytes:      plus(old.GetUsedBytes(), by, size),
			AvailableBytes: plus(old.GetAvailableBytes(), -by, size),
			ReadRate:       old.GetReadRate(), WriteRate: old.GetWriteRate(),
		}
		if m.GetReplicaId() == r.Leader.GetReplicaId() {
			next.Stats.LeaderCount = plus(old.GetLeaderCount(), by, 1)
		}
		s.v.Stores[i] = &next
	}
}

func plus(n uint64, sign int64, d uint64) uint64 {
	if sign > 0 {
		return n + d
	}
	return n - min(n, d)
}

// remember notes what balancing did, so that it is not turned back.
func (s *simulation) remember(before, after *topology.Range) {
	id := before.Range.GetRangeId()
	note := func(x operator.Recent) {
		x.RangeID, x.At = id, s.v.Now
		at, _ := slices.BinarySearchFunc(s.recent, id, func(r operator.Recent, id uint64) int {
			return cmp.Compare(r.RangeID, id)
		})
		s.recent = slices.Insert(s.recent, at, x)
	}
	from, to := lacks(before, after), lacks(after, before)
	if from != 0 && to != 0 {
		note(operator.Recent{Kind: operator.AddLearner, From: from, To: to})
	}
	if a, b := before.Leader.GetStoreId(), after.Leader.GetStoreId(); a != b && from == 0 {
		note(operator.Recent{Kind: operator.TransferLeader, From: a, To: b})
	}
}

// lacks is a store where a has a replica and b none.
func lacks(a, b *topology.Range) uint64 {
	for _, m := range a.Range.GetReplicas() {
		if on(b, m.GetStoreId()) == nil {
			return m.GetStoreId()
		}
	}
	return 0
}

// lasts estimates how long a round takes: stores work side by side, each sends
// its images one after the other at the rate it is allowed.
func (s *simulation) lasts(moves []Move) time.Duration {
	rate := cmp.Or(s.limits.ImageBytesPerSecond, unboundRate)
	sends, busy := map[uint64]uint64{}, map[uint64]time.Duration{}
	var longest time.Duration
	for _, m := range moves {
		from := m.Before.Leader.GetStoreId()
		sends[from] += m.Bytes
		slots := max(1, s.limits.LeaderTransfers)
		if m.Replica() {
			slots = max(1, s.limits.StoreMoves)
		}
		busy[from] += time.Duration(len(m.Op.Steps)) * stepTime / time.Duration(slots)
		copying := time.Duration(float64(sends[from]) / float64(rate) * float64(time.Second))
		longest = max(longest, busy[from]+copying, time.Duration(len(m.Op.Steps))*stepTime)
	}
	return longest
}

// With is the picture in which a store has another state.
func With(v topology.View, storeID uint64, state metapb.StoreState) topology.View {
	v.Stores = slices.Clone(v.Stores)
	for i, s := range v.Stores {
		if s.Store.GetStoreId() == storeID {
			next := *s
			next.Store = &metapb.Store{
				StoreId: s.Store.GetStoreId(), GrpcAddress: s.Store.GetGrpcAddress(),
				RaftAddress: s.Store.GetRaftAddress(), Labels: s.Store.GetLabels(),
				Version: s.Store.GetVersion(), DiskState: s.Store.GetDiskState(), State: state,
			}
			v.Stores[i] = &next
		}
	}
	return v
}
