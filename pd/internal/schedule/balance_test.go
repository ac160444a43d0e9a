package schedule

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"reflect"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/ridgekv/ridge/pd/internal/operator"
	"github.com/ridgekv/ridge/pd/internal/topology"
	metapb "github.com/ridgekv/ridge/proto/ridge/meta/v1"
	pdpb "github.com/ridgekv/ridge/proto/ridge/pd/v1"
)

const mib = 1 << 20

// narrow are limits as they are shipped.
var narrow = operator.Limits{StoreMoves: 4, LeaderTransfers: 8, Splits: 32, Operators: 1000}

// virtual is a cluster that does what is planned at once.
type virtual struct {
	t interface {
		Helper()
		Fatalf(string, ...any)
	}
	v    topology.View
	c    *operator.Controller
	done map[string]operator.Recent
	ops  int
	tick time.Duration
	// still is for how many rounds nothing happens at the end.
	still int
	rng   *rand.Rand
}

func newVirtual(t *rapid.T, stores, ranges int) *virtual {
	w := &virtual{
		t: t, tick: 5 * time.Second, still: 70, done: map[string]operator.Recent{}, c: operator.NewController(narrow, 0),
		rng: rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "seed"), 1)),
	}
	w.v = topology.View{
		Now: now, DownAfter: 5 * time.Minute, SilentAfter: 5 * time.Second,
		Replicas: 3, SplitSizeBytes: 96 * mib, HighWaterPercent: 80, TolerancePercent: 5,
	}
	for i := range stores {
		w.addStore(uint64(i+1), fmt.Sprint("z", i%3))
	}
	for i := range ranges {
		r := &topology.Range{
			Range: &metapb.Range{
				RangeId: uint64(i + 1), Epoch: &metapb.Epoch{Config: 5, Span: 1},
				Span: &metapb.Span{Start: fmt.Appendf(nil, "%06d", i), End: fmt.Appendf(nil, "%06d", i+1)},
			},
			Report: &pdpb.RangeReport{
				SizeBytes: w.rng.Uint64N(91) * mib, KeyCount: 2,
			}, Reported: now,
		}
		first := w.rng.IntN(stores)
		for k := range min(3, stores) {
			store := uint64((first+k)%stores + 1)
			r.Range.Replicas = append(r.Range.Replicas, &metapb.Replica{
				ReplicaId: uint64(i*1000 + k), StoreId: store, Role: metapb.Role_ROLE_VOTER,
			})
		}
		m := r.Range.Replicas[0]
		r.Leader = &metapb.Leader{ReplicaId: m.GetReplicaId(), StoreId: m.GetStoreId()}
		w.v.Ranges = append(w.v.Ranges, r)
	}
	return w
}

func (w *virtual) addStore(id uint64, zone string) {
	w.v.Stores = append(w.v.Stores, &topology.Store{
		Store: &metapb.Store{
			StoreId: id, State: metapb.StoreState_STORE_STATE_UP,
			Labels: map[string]string{"zone": zone},
		},
		Stats: &pdpb.StoreStats{CapacityBytes: 1 << 40, AvailableBytes: 1 << 39}, Heard: now,
	})
}

// step plans once and does all of it; false when nothing is planned.
func (w *virtual) step() bool {
	w.t.Helper()
	plan := Schedule(w.v, w.c.Flight())
	again := Schedule(w.v, w.c.Flight())
	if !reflect.DeepEqual(plan, again) {
		w.t.Fatalf("the same picture gives two plans:\n%v\n%v", plan, again)
	}
	for _, op := range plan.Operators {
		w.carryOut(op)
	}
	w.v.Now = w.v.Now.Add(w.tick)
	for i, s := range w.v.Stores {
		heard := *s
		heard.Heard = w.v.Now
		w.v.Stores[i] = &heard
	}
	return len(plan.Operators) > 0
}

