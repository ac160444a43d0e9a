package topology

import (
	"slices"
	"time"

	metapb "github.com/ridgekv/ridge/proto/ridge/meta/v1"
	pdpb "github.com/ridgekv/ridge/proto/ridge/pd/v1"
)

// HeardReplicas takes in what a store says it holds. A leader knows neither that
// another replica is poisoned nor that its store lost it: only the store does.
// Only a complete list tells that something is missing.
func (t *Topology) HeardReplicas(
	storeID uint64, replicas []*pdpb.LocalReplica, complete bool, now time.Time,
) {
	t.mu.Lock()
	defer t.mu.Unlock()
	held := make(map[uint64]uint64, len(replicas))
	for _, p := range replicas {
		held[p.GetRangeId()] = p.GetReplicaId()
		r := t.mu.ranges[p.GetRangeId()]
		if r == nil || r.Replica(p.GetReplicaId()).GetStoreId() != storeID {
			continue
		}
		t.sayLocked(r, Word{ReplicaID: p.GetReplicaId(), Poisoned: p.GetPoisoned()})
	}
	if !complete {
		return
	}
	for id := range t.mu.members[storeID] {
		r := t.mu.ranges[id]
		for _, m := range r.Range.GetReplicas() {
			if m.GetStoreId() != storeID || held[r.Range.GetRangeId()] == m.GetReplicaId() {
				continue
			}
			w := r.Word(m.GetReplicaId())
			if w.MissingFrom.IsZero() {
				w.MissingFrom = now
			}
			w.MissingTo = now
			t.sayLocked(r, w)
		}
	}
}

// sayLocked replaces what is said of one replica of r.
func (t *Topology) sayLocked(r *Range, w Word) {
	if r.Word(w.ReplicaID) == w {
		return
	}
	next := *r
	next.Words = slices.DeleteFunc(slices.Clone(r.Words), func(o Word) bool {
		return o.ReplicaID == w.ReplicaID
	})
	if w != (Word{ReplicaID: w.ReplicaID}) {
		next.Words = append(next.Words, w)
	}
	t.mu.ranges[r.Range.GetRangeId()] = &next
	t.mu.spans.ReplaceOrInsert(&next)
}

// wordsOf keeps the words about members.
func wordsOf(r *metapb.Range, words []Word) []Word {
	gone := func(w Word) bool {
		return !slices.ContainsFunc(r.GetReplicas(), func(m *metapb.Replica) bool {
			return m.GetReplicaId() == w.ReplicaID
		})
	}
	if !slices.ContainsFunc(words, gone) {
		return words
	}
	return slices.DeleteFunc(slices.Clone(words), gone)
}
