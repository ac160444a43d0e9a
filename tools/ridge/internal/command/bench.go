package command

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"runtime/pprof"
	"sync"
	"time"

	"github.com/dustin/go-humanize"
	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/ridgekv/ridge/client"
	"github.com/ridgekv/ridge/proto/keys"
	"github.com/ridgekv/ridge/tools/ridge/internal/bench"
)

func newBench() *cobra.Command {
	cmd := &cobra.Command{
		Use: "bench", Short: "Load a cluster and measure it", RunE: needSubcommand,
		Long: `Load a cluster and measure it.

  ridge bench load --keys 1000000 --presplit 16     fill in the keys, once
  ridge bench run --workload b --callers 256        as fast as 256 callers can
  ridge bench run --workload b --rate 20000         20,000 a second, whatever happens
  ridge bench clean                                 remove the keys

All keys begin with --prefix, so that other data is neither read nor written.`,
	}
	cmd.AddCommand(newBenchLoad(), newBenchRun(), newBenchClean())
	return cmd
}

// benchmark is what load and run have in common.
type benchmark struct {
	connection
	config   bench.Config
	presplit int
	wait     time.Duration
	progress string
	profile  string
	// failOnError makes a failed operation a failure of the command.
	failOnError bool
}

func (b *benchmark) addFlags(cmd *cobra.Command) {
	f, c := cmd.Flags(), &b.config
	f.StringVar(&c.Prefix, "prefix", "bench/", "every key begins with this")
	f.Int64Var(&c.Keys, "keys", 1_000_000, "number of keys")
	f.IntVar(&c.ValueSize, "value-size", 128, "size of a value, in bytes")
	f.Uint64Var(&c.Seed, "seed", 0, "draw the same again; 0 chooses one, which is printed")
	f.IntVar(&b.presplit, "presplit", 0, "first cut the keys into so many ranges and wait for leaders")
	f.DurationVar(&b.wait, "presplit-timeout", 2*time.Minute, "how long --presplit may take")
	f.StringVar(&b.progress, "progress", "auto",
		"a line a second on stderr (auto|always|never); auto is not with -o json and no terminal")
	f.StringVar(&b.profile, "cpu-profile", "",
		"write a CPU profile of this process, which is the client, to a file")
	_ = cmd.RegisterFlagCompletionFunc("progress",
		cobra.FixedCompletions([]string{"auto", "always", "never"}, cobra.ShellCompDirectiveNoFileComp))
}

func newBenchLoad() *cobra.Command {
	var b benchmark
	cmd := &cobra.Command{
		Use: "load", Short: "Fill in the keys that `ridge bench run` works on", Args: cobra.NoArgs,
		Long: `Fill in the keys that "ridge bench run" works on.

Batches are written by BulkWrite, several at a time; what was not applied is
written again. Keys that are there are overwritten.`,
	}
	b.addFlags(cmd)
	cmd.Flags().IntVar(&b.config.BatchSize, "batch-size", 2000, "keys of one batch")
	cmd.Flags().IntVar(&b.config.Callers, "callers", 4, "batches under way")
	b.config.Workload, b.config.Consistency = bench.LoadWorkload, "linearizable"
	b.config.ScanLength, b.config.Staleness, b.failOnError = 1, time.Second, true
	return b.add(cmd, func(cmd *cobra.Command, _ []string) error { return b.run(cmd) })
}

