package operator

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/ridgekv/ridge/pd/internal/topology"
	metapb "github.com/ridgekv/ridge/proto/ridge/meta/v1"
	pdpb "github.com/ridgekv/ridge/proto/ridge/pd/v1"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var began = time.Unix(1_700_000_000, 0)

func always(*topology.Range, Step) string { return "" }

// world is one range that the test changes as stores would.
type world struct {
	*Controller
	t   *testing.T
	r   *topology.Range
	now time.Time
}

func newWorld(t *testing.T) *world {
	return &world{
		t: t, now: began,
		Controller: NewController(Limits{
			StoreMoves: 1, LeaderTransfers: 1, StepTimeout: time.Minute, Splits: 2, Operators: 100,
		}, 1000),
		r: &topology.Range{
			Range: &metapb.Range{
				RangeId: 7, Epoch: &metapb.Epoch{Config: 5, Span: 1},
				Replicas: []*metapb.Replica{{ReplicaId: 1, StoreId: 1, Role: metapb.Role_ROLE_VOTER}},
			},
			Leader: &metapb.Leader{ReplicaId: 1, StoreId: 1}, Report: &pdpb.RangeReport{},
		},
	}
}

func (w *world) find(id uint64) *topology.Range {
	if w.r == nil || id != w.r.Range.GetRangeId() {
		return nil
	}
	return w.r
}

func (w *world) admit(steps ...Step) *Operator {
	w.t.Helper()
	o := &Operator{RangeID: 7, Reason: "test", Steps: steps}
	if err := w.Admit(o, w.r, w.now); err != nil {
		w.t.Fatal(err)
	}
	return o
}

// advance checks the orders ("store: step epoch") and what ended.
func (w *world) advance(want string) {
	w.t.Helper()
	w.now = w.now.Add(time.Second)
	orders, ended := w.Advance(w.find, always, w.now)
	var parts []string
	for _, store := range slices.Sorted(maps.Keys(orders)) {
		for _, o := range orders[store] {
			parts = append(parts, fmt.Sprintf("%d: %s", store, describe(o)))
		}
	}
	for _, e := range ended {
		parts = append(parts, "ended "+cmp.Or(e.Failure, "well"))
	}
	if got := strings.Join(parts, "; "); got != want {
		w.t.Fatalf("advance\nhave %q\nwant %q", got, want)
	}
}

func describe(o *pdpb.Order) string {
	at := fmt.Sprintf(" at %d.%d", o.GetEpoch().GetConfig(), o.GetEpoch().GetSpan())
	switch s := o.GetStep().(type) {
	case *pdpb.Order_AddLearner:
		return fmt.Sprintf("add %d@%d", s.AddLearner.GetReplicaId(), s.AddLearner.GetStoreId()) + at
	case *pdpb.Order_CreateReplica:
		return fmt.Sprintf("create %d", s.CreateReplica.GetReplicaId()) + at
	case *pdpb.Order_Promote:
		return fmt.Sprintf("promote %d@%d", s.Promote.GetReplicaId(), s.Promote.GetStoreId()) + at
	case *pdpb.Order_RemoveReplica:
		return fmt.Sprintf("remove %d@%d", s.RemoveReplica.GetReplicaId(),
			s.RemoveReplica.GetStoreId()) + at
	case *pdpb.Order_TransferLeader:
		return fmt.Sprintf("transfer %d@%d", s.TransferLeader.GetReplicaId(),
			s.TransferLeader.GetStoreId()) + at
	case *pdpb.Order_Split:
		return fmt.Sprintf("split %q", s.Split.GetSplitKey()) + at
	}
	return "unknown"
}

// become replaces the range by a changed copy, as a report would.
func (w *world) become(change func(*topology.Range)) {
	next := *w.r
	next.Range = &metapb.Range{
		RangeId: 7, Replicas: slices.Clone(w.r.Range.GetReplicas()),
		Epoch: &metapb.Epoch{
			Config: w.r.Range.GetEpoch().GetConfig(), Span: w.r.Range.GetEpoch().GetSpan(),
		},
	}
	next.Report = &pdpb.RangeReport{Health: slices.Clone(w.r.Report.GetHealth())}
	change(&next)
	w.r = &next
}

