package schedule

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/ridgekv/ridge/pd/internal/operator"
	"github.com/ridgekv/ridge/pd/internal/topology"
	metapb "github.com/ridgekv/ridge/proto/ridge/meta/v1"
	pdpb "github.com/ridgekv/ridge/proto/ridge/pd/v1"
)

// drawView makes a cluster in which anything may be wrong.
func drawView(t *rapid.T) topology.View {
	v := topology.View{
		Now: now, DownAfter: 5 * time.Minute, SilentAfter: 5 * time.Second,
		MissingAfter: time.Minute, StaleAfter: time.Hour, SplitSizeBytes: 1000,
		Replicas: rapid.SampledFrom([]int{1, 3, 3, 3, 5}).Draw(t, "replicas"),
	}
	for id := range rapid.IntRange(1, 8).Draw(t, "stores") {
		s := &topology.Store{
			Store: &metapb.Store{StoreId: uint64(id + 1), State: rapid.SampledFrom([]metapb.StoreState{
				metapb.StoreState_STORE_STATE_UP, metapb.StoreState_STORE_STATE_UP,
				metapb.StoreState_STORE_STATE_UP, metapb.StoreState_STORE_STATE_DRAINING,
				metapb.StoreState_STORE_STATE_LEAVING, metapb.StoreState_STORE_STATE_GONE,
			}).Draw(t, "state")},
			Stats: &pdpb.StoreStats{RangeCount: rapid.Uint64Range(0, 3).Draw(t, "ranges")},
			Heard: now.Add(-rapid.SampledFrom([]time.Duration{
				0, 0, 0, 30 * time.Second, time.Hour,
			}).Draw(t, "silence")),
		}
		v.Stores = append(v.Stores, s)
	}
	return v
}

func drawRange(t *rapid.T, v topology.View) *topology.Range {
	r := &topology.Range{
		Range:  &metapb.Range{RangeId: 7, Epoch: &metapb.Epoch{Config: 5, Span: 1}},
		Report: &pdpb.RangeReport{SizeBytes: 1}, Reported: now,
	}
	stores := rapid.Permutation(v.Stores).Draw(t, "members")
	for _, s := range stores[:rapid.IntRange(1, min(6, len(stores))).Draw(t, "count")] {
		id := s.Store.GetStoreId()
		m := &metapb.Replica{ReplicaId: 100 + id, StoreId: id, Role: metapb.Role_ROLE_VOTER}
		if len(r.Range.GetReplicas()) > 0 && rapid.IntRange(0, 3).Draw(t, "learner") == 0 {
			m.Role = metapb.Role_ROLE_LEARNER
		}
		r.Range.Replicas = append(r.Range.Replicas, m)
		if rapid.IntRange(0, 5).Draw(t, "poisoned") == 0 {
			r.Words = append(r.Words, topology.Word{ReplicaID: 100 + id, Poisoned: true})
		}
	}
	m := rapid.SampledFrom(r.Range.GetReplicas()).Draw(t, "leader")
	if m.GetRole() == metapb.Role_ROLE_LEARNER {
		m = r.Range.GetReplicas()[0]
	}
	r.Leader = &metapb.Leader{ReplicaId: m.GetReplicaId(), StoreId: m.GetStoreId()}
	return r
}

// tally counts voters and those that serve, in a way of its own.
func tally(v topology.View, r *topology.Range) (voters, serving int) {
	for _, m := range r.Range.GetReplicas() {
		if m.GetRole() != metapb.Role_ROLE_VOTER {
			continue
		}
		voters++
		for _, s := range v.Stores {
			if s.Store.GetStoreId() == m.GetStoreId() && now.Sub(s.Heard) < 5*time.Second &&
				s.Store.GetState() != metapb.StoreState_STORE_STATE_GONE &&
				!r.Word(m.GetReplicaId()).Poisoned {
				serving++
			}
		}
	}
	return voters, serving
}

// checkStep carries a step out and checks the law over it.
func checkStep(t *rapid.T, v topology.View, r *topology.Range, s operator.Step) *topology.Range {
	voters, serving := tally(v, r)
	next := carryOut(r, s)
	after, left := tally(v, next)
	if s.Kind == operator.Remove && r.Leader.GetReplicaId() == s.ReplicaID {
		t.Fatalf("%s removes the leader", s)
	}
	if s.Kind == operator.AddLearner && r.Replica(s.ReplicaID) == nil {
		if !v.Receives(v.Store(s.StoreID)) {
			t.Fatalf("%s: the store cannot take it", s)
		}
	}
	stores := map[uint64]bool{}
	for _, m := range next.Range.GetReplicas() {
		if stores[m.GetStoreId()] {
			t.Fatalf("two replicas on store %d", m.GetStoreId())
		}
		stores[m.GetStoreId()] = true
	}
	if after == voters && left == serving {
		return next
	}
	margin := left - (after/2 + 1)
	if margin < 0 || margin < min(serving-(voters/2+1), (v.Replicas-1)/2) {
		t.Fatalf("%s: %d of %d voters serve, %d of %d before", s, left, after, serving, voters)
	}
	return next
}

