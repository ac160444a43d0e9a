// Package enginetest is what every engine must pass, and an engine in memory
// that passes it.
package enginetest

import (
	"context"
	"iter"

	"github.com/ridgekv/ridge/proto/keys"
	"github.com/ridgekv/ridge/proto/ts"
	"github.com/ridgekv/ridge/storenode/internal/engine"
)

// Engine is what the suite needs of an engine.
type Engine interface {
	Commit(sets ...*engine.WriteSet) error
	NewExtent(w *engine.WriteSet) engine.Extent
	View() View
	Pin() (View, func())
	Applied() map[uint64][]byte
	States() map[uint64][]byte
	Store(name string) ([]byte, bool, error)
	StoreRecords(prefix string) (map[string][]byte, error)
	Measure(ctx context.Context, slices []engine.Slice) (engine.Measure, error)
	Checksum(ctx context.Context, v View, slices []engine.Slice, span keys.Span) (
		sum, rows, sizeBytes uint64, err error)
	Flush(ctx context.Context) error
	Close() error
}

// View is what the suite needs of a view.
type View interface {
	Seq() engine.Seq
	Get(x engine.Extent, key []byte) (engine.Row, bool, error)
	GetAt(x engine.Extent, key []byte, at ts.Timestamp) (engine.Row, bool, error)
	Newest(x engine.Extent, key []byte) (engine.Row, bool, error)
	Scan(o engine.ScanOptions) iter.Seq2[engine.KeyRow, error]
	Versions(s engine.Slice) iter.Seq2[engine.VersionRow, error]
}

// Of makes the engine of the store fit the suite.
func Of(e *engine.Engine) Engine { return real{e} }

type real struct{ *engine.Engine }

// View implements Engine.
func (r real) View() View { return r.Engine.View() }

// Pin implements Engine.
func (r real) Pin() (View, func()) {
	v, release := r.Engine.Pin()
	return v, release
}

// Checksum implements Engine.
func (r real) Checksum(
	ctx context.Context, v View, slices []engine.Slice, span keys.Span,
) (sum, rows, sizeBytes uint64, err error) {
	return r.Engine.Checksum(ctx, v.(engine.View), slices, span)
}
