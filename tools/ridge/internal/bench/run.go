package bench

import (
	"context"
	"math"
	"sync"
	"sync/atomic"
	"time"
)

// Outcome is what an operation did when it did not fail.
type Outcome struct {
	// Rows were read or written.
	Rows int
	// Missing keys were read.
	Missing int
	// Retries are the compare-and-swaps that another writer won.
	Retries int
}

// Target does operations. It is safe for concurrent use.
type Target interface {
	Do(ctx context.Context, op *Operation) (Outcome, error)
}

// lateAfter is when an operation that was due counts as started late. A timer
// is seldom more precise.
const lateAfter = time.Millisecond

// never is beyond every run.
const never = math.MaxInt64

// run is a run under way. Times are nanoseconds since began.
type run struct {
	c      Config
	plan   *plan
	target Target
	began  time.Time
	// from and end bound the window. Whoever finds that the run is over moves
	// end forward; stopped is closed then.
	from    int64
	end     atomic.Int64
	stopped chan struct{}
	stop    sync.Once
	// interval is the time between two operations that are due, 0 in a closed
	// loop; first is the first operation of the window.
	interval float64
	first    int64
	// taken counts operations: those of the window in a closed loop, all that
	// were given out in an open one.
	taken atomic.Int64
	// calls are the latencies of an open loop without the time in which no caller
	// was free.
	calls *calls
	pulse *pulse
}

// Run runs c against target until its end, or until ctx ends: then what is
// under way is waited for, and the report is of the time until then. onSecond,
// if not nil, is called about once a second.
func Run(ctx context.Context, c Config, target Target, onSecond func(Progress)) (*Report, error) {
	if err := c.Validate(); err != nil {
		return nil, err
	}
	r := &run{
		c: c, plan: newPlan(c), target: target, stopped: make(chan struct{}), from: int64(c.Warmup),
	}
	if c.Rate > 0 {
		r.interval = float64(time.Second) / c.Rate
		r.first = r.firstDue()
		r.calls = newCalls(r.plan.digits())
	}
	r.end.Store(never)
	if c.Duration > 0 {
		r.end.Store(int64(c.Warmup + c.Duration))
	}
	callers := make([]*caller, c.Callers)
	for i := range callers {
		callers[i] = newCaller(r, i)
	}
	if onSecond != nil {
		r.pulse = newPulse(c.Callers)
	}
	r.began = time.Now()
	defer context.AfterFunc(ctx, r.cut)()
	// An interrupt does not break off what is under way: its outcome counts.
	work := context.WithoutCancel(ctx)
	var wg, watch sync.WaitGroup
	for _, one := range callers {
		wg.Go(func() { one.loop(work) })
	}
	done := make(chan struct{})
	if onSecond != nil {
		watch.Go(func() { r.pulse.watch(r, done, onSecond) })
	}
	wg.Wait()
	close(done)
	watch.Wait()
	report := r.report(callers)
	report.Interrupted = ctx.Err() != nil
	return report, nil
}

// now is the time of the run.
func (r *run) now() int64 { return int64(time.Since(r.began)) }

// cut ends the window now, unless it has ended.
func (r *run) cut() { r.endAt(r.now()) }

func (r *run) endAt(at int64) {
	for old := r.end.Load(); at < old; old = r.end.Load() {
		if r.end.CompareAndSwap(old, at) {
			break
		}
	}
	r.stop.Do(func() { close(r.stopped) })
}

// caller is one of the callers: a goroutine and what it owns.
type caller struct {
	*run
	id      int
	source  *source
	op      Operation
	tallies [kinds]*tally
	// warmup counts what was done before the window, last is when the last
	// operation ended.
	warmup, last int64
	late         int64
	timer        *time.Timer
}

func newCaller(r *run, id int) *caller {
	c := &caller{run: r, id: id, source: r.plan.source(id)}
	for _, m := range r.plan.mix {
		c.tallies[m.kind] = newTally(r.plan.digits())
	}
	return c
}

func (c *caller) loop(ctx context.Context) {
	if c.interval > 0 {
		c.open(ctx)
		return
	}
	c.closed(ctx)
}

// closed does one operation after the other. The end of one is the beginning
// of the next, so that the clock is read once.
func (c *caller) closed(ctx context.Context) {
	for now := c.now(); now < c.end.Load(); {
		inWindow := now >= c.from
		if inWindow && c.c.Operations > 0 && c.taken.Add(1) > c.c.Operations {
			return
		}
		if !c.source.next(&c.op) {
			return
		}
		now = c.do(ctx, now, now, inWindow)
	}
}

// open does the operations of the schedule that it can get hold of.
func (c *caller) open(ctx context.Context) {
	c.timer = time.NewTimer(time.Hour)
	defer c.timer.Stop()
	for now := c.now(); ; {
		i := c.taken.Add(1) - 1
		if c.c.Operations > 0 && i >= c.first+c.c.Operations {
			return
		}
		due := c.dueAt(i)
		if due > now {
			if due >= c.end.Load() || !c.sleep(due-now) {
				return
			}
			now = c.now()
		}
		if due >= c.end.Load() || now >= c.end.Load() {
			return
		}
		inWindow := due >= c.from
		if inWindow && now-due > int64(lateAfter) {
			c.late++
		}
		if !c.source.next(&c.op) {
			return
		}
		now = c.do(ctx, due, now, inWindow)
	}
}

// dueAt is when operation i is due.
func (r *run) dueAt(i int64) int64 { return int64(float64(i) * r.interval) }

// firstDue finds the first operation that is due in the window.
func (r *run) firstDue() int64 {
	i := int64(float64(r.from) / r.interval)
	for i > 0 && r.dueAt(i-1) >= r.from {
		i--
	}
	for r.dueAt(i) < r.from {
		i++
	}
	return i
}

// sleep waits for d; false means that the run is over.
func (c *caller) sleep(d int64) bool {
	c.timer.Reset(time.Duration(d))
	select {
	case <-c.timer.C:
		return true
	case <-c.stopped:
		return false
	}
}

// do does the operation, whose latency counts from begin, at the time called, and
// returns the time.
func (c *caller) do(ctx context.Context, begin, called int64, inWindow bool) int64 {
	out, err := c.target.Do(ctx, &c.op)
	now := c.now()
	if c.op.Kind == Insert {
		c.plan.inserted.settle(c.op.index)
	}
	c.last = now
	if c.pulse != nil {
		c.pulse.beat(c.id, now-begin, err != nil)
	}
	if inWindow {
		c.tallies[c.op.Kind].record(now-begin, out, err)
		if c.calls != nil && err == nil {
			c.calls.record(c.id, now-called)
		}
	} else {
		c.warmup++
	}
	if err == nil && now >= c.from && now <= c.end.Load() {
		c.tallies[c.op.Kind].ended++
		c.tallies[c.op.Kind].rowsEnded += int64(out.Rows)
	}
	return now
}
