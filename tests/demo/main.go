// Command demo puts every line of the Go standard library's source into a
// cluster of separate processes, kills a store with SIGKILL while it loads,
// reads everything back and compares it byte for byte, brings the store back
// and waits until all replicas are equal.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"text/tabwriter"
	"time"

	"github.com/dustin/go-humanize"

	"github.com/ridgekv/ridge/client"
	"github.com/ridgekv/ridge/proto/keys"
	"github.com/ridgekv/ridge/tests/harness"
)

func main() {
	var d demo
	flag.StringVar(&d.binary, "ridge", "bin/ridge", "the ridge binary")
	flag.StringVar(&d.source, "source", "", "root of the Go library (default: GOROOT/src)")
	flag.StringVar(&d.splitSize, "split-size", "4MB", "size at which ranges are split")
	flag.IntVar(&d.minKeys, "min-keys", 500_000, "fewer keys than this are an error")
	flag.IntVar(&d.parallel, "parallel", 8, "batches in flight")
	flag.BoolVar(&d.keep, "keep", false, "keep the directory")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := d.run(ctx)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "demo: FAILED:", err)
		os.Exit(1)
	}
}

type demo struct {
	binary, source, splitSize string
	minKeys, parallel         int
	keep                      bool

	cluster *harness.Cluster
	kv      *client.Client
	rows    []row
	report  report
}

// report is the table at the end.
type report struct{ lines [][2]string }

func (r *report) add(what, format string, args ...any) {
	r.lines = append(r.lines, [2]string{what, fmt.Sprintf(format, args...)})
}

func (r *report) print() {
	t := tabwriter.NewWriter(os.Stdout, 0, 0, 3, ' ', 0)
	fmt.Fprintln(t)
	for _, l := range r.lines {
		fmt.Fprintf(t, "%s\t%s\n", l[0], l[1])
	}
	_ = t.Flush()
}

func say(format string, args ...any) {
	fmt.Printf("%s  %s\n", time.Now().Format(time.TimeOnly), fmt.Sprintf(format, args...))
}

func (d *demo) run(ctx context.Context) (err error) {
	if d.rows, err = readLibrary(ctx, d.source); err != nil {
		return err
	}
	if len(d.rows) < d.minKeys {
		return fmt.Errorf("the library has %d lines, at least %d are wanted", len(d.rows), d.minKeys)
	}
	size := sizeOf(d.rows)
	say("%s lines of Go's library, %s", humanize.Comma(int64(len(d.rows))), humanize.IBytes(size))
	d.report.add("keys", "%s (%s)", humanize.Comma(int64(len(d.rows))), humanize.IBytes(size))

	dir, err := os.MkdirTemp("", "ridge-demo-")
	if err != nil {
		return err
	}
	binary, err := filepath.Abs(d.binary)
	if err != nil {
		return err
	}
	say("one PD and three stores, as processes, in %s", dir)
	d.cluster, err = harness.Start(ctx, harness.Options{
		Dir: dir, Binary: binary, SplitSize: d.splitSize, Memory: "512MB",
	})
	defer func() {
		if err != nil {
			if logs, keepErr := d.cluster.KeepLogs("demo"); keepErr == nil {
				fmt.Fprintln(os.Stderr, "demo: logs are kept in", logs)
			}
		}
		err = errors.Join(err, d.cluster.Close())
		if !d.keep {
			err = errors.Join(err, os.RemoveAll(dir))
		}
	}()
	if err != nil {
		return err
	}
	if d.kv, err = d.cluster.Open(ctx); err != nil {
		return err
	}
	victim, err := d.load(ctx)
	if err != nil {
		return err
	}
	if err := errors.Join(d.scanBack(ctx), d.getBack(ctx)); err != nil {
		return err
	}
	if err := d.heal(ctx, victim); err != nil {
		return err
	}
	d.report.print()
	return nil
}

// load writes all rows and kills the store that leads the most when half of
// them are written.
func (d *demo) load(ctx context.Context) (victim *harness.Process, err error) {
	l := loader{kv: d.kv, rows: d.rows, parallel: d.parallel, half: make(chan struct{})}
	var killed sync.WaitGroup
	var killErr error
	loading, cancel := context.WithCancel(ctx)
	defer cancel()
	killed.Go(func() {
		select {
		case <-l.half:
			victim, killErr = d.kill(loading)
		case <-loading.Done():
		}
	})
	say("loading")
	began := time.Now()
	err = l.run(ctx)
	took := time.Since(began)
	cancel()
	killed.Wait()
	if err = errors.Join(err, killErr); err != nil {
		return nil, err
	}
	if victim == nil {
		return nil, errors.New("no store was killed")
	}
	d.report.add("load", "%s, %s rows/s, with a store killed by SIGKILL half way",
		took.Round(100*time.Millisecond), rate(len(d.rows), took))
	d.report.add("rows written again", "%s not applied, %s of unknown outcome",
		humanize.Comma(l.pending.Load()), humanize.Comma(l.unknown.Load()))
	d.report.add("longest batch", "%s (the outage, as a writer saw it)",
		time.Duration(l.longest.Load()).Round(time.Millisecond))
	return victim, d.showRanges(ctx)
}

