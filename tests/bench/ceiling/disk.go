package ceiling

import (
	"context"
	"encoding/binary"
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
)

func fdatasync(f *os.File) error { return unix.Fdatasync(int(f.Fd())) }

// openBadger opens a Badger with the settings of Ridge's engine at the default
// memory budget, managed, so that the application chooses the versions.
func openBadger(dir string) (*badger.DB, error) {
	return badger.OpenManaged(badger.DefaultOptions(dir).
		WithLogger(nil).WithMetricsEnabled(false).WithSyncWrites(false).WithDetectConflicts(false).
		WithNumVersionsToKeep(1).WithMemTableSize(64 << 20).WithNumMemtables(5).
		WithNumLevelZeroTables(5).WithNumLevelZeroTablesStall(20).WithBaseTableSize(8 << 20).
		WithBaseLevelSize(256 << 20).WithNumCompactors(3).WithCompactL0OnClose(false).
		WithValueThreshold(1 << 20).WithValueLogFileSize(16 << 20).
		WithCompression(options.Snappy).WithBlockCacheSize(256 << 20))
}

func putKey(key []byte, n uint64) { binary.BigEndian.PutUint64(key[len(key)-8:], n) }

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

// commit writes n rows of the numbers that next gives.
func (w *writer) commit(n int, next func() uint64) error {
	w.version++
	b := w.db.NewWriteBatchAt(w.version)
	defer b.Cancel()
	for range n {
		key, value := make([]byte, keyBytes), make([]byte, valueBytes)
		putKey(key, next())
		copy(value, w.value)
		if err := b.SetEntryAt(badger.NewEntry(key, value), w.version); err != nil {
			return err
		}
	}
	return b.Flush()
}

func badgerWrites(
	ctx context.Context, dir string, keys int, d time.Duration,
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
	}
	rate, err := closedLoop(ctx, badgers, d, func(n int) step {
		w := writers[n]
		return func() (int, error) {
			return batch, w.commit(batch, func() uint64 { return w.random.Uint64N(uint64(keys)) })
		}
	})
	return rate / badgers, err
}

func badgerReads(
	ctx context.Context, dir string, keys int, d time.Duration,
) (_ float64, err error) {
	db, err := openBadger(dir)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	w := newWriter(db, 0)
	for i := uint64(0); i < uint64(keys); {
		n := min(batch, uint64(keys)-i)
		if err := w.commit(int(n), func() uint64 { i++; return i - 1 }); err != nil {
			return 0, err
		}
	}
	return closedLoop(ctx, runtime.GOMAXPROCS(0), d, func(n int) step {
		random := rand.New(rand.NewPCG(1, uint64(n)))
		key := make([]byte, keyBytes)
		var value []byte
		return func() (int, error) {
			txn := db.NewTransactionAt(w.version, false)
			defer txn.Discard()
			const reads = 64
			for range reads {
				putKey(key, random.Uint64N(uint64(keys)))
				item, err := txn.Get(key)
				if err != nil {
					return 0, err
				}
				if value, err = item.ValueCopy(value[:0]); err != nil {
					return 0, err
				}
			}
			return reads, nil
		}
	})
}
