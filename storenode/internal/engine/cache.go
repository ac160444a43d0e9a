package engine

import (
	"encoding/binary"
	"hash/maphash"
	"math/bits"
	"sync/atomic"

	"github.com/ridgekv/ridge/proto/ts"
)

// rowCache keeps rows in memory, by extent and key, so that most point reads
// need no Badger. An answer from it is as good as one from Badger; the
// argument:
//
//	C1  An entry {seq, row} says: of all commits the cache has taken in, the
//	    newest that wrote this key is seq, and it wrote row (perhaps a delete
//	    mark). The committer gives each commit to the cache after Badger took
//	    it and before visible moves, synchronously, and nothing is dropped.
//	    So a reader at a view v >= seq may use the entry: every commit up to
//	    v is in the cache, hence seq is the newest version at v. A reader at
//	    v < seq goes to Badger.
//	C2  A commit that wrote a key replaces its entry, or removes it. It also
//	    leaves its seq in the key's fence, whether or not there is an entry.
//	    Fences are never lowered or evicted; keys share them.
//	C3  What a reader found in Badger at view v becomes an entry only if the
//	    fence is at or below v, judged under the lock under which commits move
//	    it. Then no commit after v that the cache has taken in wrote the key,
//	    and what v shows is what C1 asks for. A commit that is in Badger and
//	    not yet in the cache has a seq above visible, so above v, and comes
//	    after the fill.
//	C4  Absence found by Get is an entry without a row: Get cannot tell when
//	    the key was deleted. Its seq is the view, it answers Get, and never a
//	    read at a timestamp. Any other entry answers a read at T if its
//	    commit_ts is at or below T, since per key the order of seqs is that of
//	    commit timestamps.
//
// Keys carry their extent, and extents are never reused: a split, an image or
// a collected slice needs no invalidation. Rows that the collector erases are
// removed by C2. TTL is not judged here, as nowhere in the engine. After a
// start the cache is empty and so are the fences, as visible is the first
// view. Commits change entries that are there and add none: a new row is in
// the memtable, where Badger finds it soonest, and neither bulk loads nor the
// ranges that this store only follows push out what is read here.
//
// Values that are handed out lie in segments that are written once; an
// evicted segment is left to the garbage collector, which has few pointers to
// follow (one per segment). A waiting answer holds one segment of at most
// 16 KiB, or its own large value.
//
// This is not a library's cache since those either drop or delay updates
// under load, or do not bound what they hold by bytes.
type rowCache struct {
	seed   maphash.Seed
	shards []cacheShard
	shift  int
	closed atomic.Bool
}

const (
	maxCacheShards = 64
	// minCacheShardBytes is the least that a shard is given when there are
	// several.
	minCacheShardBytes = 1 << 20
)

// cached tells what the cache knows of a key.
type cached int

const (
	// notCached: ask Badger.
	notCached cached = iota
	// cachedRow: the row, perhaps a delete mark, is the newest.
	cachedRow
	// cachedAbsent: there is none, and nothing is known of when it was deleted.
	cachedAbsent
)

// newRowCache returns a cache of at most sizeBytes; nil, which is a cache that
// holds nothing, when it is negative.
func newRowCache(sizeBytes int64) *rowCache {
	if sizeBytes < 0 {
		return nil
	}
	n := max(1, min(sizeBytes/minCacheShardBytes, maxCacheShards))
	n = 1 << (bits.Len64(uint64(n)) - 1)
	c := &rowCache{
		seed: maphash.MakeSeed(), shards: make([]cacheShard, n),
		shift: 64 - bits.Len64(uint64(n-1)),
	}
	for i := range c.shards {
		c.shards[i].init(int(sizeBytes / n))
	}
	return c
}

// place finds the shard of a key, and its hash.
func (c *rowCache) place(x Extent, key []byte) (*cacheShard, uint64) {
	h := maphash.Bytes(c.seed, key) ^ uint64(x)*0x9E3779B97F4A7C15
	return &c.shards[h>>c.shift], h
}

