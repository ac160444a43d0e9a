// Package route remembers which range holds which keys and who leads it. Law:
// ranges in the cache never overlap; where two claim a key, the larger span
// epoch wins, and of two descriptors of one range each half of the epoch is
// taken from the newer.
package route

import (
	"bytes"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/google/btree"

	"github.com/ridgekv/ridge/proto/keys"
	metapb "github.com/ridgekv/ridge/proto/ridge/meta/v1"
)

// Route is a range as the client knows it. It is immutable but for the mark of
// use; a change makes a new one.
type Route struct {
	RangeID  uint64
	Span     keys.Span
	Config   uint64 // epoch.config: how new Replicas is
	Epoch    uint64 // epoch.span: how new Span is
	Replicas []*metapb.Replica
	// Leader is the store that is thought to lead; 0 means unknown.
	Leader uint64
	// term orders what is said about the leader.
	term uint64
	// used is set by readers and cleared by the eviction's hand.
	used *atomic.Bool
	// asked is when PD was asked last about this range, in Unix nanoseconds.
	asked *atomic.Int64
}

// Stores lists the stores that may answer: the leader first, then the other
// voters, and, if all is set, the learners.
func (r *Route) Stores(all bool) []uint64 {
	out := make([]uint64, 0, len(r.Replicas))
	if r.Leader != 0 {
		out = append(out, r.Leader)
	}
	for _, rep := range r.Replicas {
		if rep.GetRole() == metapb.Role_ROLE_LEARNER && !all {
			continue
		}
		if rep.GetStoreId() != r.Leader {
			out = append(out, rep.GetStoreId())
		}
	}
	return out
}

// Proto renders r as a descriptor.
func (r *Route) Proto() *metapb.Range {
	return &metapb.Range{
		RangeId: r.RangeID, Span: r.Span.Proto(), Replicas: r.Replicas,
		Epoch: &metapb.Epoch{Config: r.Config, Span: r.Epoch},
	}
}

// Cache is the map from keys to ranges. Readers take no lock.
type Cache struct {
	max  int
	tree atomic.Pointer[btree.BTreeG[*Route]]
	mu   struct {
		sync.Mutex
		// hand is the start key at which the next eviction begins.
		hand []byte
	}
}

// NewCache returns an empty cache of at most max ranges.
func NewCache(max int) *Cache {
	c := &Cache{max: max}
	c.tree.Store(btree.NewG(32, func(a, b *Route) bool {
		return bytes.Compare(a.Span.Start, b.Span.Start) < 0
	}))
	return c
}

// Find returns the range that holds key, or nil.
func (c *Cache) Find(key []byte) *Route {
	r := floor(c.tree.Load(), key)
	if r == nil || !r.Span.Contains(key) {
		return nil
	}
	if !r.used.Load() {
		r.used.Store(true)
	}
	return r
}

// gapStart names the gap that key lies in: the end of the range before it.
// Misses with the same gap are likely to be filled by one answer.
func (c *Cache) gapStart(key []byte) []byte {
	if r := floor(c.tree.Load(), key); r != nil {
		return r.Span.End
	}
	return nil
}

// Len is how many ranges are known.
func (c *Cache) Len() int { return c.tree.Load().Len() }

// All lists the ranges in order.
func (c *Cache) All() []*Route {
	var out []*Route
	c.tree.Load().Ascend(func(r *Route) bool {
		out = append(out, r)
		return true
	})
	return out
}

