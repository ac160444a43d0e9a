package bench

import (
	"cmp"
	"math"
	"slices"
	"time"
)

// Report is what a run has found. Its JSON is for programs: durations are in
// microseconds.
type Report struct {
	Config ReportedConfig `json:"config"`
	// BeganAt is the beginning of the run, warm-up included.
	BeganAt string `json:"began_at"`
	// Interrupted tells that the run was ended before its time.
	Interrupted bool `json:"interrupted"`
	// ElapsedUs is the length of the window.
	ElapsedUs int64 `json:"elapsed_us"`
	// Operations began in the window and succeeded, Failed began in it and
	// failed; WarmupOperations came before.
	Operations       int64 `json:"operations"`
	Failed           int64 `json:"failed_operations"`
	WarmupOperations int64 `json:"warmup_operations"`
	// OperationsPerSecond counts what succeeded and ended inside the window.
	OperationsPerSecond float64 `json:"operations_per_second"`
	RowsPerSecond       float64 `json:"rows_per_second"`
	// Kinds are the operations by kind; All is their sum.
	All    KindReport    `json:"all"`
	Kinds  []KindReport  `json:"kinds"`
	Errors []ErrorReport `json:"errors"`
	// OpenLoop is there when the run had a rate.
	OpenLoop *OpenLoopReport `json:"open_loop,omitempty"`
	// HistogramDigits is the precision of the latencies.
	HistogramDigits int `json:"histogram_digits"`
}

// ReportedConfig echoes the configuration.
type ReportedConfig struct {
	Workload       string  `json:"workload"`
	Distribution   string  `json:"distribution"`
	Prefix         string  `json:"prefix"`
	Keys           int64   `json:"keys"`
	ValueSizeBytes int     `json:"value_size_bytes"`
	Callers        int     `json:"callers"`
	DurationUs     int64   `json:"duration_us"`
	Operations     int64   `json:"operations"`
	WarmupUs       int64   `json:"warmup_us"`
	Rate           float64 `json:"rate_per_second"`
	Consistency    string  `json:"consistency"`
	StalenessUs    int64   `json:"staleness_us"`
	ScanLength     int     `json:"scan_length"`
	BatchSize      int     `json:"batch_size"`
	HotKeys        int64   `json:"hot_keys"`
	Seed           uint64  `json:"seed"`
}

// KindReport is what is known of one kind of operation. Latencies are of
// operations that succeeded.
type KindReport struct {
	Kind                string  `json:"kind"`
	Operations          int64   `json:"operations"`
	Failed              int64   `json:"failed_operations"`
	OperationsPerSecond float64 `json:"operations_per_second"`
	Rows                int64   `json:"rows"`
	// Missing counts keys that were read and not found, Retries the
	// compare-and-swaps that were lost and tried again.
	Missing int64   `json:"missing_keys"`
	Retries int64   `json:"lost_swaps"`
	MeanUs  float64 `json:"mean_us"`
	P50Us   int64   `json:"p50_us"`
	P95Us   int64   `json:"p95_us"`
	P99Us   int64   `json:"p99_us"`
	P999Us  int64   `json:"p99_9_us"`
	MaxUs   int64   `json:"max_us"`
}

// ErrorReport is a class of failures.
type ErrorReport struct {
	Class     string `json:"class"`
	Kind      string `json:"kind"`
	Count     int64  `json:"count"`
	LongestUs int64  `json:"longest_us"`
	Example   string `json:"example"`
}

// OpenLoopReport tells how well the schedule was kept.
type OpenLoopReport struct {
	// Due operations fell into the window.
	Due int64 `json:"due_operations"`
	// StartedLate began more than a millisecond after they were due.
	StartedLate int64 `json:"started_late_operations"`
	// NotStarted were due and never began: every caller was busy until the end.
	NotStarted int64 `json:"not_started_operations"`
	// CalledP50Us and CalledP99Us are latencies from the call on, not from when the
	// operation was due.
	CalledP50Us int64 `json:"called_p50_us"`
	CalledP99Us int64 `json:"called_p99_us"`
}

