// Package cluster tests clusters of real processes: how they begin, grow,
// split, fail, come back, and what they answer to a user.
package cluster

import (
	"fmt"
	"os"
	"testing"

	"go.uber.org/goleak"

	"github.com/ridgekv/ridge/client"
	"github.com/ridgekv/ridge/tests/harness"
)

func TestMain(m *testing.M) {
	code := m.Run()
	harness.RemoveBinary()
	if code == 0 {
		if err := goleak.Find(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			code = 1
		}
	}
	os.Exit(code)
}

// fill writes n rows of about size bytes.
func fill(t *testing.T, kv *client.Client, prefix string, n, size int) {
	t.Helper()
	var batch []client.Mutation
	flush := func() {
		for len(batch) > 0 {
			r, err := kv.BulkWrite(t.Context(), batch)
			if err == nil {
				break
			}
			var again []client.Mutation
			for _, i := range append(r.Unknown, r.Pending...) {
				again = append(again, batch[i])
			}
			if len(again) == 0 {
				t.Fatal(err)
			}
			batch = again
		}
		batch = batch[:0]
	}
	for i := range n {
		batch = append(batch, client.Mutation{
			Key: fmt.Appendf(nil, "%s%08d", prefix, i), Value: value(i, size),
		})
		if len(batch) == 500 {
			flush()
		}
	}
	flush()
}

// value is what fill writes: it does not compress to nothing.
func value(i, size int) []byte {
	out := make([]byte, size)
	x := uint64(i)*0x9e3779b97f4a7c15 + 1
	for j := range out {
		x ^= x << 13
		x ^= x >> 7
		x ^= x << 17
		out[j] = byte(x)
	}
	return out
}
