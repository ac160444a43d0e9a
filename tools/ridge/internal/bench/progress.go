package bench

import (
	"fmt"
	"math/bits"
	"sync/atomic"
	"time"

	"github.com/dustin/go-humanize"
)

// Progress is the last second of a run under way.
type Progress struct {
	// Elapsed is the time since the run began, warm-up included.
	Elapsed time.Duration
	Warmup  bool
	// Operations ended, and Failed, in this time.
	Operations, Failed int64
	Over               time.Duration
	P50, P99           time.Duration
}

// PerSecond is the throughput.
func (p Progress) PerSecond() float64 {
	return float64(p.Operations) / max(p.Over.Seconds(), 1e-9)
}

func (p Progress) String() string {
	s := fmt.Sprintf("%4ds  %10s ops/s  p50 %-9s p99 %-9s", int(p.Elapsed.Seconds()+0.5),
		humanize.Comma(int64(p.PerSecond())), Short(p.P50), Short(p.P99))
	if p.Failed > 0 {
		s += fmt.Sprintf("  %s failed", humanize.Comma(p.Failed))
	}
	if p.Warmup {
		s += "  (warm-up)"
	}
	return s
}

const (
	// pulseShards is how many counters each bucket has: callers seldom meet on
	// one of them.
	pulseShards = 16
	// Buckets hold latencies by their first 1 + pulseBits bits: an error of at
	// most 1/16, good enough for a glance.
	pulseBits    = 3
	pulseBuckets = (64 - pulseBits + 1) << pulseBits
)

// pulse counts what has just happened, for whoever looks while callers run.
type pulse struct {
	shards []pulseShard
	// seen is what the last look found; only watch uses it.
	seen       [pulseBuckets]int64
	seenFailed int64
}

type pulseShard struct {
	buckets [pulseBuckets]atomic.Int64
	failed  atomic.Int64
	_       [56]byte // shards share no cache line
}

func newPulse(callers int) *pulse {
	return &pulse{shards: make([]pulseShard, min(callers, pulseShards))}
}

// beat counts an operation.
func (p *pulse) beat(caller int, took int64, failed bool) {
	s := &p.shards[caller%len(p.shards)]
	if failed {
		s.failed.Add(1)
		return
	}
	s.buckets[pulseBucket(took)].Add(1)
}

func pulseBucket(took int64) int {
	v := uint64(max(took, 1))
	e := bits.Len64(v) - 1
	if e < pulseBits {
		return int(v)
	}
	return (e-pulseBits)<<pulseBits + int(v>>(e-pulseBits))
}

// pulseValue is the middle of a bucket.
func pulseValue(bucket int) time.Duration {
	if bucket < 2<<pulseBits {
		return time.Duration(bucket)
	}
	e := bucket>>pulseBits - 1
	low := int64(bucket-e<<pulseBits) << e
	return time.Duration(low + int64(1)<<e/2)
}

// watch tells of each second until done.
func (p *pulse) watch(r *run, done <-chan struct{}, tell func(Progress)) {
	ticker := time.NewTicker(time.Second)
	defer ticker.Stop()
	last := r.now()
	for {
		select {
		case <-done:
			return
		case <-ticker.C:
		}
		now := r.now()
		line := p.look()
		line.Elapsed, line.Over = time.Duration(now), time.Duration(now-last)
		line.Warmup = now <= r.from
		last = now
		tell(line)
	}
}

// look sums up what has happened since the last look.
func (p *pulse) look() Progress {
	var fresh [pulseBuckets]int64
	var out Progress
	failed := int64(0)
	for i := range p.shards {
		failed += p.shards[i].failed.Load()
		for b := range fresh {
			fresh[b] += p.shards[i].buckets[b].Load()
		}
	}
	for b, n := range fresh {
		fresh[b] -= p.seen[b]
		p.seen[b] = n
		out.Operations += fresh[b]
	}
	out.Failed, p.seenFailed = failed-p.seenFailed, failed
	count := int64(0)
	for b, n := range fresh {
		before := count
		count += n
		if n > 0 && 2*before < out.Operations && 2*count >= out.Operations {
			out.P50 = pulseValue(b)
		}
		if n > 0 && 100*before < 99*out.Operations && 100*count >= 99*out.Operations {
			out.P99 = pulseValue(b)
		}
	}
	return out
}

// Short is d with three significant digits.
func Short(d time.Duration) string {
	for unit := time.Duration(1); unit <= time.Minute; unit *= 10 {
		if d < 1000*unit {
			return d.Round(unit).String()
		}
	}
	return d.Round(time.Second).String()
}
