package engine

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	metapb "github.com/ridgekv/ridge/proto/ridge/meta/v1"
	"golang.org/x/sys/unix"
)

// ErrDiskFull ends Run when going on would let the disk run full, which
// Badger does not survive.
var ErrDiskFull = errors.New("engine: the disk is full: free space or raise storage.capacity")

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
	// maxWorkBytes is a level 0 of 20 tables and the level below it.
	maxWorkBytes = 4 << 30
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
	return every(ctx, min(e.opt.DiskInterval, diskGlance), func(ctx context.Context) error {
		if !e.diskLookDue() {
			return nil
		}
		return check(ctx)
	})
}

// diskWatch is what the watch remembers from one look to the next.
type diskWatch struct {
	mu sync.Mutex
	// at is when the last look was, and committed what had been committed then.
	at        time.Time
	committed uint64
	// bearUntil is how long a capacity that is used up is borne, as the disk
	// itself has room; zero while it is not used up.
	bearUntil time.Time
}

const (
	// diskGlance is how often it is judged whether a look is due early.
	diskGlance = 50 * time.Millisecond
	// diskGrowth is how much a committed byte may take on disk until it is
	// compacted: in the Raft log and a copy of it, in a memtable and in a table.
	diskGrowth = 4
	// capacityPatience is how long the capacity may be used up, while the disk
	// has room, until the store stops: a compaction takes space before it gives
	// some back. At the start nothing is under way, and there is none.
	capacityPatience = 5 * time.Second
)

// diskLookDue reports whether DiskInterval has passed, or so much has been
// committed since the last look that an eighth of the room may be gone: looking
// by time alone would let a fast writer pass both watermarks between two looks.
func (e *Engine) diskLookDue() bool {
	w := &e.health.watch
	w.mu.Lock()
	defer w.mu.Unlock()
	grown := (e.committer.committedBytes.Load() - w.committed) * diskGrowth
	return grown > e.Disk().AvailableBytes/8 || time.Since(w.at) >= e.opt.DiskInterval
}

func (e *Engine) lookAtDisk() error {
	w := &e.health.watch
	w.mu.Lock()
	defer w.mu.Unlock()
	w.at, w.committed = time.Now(), e.committer.committedBytes.Load()
	d, roomy, err := measureDisk(e.opt)
	if err != nil {
		return fmt.Errorf("engine: look at the disk: %w", err)
	}
	last, patience := metapb.DiskState_DISK_STATE_OK, time.Duration(0)
	if old := e.health.disk.Load(); old != nil {
		last, patience = old.State, capacityPatience
	}
	d.State = diskState(d, e.opt, e.workBytes(), last)
	short := roomy && d.State == metapb.DiskState_DISK_STATE_FULL
	switch {
	case !short:
		w.bearUntil = time.Time{}
	case w.bearUntil.IsZero():
		w.bearUntil = w.at.Add(patience)
	}
	if short && w.at.Before(w.bearUntil) {
		d.State = metapb.DiskState_DISK_STATE_HIGH
	}
	e.health.disk.Store(&d)
	return nil
}

// workBytes is what the engine's own work may take before it gives space back:
// a memtable that is written out exists twice until it is removed, and so do
// level 0 and what it is merged into.
func (e *Engine) workBytes() uint64 {
	work := 2 * uint64(e.opt.MemTableSizeBytes)
	levels := e.health.levels.Load()
	if levels == nil {
		return work
	}
	for i, l := range *levels {
		work += l.SizeBytes
		if i > 0 && l.SizeBytes > 0 {
			break
		}
	}
	return min(work, maxWorkBytes)
}

// diskState judges d, of which the engine's own work may take workBytes for a
// while. The way back from HIGH has a tenth of slack, so that the state does
// not flicker.
func diskState(
	d Disk, o Options, workBytes uint64, last metapb.DiskState,
) metapb.DiskState {
	full := min(uint64(float64(d.CapacityBytes)*o.DiskFullFraction), maxFullBytes)
	high := min(uint64(float64(d.CapacityBytes)*o.DiskHighFraction), maxHighBytes)
	high = max(high, full+workBytes)
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
// capacity of its own. Roomy: what is short then is not the disk.
func measureDisk(o Options) (own Disk, roomy bool, err error) {
	var st unix.Statfs_t
	if err := unix.Statfs(o.Dir, &st); err != nil {
		return Disk{}, false, err
	}
	block := uint64(st.Bsize)
	disk := Disk{
		CapacityBytes: st.Blocks * block, AvailableBytes: st.Bavail * block,
		UsedBytes: (st.Blocks - st.Bfree) * block,
	}
	if o.CapacityBytes == 0 {
		return disk, false, nil
	}
	used := uint64(0)
	for _, dir := range append([]string{o.Dir}, o.CapacityDirs...) {
		n, err := dirSizeBytes(dir)
		if err != nil {
			return Disk{}, false, err
		}
		used += n
	}
	own = Disk{CapacityBytes: min(o.CapacityBytes, disk.CapacityBytes), UsedBytes: used}
	if used < own.CapacityBytes {
		own.AvailableBytes = min(own.CapacityBytes-used, disk.AvailableBytes)
	}
	return own, disk.AvailableBytes > own.CapacityBytes, nil
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
