package schedule

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/cockroachdb/datadriven"

	"github.com/ridgekv/ridge/pd/internal/operator"
	"github.com/ridgekv/ridge/pd/internal/topology"
	metapb "github.com/ridgekv/ridge/proto/ridge/meta/v1"
	pdpb "github.com/ridgekv/ridge/proto/ridge/pd/v1"
)

// TestForecasts runs testforecasts/*.txt: what the planners would do, and what
// people are refused.
//
//	stores     as in the scripts of the checkers
//	ranges     one per line
//	empty ID   decommission a store
//	drain ID
//	lose ID... stores are silent for long
//	restart ID what would lose its quorum
//	forget ID
//	move RANGE FROM TO
//	lead RANGE STORE
func TestForecasts(t *testing.T) {
	datadriven.Walk(t, "testforecasts", func(t *testing.T, path string) {
		v := topology.View{}
		datadriven.RunTest(t, path, func(t *testing.T, d *datadriven.TestData) string {
			var ids []uint64
			for _, a := range d.CmdArgs {
				if n, err := strconv.ParseUint(a.Key, 10, 64); err == nil {
					ids = append(ids, n)
				}
			}
			switch d.Cmd {
			case "stores":
				v = readStores(t, d)
				for _, s := range v.Stores {
					s.Stats.AvailableBytes = 1 << 30
				}
				return fmt.Sprintf("%d stores", len(v.Stores))
			case "ranges":
				v.Ranges = nil
				for line := range strings.Lines(d.Input) {
					v.Ranges = append(v.Ranges, readRange(t, line))
				}
				return fmt.Sprintf("%d ranges", len(v.Ranges))
			}
			return forecast(t, v, d.Cmd, ids)
		})
	})
}

func forecast(t *testing.T, v topology.View, verb string, ids []uint64) string {
	all := func(*operator.Operator, *topology.Range) bool { return true }
	limits := operator.Limits{StoreMoves: 4, LeaderTransfers: 8, ImageBytesPerSecond: 1 << 20}
	var no *Refusal
	switch verb {
	case "empty":
		if no = MayLeave(v, ids[0]); no == nil {
			f := Foresee(With(v, ids[0], metapb.StoreState_STORE_STATE_LEAVING), limits, all)
			return tell(f) + remain(f.After, ids[0])
		}
	case "drain":
		if no = MayDrain(v, ids[0]); no == nil {
			f := Foresee(With(v, ids[0], metapb.StoreState_STORE_STATE_DRAINING), limits, all)
			return tell(f) + remain(f.After, ids[0])
		}
	case "lose":
		return losses(Losses(v, false, ids...)) + tell(Foresee(Without(v, ids...), limits, all))
	case "restart":
		return losses(Losses(v, true, ids...))
	case "forget":
		if no = MayForget(v, ids[0]); no == nil {
			return "may be forgotten"
		}
	case "move", "lead":
		i := slices.IndexFunc(v.Ranges, func(r *topology.Range) bool {
			return r.Range.GetRangeId() == ids[0]
		})
		var r *topology.Range
		if i >= 0 {
			r = v.Ranges[i]
		}
		var op *operator.Operator
		if verb == "move" {
			op, no = MoveReplica(v, r, ManualMove{RangeID: ids[0], From: ids[1], To: ids[2]})
		} else {
			op, no = MoveLeader(v, r, ids[0], ids[1])
		}
		if op != nil {
			return op.String()
		}
	default:
		t.Fatalf("unknown command %s", verb)
	}
	if no != nil {
		return "refused: " + no.Error()
	}
	return "nothing to do"
}

func tell(f Forecast) string {
	var out strings.Builder
	for _, m := range f.Moves {
		fmt.Fprintf(&out, "%s   margin %d, %d bytes\n", m.Op, m.Margin, m.Bytes)
	}
	for _, w := range f.Verdicts {
		if w.RangeID == 0 {
			fmt.Fprintf(&out, "store %d stays: %s\n", w.StoreID, w)
			continue
		}
		fmt.Fprintf(&out, "range %d stays: %s\n", w.RangeID, w)
	}
	return out.String()
}

func remain(v topology.View, id uint64) string {
	r := RemainsOn(v, id)
	return fmt.Sprintf("left on %d: %d replicas, %d leaders", id, r.Replicas, r.Leaders)
}

