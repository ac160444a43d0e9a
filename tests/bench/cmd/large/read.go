package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"path/filepath"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"github.com/dgraph-io/badger/v4"
	"github.com/dgraph-io/badger/v4/options"
	"github.com/dustin/go-humanize"

	"github.com/ridgekv/ridge/client"
	"github.com/ridgekv/ridge/storenode"
	"github.com/ridgekv/ridge/tests/harness"
)

// read measures random reads through the client.
func (r *run) read(ctx context.Context) (err error) {
	kv, err := r.cluster.Open(ctx)
	if err != nil {
		return err
	}
	if r.gets, err = r.rate(ctx, getters, func(random *rand.Rand) (int, error) {
		k := key(random.Uint64N(uint64(r.keys)))
		row, found, err := kv.Get(ctx, k)
		if err == nil && (!found || len(row.Value) != valueBytes) {
			err = fmt.Errorf("key %q: found %t, %d bytes", k, found, len(row.Value))
		}
		return 1, err
	}); err != nil {
		return err
	}
	progress("random Get: %s/s", humanize.Comma(int64(r.gets)))
	const callers, rows = 16, 512
	r.batchGets, err = r.rate(ctx, callers, func(random *rand.Rand) (int, error) {
		return rows, batchGet(ctx, kv, random, rows, uint64(r.keys))
	})
	progress("random BatchGet: %s rows/s", humanize.Comma(int64(r.batchGets)))
	return err
}

func batchGet(ctx context.Context, kv *client.Client, random *rand.Rand, n int, of uint64) error {
	ks := make([][]byte, n)
	for i := range ks {
		ks[i] = key(random.Uint64N(of))
	}
	rows, err := kv.BatchGet(ctx, ks)
	if err == nil && len(rows) != n {
		err = fmt.Errorf("a batch of %d keys gave %d rows", n, len(rows))
	}
	return err
}

// rate counts what callers do in closed loops, after some time to warm up.
func (r *run) rate(
	ctx context.Context, callers int, step func(*rand.Rand) (int, error),
) (perSecond float64, err error) {
	var count atomic.Int64
	var ended atomic.Bool
	faults := make([]error, callers)
	var wg sync.WaitGroup
	for n := range callers {
		wg.Go(func() {
			random := rand.New(rand.NewPCG(rand.Uint64(), uint64(n)))
			for !ended.Load() {
				did, err := step(random)
				if err != nil {
					faults[n] = err
					ended.Store(true)
					return
				}
				count.Add(int64(did))
			}
		})
	}
	harness.Rest(ctx, r.warm)
	before, began := count.Load(), time.Now()
	harness.Rest(ctx, r.measured)
	did, took := count.Load()-before, time.Since(began)
	ended.Store(true)
	wg.Wait()
	return float64(did) / took.Seconds(), errors.Join(append(faults, ctx.Err())...)
}

// openRaw opens what a store with the default budget has written, with its caches. It
// is read as the store left it: compactors would take the processors meanwhile.
func openRaw(dir string) (*badger.DB, error) {
	budget := storenode.Options{MemoryBytes: memoryBytes}.Budget()
	return badger.OpenManaged(badger.DefaultOptions(dir).
		WithLogger(nil).WithMetricsEnabled(false).WithDetectConflicts(false).
		WithNumVersionsToKeep(1).WithMemTableSize(64 << 20).WithBaseTableSize(8 << 20).
		WithBaseLevelSize(256 << 20).WithNumCompactors(0).WithCompactL0OnClose(false).
		WithValueThreshold(1 << 20).WithValueLogFileSize(16 << 20).
		WithCompression(options.Snappy).WithBlockCacheSize(budget.BlockCache))
}

// rawGets reads random rows from the files of a store that has stopped, on all
// cores.
func (r *run) rawGets(ctx context.Context, dir string) (_ float64, err error) {
	db, err := openRaw(filepath.Join(dir, "engine"))
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	prefixes := extents(db)
	txn := db.NewTransactionAt(math.MaxUint64, false)
	defer txn.Discard()
	keys, err := r.rawKeys(txn, prefixes)
	if err != nil {
		return 0, fmt.Errorf("%s: %w", dir, err)
	}
	rate, err := r.rate(ctx, runtime.GOMAXPROCS(0), func(random *rand.Rand) (int, error) {
		item, err := txn.Get(keys(random))
		if err == nil {
			_, err = item.ValueCopy(nil)
		}
		return 1, err
	})
	progress("raw Badger: %s/s", humanize.Comma(int64(rate)))
	return rate, err
}

// rawKeys draws keys as Badger holds them. Which of several extents a key lies in
// is found out before anything is measured, as Ridge knows it too.
func (r *run) rawKeys(txn *badger.Txn, prefixes [][]byte) (func(*rand.Rand) []byte, error) {
	if len(prefixes) == 1 {
		return func(random *rand.Rand) []byte {
			return append(bytes.Clone(prefixes[0]), key(random.Uint64N(uint64(r.keys)))...)
		}, nil
	}
	const draws = 300_000
	keys := make([][]byte, 0, draws)
	random := rand.New(rand.NewPCG(7, 7))
	for range draws {
		k := key(random.Uint64N(uint64(r.keys)))
		for _, prefix := range prefixes {
			whole := append(bytes.Clone(prefix), k...)
			if _, err := txn.Get(whole); err == nil {
				keys = append(keys, whole)
				break
			}
		}
	}
	if len(keys) < draws*9/10 {
		return nil, fmt.Errorf("only %d of %d keys are there", len(keys), draws)
	}
	return func(random *rand.Rand) []byte { return keys[random.IntN(len(keys))] }, nil
}

// extents are the prefixes of data keys: a d and four bytes.
func extents(db *badger.DB) (out [][]byte) {
	txn := db.NewTransactionAt(math.MaxUint64, false)
	defer txn.Discard()
	it := txn.NewIterator(badger.IteratorOptions{Prefix: []byte{'d'}})
	defer it.Close()
	const prefixBytes = 5
	for it.Rewind(); it.Valid(); {
		prefix := bytes.Clone(it.Item().Key()[:prefixBytes])
		out = append(out, prefix)
		it.Seek(append(bytes.Clone(prefix), 0xff))
	}
	return out
}
