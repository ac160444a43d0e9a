package engine_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	metapb "github.com/ridgekv/ridge/proto/ridge/meta/v1"

	"github.com/ridgekv/ridge/storenode/internal/engine"
)

// A file beside the data uses up the capacity.
func TestDiskStates(t *testing.T) {
	const capacity = 64 << 20
	extra := t.TempDir()
	o := engine.SmallTables(engine.Options{
		Dir: t.TempDir(), CapacityBytes: capacity, CapacityDirs: []string{extra},
		DiskInterval: time.Millisecond,
	})
	e := open(t, o)
	use := func(n int) {
		t.Helper()
		path := filepath.Join(extra, "log")
		if err := os.WriteFile(path+".new", make([]byte, n), 0o644); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(path+".new", path); err != nil {
			t.Fatal(err)
		}
	}
	state := func(want metapb.DiskState) {
		t.Helper()
		if err := e.LookAtDisk(); err != nil {
			t.Fatal(err)
		}
		if got := e.Disk(); got.State != want || got.CapacityBytes != capacity {
			t.Errorf("%+v, want %v", got, want)
		}
	}
	state(metapb.DiskState_DISK_STATE_OK)
	use(capacity * 85 / 100)
	state(metapb.DiskState_DISK_STATE_OK)
	use(capacity * 91 / 100)
	state(metapb.DiskState_DISK_STATE_HIGH)
	use(capacity * 8950 / 10000) // Slack on the way back.
	state(metapb.DiskState_DISK_STATE_HIGH)
	use(capacity * 80 / 100)
	state(metapb.DiskState_DISK_STATE_OK)
	ended := make(chan error, 1)
	go func() { ended <- e.Run(context.Background()) }()
	reserve := filepath.Join(o.Dir, "RESERVE")
	eventually(t, "the reserve is made", func() bool {
		info, err := os.Stat(reserve)
		return err == nil && info.Size() == capacity/100
	})
	use(capacity * 98 / 100)
	if err := <-ended; !errors.Is(err, engine.ErrDiskFull) {
		t.Errorf("run: %v", err)
	}
	if _, err := os.Stat(reserve); err == nil {
		t.Error("the reserve was not given up")
	}
}

// The engine's own work takes space before it gives some back: what level 0
// may be merged into is kept free, and a capacity that is used up for a moment
// does not stop a store whose disk has room.
func TestDiskStateLeavesRoomToWork(t *testing.T) {
	const capacity, size = 1 << 30, 64 << 20
	o := engine.Options{Dir: t.TempDir(), CapacityBytes: capacity, MemTableSizeBytes: size}
	for _, at := range []struct {
		available, work uint64
		last, want      metapb.DiskState
	}{
		{200 << 20, 0, ok, ok},
		{200 << 20, 2 * size, ok, ok},
		{200 << 20, 3 * size, ok, high},
		{120 << 20, 0, ok, ok},
		{110 << 20, 0, high, high},
		{100 << 20, 0, ok, high},
		{31 << 20, 0, ok, high},
		{30 << 20, 0, ok, full},
		{30 << 20, 3 * size, high, full},
	} {
		d := engine.Disk{CapacityBytes: capacity, AvailableBytes: at.available}
		if got := engine.DiskState(d, o, at.work, at.last); got != at.want {
			t.Errorf("%d available, %d for work, was %v: %v, want %v",
				at.available, at.work, at.last, got, at.want)
		}
	}
}

const (
	ok   = metapb.DiskState_DISK_STATE_OK
	high = metapb.DiskState_DISK_STATE_HIGH
	full = metapb.DiskState_DISK_STATE_FULL
)

// Between two looks by the clock, a fast writer could pass both watermarks.
func TestDiskIsLookedAtByGrowth(t *testing.T) {
	const capacity = 64 << 20
	o := engine.SmallTables(engine.Options{
		Dir: t.TempDir(), CapacityBytes: capacity, DiskInterval: time.Hour,
	})
	e := open(t, o)
	if e.DiskLookDue() {
		t.Fatal("a look is due though nothing was written")
	}
	written := 0
	for ; !e.DiskLookDue(); written += len(keyed(e, t, written)) {
		if written > capacity/8 {
			t.Fatalf("%d bytes were written without a look", written)
		}
	}
	before := e.Disk().UsedBytes
	if err := e.LookAtDisk(); err != nil {
		t.Fatal(err)
	}
	if e.DiskLookDue() || e.Disk().UsedBytes <= before {
		t.Errorf("after the look: due %t, %d bytes used, %d before",
			e.DiskLookDue(), e.Disk().UsedBytes, before)
	}
}

// keyed commits one row of 4 KiB and returns its value.
func keyed(e *engine.Engine, t *testing.T, n int) []byte {
	t.Helper()
	v := make([]byte, 4<<10)
	w := &engine.WriteSet{}
	w.Put(1, fmt.Appendf(nil, "k%08d", n), engine.Row{CommitTS: 1, Value: v})
	if err := e.Commit(w); err != nil {
		t.Fatal(err)
	}
	return v
}

// A broken block is found, ends the run and keeps the directory shut.
func TestVerify(t *testing.T) {
	o := engine.SmallTables(engine.Options{Dir: t.TempDir()})
	e := open(t, o)
	fill(t, e, 1)
	if err := e.Verify(); err != nil {
		t.Fatal(err)
	}
	if err := e.Close(); err != nil {
		t.Fatal(err)
	}
	tables, err := filepath.Glob(filepath.Join(o.Dir, "*.sst"))
	if err != nil || len(tables) == 0 {
		t.Fatal(tables, err)
	}
	for _, path := range tables {
		if err := zero(path, 40, 20); err != nil {
			t.Fatal(err)
		}
	}
	e = open(t, o)
	if err := e.Verify(); !errors.Is(err, engine.ErrCorrupt) {
		t.Errorf("verify: %v", err)
	}
	if err := e.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := engine.Open(o); !errors.Is(err, engine.ErrCorrupt) {
		t.Errorf("open of corrupt data: %v", err)
	}
}