func (w *world) member(id uint64, role metapb.Role) {
	w.become(func(r *topology.Range) {
		r.Range.Epoch.Config += 3
		r.Range.Replicas = slices.DeleteFunc(r.Range.Replicas, func(m *metapb.Replica) bool {
			return m.GetReplicaId() == id
		})
		if role != metapb.Role_ROLE_UNSPECIFIED {
			r.Range.Replicas = append(r.Range.Replicas,
				&metapb.Replica{ReplicaId: id, StoreId: id, Role: role})
		}
	})
}

func (w *world) health(h *pdpb.ReplicaHealth) {
	w.become(func(r *topology.Range) { r.Report.Health = []*pdpb.ReplicaHealth{h} })
}

// TestLife: a move, step by step. Orders are repeated until a report shows them
// done, each at the epoch the range has then.
func TestLife(t *testing.T) {
	w := newWorld(t)
	o := w.admit(
		Step{Kind: AddLearner, ReplicaID: 2, StoreID: 2}, Step{Kind: Promote, ReplicaID: 2, StoreID: 2},
		Step{Kind: TransferLeader, ReplicaID: 2, StoreID: 2},
		Step{Kind: Remove, ReplicaID: 1, StoreID: 1})
	if o.ID != 1001 || !w.Busy(7) || w.Busy(8) || !w.Pending(7, 2) || w.Pending(7, 1) || w.Pending(8, 2) {
		t.Fatal("admitted wrong")
	}
	for range 2 {
		w.advance("1: add 2@2 at 5.1; 2: create 2 at 5.1")
	}
	w.member(2, metapb.Role_ROLE_LEARNER)
	w.advance("2: create 2 at 8.1") // nobody has spoken of its health
	for _, h := range []*pdpb.ReplicaHealth{
		{ReplicaId: 2, Lagging: true},
		{ReplicaId: 2, Missing: true},
		{ReplicaId: 2, Poisoned: true},
		{ReplicaId: 3},
	} {
		w.health(h)
		w.advance("2: create 2 at 8.1")
	}
	w.health(&pdpb.ReplicaHealth{ReplicaId: 2})
	w.advance("1: promote 2@2 at 8.1")
	w.member(2, metapb.Role_ROLE_VOTER)
	w.advance("1: transfer 2@2 at 11.1")
	w.become(func(r *topology.Range) { r.Leader = &metapb.Leader{} })
	w.advance("") // nobody leads: there is nobody to tell
	w.become(func(r *topology.Range) { r.Leader = &metapb.Leader{ReplicaId: 2, StoreId: 2} })
	w.advance("2: remove 1@1 at 11.1")
	list := w.List(w.now)
	if len(list) != 1 || list[0].GetCurrent() != 3 || list[0].GetAgeMs() == 0 ||
		strings.Join(list[0].GetSteps(), ", ") !=
			"add learner@2, promote @2, transfer leader @2, remove @1" {
		t.Fatalf("listed %v", list)
	}
	w.member(1, metapb.Role_ROLE_UNSPECIFIED)
	w.advance("ended well")
	if w.Busy(7) || w.Pending(7, 2) {
		t.Fatal("over, and still there")
	}
	w.advance("")
}

// TestSkips: what has come about by itself is not ordered.
func TestSkips(t *testing.T) {
	w := newWorld(t)
	w.member(2, metapb.Role_ROLE_VOTER)
	w.admit(Step{Kind: AddLearner, ReplicaID: 2, StoreID: 2},
		Step{Kind: Promote, ReplicaID: 2, StoreID: 2}, Step{Kind: Remove, ReplicaID: 9, StoreID: 9})
	w.advance("ended well")
}

func TestEpochFence(t *testing.T) {
	w := newWorld(t)
	w.admit(Step{Kind: AddLearner, ReplicaID: 2, StoreID: 2})
	w.become(func(r *topology.Range) { r.Range.Epoch.Span++ })
	w.advance("ended the range was split or merged meanwhile")

	w.admit(Step{Kind: Split, Key: []byte("m")})
	w.advance(`1: split "m" at 5.2`)
	w.become(func(r *topology.Range) { r.Range.Epoch.Span++ })
	w.advance("ended well")

	w.admit(Step{Kind: Split})
	w.r = nil
	w.advance("ended the range is gone")
}

// TestTimeout: the time of a step counts, not that of the whole.
func TestTimeout(t *testing.T) {
	w := newWorld(t)
	w.admit(Step{Kind: AddLearner, ReplicaID: 2, StoreID: 2},
		Step{Kind: Promote, ReplicaID: 2, StoreID: 2})
	w.now = w.now.Add(58 * time.Second)
	w.advance("1: add 2@2 at 5.1; 2: create 2 at 5.1")
	w.member(2, metapb.Role_ROLE_LEARNER)
	w.health(&pdpb.ReplicaHealth{ReplicaId: 2})
	w.advance("1: promote 2@2 at 8.1")
	w.now = w.now.Add(18 * time.Second)
	w.advance("1: promote 2@2 at 8.1")
	w.now = w.now.Add(time.Second)
	w.advance("ended promote @2 took longer than 20s")
}

