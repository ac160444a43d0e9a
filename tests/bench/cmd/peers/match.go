package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/ridgekv/ridge/tests/bench/report"
	"github.com/ridgekv/ridge/tests/bench/system"
	"github.com/ridgekv/ridge/tests/bench/workload"
)

// match is a run: phases one after the other, in each the systems in turns.
type match struct {
	o      options
	dir    string
	rows   *workload.Rows
	blocks [][]event
	report report.Report
}

// event is one workload with its callers.
type event struct {
	name    string
	callers int
}

// contestant is a system of a phase, and what was seen of it.
type contestant struct {
	name   string
	system system.System
	failed error
	points map[event]*tally
}

// tally gathers the rounds of a point.
type tally struct {
	sum    workload.Result
	rounds []report.Round
}

func newMatch(o options, dir string) (*match, error) {
	m := &match{o: o, dir: dir, rows: workload.NewRows(o.keys)}
	m.report = report.Report{
		Date: time.Now(), Commit: report.Commit(), Command: strings.Join(os.Args, " "),
		Machine: report.ThisMachine(), Settings: o.settings(),
	}
	if os.Getenv("QUICK") != "" {
		m.report.Command = "QUICK=1 " + m.report.Command
	}
	callers, err := numbers(o.callers)
	if err != nil {
		return nil, err
	}
	if m.blocks, err = m.blocksOf(callers); err != nil {
		return nil, err
	}
	for i := range strings.Split(o.phases, ";") {
		if _, err := m.contestants(i); err != nil {
			return nil, err
		}
	}
	return m, nil
}

// How many callers the other workloads have.
const ycsbCallers, batchCallers = 256, 16

// blocksOf groups what is run in one turn: puts, gets, YCSB, batches.
func (m *match) blocksOf(callers []int) ([][]event, error) {
	var out [][]event
	var ycsb, batches []event
	for name := range strings.SplitSeq(m.o.workloads, ",") {
		name = strings.TrimSpace(name)
		if _, err := m.workload(name); err != nil {
			return nil, err
		}
		switch name {
		case "put", "get":
			var block []event
			for _, n := range callers {
				block = append(block, event{name, n})
			}
			out = append(out, block)
		case "bulkwrite", "batchget":
			batches = append(batches, event{name, batchCallers})
		default:
			ycsb = append(ycsb, event{name, ycsbCallers})
		}
	}
	out = append(out, ycsb, batches)
	return slices.DeleteFunc(out, func(b []event) bool { return len(b) == 0 }), nil
}

// rowless is Ridge without its row cache: batches show how far the way to Badger
// and back is. It runs nothing else.
const rowless = "ridge-rowless"

// has reports whether a system can do what a workload needs.
func has(conn system.Conn, name string) bool {
	switch c := conn.Caller(0); name {
	case "bulkwrite", "batchget":
		_, ok := c.(system.Batcher)
		return ok
	case "e":
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		_, err := c.Scan(ctx, "a", "b", 1)
		return !errors.Is(err, system.ErrUnsupported)
	}
	return true
}

// contestants makes the systems of a phase, not started.
func (m *match) contestants(phase int) ([]*contestant, error) {
	var out []*contestant
	for spec := range strings.SplitSeq(strings.Split(m.o.phases, ";")[phase], ",") {
		spec = strings.TrimSpace(spec)
		c := &contestant{name: spec, points: map[event]*tally{}}
		switch spec {
		case "etcd":
			c.system = &system.Etcd{Binary: m.o.peer("etcdnode")}
		case "nats":
			c.system = &system.NATS{Binary: m.o.peer("natsnode")}
		case rowless:
			c.system = &system.Ridge{
				Binary: absolute(m.o.ridge), Splits: m.rows.Splits(16),
				StoreFlags: append(strings.Fields(m.o.storeFlags), "--storage-row-cache-size", "off"),
			}
		default:
			name, binary, other := strings.Cut(spec, "=")
			kind, ranges, counted := strings.Cut(name, "@")
			n := 16
			if counted {
				var err error
				if n, err = strconv.Atoi(ranges); err != nil || n < 1 {
					return nil, fmt.Errorf("%q is no number of ranges", ranges)
				}
			}
			if !other && kind != "ridge" {
				return nil, fmt.Errorf("no system %q", spec)
			}
			c.name = name
			c.system = &system.Ridge{
				Binary: absolute(cmp.Or(binary, m.o.ridge)), Splits: m.rows.Splits(n),
				StoreFlags: strings.Fields(m.o.storeFlags),
			}
		}
		out = append(out, c)
	}
	return out, nil
}

func (m *match) run(ctx context.Context) {
	m.ceilings(ctx)
	defer m.ceilings(ctx)
	for phase := range strings.Split(m.o.phases, ";") {
		all, err := m.contestants(phase)
		if err != nil {
			m.fail("phase", err)
			continue
		}
		m.phase(ctx, phase+1, all)
	}
}

