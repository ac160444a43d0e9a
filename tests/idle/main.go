// Command idle measures what a cluster costs when nothing happens: PD and three
// stores, 1,000 ranges with three replicas each, a minute of silence.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"text/tabwriter"
	"time"

	"github.com/dustin/go-humanize"

	"github.com/ridgekv/ridge/tests/harness"
)

// The limits of what is accepted.
const (
	maxCores    = 0.5
	maxRSSBytes = 2.5 * (1 << 30)
	// ticksPerSecond is USER_HZ, which Linux has fixed for all programs.
	ticksPerSecond = 100
)

func main() {
	var m measurement
	flag.StringVar(&m.binary, "ridge", "bin/ridge", "the ridge binary")
	flag.IntVar(&m.ranges, "ranges", 1000, "number of ranges")
	flag.DurationVar(&m.duration, "duration", time.Minute, "how long is measured")
	flag.DurationVar(&m.settle, "settle", 15*time.Second, "rest before it")
	flag.DurationVar(&m.tick, "tick", 0, "Raft's clock (default: as shipped)")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := m.run(ctx)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "idle: FAILED:", err)
		os.Exit(1)
	}
}

type measurement struct {
	binary           string
	ranges           int
	duration, settle time.Duration
	tick             time.Duration
}

// usage is what a process has used so far.
type usage struct {
	cpu time.Duration
	rss uint64
}

func (m measurement) run(ctx context.Context) (err error) {
	dir, err := os.MkdirTemp("", "ridge-idle-")
	if err != nil {
		return err
	}
	binary, err := filepath.Abs(m.binary)
	if err != nil {
		return err
	}
	options := harness.Options{Dir: dir, Binary: binary, Memory: "512MB"}
	if m.tick != 0 {
		options.StoreFlags = []string{"--raft-tick", m.tick.String()}
	}
	c, err := harness.Start(ctx, options)
	defer func() {
		if err != nil {
			if logs, keepErr := c.KeepLogs("idle"); keepErr == nil {
				fmt.Fprintln(os.Stderr, "idle: logs are kept in", logs)
			}
		}
		err = errors.Join(err, c.Close(), os.RemoveAll(dir))
	}()
	if err != nil {
		return err
	}
	if err := m.presplit(ctx, c); err != nil {
		return err
	}
	fmt.Printf("settling for %s, then measuring for %s\n", m.settle, m.duration)
	harness.Rest(ctx, m.settle)
	before, err := measure(c)
	if err != nil {
		return err
	}
	began := time.Now()
	harness.Rest(ctx, m.duration)
	if ctx.Err() != nil {
		return ctx.Err()
	}
	took := time.Since(began)
	after, err := measure(c)
	if err != nil {
		return err
	}
	return m.report(c, before, after, took)
}

// presplit makes the ranges, from the outside in, so that splits run in
// parallel in different ranges.
func (m measurement) presplit(ctx context.Context, c *harness.Cluster) error {
	began := time.Now()
	var failed atomic.Pointer[error]
	for level := 1; level < m.ranges && failed.Load() == nil; level *= 2 {
		var wg sync.WaitGroup
		slots := make(chan struct{}, 8)
		for i := range level {
			// The middle of the i-th of level equal parts.
			at := (2*i + 1) * m.ranges / (2 * level)
			if at <= 0 || at >= m.ranges {
				continue
			}
			slots <- struct{}{}
			wg.Go(func() {
				defer func() { <-slots }()
				if err := c.Split(ctx, splitKey(at)); err != nil {
					failed.Store(&err)
				}
			})
		}
		wg.Wait()
	}
	if err := failed.Load(); err != nil {
		return *err
	}
	for i := 1; i < m.ranges; i++ { // what rounding has left out
		if err := c.Split(ctx, splitKey(i)); err != nil {
			return err
		}
	}
	if err := c.AwaitReplicated(ctx); err != nil {
		return err
	}
	routes, err := c.Routes(ctx)
	if err != nil {
		return err
	}
	fmt.Printf("%d ranges x 3 replicas in %s\n", len(routes), time.Since(began).Round(time.Second))
	return nil
}

func splitKey(i int) []byte { return fmt.Appendf(nil, "idle/%06d", i) }

func (m measurement) report(c *harness.Cluster, before, after []usage, took time.Duration) error {
	t := tabwriter.NewWriter(os.Stdout, 0, 0, 3, ' ', 0)
	fmt.Fprintln(t, "PROCESS\tCPU (cores)\tRSS")
	var cores float64
	var rss uint64
	for i, p := range c.Processes() {
		one := (after[i].cpu - before[i].cpu).Seconds() / took.Seconds()
		cores += one
		rss += after[i].rss
		fmt.Fprintf(t, "%s\t%.3f\t%s\n", p.Name, one, humanize.IBytes(after[i].rss))
	}
	fmt.Fprintf(t, "all\t%.3f\t%s\n", cores, humanize.IBytes(rss))
	if err := t.Flush(); err != nil {
		return err
	}
	if cores > maxCores || float64(rss) > maxRSSBytes {
		return fmt.Errorf("over the limit of %.1f cores and %s", maxCores, humanize.IBytes(maxRSSBytes))
	}
	return nil
}

// measure reads the usage of every process from /proc.
func measure(c *harness.Cluster) ([]usage, error) {
	var out []usage
	for _, p := range c.Processes() {
		u, err := usageOf(p.PID())
		if err != nil {
			return nil, fmt.Errorf("%s: %w", p.Name, err)
		}
		out = append(out, u)
	}
	return out, nil
}

func usageOf(pid int) (usage, error) {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return usage{}, err
	}
	// The name may hold anything; the fields follow its last parenthesis.
	fields := strings.Fields(string(stat)[strings.LastIndexByte(string(stat), ')')+1:])
	const user, system, resident = 11, 12, 21
	if len(fields) <= resident {
		return usage{}, fmt.Errorf("/proc/%d/stat has %d fields", pid, len(fields))
	}
	var n [3]uint64
	for i, f := range []int{user, system, resident} {
		if n[i], err = strconv.ParseUint(fields[f], 10, 64); err != nil {
			return usage{}, err
		}
	}
	return usage{
		cpu: time.Duration(n[0]+n[1]) * (time.Second / ticksPerSecond),
		rss: n[2] * uint64(os.Getpagesize()),
	}, nil
}