func (w *virtual) carryOut(op *operator.Operator) {
	w.t.Helper()
	w.ops++
	i := slices.IndexFunc(w.v.Ranges, func(r *topology.Range) bool {
		return r.Range.GetRangeId() == op.RangeID
	})
	r := w.v.Ranges[i]
	before := w.isolation(r)
	move := operator.Recent{RangeID: op.RangeID}
	for k := range op.Steps {
		s := &op.Steps[k]
		if s.ReplicaID == 0 && s.StoreID != 0 {
			s.ReplicaID = uint64(w.ops)*1_000_000 + s.StoreID
			if m := on(r, s.StoreID); m != nil {
				s.ReplicaID = m.GetReplicaId()
			}
		}
		if s.Kind == operator.AddLearner {
			move.To = s.StoreID
		}
		if s.Kind == operator.Remove {
			move.From = s.StoreID
		}
	}
	if err := w.c.Admit(op, r, w.v.Now); err != nil {
		w.t.Fatalf("%s was planned and is not admitted: %v", op, err)
	}
	for _, s := range op.Steps {
		if held := Allow(w.v, r, s); held != "" {
			w.t.Fatalf("%s: %s", op, held)
		}
		r = After(r, s)
		r.Report = wellReported(r)
	}
	w.v.Ranges[i] = r
	find := func(uint64) *topology.Range { return r }
	if _, ended := w.c.Advance(find, func(*topology.Range, operator.Step) string { return "" },
		w.v.Now); len(ended) != 1 || ended[0].Failure != "" {
		w.t.Fatalf("%s ended as %v", op, ended)
	}
	if after := w.isolation(r); after > before {
		w.t.Fatalf("%s makes isolation worse: %d, then %d", op, before, after)
	}
	if move.To == 0 || move.From == 0 {
		move = operator.Recent{RangeID: op.RangeID, Kind: operator.TransferLeader, From: op.Leader}
		move.To = op.Steps[0].StoreID
	}
	w.remember(op, move)
}

// remember checks that a change is not the last one of its range turned back.
func (w *virtual) remember(op *operator.Operator, move operator.Recent) {
	w.t.Helper()
	key := fmt.Sprint(move.RangeID, move.Kind)
	move.At = w.v.Now
	// The number of leaders may ask for it later, when replicas have moved.
	old := w.done[key]
	if old.From == move.To && old.To == move.From &&
		(move.Kind == operator.AddLearner || move.At.Sub(old.At) < 5*time.Minute) {
		w.t.Fatalf("%s turns the last change of its range back", op)
	}
	w.done[key] = move
}

// wellReported says that every member is a full copy.
func wellReported(r *topology.Range) *pdpb.RangeReport {
	out := &pdpb.RangeReport{
		SizeBytes: r.Report.GetSizeBytes(), KeyCount: r.Report.GetKeyCount(),
		ReadRate: r.Report.GetReadRate(), WriteRate: r.Report.GetWriteRate(),
	}
	for _, m := range r.Range.GetReplicas() {
		out.Health = append(out.Health, &pdpb.ReplicaHealth{ReplicaId: m.GetReplicaId()})
	}
	return out
}

// isolation counts the pairs of members in one zone, in a way of its own.
func (w *virtual) isolation(r *topology.Range) int {
	zones := map[string]int{}
	for _, m := range r.Range.GetReplicas() {
		zones[w.v.Store(m.GetStoreId()).Store.GetLabels()["zone"]]++
	}
	n := 0
	if len(w.v.LocationLabels) > 0 {
		for _, k := range zones {
			n += k * (k - 1) / 2
		}
	}
	return n
}

// run plans until nothing was left to do for longer than planners remember what
// they did.
func (w *virtual) run(rounds int) {
	w.t.Helper()
	for round, still := 0, 0; still < w.still; round++ {
		if still++; w.step() {
			still = 0
		}
		if round > rounds {
			w.t.Fatalf("no end after %d rounds and %d operators", round, w.ops)
		}
	}
}

func (w *virtual) scores() []Score { return NewPlanner(w.v, w.c.Flight()).Scores() }

// spread is the largest and the smallest of something, over stores.
func (w *virtual) spread(value func(Score) float64) (low, high, mean float64) {
	scores := w.scores()
	low, high = value(scores[0]), value(scores[0])
	for _, s := range scores {
		low, high, mean = min(low, value(s)), max(high, value(s)), mean+value(s)/float64(len(scores))
	}
	return low, high, mean
}