func losses(list []Loss) string {
	var out strings.Builder
	for _, l := range list {
		word := "serves"
		if l.Lost {
			word = "has no quorum"
		}
		fmt.Fprintf(&out, "range %d: %d of %d voters, %s", l.RangeID, l.Live, l.Voters, word)
		if l.Why != "" {
			out.WriteString("; " + l.Why)
		}
		out.WriteString("\n")
	}
	if len(list) == 0 {
		return "no range is concerned\n"
	}
	return out.String()
}

// A forecast leaves the picture it began with as it was, and comes out the same
// every time.
func TestForecastIsPure(t *testing.T) {
	v := topology.View{
		Now: now, DownAfter: 1 << 40, SilentAfter: 1 << 40, Replicas: 3, SplitSizeBytes: 1 << 30,
	}
	for id := uint64(1); id <= 4; id++ {
		v.Stores = append(v.Stores, &topology.Store{
			Store: &metapb.Store{StoreId: id, State: metapb.StoreState_STORE_STATE_UP}, Heard: now,
			Stats: &pdpb.StoreStats{},
		})
	}
	for id := uint64(1); id <= 20; id++ {
		v.Ranges = append(v.Ranges, readRange(t, fmt.Sprintf("range %d voters=1,2,3 leader=1", id)))
	}
	all := func(*operator.Operator, *topology.Range) bool { return true }
	before := fmt.Sprintf("%+v", v.Stores[0].Stats)
	var first string
	for range 3 {
		began := With(v, 1, metapb.StoreState_STORE_STATE_LEAVING)
		got := tell(Foresee(began, operator.Limits{StoreMoves: 2, LeaderTransfers: 2}, all))
		if first == "" {
			first = got
		}
		if got != first {
			t.Fatalf("another forecast of the same picture:\n%s\n%s", got, first)
		}
	}
	if RemainsOn(v, 1).Replicas != 20 || fmt.Sprintf("%+v", v.Stores[0].Stats) != before {
		t.Error("the picture was changed")
	}
}

// A rule that lies within one range divides it first, and only what lies within
// moves. The picture stays as it was; what the forecast made up is told apart.
func TestForecastOfARule(t *testing.T) {
	v := topology.View{
		Now: now, DownAfter: 1 << 40, SilentAfter: 1 << 40, Replicas: 3, SplitSizeBytes: 1 << 30,
		Still: "a test",
	}
	for id := uint64(1); id <= 6; id++ {
		v.Stores = append(v.Stores, &topology.Store{
			Store: &metapb.Store{
				StoreId: id, State: metapb.StoreState_STORE_STATE_UP,
				Labels: map[string]string{"ssd": fmt.Sprint(id > 3)},
			},
			Heard: now, Stats: &pdpb.StoreStats{},
		})
	}
	v.Ranges = append(v.Ranges, readRange(t, "range 7 voters=1,2,3 leader=1"))
	v.Ranges[0].Range.Span = &metapb.Span{}
	v.Ranges[0].Report.SizeBytes = 1 << 20
	f := ForeseeRule(v, operator.Limits{StoreMoves: 2, LeaderTransfers: 2}, &pdpb.PlacementRule{
		Id: "fast", Span: &metapb.Span{Start: []byte("b"), End: []byte("c")}, Voters: 3,
		Constraints: []*pdpb.LabelConstraint{{
			Key: "ssd", Op: pdpb.LabelConstraint_OP_IN, Values: []string{"true"},
		}},
	})
	var splits, moves int
	for _, m := range f.Moves {
		switch {
		case m.Divides():
			splits++
		case m.Replica():
			moves++
		}
		if inside := string(m.Before.Range.GetSpan().GetStart()) == "b"; inside != Foretold(m.Op.RangeID) {
			t.Errorf("%s upon %v", m.Op, m.Before.Range)
		}
		if m.Replica() && m.Bytes != 1<<18 {
			t.Errorf("%s: a quarter of the range has %d bytes", m.Op, m.Bytes)
		}
	}
	if splits != 2 || moves != 3 || len(f.Verdicts) != 1 || f.Cut {
		t.Errorf("%d splits, %d moves\n%s", splits, moves, tell(f))
	}
	for _, r := range f.After.Ranges {
		want := uint64(1)
		if string(r.Range.GetSpan().GetStart()) == "b" {
			want = 4
		}
		for _, m := range r.Range.GetReplicas() {
			if m.GetStoreId() < want || m.GetStoreId() > want+2 {
				t.Errorf("%v", r.Range)
			}
		}
	}
	if len(f.After.Ranges) != 3 || len(v.Ranges) != 1 || len(v.Rules) != 0 {
		t.Errorf("%d ranges after, %d and %d rules before", len(f.After.Ranges), len(v.Ranges),
			len(v.Rules))
	}
}