func (r *run) report(callers []*caller) *Report {
	sums := [kinds]*tally{}
	all := newTally(r.plan.digits())
	out := &Report{
		Config: r.c.reported(), BeganAt: r.began.UTC().Format(time.RFC3339Nano),
		Kinds: []KindReport{}, Errors: []ErrorReport{}, HistogramDigits: r.plan.digits(),
	}
	late, last := int64(0), r.from
	for _, c := range callers {
		out.WarmupOperations += c.warmup
		late += c.late
		last = max(last, c.last)
		for k, t := range c.tallies {
			if t == nil {
				continue
			}
			if sums[k] == nil {
				sums[k] = newTally(r.plan.digits())
			}
			sums[k].merge(t)
			all.merge(t)
		}
	}
	end := r.end.Load()
	begun := all.latency.TotalCount() + all.failed()
	if end == never || (begun == r.c.Operations && last < end) {
		end = last // the window ended with its last operation
	}
	window := time.Duration(max(end-r.from, 0))
	for k, t := range sums {
		if t == nil {
			continue
		}
		out.Kinds = append(out.Kinds, t.report(Kind(k).String(), window))
		out.Errors = append(out.Errors, t.errors(Kind(k))...)
	}
	out.All = all.report("all", window)
	out.ElapsedUs = window.Microseconds()
	out.Operations, out.Failed = out.All.Operations, out.All.Failed
	out.OperationsPerSecond = out.All.OperationsPerSecond
	out.RowsPerSecond = perSecond(all.rowsEnded, window)
	if r.interval > 0 {
		out.OpenLoop = r.schedule(r.end.Load(), begun, late)
	}
	return out
}

// schedule accounts for what was due until end.
func (r *run) schedule(end, begun, late int64) *OpenLoopReport {
	due := int64(never)
	if end != never && end > r.from {
		due = int64(math.Ceil(float64(end)/r.interval)) - r.first
	} else if end <= r.from {
		due = 0
	}
	if r.c.Operations > 0 {
		due = min(due, r.c.Operations)
	}
	// The last may fall on the edge of the window, by rounding.
	due = max(due, begun)
	p50, p99 := r.calls.quantiles()
	return &OpenLoopReport{
		Due: due, StartedLate: late, NotStarted: due - begun, CalledP50Us: p50, CalledP99Us: p99,
	}
}

func (t *tally) report(kind string, window time.Duration) KindReport {
	h := t.latency
	n := h.TotalCount()
	return KindReport{
		Kind: kind, Operations: n, Failed: t.failed(),
		OperationsPerSecond: perSecond(t.ended, window),
		Rows:                t.rows, Missing: t.missing, Retries: t.retries,
		MeanUs: math.Round(float64(t.sum)/float64(max(n, 1))/100) / 10,
		P50Us:  t.quantile(50), P95Us: t.quantile(95), P99Us: t.quantile(99),
		P999Us: t.quantile(99.9), MaxUs: t.most / 1000,
	}
}

// quantile is never above the largest: a bucket of the histogram may be.
func (t *tally) quantile(q float64) int64 {
	return min(t.latency.ValueAtQuantile(q), t.most/1000)
}

func (t *tally) errors(kind Kind) []ErrorReport {
	var out []ErrorReport
	for class, f := range t.faults {
		out = append(out, ErrorReport{
			Class: class, Kind: kind.String(), Count: f.count, LongestUs: f.longest / 1000,
			Example: f.example,
		})
	}
	slices.SortFunc(out, func(a, b ErrorReport) int {
		return cmp.Or(cmp.Compare(b.Count, a.Count), cmp.Compare(a.Class, b.Class))
	})
	return out
}

func perSecond(n int64, window time.Duration) float64 {
	if window <= 0 {
		return 0
	}
	return math.Round(10*float64(n)/window.Seconds()) / 10
}

func (c Config) reported() ReportedConfig {
	return ReportedConfig{
		Workload: c.Workload, Distribution: c.distribution(), Prefix: c.Prefix, Keys: c.Keys,
		ValueSizeBytes: c.ValueSize, Callers: c.Callers, DurationUs: c.Duration.Microseconds(),
		Operations: c.Operations, WarmupUs: c.Warmup.Microseconds(), Rate: c.Rate,
		Consistency: c.Consistency, StalenessUs: c.Staleness.Microseconds(),
		ScanLength: c.ScanLength, BatchSize: c.BatchSize, HotKeys: c.HotKeys, Seed: c.Seed,
	}
}
