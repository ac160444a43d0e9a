package bench

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ridgekv/ridge/client"
	"github.com/ridgekv/ridge/proto/errs"
)

// stub is a target that does as it is told.
type stub func(ctx context.Context, op *Operation) (Outcome, error)

func (s stub) Do(ctx context.Context, op *Operation) (Outcome, error) { return s(ctx, op) }

// slow takes d for an operation.
func slow(d time.Duration) stub {
	return func(context.Context, *Operation) (Outcome, error) {
		time.Sleep(d)
		return Outcome{Rows: 1}, nil
	}
}

func config(change func(*Config)) Config {
	c := Config{
		Workload: "read", Prefix: "p/", Keys: 1000, ValueSize: 16, Callers: 1,
		Duration: 10 * time.Second, Consistency: "linearizable", Staleness: time.Second,
		ScanLength: 10, BatchSize: 8, HotKeys: 1, Seed: 7,
	}
	change(&c)
	return c
}

func mustRun(t *testing.T, c Config, target Target) *Report {
	t.Helper()
	r, err := Run(t.Context(), c, target, nil)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// near fails unless got is within a hundredth of want: so precise are the
// histograms.
func near(t *testing.T, what string, got, want float64) {
	t.Helper()
	if got < 0.99*want || got > 1.01*want {
		t.Errorf("%s is %v, want %v", what, got, want)
	}
}

func TestClosedLoop(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := config(func(c *Config) { c.Callers, c.Warmup = 4, 2*time.Second })
		r := mustRun(t, c, slow(10*time.Millisecond))
		near(t, "throughput", r.OperationsPerSecond, 400)
		near(t, "elapsed", float64(r.ElapsedUs), 10e6)
		near(t, "p50", float64(r.All.P50Us), 10_000)
		near(t, "p99.9", float64(r.All.P999Us), 10_000)
		near(t, "mean", r.All.MeanUs, 10_000)
		if r.Operations != 4000 || r.WarmupOperations != 800 || r.All.MaxUs != 10_000 {
			t.Errorf("%+v", r)
		}
	})
}

// TestNoCoordinatedOmission: the target stands still for a second. 100 a second
// are due, so a hundred operations wait, for up to a second, and the histogram
// must hold that: a tenth of the run is slow, half of that by over 500 ms.
func TestNoCoordinatedOmission(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		began := time.Now()
		stalling := stub(func(context.Context, *Operation) (Outcome, error) {
			at := time.Since(began)
			if from := 5 * time.Second; at >= from && at < from+time.Second {
				time.Sleep(from + time.Second - at)
			}
			time.Sleep(time.Millisecond)
			return Outcome{}, nil
		})
		r := mustRun(t, config(func(c *Config) { c.Rate = 100 }), stalling)
		if r.Operations != 1000 || r.OpenLoop.Due != 1000 || r.OpenLoop.NotStarted != 0 {
			t.Errorf("%+v, %+v", r, r.OpenLoop)
		}
		if n := r.OpenLoop.StartedLate; n < 100 || n > 125 {
			t.Errorf("%d started late", n)
		}
		near(t, "p50", float64(r.All.P50Us), 1000)
		near(t, "max", float64(r.All.MaxUs), 1_001_000)
		// The last tenth waited between 0 and 1 s, in even steps.
		if p := r.All.P95Us; p < 500_000 || p > 620_000 {
			t.Errorf("p95 is %d us", p)
		}
		if p := r.All.P99Us; p < 900_000 || p > 1_000_000 {
			t.Errorf("p99 is %d us", p)
		}

		// The same in a closed loop omits it: that is why there is an open one.
		began = time.Now()
		if r := mustRun(t, config(func(*Config) {}), stalling); r.All.P99Us > 2000 {
			t.Errorf("closed loop: p99 is %d us", r.All.P99Us)
		}
	})
}

// TestOverload: twice the rate that two callers can bear. Half is not done,
// and what is done waits longer and longer.
func TestOverload(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := config(func(c *Config) { c.Rate, c.Callers = 400, 2 })
		r := mustRun(t, c, slow(10*time.Millisecond))
		near(t, "throughput", r.OperationsPerSecond, 200)
		near(t, "due", float64(r.OpenLoop.Due), 4000)
		near(t, "not started", float64(r.OpenLoop.NotStarted), 2000)
		near(t, "p50", float64(r.All.P50Us), 2.5e6)
		near(t, "max", float64(r.All.MaxUs), 5e6)
		near(t, "p50 from the call on", float64(r.OpenLoop.CalledP50Us), 10_000)
		near(t, "p99 from the call on", float64(r.OpenLoop.CalledP99Us), 10_000)
	})
}