func (m *match) fail(name string, err error) {
	m.report.Failures = append(m.report.Failures, name+": "+err.Error())
	progress("%s FAILED: %v", name, err)
}

func progress(format string, args ...any) {
	fmt.Fprintf(os.Stderr, time.Now().Format(time.TimeOnly)+" "+format+"\n", args...)
}

// phase starts and loads the systems one after the other, lets them take turns
// block by block, A B C A B C, and ends them.
func (m *match) phase(ctx context.Context, phase int, all []*contestant) {
	defer func() {
		for _, c := range all {
			if err := c.system.Close(); err != nil {
				m.fail(c.name, err)
			}
			_ = os.RemoveAll(m.directory(c, phase))
			m.collect(phase, c)
		}
	}()
	for _, c := range all {
		m.attempt(c, "start", m.start(ctx, phase, c))
	}
	for round := range m.o.rounds {
		for _, block := range m.blocks {
			for _, c := range all {
				if c.failed == nil && slices.ContainsFunc(block, func(e event) bool {
					return m.runs(c, e)
				}) {
					m.attempt(c, fmt.Sprintf("round %d", round+1), m.turn(ctx, c, block))
				}
			}
			if isBatches(block) && slices.ContainsFunc(all, func(c *contestant) bool {
				return m.runs(c, block[0])
			}) {
				m.badgers(ctx)
			}
		}
	}
}

// attempt notes the first failure of a system: the run goes on with the rest.
func (m *match) attempt(c *contestant, what string, err error) {
	if err != nil && c.failed == nil {
		c.failed = err
		m.fail(c.name+", "+what, err)
		system.Suspend(c.system)
	}
}

func (m *match) directory(c *contestant, phase int) string {
	return filepath.Join(m.dir, fmt.Sprintf("%d-%s", phase, c.name))
}

func (m *match) start(ctx context.Context, phase int, c *contestant) error {
	dir := m.directory(c, phase)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	progress("%s: starting", c.name)
	if err := c.system.Start(ctx, dir); err != nil {
		return err
	}
	conn, err := c.system.Open(ctx)
	if err != nil {
		return err
	}
	began := time.Now()
	const chunk = 50_000
	for i := 0; i < m.rows.Len() && err == nil; i += chunk {
		err = conn.Load(ctx, m.rows.All(i, min(i+chunk, m.rows.Len())))
	}
	if err = errors.Join(err, conn.Close()); err != nil {
		return fmt.Errorf("load: %w", err)
	}
	took := time.Since(began)
	progress("%s: %d rows in %.1fs: %.0f/s", c.name, m.rows.Len(), took.Seconds(),
		float64(m.rows.Len())/took.Seconds())
	m.suspend(c)
	return nil
}

// suspend stops a system and has the kernel write out what it left, so that the
// next one does not pay for it.
func (m *match) suspend(c *contestant) {
	system.Suspend(c.system)
	unix.Sync()
}

// probes is how many keys are tried, over all of the keyspace, until a
// continued system serves.
const probes = 200

// turn lets one system run a block.
func (m *match) turn(ctx context.Context, c *contestant, block []event) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	began := time.Now()
	conn, err := system.Resume(ctx, c.system, m.rows.Spread(probes), m.o.steady)
	if err != nil {
		return err
	}
	progress("%-10s serves again after %.1fs", c.name, time.Since(began).Seconds())
	defer m.suspend(c)
	if slices.ContainsFunc(block, func(e event) bool { return m.runs(c, e) && e.readsRows() }) {
		if err := m.readAll(ctx, c, conn); err != nil {
			return errors.Join(err, conn.Close())
		}
	}
	for _, e := range block {
		if !m.runs(c, e) || !has(conn, e.name) {
			continue
		}
		if err := m.point(ctx, c, conn, e); err != nil {
			return errors.Join(fmt.Errorf("%s at %d: %w", e.name, e.callers, err), conn.Close())
		}
	}
	return conn.Close()
}

// readAll reads every row once, as the system's own caches see it: a system that
// reads as much as its callers do has long since read what it is asked for.
func (m *match) readAll(ctx context.Context, c *contestant, conn system.Conn) error {
	const callers = 256
	began := time.Now()
	var next atomic.Int64
	all, ctx := errgroup.WithContext(ctx)
	for n := range callers {
		all.Go(func() error {
			caller := conn.Caller(n)
			for i := int(next.Add(1)) - 1; i < m.rows.Len(); i = int(next.Add(1)) - 1 {
				if _, err := caller.Get(ctx, m.rows.Key(i)); err != nil {
					return fmt.Errorf("read all rows: %w", err)
				}
			}
			return nil
		})
	}
	err := all.Wait()
	progress("%-10s read all rows in %.1fs", c.name, time.Since(began).Seconds())
	return err
}

