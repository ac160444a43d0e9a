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
	// ones went with their store; leaving ones are well, on a store that shall
	// be emptied. why tells it of each of those, by replica id.
	broken, lost, leaving []*metapb.Replica
	why                   map[uint64]string
}

// total is the number of voters, good and bad.
func (s replicas) total() int {
	return len(s.voters) + countVoters(s.broken) + countVoters(s.lost) + countVoters(s.leaving)
}

// living is the number of voters that serve.
func (s replicas) living() int { return len(s.voters) + countVoters(s.leaving) }

func countVoters(members []*metapb.Replica) int {
	n := 0
	for _, m := range members {
		if m.GetRole() == metapb.Role_ROLE_VOTER {
			n++
		}
	}
	return n
}

func sortReplicas(v topology.View, r *topology.Range) replicas {
	var s replicas
	for _, m := range r.Range.GetReplicas() {
		store := v.Store(m.GetStoreId())
		why, bad := "", unfit(v, r, m)
		switch state := v.State(store); {
		case state == metapb.StoreState_STORE_STATE_DOWN:
			why = fmt.Sprintf("store %d down %s", m.GetStoreId(),
				v.Now.Sub(store.Heard).Round(time.Second))
			s.lost = append(s.lost, m)
		case state == metapb.StoreState_STORE_STATE_GONE:
			why = fmt.Sprintf("store %d gone", m.GetStoreId())
			s.lost = append(s.lost, m)
		case bad != "":
			why = bad
			s.broken = append(s.broken, m)
		case state == metapb.StoreState_STORE_STATE_LEAVING:
			why = fmt.Sprintf("store %d is leaving", m.GetStoreId())
			s.leaving = append(s.leaving, m)
		case m.GetRole() == metapb.Role_ROLE_LEARNER:
			s.learners = append(s.learners, m)
		default:
			s.voters = append(s.voters, m)
		}
		if why != "" {
			if s.why == nil {
				s.why = map[uint64]string{}
			}
			s.why[m.GetReplicaId()] = why
		}
	}
	return s
}

// Target is how many voters a range shall have, and how many stores are up.
type Target struct{ voters, stores int }

// TargetOf is the odd number of voters that the stores which are up allow, one
// until there are three, never more than configured. Ranges grow towards it;
// none shrinks because of it.
func TargetOf(v topology.View) Target {
	var t Target
	for _, s := range v.Stores {
		if v.State(s) == metapb.StoreState_STORE_STATE_UP && s.Stats != nil {
			t.stores++
		}
	}
	t.voters = max(1, min(v.Replicas, t.stores))
	if t.voters%2 == 0 {
		t.voters--
	}
	return t
}

// checkRepair brings a range to its number of healthy voters: it replaces what
// is lost or broken, grows, and takes away what is too much.
func checkRepair(
	v topology.View, r *topology.Range, target Target, load Load,
) (*operator.Operator, string) {
	s := sortReplicas(v, r)
	op := &operator.Operator{RangeID: r.Range.GetRangeId()}
	switch {
	case len(s.broken) > 0:
		return removeBroken(op, v, r, s)
	case len(s.lost) > 0:
		return replace(op, v, r, s, worst(s.lost), load)
	case len(s.leaving) > 0:
		return replace(op, v, r, s, worst(s.leaving), load)
	case len(s.voters) < target.voters:
		return grow(op, v, r, s, target.voters, load)
	case len(s.voters) > v.Replicas:
		return shrink(op, v, r, s)
	case len(s.learners) > 0 && len(s.voters) == v.Replicas:
		m := s.learners[0]
		op.Reason = "repair: a learner nobody needs"
		op.Steps = removal(v, r, s, m)
		return op, ""
	case len(s.voters)+len(s.learners) < min(v.Replicas, target.stores):
		// An even number of voters is worse than one less: the odd store out
		// keeps a learner.
		store := pick(v, r, nil, load)
		if store == 0 {
			return nil, "no store can take a learner"
		}
		op.Reason = fmt.Sprintf("repair: %d stores are up, a learner on the odd one", target.stores)
		op.Steps = []operator.Step{{Kind: operator.AddLearner, StoreID: store}}
		return op, ""
	case len(s.voters)%2 == 0:
		return nil, fmt.Sprintf("has %d voters, and too few stores are up for one more",
			len(s.voters))
	}
	return nil, ""
}

// worst chooses whom to deal with first: learners are quickly gone.
func worst(members []*metapb.Replica) *metapb.Replica {
	for _, m := range members {
		if m.GetRole() == metapb.Role_ROLE_LEARNER {
			return m
		}
	}
	return members[0]
}

