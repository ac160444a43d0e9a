package schedule

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/ridgekv/ridge/pd/internal/operator"
	"github.com/ridgekv/ridge/pd/internal/topology"
	"github.com/ridgekv/ridge/proto/keys"
	metapb "github.com/ridgekv/ridge/proto/ridge/meta/v1"
	pdpb "github.com/ridgekv/ridge/proto/ridge/pd/v1"
)

// scatterView has stores 1 to n, two per zone, and ranges that begin at 00, 01, ...
func scatterView(t *testing.T, stores int, ranges ...string) topology.View {
	t.Helper()
	v := topology.View{
		Now: now, DownAfter: 1 << 40, SilentAfter: 1 << 40, Replicas: 3, SplitSizeBytes: 1 << 30,
		TolerancePercent: 5,
	}
	for id := uint64(1); id <= uint64(stores); id++ {
		v.Stores = append(v.Stores, &topology.Store{
			Store: &metapb.Store{
				StoreId: id, State: metapb.StoreState_STORE_STATE_UP,
				Labels: map[string]string{"zone": fmt.Sprint((id + 1) / 2)},
			},
			Heard: now, Stats: &pdpb.StoreStats{},
		})
	}
	for i, line := range ranges {
		r := readRange(t, fmt.Sprintf("range %d %s", i+1, line))
		r.Range.Span = keys.Span{Start: at(i), End: at(i + 1)}.Proto()
		v.Ranges = append(v.Ranges, r)
	}
	v.Ranges[0].Range.Span.Start = nil
	v.Ranges[len(ranges)-1].Range.Span.End = nil
	return v
}

func at(i int) []byte { return fmt.Appendf(nil, "%03d", i) }

// spread counts replicas and leaders of all ranges but one, by store.
func spread(v topology.View) (replicas, leaders map[uint64]int) {
	replicas, leaders = map[uint64]int{}, map[uint64]int{}
	for _, s := range v.Stores {
		replicas[s.Store.GetStoreId()], leaders[s.Store.GetStoreId()] = 0, 0
	}
	for _, r := range v.Ranges {
		for _, m := range r.Range.GetReplicas() {
			replicas[m.GetStoreId()]++
		}
		leaders[r.Leader.GetStoreId()]++
	}
	return replicas, leaders
}

func apart(count map[uint64]int) int {
	low, high := 1<<30, 0
	for _, n := range count {
		low, high = min(low, n), max(high, n)
	}
	return high - low
}

var scatterLimits = operator.Limits{StoreMoves: 4, LeaderTransfers: 8}

// Whatever it begins with, scattering ends even, keeps the number of replicas
// and never lets two of a range share a store or a zone that they did not.
func TestScatterIsEven(t *testing.T) {
	for seed := range uint64(40) {
		rng := rand.New(rand.NewPCG(seed, 1))
		var lines []string
		stores, n := 2*(3+rng.IntN(3)), 1+rng.IntN(60)
		wide := rng.IntN(2) == 0
		for range n {
			zones := []int{0, 1, 2} // all on the first six stores
			if wide {
				zones = rng.Perm(stores / 2)[:3]
			}
			var ids []string
			for _, z := range zones {
				ids = append(ids, fmt.Sprint(2*z+1+rng.IntN(2)))
			}
			lines = append(lines, "voters="+strings.Join(ids, ",")+" leader="+ids[rng.IntN(3)])
		}
		v := scatterView(t, stores, lines...)
		v.LocationLabels = []string{"zone"}
		f, no := Scatter(v, scatterLimits, keys.All())
		if no != nil || f.Cut {
			t.Fatalf("seed %d: %v", seed, no)
		}
		replicas, leaders := spread(f.After)
		if apart(replicas) > 1 || apart(leaders) > 1 {
			t.Errorf("seed %d: %d ranges, %d stores: replicas %v, leaders %v", seed, n, stores, replicas,
				leaders)
		}
		for _, r := range f.After.Ranges {
			zones := map[uint64]bool{}
			for _, m := range r.Range.GetReplicas() {
				zones[(m.GetStoreId()+1)/2] = true
			}
			if len(zones) != 3 || len(r.Range.GetReplicas()) != 3 {
				t.Errorf("seed %d: range %v", seed, r.Range)
			}
		}
		for _, m := range f.Moves {
			if m.Margin < 1 {
				t.Errorf("seed %d: %v has margin %d", seed, m.Op, m.Margin)
			}
		}
		if again, _ := Scatter(f.After, scatterLimits, keys.All()); len(again.Moves) > 0 {
			t.Errorf("seed %d: %d moves of what is even", seed, len(again.Moves))
		}
		if same, _ := Scatter(v, scatterLimits, keys.All()); tell(same) != tell(f) {
			t.Errorf("seed %d: another plan of the same picture", seed)
		}
	}
}