func newBenchRun() *cobra.Command {
	var b benchmark
	c := &b.config
	cmd := &cobra.Command{
		Use: "run", Short: "Run a workload and report throughput and latencies", Args: cobra.NoArgs,
		Long: `Run a workload and report throughput and latencies.

Workloads, with the distribution each uses unless told otherwise:
` + bench.Describe() + `
Without --rate the loop is closed: each caller does one operation after the
other. With --rate it is open: operations are due at fixed moments, callers take
them in order, and latency counts from the moment an operation was due. A
cluster that stalls then shows it; nothing is omitted because callers had to
wait. Choose enough callers for the rate: rate x latency, and some more.

Latencies are those of operations that succeeded. Failed operations are counted
by class; the exit code is 1 when none succeeded, or with --fail-on-error.`,
	}
	b.addFlags(cmd)
	f := cmd.Flags()
	f.StringVarP(&c.Workload, "workload", "w", "", "what to do: see above (required)")
	f.StringVar(&c.Distribution, "distribution", "",
		"which keys (uniform|zipfian|latest); default: the workload's own")
	f.IntVar(&c.Callers, "callers", 64, "operations under way at most")
	f.DurationVar(&c.Duration, "duration", 30*time.Second,
		"length of the measured window; 0 is without end")
	f.Int64Var(&c.Operations, "operations", 0,
		"end after so many measured operations; without --duration only then")
	f.DurationVar(&c.Warmup, "warmup", 2*time.Second, "time before the window, not measured")
	f.Float64Var(&c.Rate, "rate", 0, "operations a second in an open loop; 0 is a closed loop")
	f.StringVar(&c.Consistency, "consistency", "linearizable",
		"of reads (linearizable|stale|snapshot); snapshots are renewed every second")
	f.DurationVar(&c.Staleness, "staleness", 5*time.Second, "how old a stale read may be")
	f.IntVar(&c.ScanLength, "scan-length", 100, "rows of a scan")
	f.IntVar(&c.BatchSize, "batch-size", 64, "keys of a batch")
	f.Int64Var(&c.HotKeys, "hot-keys", 1, "number of keys of the workload hot")
	f.BoolVar(&b.failOnError, "fail-on-error", false, "exit code 1 when any operation failed")
	for flag, values := range map[string][]string{
		"workload": bench.Workloads(), "distribution": bench.Distributions(),
		"consistency": bench.Consistencies(),
	} {
		_ = cmd.RegisterFlagCompletionFunc(flag,
			cobra.FixedCompletions(values, cobra.ShellCompDirectiveNoFileComp))
	}
	return b.add(cmd, func(cmd *cobra.Command, _ []string) error {
		if c.Operations > 0 && !f.Changed("duration") {
			c.Duration = 0
		}
		return b.run(cmd)
	})
}

func newBenchClean() *cobra.Command {
	var c connection
	cmd := &cobra.Command{
		Use: "clean", Short: "Remove the keys of a benchmark", Args: cobra.NoArgs,
	}
	prefix := cmd.Flags().String("prefix", "bench/", "every key begins with this")
	return c.add(cmd, func(cmd *cobra.Command, _ []string) error {
		if *prefix == "" {
			return usagef("--prefix is empty: that would remove every key of the cluster")
		}
		kv, err := c.client(cmd.Context())
		if err != nil {
			return err
		}
		defer kv.Close()
		r, err := kv.DeleteRange(cmd.Context(), keys.Prefix([]byte(*prefix)))
		if err != nil {
			return err
		}
		if c.json() {
			return c.object(cmd.OutOrStdout(), map[string]any{"deleted_keys": r.Deleted})
		}
		_, err = fmt.Fprintf(cmd.OutOrStdout(), "removed %s keys\n", humanize.Comma(int64(r.Deleted)))
		return err
	})
}

// validate reports every fault of the flags at once.
func (b *benchmark) validate() error {
	var more []error
	if b.presplit < 0 || b.presplit > bench.MaxRanges {
		more = append(more, fmt.Errorf("--presplit %d: from 1 to %d; 0 leaves the ranges as they are",
			b.presplit, bench.MaxRanges))
	}
	if b.wait <= 0 {
		more = append(more, fmt.Errorf("--presplit-timeout %s: it must be above 0", b.wait))
	}
	if b.progress != "auto" && b.progress != "always" && b.progress != "never" {
		more = append(more, fmt.Errorf("--progress %q: choose auto, always or never", b.progress))
	}
	if err := errors.Join(append([]error{b.config.Validate()}, more...)...); err != nil {
		return usageError{err}
	}
	return nil
}

