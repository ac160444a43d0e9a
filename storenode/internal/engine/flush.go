package engine

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"
)

// flusher makes commits durable. Whoever needs a flush runs it, one at a
// time; the others find theirs done.
type flusher struct {
	// turn holds one token.
	turn    chan struct{}
	flushed atomic.Uint64
	// synced are the *.mem files that were synced after they had their last
	// write. Owned by whoever has the token.
	synced map[int]bool
}

func (f *flusher) init() {
	f.turn = make(chan struct{}, 1)
	f.turn <- struct{}{}
	f.synced = make(map[int]bool)
}

// Flushed is the newest seq known to survive a power loss.
func (e *Engine) Flushed() Seq { return Seq(e.flusher.flushed.Load()) }

// Flush makes durable what is visible now. A failed fsync breaks the engine:
// the kernel has forgotten which pages are dirty, so a second try would lie.
func (e *Engine) Flush(ctx context.Context) error {
	want := e.Visible()
	select {
	case <-e.flusher.turn:
	case <-ctx.Done():
		return ctx.Err()
	}
	defer func() { e.flusher.turn <- struct{}{} }()
	if err := e.failure(); err != nil {
		return err
	}
	if e.Flushed() >= want {
		return nil
	}
	covers, began := e.Visible(), time.Now()
	if err := e.flusher.sync(e.opt.Dir); err != nil {
		e.fail(fmt.Errorf("engine: flush: %w", err))
		return e.failure()
	}
	// Told before it is promised: who tears files apart in a test must know.
	e.opt.Logger.Debug("flushed", "op", "flush", "seq", uint64(covers))
	e.flusher.flushed.Store(uint64(covers))
	e.metrics.flushSeconds.Observe(time.Since(began).Seconds())
	return nil
}

// sync fsyncs, in number order, every *.mem not synced since its rotation,
// then the directory. db.Sync does not cover rotated memtables.
func (f *flusher) sync(dir string) error {
	files, err := memFiles(dir)
	if err != nil {
		return err
	}
	synced := make(map[int]bool, len(files))
	for i, n := range files {
		if f.synced[n] {
			synced[n] = true
			continue
		}
		err := syncFile(memPath(dir, n))
		if errors.Is(err, fs.ErrNotExist) {
			continue // Written out: its table and the MANIFEST are durable.
		}
		if err != nil {
			return err
		}
		// A file with a successor gets no more writes.
		synced[n] = i < len(files)-1
	}
	f.synced = synced
	return syncDir(dir)
}

func (e *Engine) runFlusher(ctx context.Context) error {
	return every(ctx, e.opt.FlushInterval, func(ctx context.Context) error {
		if e.Flushed() == e.Visible() {
			return nil
		}
		return e.Flush(ctx)
	})
}

const memSuffix = ".mem"

// memFiles returns the numbers of the *.mem files, ascending.
func memFiles(dir string) ([]int, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	var out []int
	for _, en := range entries {
		name, ok := strings.CutSuffix(en.Name(), memSuffix)
		if !ok {
			continue
		}
		n, err := strconv.Atoi(name)
		if err != nil {
			return nil, fmt.Errorf("unexpected file %s: %w", en.Name(), err)
		}
		out = append(out, n)
	}
	slices.Sort(out)
	return out, nil
}

func memPath(dir string, n int) string {
	return filepath.Join(dir, fmt.Sprintf("%05d%s", n, memSuffix))
}

func syncFile(path string) error {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

func syncDir(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}
