package schedule

import (
	"cmp"
	"fmt"
	"slices"
	"time"

	"github.com/ridgekv/ridge/pd/internal/operator"
	"github.com/ridgekv/ridge/pd/internal/topology"
	metapb "github.com/ridgekv/ridge/proto/ridge/meta/v1"
)

// Without is the picture in which some stores have been silent for long and
// Raft has elected other leaders.
func Without(v topology.View, stores ...uint64) topology.View {
	v.Stores = slices.Clone(v.Stores)
	for i, s := range v.Stores {
		if slices.Contains(stores, s.Store.GetStoreId()) {
			dead := *s
			dead.Heard = v.Now.Add(-v.DownAfter - v.SilentAfter - time.Hour)
			v.Stores[i] = &dead
		}
	}
	v.Ranges = slices.Clone(v.Ranges)
	for i, r := range v.Ranges {
		if !slices.Contains(stores, r.Leader.GetStoreId()) {
			continue
		}
		next := *r
		next.Leader = nil
		if m := heir(v, r); m != nil && Margin(v, r) >= 0 {
			next.Leader = &metapb.Leader{
				ReplicaId: m.GetReplicaId(), StoreId: m.GetStoreId(), Term: r.Leader.GetTerm() + 1,
			}
		}
		v.Ranges[i] = &next
	}
	return v
}

// heir is a voter that serves; nil when none does.
func heir(v topology.View, r *topology.Range) *metapb.Replica {
	for _, m := range r.Range.GetReplicas() {
		if m.GetRole() == metapb.Role_ROLE_VOTER && alive(v, r, m) {
			return m
		}
	}
	return nil
}

// Loss is what the silence of stores means for a range.
type Loss struct {
	RangeID uint64
	// Voters and Live count the voters, and those that would be left to serve.
	Voters, Live int
	// Lost: no quorum is left. Why says what else is amiss with it.
	Lost bool
	Why  string
}

// Losses lists the ranges that lose a voter or more when stores are silent. For a
// restart a voter that lags behind is not counted on, and a range that nobody
// has reported is taken for lost: its store will be asked for soon.
func Losses(v topology.View, restart bool, stores ...uint64) []Loss {
	after := Without(v, stores...)
	var out []Loss
	for _, r := range v.Ranges {
		l := Loss{RangeID: r.Range.GetRangeId()}
		touched := false
		for _, m := range r.Range.GetReplicas() {
			if m.GetRole() != metapb.Role_ROLE_VOTER {
				continue
			}
			l.Voters++
			touched = touched || slices.Contains(stores, m.GetStoreId())
			switch lagging := r.Health(m.GetReplicaId()).GetLagging(); {
			case slices.Contains(stores, m.GetStoreId()):
			case !alive(after, r, m):
				l.Why = fmt.Sprintf("its replica on store %d does not serve", m.GetStoreId())
			case restart && lagging:
				l.Why = fmt.Sprintf("its replica on store %d lags behind", m.GetStoreId())
			default:
				l.Live++
			}
		}
		if restart && r.Reported.IsZero() {
			l.Live, l.Why = 0, "its leaseholder has not reported yet"
		}
		l.Lost = l.Live < l.Voters/2+1
		if touched {
			out = append(out, l)
		}
	}
	return out
}

// Remains is what is on a store, as the reports of ranges tell.
type Remains struct {
	Leaders, Replicas int
	Bytes             uint64
	Ranges            []uint64
}

// RemainsOn counts what is on a store.
func RemainsOn(v topology.View, storeID uint64) Remains {
	var out Remains
	for _, r := range v.Ranges {
		if on(r, storeID) == nil {
			continue
		}
		out.Replicas++
		out.Bytes += r.Report.GetSizeBytes()
		out.Ranges = append(out.Ranges, r.Range.GetRangeId())
		if r.Leader.GetStoreId() == storeID {
			out.Leaders++
		}
	}
	return out
}

// MayBecome judges whether a store may be given a state by a person; nil when it
// may.
func MayBecome(v topology.View, storeID uint64, to metapb.StoreState) *Refusal {
	switch to {
	case metapb.StoreState_STORE_STATE_DRAINING:
		return MayDrain(v, storeID)
	case metapb.StoreState_STORE_STATE_LEAVING:
		return MayLeave(v, storeID)
	case metapb.StoreState_STORE_STATE_GONE:
		return MayForget(v, storeID)
	}
	return nil
}

// MayDrain says why a store cannot give its leaders away; nil when it can.
func MayDrain(v topology.View, storeID uint64) *Refusal {
	s := v.Store(storeID)
	if no := living(v, s, storeID); no != nil {
		return no
	}
	var stuck []uint64
	for _, r := range v.Ranges {
		// Whoever leads it now: the leaders of the last store that is up have nowhere
		// to go, and PD may not have heard yet that it is this one.
		if m := on(r, storeID); m.GetRole() == metapb.Role_ROLE_VOTER &&
			!slices.ContainsFunc(r.Range.GetReplicas(), func(o *metapb.Replica) bool {
				return o.GetStoreId() != storeID && o.GetRole() == metapb.Role_ROLE_VOTER &&
					v.State(v.Store(o.GetStoreId())) == metapb.StoreState_STORE_STATE_UP
			}) {
			stuck = append(stuck, r.Range.GetRangeId())
		}
	}
	if len(stuck) > 0 {
		return refuse(RefusedState,
			"add stores or resume drained ones, so that another voter on a store that is up can lead",
			"store %d cannot be drained: %s could be led by no other store", storeID,
			list("range", stuck))
	}
	return nil
}