// removeBroken takes a replica away that can never serve, before its store gets
// a new one: with it gone the voters left are all alive.
func removeBroken(
	op *operator.Operator, v topology.View, r *topology.Range, s replicas,
) (*operator.Operator, string) {
	m := worst(s.broken)
	why := s.why[m.GetReplicaId()]
	total := s.total()
	if m.GetRole() == metapb.Role_ROLE_VOTER {
		if total == 1 {
			return nil, why + ", and it is the only voter"
		}
		// Removing needs a quorum now, and must leave one.
		if s.living() < total/2+1 {
			return nil, why + ", and too few voters are left to remove it"
		}
	}
	op.Reason = "repair: " + why
	if op.Steps = removal(v, r, s, m); op.Steps == nil {
		return nil, why + ", and no other voter can lead"
	}
	return op, ""
}

// removal removes m, moving leadership away from it first. It is nil when m
// leads and nobody else can.
func removal(
	v topology.View, r *topology.Range, s replicas, m *metapb.Replica,
) []operator.Step {
	var steps []operator.Step
	if r.Leader.GetReplicaId() == m.GetReplicaId() {
		to := successor(v, r, s.voters)
		if to == nil { // rather a store that is to be emptied than none
			to = anyOther(v, r, slices.Concat(s.voters, s.leaving))
		}
		if to == nil {
			return nil
		}
		steps = append(steps, transfer(to))
	}
	return append(steps, operator.Step{
		Kind: operator.Remove, ReplicaID: m.GetReplicaId(), StoreID: m.GetStoreId(),
	})
}

func transfer(to *metapb.Replica) operator.Step {
	return operator.Step{
		Kind: operator.TransferLeader, ReplicaID: to.GetReplicaId(), StoreID: to.GetStoreId(),
	}
}

// successor is the voter that shall lead instead of the present leader: on a
// store that is up and was heard of lately. Nil when there is none.
func successor(
	v topology.View, r *topology.Range, voters []*metapb.Replica,
) *metapb.Replica {
	return anyOther(v, r, slices.DeleteFunc(slices.Clone(voters), func(m *metapb.Replica) bool {
		return v.State(v.Store(m.GetStoreId())) != metapb.StoreState_STORE_STATE_UP
	}))
}

func anyOther(v topology.View, r *topology.Range, voters []*metapb.Replica) *metapb.Replica {
	for _, m := range voters {
		if m.GetReplicaId() != r.Leader.GetReplicaId() && alive(v, r, m) &&
			m.GetRole() == metapb.Role_ROLE_VOTER {
			return m
		}
	}
	return nil
}

// replace adds a copy elsewhere and only then removes m.
func replace(
	op *operator.Operator, v topology.View, r *topology.Range, s replicas, m *metapb.Replica,
	load Load,
) (*operator.Operator, string) {
	why := s.why[m.GetReplicaId()]
	op.Reason = "repair: " + why
	if m.GetRole() == metapb.Role_ROLE_LEARNER {
		op.Steps = removal(v, r, s, m)
		return op, ""
	}
	if s.living() < s.total()/2+1 {
		return nil, why + ", and the range has no quorum"
	}
	if s.total() > v.Replicas && s.living() >= v.Replicas {
		// Its copy is there already.
		if op.Steps = removal(v, r, s, m); op.Steps == nil {
			return nil, why + ", and no other voter can lead"
		}
		return op, ""
	}
	var add []operator.Step
	if i := slices.IndexFunc(s.learners, func(m *metapb.Replica) bool {
		return !v.Silent(v.Store(m.GetStoreId()))
	}); i >= 0 {
		add = promotion(s.learners[i])
	} else {
		store := pick(v, r, nil, load)
		if store == 0 {
			return nil, why + ", and no other store can take a replica"
		}
		add = []operator.Step{
			{Kind: operator.AddLearner, StoreID: store}, {Kind: operator.Promote, StoreID: store},
		}
	}
	last := removal(v, r, s, m)
	if last == nil { // the newcomer is the only one that can lead
		last = []operator.Step{
			{Kind: operator.TransferLeader, ReplicaID: add[1].ReplicaID, StoreID: add[1].StoreID},
			{Kind: operator.Remove, ReplicaID: m.GetReplicaId(), StoreID: m.GetStoreId()},
		}
	}
	op.Steps = append(add, last...)
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
	need := 1 + len(s.voters)%2 // to the next odd number, which target is or passes
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
		add = append(add, operator.Step{Kind: operator.AddLearner, StoreID: store})
		promote = append(promote, operator.Step{Kind: operator.Promote, StoreID: store})
	}
	op.Reason = fmt.Sprintf("repair: %d of %d voters", len(s.voters), target)
	op.Steps = slices.Concat(add, promote)
	return op, ""
}

// shrink removes a voter too many: one that does not answer if there is one,
// never the leader.
func shrink(
	op *operator.Operator, v topology.View, r *topology.Range, s replicas,
) (*operator.Operator, string) {
	var out *metapb.Replica
	for _, m := range s.voters {
		if m.GetReplicaId() != r.Leader.GetReplicaId() &&
			(out == nil || alive(v, r, out) || !alive(v, r, m)) {
			out = m
		}
	}
	if out == nil {
		return nil, ""
	}
	op.Reason = "repair: a voter too many"
	op.Steps = removal(v, r, s, out)
	return op, ""
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
