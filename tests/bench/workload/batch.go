package workload

import (
	"context"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/ridgekv/ridge/tests/bench/system"
)

// BatchRows is how many rows one call of a batch workload has.
const BatchRows = 512

// BulkWrite asks: how far is the write path from Badger itself, once batches
// have paid for the network and for Raft? Rows count, not calls.
type BulkWrite struct{ Rows *Rows }

// Caller implements Workload. c must be a system.Batcher.
func (w BulkWrite) Caller(ctx context.Context, n int, c system.Caller, r *Recorder) func() {
	random := rand.New(rand.NewPCG(rand.Uint64(), uint64(n)))
	batch := make([]system.Row, BatchRows)
	for i := range batch {
		batch[i].Value = make([]byte, ValueBytes)
		fill(random, batch[i].Value)
	}
	return func() {
		for i := range batch {
			batch[i].Key = w.Rows.Key(random.IntN(w.Rows.Len()))
			batch[i].Value[random.IntN(ValueBytes)]++
		}
		began := time.Now()
		err := c.(system.Batcher).PutMany(ctx, batch)
		r.ObserveMany(n, len(batch), "row", began, err)
	}
}

// BatchGet asks: how far is the read path from Badger itself? Rows count.
type BatchGet struct{ Rows *Rows }

// Caller implements Workload. c must be a system.Batcher.
func (w BatchGet) Caller(ctx context.Context, n int, c system.Caller, r *Recorder) func() {
	random := rand.New(rand.NewPCG(rand.Uint64(), uint64(n)))
	batch := make([]string, BatchRows)
	return func() {
		for i := range batch {
			batch[i] = w.Rows.Key(random.IntN(w.Rows.Len()))
		}
		began := time.Now()
		found, err := c.(system.Batcher).GetMany(ctx, batch)
		if err == nil && found < len(batch) { // every key exists, some come twice
			err = fmt.Errorf("a batch of %d keys gave %d rows", len(batch), found)
		}
		r.ObserveMany(n, len(batch), "row", began, err)
	}
}
