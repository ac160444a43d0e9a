package simtest

import (
	"strings"
	"testing"
	"time"

	"github.com/ridgekv/ridge/pd/internal/operator"
	"github.com/ridgekv/ridge/pd/internal/schedule"
	"github.com/ridgekv/ridge/pd/internal/topology"
	metapb "github.com/ridgekv/ridge/proto/ridge/meta/v1"
)

// other is a follower of r and a store that has no replica of it.
func other(v topology.View, r *topology.Range) (follower *metapb.Replica, store uint64) {
	holds := map[uint64]bool{}
	for _, m := range r.Range.GetReplicas() {
		holds[m.GetStoreId()] = true
		if m.GetReplicaId() != r.Leader.GetReplicaId() {
			follower = m
		}
	}
	for _, s := range v.Stores {
		if id := s.Store.GetStoreId(); !holds[id] {
			store = id
		}
	}
	return follower, store
}

// badPlan wants every whole range to move, in an order of steps of its own.
func badPlan(order ...int) func(topology.View, operator.Flight) schedule.Plan {
	return func(v topology.View, f operator.Flight) schedule.Plan {
		var plan schedule.Plan
		for _, r := range v.Ranges {
			follower, store := other(v, r)
			if store == 0 || len(r.Range.GetReplicas()) != 3 || f.Busy(r.Range.GetRangeId()) {
				continue
			}
			steps := []operator.Step{
				{Kind: operator.AddLearner, StoreID: store},
				{Kind: operator.Promote, StoreID: store},
				{Kind: operator.Remove, StoreID: follower.GetStoreId(), ReplicaID: follower.GetReplicaId()},
			}
			op := &operator.Operator{RangeID: r.Range.GetRangeId(), Leader: r.Leader.GetStoreId()}
			for _, i := range order {
				op.Steps = append(op.Steps, steps[i])
			}
			plan.Operators = append(plan.Operators, op)
		}
		return plan
	}
}

// TestFaultsAreSeen: planners that are wrong on purpose are caught.
func TestFaultsAreSeen(t *testing.T) {
	for _, c := range []struct {
		name, want string
		plan       func(topology.View, operator.Flight) schedule.Plan
	}{
		{"removes before it adds", "leaves 2 of 2 voters, there were 3 of 3", badPlan(2, 0, 1)},
		{"there and back", "comes back to store", badPlan(0, 1, 2)},
	} {
		t.Run(c.name, func(t *testing.T) {
			x := New(Options{Seed: 1, Stores: 4, Ranges: 8})
			x.plan = c.plan
			x.allow = func(topology.View, *topology.Range, operator.Step) string { return "" }
			x.Elapse(10 * time.Minute)
			if !strings.Contains(strings.Join(x.Faults(), "\n"), c.want) {
				t.Errorf("not seen: %q in %q", c.want, x.Faults())
			}
			if err := x.Still(20 * time.Minute); err == nil {
				t.Error("it is said to be still")
			}
		})
	}
}

// TestReplay: a seed tells the whole story.
func TestReplay(t *testing.T) {
	story := func() (int, int, time.Time, string) {
		x := New(Options{Seed: 7, Stores: 5, Ranges: 40, Network: Network{
			Lose: 0.2, Repeat: 0.2, Delay: 0.3, MaxDelay: 5 * time.Second,
		}})
		x.Elapse(time.Minute)
		x.Kill(2)
		x.Elapse(7 * time.Minute)
		x.ChangeLeader()
		x.Elapse(5 * time.Minute)
		return x.Moves, x.Planned, x.lastPlan, x.pd.lastOperator
	}
	m1, p1, t1, o1 := story()
	m2, p2, t2, o2 := story()
	if m1 == 0 || m1 != m2 || p1 != p2 || !t1.Equal(t2) || o1 != o2 {
		t.Errorf("%d %d %s %s\n%d %d %s %s", m1, p1, t1, o1, m2, p2, t2, o2)
	}
}
