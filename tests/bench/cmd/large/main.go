// Command large asks whether Ridge stays itself when the data is far larger than
// its caches: it loads tens of millions of rows with BulkWrite, reads them at
// random, beside raw Badger on the very files the store has written, restarts a
// store after a kill and a stop, and watches the memory of every store.
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
	"sync/atomic"
	"syscall"
	"time"

	"github.com/dustin/go-humanize"
	"golang.org/x/sys/unix"

	"github.com/ridgekv/ridge/client"
	"github.com/ridgekv/ridge/tests/bench/report"
	"github.com/ridgekv/ridge/tests/harness"
)

const (
	valueBytes = 128
	// loaders write batches of batchRows, getters read single rows.
	loaders, batchRows, getters = 8, 4000, 256
	ranges                      = 16
	memory, memoryBytes         = "1GB", 1 << 30
	// maxOpen is how soon a store must serve again, and maxFactor how far random
	// Gets may be from raw Badger on the same data.
	maxOpen, maxFactor = 10 * time.Second, 2.0
	// maxAnon is what a store may hold beside the pages of its files, which the
	// kernel takes back whenever it needs them.
	maxAnon = 1536 << 20
)

type run struct {
	keys, stores         int
	ridge, dir, lock     string
	warm, measured       time.Duration
	cluster              *harness.Cluster
	memory               watch
	loaded               time.Duration
	gets, batchGets, raw float64
	killed, stopped      time.Duration
	diskBytes            uint64
}

func main() {
	var r run
	flag.IntVar(&r.keys, "keys", 10_000_000, "rows")
	flag.IntVar(&r.stores, "stores", 3, "stores: 3 hold a replica each, 1 holds all")
	flag.StringVar(&r.ridge, "ridge", "bin/ridge", "the ridge binary")
	flag.StringVar(&r.dir, "dir", "", "where the data goes (default: a temporary directory)")
	flag.StringVar(&r.lock, "lock", "",
		"a file to lock (flock) while rates are measured, for machines that others measure on too")
	flag.DurationVar(&r.warm, "warm", 3*time.Second, "time before a measurement")
	flag.DurationVar(&r.measured, "measure", 10*time.Second, "time of a measurement")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := r.run(ctx)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "large: FAILED:", err)
		os.Exit(1)
	}
}

func progress(format string, args ...any) {
	fmt.Fprintf(os.Stderr, time.Now().Format(time.TimeOnly)+" "+format+"\n", args...)
}

