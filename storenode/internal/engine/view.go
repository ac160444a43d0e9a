package engine

import (
	"context"
	"iter"

	logpb "github.com/ridgekv/ridge/proto/ridge/log/v1"

	"github.com/ridgekv/ridge/proto/keys"
	"github.com/ridgekv/ridge/proto/ts"
)

// View is the state of the store at one seq.
type View struct {
	e   *Engine
	seq Seq
}

// ScanOptions say what Scan reads.
type ScanOptions struct {
	// Context ends the scan. Nil: it cannot be ended from outside.
	Context context.Context
	// Slices to read, in order of their spans and disjoint.
	Slices []Slice
	// Span limits the keys within the slices.
	Span keys.Span
	// Reverse yields the keys in descending order.
	Reverse bool
	// KeysOnly leaves Row.Value empty.
	KeysOnly bool
	// At is the timestamp to read at; 0 reads the newest versions.
	At ts.Timestamp
	// Limit ends the scan after so many rows, and spares reading ahead.
	// 0: no limit.
	Limit int
}

// KeyRow is a row with its key. Its memory is its own.
type KeyRow struct {
	Key []byte
	Row Row
}

// VersionRow is one version of one key, in the form that an image carries.
type VersionRow struct {
	Kind       logpb.ImageKind
	Key        []byte
	EncodedRow []byte
	DeleteMark bool
}

// Seq is the commit this view shows.
func (v View) Seq() Seq { return v.seq }

// Get returns the newest version of key; false when it is absent or deleted.
// The expiry is not judged.
func (v View) Get(x Extent, key []byte) (Row, bool, error) { panic("not built") }

// GetAt returns the newest version at or below at; false when it is absent or
// deleted.
func (v View) GetAt(x Extent, key []byte, at ts.Timestamp) (Row, bool, error) {
	panic("not built")
}

// Newest returns the newest version of key, delete marks included.
func (v View) Newest(x Extent, key []byte) (Row, bool, error) { panic("not built") }

// Scan yields the rows in the order of their keys. Deleted ones are skipped.
func (v View) Scan(o ScanOptions) iter.Seq2[KeyRow, error] { panic("not built") }

// Versions yields all that a range image of s needs: keys ascending, the
// versions of a key oldest first, delete marks included.
func (v View) Versions(s Slice) iter.Seq2[VersionRow, error] { panic("not built") }

// Checksum digests the rows visible at v: key, commit_ts, flags, expiry and
// value.
func (e *Engine) Checksum(
	ctx context.Context, v View, slices []Slice, span keys.Span,
) (sum, rows, sizeBytes uint64, err error) {
	panic("not built")
}
