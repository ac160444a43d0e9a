package wire

import (
	"math/bits"
	"sync"

	"google.golang.org/grpc/mem"
)

// bufferPool keeps memory for messages, by powers of two. gRPC's own pool clears
// all that it hands out and has nothing between 32 KiB and 1 MiB, so a message of
// 40 KiB cost a mebibyte of zeros. What this one hands out is not cleared: it is
// written up to its length before anybody reads it (newBuffer, Frame.take).
type bufferPool struct{ tiers [largestTier + 1]sync.Pool }

// A smaller buffer is taken from the smallest tier, a larger one from the heap.
const (
	smallestTier = 8
	largestTier  = 20
)

var messages bufferPool

var _ mem.BufferPool = (*bufferPool)(nil)

// Get implements mem.BufferPool.
func (p *bufferPool) Get(length int) *[]byte {
	tier := smallestTier
	if length > 1<<smallestTier {
		tier = bits.Len(uint(length - 1))
	}
	if tier > largestTier {
		b := make([]byte, length)
		return &b
	}
	b, _ := p.tiers[tier].Get().(*[]byte)
	if b == nil {
		fresh := make([]byte, 1<<tier)
		b = &fresh
	}
	*b = (*b)[:length]
	return b
}

// Put implements mem.BufferPool.
func (p *bufferPool) Put(b *[]byte) {
	tier := bits.Len(uint(cap(*b))) - 1
	if tier >= smallestTier && tier <= largestTier && cap(*b) == 1<<tier {
		p.tiers[tier].Put(b)
	}
}