func (r *run) run(ctx context.Context) (err error) {
	dir, err := os.MkdirTemp(r.dir, "ridge-large-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	binary, err := filepath.Abs(r.ridge)
	if err != nil {
		return err
	}
	r.cluster, err = harness.Start(ctx, harness.Options{
		Dir: dir, Binary: binary, Stores: r.stores, Memory: memory,
	})
	defer func() { err = errors.Join(err, r.cluster.Close()) }()
	if err != nil {
		return err
	}
	watched, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	wg.Go(func() { r.memory.run(watched, r.cluster.Stores) })
	defer wg.Wait()
	defer cancel()
	if err := r.split(ctx); err != nil {
		return err
	}
	if err := r.load(ctx); err != nil {
		return err
	}
	r.settle(ctx)
	unlock, err := r.turn()
	if err != nil {
		return err
	}
	defer unlock()
	if err := r.read(ctx); err != nil {
		return err
	}
	if err := r.reopen(ctx); err != nil {
		return err
	}
	return r.report()
}

// turn waits until nobody else measures.
func (r *run) turn() (unlock func(), err error) {
	if r.lock == "" {
		return func() {}, nil
	}
	f, err := os.OpenFile(r.lock, os.O_RDWR|os.O_CREATE, 0o644)
	if err != nil {
		return nil, err
	}
	progress("waiting for %s", r.lock)
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return func() { _ = f.Close() }, nil
}

// key is the key of the i-th row: rows lie next to each other by chance.
func key(i uint64) []byte {
	i *= 0x9E3779B97F4A7C15
	i ^= i >> 32
	i *= 0xD6E8FEB86659FD93
	return fmt.Appendf(make([]byte, 0, 24), "user%019d", i>>1)
}

// split makes equal ranges: keys are uniform.
func (r *run) split(ctx context.Context) error {
	for i := 1; i < ranges; i++ {
		at := fmt.Appendf(nil, "user%019d", uint64(i)*(1<<63/ranges))
		if err := r.cluster.Split(ctx, at); err != nil {
			return err
		}
	}
	return r.cluster.AwaitReplicated(ctx)
}

func (r *run) load(ctx context.Context) error {
	kv, err := r.cluster.Open(ctx)
	if err != nil {
		return err
	}
	began := time.Now()
	var next, done atomic.Uint64
	loading, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var wg sync.WaitGroup
	for range loaders {
		wg.Go(func() {
			for loading.Err() == nil {
				from := next.Add(batchRows) - batchRows
				if from >= uint64(r.keys) {
					return
				}
				n := min(batchRows, uint64(r.keys)-from)
				if err := write(loading, kv, from, n); err != nil {
					cancel(err)
					return
				}
				done.Add(n)
			}
		})
	}
	ended := make(chan struct{})
	wg.Go(func() { r.follow(loading, &done, began, ended) })
	for done.Load() < uint64(r.keys) && loading.Err() == nil {
		harness.Rest(loading, 100*time.Millisecond)
	}
	close(ended)
	wg.Wait()
	r.loaded = time.Since(began)
	return context.Cause(loading)
}

// write writes rows [from, from+n). A row's value can be told from its number.
func write(ctx context.Context, kv *client.Client, from, n uint64) error {
	random := rand.New(rand.NewPCG(1, from))
	values := make([]byte, n*valueBytes)
	for i := range values {
		values[i] = byte(random.Uint32())
	}
	batch := make([]client.Mutation, n)
	for i := range batch {
		at := i * valueBytes
		batch[i] = client.Mutation{
			Key: key(from + uint64(i)), Value: values[at : at+valueBytes : at+valueBytes],
		}
	}
	const patience = 2 * time.Minute
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	for {
		result, err := kv.BulkWrite(ctx, batch)
		if err == nil {
			return nil
		}
		if len(result.Unknown) == 0 && len(result.Pending) == 0 || ctx.Err() != nil {
			return err
		}
		// Writing a row a second time does no harm here.
		var rest []client.Mutation
		for _, i := range append(result.Pending, result.Unknown...) {
			rest = append(rest, batch[i])
		}
		batch = rest
	}
}

// follow reports every few seconds.
func (r *run) follow(
	ctx context.Context, done *atomic.Uint64, began time.Time, ended <-chan struct{},
) {
	const interval = 10 * time.Second
	t := time.NewTicker(interval)
	defer t.Stop()
	last := uint64(0)
	for {
		select {
		case <-ctx.Done():
			return
		case <-ended:
			return
		case <-t.C:
		}
		n := done.Load()
		progress("%s of %s rows, %s/s now, %s/s since the start, disk %s, %s",
			humanize.Comma(int64(n)), humanize.Comma(int64(r.keys)),
			humanize.Comma(int64(float64(n-last)/interval.Seconds())),
			humanize.Comma(int64(float64(n)/time.Since(began).Seconds())),
			humanize.IBytes(size(r.cluster.Dir)), r.memory.text())
		last = n
	}
}

// settle gives compaction time, until the files keep their size.
func (r *run) settle(ctx context.Context) {
	const step, most = 5 * time.Second, 2 * time.Minute
	before, same := size(r.cluster.Dir), 0
	for began := time.Now(); time.Since(began) < most && same < 2 && ctx.Err() == nil; {
		harness.Rest(ctx, step)
		now := size(r.cluster.Dir)
		if same++; now != before {
			same = 0
		}
		before = now
	}
	r.diskBytes = before
	progress("settled at %s of disk", humanize.IBytes(before))
}

// size is what the files in dir occupy.
func size(dir string) (sum uint64) {
	_ = filepath.WalkDir(dir, func(path string, e os.DirEntry, err error) error {
		var s unix.Stat_t
		if err == nil && e.Type().IsRegular() && unix.Stat(path, &s) == nil {
			sum += uint64(s.Blocks) * 512
		}
		return nil
	})
	return sum
}

// reopen kills one store and stops it: how soon does it serve again? Then raw
// Badger reads its files.
func (r *run) reopen(ctx context.Context) error {
	store := r.cluster.Stores[0]
	for _, v := range []struct {
		end  func() error
		took *time.Duration
	}{{func() error { store.Kill(); return nil }, &r.killed}, {store.Stop, &r.stopped}} {
		if err := v.end(); err != nil {
			return err
		}
		began := time.Now()
		if err := store.Start(); err != nil {
			return err
		}
		if err := store.AwaitReady(ctx); err != nil {
			return err
		}
		*v.took = time.Since(began)
		progress("serves again after %.1fs", v.took.Seconds())
	}
	for _, p := range r.cluster.Processes() {
		if err := p.Stop(); err != nil {
			return err
		}
	}
	var err error
	r.raw, err = r.rawGets(ctx, store.Dir)
	return err
}

// report prints what was seen, and fails when a goal is missed.
func (r *run) report() error {
	var missed []string
	goal := func(ok bool, name string) string {
		if ok {
			return "met"
		}
		missed = append(missed, name)
		return "MISSED"
	}
	factor := r.raw / r.gets
	text := &strings.Builder{}
	line := func(format string, args ...any) { fmt.Fprintf(text, format+"\n", args...) }
	line("# Large data, %s\n", time.Now().UTC().Format(time.RFC3339))
	line("- commit %s", report.Commit())
	line("- machine: %s", report.ThisMachine())
	line("- command: `%s`\n", strings.Join(os.Args, " "))
	line("| what | figure | goal | |\n| --- | --- | --- | --- |")
	line("| rows, stores | %s of 23 + %d bytes, %d | | |",
		humanize.Comma(int64(r.keys)), valueBytes, r.stores)
	line("| BulkWrite | %s rows/s | | |",
		humanize.Comma(int64(float64(r.keys)/r.loaded.Seconds())))
	line("| disk, all stores | %s | | |", humanize.IBytes(r.diskBytes))
	line("| random Get, %d callers | %s/s | | |", getters, humanize.Comma(int64(r.gets)))
	line("| random BatchGet of 512, 16 callers | %s rows/s | | |",
		humanize.Comma(int64(r.batchGets)))
	line("| raw Badger, the same files | %s/s | Get within %gx: %.2fx | %s |",
		humanize.Comma(int64(r.raw)), maxFactor, factor, goal(factor <= maxFactor, "random Get"))
	line("| serves after kill -9 | %.1f s | below %.0f s | %s |", r.killed.Seconds(),
		maxOpen.Seconds(), goal(r.killed < maxOpen, "open after a kill"))
	line("| serves after a stop | %.1f s | below %.0f s | %s |", r.stopped.Seconds(),
		maxOpen.Seconds(), goal(r.stopped < maxOpen, "open after a stop"))
	for i, m := range r.memory.peaks() {
		line("| peak memory of store %d, budget %s | %s, and pages of files: %s | below %s | %s |",
			i+1, memory, humanize.IBytes(m.anon), humanize.IBytes(m.file), humanize.IBytes(maxAnon),
			goal(m.anon < maxAnon, "memory"))
	}
	fmt.Print(text.String())
	if len(missed) > 0 {
		return errors.New("missed: " + strings.Join(missed, ", "))
	}
	return nil
}
