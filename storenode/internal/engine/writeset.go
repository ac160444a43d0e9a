package engine

import (
	"encoding/binary"
	"fmt"
	"math"
	"slices"
	"strings"

	logpb "github.com/ridgekv/ridge/proto/ridge/log/v1"
	metapb "github.com/ridgekv/ridge/proto/ridge/meta/v1"

	"github.com/ridgekv/ridge/proto/ts"
	"google.golang.org/protobuf/proto"
)

// WriteSet is what one log entry does to the store: indivisible, all of it
// gets one seq. When a key is written twice in one set, the last one wins.
// The zero value is empty and ready; after Commit it must not be touched.
//
// Image rows are the exception: a set with image rows may be committed as
// several commits, so that each version of a key gets a seq of its own. They
// go into an extent that nobody reads yet; what else is in the set comes with
// the last commit.
type WriteSet struct {
	ops []op
	// arena holds the keys and values of ops, back to back.
	arena []byte
	rows  int
	// imageRows of the ops may be torn apart.
	imageRows int
	maxExtent Extent
	maxTS     ts.Timestamp
	// garbage are the changes of the garbage list, in order.
	garbage []garbageChange
}

type opKind uint8

const (
	opPut   opKind = iota // a data row
	opMark                // a delete mark
	opErase               // a Badger delete of a data row, by the collector
	opImage
	opImageMark
	opRecord       // a| m| x|
	opRecordDelete // a| m| x|
)

// op is one write; key and value lie in the arena.
type op struct {
	kind     opKind
	off      uint32
	keyLen   uint32
	valueLen uint32
}

// Op is one write of a set, for other implementations of the engine.
type Op struct {
	// Record says that Key is a raw record key (a| m| x|) rather than a
	// data key.
	Record bool
	// Image says that the row must not be merged with another version of
	// the same key in this set.
	Image bool
	// Kind of the row; unset for records.
	Kind   logpb.ImageKind
	Extent Extent
	Key    []byte
	// Value is the encoded row or the record.
	Value []byte
	// DeleteMark: the row is a delete mark.
	DeleteMark bool
	// Delete removes the record.
	Delete bool
}

// Reserve makes room at once for so many more rows, with keys and values of so many
// bytes in all, and for a record of a range; a set that writes more still grows.
func (w *WriteSet) Reserve(rows, sizeBytes int) {
	const recordBytes = 64
	w.ops = slices.Grow(w.ops, rows+1)
	w.arena = slices.Grow(w.arena, sizeBytes+rows*(extentSizeBytes+rowHeaderBytes)+recordBytes)
}

// Put writes a row. It copies key and value.
func (w *WriteSet) Put(x Extent, key []byte, r Row) {
	if r.Deleted {
		w.Delete(x, key, r.CommitTS)
		return
	}
	w.NoteCommitTS(r.CommitTS)
	w.dataKey(x, key)
	value := len(w.arena)
	w.arena = appendRow(w.arena, r)
	w.push(opPut, len(key)+extentSizeBytes, len(w.arena)-value)
}

// Delete writes a delete mark: the key is gone from at on.
func (w *WriteSet) Delete(x Extent, key []byte, at ts.Timestamp) {
	w.NoteCommitTS(at)
	w.dataKey(x, key)
	value := len(w.arena)
	w.arena = appendRow(w.arena, Row{CommitTS: at, Deleted: true})
	w.push(opMark, len(key)+extentSizeBytes, len(w.arena)-value)
}

// PutImageRow writes a row of a range image, as Versions gave it. Versions of
// one key must come oldest first.
func (w *WriteSet) PutImageRow(
	x Extent, kind logpb.ImageKind, key, encodedRow []byte, deleteMark bool,
) {
	k, ok := imageKinds[kind]
	if !ok {
		panic(fmt.Sprintf("engine: image row of kind %v", kind))
	}
	if t, err := rowCommitTS(encodedRow); err == nil {
		w.NoteCommitTS(t)
	}
	w.extentKey(k, x, key)
	w.arena = append(w.arena, encodedRow...)
	o := opImage
	if deleteMark {
		o = opImageMark
	}
	w.imageRows++
	w.push(o, len(key)+extentSizeBytes, len(encodedRow))
}

// SetApplied writes the record a|range.
func (w *WriteSet) SetApplied(rangeID uint64, v []byte) {
	w.rangeRecord(opRecord, kindApplied, rangeID, v)
}

// DeleteApplied removes the record a|range.
func (w *WriteSet) DeleteApplied(rangeID uint64) {
	w.rangeRecord(opRecordDelete, kindApplied, rangeID, nil)
}

// SetState writes the record m|range.
func (w *WriteSet) SetState(rangeID uint64, v []byte) {
	w.rangeRecord(opRecord, kindState, rangeID, v)
}

// DeleteState removes the record m|range.
func (w *WriteSet) DeleteState(rangeID uint64) {
	w.rangeRecord(opRecordDelete, kindState, rangeID, nil)
}

// SetStore writes the record x|name. Names the engine uses itself panic.
func (w *WriteSet) SetStore(name string, v []byte) {
	mustBeFree(name)
	w.record(opRecord, storeKey(name), v)
}

