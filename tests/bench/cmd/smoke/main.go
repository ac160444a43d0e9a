// Command smoke tells in under two minutes whether the fast path has become
// slower: allocations per operation, and a few of Ridge's rates in those of the
// raw pieces, measured in turns in the same run. It compares them with the last
// line of the history, adds a line, and ends with code 1 when something became
// worse beyond the bounds.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"syscall"
	"text/tabwriter"
	"time"

	"github.com/ridgekv/ridge/tests/bench/ceiling"
	"github.com/ridgekv/ridge/tests/bench/report"
	"github.com/ridgekv/ridge/tests/bench/smoke"
	"github.com/ridgekv/ridge/tests/bench/system"
	"github.com/ridgekv/ridge/tests/bench/workload"
)

func main() {
	var r run
	flag.StringVar(&r.bin, "bin", "bin/bench", "where the benchmarks' binaries are")
	flag.StringVar(&r.ridge, "ridge", "bin/ridge", "the ridge binary")
	flag.StringVar(&r.history, "history", "tests/bench/history/smoke.jsonl", "the history")
	flag.BoolVar(&r.dry, "n", false, "compare only, add no line to the history")
	flag.Float64Var(&r.bounds.Ratio, "ratio", 0.35, "the part by which a ratio may fall")
	flag.Float64Var(&r.bounds.Allocs, "allocs", 0.03,
		"the part by which allocations may grow where goroutines meet by chance")
	flag.DurationVar(&r.measured, "measure", 2*time.Second, "time of one measurement")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	err := r.run(ctx)
	cancel()
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "smoke: FAILED:", err)
		os.Exit(1)
	}
}

type run struct {
	bin, ridge, history string
	dry                 bool
	bounds              smoke.Bounds
	measured            time.Duration

	dir  string
	line smoke.Line
}

// rounds is how often everything takes its turn.
const rounds = 2

// ratio is one of our rates in that of a raw piece, taken times.
type ratio struct {
	name, ours, raw string
	times           float64
}

// ratios are what is judged. Callers and ranges are the same on both sides where
// both have them. Three Badgers share the machine in the raw piece, which counts
// a third; the engine has it for itself.
var ratios = []ratio{
	{"engine commits / Badger", "engine/Commit/rows=500/callers=4", "Badger writes", 3},
	{"engine gets, no cache / Badger", "engine/Get/nocache/hit", "Badger reads", 1},
	{"puts at 256 / Dragonboat proposals", "put at 256", "Dragonboat proposals, single", 1},
	{"gets at 256 / gRPC echo", "get at 256", "gRPC stream echo", 1},
}

// benchKeys is the size of the data set of the engine's benchmarks.
const benchKeys = 300_000

func (r *run) run(ctx context.Context) (err error) {
	if r.dir, err = os.MkdirTemp("", "ridge-smoke-"); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(r.dir)) }()
	was, err := smoke.Last(r.history)
	if err != nil {
		return err
	}
	r.line = smoke.Line{
		Date: time.Now().UTC(), Commit: report.Commit(), Machine: report.ThisMachine(),
		Allocs: map[string]int64{}, Bytes: map[string]int64{},
		Ratios: map[string]float64{}, Rates: map[string]float64{},
	}
	for range rounds {
		if err := errors.Join(r.rooms(ctx), r.pieces(ctx)); err != nil {
			return err
		}
	}
	if err := r.cluster(ctx); err != nil {
		return err
	}
	for _, v := range ratios {
		ours, raw := r.line.Rates[v.ours], r.line.Rates[v.raw]
		if ours == 0 || raw == 0 {
			return fmt.Errorf("%s: %s gave %.0f, %s %.0f", v.name, v.ours, ours, v.raw, raw)
		}
		r.line.Ratios[v.name] = ours / (raw * v.times)
	}
	worse := r.tell(was)
	if !r.dry {
		err = r.line.Append(r.history)
	}
	return errors.Join(worse, err)
}

// rate notes a rate; the mean of the rounds counts.
func (r *run) rate(name string, v float64) { r.line.Rates[name] += v / rounds }

