// Package topology is what the cluster looks like now: stores and ranges as
// their heartbeats tell. It is soft state of the PD that leads.
package topology

import (
	"bytes"
	"cmp"
	"math"
	"slices"
	"sync"
	"time"

	"github.com/google/btree"

	"github.com/ridgekv/ridge/pd/internal/meta"
	"github.com/ridgekv/ridge/proto/keys"
	metapb "github.com/ridgekv/ridge/proto/ridge/meta/v1"
	pdpb "github.com/ridgekv/ridge/proto/ridge/pd/v1"
)

// Store is a store with what its last heartbeat said. It is immutable.
type Store struct {
	Store *metapb.Store
	Stats *pdpb.StoreStats
	// registered is what Store was made of.
	registered *metapb.Store
	// Heard is when the last heartbeat came; the start of this leadership if
	// none came since.
	Heard time.Time
}

// Range is a range with what its leaseholder said last. It is immutable.
type Range struct {
	Range  *metapb.Range
	Leader *metapb.Leader
	Report *pdpb.RangeReport
	// Reported is when its leaseholder reported last; zero when it is only
	// remembered from before this leadership.
	Reported time.Time
	// Words are what the stores of members say themselves, where it is bad.
	Words []Word
	// Revision grows with every change of the route.
	Revision uint64
}

// Word is what a store says of a replica it should hold.
type Word struct {
	ReplicaID uint64
	Poisoned  bool
	// Unlisted: no list of the store has named the replica since the range became
	// known. The child of a split is late on a store that lags behind.
	Unlisted bool
	// MissingFrom and MissingTo are the first and the last complete list of the
	// store that lacked the replica; zero when it holds it.
	MissingFrom, MissingTo time.Time
}

// Held reports whether the store holds the replica, as far as its lists tell.
func (w Word) Held() bool { return !w.Unlisted && w.MissingFrom.IsZero() }

// Route renders r for clients.
func (r *Range) Route() *pdpb.Route {
	return &pdpb.Route{
		Range: r.Range, Leader: r.Leader,
		SizeBytes: r.Report.GetSizeBytes(), KeyCount: r.Report.GetKeyCount(),
	}
}

// SizeBytes is how large the range is, by its leaseholder's word.
func (r *Range) SizeBytes() uint64 {
	if r == nil {
		return 0
	}
	return r.Report.GetSizeBytes()
}

// SpanEpoch is the span half of the range's epoch.
func (r *Range) SpanEpoch() uint64 {
	if r == nil {
		return 0
	}
	return r.Range.GetEpoch().GetSpan()
}

// Health returns what the leaseholder said of a replica.
func (r *Range) Health(replicaID uint64) *pdpb.ReplicaHealth {
	for _, h := range r.Report.GetHealth() {
		if h.GetReplicaId() == replicaID {
			return h
		}
	}
	return nil
}

// Word returns what the store of a replica says of it.
func (r *Range) Word(replicaID uint64) Word {
	for _, w := range r.Words {
		if w.ReplicaID == replicaID {
			return w
		}
	}
	return Word{ReplicaID: replicaID}
}

// Replica finds a member by its id; nil when it is none.
func (r *Range) Replica(replicaID uint64) *metapb.Replica {
	for _, m := range r.Range.GetReplicas() {
		if m.GetReplicaId() == replicaID {
			return m
		}
	}
	return nil
}

// Topology is written by heartbeats and read by everybody.
type Topology struct {
	mu struct {
		sync.RWMutex
		ranges map[uint64]*Range
		// spans orders the same ranges by start key. Invariant: they do not
		// overlap; between overlapping reports the larger span epoch won.
		spans  *btree.BTreeG[*Range]
		stores map[uint64]*Store
		// members are the ids of the ranges that have a member on a store, so that
		// what a store says costs what it holds, not what all hold.
		members map[uint64]map[uint64]struct{}
		// early are replicas that stores hold of ranges that are not known, by store
		// and range: the list of a follower may come before the leader's report.
		early map[uint64]map[uint64]uint64
		// dirty ranges are not yet persisted; dropped ones are to be forgotten.
		dirty    map[uint64]bool
		dropped  map[uint64]bool
		revision uint64
		changed  chan struct{}
	}
}

// New returns a topology of remembered descriptors and stores.
func New(now time.Time, stores []*pdpb.StoreRecord, ranges []*metapb.Range) *Topology {
	t := &Topology{}
	t.mu.ranges = map[uint64]*Range{}
	t.mu.spans = btree.NewG(32, func(a, b *Range) bool {
		return bytes.Compare(a.Range.GetSpan().GetStart(), b.Range.GetSpan().GetStart()) < 0
	})
	t.mu.stores = map[uint64]*Store{}
	t.mu.members = map[uint64]map[uint64]struct{}{}
	t.mu.early = map[uint64]map[uint64]uint64{}
	t.mu.dirty, t.mu.dropped = map[uint64]bool{}, map[uint64]bool{}
	t.mu.changed = make(chan struct{})
	for _, s := range stores {
		t.mu.stores[s.GetStore().GetStoreId()] = &Store{
			Store: s.GetStore(), Heard: now, registered: s.GetStore(),
		}
	}
	for _, r := range ranges {
		if !t.putLocked(&Range{Range: r}) {
			t.mu.dropped[r.GetRangeId()] = true
		}
	}
	clear(t.mu.dirty)
	return t
}