// TestOpenLoopWindow: what is due in the warm-up is not measured, though its
// backlog is felt.
func TestOpenLoopWindow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := config(func(c *Config) { c.Rate, c.Warmup, c.Callers = 30, time.Second, 3 })
		r := mustRun(t, c, slow(20*time.Millisecond))
		if r.WarmupOperations != 30 || r.Operations != 300 || r.OpenLoop.Due != 300 ||
			r.OpenLoop.StartedLate != 0 || r.OpenLoop.NotStarted != 0 {
			t.Errorf("%+v %+v", r, r.OpenLoop)
		}
		near(t, "max", float64(r.All.MaxUs), 20_000)
		c.Operations, c.Duration = 100, 0
		r = mustRun(t, c, slow(20*time.Millisecond))
		if r.Operations != 100 || r.OpenLoop.Due != 100 {
			t.Errorf("%+v %+v", r, r.OpenLoop)
		}
	})
}

// TestOperations: the count is kept exactly, and the window ends with the last.
func TestOperations(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := config(func(c *Config) { c.Operations, c.Duration, c.Callers = 1001, 0, 10 })
		r := mustRun(t, c, slow(10*time.Millisecond))
		if r.Operations != 1001 || r.ElapsedUs != 1_010_000 {
			t.Errorf("%d operations in %d us", r.Operations, r.ElapsedUs)
		}
	})
}

// TestInterrupt: what is under way ends and counts; the rest does not begin.
func TestInterrupt(t *testing.T) {
	for _, rate := range []float64{0, 0.5, 100} {
		synctest.Test(t, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), 3050*time.Millisecond)
			defer cancel()
			c := config(func(c *Config) { c.Rate, c.Callers, c.Duration = rate, 8, 0; c.Operations = 1e9 })
			began := time.Now()
			r, err := Run(ctx, c, slow(100*time.Millisecond), nil)
			if err != nil || !r.Interrupted || r.Failed != 0 {
				t.Fatalf("%v, %+v", err, r)
			}
			near(t, "elapsed", float64(r.ElapsedUs), 3_050_000)
			if took := time.Since(began); took > 3200*time.Millisecond {
				t.Errorf("rate %v: ended after %s", rate, took)
			}
			if rate == 0 && r.Operations != 8*31 {
				t.Errorf("%d operations", r.Operations)
			}
		})
	}
}

// TestFailures: they are counted by class, and leave no mark on the latencies.
func TestFailures(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := 0
		failing := stub(func(context.Context, *Operation) (Outcome, error) {
			n++
			time.Sleep(10 * time.Millisecond)
			switch n % 10 {
			case 0:
				time.Sleep(40 * time.Millisecond)
				return Outcome{}, fmt.Errorf("client: put: %w", errs.UnknownOutcome{RangeID: 3})
			case 1:
				return Outcome{}, errors.Join(context.DeadlineExceeded, errs.NotLeader{RangeID: 2})
			case 2:
				return Outcome{}, errs.Busy{Reason: "queue"}
			}
			return Outcome{}, nil
		})
		c := config(func(c *Config) { c.Operations, c.Duration = 100, 0 })
		r := mustRun(t, c, failing)
		if r.Operations != 70 || r.Failed != 30 || r.All.MaxUs != 10_000 {
			t.Errorf("%+v", r)
		}
		got := ""
		for _, e := range r.Errors {
			got += fmt.Sprintf("%s %d %d, ", e.Class, e.Count, e.LongestUs)
		}
		if got != "busy 10 10000, timeout 10 10000, unknown_outcome 10 50000, " {
			t.Errorf("got %s", got)
		}
	})
}

func TestErrorClass(t *testing.T) {
	for want, err := range map[string]error{
		"not_leader": fmt.Errorf("x: %w", errs.NotLeader{}), "disk_full": errs.DiskFull{},
		"unavailable": errs.Unavailable{Part: "pd"}, "other": errors.New("x"),
		"swaps_lost": errSwapsLost, "closed": client.ErrClosed, "timeout": context.DeadlineExceeded,
	} {
		if got := errorClass(err); got != want {
			t.Errorf("%v is %s, want %s", err, got, want)
		}
	}
}

