package schedule

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/ridgekv/ridge/pd/internal/operator"
	"github.com/ridgekv/ridge/pd/internal/topology"
	metapb "github.com/ridgekv/ridge/proto/ridge/meta/v1"
	pdpb "github.com/ridgekv/ridge/proto/ridge/pd/v1"
)

// replicas is a range's members, sorted by what they are good for.
type replicas struct {
	// voters and learners are in good health, as far as anybody knows.
	voters, learners []*metapb.Replica
	// broken live on a store that is up and will never be copies again; lost
	// ones went with their store; leaving ones are well, on a store that shall
	// be emptied; misplaced ones are well, on a store that their rule does not
	// allow. why tells it of each of those, by replica id.
	broken, lost, leaving, misplaced []*metapb.Replica
	why                              map[uint64]string
}

// total is the number of voters, good and bad.
func (s replicas) total() int {
	return s.living() + countVoters(s.broken) + countVoters(s.lost)
}

// living is the number of voters that serve.
func (s replicas) living() int {
	return len(s.voters) + countVoters(s.leaving) + countVoters(s.misplaced)
}

func countVoters(members []*metapb.Replica) int {
	n := 0
	for _, m := range members {
		if m.GetRole() == metapb.Role_ROLE_VOTER {
			n++
		}
	}
	return n
}