// get tells what is known of a key at view seq (C1). The row's value is
// shared and must not be changed.
func (c *rowCache) get(seq Seq, x Extent, key []byte) (Row, cached, error) {
	if c == nil || c.closed.Load() {
		return Row{}, notCached, nil
	}
	s, h := c.place(x, key)
	s.mu.Lock()
	_, en := s.find(uint32(h), x, key)
	if en == nil || en.seq() > seq {
		s.misses++
		s.mu.Unlock()
		return Row{}, notCached, nil
	}
	s.hits++
	en.touch()
	encoded := en.row()
	s.mu.Unlock()
	if len(encoded) == 0 {
		return Row{}, cachedAbsent, nil
	}
	row, err := decodeRow(encoded)
	return row, cachedRow, err
}

// fill offers what a reader at view found: the encoded row that commit seq
// wrote, or nothing (C3, C4).
func (c *rowCache) fill(view, seq Seq, x Extent, key, encoded []byte) {
	if c == nil || c.closed.Load() {
		return
	}
	s, h := c.place(x, key)
	s.mu.Lock()
	defer s.mu.Unlock()
	if *s.fence(h) > view {
		return
	}
	if _, en := s.find(uint32(h), x, key); en != nil {
		return // Another reader was here; both found the same.
	}
	q := &s.probation
	if s.remembers(h) {
		q = &s.protected
	}
	s.add(q, entryHeader{tag: uint32(h), seq: seq, extent: x}, key, encoded)
}

// commit takes in what commit seq wrote (C2). Only the committer calls it.
func (c *rowCache) commit(seq Seq, parts []part) {
	if c == nil {
		return
	}
	for _, p := range parts {
		for _, o := range p.set.ops[p.from:p.to] {
			raw := p.set.key(o)
			if !o.data() || raw[0] != kindData {
				continue
			}
			x := Extent(binary.BigEndian.Uint32(raw[1:]))
			c.wrote(seq, x, raw[extentSizeBytes:], o.kind == opErase, p.set.value(o))
		}
	}
}

func (c *rowCache) wrote(seq Seq, x Extent, key []byte, erased bool, encoded []byte) {
	s, h := c.place(x, key)
	s.mu.Lock()
	defer s.mu.Unlock()
	*s.fence(h) = seq
	i, en := s.find(uint32(h), x, key)
	if en == nil {
		return
	}
	q, refs := s.queueOf(s.slots[i]), en.refs()
	s.remove(i)
	if !erased {
		s.add(q, entryHeader{tag: uint32(h), seq: seq, extent: x, refs: refs}, key, encoded)
	}
}

// close lets everything go; readers then go to Badger, which is closed too.
func (c *rowCache) close() {
	if c == nil {
		return
	}
	c.closed.Store(true)
	for i := range c.shards {
		s := &c.shards[i]
		s.mu.Lock()
		s.init(s.limit)
		s.mu.Unlock()
	}
}

// cacheStats counts since the start.
type cacheStats struct {
	hits, misses, evictions uint64
	entries, bytes          int
}

func (c *rowCache) stats() (sum cacheStats) {
	if c == nil {
		return sum
	}
	for i := range c.shards {
		s := &c.shards[i]
		s.mu.Lock()
		sum.hits += s.hits
		sum.misses += s.misses
		sum.evictions += s.evictions
		sum.entries += s.used
		sum.bytes += s.bytes
		s.mu.Unlock()
	}
	return sum
}

// cachedAt answers a read at a timestamp from the cache, if it can: ts.Max
// asks for the newest version, delete marks included.
func (v View) cachedAt(x Extent, key []byte, at ts.Timestamp) (Row, bool, error) {
	row, known, err := v.e.rows.get(v.seq, x, key)
	return row, known == cachedRow && row.CommitTS <= at, err
}