// TestMixes: every workload draws what it says, of keys that are there.
func TestMixes(t *testing.T) {
	for _, w := range workloads {
		t.Run(w.name, func(t *testing.T) {
			var counts [kinds]atomic.Int64
			var inserted atomic.Int64
			target := stub(func(_ context.Context, op *Operation) (Outcome, error) {
				counts[op.Kind].Add(1)
				return Outcome{}, checkOperation(op, &inserted)
			})
			c := config(func(c *Config) {
				c.Workload, c.Operations, c.Duration, c.Callers = w.name, 20_000, 0, 4
			})
			r := mustRun(t, c, target)
			if r.Failed != 0 || r.Operations != 20_000 {
				t.Errorf("%+v", r.Errors)
			}
			for _, m := range w.mix {
				if got := float64(counts[m.kind].Load()) / 200; got < float64(m.percent)-2 ||
					got > float64(m.percent)+2 {
					t.Errorf("%.1f %% are %s, want %d", got, m.kind, m.percent)
				}
			}
			if len(r.Kinds) != len(w.mix) {
				t.Errorf("%d kinds are reported", len(r.Kinds))
			}
			if w.hot && len(target.distinct(t, c)) != 1 {
				t.Error("hot has more than one key")
			}
		})
	}
}

// distinct runs c once more and returns the keys.
func (s stub) distinct(t *testing.T, c Config) map[string]bool {
	seen := map[string]bool{}
	c.Callers, c.Operations = 1, 1000
	mustRun(t, c, stub(func(_ context.Context, op *Operation) (Outcome, error) {
		seen[string(op.Key)] = true
		return Outcome{}, nil
	}))
	return seen
}

func checkOperation(op *Operation, inserted *atomic.Int64) error {
	all := op.Keys
	for _, m := range op.Mutations {
		all = append(all, m.Key)
		if len(m.Value) != 16 {
			return fmt.Errorf("a value of %d bytes", len(m.Value))
		}
	}
	if op.Kind == Insert {
		inserted.Add(1)
	}
	switch op.Kind {
	case BatchRead, BatchWrite:
		if len(all) != 8 {
			return fmt.Errorf("a batch of %d", len(all))
		}
	case Scan:
		if op.Limit < 1 || op.Limit > 10 {
			return fmt.Errorf("a scan of %d", op.Limit)
		}
		fallthrough
	default:
		all = [][]byte{op.Key}
	}
	for _, k := range all {
		if len(k) != len("p/")+hashDigits || !strings.HasPrefix(string(k), "p/") {
			return fmt.Errorf("key %q", k)
		}
	}
	return nil
}

// TestSeed: the same seed draws the same, another one does not.
func TestSeed(t *testing.T) {
	draw := func(seed uint64) string {
		var b strings.Builder
		c := config(func(c *Config) { c.Workload, c.Operations, c.Duration, c.Seed = "a", 200, 0, seed })
		mustRun(t, c, stub(func(_ context.Context, op *Operation) (Outcome, error) {
			fmt.Fprintf(&b, "%s %s %x\n", op.Kind, op.Key, op.Value)
			return Outcome{}, nil
		}))
		return b.String()
	}
	first, again, other := draw(1), draw(1), draw(2)
	if first != again || first == other {
		t.Error("the seed does not decide what is drawn")
	}
}

// TestLoad: every key is written once, whatever the batches.
func TestLoad(t *testing.T) {
	seen := make([]map[string]int, 3)
	c := config(func(c *Config) {
		c.Workload, c.Keys, c.BatchSize, c.Duration = LoadWorkload, 1003, 10, 0
	})
	for i := range seen {
		seen[i] = map[string]int{}
		r := mustRun(t, c, stub(func(_ context.Context, op *Operation) (Outcome, error) {
			for _, m := range op.Mutations {
				seen[i][string(m.Key)]++
			}
			return Outcome{Rows: len(op.Mutations)}, nil
		}))
		if len(seen[i]) != 1003 || r.All.Rows != 1003 || r.Operations != 101 {
			t.Errorf("%d keys, %d rows, %d batches", len(seen[i]), r.All.Rows, r.Operations)
		}
	}
	space := keyspace{[]byte("p/")}
	for i := range c.Keys {
		if seen[0][string(space.append(nil, i))] != 1 {
			t.Fatalf("key %d is not loaded", i)
		}
	}
}

