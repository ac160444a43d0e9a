// Package workload drives a system: closed loops of many callers, the same for
// every system, measured with HDR histograms. Law: an operation counts when it
// ended well inside the window, whatever it is and whoever answered; one that
// failed is counted as an error and never as an operation.
package workload

import (
	"context"
	"maps"
	"sync"
	"sync/atomic"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"

	"github.com/ridgekv/ridge/tests/bench/system"
	"github.com/ridgekv/ridge/tests/harness"
)

// Workload is what the callers do.
type Workload interface {
	// Caller returns the loop's body for the n-th caller: one operation, which
	// it notes in the recorder.
	Caller(ctx context.Context, n int, c system.Caller, r *Recorder) func()
}

// Shape is how long and how wide a workload runs.
type Shape struct {
	Callers        int
	Warm, Measured time.Duration
}

// Result is what was seen inside the window.
type Result struct {
	// Kinds are the latencies in microseconds by operation.
	Kinds map[string]*hdrhistogram.Histogram
	// Errors counts failed operations by their text.
	Errors map[string]int64
	// Elapsed is the length of the window.
	Elapsed time.Duration
	// ServerCPU and ClientCPU are what the system's processes, and this one,
	// used in it.
	ServerCPU, ClientCPU time.Duration
}

// All is the latencies of all operations together.
func (r Result) All() *hdrhistogram.Histogram {
	all := newHistogram()
	for _, h := range r.Kinds {
		all.Merge(h)
	}
	return all
}

// Failed is how many operations failed.
func (r Result) Failed() (n int64) {
	for v := range maps.Values(r.Errors) {
		n += v
	}
	return n
}

// grace is how long after the window callers may finish their last operation;
// then it is cut off.
const grace = 10 * time.Second

// Drive runs w against conn. cpu returns what the system's processes have used.
func Drive(
	ctx context.Context, w Workload, conn system.Conn, s Shape, cpu func() time.Duration,
) Result {
	ctx, cancel := context.WithTimeout(ctx, s.Warm+s.Measured+grace)
	defer cancel()
	var ended atomic.Bool
	r := new(Recorder)
	var wg sync.WaitGroup
	for n := range s.Callers {
		wg.Go(func() {
			step := w.Caller(ctx, n, conn.Caller(n), r)
			for !ended.Load() && ctx.Err() == nil {
				step()
			}
		})
	}
	harness.Rest(ctx, s.Warm)
	server, client, began := cpu(), SelfCPU(), time.Now()
	r.open.Store(true)
	harness.Rest(ctx, s.Measured)
	r.open.Store(false)
	out := Result{
		Elapsed: time.Since(began), ServerCPU: cpu() - server, ClientCPU: SelfCPU() - client,
	}
	ended.Store(true)
	wg.Wait()
	out.Kinds, out.Errors = r.sum()
	return out
}

// Recorder gathers what the callers see. Its methods are safe for concurrent
// use.
type Recorder struct {
	open   atomic.Bool
	shards [16]shard
}

// shard keeps callers out of each other's way.
type shard struct {
	mu     sync.Mutex // guards all below
	kinds  map[string]*hdrhistogram.Histogram
	errors map[string]int64
	_      [64]byte
}

// Observe notes an operation of the n-th caller that began at began.
func (r *Recorder) Observe(n int, kind string, began time.Time, err error) {
	r.ObserveMany(n, 1, kind, began, err)
}

// ObserveMany notes operations that were done in one call.
func (r *Recorder) ObserveMany(n, ops int, kind string, began time.Time, err error) {
	took := time.Since(began)
	if !r.open.Load() {
		return
	}
	s := &r.shards[n%len(r.shards)]
	s.mu.Lock()
	defer s.mu.Unlock()
	if err != nil {
		if s.errors == nil {
			s.errors = map[string]int64{}
		}
		s.errors[err.Error()] += int64(ops)
		return
	}
	h := s.kinds[kind]
	if h == nil {
		if s.kinds == nil {
			s.kinds = map[string]*hdrhistogram.Histogram{}
		}
		h = newHistogram()
		s.kinds[kind] = h
	}
	_ = h.RecordValues(min(took.Microseconds(), longestMicros), int64(ops))
}

func (r *Recorder) sum() (map[string]*hdrhistogram.Histogram, map[string]int64) {
	kinds, errors := map[string]*hdrhistogram.Histogram{}, map[string]int64{}
	for i := range r.shards {
		s := &r.shards[i]
		for kind, h := range s.kinds {
			if kinds[kind] == nil {
				kinds[kind] = newHistogram()
			}
			kinds[kind].Merge(h)
		}
		for text, n := range s.errors {
			errors[text] += n
		}
	}
	return kinds, errors
}

// longestMicros is the longest latency that is told apart.
const longestMicros = 60_000_000

func newHistogram() *hdrhistogram.Histogram { return hdrhistogram.New(1, longestMicros, 3) }
