package engine_test

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/ridgekv/ridge/proto/ts"
	"github.com/ridgekv/ridge/storenode/internal/engine"
)

// How many rows of 16 + 128 bytes are committed per second, by the rows in a
// set and the callers at once?
func BenchmarkCommit(b *testing.B) {
	for _, shape := range []struct{ rows, callers int }{{1, 1}, {1, 64}, {100, 4}, {500, 4}} {
		b.Run(fmt.Sprintf("rows=%d/callers=%d", shape.rows, shape.callers), func(b *testing.B) {
			e := open(b, engine.Options{Dir: b.TempDir()})
			value := make([]byte, 128)
			b.SetParallelism(max(1, shape.callers/2))
			b.ReportAllocs()
			b.RunParallel(func(pb *testing.PB) {
				r := rand.New(rand.NewPCG(rand.Uint64(), 0))
				var key [16]byte
				for pb.Next() {
					w := new(engine.WriteSet)
					for range shape.rows {
						binary.BigEndian.PutUint64(key[:], r.Uint64())
						w.Put(20, key[:], engine.Row{CommitTS: 1, Value: value})
					}
					if err := e.Commit(w); err != nil {
						b.Error(err)
					}
				}
			})
			b.ReportMetric(float64(b.N*shape.rows)/b.Elapsed().Seconds(), "rows/s")
		})
	}
}

const benchRows = 300_000

func benchEngine(b *testing.B, rowCacheSizeBytes int64) *engine.Engine {
	e := open(b, engine.Options{Dir: b.TempDir(), RowCacheSizeBytes: rowCacheSizeBytes})
	for i := 0; i < benchRows; i += 1000 {
		w := new(engine.WriteSet)
		for k := i; k < i+1000; k++ {
			w.Put(20, fmt.Appendf(nil, "%016d", k), engine.Row{CommitTS: 5, Value: make([]byte, 128)})
		}
		if err := e.Commit(w); err != nil {
			b.Fatal(err)
		}
	}
	return e
}

// What does a point read cost, of a key that exists and of one that does not,
// with a row cache that holds all and without one?
func BenchmarkGet(b *testing.B) {
	for name, sizeBytes := range map[string]int64{"cache": 256 << 20, "nocache": -1} {
		b.Run(name, func(b *testing.B) { benchmarkGet(b, sizeBytes) })
	}
}

func benchmarkGet(b *testing.B, rowCacheSizeBytes int64) {
	e := benchEngine(b, rowCacheSizeBytes)
	v := e.View()
	get := func(v engine.View, key []byte) (engine.Row, bool, error) { return v.Get(20, key) }
	at := func(v engine.View, key []byte) (engine.Row, bool, error) { return v.GetAt(20, key, 9) }
	for i := range benchRows { // Warm.
		for _, format := range []string{"%016d", "%016dx"} {
			if _, _, err := v.Get(20, fmt.Appendf(nil, format, i)); err != nil {
				b.Fatal(err)
			}
		}
	}
	for _, c := range []struct {
		name, format string
		read         func(engine.View, []byte) (engine.Row, bool, error)
		found        bool
	}{
		{"hit", "%016d", get, true},
		{"miss", "%016dx", get, false},
		{"at/hit", "%016d", at, true},
		{"at/miss", "%016dx", at, false},
	} {
		b.Run(c.name, func(b *testing.B) {
			b.ReportAllocs()
			b.RunParallel(func(pb *testing.PB) {
				for pb.Next() {
					_, ok, err := c.read(v, fmt.Appendf(nil, c.format, rand.IntN(benchRows)))
					if err != nil || ok != c.found {
						b.Error(ok, err)
					}
				}
			})
		})
	}
}

// What does a scan cost per row?
func BenchmarkScan(b *testing.B) {
	e := benchEngine(b, -1)
	for _, at := range []ts.Timestamp{0, 9} {
		for _, reverse := range []bool{false, true} {
			for _, limit := range []int{10, 1000} {
				b.Run(fmt.Sprintf("at=%d/reverse=%t/limit=%d", at, reverse, limit), func(b *testing.B) {
					b.ReportAllocs()
					for b.Loop() {
						o := engine.ScanOptions{
							Slices: []engine.Slice{{Extent: 20}}, At: at, Reverse: reverse, Limit: limit,
						}
						n := 0
						for _, err := range e.View().Scan(o) {
							if err != nil {
								b.Fatal(err)
							}
							n++
						}
						if n != limit {
							b.Fatal(n)
						}
					}
					b.ReportMetric(float64(b.N*limit)/b.Elapsed().Seconds(), "rows/s")
				})
			}
		}
	}
}
