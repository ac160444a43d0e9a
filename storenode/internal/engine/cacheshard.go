package engine

import (
	"bytes"
	"encoding/binary"
	"math/bits"
	"sync"
)

// cacheShard is a part of the row cache under one lock.
//
// Entries lie in segments, which are filled from front to back and form two
// queues, as in S3-FIFO: a row that was read once is on probation and leaves
// with its segment unless it was used again; then it moves to the protected
// queue, where it stays as long as it is used between two passes. What leaves
// probation is remembered for a while, so that rows that come back soon are
// protected at once.
//
// Invariant: slots name exactly the live entries, each by its tag and place.
// A replaced or removed entry stays as dead bytes until its segment leaves.
// Bytes counts segments, slots, fences and memory of leavers, and never
// exceeds the limit when the lock is let go, except for the fixed parts of a
// cache that is given less than they take.
type cacheShard struct {
	mu sync.Mutex
	// slots is a hash table with linear probing: tag<<32 | place, 0 is free.
	slots []uint64
	used  int
	// segments by number; number 0 is none.
	segments []segment
	free     []uint32

	probation, protected segmentQueue

	fences []Seq
	// leavers are tags of entries that left probation unused.
	leavers []uint32

	segmentBytes int
	bytes, limit int

	hits, misses, evictions uint64
	_                       [64]byte // shards do not share a cache line
}

// A place is the number of a segment and an offset in it, in steps of 8 bytes.
const (
	placeOffsetBits = 11
	maxSegments     = 1 << (32 - placeOffsetBits)
	maxSegmentBytes = 8 << placeOffsetBits
	minSegmentBytes = 512
	segmentsPerFull = 32

	minCacheSlots = 64
	cacheFences   = 256
	// probationShare of the limit is left to rows that were not used again.
	probationShare = 8
	// largestShare of the limit is the largest entry that is kept.
	largestShare = 8
	// sparingEvictions move used entries on before the next ones drop all,
	// which bounds how long the lock is held: about 0.2 ms.
	sparingEvictions = 32
	maxRefs          = 3
)

// segment is written once from front to back; readers share its bytes.
type segment struct {
	buf       []byte
	fill      int
	protected bool
	// large: it is for one entry that would not fit well beside others.
	large bool
}

// segmentQueue is segments in the order of their age. The last is open.
type segmentQueue struct {
	numbers   []uint32
	bytes     int
	protected bool
}

// entryHeader is the fixed part of an entry:
// tag(4) | key length(2) | refs(1) | 0(1) | seq(8) | extent(4) | row length(4).
// Key and row follow, padded to 8 bytes.
type entryHeader struct {
	tag    uint32
	refs   byte
	seq    Seq
	extent Extent
}

const entryHeaderBytes = 24

// entry begins at its header. All but refs is written once.
type entry []byte

func (en entry) tag() uint32    { return binary.LittleEndian.Uint32(en) }
func (en entry) keyLen() int    { return int(binary.LittleEndian.Uint16(en[4:])) }
func (en entry) refs() byte     { return en[6] }
func (en entry) seq() Seq       { return Seq(binary.LittleEndian.Uint64(en[8:])) }
func (en entry) extent() Extent { return Extent(binary.LittleEndian.Uint32(en[16:])) }
func (en entry) rowLen() int    { return int(binary.LittleEndian.Uint32(en[20:])) }
func (en entry) key() []byte    { return en[entryHeaderBytes:][:en.keyLen()] }

func (en entry) row() []byte {
	from := entryHeaderBytes + en.keyLen()
	end := from + en.rowLen()
	return en[from:end:end]
}

func (en entry) size() int { return entrySize(en.keyLen(), en.rowLen()) }

// touch counts a use. The byte is changed only under the shard's lock.
func (en entry) touch() {
	if en[6] < maxRefs {
		en[6]++
	}
}

func (en entry) write(h entryHeader, key, row []byte) {
	binary.LittleEndian.PutUint32(en, h.tag)
	binary.LittleEndian.PutUint16(en[4:], uint16(len(key)))
	en[6] = h.refs
	binary.LittleEndian.PutUint64(en[8:], uint64(h.seq))
	binary.LittleEndian.PutUint32(en[16:], uint32(h.extent))
	binary.LittleEndian.PutUint32(en[20:], uint32(len(row)))
	copy(en[entryHeaderBytes+copy(en[entryHeaderBytes:], key):], row)
}

