package ceiling

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"time"

	"github.com/dgraph-io/badger/v4"
	"github.com/dgraph-io/badger/v4/options"
	"golang.org/x/sys/unix"

	"github.com/ridgekv/ridge/storenode"
	"github.com/ridgekv/ridge/tests/bench/workload"
)

func fdatasync(f *os.File) error { return unix.Fdatasync(int(f.Fd())) }

// openBadger opens a Badger with the settings of Ridge's engine at the default
// memory budget, managed, so that the application chooses the versions.
func openBadger(dir string) (*badger.DB, error) {
	const memTable, arena = 32 << 20, 32<<20 + 2*(32<<20*15/100)
	budget := storenode.Options{}.Budget()
	o := badger.DefaultOptions(dir).
		WithLogger(nil).WithMetricsEnabled(false).WithSyncWrites(false).WithDetectConflicts(false).
		WithNumVersionsToKeep(1).WithMemTableSize(memTable).
		WithNumMemtables(int(budget.Memtables/arena) - 2).
		WithNumLevelZeroTables(5).WithNumLevelZeroTablesStall(20).WithBaseTableSize(4 << 20).
		WithBaseLevelSize(256 << 20).WithNumCompactors(3).WithCompactL0OnClose(false).
		WithValueThreshold(1 << 20).WithValueLogFileSize(16 << 20).
		WithCompression(options.Snappy).WithBlockCacheSize(budget.BlockCache)
	o.TableSizeMultiplier = 1
	return badger.OpenManaged(o)
}

const keyBytes = 24

// writer commits batches of rows to a Badger, at rising versions.
type writer struct {
	db      *badger.DB
	version uint64
	random  *rand.Rand
	value   []byte
}

func newWriter(db *badger.DB, seed uint64) *writer {
	w := &writer{db: db, random: rand.New(rand.NewPCG(seed, 0)), value: make([]byte, valueBytes)}
	for i := range w.value {
		w.value[i] = byte(w.random.Uint32())
	}
	return w
}

// commit writes n rows with the keys that next gives.
func (w *writer) commit(n int, next func() string) error {
	w.version++
	b := w.db.NewWriteBatchAt(w.version)
	defer b.Cancel()
	for range n {
		value := bytes.Clone(w.value)
		value[w.random.IntN(valueBytes)]++
		if err := b.SetEntryAt(badger.NewEntry([]byte(next()), value), w.version); err != nil {
			return err
		}
	}
	return b.Flush()
}

// load writes all rows, as much in one commit as Ridge's engine would.
func (w *writer) load(rows *workload.Rows) error {
	const most = 8192
	for i := 0; i < rows.Len(); {
		n := min(most, rows.Len()-i)
		if err := w.commit(n, func() string { i++; return rows.Key(i - 1) }); err != nil {
			return err
		}
	}
	return nil
}

// badgerWrites overwrites rows of three Badgers that hold all of them, as stores do.
func badgerWrites(
	ctx context.Context, dir string, rows *workload.Rows, d time.Duration,
) (_ float64, err error) {
	const badgers = 3
	writers := make([]*writer, badgers)
	for i := range writers {
		db, openErr := openBadger(filepath.Join(dir, fmt.Sprint(i)))
		if openErr != nil {
			return 0, openErr
		}
		defer func() { err = errors.Join(err, db.Close()) }()
		writers[i] = newWriter(db, uint64(i))
		if err := writers[i].load(rows); err != nil {
			return 0, err
		}
	}
	rate, err := closedLoop(ctx, badgers, d, func(n int) step {
		w := writers[n]
		return func() (int, error) {
			return batch, w.commit(batch, func() string {
				return rows.Key(w.random.IntN(rows.Len()))
			})
		}
	})
	return rate / badgers, err
}

// badgerReads reads rows of a Badger that was loaded and then overwritten, each row
// once on average, as Ridge's were when its batches are read: what a Get costs
// depends on how many memtables and tables hold versions of its key.
func badgerReads(
	ctx context.Context, dir string, rows *workload.Rows, d time.Duration,
) (_ float64, err error) {
	db, err := openBadger(dir)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	w := newWriter(db, 0)
	if err := w.load(rows); err != nil {
		return 0, err
	}
	for range rows.Len() / batch {
		err := w.commit(batch, func() string { return rows.Key(w.random.IntN(rows.Len())) })
		if err != nil {
			return 0, err
		}
	}
	return closedLoop(ctx, runtime.GOMAXPROCS(0), d, func(n int) step {
		random := rand.New(rand.NewPCG(1, uint64(n)))
		return func() (int, error) {
			txn := db.NewTransactionAt(w.version, false)
			defer txn.Discard()
			for range batch {
				item, err := txn.Get([]byte(rows.Key(random.IntN(rows.Len()))))
				if err != nil {
					return 0, err
				}
				if _, err = item.ValueCopy(nil); err != nil {
					return 0, err
				}
			}
			return batch, nil
		}
	})
}
