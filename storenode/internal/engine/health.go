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
	"syscall"
	"time"

	"github.com/dgraph-io/badger/v4"
	"github.com/dgraph-io/badger/v4/table"
	"github.com/dgraph-io/ristretto/v2/z"
	metapb "github.com/ridgekv/ridge/proto/ridge/meta/v1"
	"golang.org/x/sys/unix"
	"golang.org/x/time/rate"
)

// ErrDiskFull ends Run when going on would let the disk run full, which
// Badger does not survive.
var ErrDiskFull = errors.New("engine: the disk is full: free space or raise storage.capacity")

// ErrCorrupt ends Run when a table does not match its checksums, and keeps
// the directory from being opened again.
var ErrCorrupt = errors.New("engine: the data is corrupt: give the store a new, empty directory" +
	" and let its replicas be rebuilt")

// health is what the engine last saw of its disk and its levels.
type health struct {
	disk   atomic.Pointer[Disk]
	levels atomic.Pointer[[]Level]
}

// Disk is the state of the store's disk.
type Disk struct {
	CapacityBytes, UsedBytes, AvailableBytes uint64
	State                                    metapb.DiskState
}

// Disk returns the state of the disk as last seen.
func (e *Engine) Disk() Disk { return *e.health.disk.Load() }

// Upper bounds of the two watermarks, for large disks.
const (
	maxHighBytes = 20 << 30
	maxFullBytes = 4 << 30
)

// runDiskWatch ends with ErrDiskFull at the last watermark.
func (e *Engine) runDiskWatch(ctx context.Context) error {
	check := func(context.Context) error {
		before := e.Disk().State
		if err := e.lookAtDisk(); err != nil {
			return err
		}
		d := e.Disk()
		if d.State != before {
			e.opt.Logger.Warn("disk state changed", "op", "disk", "from", before.String(),
				"to", d.State.String(), "available", d.AvailableBytes, "capacity", d.CapacityBytes)
		}
		if d.State == metapb.DiskState_DISK_STATE_FULL {
			// The reserve is what the rest of this run may fill.
			_ = os.Remove(reservePath(e.opt.Dir))
			return fmt.Errorf("%w (%d of %d bytes available)", ErrDiskFull,
				d.AvailableBytes, d.CapacityBytes)
		}
		e.keepReserve()
		return nil
	}
	if err := check(ctx); err != nil {
		return err
	}
	return every(ctx, e.opt.DiskInterval, check)
}

func (e *Engine) lookAtDisk() error {
	d, err := measureDisk(e.opt)
	if err != nil {
		return fmt.Errorf("engine: look at the disk: %w", err)
	}
	last := metapb.DiskState_DISK_STATE_OK
	if old := e.health.disk.Load(); old != nil {
		last = old.State
	}
	d.State = diskState(d, e.opt, last)
	e.health.disk.Store(&d)
	return nil
}

// diskState judges d. The way back from HIGH has a tenth of slack, so that
// the state does not flicker.
func diskState(d Disk, o Options, last metapb.DiskState) metapb.DiskState {
	full := min(uint64(float64(d.CapacityBytes)*o.DiskFullFraction), maxFullBytes)
	high := min(uint64(float64(d.CapacityBytes)*o.DiskHighFraction), maxHighBytes)
	if last != metapb.DiskState_DISK_STATE_OK {
		high += high / 10
	}
	switch {
	case d.AvailableBytes < full:
		return metapb.DiskState_DISK_STATE_FULL
	case d.AvailableBytes < high:
		return metapb.DiskState_DISK_STATE_HIGH
	}
	return metapb.DiskState_DISK_STATE_OK
}

// measureDisk counts the whole disk, or the store's own files when it has a
// capacity of its own.
func measureDisk(o Options) (Disk, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(o.Dir, &st); err != nil {
		return Disk{}, err
	}
	block := uint64(st.Bsize)
	disk := Disk{
		CapacityBytes: st.Blocks * block, AvailableBytes: st.Bavail * block,
		UsedBytes: (st.Blocks - st.Bfree) * block,
	}
	if o.CapacityBytes == 0 {
		return disk, nil
	}
	used := uint64(0)
	for _, dir := range append([]string{o.Dir}, o.CapacityDirs...) {
		n, err := dirSizeBytes(dir)
		if err != nil {
			return Disk{}, err
		}
		used += n
	}
	own := Disk{CapacityBytes: min(o.CapacityBytes, disk.CapacityBytes), UsedBytes: used}
	if used < own.CapacityBytes {
		own.AvailableBytes = min(own.CapacityBytes-used, disk.AvailableBytes)
	}
	return own, nil
}

// dirSizeBytes is what the files of dir take on disk; *.mem files are sparse.
// The reserve does not count: it is the store's to give.
func dirSizeBytes(dir string) (uint64, error) {
	total := uint64(0)
	err := filepath.WalkDir(dir, func(path string, en fs.DirEntry, err error) error {
		if err == nil && !en.Type().IsRegular() || path == reservePath(dir) {
			return nil
		}
		var info fs.FileInfo
		if err == nil {
			info, err = en.Info()
		}
		if errors.Is(err, fs.ErrNotExist) {
			return nil // Deleted under our eyes.
		}
		if err != nil {
			return err
		}
		if st, ok := info.Sys().(*syscall.Stat_t); ok {
			total += uint64(st.Blocks) * 512
		}
		return nil
	})
	return total, err
}

func reservePath(dir string) string { return filepath.Join(dir, "RESERVE") }

// maxReserveBytes bounds the file that is given up when the disk is full, so
// that the engine can still be closed.
const maxReserveBytes = 128 << 20

// keepReserve makes the reserve file when there is room for it. Doing without
// one is no fault.
func (e *Engine) keepReserve() {
	d := e.Disk()
	size := int64(min(d.CapacityBytes/100, maxReserveBytes))
	if d.State != metapb.DiskState_DISK_STATE_OK || size == 0 {
		return
	}
	path := reservePath(e.opt.Dir)
	if info, err := os.Stat(path); err == nil && info.Size() == size {
		return
	}
	f, err := os.Create(path)
	if err != nil {
		return
	}
	defer f.Close()
	if err := unix.Fallocate(int(f.Fd()), 0, 0, size); err != nil {
		e.opt.Logger.Debug("no reserve file", "op", "disk", "error", err)
	}
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
func (e *Engine) Levels() []Level { return *e.health.levels.Load() }

// L0Tables is the number of tables in level 0, as last seen.
func (e *Engine) L0Tables() int { return e.Levels()[0].Tables }

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
