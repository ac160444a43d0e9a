package command

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/spf13/cobra"

	"github.com/ridgekv/ridge/client"
	"github.com/ridgekv/ridge/client/pdclient"
	"github.com/ridgekv/ridge/pd"
	"github.com/ridgekv/ridge/proto/keys"
	metapb "github.com/ridgekv/ridge/proto/ridge/meta/v1"
	"github.com/ridgekv/ridge/storenode"
	"github.com/ridgekv/ridge/tools/ridge/internal/config"
	"github.com/ridgekv/ridge/tools/ridge/internal/serve"
	"github.com/ridgekv/ridge/tools/ridge/internal/telemetry"
)

func newDev() *cobra.Command {
	schema := config.Dev()
	cmd := &cobra.Command{
		Use:   "dev",
		Short: "Run a whole cluster in one process, for development",
		Long: `Run PD and a number of stores in one process. They are what they are in production:
each store has its own ports, Raft log and engine, and they speak over loopback.
The data survives: the same command on the same directory goes on with it.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			v, err := load(cmd, schema)
			if err != nil {
				return err
			}
			return runDev(cmd, v)
		},
	}
	schema.AddFlags(cmd.Flags())
	return cmd
}

// devAddresses are where one member of the development cluster listens.
type devAddresses struct {
	GRPC string `json:"grpc"`
	Raft string `json:"raft"`
}

// devLayout is kept in the directory, so that a restart finds every member
// where the others expect it.
type devLayout struct {
	PD     devAddresses   `json:"pd"`
	HTTP   string         `json:"http"`
	Stores []devAddresses `json:"stores"`
}

const (
	devLayoutFile = "cluster.json"
	defaultPD     = "127.0.0.1:7400"
	// devDrain bounds what a store does before it stops. All stop at once, so none
	// has another one to hand its leaders to.
	devDrain = 300 * time.Millisecond
)

// cluster is a development cluster being put together.
type devCluster struct {
	v        config.Values
	dir      string
	layout   devLayout
	logger   *slog.Logger
	registry *prometheus.Registry
	members  []member
	close    []func()
}

func runDev(cmd *cobra.Command, v config.Values) error {
	if err := secured(v, serve.Files{}, "pd_listen", "http.listen"); err != nil {
		return err
	}
	d := devCluster{
		v: v, dir: v.String("dir"), logger: newLogger(cmd, v),
		registry: telemetry.NewRegistry(Version),
	}
	release, err := serve.Lock(d.dir, "dev")
	if err != nil {
		return err
	}
	defer release()
	defer func() {
		for _, c := range d.close {
			c()
		}
	}()
	if err := d.plan(); err != nil {
		return err
	}
	httpListener, err := d.listen("http", "--http-listen", d.layout.HTTP)
	if err != nil {
		return err
	}
	if err := d.addPD(); err != nil {
		return err
	}
	for i := range d.layout.Stores {
		if err := d.addStore(i); err != nil {
			return err
		}
	}
	setMemory(v.Int("memory")*int64(len(d.layout.Stores)) + 256<<20)
	setProcessors()
	out := cmd.OutOrStdout()
	fmt.Fprintf(out, "pd       grpc %s\n", d.layout.PD.GRPC)
	for i, s := range d.layout.Stores {
		fmt.Fprintf(out, "store-%d  grpc %s  raft %s\n", i+1, s.GRPC, s.Raft)
	}
	fmt.Fprintf(out, "metrics  http://%s/metrics\ndata     %s\n", d.layout.HTTP, d.dir)
	p := process{
		members: d.members, logger: d.logger, registry: d.registry, http: httpListener,
		insecure: v.Bool("insecure"),
		announce: func(ctx context.Context) error {
			if err := d.usable(ctx); err != nil {
				return err
			}
			return printReady(out, fmt.Sprintf("cluster with %d stores at --pd %s",
				len(d.layout.Stores), d.layout.PD.GRPC))
		},
	}
	return p.run(cmd.Context())
}

// plan reads the layout of the directory, or makes one, and extends it by
// stores that are new.
func (d *devCluster) plan() error {
	path := filepath.Join(d.dir, devLayoutFile)
	b, err := os.ReadFile(path)
	if err == nil {
		err = json.Unmarshal(b, &d.layout)
	} else if errors.Is(err, fs.ErrNotExist) {
		err = nil
	}
	if err != nil {
		return fmt.Errorf("read %s: %w", path, err)
	}
	count, base := int(d.v.Int("stores")), d.v.String("pd_listen")
	if base == "" {
		base = defaultPD
		if d.layout.PD.GRPC != "" {
			base = d.layout.PD.GRPC
		}
	}
	if len(d.layout.Stores) > count {
		return fmt.Errorf("%s holds %d stores: start it with --stores %d, or their data is missing",
			d.dir, len(d.layout.Stores), len(d.layout.Stores))
	}
	if d.layout.PD.GRPC != "" && d.layout.PD.GRPC != base {
		if err := d.movePD(base); err != nil {
			return err
		}
	}
	taken := map[string]bool{}
	for _, a := range append([]devAddresses{d.layout.PD}, d.layout.Stores...) {
		taken[a.GRPC], taken[a.Raft] = true, true
	}
	if d.layout.PD.GRPC == "" {
		d.layout.PD.GRPC = freeAddress(base, 0, taken)
		d.layout.PD.Raft = freeAddress(base, 1, taken)
	}
	switch {
	case d.v.Given("http.listen"):
		d.layout.HTTP = d.v.String("http.listen")
	case d.layout.HTTP == "":
		d.layout.HTTP = freeAddress(base, 2, taken)
	}
	for i := len(d.layout.Stores); i < count; i++ {
		d.layout.Stores = append(d.layout.Stores, devAddresses{
			GRPC: freeAddress(base, 100+10*i, taken), Raft: freeAddress(base, 101+10*i, taken),
		})
	}
	b, err = json.MarshalIndent(d.layout, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(path, append(b, '\n'), 0o600)
}

// movePD lets PD be reached elsewhere; its Raft address stays.
func (d *devCluster) movePD(address string) error {
	if _, port, err := net.SplitHostPort(address); err == nil && port == "0" {
		return nil // any port: the old one will do
	}
	d.layout.PD.GRPC = address
	return nil
}

// freeAddress chooses an address n ports above base, or any that is free.
func freeAddress(base string, n int, taken map[string]bool) string {
	host, _, err := net.SplitHostPort(base)
	if err != nil {
		host = "127.0.0.1"
	}
	wanted := shifted(base, n)
	for _, address := range []string{wanted, "", "", "", ""} {
		if n == 0 && wanted != "" {
			return wanted // the user's own choice is never replaced
		}
		if address == "" {
			address = net.JoinHostPort(host, "0")
		}
		l, err := net.Listen("tcp", address)
		if err != nil {
			continue
		}
		chosen := l.Addr().String()
		_ = l.Close()
		if !taken[chosen] {
			taken[chosen] = true
			return chosen
		}
	}
	return wanted
}

func (d *devCluster) listen(what, setting, address string) (net.Listener, error) {
	l, err := serve.Listen(what, setting, address)
	if err == nil {
		d.close = append(d.close, func() { _ = l.Close() })
	}
	return l, err
}

func (d *devCluster) addPD() error {
	registry := telemetry.ForProcess(d.registry, "pd")
	o := pd.Options{
		Dir: filepath.Join(d.dir, "pd"), MemberID: 1, Insecure: d.v.Bool("insecure"),
		Members: []pd.Member{{
			ID: 1, RaftAddress: d.layout.PD.Raft, GRPCAddress: d.layout.PD.GRPC,
		}},
		Replicas: int(d.v.Int("replicas")), SplitSizeBytes: uint64(d.v.Int("split_size")),
		StoreDownAfter: d.v.Duration("store_down_after"), Retention: d.v.Duration("retention"),
		Version: Version, Logger: d.logger.With("member", "pd"), Registerer: registry,
	}
	placement(&o, d.v)
	server, err := pd.New(o)
	if err != nil {
		return usageError{err}
	}
	err = d.add("pd", server, pdReadiness(server), "--pd-listen", d.layout.PD, registry)
	if err == nil {
		d.members[len(d.members)-1].last = true
	}
	return err
}

func (d *devCluster) addStore(i int) error {
	name := fmt.Sprintf("store-%d", i+1)
	registry := telemetry.ForProcess(d.registry, name)
	address := d.layout.Stores[i]
	server, err := storenode.New(storenode.Options{
		Dir: filepath.Join(d.dir, name), PD: []string{d.layout.PD.GRPC},
		GRPCAddress: address.GRPC, RaftListenAddress: address.Raft, Version: Version,
		Insecure: d.v.Bool("insecure"), CapacityBytes: uint64(d.v.Int("storage.capacity")),
		MemoryBytes: d.v.Int("memory"), SyncWrites: d.v.Bool("storage.sync_writes"),
		LogKind: d.v.String("storage.raft_log"), DrainTimeout: devDrain,
		Engine: engineOptions(d.v), Logger: d.logger.With("member", name), Registerer: registry,
	})
	if err != nil {
		return usageError{err}
	}
	return d.add(name, server, server.Readiness, "another --dir", address, registry)
}

func (d *devCluster) add(
	name string, n node, readiness func() error, setting string, at devAddresses,
	registry prometheus.Registerer,
) error {
	listener, err := d.listen(name+" grpc", setting, at.GRPC)
	if err != nil {
		return err
	}
	if err := serve.Probe(name+" raft", setting, at.Raft); err != nil {
		return err
	}
	d.members = append(d.members, member{
		name: name, node: n, readiness: readiness, listener: listener, registry: registry,
	})
	return nil
}

// usable waits until the cluster keeps its promises: it reads, and every range
// has its replicas, as many as the stores allow.
func (d *devCluster) usable(ctx context.Context) error {
	kv, err := client.Open(ctx, client.Options{PD: []string{d.layout.PD.GRPC}, Lazy: true})
	if err != nil {
		return err
	}
	defer kv.Close()
	voters := min(int(d.v.Int("replicas")), len(d.layout.Stores))
	voters -= 1 - voters%2 // they stay odd
	ticker := time.NewTicker(50 * time.Millisecond)
	defer ticker.Stop()
	for {
		_, _, err := kv.Get(ctx, []byte("ready?"))
		if err == nil && replicated(ctx, kv.PD(), voters) {
			return nil
		}
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
		}
	}
}

// replicated reports whether every range has as many voters.
func replicated(ctx context.Context, pd *pdclient.Client, voters int) bool {
	routes, err := allRoutes(ctx, pd, keys.All())
	for _, r := range routes {
		n := 0
		for _, p := range r.GetRange().GetReplicas() {
			if p.GetRole() == metapb.Role_ROLE_VOTER {
				n++
			}
		}
		if n < voters {
			return false
		}
	}
	return err == nil && len(routes) > 0
}
