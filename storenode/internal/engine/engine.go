// Package engine keeps the data of a store in one Badger, the only importer
// of it.
//
// Law 2: every byte of user data lies in exactly one slice, and every slice
// has exactly one owner, a replica or the garbage list. Law 3: after any
// crash the Badger is an exact prefix of the store's commit sequence.
package engine

import (
	"context"
	"errors"

	metapb "github.com/ridgekv/ridge/proto/ridge/meta/v1"

	"github.com/ridgekv/ridge/proto/ts"
)

// ErrClosed is returned by an engine that was closed.
var ErrClosed = errors.New("engine: closed")

// Seq numbers the commits of this store, without gaps.
type Seq uint64

// Engine is the store's data. All methods may be called concurrently.
type Engine struct{}

// Open cuts the directory to an exact prefix of its commits (Law 3), opens it
// and starts the committer, which Close ends.
func Open(o Options) (*Engine, error) { panic("not built") }

// Run does the work in the background: flushing, collecting, disk watch. It
// returns nil when ctx ends, or the first error after which the process must
// not go on.
func (e *Engine) Run(ctx context.Context) error { panic("not built") }

// Close flushes and closes. It may be called twice.
func (e *Engine) Close() error { panic("not built") }

// Commit commits the sets in order and returns when all are visible. Sets of
// several callers share a commit. Any error means that the process must stop.
func (e *Engine) Commit(sets ...*WriteSet) error { panic("not built") }

// NewExtent hands out an extent that was never used. The commit of w, or of
// any set that writes to the extent, makes that durable.
func (e *Engine) NewExtent(w *WriteSet) Extent { panic("not built") }

// Applied returns all records a|range.
func (e *Engine) Applied() map[uint64][]byte { panic("not built") }

// States returns all records m|range.
func (e *Engine) States() map[uint64][]byte { panic("not built") }

// Store returns the record x|name.
func (e *Engine) Store(name string) ([]byte, bool, error) { panic("not built") }

// StoreRecords returns all records x| whose names begin with prefix.
func (e *Engine) StoreRecords(prefix string) (map[string][]byte, error) { panic("not built") }

// Garbage returns the garbage list.
func (e *Engine) Garbage() []GarbageSlice { panic("not built") }

// View returns the state at the present visible. It is good for point reads
// and for scans begun within 30 s.
func (e *Engine) View() View { panic("not built") }

// Pin returns a view that stays good until release is called.
func (e *Engine) Pin() (v View, release func()) { panic("not built") }

// Visible is the seq of the newest commit that readers see.
func (e *Engine) Visible() Seq { panic("not built") }

// Flushed is the newest seq known to survive a power loss.
func (e *Engine) Flushed() Seq { panic("not built") }

// Flush makes durable what is visible now.
func (e *Engine) Flush(ctx context.Context) error { panic("not built") }

// StartGC allows old versions to be dropped. maxCommitTS is the highest
// commit timestamp in any range at the start of the process.
func (e *Engine) StartGC(maxCommitTS ts.Timestamp) { panic("not built") }

// SetSafePoint tells PD's GC safe point. It never goes back.
func (e *Engine) SetSafePoint(t ts.Timestamp) { panic("not built") }

// RegisterRead keeps the history at t until release is called. It fails with
// errs.TooOld when t lies below the floor.
func (e *Engine) RegisterRead(t ts.Timestamp) (release func(), err error) { panic("not built") }

// Floor is the timestamp from which on history is complete.
func (e *Engine) Floor() ts.Timestamp { panic("not built") }

// Measure is the size of slices.
type Measure struct {
	SizeBytes, Keys uint64
	// Middle is the key that halves the size; nil when nothing can be split.
	Middle []byte
}

// Measure reads the slices, which must be in order, and sizes them up.
func (e *Engine) Measure(ctx context.Context, slices []Slice) (Measure, error) {
	panic("not built")
}

// Disk is the state of the store's disk.
type Disk struct {
	CapacityBytes, UsedBytes, AvailableBytes uint64
	State                                    metapb.DiskState
}

// Disk returns the state of the disk as last seen.
func (e *Engine) Disk() Disk { panic("not built") }

// Level is one level of the LSM tree.
type Level struct {
	Number    int
	Tables    int
	SizeBytes uint64
	// StaleBytes could be dropped by a compaction.
	StaleBytes uint64
}

// Levels returns the levels of the LSM tree.
func (e *Engine) Levels() []Level { panic("not built") }

// L0Tables is the number of tables in level 0, as last seen.
func (e *Engine) L0Tables() int { panic("not built") }

// Stalled reports whether writers should hold back, and why.
func (e *Engine) Stalled() (reason string, stalled bool) { panic("not built") }
