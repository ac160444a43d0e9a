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
	if complete {
		delete(t.mu.early, storeID)
	}
	held := make(map[uint64]uint64, len(replicas))
	for _, p := range replicas {
		held[p.GetRangeId()] = p.GetReplicaId()
		r := t.mu.ranges[p.GetRangeId()]
		if r == nil {
			t.noteEarlyLocked(storeID, p.GetRangeId(), p.GetReplicaId())
			continue
		}
		if r.Replica(p.GetReplicaId()).GetStoreId() != storeID {
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

// maxEarly bounds the early replicas of one store. One beyond it counts as unlisted
// until the next list.
const maxEarly = 4096

func (t *Topology) noteEarlyLocked(storeID, rangeID, replicaID uint64) {
	ids := t.mu.early[storeID]
	if ids == nil {
		ids = map[uint64]uint64{}
		t.mu.early[storeID] = ids
	}
	if _, known := ids[rangeID]; known || len(ids) < maxEarly {
		ids[rangeID] = replicaID
	}
}

// unlistedLocked are the words about a range that becomes known by the report of
// a leader: whom no store has named yet, but for the leader itself.
func (t *Topology) unlistedLocked(r *metapb.Range, leader uint64) []Word {
	var out []Word
	for _, m := range r.GetReplicas() {
		early := t.mu.early[m.GetStoreId()]
		if m.GetStoreId() != leader && early[r.GetRangeId()] != m.GetReplicaId() {
			out = append(out, Word{ReplicaID: m.GetReplicaId(), Unlisted: true})
		}
	}
	return out
}

func (t *Topology) forgetEarlyLocked(r *metapb.Range) {
	for _, m := range r.GetReplicas() {
		delete(t.mu.early[m.GetStoreId()], r.GetRangeId())
	}
}

// keepListedLocked remembers which replicas of a range that is dropped are held.
func (t *Topology) keepListedLocked(r *Range) {
	for _, m := range r.Range.GetReplicas() {
		if r.Word(m.GetReplicaId()).Held() {
			t.noteEarlyLocked(m.GetStoreId(), r.Range.GetRangeId(), m.GetReplicaId())
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
