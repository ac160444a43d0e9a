// Package ceiling measures the pieces Ridge is built of, each by itself: what
// the disk, Badger, Dragonboat and gRPC could do on this machine if nothing of
// ours stood between them.
package ceiling

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	"github.com/ridgekv/ridge/tests/bench/workload"
	"github.com/ridgekv/ridge/tests/harness"
)

// Piece is one ceiling.
type Piece struct {
	// Name and Unit say what is counted.
	Name, Unit string
	// Note says how it was done.
	Note string
	// measure fills dir with what it needs and counts for d.
	measure func(ctx context.Context, dir string, d time.Duration) (perSecond float64, err error)
}

// valueBytes and batch are those of the workloads.
const valueBytes, batch = workload.ValueBytes, workload.BatchRows

// Pieces are all ceilings. Badger's data set is rows.
func Pieces(rows *workload.Rows) []Piece {
	return append([]Piece{
		{
			"fsync, 1 writer", "fsyncs/s", "appends of 4 KiB, fdatasync after each",
			func(ctx context.Context, dir string, d time.Duration) (float64, error) {
				return fsyncs(ctx, dir, 1, d)
			},
		},
		{
			"fsync, 8 writers", "fsyncs/s", "a file each",
			func(ctx context.Context, dir string, d time.Duration) (float64, error) {
				return fsyncs(ctx, dir, 8, d)
			},
		},
		{
			"Dragonboat proposals, single", "commands/s", "3 NodeHosts in one process, 16 ranges, " +
				"no-op machine, 256 callers, default log",
			func(ctx context.Context, dir string, d time.Duration) (float64, error) {
				return proposals(ctx, dir, 256, 1, d)
			},
		},
		{
			"Dragonboat proposals, 64 in one", "commands/s", "the same, 64 callers",
			func(ctx context.Context, dir string, d time.Duration) (float64, error) {
				return proposals(ctx, dir, 64, 64, d)
			},
		},
		{
			"gRPC stream echo", "ops/s", "Ridge's own messages, 64 gets in one, 8 messages under " +
				"way, one process",
			func(ctx context.Context, _ string, d time.Duration) (float64, error) {
				return echo(ctx, 8, 64, d)
			},
		},
	}, Badgers(rows)...)
}

// Badgers are what the batch workloads are set beside: the same keys drawn in the
// same way, the same values, the engine's settings and its caches, on all cores.
func Badgers(rows *workload.Rows) []Piece {
	return []Piece{
		{
			"Badger writes", "rows/s", "three Badgers in one process as Ridge sets them, the keys " +
				"of the workloads, batches of 512, rows a second and Badger",
			func(ctx context.Context, dir string, d time.Duration) (float64, error) {
				return badgerWrites(ctx, dir, rows, d)
			},
		},
		{
			"Badger reads", "rows/s", "one Badger as Ridge sets it, the keys of the workloads, " +
				"loaded and overwritten once on average, batches of 512, " +
				fmt.Sprint(runtime.GOMAXPROCS(0)) + " goroutines",
			func(ctx context.Context, dir string, d time.Duration) (float64, error) {
				return badgerReads(ctx, dir, rows, d)
			},
		},
	}
}

// Measure measures the piece in a directory of its own inside parent.
func (p Piece) Measure(
	ctx context.Context, parent string, d time.Duration,
) (perSecond float64, err error) {
	dir, err := os.MkdirTemp(parent, "ceiling-")
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	// Pieces that keep little in memory would otherwise measure how often the
	// collector runs, which depends on what else this process holds.
	const gcPercent = 800
	defer debug.SetGCPercent(debug.SetGCPercent(gcPercent))
	perSecond, err = p.measure(ctx, dir, d)
	if err != nil {
		err = fmt.Errorf("%s: %w", p.Name, err)
	}
	return perSecond, err
}

// step does some operations and says how many.
type step func() (ops int, err error)

// closedLoop counts what callers do in d, after a quarter of d to warm up.
func closedLoop(
	ctx context.Context, callers int, d time.Duration, caller func(n int) step,
) (perSecond float64, err error) {
	var count atomic.Int64
	var ended atomic.Bool
	faults := make([]error, callers)
	var wg sync.WaitGroup
	for n := range callers {
		wg.Go(func() {
			next := caller(n)
			for !ended.Load() {
				ops, err := next()
				if err != nil {
					faults[n] = err
					ended.Store(true)
					return
				}
				count.Add(int64(ops))
			}
		})
	}
	harness.Rest(ctx, d/4)
	before, began := count.Load(), time.Now()
	harness.Rest(ctx, d)
	done, took := count.Load()-before, time.Since(began)
	ended.Store(true)
	wg.Wait()
	if err := errors.Join(append(faults, ctx.Err())...); err != nil {
		return 0, err
	}
	return float64(done) / took.Seconds(), nil
}

// fsyncs appends blocks of 4 KiB to files that grow.
func fsyncs(ctx context.Context, dir string, writers int, d time.Duration) (float64, error) {
	files := make([]*os.File, writers)
	for i := range files {
		f, err := os.Create(filepath.Join(dir, fmt.Sprintf("%d.log", i)))
		if err != nil {
			return 0, err
		}
		defer f.Close()
		files[i] = f
	}
	return closedLoop(ctx, writers, d, func(n int) step {
		block := make([]byte, 4096)
		return func() (int, error) {
			if _, err := files[n].Write(block); err != nil {
				return 0, err
			}
			return 1, fdatasync(files[n])
		}
	})
}
