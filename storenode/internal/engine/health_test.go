package engine_test

import (
	"context"
	"errors"
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
