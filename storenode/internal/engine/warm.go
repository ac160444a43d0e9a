package engine

import (
	"math/bits"
	"reflect"
	"sync/atomic"
	"unsafe"

	"github.com/dgraph-io/badger/v4"
	"github.com/dgraph-io/badger/v4/skl"
	"github.com/dgraph-io/badger/v4/y"
)

// warmer brings the nodes that the keys of a commit will meet in Badger's
// memtable into the processor's cache. A memtable is a skiplist of up to 64
// MiB whose nodes lie in the order in which they were written, so a search
// waits for memory at every other step, and searches one after the other wait
// one after the other. The warmer goes the ways of many keys side by side, a
// step of each in turn, and asks for the next node of one way before it looks
// at those of the others. It reads only; what it finds is not used.
//
// For the same reason it has the memtable lie on huge pages: with small ones the
// processor's table of pages misses as often as its cache.
//
// It reads the memtable that is being written, from the goroutine that writes
// it, with the same atomic loads as Badger's readers.
type warmer struct {
	db *badger.DB
	// Offsets of fields.
	mt, list, head, height, arena, buf uintptr
	keyOffset, keySize, tower          uint32
	// leastBytes is the size of a memtable below which all of it is in the
	// cache anyway.
	leastBytes int
	// arenaAt is where the memtable's memory begins. A pointer would keep that of
	// the one before from being freed until the next commit.
	arenaAt uintptr

	ways [warmWays]way
}

// warmWays is how many keys are searched side by side: more than the
// processor has loads in flight, since not each step waits.
const warmWays = 16

// way is one search: at is the last node before key on level, next the one
// after it; rejected is the last node seen that comes after key.
type way struct {
	key                []byte
	at, next, rejected uint32
	level              int
}

func newWarmer(db *badger.DB) (*warmer, error) {
	w := &warmer{db: db, leastBytes: 1 << 20}
	mt, err := field(reflect.TypeFor[badger.DB](), "mt", reflect.Pointer)
	if err != nil {
		return nil, err
	}
	sl, err := field(mt.Type, "sl", reflect.Pointer)
	if err != nil {
		return nil, err
	}
	if sl.Type != reflect.TypeFor[*skl.Skiplist]() {
		return nil, errBadgerMoved("memTable.sl")
	}
	head, err := field(sl.Type, "head", reflect.Pointer)
	if err != nil {
		return nil, err
	}
	arena, err := field(sl.Type, "arena", reflect.Pointer)
	if err != nil {
		return nil, err
	}
	buf, err := field(arena.Type, "buf", reflect.Slice)
	if err != nil {
		return nil, err
	}
	height, err := field(sl.Type, "height", reflect.Struct)
	if err != nil {
		return nil, err
	}
	w.mt, w.list, w.head, w.height = mt.Offset, sl.Offset, head.Offset, height.Offset
	w.arena, w.buf = arena.Offset, buf.Offset
	return w, w.learnNode(head.Type, height.Type)
}

func (w *warmer) learnNode(node, height reflect.Type) error {
	keyOffset, err := field(node, "keyOffset", reflect.Uint32)
	if err != nil {
		return err
	}
	keySize, err := field(node, "keySize", reflect.Uint16)
	if err != nil {
		return err
	}
	tower, err := field(node, "tower", reflect.Array)
	if err != nil {
		return err
	}
	if tower.Type.Elem() != reflect.TypeFor[atomic.Uint32]() ||
		height != reflect.TypeFor[atomic.Int32]() {
		return errBadgerMoved("node.tower")
	}
	w.keyOffset, w.keySize = uint32(keyOffset.Offset), uint32(keySize.Offset)
	w.tower = uint32(tower.Offset)
	return nil
}

// at reads a pointer that lies at an offset of a struct.
func at[T any](p unsafe.Pointer, offset uintptr) *T { return (*T)(unsafe.Add(p, offset)) }

// warm walks the ways of all entries.
func (w *warmer) warm(entries []badgerEntry) {
	list, buf := w.memtable()
	if at := uintptr(unsafe.Pointer(&buf[0])); w.arenaAt != at {
		w.arenaAt = at
		useHugePages(buf)
	}
	if int((*skl.Skiplist)(list).MemSize()) < w.leastBytes {
		return
	}
	start := w.start(list, buf)
	begin := func(i int, key []byte) {
		w.ways[i] = start
		w.ways[i].key = key
	}
	taken := min(len(entries), warmWays)
	for i := range taken {
		begin(i, entries[i].Key)
	}
	for left := uint64(1)<<taken - 1; left != 0; {
		for set := left; set != 0; set &= set - 1 {
			i := bits.TrailingZeros64(set)
			switch {
			case w.step(buf, &w.ways[i]):
			case taken < len(entries):
				begin(i, entries[taken].Key)
				taken++
			default:
				left &^= 1 << i
			}
		}
	}
}

// memtable is the skiplist that is being written, and its memory.
func (w *warmer) memtable() (list unsafe.Pointer, buf []byte) {
	mt := *at[unsafe.Pointer](unsafe.Pointer(w.db), w.mt)
	list = *at[unsafe.Pointer](mt, w.list)
	return list, *at[[]byte](*at[unsafe.Pointer](list, w.arena), w.buf)
}

// start is the beginning of all ways: the head of the list, on top.
func (w *warmer) start(list unsafe.Pointer, buf []byte) way {
	head := uintptr(*at[unsafe.Pointer](list, w.head))
	s := way{
		at:    uint32(head - uintptr(unsafe.Pointer(&buf[0]))),
		level: int(at[atomic.Int32](list, w.height).Load()) - 1,
	}
	s.next = w.nextOf(buf, s.at, s.level)
	return s
}

// step goes on until it needs a node that may not be in the cache, and asks
// for it. It returns false at the end of the way.
func (w *warmer) step(buf []byte, s *way) bool {
	if s.next != 0 && s.next != s.rejected {
		if y.CompareKeys(s.key, w.keyOf(buf, s.next)) > 0 {
			s.at = s.next
			s.next = w.nextOf(buf, s.at, s.level)
			if s.next != 0 {
				prefetch(&buf[s.next])
				return true
			}
		} else {
			s.rejected = s.next
		}
	}
	for s.level > 0 {
		s.level--
		s.next = w.nextOf(buf, s.at, s.level)
		if s.next != 0 && s.next != s.rejected {
			prefetch(&buf[s.next])
			return true
		}
	}
	return false
}

// nextOf is the node after one on a level; 0 when there is none.
func (w *warmer) nextOf(buf []byte, node uint32, level int) uint32 {
	return at[atomic.Uint32](unsafe.Pointer(&buf[node+w.tower+4*uint32(level)]), 0).Load()
}

func (w *warmer) keyOf(buf []byte, node uint32) []byte {
	offset := *at[uint32](unsafe.Pointer(&buf[node+w.keyOffset]), 0)
	size := *at[uint16](unsafe.Pointer(&buf[node+w.keySize]), 0)
	return buf[offset : offset+uint32(size)]
}
