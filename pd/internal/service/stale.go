package service

import (
	"sync"
	"time"

	pdpb "github.com/ridgekv/ridge/proto/ridge/pd/v1"
)

// staleReplicas remembers since when a replica that a store holds is no member.
// It holds at most what the stores hold: a complete list takes away the rest.
type staleReplicas struct {
	mu struct {
		sync.Mutex
		byStore map[uint64]map[replicaID]time.Time
	}
}

type replicaID struct{ rangeID, id uint64 }

func (t *staleReplicas) init() { t.mu.byStore = map[uint64]map[replicaID]time.Time{} }

// staleAfter is how long a replica must have been no member before a report of
// its leaseholder is believed that still does not name it. It outlasts an order
// to add it, of this PD or of the former leader: stores give an order up after
// 10 s, and its epoch keeps it from being begun later.
const staleAfter = 15 * time.Second

// maxStale bounds what is remembered of one store, which may say anything.
const maxStale = 100_000

// condemn lists the replicas of a store that are to be destroyed: members of
// nothing, about to be added by nobody.
//
// Law P6: a replica that is a member, or may still become one, is never
// condemned. Ids are not given twice, so one that was passed over for
// staleAfter is passed over for ever.
func (l *Leading) condemn(
	storeID uint64, replicas []*pdpb.LocalReplica, complete bool, now time.Time,
) []*pdpb.Order {
	t := &l.stale
	t.mu.Lock()
	defer t.mu.Unlock()
	old := t.mu.byStore[storeID]
	next := map[replicaID]time.Time{}
	var out []*pdpb.Order
	for _, p := range replicas {
		id := replicaID{p.GetRangeId(), p.GetReplicaId()}
		since, known := old[id]
		delete(old, id)
		if !l.stranger(p) || len(next) >= maxStale {
			continue
		}
		if !known {
			since = now
		}
		next[id] = since
		r := l.Topology.Range(p.GetRangeId())
		if r == nil || r.Reported.Sub(since) < staleAfter {
			continue // what its leaseholder says may be older than an order
		}
		out = append(out, &pdpb.Order{
			RangeId: p.GetRangeId(), Epoch: r.Range.GetEpoch(),
			Step: &pdpb.Order_DestroyReplica{
				DestroyReplica: &pdpb.DestroyReplica{ReplicaId: p.GetReplicaId()},
			},
		})
	}
	if !complete {
		for id, since := range old { // not spoken of this time
			if len(next) < maxStale {
				next[id] = since
			}
		}
	}
	t.mu.byStore[storeID] = next
	return out
}

// stranger reports whether nothing speaks for a replica.
func (l *Leading) stranger(p *pdpb.LocalReplica) bool {
	r := l.Topology.Range(p.GetRangeId())
	return r != nil && !r.Reported.IsZero() && r.Replica(p.GetReplicaId()) == nil &&
		!l.Operators.Pending(p.GetRangeId(), p.GetReplicaId()) &&
		p.GetConfigEpoch() <= r.Range.GetEpoch().GetConfig()
}
