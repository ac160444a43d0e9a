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

// TestFaultsAreSeen: planners that are wrong on purpose are caught.
func TestFaultsAreSeen(t *testing.T) {
	move := func(first, second operator.Kind) func(
		topology.View, *topology.Range, schedule.Target, schedule.Load,
	) (*operator.Operator, string) {
		return func(
			v topology.View, r *topology.Range, _ schedule.Target, _ schedule.Load,
		) (*operator.Operator, string) {
			follower, store := other(v, r)
			if store == 0 || len(r.Range.GetReplicas()) != 3 {
				return nil, ""
			}
			out := operator.Step{
				Kind: operator.Remove, StoreID: follower.GetStoreId(), ReplicaID: follower.GetReplicaId(),
			}
			steps := []operator.Step{
				{Kind: operator.AddLearner, StoreID: store}, {Kind: operator.Promote, StoreID: store}, out,
			}
			if first == operator.Remove {
				steps = []operator.Step{steps[2], steps[0], steps[1]}
			}
			return &operator.Operator{RangeID: r.Range.GetRangeId(), Steps: steps}, ""
		}
	}
	for _, c := range []struct {
		name, want string
		check      func(
			topology.View, *topology.Range, schedule.Target, schedule.Load,
		) (*operator.Operator, string)
		allow bool
	}{
		{
			name: "removes before it adds", want: "leaves 2 of 2 voters, there were 3 of 3",
			check: move(operator.Remove, operator.AddLearner), allow: true,
		},
		{
			name: "there and back", want: "comes back to store",
			check: move(operator.AddLearner, operator.Remove),
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			x := New(Options{Seed: 1, Stores: 4, Ranges: 8})
			x.check = c.check
			if c.allow {
				x.allow = func(topology.View, *topology.Range, operator.Step) string { return "" }
			}
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
