package engine

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sync/atomic"
	"time"

	"github.com/dgraph-io/badger/v4"
	"github.com/dgraph-io/badger/v4/table"
	"github.com/dgraph-io/ristretto/v2/z"
	"golang.org/x/time/rate"
)

// ErrCorrupt ends Run when a table does not match its checksums, and keeps
// the directory from being opened again.
var ErrCorrupt = errors.New("engine: the data is corrupt: give the store a new, empty directory" +
	" and let its replicas be rebuilt")

// health is what the engine last saw of its disk and its levels.
type health struct {
	disk   atomic.Pointer[Disk]
	levels atomic.Pointer[[]Level]
	watch  diskWatch
}

// Level is one level of the LSM tree.
type Level struct {
	Number    int
	Tables    int
	SizeBytes uint64
	// StaleBytes could be dropped by a compaction.
	StaleBytes uint64
}

// levelsInterval is how often the levels are looked at.
const levelsInterval = 100 * time.Millisecond

func (e *Engine) runHealth(ctx context.Context) error {
	return every(ctx, levelsInterval, func(context.Context) error {
		e.lookAtLevels()
		return nil
	})
}

func (e *Engine) lookAtLevels() {
	if e.enter() != nil {
		return
	}
	defer e.leave()
	infos := e.db.Levels()
	out := make([]Level, len(infos))
	for i, l := range infos {
		out[i] = Level{
			Number: l.Level, Tables: l.NumTables,
			SizeBytes: uint64(l.Size), StaleBytes: uint64(l.StaleDatSize),
		}
	}
	e.health.levels.Store(&out)
}

// Levels returns the levels of the LSM tree as last seen.
func (e *Engine) Levels() []Level {
	if l := e.health.levels.Load(); l != nil {
		return *l
	}
	return nil // Badger compacts while it is still being opened.
}

// L0Tables is the number of tables in level 0, as last seen.
func (e *Engine) L0Tables() int {
	if l := e.Levels(); len(l) > 0 {
		return l[0].Tables
	}
	return 0
}

// stalledCommit is how long a commit may take before writers hold back.
const stalledCommit = 500 * time.Millisecond

// Stalled reports whether writers should hold back, and why. Badger itself
// knows only all or nothing.
func (e *Engine) Stalled() (reason string, stalled bool) {
	if l0, stall := e.L0Tables(), e.opt.NumLevelZeroTablesStall; l0 >= stall-stall/4 {
		return fmt.Sprintf("level 0 has %d tables, writes stop at %d", l0, stall), true
	}
	if since := e.committer.busySince.Load(); since != 0 {
		if d := time.Since(time.Unix(0, since)); d > stalledCommit {
			return fmt.Sprintf("a commit has taken %s", d.Round(time.Millisecond)), true
		}
	}
	return "", false
}

// verifyInterval is the pause between two rounds over all tables.
const verifyInterval = time.Hour

// runVerify reads all tables slowly and compares them with their checksums:
// Badger takes a bad block for the end of its table, and a compaction then
// drops the rest without a word.
func (e *Engine) runVerify(ctx context.Context) error {
	if e.opt.VerifyBytesPerSecond < 0 {
		return nil
	}
	return every(ctx, verifyInterval, e.verifyTables)
}

func (e *Engine) verifyTables(ctx context.Context) error {
	const burst = 1 << 30 // The largest table.
	limit := rate.NewLimiter(rate.Limit(e.opt.VerifyBytesPerSecond), burst)
	limit.AllowN(time.Now(), burst)
	tables, err := manifestTables(e.opt)
	if err != nil {
		return fmt.Errorf("engine: verify: %w", err)
	}
	for id, m := range tables {
		n, err := e.verifyTable(id, m)
		if err != nil {
			e.markCorrupt(err)
			return fmt.Errorf("%w: %w", ErrCorrupt, err)
		}
		e.metrics.verified.Add(float64(n))
		if limit.WaitN(ctx, min(int(n), burst)) != nil {
			return nil // ctx ends, or will before there is room.
		}
	}
	return nil
}

// verifyTable checks one table and returns its size; one that was compacted
// away meanwhile passes. It reads a copy: Badger truncates a table before it
// removes it, and a mapping of it would end the process.
func (e *Engine) verifyTable(id uint64, m badger.TableManifest) (sizeBytes int64, err error) {
	if err := e.enter(); err != nil {
		return 0, nil
	}
	defer e.leave()
	path := table.NewFilename(id, e.opt.Dir)
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	defer f.Close()
	before, err := f.Stat()
	if err != nil {
		return 0, err
	}
	err = verifyCopy(f, before.Size(), e.opt, m)
	after, statErr := os.Stat(path)
	if statErr != nil || after.Size() != before.Size() {
		return 0, nil // Removed while it was read.
	}
	return before.Size(), err
}

func verifyCopy(f *os.File, sizeBytes int64, o Options, m badger.TableManifest) (err error) {
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("table %s: %v", f.Name(), r)
		}
	}()
	data := make([]byte, sizeBytes)
	if _, err := io.ReadFull(f, data); err != nil {
		return err
	}
	t, err := table.OpenTable(&z.MmapFile{Data: data, Fd: f}, tableOptions(o, m))
	if err != nil {
		return fmt.Errorf("table %s: %w", f.Name(), err)
	}
	return t.VerifyChecksum()
}

func corruptPath(dir string) string { return filepath.Join(dir, "CORRUPT") }

func (e *Engine) markCorrupt(cause error) {
	e.metrics.corrupt.Set(1)
	err := os.WriteFile(corruptPath(e.opt.Dir), []byte(cause.Error()+"\n"), 0o644)
	if err != nil {
		e.opt.Logger.Error("cannot mark the data as corrupt", "op", "verify", "error", err)
	}
}

func refuseCorrupt(dir string) error {
	b, err := os.ReadFile(corruptPath(dir))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("engine: %w", err)
	}
	return fmt.Errorf("%w (%s)", ErrCorrupt, b)
}