// Only ranges within the span move; rules hold; nonsense is refused with what
// would help.
func TestScatterSpan(t *testing.T) {
	here := "voters=1,2,3 leader=1"
	v := scatterView(t, 6, here, here, here, here, here, here)
	span := keys.Span{Start: at(1), End: append(at(4), 'x')}
	f, no := Scatter(v, scatterLimits, span)
	if no != nil {
		t.Fatal(no)
	}
	for _, m := range f.Moves {
		if m.Op.RangeID < 2 || m.Op.RangeID > 4 {
			t.Errorf("moved %v", m.Op)
		}
	}
	if len(f.Moves) == 0 || len(f.Verdicts) != 1 || f.Verdicts[0].RangeID != 5 {
		t.Errorf("%d moves, verdicts %v", len(f.Moves), f.Verdicts)
	}
	v.Rules = []*pdpb.PlacementRule{{
		Id: "near", Span: &metapb.Span{}, Constraints: []*pdpb.LabelConstraint{{
			Key: "zone", Op: pdpb.LabelConstraint_OP_IN, Values: []string{"1", "2"},
		}},
	}}
	f, _ = Scatter(v, scatterLimits, keys.All())
	if replicas, leaders := spread(f.After); replicas[5]+replicas[6] != 0 || replicas[4] == 0 ||
		leaders[5]+leaders[6] != 0 {
		t.Errorf("against the rule: %v, %v", replicas, leaders)
	}
	for words, ask := range map[string]func() *Refusal{
		"reaches beyond it: split first": func() *Refusal {
			_, no := Scatter(v, scatterLimits, keys.Prefix([]byte("001x")))
			return no
		},
		"is well: wait": func() *Refusal {
			sick := scatterView(t, 6, here+" lagging=2")
			_, no := Scatter(sick, scatterLimits, keys.All())
			return no
		},
		"fewer than two stores": func() *Refusal {
			_, no := Scatter(Without(v, 2, 3, 4, 5, 6), scatterLimits, keys.All())
			return no
		},
	} {
		if no := ask(); no == nil || !strings.Contains(no.Error(), words) {
			t.Errorf("%v, want %q", no, words)
		}
	}
}

// A plan's id changes with whatever it rests upon, and with nothing else.
func TestBlueprint(t *testing.T) {
	v := scatterView(t, 6, "voters=1,2,3 leader=1", "voters=1,2,3 leader=1")
	plan := func(v topology.View) *Blueprint {
		f, no := Scatter(v, scatterLimits, keys.All())
		if no != nil {
			t.Fatal(no)
		}
		return NewBlueprint("scatter", v, f)
	}
	b := plan(v)
	if len(b.Moves) == 0 || len(b.ID) != 16 || plan(v).ID != b.ID {
		t.Fatalf("plan %v", b)
	}
	v2 := scatterView(t, 6, "voters=1,2,3 leader=1", "voters=1,2,3 leader=1")
	if plan(v2).ID != b.ID {
		t.Error("the same picture has another id")
	}
	v2.Ranges[0].Range.Epoch.Config++
	if plan(v2).ID == b.ID {
		t.Error("an epoch moved, the id did not")
	}
	if changed := b.StoresChanged(v); len(changed) != 0 {
		t.Errorf("nothing changed: %v", changed)
	}
	if changed := b.StoresChanged(With(v, 6, metapb.StoreState_STORE_STATE_DRAINING)); len(changed) != 1 ||
		changed[0] != "store 6 is draining, it was up" {
		t.Errorf("store 6 drains: %v", changed)
	}
	if id := plan(With(v, 6, metapb.StoreState_STORE_STATE_DRAINING)).ID; id == b.ID {
		t.Error("a store drains, the id did not change")
	}
	m := b.Moves[0]
	stamp := StampOf(m.Before)
	for words, change := range map[string]func(*topology.Range){
		"":                     func(*topology.Range) {},
		"split or merged":      func(r *topology.Range) { r.Range.Epoch.Span++ },
		"the replicas of":      func(r *topology.Range) { r.Range.Epoch.Config++ },
		"is led by store 2":    func(r *topology.Range) { r.Leader = &metapb.Leader{StoreId: 2} },
		"is led by store 0, i": func(r *topology.Range) { r.Leader = &metapb.Leader{} },
	} {
		r := readRange(t, "range 1 voters=1,2,3 leader=1")
		change(r)
		if why := m.Changed(r, stamp); !strings.Contains(why, words) || (why == "") != (words == "") {
			t.Errorf("%q, want %q", why, words)
		}
	}
	if why := m.Changed(nil, stamp); !strings.Contains(why, "gone") {
		t.Error(why)
	}
	for _, s := range m.Operator(m.Before).Steps {
		if s.ReplicaID > forecastID {
			t.Errorf("step %v names a replica that only the forecast knows", s)
		}
	}
}