// MayLeave says why a store cannot be emptied; nil when it can.
func MayLeave(v topology.View, storeID uint64) *Refusal {
	s := v.Store(storeID)
	if no := living(v, s, storeID); no != nil {
		return no
	}
	left, free := 0, uint64(0)
	for _, o := range v.Stores {
		if o.Store.GetStoreId() != storeID && v.State(o) == metapb.StoreState_STORE_STATE_UP {
			left++
			free += o.Stats.GetAvailableBytes()
		}
	}
	if left < v.Replicas {
		return refuse(RefusedState, fmt.Sprintf("add a store, or set fewer replicas "+
			"(`ridge config set replicas %d`)", max(1, left-1+left%2)),
			"store %d cannot be emptied: stores left that are up: %d, replicas of a range: %d",
			storeID, left, v.Replicas)
	}
	if no := rulesWithout(v, s); no != nil {
		return no
	}
	if held := RemainsOn(v, storeID); held.Bytes > free {
		return refuse(RefusedState, "add a store or space",
			"store %d cannot be emptied: its ranges hold %d bytes, the other stores have room for %d",
			storeID, held.Bytes, free)
	}
	return nil
}

// rulesWithout says which rule could not be followed without a store; nil when
// all can.
func rulesWithout(v topology.View, s *topology.Store) *Refusal {
	for _, rule := range v.Rules {
		need := v.Replicas
		if n := int(rule.GetVoters()); n > 0 {
			need = n
		}
		left := 0
		for _, o := range v.Stores {
			if o != s && v.State(o) == metapb.StoreState_STORE_STATE_UP &&
				o.Fulfils(rule.GetConstraints()) {
				left++
			}
		}
		if s.Fulfils(rule.GetConstraints()) && left < need {
			return refuse(RefusedState, fmt.Sprintf("label or add %d more, or change the rule", need-left),
				"store %d cannot be emptied: rule %q wants %d voters on stores with %s; stores left "+
					"that are up and fulfil that: %d", s.Store.GetStoreId(), rule.GetId(), need,
				topology.ConstraintText(rule.GetConstraints()), left)
		}
	}
	return nil
}

// MayForget says why a store cannot be declared gone; nil when it can.
func MayForget(v topology.View, storeID uint64) *Refusal {
	s := v.Store(storeID)
	switch {
	case s == nil:
		return refuse(RefusedUnknown, "`ridge store list` names them", "there is no store %d", storeID)
	case v.State(s) == metapb.StoreState_STORE_STATE_GONE:
		return nil
	case !v.Silent(s):
		return refuse(RefusedState, "`ridge store decommission` empties it; stop it if it is lost",
			"store %d is alive: it was heard %s ago", storeID,
			v.Now.Sub(s.Heard).Round(100*time.Millisecond))
	}
	var lost []uint64
	for _, l := range Losses(v, false, storeID) {
		if l.Lost {
			lost = append(lost, l.RangeID)
		}
	}
	if len(lost) > 0 {
		return refuse(RefusedState, "bring it or another of their stores back: nothing can heal them "+
			"without it", "store %d cannot be given up: %s would have no quorum for ever", storeID,
			list("range", lost))
	}
	return nil
}

func living(v topology.View, s *topology.Store, storeID uint64) *Refusal {
	switch {
	case s == nil:
		return refuse(RefusedUnknown, "`ridge store list` names them", "there is no store %d", storeID)
	case v.State(s) == metapb.StoreState_STORE_STATE_GONE:
		return refuse(RefusedArgument, "its id never comes back", "store %d is gone", storeID)
	}
	return nil
}

// Emptied lists the stores that are leaving and hold nothing more: no range has
// a replica there, no operator brings one, and the store itself says that it
// holds none. reported tells that all ranges have been heard of.
func Emptied(v topology.View, f operator.Flight) []uint64 {
	busy := map[uint64]bool{}
	for _, r := range v.Ranges {
		if r.Reported.IsZero() {
			return nil
		}
		for _, m := range r.Range.GetReplicas() {
			busy[m.GetStoreId()] = true
		}
	}
	for _, o := range f.Operators {
		for _, s := range o.Steps {
			busy[s.StoreID] = true
		}
	}
	var out []uint64
	for _, s := range v.Stores {
		if id := s.Store.GetStoreId(); !busy[id] && !v.Silent(s) && s.Stats != nil &&
			v.State(s) == metapb.StoreState_STORE_STATE_LEAVING && s.Stats.GetRangeCount() == 0 {
			out = append(out, id)
		}
	}
	slices.SortFunc(out, cmp.Compare)
	return out
}
