package workload

import (
	"context"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/ridgekv/ridge/tests/bench/system"
)

// Put asks: how many single writes of uniformly drawn keys can n callers make
// durable in a second, and how long does each wait?
type Put struct{ Rows *Rows }

// Caller implements Workload.
func (w Put) Caller(ctx context.Context, n int, c system.Caller, r *Recorder) func() {
	random := rand.New(rand.NewPCG(rand.Uint64(), uint64(n)))
	value := make([]byte, ValueBytes)
	fill(random, value)
	return func() {
		value[random.IntN(len(value))]++
		key := w.Rows.Key(random.IntN(w.Rows.Len()))
		began := time.Now()
		r.Observe(n, "put", began, c.Put(ctx, key, value))
	}
}

// Get asks: how many single reads of uniformly drawn keys are answered in a
// second, linearizable where the system can, and how long does each wait?
type Get struct{ Rows *Rows }

// Caller implements Workload.
func (w Get) Caller(ctx context.Context, n int, c system.Caller, r *Recorder) func() {
	random := rand.New(rand.NewPCG(rand.Uint64(), uint64(n)))
	return func() {
		key := w.Rows.Key(random.IntN(w.Rows.Len()))
		began := time.Now()
		value, err := c.Get(ctx, key)
		r.Observe(n, "get", began, orWrongLength(value, err))
	}
}

func orWrongLength(value []byte, err error) error {
	if err == nil && len(value) != ValueBytes {
		err = fmt.Errorf("a value has %d bytes, not %d", len(value), ValueBytes)
	}
	return err
}
