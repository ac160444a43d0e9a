package schedule

import (
	"fmt"
	"slices"
	"time"

	"github.com/ridgekv/ridge/pd/internal/operator"
	"github.com/ridgekv/ridge/pd/internal/topology"
	metapb "github.com/ridgekv/ridge/proto/ridge/meta/v1"
)

// replicas is a range's members, sorted by what they are good for.
type replicas struct {
	// voters and learners are in good health, as far as anybody knows.
	voters, learners []*metapb.Replica
	// broken live on a store that is up and will never be copies again; lost
	// ones went with their store. why says it of the first.
	broken, lost []*metapb.Replica
	why          string
}

// total is the number of voters, good and bad.
func (s replicas) total() int {
	n := len(s.voters)
	for _, m := range slices.Concat(s.broken, s.lost) {
		if m.GetRole() == metapb.Role_ROLE_VOTER {
			n++
		}
	}
	return n
}

func sortReplicas(v topology.View, r *topology.Range) replicas {
	var s replicas
	for _, m := range r.Range.GetReplicas() {
		h, store := r.Health(m.GetReplicaId()), v.Store(m.GetStoreId())
		state := v.State(store)
		why := ""
		switch {
		case state == metapb.StoreState_STORE_STATE_DOWN:
			why = fmt.Sprintf("store %d down %s", m.GetStoreId(),
				v.Now.Sub(store.Heard).Round(time.Second))
			s.lost = append(s.lost, m)
		case state == metapb.StoreState_STORE_STATE_GONE:
			why = fmt.Sprintf("store %d gone", m.GetStoreId())
			s.lost = append(s.lost, m)
		case h.GetPoisoned():
			why = fmt.Sprintf("replica on store %d is poisoned", m.GetStoreId())
			s.broken = append(s.broken, m)
		case h.GetMissing():
			why = fmt.Sprintf("store %d does not hold its replica", m.GetStoreId())
			s.broken = append(s.broken, m)
		case m.GetRole() == metapb.Role_ROLE_LEARNER:
			s.learners = append(s.learners, m)
		default:
			s.voters = append(s.voters, m)
		}
		if s.why == "" {
			s.why = why
		}
	}
	return s
}

// wanted is how many voters a range shall have: an odd number, one until three
// stores are up, never more than configured.
func wanted(v topology.View) (voters, stores int) {
	for _, s := range v.Stores {
		if v.State(s) == metapb.StoreState_STORE_STATE_UP && s.Stats != nil {
			stores++
		}
	}
	voters = max(1, min(v.Replicas, stores))
	if voters%2 == 0 {
		voters--
	}
	return voters, stores
}

// checkRepair brings a range to its number of healthy voters: it replaces what
// is lost or broken, grows, and takes away what is too much.
func checkRepair(v topology.View, r *topology.Range, load Load) (*operator.Operator, string) {
	s := sortReplicas(v, r)
	target, stores := wanted(v)
	op := &operator.Operator{RangeID: r.Range.GetRangeId()}
	switch {
	case len(s.broken) > 0:
		return removeBroken(op, r, s)
	case len(s.lost) > 0:
		return replaceLost(op, v, r, s, load)
	case len(s.voters) < target:
		return grow(op, v, r, s, target, load)
	case len(s.voters) > max(target, v.Replicas):
		return shrink(op, r, s)
	case len(s.learners) > 0 && len(s.voters) >= v.Replicas:
		m := s.learners[0]
		op.Reason = "repair: a learner nobody needs"
		op.Steps = []operator.Step{{
			Kind: operator.Remove, ReplicaID: m.GetReplicaId(), StoreID: m.GetStoreId(),
		}}
		return op, ""
	case len(s.voters)+len(s.learners) < min(v.Replicas, stores):
		// An even number of voters is worse than one less: the odd store out
		// keeps a learner.
		store := pick(v, r, nil, load)
		if store == 0 {
			return nil, "no store can take a learner"
		}
		op.Reason = fmt.Sprintf("repair: %d stores are up, a learner on the odd one", stores)
		op.Steps = []operator.Step{{Kind: operator.AddLearner, StoreID: store}}
		load[store]++
		return op, ""
	}
	return nil, ""
}

// removeBroken takes a replica away that can never serve, before its store gets
// a new one: with it gone the voters left are all alive.
func removeBroken(
	op *operator.Operator, r *topology.Range, s replicas,
) (*operator.Operator, string) {
	m := s.broken[0]
	total := s.total()
	if m.GetRole() == metapb.Role_ROLE_VOTER {
		if total == 1 {
			return nil, s.why + ", and it is the only voter"
		}
		// Removing needs a quorum now, and must leave one.
		if live := len(s.voters); live < total/2+1 {
			return nil, s.why + ", and too few voters are left to remove it"
		}
	}
	op.Reason = "repair: " + s.why
	op.Steps = removal(r, s, m)
	return op, ""
}

