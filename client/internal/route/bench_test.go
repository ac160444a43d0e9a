package route

import (
	"fmt"
	"testing"
)

// What does every operation pay to find its range among a thousand?
func BenchmarkFind(b *testing.B) {
	const ranges = 1000
	c := NewCache(2 * ranges)
	name := func(i int) string { return fmt.Sprintf("%04d", i) }
	for i := range ranges {
		c.Learn(rng(uint64(i+1), 1, 1, name(i), name(i+1), 1, 2, 3), on(1, 1))
	}
	var keys [ranges][]byte
	for i := range keys {
		keys[i] = []byte(name(i) + "x")
	}
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		if c.Find(keys[i%ranges]) == nil {
			b.Fatal(i)
		}
	}
}