func leaders(s Score) float64 { return float64(s.Leaders) }
func weight(s Score) float64  { return s.Weight / s.Share }
func load(s Score) float64    { return s.Load }

// TestBalanceConverges: from any beginning the plans come to an end, turn nothing
// back, keep to the limits and the law, and leave the cluster even.
func TestBalanceConverges(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		stores := rapid.IntRange(3, 9).Draw(t, "stores")
		w := newVirtual(t, stores, rapid.IntRange(1, 60).Draw(t, "ranges"))
		labels := rapid.Bool().Draw(t, "labels")
		if labels {
			w.v.LocationLabels = []string{"zone"}
		}
		w.run(2000)
		if labels {
			return // zones may be uneven
		}
		low, high, mean := w.spread(weight)
		if most := max(0.05*mean, 2*(90+24)*mib); high-low > most {
			t.Fatalf("between %.0f and %.0f MiB, the mean is %.0f", low/mib, high/mib, mean/mib)
		}
		low, high, mean = w.spread(leaders)
		if high-low > max(2, 0.1*mean) {
			t.Fatalf("between %.0f and %.0f leaders, the mean is %.1f", low, high, mean)
		}
	})
}

// TestFifthStore: four stores are joined by a fifth; all end within 10 %. With
// RIDGE_LONG=1 many more clusters are tried: each is thousands of passes.
func TestFifthStore(t *testing.T) {
	checks := flag.Lookup("rapid.checks").Value
	if before := checks.String(); os.Getenv("RIDGE_LONG") == "" {
		if err := checks.Set("20"); err != nil {
			t.Fatal(err)
		}
		defer func() { _ = checks.Set(before) }()
	}
	rapid.Check(t, func(t *rapid.T) {
		w := newVirtual(t, 4, 120)
		w.run(2000)
		w.addStore(5, "z1")
		w.ops = 0
		w.run(2000)
		for _, value := range []func(Score) float64{
			leaders, func(s Score) float64 { return float64(s.Replicas) },
		} {
			low, high, mean := w.spread(value)
			if high > 1.1*mean || low < 0.9*mean {
				t.Fatalf("from %.0f to %.0f, the mean is %.1f", low, high, mean)
			}
		}
		// 72 replicas and 24 leaders is what the newcomer lacks.
		if w.ops > 72+96 {
			t.Fatalf("%d operators", w.ops)
		}
	})
}

// TestPreSplit: ranges that were all born on one store have their leaders spread
// in few passes.
func TestPreSplit(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := newVirtual(t, 3, 16)
		for _, r := range w.v.Ranges {
			m := on(r, 1)
			r.Leader = &metapb.Leader{ReplicaId: m.GetReplicaId(), StoreId: 1}
			r.Report.SizeBytes = 0
		}
		for range 3 {
			w.step()
		}
		if low, high, _ := w.spread(leaders); low < 5 || high > 6 {
			t.Fatalf("between %.0f and %.0f", low, high)
		}
	})
}

// TestHotLoad: load that is uneven is evened out as far as whole ranges allow,
// without an end to the rest of the balance, and then stays still.
func TestHotLoad(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := newVirtual(t, rapid.IntRange(3, 6).Draw(t, "stores"), 30)
		heaviest := 0.0
		for _, r := range w.v.Ranges {
			r.Report.ReadRate = []uint64{0, 0, 100, 2000, 10_000}[w.rng.IntN(5)]
			r.Report.WriteRate = []uint64{0, 0, 100, 3000}[w.rng.IntN(4)]
			heaviest = max(heaviest, leaderLoad(r)+float64(r.Report.WriteRate))
		}
		w.tick = 31 * time.Second
		w.still = 12
		w.run(300)
		_, high, mean := w.spread(load)
		if high > max(1.3*mean+heaviest, mean+hotOps+heaviest) {
			t.Fatalf("up to %.0f operations/s, the mean is %.0f, the heaviest range %.0f",
				high, mean, heaviest)
		}
		low, high, mean := w.spread(leaders)
		if high-low > max(2, 0.1*mean) {
			t.Fatalf("between %.0f and %.0f leaders", low, high)
		}
		low, high, mean = w.spread(weight)
		if most := max(0.05*mean, 2*(90+24)*mib); high-low > most {
			t.Fatalf("between %.0f and %.0f MiB, the mean is %.0f", low/mib, high/mib, mean/mib)
		}
	})
}