// DeleteStore removes the record x|name.
func (w *WriteSet) DeleteStore(name string) {
	mustBeFree(name)
	w.record(opRecordDelete, storeKey(name), nil)
}

// AddGarbage puts a slice on the garbage list. A receiving one is left alone
// by the collector for as long as this process runs.
func (w *WriteSet) AddGarbage(s Slice, receiving bool) {
	s = cloneSlice(s)
	w.noteExtent(s.Extent)
	v, err := proto.Marshal(&logpb.GarbageSlice{
		Slice: &logpb.Slice{
			Extent: uint32(s.Extent),
			Span:   &metapb.Span{Start: s.Span.Start, End: s.Span.End},
		},
		Receiving: receiving,
	})
	if err != nil {
		panic(fmt.Sprintf("engine: encode garbage slice: %v", err))
	}
	w.record(opRecord, garbageKey(s), append([]byte{recordVersion}, v...))
	w.garbage = append(w.garbage, garbageChange{slice: s, receiving: receiving})
}

// RemoveGarbage takes the slice with this extent and start off the garbage
// list, because it has found an owner.
func (w *WriteSet) RemoveGarbage(s Slice) {
	s = cloneSlice(s)
	w.record(opRecordDelete, garbageKey(s), nil)
	w.garbage = append(w.garbage, garbageChange{slice: s, remove: true})
}

// NoteCommitTS tells of a commit timestamp beyond those of the rows in this
// set, for the collection of old versions.
func (w *WriteSet) NoteCommitTS(t ts.Timestamp) { w.maxTS = max(w.maxTS, t) }

// Empty reports whether the set writes nothing.
func (w *WriteSet) Empty() bool { return len(w.ops) == 0 }

// Rows is the number of data rows written.
func (w *WriteSet) Rows() int { return w.rows }

// SizeBytes is the memory of keys and values, with their headers.
func (w *WriteSet) SizeBytes() int { return len(w.arena) }

// Ops calls yield for each write, in order.
func (w *WriteSet) Ops(yield func(Op) bool) {
	for _, o := range w.ops {
		key, value := w.key(o), w.value(o)
		out := Op{Value: value}
		switch o.kind {
		case opRecord, opRecordDelete:
			out.Record, out.Key, out.Delete = true, key, o.kind == opRecordDelete
		default:
			out.Kind, out.Extent, out.Key = splitExtentKey(key)
			out.Image = o.kind == opImage || o.kind == opImageMark
			out.DeleteMark = o.kind == opMark || o.kind == opImageMark
			out.Delete = o.kind == opErase
		}
		if !yield(out) {
			return
		}
	}
}

// NotedCommitTS is what NoteCommitTS was told.
func (w *WriteSet) NotedCommitTS() ts.Timestamp { return w.maxTS }

// erase removes all versions of a key of a garbage slice.
func (w *WriteSet) erase(rawKey []byte) {
	w.arena = append(w.arena, rawKey...)
	w.push(opErase, len(rawKey), 0)
}

func (w *WriteSet) dataKey(x Extent, key []byte) { w.extentKey(kindData, x, key) }

func (w *WriteSet) extentKey(kind byte, x Extent, key []byte) {
	if len(key) == 0 {
		panic("engine: empty key")
	}
	w.noteExtent(x)
	w.rows++
	w.arena = appendExtentKey(w.arena, kind, x, key)
}

func (w *WriteSet) noteExtent(x Extent) { w.maxExtent = max(w.maxExtent, x) }

func (w *WriteSet) record(kind opKind, key, value []byte) {
	w.arena = append(append(w.arena, key...), value...)
	w.push(kind, len(key), len(value))
}

// rangeRecord is record for a key of rangeKey, without one.
func (w *WriteSet) rangeRecord(kind opKind, key byte, rangeID uint64, value []byte) {
	w.arena = binary.BigEndian.AppendUint64(append(w.arena, key), rangeID)
	w.arena = append(w.arena, value...)
	w.push(kind, 1+8, len(value))
}

// push notes the op whose key and value are the last bytes of the arena.
func (w *WriteSet) push(kind opKind, keyLen, valueLen int) {
	if len(w.arena) > math.MaxUint32 {
		panic("engine: write set over 4 GiB")
	}
	w.ops = append(w.ops, op{
		kind: kind, off: uint32(len(w.arena) - keyLen - valueLen),
		keyLen: uint32(keyLen), valueLen: uint32(valueLen),
	})
}

func (w *WriteSet) key(o op) []byte {
	end := o.off + o.keyLen
	return w.arena[o.off:end:end]
}

func (w *WriteSet) value(o op) []byte {
	end := o.off + o.keyLen + o.valueLen
	return w.arena[o.off+o.keyLen : end : end]
}

func mustBeFree(name string) {
	if name == storeSeq || name == storeExtent || name == storeFloor ||
		strings.HasPrefix(name, storeGarbage) || name == "" {
		panic(fmt.Sprintf("engine: store record %q is the engine's own", name))
	}
}

func cloneSlice(s Slice) Slice {
	s.Span.Start, s.Span.End = slices.Clone(s.Span.Start), slices.Clone(s.Span.End)
	return s
}