// TestNoStepLowersTheMargin: whatever is wrong with a cluster, no step of any
// plan costs a range live voters it needs; plans come to an end; and where it is
// possible at all the range ends whole.
func TestNoStepLowersTheMargin(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		v := drawView(t)
		r := drawRange(t, v)
		voters, serving := tally(v, r)
		could := serving >= voters/2+1
		before := fmt.Sprint(r.Range.GetReplicas(), " led by ", r.Leader, r.Words)
		why := ""
		for round := 0; ; round++ {
			var op *operator.Operator
			var verdict Verdict
			op, verdict = planFor(v).Check(r)
			why = verdict.Reason
			if op == nil {
				break
			}
			if round > 20 {
				t.Fatalf("no end: %s, began as %s", op, before)
			}
			for _, s := range op.Steps {
				if s.ReplicaID == 0 {
					s.ReplicaID = uint64(1000*round) + 1000 + s.StoreID
				}
				if held := Allow(v, r, s); held != "" {
					t.Fatalf("%s: would be held: %s, began as %s", op, held, before)
				}
				r = checkStep(t, v, r, s)
			}
		}
		if could && why == "" {
			checkWhole(t, v, r, before)
		}
	})
}

// checkWhole: nothing is amiss by the checkers' word, so nothing is.
func checkWhole(t *rapid.T, v topology.View, r *topology.Range, before string) {
	voters, _ := tally(v, r)
	if voters < planFor(v).standard.target || voters > v.Replicas {
		t.Fatalf("%d voters, began as %s", voters, before)
	}
	if slices.ContainsFunc(r.Range.GetReplicas(), func(m *metapb.Replica) bool {
		switch v.State(v.Store(m.GetStoreId())) {
		case metapb.StoreState_STORE_STATE_UP, metapb.StoreState_STORE_STATE_DRAINING:
			return r.Word(m.GetReplicaId()).Poisoned
		}
		return true
	}) {
		t.Fatalf("ends as %v, began as %s", r.Range.GetReplicas(), before)
	}
}

// BenchmarkPass: the checkers look at ten thousand ranges in one pass.
func BenchmarkPass(b *testing.B) {
	v := topology.View{
		Now: now, DownAfter: 5 * time.Minute, SilentAfter: 5 * time.Second,
		MissingAfter: time.Minute, Replicas: 3, SplitSizeBytes: 1000,
	}
	for id := range uint64(30) {
		v.Stores = append(v.Stores, &topology.Store{
			Store: &metapb.Store{StoreId: id + 1, State: metapb.StoreState_STORE_STATE_UP},
			Stats: &pdpb.StoreStats{}, Heard: now,
		})
	}
	for i := range uint64(10_000) {
		r := &topology.Range{
			Range:    &metapb.Range{RangeId: i + 1, Epoch: &metapb.Epoch{}},
			Report:   &pdpb.RangeReport{SizeBytes: 1},
			Reported: now, Leader: &metapb.Leader{ReplicaId: 1, StoreId: i%28 + 1},
		}
		for k := range uint64(3) {
			r.Range.Replicas = append(r.Range.Replicas, &metapb.Replica{
				ReplicaId: k + 1, StoreId: i%28 + k + 1, Role: metapb.Role_ROLE_VOTER,
			})
		}
		v.Ranges = append(v.Ranges, r)
	}
	b.ReportAllocs()
	for b.Loop() {
		if plan := Schedule(v, operator.Flight{Limits: limits}); len(plan.Operators) > 0 {
			b.Fatal(plan)
		}
	}
}

// Law P12: who goes learns of its range's splits first, unless it is lost: nobody
// waits for it then.
func TestOnlyTheLostAreNotAwaited(t *testing.T) {
	store := func(id uint64, state metapb.StoreState, silence time.Duration) *topology.Store {
		return &topology.Store{
			Store: &metapb.Store{StoreId: id, State: state}, Stats: &pdpb.StoreStats{},
			Heard: now.Add(-silence),
		}
	}
	up, leaving := metapb.StoreState_STORE_STATE_UP, metapb.StoreState_STORE_STATE_LEAVING
	v := topology.View{
		Now: now, DownAfter: 5 * time.Minute, SilentAfter: 5 * time.Second,
		MissingAfter: time.Minute, Replicas: 3, Stores: []*topology.Store{
			store(1, up, 0), store(2, up, 0), store(3, leaving, 0), store(4, up, 0),
			store(5, up, time.Hour), store(6, metapb.StoreState_STORE_STATE_GONE, time.Hour),
			store(7, up, 20*time.Second),
		},
	}
	for line, lost := range map[string]bool{
		"range 7 voters=1,2,3 leader=1":            false,
		"range 7 voters=1,2,5 leader=1":            true,
		"range 7 voters=1,2,6 leader=1":            true,
		"range 7 voters=1,2,4 leader=1 sick=4":     true,
		"range 7 voters=1,2,4 leader=1 poisoned=4": true,
		"range 7 voters=1,2,4 leader=1 lost=4":     true,
		"range 7 voters=1,2,4,7 leader=1":          true,
	} {
		op, why := planFor(v).Check(readRange(t, line))
		if op == nil {
			t.Errorf("%s: nothing: %s", line, why)
			continue
		}
		if last := op.Steps[len(op.Steps)-1]; last.Kind != operator.Remove || last.Lost != lost {
			t.Errorf("%s: %s, lost: %t, want %t", line, op, last.Lost, lost)
		}
	}
}