// TestHotLoadWithoutSwap is a cluster whose hot store shares no range with a store
// that could give it a cold leader for a hot one: each has to be copied.
func TestHotLoadWithoutSwap(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := newVirtual(t, 6, 12)
		for i, r := range w.v.Ranges {
			first := uint64(i%2)*3 + 1
			r.Report.SizeBytes, r.Report.ReadRate = 50*mib, uint64(i%2)*5000
			for k, m := range r.Range.Replicas {
				m.StoreId = first + uint64(i/2+k)%3
			}
			m := r.Range.Replicas[0]
			r.Leader = &metapb.Leader{ReplicaId: m.GetReplicaId(), StoreId: m.GetStoreId()}
		}
		w.tick, w.still = 31*time.Second, 12
		w.run(300)
		if _, high, mean := w.spread(load); high > mean+5000 || high > 7000 {
			t.Fatalf("up to %.0f operations/s, the mean is %.0f", high, mean)
		}
	})
}

// TestLeadersThroughAMiddle: the only leaders that store 2 could give to store 1
// have just left it, so one goes from 3 to 1 and one from 2 to 3.
func TestLeadersThroughAMiddle(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := newVirtual(t, 3, 9)
		w.c = operator.NewController(narrow, 0)
		leaders := []uint64{1, 1, 2, 2, 2, 2, 3, 3, 3}
		f := w.c.Flight()
		for i, r := range w.v.Ranges {
			for _, m := range r.Range.GetReplicas() {
				if m.GetStoreId() == leaders[i] {
					r.Leader = &metapb.Leader{ReplicaId: m.GetReplicaId(), StoreId: leaders[i]}
				}
			}
			r.Report = wellReported(r)
			if leaders[i] == 2 {
				f.Recent = append(f.Recent, operator.Recent{
					RangeID: r.Range.GetRangeId(), Kind: operator.TransferLeader,
					From: 1, To: 2, At: now,
				})
			}
		}
		var got [][2]uint64
		for _, op := range Schedule(w.v, f).Operators {
			got = append(got, [2]uint64{op.Leader, op.Steps[0].StoreID})
		}
		if want := [][2]uint64{{3, 1}, {2, 3}}; !reflect.DeepEqual(got, want) {
			t.Fatalf("transfers %v, want %v", got, want)
		}
	})
}

// TestFullDiskIsRelieved: of four stores the newest has the fullest disk, and what
// lies there came within the hour from the only store that can take it.
func TestFullDiskIsRelieved(t *testing.T) {
	for ago, want := range map[time.Duration]int{time.Minute: 0, 10 * time.Minute: 1} {
		v := topology.View{
			Now: now, DownAfter: 5 * time.Minute, SilentAfter: 5 * time.Second, Replicas: 3,
			SplitSizeBytes: 40, HighWaterPercent: 80, TolerancePercent: 5,
			Ranges: []*topology.Range{readRange(t, "range 7 voters=2,3,4 leader=2 size=10")},
		}
		for id, free := range []uint64{500, 500, 500, 150} {
			v.Stores = append(v.Stores, &topology.Store{
				Store: &metapb.Store{
					StoreId: uint64(id + 1), State: metapb.StoreState_STORE_STATE_UP,
				},
				Stats: &pdpb.StoreStats{CapacityBytes: 1000, AvailableBytes: free}, Heard: now,
			})
		}
		plan := Schedule(v, operator.Flight{Limits: limits, Recent: []operator.Recent{{
			RangeID: 7, Kind: operator.AddLearner, From: 1, To: 4, At: now.Add(-ago),
		}}})
		if len(plan.Operators) != want {
			t.Errorf("after %s: %v, %v", ago, plan.Operators, plan.Verdicts)
		}
	}
}
