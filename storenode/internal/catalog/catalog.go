// Package catalog knows which ranges this store holds.
//
// It is written by apply and by raft's reconciler, after the commit that makes
// a fact true has become visible, and read by everybody else. Whoever must act
// on a new fact waits for the bell.
package catalog

import (
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/ridgekv/ridge/proto/keys"
	"github.com/ridgekv/ridge/proto/ts"
	"github.com/ridgekv/ridge/storenode/internal/engine"
)

// BirthIndex is the applied index, and the term, with which every range is
// born: its log is truncated there (Law 4).
const BirthIndex = 5

// What Create, Edit and Destroy refuse with.
var (
	ErrNoReplica  = errors.New("catalog: this store does not hold the replica")
	ErrExists     = errors.New("catalog: this store already holds a replica of the range")
	ErrTombstoned = errors.New("catalog: the replica was removed from this store")
)

// Catalog is the set of replicas of one store.
type Catalog struct {
	engine *engine.Engine
	index  atomic.Pointer[index]
	bell   chan struct{}

	mu struct {
		sync.Mutex
		// reserved are range ids somebody is about to create a replica of.
		// Invariant: a range is never both reserved and in the index.
		reserved map[uint64]struct{}
		// tombstones are the removed replica ids of each range, for ever.
		tombstones map[uint64][]uint64
		// loadedMaxCommitTS is the maximum over all ranges at Load.
		loadedMaxCommitTS ts.Timestamp
	}
}

// Load reads the catalog from e. A record that cannot be read is an error: the
// store must not serve as if it did not hold that replica.
func Load(e *engine.Engine) (*Catalog, error) {
	c := &Catalog{engine: e, bell: make(chan struct{}, 1)}
	c.mu.reserved = make(map[uint64]struct{})
	c.mu.tombstones = make(map[uint64][]uint64)
	applied := e.Applied()
	var replicas []*Replica
	for id, b := range e.States() {
		s, err := DecodeState(b)
		if err != nil {
			return nil, fmt.Errorf("catalog: range %d: %w", id, err)
		}
		if s.RangeID() != id {
			return nil, fmt.Errorf("catalog: range %d: %w: names range %d", id, ErrCorrupt, s.RangeID())
		}
		var a Applied
		if b, ok := applied[id]; ok {
			if a, err = DecodeApplied(b); err != nil {
				return nil, fmt.Errorf("catalog: range %d: %w", id, err)
			}
		}
		c.mu.loadedMaxCommitTS = max(c.mu.loadedMaxCommitTS, a.MaxCommitTS)
		replicas = append(replicas, newReplica(id, s, a))
	}
	if err := c.loadTombstones(); err != nil {
		return nil, err
	}
	c.index.Store(newIndex(replicas))
	c.Ring()
	return c, nil
}

// MaxCommitTS is the highest commit_ts that any range had written when the
// catalog was loaded: what the engine's garbage collection begins with.
func (c *Catalog) MaxCommitTS() ts.Timestamp {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.mu.loadedMaxCommitTS
}

// Replica finds the replica of a range, whatever its state.
func (c *Catalog) Replica(rangeID uint64) (*Replica, bool) {
	return c.index.Load().replica(rangeID)
}

// Replicas lists all replicas in ascending order of range id. The slice must
// not be changed.
func (c *Catalog) Replicas() []*Replica { return c.index.Load().byID }

// Lookup finds the replica that serves key. Where two replicas claim the key,
// the larger span epoch wins. The caller checks the replica's own state again:
// the index may be a moment older.
func (c *Catalog) Lookup(key []byte) (*Replica, bool) { return c.index.Load().lookup(key) }

// Overlapping lists the replicas that serve some key of span, in order of key.
func (c *Catalog) Overlapping(span keys.Span) []*Replica {
	return c.index.Load().overlapping(span)
}

// Bell is rung when the reconciler may have work.
func (c *Catalog) Bell() <-chan struct{} { return c.bell }

// Ring rings the bell.
func (c *Catalog) Ring() {
	select {
	case c.bell <- struct{}{}:
	default:
	}
}

// Change is what one commit made of one range.
type Change struct {
	RangeID uint64
	State   *State
	Applied Applied
}

// Update publishes what a commit made of a range, after the commit has become
// visible. A range that was not there is added.
func (c *Catalog) Update(rangeID uint64, s *State, a Applied) {
	c.Publish(Change{RangeID: rangeID, State: s, Applied: a})
}

// Publish is Update for several ranges of one commit: lookups see all or none
// of them. Reservations of the ranges end with it.
func (c *Catalog) Publish(changes ...Change) {
	idx := c.index.Load()
	for _, ch := range changes {
		if r, ok := idx.replica(ch.RangeID); !ok || !sameEntry(r.State(), ch.State) {
			c.reindex(changes)
			return
		}
	}
	for _, ch := range changes {
		r, _ := idx.replica(ch.RangeID)
		r.publish(ch.State, ch.Applied)
	}
}

// reindex publishes changes that make another index. It does all of that under
// the lock, so that no index is made of a parent without its child.
func (c *Catalog) reindex(changes []Change) {
	c.mu.Lock()
	defer c.mu.Unlock()
	idx := c.index.Load()
	all := slices.Clone(idx.byID)
	for _, ch := range changes {
		if r, ok := idx.replica(ch.RangeID); ok {
			r.publish(ch.State, ch.Applied)
			continue
		}
		all = append(all, newReplica(ch.RangeID, ch.State, ch.Applied))
		delete(c.mu.reserved, ch.RangeID)
	}
	c.index.Store(newIndex(all))
}

// Remove forgets a range, after the commit that deleted its records.
func (c *Catalog) Remove(rangeID uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	var left []*Replica
	for _, r := range c.index.Load().byID {
		if r.rangeID != rangeID {
			left = append(left, r)
		}
	}
	c.index.Store(newIndex(left))
}

// Reserve claims a range id for a replica that is about to be created: of two
// that try, apply for the child of a split and the reconciler for a learner,
// one is refused. It is refused too when the store holds a replica of the
// range. The claim ends with Publish or Release.
func (c *Catalog) Reserve(rangeID uint64) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if _, ok := c.index.Load().replica(rangeID); ok {
		return false
	}
	if _, ok := c.mu.reserved[rangeID]; ok {
		return false
	}
	c.mu.reserved[rangeID] = struct{}{}
	return true
}

// Release ends a claim that came to nothing.
func (c *Catalog) Release(rangeID uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.mu.reserved, rangeID)
}

// sameEntry reports whether the index says the same about a and b.
func sameEntry(a, b *State) bool {
	return a == b || a.Serving() == b.Serving() && a.SpanEpoch() == b.SpanEpoch() &&
		a.Span().Equal(b.Span())
}

// StageState adds the record m|range to w.
func StageState(w *engine.WriteSet, s *State) { w.SetState(s.RangeID(), EncodeState(s)) }

// StageApplied adds the record a|range to w.
func StageApplied(w *engine.WriteSet, rangeID uint64, a Applied) {
	w.SetApplied(rangeID, EncodeApplied(a))
}
