package engine

import (
	"encoding/binary"
	"errors"
	"fmt"

	logpb "github.com/ridgekv/ridge/proto/ridge/log/v1"

	"github.com/ridgekv/ridge/proto/keys"
	"github.com/ridgekv/ridge/proto/ts"
)

// Every key in Badger begins with one kind byte.
const (
	kindData    = 'd' // d | extent(4) | user key          -> row
	kindLock    = 'l' // l | extent(4) | user key          -> lock (reserved)
	kindTxn     = 't' // t | extent(4) | primary, start_ts -> transaction (reserved)
	kindApplied = 'a' // a | range(8)                      -> applied record
	kindState   = 'm' // m | range(8)                      -> RangeState
	kindStore   = 'x' // x | name                          -> records of the store
)

// Records of the store that the engine itself writes.
const (
	storeSeq     = "seq"      // the seq of the newest commit, 8 bytes
	storeExtent  = "extent"   // the highest extent handed out, 4 bytes
	storeFloor   = "gc-floor" // below it history may be missing, 8 bytes
	storeGarbage = "garbage/" // garbage/ | extent(4) | start of the slice
)

// extentSizeBytes is the length of kind and extent in front of a user key.
const extentSizeBytes = 1 + 4

// firstExtent leaves small numbers free for later use.
const firstExtent Extent = 16

// Extent is a store-local prefix under which user data lives.
type Extent uint32

// Slice is the part of an extent that one owner holds (Law 2).
type Slice struct {
	Extent Extent
	Span   keys.Span
}

// String renders s for people.
func (s Slice) String() string { return fmt.Sprintf("%d:%s", s.Extent, s.Span) }

// Row is one version of one user key.
type Row struct {
	CommitTS ts.Timestamp
	// ExpiresAt is 0 when the row never expires. The engine stores it and
	// does not judge it.
	ExpiresAt ts.Timestamp
	Value     []byte
	// Deleted marks a delete mark; its Value is empty.
	Deleted bool
}

const (
	rowVersion      = 1
	rowHeaderBytes  = 1 + 8 + 1 // version, commit_ts, flags
	rowFlagExpires  = 1 << 0    // expires_at follows the header
	rowFlagDeleted  = 1 << 1    // the row is a delete mark
	rowFlagsDefined = rowFlagExpires | rowFlagDeleted
)

var errCorruptRow = errors.New("corrupt row")

// appendRow appends the encoding of r to dst:
// version(1) | commit_ts(8) | flags(1) | expires_at(8)? | value.
func appendRow(dst []byte, r Row) []byte {
	flags := byte(0)
	if r.ExpiresAt != 0 {
		flags |= rowFlagExpires
	}
	if r.Deleted {
		flags |= rowFlagDeleted
	}
	dst = append(dst, rowVersion)
	dst = binary.BigEndian.AppendUint64(dst, uint64(r.CommitTS))
	dst = append(dst, flags)
	if r.ExpiresAt != 0 {
		dst = binary.BigEndian.AppendUint64(dst, uint64(r.ExpiresAt))
	}
	return append(dst, r.Value...)
}

// decodeRow reads an encoded row. The value shares b.
func decodeRow(b []byte) (Row, error) {
	if len(b) < rowHeaderBytes || b[0] != rowVersion {
		return Row{}, fmt.Errorf("%w: header %x", errCorruptRow, b[:min(len(b), rowHeaderBytes)])
	}
	r := Row{CommitTS: ts.Timestamp(binary.BigEndian.Uint64(b[1:]))}
	flags := b[9]
	b = b[rowHeaderBytes:]
	if flags&^rowFlagsDefined != 0 {
		return Row{}, fmt.Errorf("%w: unknown flags %02x", errCorruptRow, flags)
	}
	if flags&rowFlagExpires != 0 {
		if len(b) < 8 {
			return Row{}, fmt.Errorf("%w: expiry cut off", errCorruptRow)
		}
		r.ExpiresAt = ts.Timestamp(binary.BigEndian.Uint64(b))
		b = b[8:]
		if r.ExpiresAt == 0 {
			return Row{}, fmt.Errorf("%w: expiry of zero", errCorruptRow)
		}
	}
	r.Deleted = flags&rowFlagDeleted != 0
	if r.Deleted && len(b) != 0 {
		return Row{}, fmt.Errorf("%w: delete mark with a value", errCorruptRow)
	}
	r.Value = b
	return r, nil
}

// CheckImageRow tells whether a row that comes from another store is one that
// this engine can read.
func CheckImageRow(encodedRow []byte, deleteMark bool) error {
	r, err := decodeRow(encodedRow)
	if err == nil && r.Deleted != deleteMark {
		err = fmt.Errorf("%w: delete mark %t, but flags say %t", errCorruptRow, deleteMark, r.Deleted)
	}
	if err != nil {
		return fmt.Errorf("engine: image row: %w", err)
	}
	return nil
}

// rowCommitTS reads only the timestamp of an encoded row.
func rowCommitTS(b []byte) (ts.Timestamp, error) {
	if len(b) < rowHeaderBytes || b[0] != rowVersion {
		return 0, fmt.Errorf("%w: header %x", errCorruptRow, b[:min(len(b), rowHeaderBytes)])
	}
	return ts.Timestamp(binary.BigEndian.Uint64(b[1:])), nil
}

func appendExtentKey(dst []byte, kind byte, x Extent, key []byte) []byte {
	dst = append(dst, kind)
	dst = binary.BigEndian.AppendUint32(dst, uint32(x))
	return append(dst, key...)
}

func rangeKey(kind byte, rangeID uint64) []byte {
	return binary.BigEndian.AppendUint64([]byte{kind}, rangeID)
}

func storeKey(name string) []byte { return append([]byte{kindStore}, name...) }

func garbageKey(s Slice) []byte {
	k := storeKey(storeGarbage)
	k = binary.BigEndian.AppendUint32(k, uint32(s.Extent))
	return append(k, s.Span.Start...)
}

// bounds are the raw keys [lo, hi) that a span of an extent covers, and the
// prefix they have in common.
type bounds struct {
	lo, hi, prefix []byte
}

func boundsOf(kind byte, x Extent, span keys.Span) bounds {
	b := bounds{lo: appendExtentKey(nil, kind, x, span.Start)}
	if len(span.End) == 0 {
		b.prefix = b.lo[:extentSizeBytes]
		b.hi = keys.PrefixEnd(b.prefix)
		return b
	}
	b.hi = appendExtentKey(nil, kind, x, span.End)
	n := 0
	for n < len(b.lo) && n < len(b.hi) && b.lo[n] == b.hi[n] {
		n++
	}
	b.prefix = b.lo[:n]
	return b
}

var imageKinds = map[logpb.ImageKind]byte{
	logpb.ImageKind_IMAGE_KIND_DATA: kindData,
	logpb.ImageKind_IMAGE_KIND_LOCK: kindLock,
	logpb.ImageKind_IMAGE_KIND_TXN:  kindTxn,
}

// recordVersion is the first byte of the engine's own encoded records.
const recordVersion = 1

// splitExtentKey takes apart what appendExtentKey built.
func splitExtentKey(raw []byte) (logpb.ImageKind, Extent, []byte) {
	x := Extent(binary.BigEndian.Uint32(raw[1:]))
	for kind, b := range imageKinds {
		if b == raw[0] {
			return kind, x, raw[extentSizeBytes:]
		}
	}
	panic(fmt.Sprintf("engine: key of kind %q is not in an extent", raw[0]))
}
