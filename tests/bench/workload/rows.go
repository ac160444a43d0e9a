package workload

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"

	"github.com/pingcap/go-ycsb/pkg/util"

	"github.com/ridgekv/ridge/tests/bench/system"
)

// ValueBytes is the length of every value.
const ValueBytes = 128

// keyDigits makes go-ycsb's keys equally long, and their order the order of
// the numbers.
const keyDigits, keyBytes = 19, len("user") + 19

// Rows are the rows that every system is loaded with. The keys are those that
// go-ycsb's core workload reads, so that all workloads share one data set.
type Rows struct {
	count int
	// named are the keys in the order of their numbers, sorted in their own.
	named, sorted string
}

// NewRows names n rows.
func NewRows(n int) *Rows {
	all := make([]string, n)
	var named strings.Builder
	for i := range all {
		all[i] = fmt.Sprintf("user%0*d", keyDigits, util.Hash64(int64(i)))
		named.WriteString(all[i])
	}
	slices.Sort(all)
	return &Rows{count: n, named: named.String(), sorted: strings.Join(all, "")}
}

// Len is how many rows there are.
func (r *Rows) Len() int { return r.count }

// Key is the key of the i-th row.
func (r *Rows) Key(i int) string { return r.named[i*keyBytes : (i+1)*keyBytes] }

// Sorted is the i-th key in the order of the keys.
func (r *Rows) Sorted(i int) string { return r.sorted[i*keyBytes : (i+1)*keyBytes] }

// Rank is how many loaded keys are below key.
func (r *Rows) Rank(key string) int {
	low, high := 0, r.count
	for low < high {
		middle := (low + high) / 2
		if r.Sorted(middle) < key {
			low = middle + 1
		} else {
			high = middle
		}
	}
	return low
}

// All returns the rows from i to j with fresh values.
func (r *Rows) All(i, j int) []system.Row {
	random := rand.New(rand.NewPCG(1, uint64(i)))
	out := make([]system.Row, 0, j-i)
	values := make([]byte, (j-i)*ValueBytes)
	for ; i < j; i++ {
		value := values[:ValueBytes:ValueBytes]
		values = values[ValueBytes:]
		fill(random, value)
		out = append(out, system.Row{Key: r.Key(i), Value: value})
	}
	return out
}

// Spread returns n rows at equal distances over the keyspace.
func (r *Rows) Spread(n int) []system.Row {
	n = min(n, r.count)
	out := make([]system.Row, n)
	for i := range out {
		out[i] = system.Row{
			Key: r.Sorted((2*i + 1) * r.count / (2 * n)), Value: make([]byte, ValueBytes),
		}
	}
	return out
}

// Splits are the keys that cut the rows into n equal parts.
func (r *Rows) Splits(n int) []string {
	var out []string
	for i := 1; i < n; i++ {
		out = append(out, r.Sorted(i*r.count/n))
	}
	return out
}

// fill makes a value that does not compress.
func fill(r *rand.Rand, value []byte) {
	for i := 0; i+8 <= len(value); i += 8 {
		v := r.Uint64()
		for j := range 8 {
			value[i+j] = byte(v >> (8 * j))
		}
	}
}