func (m *match) point(ctx context.Context, c *contestant, conn system.Conn, e event) error {
	w, err := m.workload(e.name)
	if err != nil {
		return err
	}
	shape := workload.Shape{Callers: e.callers, Warm: m.o.warm, Measured: m.o.measured}
	r := workload.Drive(ctx, w, conn, shape, c.cpu)
	if ctx.Err() != nil {
		return ctx.Err()
	}
	all := r.All()
	round := report.Round{
		OpsPerSec: float64(all.TotalCount()) / r.Elapsed.Seconds(),
		P99Millis: float64(all.ValueAtQuantile(99)) / 1000,
	}
	if ridge, ok := c.system.(*system.Ridge); ok {
		round.Leaders, _ = ridge.Leaders(ctx)
	}
	progress("%-10s %-4s %5d: %8.0f ops/s  p50 %7.2f  p99 %7.2f ms  CPU %6.1f + %5.1f us  %v %s",
		c.name, e.name, e.callers, round.OpsPerSec, float64(all.ValueAtQuantile(50))/1000,
		round.P99Millis, micros(r.ServerCPU, all), micros(r.ClientCPU, all), round.Leaders,
		firstError(r))
	t := c.points[e]
	if t == nil {
		t = &tally{sum: workload.Result{Kinds: map[string]*hdrhistogram.Histogram{}}}
		c.points[e] = t
	}
	t.add(r, round)
	if failed := r.Failed(); failed*100 > all.TotalCount() {
		return fmt.Errorf("%d of %d operations failed: %s", failed, failed+all.TotalCount(),
			firstError(r))
	}
	return nil
}

func (m *match) workload(name string) (workload.Workload, error) {
	switch name {
	case "put":
		return workload.Put{Rows: m.rows}, nil
	case "get":
		return workload.Get{Rows: m.rows}, nil
	case "bulkwrite":
		return workload.BulkWrite{Rows: m.rows}, nil
	case "batchget":
		return workload.BatchGet{Rows: m.rows}, nil
	}
	return workload.NewYCSB(name, m.o.distribution, m.rows)
}

func (c *contestant) cpu() (sum time.Duration) {
	for _, p := range c.system.Processes() {
		sum += workload.ProcessCPU(p.PID())
	}
	return sum
}

func firstError(r workload.Result) string {
	for _, text := range slices.Sorted(maps.Keys(r.Errors)) {
		return fmt.Sprintf("(%d errors, one is: %s)", r.Failed(), text)
	}
	return ""
}

func micros(d time.Duration, h *hdrhistogram.Histogram) float64 {
	return float64(d.Microseconds()) / float64(max(h.TotalCount(), 1))
}

func (t *tally) add(r workload.Result, round report.Round) {
	for kind, h := range r.Kinds {
		if t.sum.Kinds[kind] == nil {
			t.sum.Kinds[kind] = h
		} else {
			t.sum.Kinds[kind].Merge(h)
		}
	}
	if t.sum.Errors == nil {
		t.sum.Errors = map[string]int64{}
	}
	for text, n := range r.Errors {
		t.sum.Errors[text] += n
	}
	t.sum.Elapsed += r.Elapsed
	t.sum.ServerCPU += r.ServerCPU
	t.sum.ClientCPU += r.ClientCPU
	t.rounds = append(t.rounds, round)
}

// collect puts a system's points into the report, in the order they were run.
func (m *match) collect(phase int, c *contestant) {
	for _, block := range m.blocks {
		for _, e := range block {
			t := c.points[e]
			if t == nil {
				continue
			}
			all := t.sum.All()
			p := report.Point{
				Phase: phase, System: c.name, Workload: e.name, Callers: e.callers,
				Rounds: t.rounds, All: latency(all), Errors: t.sum.Errors,
				OpsPerSec:       float64(all.TotalCount()) / t.sum.Elapsed.Seconds(),
				ServerCPUMicros: micros(t.sum.ServerCPU, all),
				ClientCPUMicros: micros(t.sum.ClientCPU, all),
				Kinds:           map[string]report.Latency{},
			}
			for kind, h := range t.sum.Kinds {
				p.Kinds[kind] = latency(h)
			}
			m.report.Points = append(m.report.Points, p)
		}
	}
}

func latency(h *hdrhistogram.Histogram) report.Latency {
	at := func(q float64) float64 { return float64(h.ValueAtQuantile(q)) / 1000 }
	return report.Latency{
		Count: h.TotalCount(), P50: at(50), P95: at(95), P99: at(99), P999: at(99.9),
		Max: float64(h.Max()) / 1000,
	}
}
