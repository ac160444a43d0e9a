// Command peers compares Ridge with etcd and NATS JetStream on this machine, in
// one run, interleaved: see the README beside it.
package main

import (
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/ridgekv/ridge/tests/bench/report"
	"github.com/ridgekv/ridge/tests/bench/workload"
)

func main() {
	var o options
	o.flags(flag.CommandLine)
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, o)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "peers: FAILED:", err)
		os.Exit(1)
	}
}

// options are the command line.
type options struct {
	quick                       bool
	phases, workloads, callers  string
	keys, rounds                int
	warm, measured, steady, max time.Duration
	distribution                string
	bin, ridge, dir, out        string
	storeFlags                  string
	ceilings, badgers           bool
}

func (o *options) flags(f *flag.FlagSet) {
	f.BoolVar(&o.quick, "quick", os.Getenv("QUICK") != "",
		"a run of at most 8 minutes instead of 45 (default: QUICK is set)")
	f.StringVar(&o.phases, "systems", "",
		"what is interleaved: ridge, ridge@RANGES, ridge-rowless, NAME[@RANGES]=RIDGE_BINARY, "+
			"etcd, nats, separated by commas; phases by semicolons")
	f.StringVar(&o.workloads, "workloads", "put,get,a,b,e,bulkwrite,batchget",
		"put, get, YCSB a, b, e, and batches of 512 rows")
	f.StringVar(&o.callers, "callers", "64,256,1000",
		"callers of put and get; YCSB has 256, batches 16")
	f.IntVar(&o.keys, "keys", 0, "rows loaded (default: 1,000,000; quick: 200,000)")
	f.IntVar(&o.rounds, "rounds", 2, "turns of every system")
	f.DurationVar(&o.warm, "warm", 0, "time before a measurement (default: 2s; quick: 1s)")
	f.DurationVar(&o.measured, "measure", 0, "time of a measurement (default: 8s; quick: 3s)")
	f.DurationVar(&o.steady, "steady", 0,
		"how long a system must serve after it was continued (default: 2s; quick: 1s)")
	f.DurationVar(&o.max, "max", 0, "time of the whole run (default: 45m; quick: 8m)")
	f.StringVar(&o.distribution, "distribution", "uniform", "go-ycsb's requestdistribution")
	f.StringVar(&o.bin, "bin", "bin/bench", "where etcdnode and natsnode are")
	f.StringVar(&o.ridge, "ridge", "bin/ridge", "the ridge binary")
	f.StringVar(&o.storeFlags, "store-flags", "", "more flags for Ridge's stores")
	f.StringVar(&o.dir, "dir", "", "where the data goes (default: a temporary directory)")
	f.StringVar(&o.out, "out", "tests/bench/results", "where the report goes")
	f.BoolVar(&o.ceilings, "ceilings", true, "measure the raw pieces too")
	f.BoolVar(&o.badgers, "badgers", false, "without ceilings: measure raw Badger beside batches")
}

// setDefaults fills what depends on quick.
func (o *options) setDefaults() {
	full, quick := options{
		keys: 1_000_000, warm: 2 * time.Second, measured: 8 * time.Second,
		steady: 2 * time.Second, max: 45 * time.Minute,
		phases: "ridge,etcd,nats;ridge@2,ridge@100,etcd;ridge-rowless",
	}, options{
		keys: 200_000, warm: time.Second, measured: 3 * time.Second,
		steady: time.Second, max: 8 * time.Minute, phases: "ridge,etcd,nats;ridge-rowless",
	}
	d := full
	if o.quick {
		d = quick
	}
	if o.keys == 0 {
		o.keys = d.keys
	}
	if o.phases == "" {
		o.phases = d.phases
	}
	for _, v := range []struct{ at, value *time.Duration }{
		{&o.warm, &d.warm}, {&o.measured, &d.measured}, {&o.steady, &d.steady}, {&o.max, &d.max},
	} {
		if *v.at == 0 {
			*v.at = *v.value
		}
	}
}

func run(ctx context.Context, o options) (err error) {
	o.setDefaults()
	ctx, cancel := context.WithTimeout(ctx, o.max)
	defer cancel()
	parent := o.dir
	if parent != "" {
		if err := os.MkdirAll(parent, 0o755); err != nil {
			return err
		}
	}
	dir, err := os.MkdirTemp(parent, "ridge-peers-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	m, err := newMatch(o, dir)
	if err != nil {
		return err
	}
	m.run(ctx)
	path, err := m.report.Write(o.out)
	fmt.Print(m.report.Markdown())
	fmt.Fprintln(os.Stderr, "written to", path+".{md,json}")
	if err == nil && len(m.report.Failures) > 0 {
		err = errors.New(strings.Join(m.report.Failures, "; "))
	}
	return err
}

// settings is what a reader must know.
func (o options) settings() []string {
	etcd := report.Version(o.peer("etcdnode"), "go.etcd.io/etcd/server/v3")
	nats := report.Version(o.peer("natsnode"), "github.com/nats-io/nats-server/v2")
	ycsb := report.Version(absolute(os.Args[0]), "github.com/pingcap/go-ycsb")
	return []string{
		fmt.Sprintf("%d rows of 23 + %d bytes, keys %s; closed loops; %d rounds of %s after %s "+
			"to warm up; systems not under test are stopped (SIGSTOP), so caches stay warm, and "+
			"before get and YCSB each reads all rows once",
			o.keys, workload.ValueBytes, o.distribution, o.rounds, o.measured, o.warm),
		"client and servers share the machine; loopback; 3 replicas everywhere",
		"Ridge as shipped (Raft log fsynced), 1 GB a store, 16 ranges unless the name says " +
			"otherwise, 1 client; ridge-rowless has its row cache off and runs batches only",
		"etcd " + etcd + ", defaults (fsync on), quota 8 GiB, 12 client connections over all " +
			"members, linearizable reads",
		"NATS " + nats + ", JetStream KV R3, file storage, defaults (no fsync for each write), " +
			"12 connections over all servers; its reads are not linearizable",
		"YCSB: go-ycsb " + ycsb + " core, one field stored as it is, scans of 1 to 100 rows " +
			"(uniform); bulkwrite and batchget: 512 rows a call, rows are counted",
		"more flags for Ridge's stores: " + cmp.Or(o.storeFlags, "none"),
	}
}

// numbers parses a list such as 64,256.
func numbers(list string) ([]int, error) {
	var out []int
	for part := range strings.SplitSeq(list, ",") {
		n, err := strconv.Atoi(strings.TrimSpace(part))
		if err != nil || n < 1 {
			return nil, fmt.Errorf("%q is no number of callers", part)
		}
		out = append(out, n)
	}
	return out, nil
}

// peer is the binary of a peer's member.
func (o options) peer(name string) string { return absolute(filepath.Join(o.bin, name)) }

func absolute(path string) string {
	if abs, err := filepath.Abs(path); err == nil {
		return abs
	}
	return path
}
