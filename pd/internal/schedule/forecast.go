package schedule

import (
	"bytes"
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

// Move is an operator of a forecast. Ranges that only the forecast knows, because
// a move before divides another, have ids of its own: Foretold tells.
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

// Divides reports whether the move splits its range.
func (m Move) Divides() bool { return divides(m.Op) }

// TransfersLeader reports whether the move brings leadership elsewhere.
func (m Move) TransfersLeader() bool {
	return slices.ContainsFunc(m.Op.Steps, func(s operator.Step) bool {
		return s.Kind == operator.TransferLeader
	})
}

// Foretold reports whether an id is that of a range or replica which a forecast
// made up.
func Foretold(id uint64) bool { return id > forecastID }

// Foresee runs the planners on v until they want nothing more that concerns is
// asked about. Splits are left out: they copy nothing. It is pure.
func Foresee(
	v topology.View, l operator.Limits, concerns func(*operator.Operator, *topology.Range) bool,
) Forecast {
	return newSimulation(v, l).run(func(o *operator.Operator, r *topology.Range) bool {
		return !divides(o) && concerns(o, r)
	})
}

// ForeseeRule is what the planners would do if rule were set: everything they
// want then, with the splits where rules begin and end.
func ForeseeRule(v topology.View, l operator.Limits, rule *pdpb.PlacementRule) Forecast {
	v.Rules = append(slices.DeleteFunc(slices.Clone(v.Rules),
		func(r *pdpb.PlacementRule) bool { return r.GetId() == rule.GetId() }), rule)
	slices.SortFunc(v.Rules, func(a, b *pdpb.PlacementRule) int {
		return cmp.Compare(a.GetId(), b.GetId())
	})
	return newSimulation(v, l).run(func(o *operator.Operator, _ *topology.Range) bool {
		return !divides(o) || bounds(v.Rules, o.Steps[len(o.Steps)-1].Key)
	})
}

// bounds reports whether a rule begins or ends at key.
func bounds(rules []*pdpb.PlacementRule, key []byte) bool {
	return len(key) > 0 && slices.ContainsFunc(rules, func(r *pdpb.PlacementRule) bool {
		return bytes.Equal(r.GetSpan().GetStart(), key) || bytes.Equal(r.GetSpan().GetEnd(), key)
	})
}

// run asks the planners again and again, and carries out what is wanted of that.
func (s *simulation) run(wanted func(*operator.Operator, *topology.Range) bool) Forecast {
	for round := 0; ; round++ {
		plan := Schedule(s.v, operator.Flight{Limits: s.wide, Recent: s.recent})
		s.out.Verdicts = plan.Verdicts
		progress := false
		began := len(s.out.Moves)
		for _, op := range plan.Operators {
			i := s.index[op.RangeID]
			if !wanted(op, s.v.Ranges[i]) {
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
	if m.Divides() {
		s.divide(r, i, op.Steps[len(op.Steps)-1].Key)
		s.out.Moves = append(s.out.Moves, m)
		return true
	}
	s.weigh(m.Before, -1)
	s.weigh(r, 1)
	s.v.Ranges[i] = r
	s.remember(m.Before, r)
	s.out.Moves = append(s.out.Moves, m)
	return true
}

// divide splits the i-th range, as r, at key. How many bytes lie on which side
// nobody knows yet: each gets half.
func (s *simulation) divide(r *topology.Range, i int, key []byte) {
	half := func(id uint64, start, end []byte, members []*metapb.Replica) *topology.Range {
		epoch := r.Range.GetEpoch()
		next := *r
		next.Range = &metapb.Range{
			RangeId: id, Span: &metapb.Span{Start: start, End: end}, Replicas: members,
			Epoch: &metapb.Epoch{Config: epoch.GetConfig(), Span: epoch.GetSpan() + 1},
		}
		next.Report = &pdpb.RangeReport{
			SizeBytes: r.Report.GetSizeBytes() / 2, KeyCount: r.Report.GetKeyCount() / 2,
		}
		return &next
	}
	left := half(r.Range.GetRangeId(), r.Range.GetSpan().GetStart(), key, r.Range.GetReplicas())
	left.Report.Health = r.Report.GetHealth()
	var members []*metapb.Replica
	var leader *metapb.Leader
	for _, m := range r.Range.GetReplicas() {
		s.nextID++
		members = append(members, &metapb.Replica{
			ReplicaId: s.nextID, StoreId: m.GetStoreId(), Role: m.GetRole(),
		})
		if m.GetReplicaId() == r.Leader.GetReplicaId() {
			leader = &metapb.Leader{ReplicaId: s.nextID, StoreId: m.GetStoreId(), Term: 1}
		}
	}
	s.nextID++
	right := half(s.nextID, key, r.Range.GetSpan().GetEnd(), members)
	right.Leader, right.Words = leader, nil
	s.v.Ranges[i] = left
	s.v.Ranges = slices.Insert(s.v.Ranges, i+1, right)
	for k := i + 1; k < len(s.v.Ranges); k++ {
		s.index[s.v.Ranges[k].Range.GetRangeId()] = k
	}
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
