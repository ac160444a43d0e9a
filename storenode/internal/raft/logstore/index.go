package logstore

import (
	"fmt"
	"slices"
	"sort"

	"github.com/lni/dragonboat/v4/raftio"
	"github.com/lni/dragonboat/v4/raftpb"
)

// place is where something lies in the log. The zero place is nowhere.
type place struct {
	segment   uint32 // ids begin at 1
	off, size uint32
}

// run is count entries from first on, stored in one piece. The piece may hold
// more: entries that were trimmed or overwritten.
type run struct {
	delta uint32 // first, less the base of the replica
	count uint32
	at    place
}

// The kinds of which the newest record of a replica counts.
const (
	metaBootstrap = iota
	metaState
	metaSnapshot
	metaIndex
	metas
)

// replica is what the log holds of one replica.
type replica struct {
	of raftio.NodeInfo
	// boot is nil for a replica that was never started.
	boot *raftpb.Bootstrap
	// state is the newest that Raft gave; logged is the newest in the log. They
	// differ by the commit index only, unless a write is under way.
	state, logged raftpb.State
	snapshot      raftpb.Snapshot
	// first is the least index that may be held.
	first uint64
	// base is at most the first index of every run.
	base uint64
	runs []run
	// newest is where the newest record of each kind of metadata lies.
	newest [metas]place
	// lateState and lateTrim say what the log still has to be told. Either is
	// true only while the replica is in Store.late.
	lateState, lateTrim, late bool
	// gone: removed from the index.
	gone bool
}

// maxBaseDistance keeps deltas within 32 bits.
const maxBaseDistance = 1 << 31

func (r *replica) firstOf(x run) uint64 { return r.base + uint64(x.delta) }

// end is the index after a run.
func (r *replica) end(x run) uint64 { return r.firstOf(x) + uint64(x.count) }

// next is the index after the last entry, or the first that may be held.
func (r *replica) next() uint64 {
	if len(r.runs) == 0 {
		return r.first
	}
	return r.end(r.runs[len(r.runs)-1])
}

// find returns the position of the first run that ends after index.
func (r *replica) find(index uint64) int {
	return sort.Search(len(r.runs), func(i int) bool { return r.end(r.runs[i]) > index })
}

// index is everything the log holds, and how much of each segment is alive.
type index struct {
	replicas map[raftio.NodeInfo]*replica
	// segments are in order and without gaps; the last is written to.
	segments []*segment
}

func newIndex() index { return index{replicas: make(map[raftio.NodeInfo]*replica)} }

// replica finds or creates.
func (x *index) replica(of raftio.NodeInfo) *replica {
	r, ok := x.replicas[of]
	if !ok {
		r = &replica{of: of, first: 1}
		x.replicas[of] = r
	}
	return r
}

// segment finds a segment that is still there.
func (x *index) segment(id uint32) *segment {
	if len(x.segments) == 0 || id < x.segments[0].id {
		return nil
	}
	if i := int(id - x.segments[0].id); i < len(x.segments) {
		return x.segments[i]
	}
	return nil
}

// live counts the bytes at a place as alive, or with sign -1 as dead.
func (x *index) live(p place, sign int64) {
	if s := x.segment(p.segment); s != nil {
		s.live += sign * int64(p.size)
	}
}

// apply does what a record at a place says. It is the same code for a record
// that has just become durable and for one that is read at the start, when the
// replica's older records may be missing: they were moved to where the log is
// read later.
func (x *index) apply(rec record, at place) {
	if rec.kind == kindRemoved {
		x.remove(rec.of)
		return
	}
	r := x.replica(rec.of)
	switch rec.kind {
	case kindBootstrap:
		r.boot = rec.boot
		x.note(r, metaBootstrap, at)
	case kindState:
		r.logged = rec.state
		x.note(r, metaState, at)
	case kindSnapshot:
		if rec.snapshot.Index >= r.snapshot.Index {
			r.snapshot = *rec.snapshot
			x.note(r, metaSnapshot, at)
		}
	case kindTrim:
		x.trim(r, rec.first)
		x.note(r, metaIndex, at)
	case kindReset:
		x.cut(r, 0)
		r.first = rec.first
		x.note(r, metaIndex, at)
	case kindEntries:
		x.cut(r, rec.first)
		x.insert(r, len(r.runs), rec, at)
	case kindMoved:
		x.move(r, rec, at)
	}
}

