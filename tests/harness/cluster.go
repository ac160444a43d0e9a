// Package harness runs clusters of real ridge processes on loopback and hurts
// them. It is the only place of the tests that waits by the clock.
package harness

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/ridgekv/ridge/client"
	"github.com/ridgekv/ridge/client/pdclient"
	"github.com/ridgekv/ridge/client/storeclient"
)

// Options describe a cluster. Zero fields are defaults.
type Options struct {
	// Dir holds everything. Required by Start; New uses a directory of the test.
	Dir string
	// Binary is the ridge binary. Default: see Binary.
	Binary string
	// PDs and Stores are how many processes there are. Default 1 and 3.
	PDs, Stores int
	// Replicas, SplitSize, StoreDownAfter and Retention are PD's settings.
	// Default: 3, PD's, PD's, PD's.
	Replicas       int
	SplitSize      string
	StoreDownAfter time.Duration
	Retention      time.Duration
	// Capacity and Memory are the stores' settings. Default: all, 256MB.
	Capacity, Memory string
	// Labels are those of the first stores, one text per store: "zone=a,rack=1".
	Labels []string
	// PDFlags and StoreFlags are added to the command lines.
	PDFlags, StoreFlags []string
	// Unready skips waiting until the cluster serves.
	Unready bool
}

// Cluster is a running cluster.
type Cluster struct {
	Dir    string
	PDs    []*Process
	Stores []*Process

	o     Options
	left  []*Process
	mu    sync.Mutex // guards Stores while AddStore appends
	pd    *pdclient.Client
	pool  *storeclient.Pool
	close []func() error
}

// Start starts a cluster and waits until every range has its replicas. Close
// it, also after an error.
func Start(ctx context.Context, o Options) (*Cluster, error) {
	c := &Cluster{Dir: o.Dir}
	o.PDs, o.Replicas = max(o.PDs, 1), max(o.Replicas, 3)
	if o.Stores == 0 {
		o.Stores = 3
	}
	if o.Memory == "" {
		o.Memory = "256MB"
	}
	if o.Binary == "" {
		binary, err := Binary()
		if err != nil {
			return c, err
		}
		o.Binary = binary
	}
	c.o = o
	if err := c.startPDs(ctx); err != nil {
		return c, err
	}
	var err error
	if c.pd, err = pdclient.Open(ctx, pdclient.Options{Addresses: c.PDAddresses()}); err != nil {
		return c, err
	}
	c.pool = storeclient.New(storeclient.Options{})
	// All at once: whoever comes first bears the first range.
	for i := range o.Stores {
		var flags []string
		if i < len(o.Labels) {
			flags = []string{"--labels", o.Labels[i]}
		}
		if _, err := c.startStore(flags...); err != nil {
			return c, err
		}
	}
	for _, p := range c.Stores {
		if err := p.AwaitReady(ctx); err != nil {
			return c, err
		}
	}
	if o.Unready {
		return c, nil
	}
	return c, c.AwaitReplicated(ctx)
}

func (c *Cluster) startPDs(ctx context.Context) error {
	var members []string
	for i := range c.o.PDs {
		p, err := c.newProcess(fmt.Sprintf("pd-%d", i+1))
		if err != nil {
			return err
		}
		members = append(members, fmt.Sprintf("%d=%s/%s", i+1, p.GRPC, p.Raft))
		c.PDs = append(c.PDs, p)
	}
	for i, p := range c.PDs {
		p.args = c.pdArgs(p, "--member-id", strconv.Itoa(i+1), "--members", strings.Join(members, ","))
		if err := p.Start(); err != nil {
			return err
		}
	}
	for _, p := range c.PDs {
		if err := p.AwaitReady(ctx); err != nil {
			return err
		}
	}
	return nil
}

// pdArgs is the command line of a PD node; which says how it becomes one.
func (c *Cluster) pdArgs(p *Process, which ...string) []string {
	args := append([]string{
		"pd", "--dir", p.Dir, "--listen", p.GRPC, "--raft-listen", p.Raft, "--http-listen", p.HTTP,
		"--replicas", strconv.Itoa(c.o.Replicas),
	}, which...)
	if c.o.SplitSize != "" {
		args = append(args, "--split-size", c.o.SplitSize)
	}
	if c.o.StoreDownAfter != 0 {
		args = append(args, "--store-down-after", c.o.StoreDownAfter.String())
	}
	if c.o.Retention != 0 {
		args = append(args, "--retention", c.o.Retention.String())
	}
	return append(args, c.o.PDFlags...)
}

// JoinPD starts one more PD node, which joins the others, and waits until it has
// its vote.
func (c *Cluster) JoinPD(ctx context.Context) (*Process, error) {
	p, err := c.newProcess(fmt.Sprintf("pd-%d", len(c.PDs)+len(c.left)+1))
	if err != nil {
		return nil, err
	}
	p.args = c.pdArgs(p, "--join", strings.Join(c.PDAddresses(), ","))
	c.PDs = append(c.PDs, p)
	if err := p.Start(); err != nil {
		return p, err
	}
	return p, p.AwaitReady(ctx)
}