// kill kills the store that leads the most ranges.
func (d *demo) kill(ctx context.Context) (*harness.Process, error) {
	routes, err := d.cluster.Routes(ctx)
	if err != nil {
		return nil, err
	}
	leads := map[uint64]int{}
	most := uint64(0)
	for _, r := range routes {
		id := r.GetLeader().GetStoreId()
		if leads[id]++; leads[id] > leads[most] {
			most = id
		}
	}
	p, err := d.cluster.StoreAt(ctx, most)
	if err != nil {
		return nil, err
	}
	pid := p.PID()
	p.Kill()
	say("half is loaded into %d ranges; kill -9 of %s (pid %d), which led %d of them",
		len(routes), p.Name, pid, leads[most])
	return p, nil
}

func (d *demo) showRanges(ctx context.Context) error {
	r, err := d.cluster.Ridge(ctx, "", "range", "list")
	if err != nil {
		return err
	}
	if r.Code != 0 {
		return fmt.Errorf("ridge range list: %s", r)
	}
	lines := strings.Split(strings.TrimSpace(r.Out), "\n")
	say("the library has become %d ranges:", len(lines)-1)
	for i, line := range lines {
		if i < 6 || i >= len(lines)-2 {
			fmt.Println("   ", line)
		} else if i == 6 {
			fmt.Println("    ...")
		}
	}
	d.report.add("ranges when loaded", "%d x 3 replicas, split at %s", len(lines)-1, d.splitSize)
	return nil
}

// scanBack reads everything in order and compares it with the files.
func (d *demo) scanBack(ctx context.Context) error {
	say("reading everything back with two stores, and comparing")
	began := time.Now()
	i := 0
	for got, err := range d.kv.Scan(ctx, keys.All()) {
		if err != nil {
			return fmt.Errorf("scan after %d rows: %w", i, err)
		}
		if i >= len(d.rows) {
			return fmt.Errorf("scan: a row too many: %q", got.Key)
		}
		if want := d.rows[i]; string(got.Key) != want.key || string(got.Value) != want.value {
			return fmt.Errorf("scan: row %d is %q = %q, want %q = %q", i, got.Key, got.Value, want.key,
				want.value)
		}
		i++
	}
	if i != len(d.rows) {
		return fmt.Errorf("scan: %d rows of %d", i, len(d.rows))
	}
	took := time.Since(began)
	d.report.add("scan of everything", "%s, %s rows/s, every byte equal",
		took.Round(100*time.Millisecond), rate(i, took))
	return nil
}

// getBack reads rows one by one, from many callers.
func (d *demo) getBack(ctx context.Context) error {
	const callers, each = 64, 1500
	began := time.Now()
	faults := make(chan error, callers)
	var wg sync.WaitGroup
	for c := range callers {
		wg.Go(func() {
			rnd := rand.New(rand.NewPCG(1, uint64(c)))
			for range each {
				want := d.rows[rnd.IntN(len(d.rows))]
				got, found, err := d.kv.Get(ctx, []byte(want.key))
				if err == nil && (!found || string(got.Value) != want.value) {
					err = fmt.Errorf("get %q: %q, want %q", want.key, got.Value, want.value)
				}
				if err != nil {
					faults <- err
					return
				}
			}
		})
	}
	wg.Wait()
	close(faults)
	if err := <-faults; err != nil {
		return err
	}
	took := time.Since(began)
	d.report.add("random gets", "%s linearizable reads, %s/s from %d callers",
		humanize.Comma(callers*each), rate(callers*each, took), callers)
	return nil
}

// heal brings the store back and compares all replicas.
func (d *demo) heal(ctx context.Context, victim *harness.Process) error {
	say("starting %s again and waiting until it caught up", victim.Name)
	began := time.Now()
	if err := victim.Start(); err != nil {
		return err
	}
	if err := victim.AwaitReady(ctx); err != nil {
		return err
	}
	seen, err := d.cluster.AwaitEqual(ctx, 5*time.Minute)
	if err != nil {
		return err
	}
	if seen.Keys != uint64(len(d.rows)) {
		return fmt.Errorf("the replicas hold %d keys, not %d", seen.Keys, len(d.rows))
	}
	d.report.add("caught up", "%s after its start; %d replicas of %d ranges have equal checksums",
		time.Since(began).Round(100*time.Millisecond), seen.Replicas, seen.Ranges)
	return nil
}

func rate(n int, took time.Duration) string {
	return humanize.Comma(int64(float64(n) / max(took.Seconds(), 1e-3)))
}
