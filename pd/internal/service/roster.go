package service

import (
	"sync"
	"time"

	metapb "github.com/ridgekv/ridge/proto/ridge/meta/v1"
)

// rosterAge is how old the list of stores may be that a heartbeat is answered
// from: looking through all stores for each heartbeat of each store would cost
// the square of their number.
const rosterAge = 20 * time.Millisecond

// roster numbers what stores are told of each other, so that the answer to a
// heartbeat carries only what is new to the store that asks.
//
// Law: a store that took over every answer up to a version knows each store as
// it was at that version. Versions of this leader are above its epoch << 32, and
// epochs are never given twice; so what another leader told is never taken for
// what this one did, and an answer that got lost is asked for again.
type roster struct {
	mu struct {
		sync.Mutex
		version uint64
		looked  time.Time
		entries map[uint64]entry
	}
}

// entry is a store as it is shown, since a version.
type entry struct {
	store *metapb.Store
	// of is the record that store was made of, down that it is shown so.
	of    *metapb.Store
	down  bool
	since uint64
}

// since lists the stores that changed after version, or all if this leader did
// not give it, and tells which version that is.
func (t *roster) since(
	l *Leading, epoch, version uint64, now time.Time,
) (stores []*metapb.Store, latest uint64) {
	base := epoch << 32
	t.mu.Lock()
	defer t.mu.Unlock()
	known := version > base && version <= t.mu.version
	if !known || now.Sub(t.mu.looked) >= rosterAge {
		t.lookLocked(l, base, now)
	}
	if known && version == t.mu.version {
		return nil, version
	}
	for _, e := range t.mu.entries {
		if !known || e.since > version {
			stores = append(stores, e.store)
		}
	}
	return stores, t.mu.version
}

// lookLocked takes in how the stores are now.
func (t *roster) lookLocked(l *Leading, base uint64, now time.Time) {
	if t.mu.entries == nil {
		t.mu.entries, t.mu.version = map[uint64]entry{}, base
	}
	t.mu.looked = now
	next, downAfter := t.mu.version+1, l.Settings().StoreDownAfter
	for _, s := range l.Topology.Stores() {
		id, down := s.Store.GetStoreId(), isDown(s, now, downAfter)
		if old, ok := t.mu.entries[id]; !ok || old.of != s.Store || old.down != down {
			t.mu.entries[id] = entry{store: shown(s.Store, down), of: s.Store, down: down, since: next}
			t.mu.version = next
		}
	}
}
