package cluster

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/ridgekv/ridge/client"
	"github.com/ridgekv/ridge/proto/errs"
	"github.com/ridgekv/ridge/tests/harness"
)

// TestDiskFull: with a small capacity, growing writes are refused in time,
// with the store's id and nothing applied; reads and deletes go on; nothing is
// lost and no process dies.
func TestDiskFull(t *testing.T) {
	t.Parallel()
	c := harness.New(t, harness.Options{Capacity: "512MB"})
	kv := c.Client(t)
	const size = 64 << 10
	written := 0
	full := errs.DiskFull{}
	began := time.Now()
	for full.StoreID == 0 {
		if written > 12_000 || time.Since(began) > 3*time.Minute {
			t.Fatalf("%d rows of 64 KiB were accepted by stores of 512 MB", written)
		}
		var batch []client.Mutation
		for i := range 16 {
			batch = append(batch, client.Mutation{
				Key: fmt.Appendf(nil, "k/%08d", written+i), Value: value(written+i, size),
			})
		}
		_, err := kv.BatchWrite(t.Context(), batch)
		if is, ok := errors.AsType[errs.DiskFull](err); ok {
			full = is
			break
		}
		if err != nil {
			if _, busy := errors.AsType[errs.Busy](err); busy {
				continue
			}
			t.Fatalf("after %d rows: %v", written, err)
		}
		written += len(batch)
	}
	t.Logf("%d MiB were accepted, then: %v", written*size>>20, full)
	for _, p := range c.Stores {
		if !p.Running() {
			t.Fatalf("%s has ended", p.Name)
		}
	}
	if _, err := kv.Delete(t.Context(), []byte("k/00000000")); err != nil {
		t.Errorf("a delete is refused: %v", err)
	}
	for _, i := range []int{1, written / 2, written - 1} {
		row, found, err := kv.Get(t.Context(), fmt.Appendf(nil, "k/%08d", i))
		if err != nil || !found || string(row.Value) != string(value(i, size)) {
			t.Errorf("row %d: %v %v", i, found, err)
		}
	}
	r := c.Run(t, 1, "put", "k/more", "more")
	t.Log(r.Err)
}
