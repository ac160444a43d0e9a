package engine

import (
	"reflect"
	"sync/atomic"
	"unsafe"

	"github.com/dgraph-io/badger/v4"
	"github.com/dgraph-io/badger/v4/skl"
	"github.com/dgraph-io/ristretto/v2/z"
)

// memtableLayout says where Badger keeps its memtable: offsets of fields, by
// reflection on the types that a badger.DB leads to.
type memtableLayout struct {
	mt, list, wal, maxVersion uintptr // Of DB, then of memTable.
	file, writeAt             uintptr // Of logFile.
	head, height, arena       uintptr // Of Skiplist.
	used, buf                 uintptr // Of Arena.

	// Of a node in the arena, and its size with a tower of maxTower levels.
	value, keyOffset, keySize, levels, tower, nodeSize uint32
}

// maxTower is how many levels a skiplist of Badger's has, nodeAlign what its nodes
// begin at multiples of.
const (
	maxTower  = 20
	nodeAlign = 8
)

// want is a field that Badger must have: of this type, or, where the type has no
// name here, of this kind.
type want struct {
	name string
	kind reflect.Kind
	is   reflect.Type
	to   *uintptr
}

func learn(t reflect.Type, wants ...want) error {
	for _, n := range wants {
		f, err := field(t, n.name, n.kind)
		if err != nil {
			return err
		}
		if n.is != nil && f.Type != n.is {
			return errBadgerMoved(t.String() + "." + n.name)
		}
		*n.to = f.Offset
	}
	return nil
}

func learnMemtable() (*memtableLayout, error) {
	var l memtableLayout
	if err := learn(reflect.TypeFor[badger.DB](),
		want{"mt", reflect.Pointer, nil, &l.mt}); err != nil {
		return nil, err
	}
	mt, _ := reflect.TypeFor[badger.DB]().FieldByName("mt")
	if err := learn(mt.Type,
		want{"sl", reflect.Pointer, reflect.TypeFor[*skl.Skiplist](), &l.list},
		want{"wal", reflect.Pointer, nil, &l.wal},
		want{"maxVersion", reflect.Uint64, nil, &l.maxVersion}); err != nil {
		return nil, err
	}
	wal, _ := mt.Type.Elem().FieldByName("wal")
	if err := learn(wal.Type,
		want{"MmapFile", reflect.Pointer, reflect.TypeFor[*z.MmapFile](), &l.file},
		want{"writeAt", reflect.Uint32, nil, &l.writeAt}); err != nil {
		return nil, err
	}
	list := reflect.TypeFor[skl.Skiplist]()
	if err := learn(list,
		want{"head", reflect.Pointer, nil, &l.head},
		want{"height", reflect.Struct, reflect.TypeFor[atomic.Int32](), &l.height},
		want{"arena", reflect.Pointer, nil, &l.arena}); err != nil {
		return nil, err
	}
	arena, _ := list.FieldByName("arena")
	if err := learn(arena.Type,
		want{"n", reflect.Struct, reflect.TypeFor[atomic.Uint32](), &l.used},
		want{"buf", reflect.Slice, reflect.TypeFor[[]byte](), &l.buf}); err != nil {
		return nil, err
	}
	head, _ := list.FieldByName("head")
	return &l, l.learnNode(head.Type.Elem())
}

func (l *memtableLayout) learnNode(node reflect.Type) error {
	var value, keyOffset, keySize, levels, tower uintptr
	if err := learn(node,
		want{"value", reflect.Struct, reflect.TypeFor[atomic.Uint64](), &value},
		want{"keyOffset", reflect.Uint32, nil, &keyOffset},
		want{"keySize", reflect.Uint16, nil, &keySize},
		want{"height", reflect.Uint16, nil, &levels},
		want{"tower", reflect.Array, reflect.TypeFor[[maxTower]atomic.Uint32](), &tower},
	); err != nil {
		return err
	}
	// What is left of a tower that is cut off must be the end of the node.
	if node.NumField() != 5 || node.Align() > nodeAlign || tower+4*maxTower != node.Size() {
		return errBadgerMoved("node")
	}
	l.value, l.keyOffset, l.keySize = uint32(value), uint32(keyOffset), uint32(keySize)
	l.levels, l.tower, l.nodeSize = uint32(levels), uint32(tower), uint32(node.Size())
	return nil
}

// at reads a pointer that lies at an offset of a struct.
func at[T any](p unsafe.Pointer, offset uintptr) *T { return (*T)(unsafe.Add(p, offset)) }

// memtable is Badger's memtable that is being written, for as long as one
// commit takes: kept longer, it would keep the memory from being freed.
type memtable struct {
	*memtableLayout
	mt, list unsafe.Pointer
	// buf is the arena: all nodes, keys and values, found by their offsets.
	buf []byte
	// head is the node before all others.
	head uint32
}

func (l *memtableLayout) of(db *badger.DB) memtable {
	mt := *at[unsafe.Pointer](unsafe.Pointer(db), l.mt)
	m := l.over(*at[unsafe.Pointer](mt, l.list))
	m.mt = mt
	return m
}

// over is a memtable without a log.
func (l *memtableLayout) over(list unsafe.Pointer) memtable {
	m := memtable{memtableLayout: l, list: list}
	m.buf = *at[[]byte](*at[unsafe.Pointer](m.list, l.arena), l.buf)
	head := uintptr(*at[unsafe.Pointer](m.list, l.head))
	m.head = uint32(head - uintptr(unsafe.Pointer(&m.buf[0])))
	return m
}

// listHeight is the number of levels that have a node, or 1.
func (m *memtable) listHeight() *atomic.Int32 { return at[atomic.Int32](m.list, m.height) }

// usedBytes is how much of the arena is taken.
func (m *memtable) usedBytes() *atomic.Uint32 {
	return at[atomic.Uint32](*at[unsafe.Pointer](m.list, m.arena), m.used)
}

// log is the mapped file that holds the log of the memtable, and where its next
// record begins.
func (m *memtable) log() (file []byte, writeAt *uint32) {
	wal := *at[unsafe.Pointer](m.mt, m.wal)
	return (*at[*z.MmapFile](wal, m.file)).Data, at[uint32](wal, m.writeAt)
}

// link is where a node keeps the one after it on a level; 0 when there is none.
func (m *memtable) link(node uint32, level int) *atomic.Uint32 {
	return at[atomic.Uint32](unsafe.Pointer(&m.buf[node+m.tower+4*uint32(level)]), 0)
}

func (m *memtable) keyOf(node uint32) []byte {
	offset := *at[uint32](unsafe.Pointer(&m.buf[node+m.keyOffset]), 0)
	size := *at[uint16](unsafe.Pointer(&m.buf[node+m.keySize]), 0)
	return m.buf[offset : offset+uint32(size)]
}