func (r *run) rooms(ctx context.Context) error {
	for _, room := range smoke.Rooms {
		seen, err := room.Run(ctx, r.bin)
		if err != nil {
			return err
		}
		for _, s := range seen {
			least(r.line.Allocs, s.Name, s.Allocs)
			least(r.line.Bytes, s.Name, s.Bytes)
			v := s.Rows
			if v == 0 {
				v = 1e9 / s.NsPerOp
			}
			r.rate(s.Name, v)
		}
	}
	return nil
}

// least keeps the smaller one: what comes on top came by chance.
func least(m map[string]int64, name string, v int64) {
	if old, known := m[name]; !known || v < old {
		m[name] = v
	}
}

// pieces measures the raw pieces that ratios need.
func (r *run) pieces(ctx context.Context) error {
	for _, p := range ceiling.Pieces(workload.NewRows(benchKeys)) {
		if !slices.ContainsFunc(ratios, func(v ratio) bool { return v.raw == p.Name }) {
			continue
		}
		v, err := p.Measure(ctx, r.dir, r.measured)
		if err != nil {
			return err
		}
		r.rate(p.Name, v)
	}
	return nil
}

// cluster measures single operations on three stores, in turns.
func (r *run) cluster(ctx context.Context) (err error) {
	const keys, ranges, callers = 50_000, 16, 256
	rows := workload.NewRows(keys)
	binary, err := filepath.Abs(r.ridge)
	if err != nil {
		return err
	}
	ridge := &system.Ridge{Binary: binary, Splits: rows.Splits(ranges)}
	defer func() { err = errors.Join(err, ridge.Close()) }()
	if err := ridge.Start(ctx, r.dir); err != nil {
		return err
	}
	conn, err := ridge.Open(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, conn.Close()) }()
	if err := conn.Load(ctx, rows.All(0, rows.Len())); err != nil {
		return err
	}
	shape := workload.Shape{Callers: callers, Warm: r.measured / 2, Measured: r.measured}
	for range rounds {
		for _, w := range []struct {
			name string
			workload.Workload
		}{{"put", workload.Put{Rows: rows}}, {"get", workload.Get{Rows: rows}}} {
			v := workload.Drive(ctx, w, conn, shape, func() time.Duration { return 0 })
			all := v.All()
			if n := v.Failed(); n > 0 || all.TotalCount() == 0 {
				return fmt.Errorf("%s: %d operations, %d failed: %v", w.name, all.TotalCount(), n,
					v.Errors)
			}
			name := fmt.Sprintf("%s at %d", w.name, callers)
			r.rate(name, float64(all.TotalCount())/v.Elapsed.Seconds())
			r.rate(name+", p99 ms", float64(all.ValueAtQuantile(99))/1000)
		}
	}
	return nil
}

// tell prints the run beside the one before; the error names what became worse.
func (r *run) tell(was *smoke.Line) error {
	if was != nil {
		fmt.Printf("compared with %s of %s\n", was.Commit, was.Date.Format(time.DateTime))
		if was.Machine != r.line.Machine {
			fmt.Printf("which ran on another machine (%s): judge the ratios with care\n", was.Machine)
		}
	}
	var worse []error
	t := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "FIGURE\tWAS\tIS\t")
	for _, c := range smoke.Compare(was, r.line, smoke.IsExact, r.bounds) {
		before, mark := "-", ""
		if c.Known {
			before = fmt.Sprintf("%.4g", c.Was)
		}
		if c.Worse {
			mark = "WORSE: " + c.Judgment
			worse = append(worse, fmt.Errorf("%s: %.4g, was %.4g", c.Name, c.Is, c.Was))
		}
		fmt.Fprintf(t, "%s\t%s\t%.4g\t%s\n", c.Name, before, c.Is, mark)
	}
	for _, v := range ratios {
		fmt.Fprintf(t, "%s\t\t%.0f/s\t\n%s\t\t%.0f/s\t\n", v.ours, r.line.Rates[v.ours],
			v.raw, r.line.Rates[v.raw])
	}
	return errors.Join(t.Flush(), errors.Join(worse...))
}
