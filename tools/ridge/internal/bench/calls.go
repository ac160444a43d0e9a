package bench

import (
	"sync"

	"github.com/HdrHistogram/hdrhistogram-go"
)

// calls are latencies from the call of an operation on. In an open loop that
// asks for more than there is, the latencies from when it was due only tell how
// long the run was; these tell how long the cluster kept what it had admitted.
// They are few, shared by all callers.
type calls [16]callShard

type callShard struct {
	mu      sync.Mutex
	latency *hdrhistogram.Histogram
}

func newCalls(digits int) *calls {
	c := &calls{}
	for i := range c {
		c[i].latency = hdrhistogram.New(1, highest, digits)
	}
	return c
}

// record takes one operation of a caller that took so many nanoseconds.
func (c *calls) record(caller int, took int64) {
	shard := &c[caller%len(c)]
	shard.mu.Lock()
	defer shard.mu.Unlock()
	_ = shard.latency.RecordValue(min(max(took/1000, 0), highest)) // It is within the bounds.
}

// quantiles are the 50th and the 99th percentile, in microseconds.
func (c *calls) quantiles() (p50, p99 int64) {
	all := hdrhistogram.New(1, highest, int(c[0].latency.SignificantFigures()))
	for i := range c {
		all.Merge(c[i].latency)
	}
	return all.ValueAtQuantile(50), all.ValueAtQuantile(99)
}