// LeavePD forgets a PD node: commands and new clients are not given its address.
// It still ends with the cluster.
func (c *Cluster) LeavePD(p *Process) {
	c.PDs = slices.DeleteFunc(c.PDs, func(o *Process) bool { return o == p })
	c.left = append(c.left, p)
}

func (c *Cluster) newProcess(name string) (*Process, error) {
	p := &Process{
		Name: name, Dir: filepath.Join(c.Dir, name), Log: filepath.Join(c.Dir, name+".log"),
		binary: c.o.Binary,
	}
	var err error
	for _, address := range []*string{&p.GRPC, &p.Raft, &p.HTTP} {
		if *address, err = FreeAddress(); err != nil {
			return nil, err
		}
	}
	return p, nil
}

// AddStore starts one more store, with flags of its own, and waits until it
// serves.
func (c *Cluster) AddStore(ctx context.Context, flags ...string) (*Process, error) {
	p, err := c.startStore(flags...)
	if err != nil {
		return p, err
	}
	return p, p.AwaitReady(ctx)
}

func (c *Cluster) startStore(flags ...string) (*Process, error) {
	c.mu.Lock()
	p, err := c.newProcess(fmt.Sprintf("store-%d", len(c.Stores)+1))
	if err != nil {
		c.mu.Unlock()
		return nil, err
	}
	p.args = []string{
		"store", "--dir", p.Dir, "--pd", strings.Join(c.PDAddresses(), ","),
		"--listen", p.GRPC, "--raft-listen", p.Raft, "--http-listen", p.HTTP,
		"--memory", c.o.Memory,
	}
	if c.o.Capacity != "" {
		p.args = append(p.args, "--capacity", c.o.Capacity)
	}
	p.args = append(append(p.args, c.o.StoreFlags...), flags...)
	c.Stores = append(c.Stores, p)
	c.mu.Unlock()
	return p, p.Start()
}

// PDAddresses are the gRPC addresses of the PD nodes.
func (c *Cluster) PDAddresses() []string {
	var out []string
	for _, p := range c.PDs {
		out = append(out, p.GRPC)
	}
	return out
}

// PD is a client of the placement driver that lives as long as the cluster.
func (c *Cluster) PD() *pdclient.Client { return c.pd }

// Open returns a new smart client. It is closed with the cluster.
func (c *Cluster) Open(ctx context.Context) (*client.Client, error) {
	kv, err := client.Open(ctx, client.Options{PD: c.PDAddresses()})
	if err == nil {
		c.mu.Lock()
		c.close = append(c.close, kv.Close)
		c.mu.Unlock()
	}
	return kv, err
}

// Ridge runs an admin command against the cluster.
func (c *Cluster) Ridge(ctx context.Context, in string, args ...string) (Result, error) {
	return Command(ctx, c.o.Binary, in, append(args, "--pd", strings.Join(c.PDAddresses(), ","))...)
}

// Processes lists all processes, PD first.
func (c *Cluster) Processes() []*Process {
	c.mu.Lock()
	defer c.mu.Unlock()
	return append(append([]*Process{}, c.PDs...), c.Stores...)
}

// RestartAll kills every process at once and starts all again.
func (c *Cluster) RestartAll(ctx context.Context) error {
	for _, p := range c.Processes() {
		p.Kill()
	}
	for _, p := range c.Processes() {
		if err := p.Start(); err != nil {
			return err
		}
	}
	for _, p := range c.Processes() {
		if err := p.AwaitReady(ctx); err != nil {
			return err
		}
	}
	return nil
}

// Close ends everything, stores first. Processes are killed: a test that cares
// how they stop stops them itself.
func (c *Cluster) Close() error {
	c.mu.Lock()
	closers := c.close
	c.close = nil
	c.mu.Unlock()
	var faults []error
	for _, f := range closers {
		faults = append(faults, f())
	}
	if c.pool != nil {
		faults = append(faults, c.pool.Close())
	}
	if c.pd != nil {
		faults = append(faults, c.pd.Close())
	}
	all := append(c.Processes(), c.left...)
	for i := len(all) - 1; i >= 0; i-- {
		all[i].Resume()
		all[i].Kill()
		all[i].wg.Wait()
	}
	return errors.Join(faults...)
}

// KeepLogs copies the logs of all processes to a directory that stays, and
// returns it.
func (c *Cluster) KeepLogs(name string) (string, error) {
	dir := os.Getenv("RIDGE_KEEP")
	if dir == "" {
		dir = filepath.Join(os.TempDir(), "ridge-failed")
	}
	dir = filepath.Join(dir, strings.ReplaceAll(name, "/", "_"))
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", err
	}
	var faults []error
	for _, p := range c.Processes() {
		faults = append(faults,
			os.WriteFile(filepath.Join(dir, p.Name+".log"), []byte(p.Output()), 0o644))
	}
	return dir, errors.Join(faults...)
}