// Learn takes a descriptor and what is known of its leader, which may be nil.
// It reports whether the cache changed. Older claims are ignored.
func (c *Cache) Learn(d *metapb.Range, leader *metapb.Leader) bool {
	span := keys.FromProto(d.GetSpan())
	if d.GetRangeId() == 0 || !span.Valid() {
		return false
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	tree := c.tree.Load()
	r := &Route{
		RangeID: d.GetRangeId(), Span: span, Config: d.GetEpoch().GetConfig(),
		Epoch: d.GetEpoch().GetSpan(), Replicas: d.GetReplicas(), used: &atomic.Bool{},
		asked: &atomic.Int64{},
	}
	r.used.Store(true)
	r.setLeader(leader)
	overlapping := overlaps(tree, span)
	for _, o := range overlapping {
		if o.RangeID != r.RangeID && o.Epoch > r.Epoch {
			return false
		}
		if o.RangeID == r.RangeID {
			r = merge(o, r)
		}
	}
	if len(overlapping) == 1 && overlapping[0].same(r) {
		return false
	}
	if !r.Span.Equal(span) {
		// The known span of this range is newer than the one just heard.
		overlapping = slices.DeleteFunc(overlapping, func(o *Route) bool {
			return o.RangeID != r.RangeID
		})
	}
	tree = tree.Clone()
	for _, o := range overlapping {
		tree.Delete(o)
	}
	tree.ReplaceOrInsert(r)
	if tree.Len() > c.max {
		c.evictLocked(tree, r)
	}
	c.tree.Store(tree)
	return true
}

// merge takes each half of the epoch from the newer of two descriptors of one
// range, and the leader from whoever knows more of it.
func merge(old, heard *Route) *Route {
	r := *heard
	r.asked = old.asked
	if old.Epoch > heard.Epoch {
		r.Epoch, r.Span = old.Epoch, old.Span
	}
	if old.Config > heard.Config {
		r.Config, r.Replicas = old.Config, old.Replicas
	}
	if heard.Leader == 0 || old.Leader != 0 && old.term > heard.term {
		r.Leader, r.term = old.Leader, old.term
	}
	if !r.hasReplicaOn(r.Leader) {
		r.Leader, r.term = 0, 0
	}
	return &r
}

func (r *Route) setLeader(l *metapb.Leader) {
	if id := l.GetStoreId(); id != 0 {
		r.Leader, r.term = id, l.GetTerm()
	}
}

func (r *Route) hasReplicaOn(store uint64) bool {
	return slices.ContainsFunc(r.Replicas, func(p *metapb.Replica) bool {
		return p.GetStoreId() == store
	})
}

// same reports whether r and o say the same.
func (r *Route) same(o *Route) bool {
	return r.RangeID == o.RangeID && r.Epoch == o.Epoch && r.Config == o.Config &&
		r.Leader == o.Leader && r.term == o.term && r.Span.Equal(o.Span)
}

// SetLeader notes what the store from said about the leader of r. A hint of an
// older term is ignored, unless it comes from the very store that was thought
// to lead.
func (c *Cache) SetLeader(r *Route, from uint64, l *metapb.Leader) {
	c.change(r, func(n *Route) bool {
		if n.Leader != from && n.Leader != 0 && l.GetTerm() < n.term || l.GetStoreId() == 0 ||
			n.Leader == l.GetStoreId() && n.term == l.GetTerm() {
			return false
		}
		n.setLeader(l)
		return true
	})
}

// DropLeader forgets that store leads r, if that is what is thought.
func (c *Cache) DropLeader(r *Route, store uint64) {
	c.change(r, func(n *Route) bool {
		if n.Leader != store {
			return false
		}
		n.Leader, n.term = 0, 0
		return true
	})
}

// Led notes that store just answered for r as its leader.
func (c *Cache) Led(r *Route, store uint64) {
	if r.Leader == store {
		return
	}
	c.change(r, func(n *Route) bool {
		changed := n.Leader != store
		n.Leader = store
		return changed
	})
}

// Drop forgets r, unless something newer has taken its place.
func (c *Cache) Drop(r *Route) {
	c.mu.Lock()
	defer c.mu.Unlock()
	tree := c.tree.Load()
	if have, ok := tree.Get(r); ok && have.RangeID == r.RangeID && have.Epoch == r.Epoch {
		tree = tree.Clone()
		tree.Delete(have)
		c.tree.Store(tree)
	}
}

// change replaces what is known now of the range of r by what edit makes of
// it. It does nothing when that range is no longer there.
func (c *Cache) change(r *Route, edit func(*Route) bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	tree := c.tree.Load()
	have, ok := tree.Get(r)
	if !ok || have.RangeID != r.RangeID {
		return
	}
	n := *have
	if !edit(&n) {
		return
	}
	tree = tree.Clone()
	tree.ReplaceOrInsert(&n)
	c.tree.Store(tree)
}

// evictLocked makes room for a sixteenth of the bound: ranges not used since
// the hand passed last go first. keep stays.
func (c *Cache) evictLocked(tree *btree.BTreeG[*Route], keep *Route) {
	target := c.max - c.max/16
	var gone []*Route
	hand := func(r *Route) bool {
		if len(gone) >= tree.Len()-target {
			c.mu.hand = r.Span.Start
			return false
		}
		if r != keep && !r.used.Swap(false) {
			gone = append(gone, r)
		}
		return true
	}
	// Two rounds clear every mark; the third takes what is left.
	for range 3 {
		gone = nil
		tree.AscendGreaterOrEqual(&Route{Span: keys.Span{Start: c.mu.hand}}, hand)
		if len(gone) < tree.Len()-target {
			c.mu.hand = nil
		}
		for _, r := range gone {
			tree.Delete(r)
		}
		if tree.Len() <= target {
			return
		}
	}
}

// floor returns the range with the greatest start at or below key.
func floor(tree *btree.BTreeG[*Route], key []byte) *Route {
	p := pivots.Get().(*pivot)
	p.at.Span.Start = key
	tree.DescendLessOrEqual(&p.at, p.visit)
	found := p.found
	p.at.Span.Start, p.found = nil, nil
	pivots.Put(p)
	return found
}

// pivot is what a search in the tree needs: every call does one.
type pivot struct {
	at    Route
	found *Route
	visit func(*Route) bool
}

var pivots = sync.Pool{New: func() any {
	p := &pivot{}
	p.visit = func(r *Route) bool {
		p.found = r
		return false
	}
	return p
}}

// overlaps lists the ranges that share keys with span.
func overlaps(tree *btree.BTreeG[*Route], span keys.Span) []*Route {
	var out []*Route
	if r := floor(tree, span.Start); r != nil && r.Span.Overlaps(span) {
		out = append(out, r)
	}
	tree.AscendGreaterOrEqual(&Route{Span: span}, func(r *Route) bool {
		if !r.Span.Overlaps(span) {
			return false
		}
		if len(out) == 0 || out[len(out)-1] != r {
			out = append(out, r)
		}
		return true
	})
	return out
}