func entrySize(keyLen, rowLen int) int {
	return (entryHeaderBytes + keyLen + rowLen + 7) &^ 7
}

func (s *cacheShard) init(limit int) {
	s.limit = limit
	s.segmentBytes = max(minSegmentBytes, min(limit/segmentsPerFull&^7, maxSegmentBytes))
	s.slots, s.used = make([]uint64, minCacheSlots), 0
	s.segments, s.free = make([]segment, 1), nil
	s.probation, s.protected = segmentQueue{}, segmentQueue{protected: true}
	if s.fences == nil { // They outlive everything else.
		s.fences = make([]Seq, cacheFences)
	}
	s.leavers = make([]uint32, 1<<(bits.Len(uint(max(limit/512, 16)))-1))
	s.bytes = 8*len(s.slots) + 8*len(s.fences) + 4*len(s.leavers)
}

func (s *cacheShard) fence(h uint64) *Seq {
	return &s.fences[h>>32%cacheFences]
}

func (s *cacheShard) remembers(h uint64) bool {
	return s.leavers[uint32(h)%uint32(len(s.leavers))] == uint32(h)
}

// at is the entry at a place.
func (s *cacheShard) at(place uint32) entry {
	return s.segments[place>>placeOffsetBits].buf[place%(1<<placeOffsetBits)*8:]
}

func (s *cacheShard) queueOf(slot uint64) *segmentQueue {
	if s.segments[uint32(slot)>>placeOffsetBits].protected {
		return &s.protected
	}
	return &s.probation
}

// find returns the slot and the entry of a key; nil when there is none.
func (s *cacheShard) find(tag uint32, x Extent, key []byte) (int, entry) {
	mask := len(s.slots) - 1
	for i := int(tag) & mask; s.slots[i] != 0; i = (i + 1) & mask {
		if uint32(s.slots[i]>>32) != tag {
			continue
		}
		en := s.at(uint32(s.slots[i]))
		if en.extent() == x && bytes.Equal(en.key(), key) {
			return i, en
		}
	}
	return -1, nil
}

// slotOf returns the slot that names a place; -1 when its entry is dead.
func (s *cacheShard) slotOf(tag, place uint32) int {
	mask := len(s.slots) - 1
	for i := int(tag) & mask; s.slots[i] != 0; i = (i + 1) & mask {
		if s.slots[i] == slotFor(tag, place) {
			return i
		}
	}
	return -1
}

func slotFor(tag, place uint32) uint64 { return uint64(tag)<<32 | uint64(place) }

// insert names an entry that no slot names yet.
func (s *cacheShard) insert(tag, place uint32) {
	mask := len(s.slots) - 1
	i := int(tag) & mask
	for s.slots[i] != 0 {
		i = (i + 1) & mask
	}
	s.slots[i] = slotFor(tag, place)
	s.used++
}

// remove frees slot i and closes the gap, so that no probe ends too early.
func (s *cacheShard) remove(i int) {
	mask := len(s.slots) - 1
	s.used--
	for j := (i + 1) & mask; s.slots[j] != 0; j = (j + 1) & mask {
		home := int(s.slots[j]>>32) & mask
		if (j-home)&mask >= (j-i)&mask {
			s.slots[i] = s.slots[j]
			i = j
		}
	}
	s.slots[i] = 0
}

// add writes an entry for a key that has none. Rows that are too large are
// left out.
func (s *cacheShard) add(q *segmentQueue, h entryHeader, key, row []byte) {
	size := entrySize(len(key), len(row))
	if size > s.limit/largestShare || !s.growSlots() || !s.makeRoom(q, size) {
		return
	}
	if en, place, ok := s.reserve(q, size); ok {
		en.write(h, key, row)
		s.insert(h.tag, place)
	}
}

// growSlots keeps a quarter of the slots free. It reports whether there is
// one for another entry.
func (s *cacheShard) growSlots() bool {
	if (s.used+1)*4 <= len(s.slots)*3 {
		return true
	}
	if !s.evictFor(8 * len(s.slots)) {
		return false
	}
	old := s.slots
	s.slots, s.used = make([]uint64, 2*len(old)), 0
	s.bytes += 8 * len(old)
	for _, slot := range old {
		if slot != 0 {
			s.insert(uint32(slot>>32), uint32(slot))
		}
	}
	return true
}

// makeRoom evicts until an entry fits into the open segment or a new one.
func (s *cacheShard) makeRoom(q *segmentQueue, size int) bool {
	if s.open(q, size) != 0 {
		return true
	}
	return s.evictFor(s.newSegmentBytes(size))
}