func (p *Planner) sortReplicas(r *topology.Range, want *aim) replicas {
	var s replicas
	v := p.v
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
		case want.rule != nil && !store.Fulfils(want.rule.GetConstraints()):
			why = fmt.Sprintf("rule %q does not allow store %d", want.rule.GetId(), m.GetStoreId())
			s.misplaced = append(s.misplaced, m)
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

// checkRepair brings a range to its number of healthy voters where its rule
// wants them: it replaces what is lost or broken, grows, and takes away what is
// too much.
func (p *Planner) checkRepair(
	r *topology.Range, want *aim, s replicas,
) (*operator.Operator, Verdict) {
	switch {
	case len(s.broken) > 0:
		return p.removeBroken(r, s)
	case len(s.lost) > 0:
		return p.replace(repair, r, want, s, worst(s.lost))
	case len(s.voters) < want.target && len(s.leaving)+len(s.misplaced) == 0:
		return p.grow(r, want, s)
	case len(s.misplaced) > 0:
		return p.replace(rules, r, want, s, worst(s.misplaced))
	case len(s.leaving) > 0:
		return p.replace(drain, r, want, s, worst(s.leaving))
	case len(s.voters) > want.voters:
		return p.shrink(r, s)
	case len(s.learners) > 0 && len(s.voters) == want.voters:
		return repair.operator("a learner nobody needs", p.removal(r, s, s.learners[0])), Verdict{}
	case len(s.voters)+len(s.learners) < min(want.voters, want.stores):
		// An even number of voters is worse than one less: the odd store out
		// keeps a learner.
		store := p.pick(r, want, p.seatsOf(r.Range.GetReplicas(), 0))
		if store == nil {
			return nil, repair.refuse("no store can take a learner", p.noStore(r, want))
		}
		return repair.operator(
			fmt.Sprintf("%d stores are up, a learner on the odd one", want.stores),
			[]operator.Step{{Kind: operator.AddLearner, StoreID: store.id}}), Verdict{}
	case len(s.voters)%2 == 0:
		return nil, repair.refuse(fmt.Sprintf(
			"has %d voters, and too few stores are up for one more", len(s.voters)),
			p.noStore(r, want))
	}
	return p.isolate(r, want, s)
}

// isolate moves a replica out of a failure domain that it shares, if there is a
// better place.
func (p *Planner) isolate(
	r *topology.Range, want *aim, s replicas,
) (*operator.Operator, Verdict) {
	if len(p.v.LocationLabels) == 0 || len(s.learners) > 0 {
		return nil, Verdict{}
	}
	have := cost(p.seatsOf(s.voters, 0))
	if have <= want.cost && len(s.voters) <= want.target || have == 0 {
		return nil, Verdict{}
	}
	var out *metapb.Replica
	var to *seat
	best := have
	for _, m := range s.voters {
		keep := p.seatsOf(s.voters, m.GetReplicaId())
		store := p.pick(r, want, keep)
		if store == nil {
			continue
		}
		if c := cost(keep) + marginalCost(keep, store); c < best {
			out, to, best = m, store, c
		}
	}
	why := "two replicas share " + p.shared(p.seatsOf(s.voters, 0))
	if out == nil {
		return nil, rules.refuse(why+", and no store elsewhere can take one", p.noStore(r, want))
	}
	op := rules.operator(why, p.move(r, s, out, to))
	if op.Steps == nil {
		return nil, rules.refuse(why+", and no other voter can lead", "")
	}
	return op, Verdict{}
}

// move puts a copy of m on another store and removes m.
func (p *Planner) move(
	r *topology.Range, s replicas, m *metapb.Replica, to *seat,
) []operator.Step {
	last := p.removal(r, s, m)
	if last == nil { // the newcomer is the only one that can lead
		last = []operator.Step{
			{Kind: operator.TransferLeader, StoreID: to.id},
			{Kind: operator.Remove, ReplicaID: m.GetReplicaId(), StoreID: m.GetStoreId()},
		}
	}
	return append([]operator.Step{
		{Kind: operator.AddLearner, StoreID: to.id}, {Kind: operator.Promote, StoreID: to.id},
	}, last...)
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
func (p *Planner) removeBroken(r *topology.Range, s replicas) (*operator.Operator, Verdict) {
	m := worst(s.broken)
	why := s.why[m.GetReplicaId()]
	total := s.total()
	if m.GetRole() == metapb.Role_ROLE_VOTER {
		if total == 1 {
			return nil, repair.refuse(why+", and it is the only voter", "restore a backup")
		}
		// Removing needs a quorum now, and must leave one.
		if s.living() < total/2+1 {
			return nil, repair.refuse(why+", and too few voters are left to remove it",
				"bring the stores of the other voters back")
		}
	}
	op := repair.operator(why, p.removal(r, s, m))
	if op.Steps == nil {
		return nil, repair.refuse(why+", and no other voter can lead", "")
	}
	return op, Verdict{}
}

// removal removes m, moving leadership away from it first. It is nil when m
// leads and nobody else can.
func (p *Planner) removal(r *topology.Range, s replicas, m *metapb.Replica) []operator.Step {
	var steps []operator.Step
	if r.Leader.GetReplicaId() == m.GetReplicaId() {
		to := p.successor(r, s.voters)
		if to == nil { // rather a store that is to be emptied than none
			to = p.anyOther(r, slices.Concat(s.voters, s.leaving, s.misplaced))
		}
		if to == nil {
			return nil
		}
		steps = append(steps, transfer(to))
	}
	return append(steps, operator.Step{
		Kind: operator.Remove, ReplicaID: m.GetReplicaId(), StoreID: m.GetStoreId(),
		Lost: !counts(p.v, r, m),
	})
}

func transfer(to *metapb.Replica) operator.Step {
	return operator.Step{
		Kind: operator.TransferLeader, ReplicaID: to.GetReplicaId(), StoreID: to.GetStoreId(),
	}
}

// successor is the voter that shall lead instead of the present leader: on a
// store that is up and was heard of lately. Nil when there is none.
func (p *Planner) successor(r *topology.Range, voters []*metapb.Replica) *metapb.Replica {
	return p.anyOther(r, slices.DeleteFunc(slices.Clone(voters), func(m *metapb.Replica) bool {
		return p.v.State(p.v.Store(m.GetStoreId())) != metapb.StoreState_STORE_STATE_UP
	}))
}

// anyOther is the voter that can lead whose store has the fewest leaders, of
// those that the rule prefers if there are any.
func (p *Planner) anyOther(r *topology.Range, voters []*metapb.Replica) *metapb.Replica {
	rule := p.aimOf(r).rule
	var best *metapb.Replica
	better := func(a, b *metapb.Replica) bool {
		if x, y := r.Word(a.GetReplicaId()).Held(), r.Word(b.GetReplicaId()).Held(); x != y {
			return x
		}
		if x, y := p.preferred(rule, a), p.preferred(rule, b); x != y {
			return x
		}
		return p.seat(a.GetStoreId()).leaders < p.seat(b.GetStoreId()).leaders
	}
	for _, m := range voters {
		if m.GetReplicaId() != r.Leader.GetReplicaId() && alive(p.v, r, m) &&
			m.GetRole() == metapb.Role_ROLE_VOTER && (best == nil || better(m, best)) {
			best = m
		}
	}
	return best
}

// preferred reports whether a rule likes the leader to be there.
func (p *Planner) preferred(rule *pdpb.PlacementRule, m *metapb.Replica) bool {
	store := p.v.Store(m.GetStoreId())
	return store != nil && store.Fulfils(rule.GetLeaderPreference())
}

// replace adds a copy elsewhere and only then removes m.
func (p *Planner) replace(
	by planner, r *topology.Range, want *aim, s replicas, m *metapb.Replica,
) (*operator.Operator, Verdict) {
	why := s.why[m.GetReplicaId()]
	if m.GetRole() == metapb.Role_ROLE_LEARNER {
		return by.operator(why, p.removal(r, s, m)), Verdict{}
	}
	if s.living() < s.total()/2+1 {
		return nil, by.refuse(why+", and the range has no quorum",
			"bring the stores of its voters back")
	}
	well := len(s.voters) >= want.voters || by.priority == operator.Repair &&
		s.living() >= want.voters
	if s.total() > want.voters && well {
		// Its copy is there already.
		op := by.operator(why, p.removal(r, s, m))
		if op.Steps == nil {
			return nil, by.refuse(why+", and no other voter can lead", "")
		}
		return op, Verdict{}
	}
	if i := slices.IndexFunc(s.learners, func(m *metapb.Replica) bool {
		return !p.v.Silent(p.v.Store(m.GetStoreId()))
	}); i >= 0 {
		add, last := promotion(s.learners[i]), p.removal(r, s, m)
		if last == nil { // the newcomer is the only one that can lead
			last = []operator.Step{transfer(s.learners[i]), {
				Kind: operator.Remove, ReplicaID: m.GetReplicaId(), StoreID: m.GetStoreId(),
			}}
		}
		return by.operator(why, append(add, last...)), Verdict{}
	}
	store := p.pick(r, want, p.seatsOf(r.Range.GetReplicas(), m.GetReplicaId()))
	if store == nil {
		return nil, by.refuse(why+", and no other store can take a replica", p.noStore(r, want))
	}
	return by.operator(why, p.move(r, s, m, store)), Verdict{}
}

func promotion(m *metapb.Replica) []operator.Step {
	return []operator.Step{
		{Kind: operator.AddLearner, ReplicaID: m.GetReplicaId(), StoreID: m.GetStoreId()},
		{Kind: operator.Promote, ReplicaID: m.GetReplicaId(), StoreID: m.GetStoreId()},
	}
}

// grow adds learners until the next odd number of voters can be reached, and
// promotes them one after the other.
func (p *Planner) grow(
	r *topology.Range, want *aim, s replicas,
) (*operator.Operator, Verdict) {
	need := 1 + len(s.voters)%2 // to the next odd number, which target is or passes
	var add, promote []operator.Step
	keep := p.seatsOf(r.Range.GetReplicas(), 0)
	learners := slices.DeleteFunc(slices.Clone(s.learners), func(m *metapb.Replica) bool {
		return p.v.Silent(p.v.Store(m.GetStoreId()))
	})
	for i := range need {
		if i < len(learners) {
			steps := promotion(learners[i])
			add, promote = append(add, steps[0]), append(promote, steps[1])
			continue
		}
		store := p.pick(r, want, keep)
		if store == nil {
			return nil, repair.refuse(fmt.Sprintf(
				"has %d of %d voters, and no other store can take a replica",
				len(s.voters), want.target), p.noStore(r, want))
		}
		keep = append(keep, store)
		add = append(add, operator.Step{Kind: operator.AddLearner, StoreID: store.id})
		promote = append(promote, operator.Step{Kind: operator.Promote, StoreID: store.id})
	}
	return repair.operator(fmt.Sprintf("%d of %d voters", len(s.voters), want.target),
		slices.Concat(add, promote)), Verdict{}
}

// shrink removes a voter too many: one that does not answer if there is one,
// else one that shares a failure domain, else that of the fullest store; never
// the leader.
func (p *Planner) shrink(r *topology.Range, s replicas) (*operator.Operator, Verdict) {
	var out *metapb.Replica
	worse := func(a, b *metapb.Replica) bool {
		if x, y := alive(p.v, r, a), alive(p.v, r, b); x != y {
			return y
		}
		x := cost(p.seatsOf(s.voters, a.GetReplicaId()))
		y := cost(p.seatsOf(s.voters, b.GetReplicaId()))
		if x != y {
			return x < y
		}
		return p.seat(a.GetStoreId()).fullness() >= p.seat(b.GetStoreId()).fullness()
	}
	for _, m := range s.voters {
		if m.GetReplicaId() != r.Leader.GetReplicaId() && (out == nil || worse(m, out)) {
			out = m
		}
	}
	if out == nil {
		return nil, Verdict{}
	}
	return repair.operator("a voter too many", p.removal(r, s, out)), Verdict{}
}

// pick is the store that shall get a replica of r beside those on keep: where it
// is isolated best, then where least is; nil when there is none. It never takes
// a store that has a replica.
func (p *Planner) pick(r *topology.Range, want *aim, keep []*seat) *seat {
	var best *seat
	var least int64
	for _, s := range p.seats {
		if p.whyNot(r, want, s) != "" || slices.Contains(keep, s) {
			continue
		}
		c := marginalCost(keep, s)
		if best == nil || c < least || c == least && emptier(s, best) {
			best, least = s, c
		}
	}
	return best
}

func emptier(a, b *seat) bool {
	if x, y := a.fullness(), b.fullness(); x != y {
		return x < y
	}
	return a.store.Stats.GetRangeCount() < b.store.Stats.GetRangeCount()
}

// whyNot says why a store cannot get a replica of r; empty when it can.
func (p *Planner) whyNot(r *topology.Range, want *aim, s *seat) string {
	switch {
	case slices.ContainsFunc(r.Range.GetReplicas(), func(m *metapb.Replica) bool {
		return m.GetStoreId() == s.id
	}):
		return "has one"
	case !p.v.Receives(s.store) && s.store.Store.GetDiskState() > metapb.DiskState_DISK_STATE_OK:
		return "disk is full"
	case s.store.Stats == nil:
		return "has not sent a heartbeat yet"
	case !p.v.Receives(s.store):
		return strings.ToLower("is "+strings.TrimPrefix(
			p.v.State(s.store).String(), "STORE_STATE_")) + silence(p.v, s)
	case !s.fit:
		return fmt.Sprintf("disk is %d %% full", s.usedPercent)
	case want.rule != nil && !s.store.Fulfils(want.rule.GetConstraints()):
		return "rule " + strconv.Quote(want.rule.GetId()) + " does not allow it"
	}
	return ""
}

func silence(v topology.View, s *seat) string {
	if v.Silent(s.store) && v.State(s.store) == metapb.StoreState_STORE_STATE_UP {
		return " but silent"
	}
	return ""
}

// noStore says what keeps each store from taking a replica of r, and so what
// would make it possible.
func (p *Planner) noStore(r *topology.Range, want *aim) string {
	var parts []string
	for _, s := range p.seats {
		why := p.whyNot(r, want, s)
		if why == "" {
			why = "would not be better"
		}
		if why == "has one" || s.store.Store.GetState() == metapb.StoreState_STORE_STATE_GONE {
			continue
		}
		if len(parts) == 5 {
			parts = append(parts, "...")
			break
		}
		parts = append(parts, fmt.Sprintf("store %d %s", s.id, why))
	}
	if len(parts) == 0 {
		return "add a store"
	}
	return "add a store, or mend: " + strings.Join(parts, "; ")
}