func (b *benchmark) run(cmd *cobra.Command) error {
	for b.config.Seed == 0 {
		b.config.Seed = uint64(rand.Uint32())
	}
	if err := b.validate(); err != nil {
		return err
	}
	ctx := cmd.Context()
	kv, err := b.client(ctx)
	if err != nil {
		return err
	}
	defer kv.Close()
	if err := b.prepare(cmd, kv); err != nil {
		return err
	}
	target, err := bench.NewCluster(ctx, kv, b.config)
	if err != nil {
		return err
	}
	l := loader{kv: kv, patience: time.Minute}
	target.Writes = l.write
	if b.config.Reads() {
		if err := target.Check(ctx); err != nil {
			return err
		}
	}
	var tell func(bench.Progress)
	if b.tells(cmd) {
		fmt.Fprintf(cmd.ErrOrStderr(), "workload %s, %s, seed %d\n",
			b.config.Workload, b.loop(), b.config.Seed)
		tell = func(p bench.Progress) { fmt.Fprintln(cmd.ErrOrStderr(), p) }
	}
	var wg sync.WaitGroup
	defer wg.Wait()
	fresh, cancel := context.WithCancel(ctx)
	defer cancel()
	wg.Go(func() { target.Run(fresh) })
	report, err := b.profiled(func() (*bench.Report, error) {
		return bench.Run(ctx, b.config, target, tell)
	})
	if err != nil {
		return err
	}
	if err := b.print(cmd, report); err != nil {
		return err
	}
	return b.verdict(report)
}

// profiled runs body, and writes a profile if that is wanted.
func (b *benchmark) profiled(body func() (*bench.Report, error)) (*bench.Report, error) {
	if b.profile == "" {
		return body()
	}
	f, err := os.Create(b.profile)
	if err != nil {
		return nil, fmt.Errorf("--cpu-profile: %w", err)
	}
	if err := pprof.StartCPUProfile(f); err != nil {
		return nil, errors.Join(fmt.Errorf("--cpu-profile: %w", err), f.Close())
	}
	report, err := body()
	pprof.StopCPUProfile()
	return report, errors.Join(err, f.Close())
}

// prepare splits, if that is wanted.
func (b *benchmark) prepare(cmd *cobra.Command, kv *client.Client) error {
	if b.presplit == 0 {
		return nil
	}
	ctx, cancel := context.WithTimeout(cmd.Context(), b.wait)
	defer cancel()
	spread, err := bench.Presplit(ctx, kv.PD(), b.config.Prefix, b.presplit)
	if err == nil {
		fmt.Fprintln(cmd.ErrOrStderr(), spread)
	}
	return err
}

// tells reports whether progress is printed.
func (b *benchmark) tells(cmd *cobra.Command) bool {
	if b.progress != "auto" {
		return b.progress == "always"
	}
	return !b.json() || isTerminal(cmd.ErrOrStderr())
}

func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}

// loop describes what is about to run.
func (b *benchmark) loop() string {
	if b.config.Rate > 0 {
		return fmt.Sprintf("%v operations a second, at most %d at once", b.config.Rate, b.config.Callers)
	}
	return fmt.Sprintf("%d callers", b.config.Callers)
}

// verdict is how the command ends.
func (b *benchmark) verdict(r *bench.Report) error {
	switch {
	case r.Interrupted:
		return fmt.Errorf("interrupted: the report is of the time until then")
	case r.Failed > 0 && r.Operations == 0:
		return fmt.Errorf("no operation succeeded, %s failed", humanize.Comma(r.Failed))
	case r.Failed > 0 && b.failOnError:
		return fmt.Errorf("%s operations failed", humanize.Comma(r.Failed))
	}
	return nil
}
