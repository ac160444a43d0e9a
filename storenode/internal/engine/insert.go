package engine

import (
	"encoding/binary"
	"math"
	"math/bits"
	"math/rand/v2"
	"sync/atomic"
	"unsafe"

	"github.com/dgraph-io/badger/v4/y"
)

// inserter puts the rows of a commit into Badger's memtable: a skiplist of up to
// 64 MiB whose nodes lie in the order in which they were written. So a search
// waits for memory at every other step, and searches one after the other wait
// one after the other. The inserter goes the ways of many keys side by side, a
// step of each in turn, and asks for the next node of one way before it looks
// at those of the others. A row is inserted where its way has ended.
//
// For the same reason it has the memtable lie on huge pages: with small ones the
// processor's table of pages misses as often as its cache.
//
// It is the only writer, and others read meanwhile. As in Badger's own Put a node is
// whole, key, value and all, before an atomic store links it, from the lowest
// level up, and what it is linked to was stored in it before: who comes to it by
// an atomic load finds all of it, and nobody misses a node that was there before.
// Only one writer needs no compare-and-swap, but what a way has seen may be old: rows
// inserted since the way passed may lie between its two nodes on a level, never
// other rows. So an insert goes on from the first of the two until it is before its
// key's successor; mostly that is the second.
type inserter struct {
	// arenaAt is where the memtable's memory begins. A pointer would keep that of
	// the one before from being freed until the next commit.
	arenaAt uintptr

	ways [waysAtOnce]way
}

// waysAtOnce is how many keys are searched side by side: more than the
// processor has loads in flight, since not each step waits.
const waysAtOnce = 16

// way is one search: at is the last node before key on level, next the one
// after it; rejected is the last node seen that does not come before key.
type way struct {
	entry              *badgerEntry
	at, next, rejected uint32
	// level goes from top to 0. Levels above have no nodes.
	level, top int
	// same is a node of this very key.
	same uint32
	// before and after are at and next where the way left a level.
	before, after [maxTower]uint32
}

// insert puts all entries into m, which has room for them.
func (in *inserter) insert(m *memtable, entries []badgerEntry) {
	if at := uintptr(unsafe.Pointer(&m.buf[0])); in.arenaAt != at {
		in.arenaAt = at
		useHugePages(m.buf)
	}
	taken := min(len(entries), waysAtOnce)
	for i := range taken {
		in.ways[i].begin(m, &entries[i])
	}
	for left := uint64(1)<<taken - 1; left != 0; {
		for set := left; set != 0; set &= set - 1 {
			i := bits.TrailingZeros64(set)
			way := &in.ways[i]
			if way.step(m) {
				continue
			}
			way.insert(m)
			if taken < len(entries) {
				way.begin(m, &entries[taken])
				taken++
			} else {
				left &^= 1 << i
				way.entry = nil
			}
		}
	}
}

// begin starts a way at the head of the list, on top.
func (s *way) begin(m *memtable, en *badgerEntry) {
	s.entry, s.at, s.rejected, s.same = en, m.head, 0, 0
	s.top = int(m.listHeight().Load()) - 1
	s.level = s.top
	s.next = m.link(s.at, s.level).Load()
}

// step goes on until it needs a node that may not be in the cache, and asks
// for it. It returns false at the end of the way.
func (s *way) step(m *memtable) bool {
	if s.next != 0 && s.next != s.rejected {
		switch order := y.CompareKeys(s.entry.Key, m.keyOf(s.next)); {
		case order > 0:
			s.at = s.next
			s.next = m.link(s.at, s.level).Load()
			if s.next != 0 && s.next != s.rejected {
				prefetch(&m.buf[s.next])
				return true
			}
		case order == 0:
			s.same, s.rejected = s.next, s.next
		default:
			s.rejected = s.next
		}
	}
	for {
		s.before[s.level], s.after[s.level] = s.at, s.next
		if s.level == 0 {
			return false
		}
		s.level--
		s.next = m.link(s.at, s.level).Load()
		if s.next != 0 && s.next != s.rejected {
			prefetch(&m.buf[s.next])
			return true
		}
	}
}

// insert makes the node of a way that has ended, and links it.
func (s *way) insert(m *memtable) {
	s.passNewer(m, 0)
	if s.same != 0 {
		at[atomic.Uint64](unsafe.Pointer(&m.buf[s.same+m.value]), 0).Store(m.addValue(s.entry))
		return
	}
	height := randomHeight()
	node := m.addNode(s.entry, height)
	if h := m.listHeight(); height > int(h.Load()) {
		h.Store(int32(height))
	}
	for level := range height {
		if level > 0 {
			s.passNewer(m, level)
		}
		m.link(node, level).Store(s.after[level])
		m.link(s.before[level], level).Store(node)
	}
}

// passNewer brings before and after of a level up to what was inserted since.
func (s *way) passNewer(m *memtable, level int) {
	if level > s.top {
		s.before[level], s.after[level] = m.head, 0
	}
	for {
		next := m.link(s.before[level], level).Load()
		if next == s.after[level] {
			return
		}
		switch order := y.CompareKeys(s.entry.Key, m.keyOf(next)); {
		case order > 0:
			s.before[level] = next
			continue
		case order == 0:
			s.same = next
		}
		s.after[level] = next
		return
	}
}

// randomHeight is what Badger gives a node: each level with a third of the nodes
// below.
func randomHeight() int {
	h := 1
	for h < maxTower && rand.Uint32() <= math.MaxUint32/3 {
		h++
	}
	return h
}

// How an arena keeps a value: meta, user meta, expires(uvarint), value.
const valueHeaderBytes = 2 + binary.MaxVarintLen64

// entryBytes is the most that an entry takes in the arena.
func (l *memtableLayout) entryBytes(en *badgerEntry) int {
	return int(l.nodeSize) + nodeAlign + len(en.Key) + valueHeaderBytes + len(en.Value)
}

// addNode makes a node that nothing links to yet, behind what the arena holds. It
// takes as much as Badger's would: a log must fit into a memtable when it is read
// back by Badger.
func (m *memtable) addNode(en *badgerEntry, height int) uint32 {
	from := m.usedBytes().Load() + nodeAlign - 1
	node := from &^ (nodeAlign - 1)
	key := from + m.nodeSize - 4*uint32(maxTower-height)
	m.usedBytes().Store(key + uint32(copy(m.buf[key:], en.Key)))
	*at[uint32](unsafe.Pointer(&m.buf[node+m.keyOffset]), 0) = key
	*at[uint16](unsafe.Pointer(&m.buf[node+m.keySize]), 0) = uint16(len(en.Key))
	*at[uint16](unsafe.Pointer(&m.buf[node+m.levels]), 0) = uint16(height)
	at[atomic.Uint64](unsafe.Pointer(&m.buf[node+m.value]), 0).Store(m.addValue(en))
	return node
}

// addValue puts a value behind what the arena holds, and returns how a node
// refers to it.
func (m *memtable) addValue(en *badgerEntry) uint64 {
	from := m.usedBytes().Load()
	b := m.buf[from:]
	b[0], b[1] = en.meta, en.UserMeta
	n := 2 + binary.PutUvarint(b[2:], en.ExpiresAt)
	n += copy(b[n:], en.Value)
	m.usedBytes().Store(from + uint32(n))
	return uint64(n)<<32 | uint64(from)
}