// removal removes m, moving leadership away from it first.
func removal(r *topology.Range, s replicas, m *metapb.Replica) []operator.Step {
	var steps []operator.Step
	if r.Leader.GetReplicaId() == m.GetReplicaId() {
		for _, other := range s.voters {
			if other.GetReplicaId() != m.GetReplicaId() {
				steps = append(steps, operator.Step{
					Kind:      operator.TransferLeader,
					ReplicaID: other.GetReplicaId(), StoreID: other.GetStoreId(),
				})
				break
			}
		}
	}
	return append(steps, operator.Step{
		Kind: operator.Remove, ReplicaID: m.GetReplicaId(), StoreID: m.GetStoreId(),
	})
}

// replaceLost adds a copy elsewhere and only then removes the lost one.
func replaceLost(
	op *operator.Operator, v topology.View, r *topology.Range, s replicas, load Load,
) (*operator.Operator, string) {
	m := s.lost[0]
	op.Reason = "repair: " + s.why
	if m.GetRole() == metapb.Role_ROLE_LEARNER {
		op.Steps = removal(r, s, m)
		return op, ""
	}
	if len(s.voters) < s.total()/2+1 {
		return nil, s.why + ", and the range has no quorum"
	}
	if len(s.learners) > 0 {
		op.Steps = promotion(s.learners[0])
	} else {
		store := pick(v, r, nil, load)
		if store == 0 {
			return nil, s.why + ", and no other store can take a replica"
		}
		load[store]++
		op.Steps = []operator.Step{
			{Kind: operator.AddLearner, StoreID: store},
			{Kind: operator.Promote, StoreID: store},
		}
	}
	op.Steps = append(op.Steps, removal(r, s, m)...)
	return op, ""
}

func promotion(m *metapb.Replica) []operator.Step {
	return []operator.Step{
		{Kind: operator.AddLearner, ReplicaID: m.GetReplicaId(), StoreID: m.GetStoreId()},
		{Kind: operator.Promote, ReplicaID: m.GetReplicaId(), StoreID: m.GetStoreId()},
	}
}

// grow adds learners until the next odd number of voters can be reached, and
// promotes them one after the other.
func grow(
	op *operator.Operator, v topology.View, r *topology.Range, s replicas, target int, load Load,
) (*operator.Operator, string) {
	need := 1 + len(s.voters)%2 // to the next odd number
	if len(s.voters)+need > target {
		need = target - len(s.voters)
	}
	var add, promote []operator.Step
	taken := map[uint64]bool{}
	for i := range need {
		if i < len(s.learners) {
			steps := promotion(s.learners[i])
			add, promote = append(add, steps[0]), append(promote, steps[1])
			continue
		}
		store := pick(v, r, taken, load)
		if store == 0 {
			return nil, fmt.Sprintf("has %d of %d voters, and no other store can take a replica",
				len(s.voters), target)
		}
		taken[store] = true
		load[store]++
		add = append(add, operator.Step{Kind: operator.AddLearner, StoreID: store})
		promote = append(promote, operator.Step{Kind: operator.Promote, StoreID: store})
	}
	op.Reason = fmt.Sprintf("repair: %d of %d voters", len(s.voters), target)
	op.Steps = slices.Concat(add, promote)
	return op, ""
}

// shrink removes a voter too many, never the leader.
func shrink(op *operator.Operator, r *topology.Range, s replicas) (*operator.Operator, string) {
	for _, m := range slices.Backward(s.voters) {
		if m.GetReplicaId() == r.Leader.GetReplicaId() {
			continue
		}
		op.Reason = "repair: a voter too many"
		op.Steps = removal(r, s, m)
		return op, ""
	}
	return nil, ""
}

// pick is the store that shall get a replica of r: one that has none and holds
// the fewest; 0 when there is none.
func pick(v topology.View, r *topology.Range, taken map[uint64]bool, load Load) uint64 {
	best, fewest := uint64(0), 0
	for _, s := range v.Stores {
		id := s.Store.GetStoreId()
		holds := slices.ContainsFunc(r.Range.GetReplicas(), func(m *metapb.Replica) bool {
			return m.GetStoreId() == id
		})
		if holds || taken[id] || !v.Receives(s) {
			continue
		}
		if n := int(s.Stats.GetRangeCount()) + load[id]; best == 0 || n < fewest {
			best, fewest = id, n
		}
	}
	return best
}
