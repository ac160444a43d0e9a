// Package engine keeps the data of a store in one Badger, the only importer
// of it.
//
// Law 2: every byte of user data lies in exactly one slice, and every slice
// has exactly one owner, a replica or the garbage list. Law 3: after any
// crash the Badger is an exact prefix of the store's commit sequence.
package engine

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/dgraph-io/badger/v4"
	"github.com/dgraph-io/ristretto/v2/z"
	"golang.org/x/sys/unix"
)

// ErrClosed is returned by an engine that was closed.
var ErrClosed = errors.New("engine: closed")

// Seq numbers the commits of this store, without gaps.
type Seq uint64

// Engine is the store's data. All methods may be called concurrently.
type Engine struct {
	// emptying: see SetEmptying.
	emptying atomic.Bool
	opt      Options
	lock     *os.File
	db       *badger.DB
	// builders is Badger's pool, which is out of use: see dropBuilderPool.
	builders *z.AllocatorPool

	committer *committer
	// rows is nil when there is no row cache.
	rows *rowCache
	// wg owns the committer.
	wg sync.WaitGroup
	// maxOps and maxSizeBytes are the largest set that Badger takes.
	maxOps, maxSizeBytes int

	// visible is the view at the newest commit.
	visible atomic.Pointer[View]
	pins    pinSet
	extents extentCounter
	garbage garbageList
	gc      collectedHistory
	flusher flusher
	health  health
	metrics *metrics

	compactions *compactionPacer

	// gate lets readers into Badger until the engine is closed.
	gate struct {
		sync.RWMutex
		closed bool
	}
	// broken is closed after a failure, which brokenErr then holds.
	broken     chan struct{}
	brokenErr  atomic.Pointer[error]
	brokenOnce sync.Once
	closeOnce  sync.Once
	closeErr   error
}

// Open cuts the directory to an exact prefix of its commits (Law 3), opens it
// and starts the committer, which Close ends.
func Open(o Options) (*Engine, error) {
	if err := o.Validate(); err != nil {
		return nil, err
	}
	o = o.withDefaults()
	if err := os.MkdirAll(o.Dir, 0o755); err != nil {
		return nil, fmt.Errorf("engine: %w", err)
	}
	lock, err := lockDir(o.Dir)
	if err != nil {
		return nil, err
	}
	e := &Engine{opt: o, lock: lock, broken: make(chan struct{})}
	if err := e.open(); err != nil {
		if e.db != nil {
			err = errors.Join(err, e.closeDB())
		}
		return nil, errors.Join(err, lock.Close())
	}
	e.wg.Go(e.committer.run)
	return e, nil
}

func (e *Engine) open() error {
	if err := refuseCorrupt(e.opt.Dir); err != nil {
		return err
	}
	found, err := recoverPrefix(e.opt)
	if err != nil {
		return err
	}
	e.compactions = newCompactionPacer(e.opt, e.L0Tables)
	o := e.opt.badger().WithLogger(badgerLogger{log: e.opt.Logger, compactions: e.compactions})
	if e.db, err = badger.OpenManaged(o); err != nil {
		return fmt.Errorf("engine: open %s: %w", e.opt.Dir, err)
	}
	if err := checkBadgerIterator(); err != nil {
		return err
	}
	if e.builders, err = dropBuilderPool(e.db); err != nil {
		return err
	}
	if err := e.assertPrefix(found); err != nil {
		return err
	}
	e.maxOps, e.maxSizeBytes = commitLimits(e.opt.MemTableSizeBytes)
	if e.committer, err = newCommitter(e, found); err != nil {
		return err
	}
	e.rows = newRowCache(e.opt.RowCacheSizeBytes)
	e.pins.init()
	e.flusher.init()
	e.publish(found)
	if err := e.loadRecords(); err != nil {
		return err
	}
	if err := e.lookAtDisk(); err != nil {
		return err
	}
	e.lookAtLevels()
	e.metrics, err = newMetrics(e)
	return err
}