// TestProgress: a line a second, of that second.
func TestProgress(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := config(func(c *Config) {
			c.Callers, c.Duration, c.Warmup = 20, 3500*time.Millisecond, 1500*time.Millisecond
		})
		var lines []Progress
		_, err := Run(t.Context(), c, slow(10*time.Millisecond), func(p Progress) { lines = append(lines, p) })
		if err != nil || len(lines) < 4 {
			t.Fatalf("%v, %v", err, lines)
		}
		for i, p := range lines[:4] {
			if p.Warmup != (i == 0) || p.Operations < 1900 || p.Operations > 2040 ||
				p.P99 < 9*time.Millisecond || p.P99 > 11*time.Millisecond {
				t.Errorf("second %d: %s", i, p)
			}
		}
	})
}

func TestPulseBuckets(t *testing.T) {
	last := -1
	for v := int64(1); v < 1<<62; v += 1 + v/7 {
		b := pulseBucket(v)
		if b < last || b >= pulseBuckets {
			t.Fatalf("%d is in bucket %d, after %d", v, b, last)
		}
		last = b
		if got := float64(pulseValue(b)); got < 0.93*float64(v) || got > 1.07*float64(v) {
			t.Errorf("%d is told as %.0f", v, got)
		}
	}
}

func TestFaultsAllAtOnce(t *testing.T) {
	bad := Config{
		Workload: "x", Distribution: "y", Consistency: "z", Rate: -1, Duration: -1, Warmup: -1,
		Operations: -1, ValueSize: -1,
	}
	err := bad.Validate()
	for _, flag := range strings.Fields("workload distribution consistency staleness rate duration " +
		"warmup operations callers keys value-size prefix scan-length batch-size") {
		if err == nil || !strings.Contains(err.Error(), "--"+flag) {
			t.Errorf("no word of --%s in %v", flag, err)
		}
	}
	for words, c := range map[string]Config{
		"would not end":  config(func(c *Config) { c.Duration = 0 }),
		"may have":       config(func(c *Config) { c.Workload, c.BatchSize, c.ValueSize = "batch", 64, 100_000 }),
		"--hot-keys":     config(func(c *Config) { c.Workload, c.HotKeys = "hot", 2000 }),
		"has its own":    config(func(c *Config) { c.Workload, c.Distribution = "hot", "zipfian" }),
		"too low":        config(func(c *Config) { c.Rate = 1e-9 }),
		"--value-size 1": config(func(c *Config) { c.ValueSize = 1 << 20 }),
	} {
		if err := c.Validate(); err == nil || !strings.Contains(err.Error(), words) {
			t.Errorf("want %q, got %v", words, err)
		}
	}
	for _, name := range []string{"A", "ycsb-f", "hot", "load"} {
		if err := config(func(c *Config) { c.Workload = name }).Validate(); err != nil {
			t.Error(err)
		}
	}
}

// TestReportJSON: programs find durations in microseconds, by these names.
func TestReportJSON(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := mustRun(t, config(func(c *Config) { c.Rate = 10 }), slow(time.Millisecond))
		text, err := json.Marshal(r)
		if err != nil {
			t.Fatal(err)
		}
		for _, words := range []string{
			`"elapsed_us":10000000`, `"operations":100`, `"seed":7`, `"workload":"read"`,
			`"distribution":"uniform"`, `"duration_us":10000000`, `"kind":"read"`, `"p99_9_us":1000`,
			`"due_operations":100`, `"errors":[]`, `"rate_per_second":10`,
		} {
			if !strings.Contains(string(text), words) {
				t.Errorf("no %s in %s", words, text)
			}
		}
	})
}

// BenchmarkCaller is what the generator costs by itself: the time and the
// allocations of an operation on a target that does nothing.
func BenchmarkCaller(b *testing.B) {
	nothing := stub(func(context.Context, *Operation) (Outcome, error) { return Outcome{}, nil })
	for name, change := range map[string]func(*Config){
		"read": func(*Config) {},
		"a":    func(c *Config) { c.Workload = "a" },
		"open": func(c *Config) { c.Rate = maxRate },
		"progress": func(*Config) {
		},
	} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			c := config(change)
			c.Keys, c.ValueSize, c.Duration, c.Operations = 1_000_000, 128, 0, int64(b.N)
			var tell func(Progress)
			if name == "progress" {
				tell = func(Progress) {}
			}
			if _, err := Run(b.Context(), c, nothing, tell); err != nil {
				b.Fatal(err)
			}
		})
	}
}