// note says that the newest record of a kind lies at p.
func (x *index) note(r *replica, kind int, p place) {
	x.live(r.newest[kind], -1)
	r.newest[kind] = p
	x.live(p, 1)
}

// remove forgets a replica.
func (x *index) remove(of raftio.NodeInfo) {
	r, ok := x.replicas[of]
	if !ok {
		return
	}
	x.cut(r, 0)
	for kind := range r.newest {
		x.note(r, kind, place{})
	}
	r.gone = true
	delete(x.replicas, of)
}

// cut drops entries from index on.
func (x *index) cut(r *replica, index uint64) {
	i := r.find(index)
	keep := i
	if i < len(r.runs) && r.firstOf(r.runs[i]) < index {
		r.runs[i].count = uint32(index - r.firstOf(r.runs[i]))
		keep++
	}
	for _, dead := range r.runs[keep:] {
		x.live(dead.at, -1)
	}
	r.runs = r.runs[:keep]
}

// trim drops entries below first.
func (x *index) trim(r *replica, first uint64) {
	if first <= r.first {
		return
	}
	r.first = first
	i := r.find(first - 1)
	if i < len(r.runs) && r.end(r.runs[i]) <= first {
		i++
	}
	for _, dead := range r.runs[:i] {
		x.live(dead.at, -1)
	}
	rest := r.runs[i:]
	if len(rest) > 0 && r.firstOf(rest[0]) < first {
		cut := uint32(first - r.firstOf(rest[0]))
		rest[0].delta += cut
		rest[0].count -= cut
	}
	// A copy, so that the memory of what was trimmed is freed.
	r.rebase(slices.Clone(rest))
}

// rebase makes runs those of r, with the largest base they allow.
func (r *replica) rebase(runs []run) {
	if len(runs) > 0 {
		shift := runs[0].delta
		for i := range runs {
			runs[i].delta -= shift
		}
		r.base += uint64(shift)
	}
	r.runs = runs
}

// insert puts the run of a record at position i.
func (x *index) insert(r *replica, i int, rec record, at place) {
	if len(r.runs) == 0 {
		r.base = rec.first
	}
	if rec.first < r.base {
		lower := r.base - rec.first
		for k := range r.runs {
			r.runs[k].delta += uint32(lower)
		}
		r.base = rec.first
	}
	if rec.first-r.base > maxBaseDistance {
		panic(fmt.Sprintf("logstore: the log of replica %v spans %d entries", r.of,
			rec.first-r.base))
	}
	r.runs = slices.Insert(r.runs, i, run{
		delta: uint32(rec.first - r.base), count: rec.count, at: at,
	})
	x.live(at, 1)
}

// move replaces the run that begins where a moved one does. While the log is
// read at the start that run may be missing: then the moved one is inserted.
func (x *index) move(r *replica, rec record, at place) {
	end := rec.first + uint64(rec.count)
	if end <= r.first {
		return // trimmed since the record was laid out
	}
	rec.first = max(rec.first, r.first)
	rec.count = uint32(end - rec.first)
	i := r.find(rec.first)
	for i < len(r.runs) && r.firstOf(r.runs[i]) < end {
		x.live(r.runs[i].at, -1)
		r.runs = slices.Delete(r.runs, i, i+1)
	}
	x.insert(r, i, rec, at)
}

// check finds what cannot be: a hole in a log.
func (x *index) check() error {
	for of, r := range x.replicas {
		next := r.first
		for _, run := range r.runs {
			if r.firstOf(run) != next {
				return fmt.Errorf("logstore: replica %d of range %d lacks entries from %d to %d",
					of.ReplicaID, of.ShardID, next, r.firstOf(run)-1)
			}
			next = r.end(run)
		}
		if r.logged.Commit >= max(next, r.snapshot.Index+1) {
			return fmt.Errorf("logstore: replica %d of range %d has committed %d, its log ends at %d",
				of.ReplicaID, of.ShardID, r.logged.Commit, max(next-1, r.snapshot.Index))
		}
	}
	return nil
}

// size is what the segments occupy and how much of it is alive.
func (x *index) size() (total, live int64) {
	for _, s := range x.segments {
		total += s.end
		live += s.live
	}
	return total, live
}
