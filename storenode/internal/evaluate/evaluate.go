// Package evaluate is the leaseholder's side: requests become physical,
// numbered log entries, and reads are answered at each consistency level.
package evaluate

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	kvpb "github.com/ridgekv/ridge/proto/ridge/kv/v1"
	metapb "github.com/ridgekv/ridge/proto/ridge/meta/v1"
	"github.com/ridgekv/ridge/proto/ts"
)

// Clock is this store's knowledge of the timestamp oracle.
type Clock interface {
	// Seen is the newest timestamp the oracle has given to this store.
	Seen() ts.Timestamp
	// Limit is Seen plus the monotonic time since it was taken plus 1 s: the
	// largest token that is accepted without asking.
	Limit() ts.Timestamp
	// Fresh asks the oracle.
	Fresh(ctx context.Context) (ts.Timestamp, error)
	// Want asks that Seen be kept young (about 20 ms) for a while.
	Want()
}

// Limits bounds what an Evaluator holds in memory. Zero fields mean the default.
type Limits struct {
	// QueuedWrites is how many writes of one range may wait. Default 4096.
	// Beyond it a write is answered Busy.
	QueuedWrites int
	// QueuedWriteBytes bounds the same queue by size. Default 16 MiB.
	QueuedWriteBytes int
	// PendingReads is how many reads of one range may be under way. Default
	// 8192. Beyond it a read is answered Busy.
	PendingReads int
	// Readers is how many goroutines answer reads. Default 2 per processor.
	Readers int
	// PageBytes bounds a page of a scan that asks for no size. Default 1 MiB.
	PageBytes int
	// SweepInterval is how often a range that has held rows with a TTL is
	// searched for expired ones. Default 5 min; negative: never.
	SweepInterval time.Duration
}

// Deps is what an Evaluator works with.
type Deps struct {
	Clock   Clock
	StoreID uint64
	Logger  *slog.Logger
	// Registerer receives the metrics of this room; nil: none.
	Registerer prometheus.Registerer
	// DiskFull names a voter's store of the range that is over its disk
	// watermark. nil: never full.
	DiskFull func(rangeID uint64) (storeID uint64, full bool)
	Limits   Limits
}

// SplitChild names the child of a split, as PD allocated it.
type SplitChild struct {
	RangeID uint64
	// ReplicaIDs are the ids of the child's replicas; ReplicaIDs[i] goes to
	// the store of Members[i].
	ReplicaIDs []uint64
	// Members are the replicas of the parent at ExpectedConfig.
	Members []*metapb.Replica
	// ExpectedConfig is the config-change index Members were read at.
	ExpectedConfig uint64
}

// Stats counts what was answered for a range since the process started.
type Stats struct{ ReadOps, WriteOps uint64 }

// Evaluator answers requests for the ranges of this store.
type Evaluator struct{ deps Deps }

// New returns an Evaluator. It starts nothing.
func New(d Deps) *Evaluator { return &Evaluator{deps: d} }

// Run works until ctx ends. When it returns, every request was answered.
func (ev *Evaluator) Run(ctx context.Context) error {
	<-ctx.Done()
	return nil
}

// Submit evaluates one request and calls respond exactly once, perhaps before
// Submit returns. It never blocks, and respond must not. header.range_id must
// be set. A Scan is answered with one page.
func (ev *Evaluator) Submit(req *kvpb.Request, respond func(*kvpb.Response)) {
	respond(&kvpb.Response{Id: req.GetId()})
}

// Split divides a range at splitKey and returns both halves.
func (ev *Evaluator) Split(
	ctx context.Context, rangeID uint64, splitKey []byte, child SplitChild,
) (left, right *metapb.Range, err error) {
	return nil, nil, errors.ErrUnsupported
}

// PrepareTransfer makes the range ready for another leaseholder: nothing that
// was answered lies above what the next one will respect, and evaluation rests
// until the lease is elsewhere or 1 s has passed.
func (ev *Evaluator) PrepareTransfer(ctx context.Context, rangeID uint64) error {
	return errors.ErrUnsupported
}

// Checksum asks every replica of the range to compute its checksum.
func (ev *Evaluator) Checksum(ctx context.Context, rangeID uint64) error {
	return errors.ErrUnsupported
}

// Stats returns the counters of a range.
func (ev *Evaluator) Stats(rangeID uint64) Stats { return Stats{} }

// Leaseholder reports whether this store evaluates for the range.
func (ev *Evaluator) Leaseholder(rangeID uint64) bool { return false }

// DrainAll takes no more requests and returns when all that were taken are
// answered.
func (ev *Evaluator) DrainAll(ctx context.Context) error { return nil }