// newSegmentBytes: large entries get a segment of their own.
func (s *cacheShard) newSegmentBytes(size int) int {
	if size > s.segmentBytes/4 {
		return size
	}
	return s.segmentBytes
}

// open returns the open segment of q if an entry fits into it.
func (s *cacheShard) open(q *segmentQueue, size int) uint32 {
	if len(q.numbers) == 0 || s.newSegmentBytes(size) == size {
		return 0
	}
	n := q.numbers[len(q.numbers)-1]
	if g := &s.segments[n]; len(g.buf)-g.fill < size {
		return 0
	}
	return n
}

// reserve takes the memory of an entry. It does not look at the limit.
func (s *cacheShard) reserve(q *segmentQueue, size int) (entry, uint32, bool) {
	n := s.open(q, size)
	if n == 0 {
		bytes := s.newSegmentBytes(size)
		g := segment{buf: make([]byte, bytes), protected: q.protected, large: bytes == size}
		if n = s.number(g); n == 0 {
			return nil, 0, false
		}
		s.push(q, n)
	}
	g := &s.segments[n]
	from := g.fill
	g.fill += size
	return entry(g.buf[from:g.fill]), n<<placeOffsetBits | uint32(from/8), true
}

// number gives a segment its number; 0 when there are no more.
func (s *cacheShard) number(g segment) uint32 {
	if k := len(s.free); k > 0 {
		n := s.free[k-1]
		s.free = s.free[:k-1]
		s.segments[n] = g
		return n
	}
	if len(s.segments) == maxSegments {
		return 0
	}
	s.segments = append(s.segments, g)
	return uint32(len(s.segments) - 1)
}

func (s *cacheShard) push(q *segmentQueue, n uint32) {
	size := len(s.segments[n].buf)
	q.numbers = append(q.numbers, n)
	if k := len(q.numbers); k > 1 && s.segments[n].large { // The last stays open.
		q.numbers[k-2], q.numbers[k-1] = q.numbers[k-1], q.numbers[k-2]
	}
	q.bytes += size
	s.bytes += size
}

// evictFor frees segments until n more bytes may be taken. It gives up
// sparing what was used when that does not help soon.
func (s *cacheShard) evictFor(n int) bool {
	spare := max(sparingEvictions, 2*n/s.segmentBytes)
	for ; s.bytes+n > s.limit; spare-- {
		q := &s.probation
		if q.bytes < s.limit/probationShare && len(s.protected.numbers) > 0 ||
			len(q.numbers) == 0 {
			q = &s.protected
		}
		if len(q.numbers) == 0 {
			return false
		}
		s.evict(q, spare > 0)
	}
	return true
}

// evict takes the oldest segment of q away and moves what was used to the
// protected queue. That needs no more memory than the segment had.
func (s *cacheShard) evict(q *segmentQueue, spare bool) {
	n := q.numbers[0]
	q.numbers = q.numbers[1:]
	g := s.segments[n]
	q.bytes -= len(g.buf)
	s.bytes -= len(g.buf)
	kept := false
	for from := 0; from < g.fill; {
		en := entry(g.buf[from:])
		place := n<<placeOffsetBits | uint32(from/8)
		from += en.size()
		i := s.slotOf(en.tag(), place)
		switch {
		case i < 0: // dead
		case spare && en.refs() > 0 && g.large:
			s.segments[n].protected, kept = true, true
			en[6] = s.laterRefs(en, q)
			s.push(&s.protected, n)
		case spare && en.refs() > 0:
			s.move(en, i, s.laterRefs(en, q))
		default:
			s.remove(i)
			s.evictions++
			if !q.protected {
				s.leavers[en.tag()%uint32(len(s.leavers))] = en.tag()
			}
		}
	}
	if !kept {
		s.segments[n] = segment{}
		s.free = append(s.free, n)
	}
}

// laterRefs: who comes from probation begins anew, others lose a use.
func (s *cacheShard) laterRefs(en entry, from *segmentQueue) byte {
	if !from.protected {
		return 0
	}
	return en.refs() - 1
}

// move copies a live entry, which slot i names, to the protected queue.
func (s *cacheShard) move(en entry, i int, refs byte) {
	to, place, ok := s.reserve(&s.protected, en.size())
	if !ok {
		s.remove(i)
		return
	}
	copy(to, en[:en.size()])
	to[6] = refs
	s.slots[i] = slotFor(en.tag(), place)
}