// PutStores takes in what is registered. Records that were taken in before cost
// nothing.
func (t *Topology) PutStores(records []*pdpb.StoreRecord, now time.Time) {
	t.mu.Lock()
	defer t.mu.Unlock()
	changed := false
	for _, rec := range records {
		s := rec.GetStore()
		next := &Store{Store: s, Heard: now, registered: s}
		old := t.mu.stores[s.GetStoreId()]
		switch {
		case old == nil:
		case old.registered == s:
			continue
		default:
			next.Stats, next.Heard = old.Stats, old.Heard
			next.Store = withDisk(s, old.Store.GetDiskState())
		}
		t.mu.stores[s.GetStoreId()] = next
		changed = true
	}
	if changed {
		t.announceLocked()
	}
}

// HeardStore takes in a store heartbeat; false when the store is unknown.
func (t *Topology) HeardStore(
	id uint64, stats *pdpb.StoreStats, disk metapb.DiskState, now time.Time,
) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	old := t.mu.stores[id]
	if old == nil {
		return false
	}
	next := &Store{Store: old.Store, Stats: stats, Heard: now, registered: old.registered}
	if old.Store.GetDiskState() != disk {
		next.Store = withDisk(old.Store, disk)
		defer t.announceLocked()
	}
	t.mu.stores[id] = next
	return true
}

func withDisk(s *metapb.Store, disk metapb.DiskState) *metapb.Store {
	return &metapb.Store{
		StoreId: s.GetStoreId(), GrpcAddress: s.GetGrpcAddress(), RaftAddress: s.GetRaftAddress(),
		Labels: s.GetLabels(), Version: s.GetVersion(), State: s.GetState(), DiskState: disk,
	}
}