// assertPrefix checks that Badger found what recoverPrefix found, and that
// the newest commit is whole.
func (e *Engine) assertPrefix(found Seq) error {
	if have := Seq(e.db.MaxVersion()); have != found {
		return fmt.Errorf("engine: %s: badger opened at commit %d, but the files hold a prefix"+
			" up to %d: restore the store from its replicas", e.opt.Dir, have, found)
	}
	if found == 0 {
		return nil
	}
	v := View{e: e, seq: found, txn: e.db.NewTransactionAt(uint64(found), false)}
	b, ok, err := v.record(storeKey(storeSeq))
	if err != nil {
		return err
	}
	if !ok || len(b) != 8 || Seq(binary.BigEndian.Uint64(b)) != found {
		return fmt.Errorf("engine: %s: commit %d is not whole (its seq record is %x):"+
			" restore the store from its replicas", e.opt.Dir, found, b)
	}
	return nil
}

func (e *Engine) loadRecords() error {
	v := e.View()
	x, ok, err := v.record(storeKey(storeExtent))
	if err != nil {
		return err
	}
	last := firstExtent - 1
	if ok {
		if len(x) != 4 {
			return fmt.Errorf("engine: extent counter of %d bytes", len(x))
		}
		last = Extent(binary.BigEndian.Uint32(x))
	}
	e.extents.init(last)
	if err := e.loadFloor(v); err != nil {
		return err
	}
	return e.loadGarbage(v)
}

// Run does the work in the background: flushing, collecting, disk watch. It
// returns nil when ctx ends, or the first error after which the process must
// not go on. With ErrDiskFull and ErrCorrupt commits still work, so that the
// process can stop in good order.
func (e *Engine) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	ended := make(chan error, 1)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	for _, work := range []func(context.Context) error{
		e.runFlusher, e.runCollector, e.runGC, e.runDiskWatch, e.runHealth, e.runVerify,
	} {
		wg.Go(func() {
			if err := work(ctx); err != nil && ctx.Err() == nil {
				select {
				case ended <- err:
				default: // The first one is enough.
				}
			}
		})
	}
	select {
	case <-ctx.Done():
		return nil
	case err := <-ended:
		return err
	case <-e.broken:
		return e.failure()
	}
}

// Close flushes and closes. It may be called twice.
func (e *Engine) Close() error {
	e.closeOnce.Do(func() {
		e.committer.close()
		e.wg.Wait()
		err := e.Flush(context.Background())
		if e.failure() != nil {
			err = nil // Run has told it.
		}
		e.gate.Lock()
		e.gate.closed = true
		e.gate.Unlock()
		e.rows.close()
		if cerr := e.closeDB(); cerr != nil {
			err = errors.Join(err, fmt.Errorf("engine: close: %w", cerr))
		}
		e.metrics.unregister()
		e.closeErr = errors.Join(err, syncDir(e.opt.Dir), e.lock.Close())
	})
	return e.closeErr
}

// closeDB ends Badger, and then the pool that its first builders may have used.
func (e *Engine) closeDB() error {
	e.compactions.stop()
	err := e.db.Close()
	e.builders.Release()
	return err
}

// enter holds Close off until leave is called.
func (e *Engine) enter() error {
	e.gate.RLock()
	if e.gate.closed {
		e.gate.RUnlock()
		return ErrClosed
	}
	return nil
}

func (e *Engine) leave() { e.gate.RUnlock() }

// fail stops the engine for good: no commit is taken after it, and Run
// returns err.
func (e *Engine) fail(err error) {
	e.brokenOnce.Do(func() {
		e.brokenErr.Store(&err)
		close(e.broken)
		ring(e.committer.bell)
	})
}

func (e *Engine) failure() error {
	if p := e.brokenErr.Load(); p != nil {
		return *p
	}
	return nil
}

func (e *Engine) publish(seq Seq) {
	e.visible.Store(&View{e: e, seq: seq, txn: e.db.NewTransactionAt(uint64(seq), false)})
}

// Visible is the seq of the newest commit that readers see.
func (e *Engine) Visible() Seq { return e.visible.Load().seq }

// every calls f at the interval until ctx ends or f fails.
func every(ctx context.Context, interval time.Duration, f func(context.Context) error) error {
	tick := time.NewTicker(interval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
			if err := f(ctx); err != nil {
				return err
			}
		}
	}
}

// lockDir keeps a second process away, from before the recovery on.
func lockDir(dir string) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(dir, "RIDGE_LOCK"), os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, fmt.Errorf("engine: %w", err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		_ = f.Close()
		return nil, fmt.Errorf("engine: %s is in use by another process: %w", dir, err)
	}
	return f, nil
}
