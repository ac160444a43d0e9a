package operator

import (
	"slices"
	"testing"
	"time"

	"github.com/ridgekv/ridge/pd/internal/topology"
	pdpb "github.com/ridgekv/ridge/proto/ridge/pd/v1"
)

// refuse tells that the store did not carry out the order of the operator.
func (w *world) refuse(o *Operator, why string, final bool) {
	w.Refused(&pdpb.OrderFailure{
		RangeId: o.RangeID, OperatorId: o.ID, Reason: why, Final: final,
	})
}

func (w *world) splitOf() *Operator {
	w.t.Helper()
	o := &Operator{RangeID: 7, By: "split", Steps: []Step{{Kind: Split, Key: []byte("m")}}}
	if err := w.Admit(o, w.r, w.now); err != nil {
		w.t.Fatal(err)
	}
	return o
}

// TestFinalRefusalEnds: an order that can never be carried out ends its operator
// at once, and the range is not ordered the same until it is another one.
func TestFinalRefusalEnds(t *testing.T) {
	w := newWorld(t)
	w.become(func(r *topology.Range) { r.Report.SizeBytes = 100 })
	o := w.splitOf()
	w.refuse(&Operator{RangeID: 7, ID: o.ID + 1}, "of another operator", true)
	w.refuse(o, "not yet", false)
	w.advance(`1: split "m" at 5.1`)
	if got, want := w.List(w.now)[0].GetReason(), "; refused, and tried again: not yet"; got != want {
		t.Errorf("in flight because of %q, want %q", got, want)
	}
	w.refuse(o, "nothing to split", true)
	w.advance(`ended split at "m": nothing to split`)
	rest, ok := w.Flight().Rest(7, "split")
	if !ok || !rest.Final || rest.Failures != 1 || rest.SizeBytes != 100 || rest.SpanEpoch != 1 {
		t.Fatalf("rests as %+v, %t", rest, ok)
	}
	if _, ok := w.Flight().Rest(7, "repair"); ok {
		t.Fatal("another planner rests too")
	}
}

// TestRestsGrow: each failure in a row doubles the pause, up to its bound, and a
// success forgets them; another span is another range.
func TestRestsGrow(t *testing.T) {
	w := newWorld(t)
	m := newMemory()
	o := &Operator{RangeID: 7, By: "repair", spanEpoch: 1, Steps: []Step{{Kind: Split}}}
	for i := range 20 {
		m.ended(o, w.r, "why", false, w.now)
		rests, _ := m.lists()
		want := min(longRest, firstRest<<i)
		if len(rests) != 1 || rests[0].Failures != i+1 || rests[0].Until.Sub(w.now) != want {
			t.Fatalf("after %d failures: %+v, want %s", i+1, rests, want)
		}
	}
	m.ended(o, w.r, "", false, w.now)
	if rests, _ := m.lists(); len(rests) != 0 {
		t.Fatalf("after success: %+v", rests)
	}
	m.ended(o, w.r, "why", false, w.now)
	w.become(func(r *topology.Range) { r.Range.Epoch.Span = 2 })
	m.ended(o, w.r, "why", false, w.now)
	if rests, _ := m.lists(); len(rests) != 0 {
		t.Fatalf("of another span: %+v", rests)
	}
}

// TestRestsAreForgotten: an old failure says nothing about today; a final one
// stays for a day.
func TestRestsAreForgotten(t *testing.T) {
	w := newWorld(t)
	m := newMemory()
	for i, final := range []bool{false, true} {
		m.ended(&Operator{RangeID: uint64(i + 7), By: "split", spanEpoch: 1}, w.r, "why", final, w.now)
	}
	for after, want := range map[time.Duration]int{0: 2, longRest: 2} {
		m.forget(w.now.Add(after))
		if rests, _ := m.lists(); len(rests) != want {
			t.Fatalf("%d rests after %s", len(rests), after)
		}
	}
	m.forget(w.now.Add(longRest + time.Minute))
	if rests, _ := m.lists(); len(rests) != 1 || !rests[0].Final {
		t.Fatalf("an hour later: %+v", rests)
	}
	m.forget(w.now.Add(25 * time.Hour))
	if rests, _ := m.lists(); len(rests) != 0 {
		t.Fatalf("a day later: %+v", rests)
	}
}

// TestMovesAreRemembered: a second move of a range does not hide where the first
// one began; of transfers only the last one counts; all are forgotten in the end,
// copies whose operator says so later than others.
func TestMovesAreRemembered(t *testing.T) {
	w := newWorld(t)
	m := newMemory()
	move := func(to, from uint64, keep time.Duration) *Operator {
		return &Operator{RangeID: 7, By: "any", Priority: Balance, RememberFor: keep, Steps: []Step{
			{Kind: AddLearner, StoreID: to}, {Kind: Promote, StoreID: to}, {Kind: Remove, StoreID: from},
		}}
	}
	transfer := func(from, to uint64) *Operator {
		return &Operator{
			RangeID: 7, By: "leaders", Priority: Balance, Leader: from,
			Steps: []Step{{Kind: TransferLeader, StoreID: to}},
		}
	}
	for _, o := range []*Operator{
		move(12, 7, time.Hour), move(8, 5, 0), transfer(1, 2), transfer(2, 3),
	} {
		m.ended(o, w.r, "", false, w.now)
	}
	left := func() (moves, transfers []uint64) {
		_, recent := m.lists()
		for _, r := range (Flight{Recent: recent}).Moved(7) {
			if r.Kind == AddLearner {
				moves = append(moves, r.From)
			} else {
				transfers = append(transfers, r.From)
			}
		}
		return moves, transfers
	}
	moves, transfers := left()
	if !slices.Equal(moves, []uint64{5, 7}) || !slices.Equal(transfers, []uint64{2}) {
		t.Errorf("moved from %v, transferred from %v", moves, transfers)
	}
	m.forget(w.now.Add(recentFor + 1))
	if moves, transfers = left(); !slices.Equal(moves, []uint64{7}) || len(transfers) > 0 {
		t.Errorf("later: moved from %v, transferred from %v", moves, transfers)
	}
	m.forget(w.now.Add(time.Hour + 1))
	if moves, _ = left(); len(moves) > 0 {
		t.Errorf("in the end: moved from %v", moves)
	}
}

// TestNewestMovesAreRemembered: when there are too many, the oldest are forgotten.
func TestNewestMovesAreRemembered(t *testing.T) {
	w := newWorld(t)
	m := newMemory()
	const moves = maxMemory + maxMemory/4
	for i := range uint64(moves) {
		m.done(&Operator{RangeID: i + 1, Priority: Balance, Steps: []Step{
			{Kind: AddLearner, StoreID: 2}, {Kind: Remove, StoreID: 1},
		}}, w.now.Add(time.Duration(i)*time.Second))
	}
	_, recent := m.lists()
	f := Flight{Recent: recent}
	if n := len(recent); n > maxMemory || n < maxMemory*7/8 {
		t.Errorf("%d are remembered", n)
	}
	if len(f.Moved(moves)) != 1 || len(f.Moved(moves-maxMemory/2)) != 1 || len(f.Moved(1)) != 0 {
		t.Errorf("the newest: %v, the oldest: %v", f.Moved(moves), f.Moved(1))
	}
}