// TestHeld: a step that would cost the range its margin waits, and is given up
// in the end.
func TestHeld(t *testing.T) {
	w := newWorld(t)
	w.admit(Step{Kind: Remove, ReplicaID: 1, StoreID: 1})
	deny := func(r *topology.Range, s Step) string {
		if r != w.r || s.Kind != Remove {
			t.Errorf("asked about %v, %v", r, s)
		}
		return "too few voters"
	}
	orders, ended := w.Advance(w.find, deny, w.now)
	if len(orders) != 0 || len(ended) != 0 {
		t.Fatalf("ordered %v, ended %v", orders, ended)
	}
	if why := w.List(w.now)[0].GetReason(); why != "test; held back: too few voters" {
		t.Fatalf("reason %q", why)
	}
	w.advance("1: remove 1@1 at 5.1")
	if why := w.List(w.now)[0].GetReason(); why != "test" {
		t.Fatalf("reason %q", why)
	}
	if _, ended = w.Advance(w.find, deny, w.now.Add(time.Hour)); len(ended) != 1 {
		t.Fatal("held for ever")
	}
}

func TestLimits(t *testing.T) {
	c := NewController(Limits{
		StoreMoves: 2, LeaderTransfers: 2, StepTimeout: time.Minute, Splits: 1, Operators: 5,
	}, 0)
	r := func(id uint64) *topology.Range {
		return &topology.Range{Range: &metapb.Range{RangeId: id}, Leader: &metapb.Leader{StoreId: 1}}
	}
	admit := func(id uint64, want string, steps ...Step) {
		t.Helper()
		o := &Operator{RangeID: id, Steps: steps, Leader: 10 + id}
		why := c.Room(o)
		err := c.Admit(o, r(id), began)
		if why != want || (err == nil) != (want == "") {
			t.Fatalf("range %d: %q, %v, want %q", id, why, err, want)
		}
	}
	learner := func(store uint64) Step {
		return Step{Kind: AddLearner, ReplicaID: 50 + store, StoreID: store}
	}
	admit(1, "", learner(2))
	admit(1, "another operator changes the range", Step{Kind: Split})
	admit(2, "", learner(3), learner(2))
	admit(3, "store 2 already receives 2 replicas", learner(2))
	admit(3, "", learner(3), Step{Kind: Promote, StoreID: 2})
	admit(4, "store 3 already receives 2 replicas", learner(4), learner(3))
	admit(4, "", Step{Kind: Split})
	admit(5, "1 splits are under way", Step{Kind: Split})
	admit(5, "", Step{Kind: Remove, StoreID: 2})
	admit(6, "5 operators are in flight", Step{Kind: Remove, StoreID: 2})
	// A learner that is complete is under construction no more.
	done := r(1)
	done.Range.Replicas = []*metapb.Replica{{ReplicaId: 52, StoreId: 2, Role: metapb.Role_ROLE_VOTER}}
	_, ended := c.Advance(func(id uint64) *topology.Range {
		if id == 1 {
			return done
		}
		return r(id)
	}, always, began)
	if len(ended) != 2 { // ranges 1 and 5
		t.Fatalf("ended %v", ended)
	}
	admit(3, "another operator changes the range", learner(2))
	admit(6, "", learner(2))
	admit(7, "store 2 already receives 2 replicas", learner(2))
	if n := len(c.List(began)); n != 4 {
		t.Fatalf("%d in flight", n)
	}
}

// TestLostAreNotAwaited: what is removed learns of its range's splits first, unless
// it cannot.
func TestLostAreNotAwaited(t *testing.T) {
	w := newWorld(t)
	for _, lost := range []bool{false, true} {
		o := w.admit(Step{Kind: Remove, ReplicaID: 1, StoreID: 1, Lost: lost})
		orders, _ := w.Advance(w.find, always, w.now)
		if got := orders[1][0].GetRemoveReplica().GetAwaitSplits(); got == lost {
			t.Errorf("lost: %t, awaits splits: %t", lost, got)
		}
		w.Cancel(o.ID)
	}
}