// Report takes in what the leaseholder of a range says, and owns p from now on.
// It reports whether the descriptor was taken: an older span that overlaps newer
// ones is refused.
func (t *Topology) Report(p *pdpb.RangeReport, now time.Time) bool {
	r := p.GetRange()
	if r.GetRangeId() == 0 || !keys.FromProto(r.GetSpan()).Valid() {
		return false
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	old := t.mu.ranges[r.GetRangeId()]
	next := &Range{Range: r, Leader: p.GetLeader(), Report: p, Reported: now}
	if old != nil {
		next.Range = meta.MergeRange(old.Range, r)
		next.Revision, next.Words = old.Revision, wordsOf(next.Range, old.Words)
		if old.Leader.GetTerm() > p.GetLeader().GetTerm() {
			return false // a deposed leader that does not know it yet
		}
	} else {
		next.Words = t.unlistedLocked(r, p.GetLeader().GetStoreId())
	}
	if !t.putLocked(next) {
		return false
	}
	if old == nil {
		t.forgetEarlyLocked(r)
	}
	p.Range = next.Range // not kept twice: at a million ranges that is a third of the map
	if old == nil || old.Range != next.Range || !sameLeader(old.Leader, next.Leader) {
		t.announceLocked()
	}
	return true
}

func sameLeader(a, b *metapb.Leader) bool {
	return a.GetReplicaId() == b.GetReplicaId() && a.GetStoreId() == b.GetStoreId()
}

// putLocked makes r the truth about its span. Ranges that it overlaps and that
// have a smaller span epoch are dropped; one with a larger or equal epoch
// makes r the stale one.
func (t *Topology) putLocked(r *Range) bool {
	old := t.mu.ranges[r.Range.GetRangeId()]
	if old != nil && old.Range == r.Range {
		// Nearly every report: the descriptor is known, so it overlaps nothing.
		if !sameLeader(old.Leader, r.Leader) {
			t.mu.revision++
			r.Revision = t.mu.revision
		}
		t.mu.ranges[r.Range.GetRangeId()] = r
		t.mu.spans.ReplaceOrInsert(r)
		return true
	}
	span := keys.FromProto(r.Range.GetSpan())
	for _, o := range t.overlapsLocked(span, noLimit) {
		if o.Range.GetRangeId() != r.Range.GetRangeId() &&
			o.Range.GetEpoch().GetSpan() >= r.Range.GetEpoch().GetSpan() {
			return false
		}
	}
	if old != nil {
		t.mu.spans.Delete(old)
		t.leaveLocked(old.Range)
	}
	t.enterLocked(r.Range)
	for _, o := range t.overlapsLocked(span, noLimit) {
		t.mu.spans.Delete(o)
		t.leaveLocked(o.Range)
		t.keepListedLocked(o) // a child that is told before its parent drops it for a moment
		delete(t.mu.ranges, o.Range.GetRangeId())
		t.mu.dropped[o.Range.GetRangeId()] = true
	}
	t.mu.revision++
	r.Revision = t.mu.revision
	t.mu.dirty[r.Range.GetRangeId()] = true
	delete(t.mu.dropped, r.Range.GetRangeId())
	t.mu.ranges[r.Range.GetRangeId()] = r
	t.mu.spans.ReplaceOrInsert(r)
	return true
}

// enterLocked and leaveLocked keep the index of members.
func (t *Topology) enterLocked(r *metapb.Range) {
	for _, m := range r.GetReplicas() {
		ids := t.mu.members[m.GetStoreId()]
		if ids == nil {
			ids = map[uint64]struct{}{}
			t.mu.members[m.GetStoreId()] = ids
		}
		ids[r.GetRangeId()] = struct{}{}
	}
}

func (t *Topology) leaveLocked(r *metapb.Range) {
	for _, m := range r.GetReplicas() {
		delete(t.mu.members[m.GetStoreId()], r.GetRangeId())
	}
}

func at(start []byte) *Range {
	return &Range{Range: &metapb.Range{Span: &metapb.Span{Start: start}}}
}

const noLimit = math.MaxInt

// overlapsLocked lists up to limit ranges that share a key with span, in order.
func (t *Topology) overlapsLocked(span keys.Span, limit int) []*Range {
	var out []*Range
	t.mu.spans.DescendLessOrEqual(at(span.Start), func(r *Range) bool {
		if keys.FromProto(r.Range.GetSpan()).Overlaps(span) {
			out = append(out, r)
		}
		return false
	})
	t.mu.spans.AscendGreaterOrEqual(at(span.Start), func(r *Range) bool {
		if len(out) >= limit || !keys.FromProto(r.Range.GetSpan()).Overlaps(span) {
			return false
		}
		if len(out) == 0 || out[0] != r {
			out = append(out, r)
		}
		return true
	})
	return out
}

// Find returns the range that holds key; nil when no range is known to.
func (t *Topology) Find(key []byte) *Range {
	t.mu.RLock()
	defer t.mu.RUnlock()
	if rs := t.overlapsLocked(keys.Single(key), 1); len(rs) > 0 {
		return rs[0]
	}
	return nil
}

// Range returns a range by its id; nil when it is not known.
func (t *Topology) Range(id uint64) *Range {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return t.mu.ranges[id]
}

// List returns up to limit ranges of span in order, and whether there are more.
func (t *Topology) List(span keys.Span, limit int) (out []*Range, more bool) {
	t.mu.RLock()
	defer t.mu.RUnlock()
	out = t.overlapsLocked(span, limit+1)
	if len(out) > limit {
		return out[:limit], true
	}
	return out, false
}

// Stores lists all stores, by id.
func (t *Topology) Stores() []*Store {
	t.mu.RLock()
	defer t.mu.RUnlock()
	out := make([]*Store, 0, len(t.mu.stores))
	for _, s := range t.mu.stores {
		out = append(out, s)
	}
	slices.SortFunc(out, func(a, b *Store) int {
		return cmp.Compare(a.Store.GetStoreId(), b.Store.GetStoreId())
	})
	return out
}

// Changed returns the revision and a channel that is closed at the next change
// of a route or a store.
func (t *Topology) Changed() (revision uint64, next <-chan struct{}) {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return t.mu.revision, t.mu.changed
}

func (t *Topology) announceLocked() {
	close(t.mu.changed)
	t.mu.changed = make(chan struct{})
}

// maxDirty bounds one TakeDirty, and so one entry of PD's log.
const maxDirty = 4096

// TakeDirty returns what changed since the last call, to be persisted: much of
// it in several calls.
func (t *Topology) TakeDirty() (ranges []*metapb.Range, dropped []uint64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for id := range t.mu.dirty {
		if len(ranges) == maxDirty {
			break
		}
		if r := t.mu.ranges[id]; r != nil {
			ranges = append(ranges, r.Range)
		}
		delete(t.mu.dirty, id)
	}
	for id := range t.mu.dropped {
		dropped = append(dropped, id)
	}
	clear(t.mu.dropped)
	return ranges, dropped
}

// PutBack returns what TakeDirty gave and could not be persisted.
func (t *Topology) PutBack(ranges []*metapb.Range, dropped []uint64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, r := range ranges {
		t.mu.dirty[r.GetRangeId()] = true
	}
	for _, id := range dropped {
		t.mu.dropped[id] = true
	}
}
