package wire

import (
	"testing"

	"pgregory.net/rapid"
)

// Whatever is put back, a buffer is of the length that is asked for, and nobody
// else has it.
func TestBufferPool(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var p bufferPool
		var held []*[]byte
		for i := range rapid.IntRange(1, 60).Draw(t, "steps") {
			if len(held) > 0 && rapid.Bool().Draw(t, "put") {
				b := held[0]
				held = held[1:]
				*b = (*b)[:rapid.IntRange(0, len(*b)).Draw(t, "cut")]
				p.Put(b)
				continue
			}
			n := rapid.OneOf(rapid.IntRange(0, 3<<20), rapid.SampledFrom([]int{
				0, 1, 1<<8 - 1, 1 << 8, 1<<8 + 1, 1<<20 - 1, 1 << 20, 1<<20 + 1,
			})).Draw(t, "length")
			b := p.Get(n)
			if len(*b) != n {
				t.Fatalf("%d bytes, not %d", len(*b), n)
			}
			for _, other := range held {
				if cap(*b) > 0 && cap(*other) > 0 && &(*b)[:1][0] == &(*other)[:1][0] {
					t.Fatalf("step %d: the buffer is in use", i)
				}
			}
			held = append(held, b)
		}
		b := []byte("not of the pool")
		p.Put(&b)
	})
}
