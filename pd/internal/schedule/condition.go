package schedule

import (
	"fmt"

	"github.com/ridgekv/ridge/pd/internal/topology"
	metapb "github.com/ridgekv/ridge/proto/ridge/meta/v1"
)

// Condition tells how a range is, in sentences: how many voters it has and
// lacks, what it can lose, and which of its replicas are not well.
func Condition(v topology.View, r *topology.Range) []string {
	var out []string
	q, voters := count(v, r, r.Range.GetReplicas()), v.Voters(r)
	switch margin := q.margin(); {
	case margin < 0:
		out = append(out, fmt.Sprintf("%d of %d voters serve: it has no quorum", q.live, q.voters))
	case margin == 0:
		out = append(out, fmt.Sprintf("%d of %d voters serve: it can lose none", q.live, q.voters))
	default:
		out = append(out, fmt.Sprintf("%d of %d voters serve: it can lose %d", q.live, q.voters,
			margin))
	}
	if q.voters < voters {
		out = append(out, fmt.Sprintf("it shall have %d voters once enough stores are up", voters))
	}
	if why := unheard(v, r); why != "" {
		out = append(out, "nothing is planned for it: "+why)
	}
	for _, m := range r.Range.GetReplicas() {
		switch why := unfit(v, r, m); {
		case why != "":
			out = append(out, why)
		case v.Silent(v.Store(m.GetStoreId())):
			out = append(out, fmt.Sprintf("store %d is silent", m.GetStoreId()))
		case unbegun(v, r, m) != "":
			out = append(out, unbegun(v, r, m)+" yet, and the range stays as it is until then")
		case r.Health(m.GetReplicaId()).GetLagging():
			out = append(out, fmt.Sprintf("the replica on store %d lags behind", m.GetStoreId()))
		}
	}
	return out
}

// CannotReceive says why no replica can be placed on s, and what would help.
func CannotReceive(v topology.View, s *topology.Store) (why, remedy string) {
	id := s.Store.GetStoreId()
	switch state := v.State(s); {
	case state == metapb.StoreState_STORE_STATE_GONE:
		return fmt.Sprintf("store %d is gone for ever", id), ""
	case state == metapb.StoreState_STORE_STATE_DOWN || v.Silent(s):
		return fmt.Sprintf("store %d is down or silent", id), "start it"
	case state != metapb.StoreState_STORE_STATE_UP:
		return fmt.Sprintf("store %d is %s", id, stateText(state)), "`ridge store resume` calls it back"
	case !v.Receives(s):
		return fmt.Sprintf("the disk of store %d is full", id), "free or add space there"
	}
	return "", ""
}

// Margin is how many live voters a range can lose before it stands still;
// negative when it does already.
func Margin(v topology.View, r *topology.Range) int {
	return count(v, r, r.Range.GetReplicas()).margin()
}
