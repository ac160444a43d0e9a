package command

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/ridgekv/ridge/storenode"
	"github.com/ridgekv/ridge/tools/ridge/internal/config"
	"github.com/ridgekv/ridge/tools/ridge/internal/serve"
	"github.com/ridgekv/ridge/tools/ridge/internal/telemetry"
)

func newStore() *cobra.Command {
	schema := config.Store()
	cmd := &cobra.Command{
		Use:   "store",
		Short: "Run a store, or look after the stores of a cluster",
		Long: `Run a store: one process with one directory. It registers at PD, which gives it an
id; the first store ever bears the first range. "ridge store list" lists all.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			v, err := load(cmd, schema)
			if err != nil {
				return err
			}
			return runStore(cmd, v)
		},
	}
	schema.AddFlags(cmd.Flags())
	cmd.AddCommand(newStoreList(), newStoreDrain(), newStoreResume(), newStoreDecommission(),
		newStoreForget(), newStoreSafeToRestart())
	return cmd
}

func runStore(cmd *cobra.Command, v config.Values) error {
	files := tlsFiles(v)
	if err := secured(v, files, "listen", "raft.listen", "http.listen"); err != nil {
		return err
	}
	registry := telemetry.NewRegistry(Version)
	logger := newLogger(cmd, v)
	options := storeOptions(v)
	options.Logger, options.Registerer = logger, registry
	if files.Given() {
		options.TLS = &storenode.TLSFiles{CA: files.CA, Cert: files.Cert, Key: files.Key}
	}
	server, err := storenode.New(options)
	if err != nil {
		return usageError{err}
	}
	release, err := serve.Lock(options.Dir, "store")
	if err != nil {
		return err
	}
	defer release()
	if err := serve.Probe("raft", "--raft-listen", v.String("raft.listen")); err != nil {
		return err
	}
	grpcListener, err := serve.Listen("grpc", "--listen", v.String("listen"))
	if err != nil {
		return err
	}
	defer grpcListener.Close()
	httpListener, err := serve.Listen("http", "--http-listen", v.String("http.listen"))
	if err != nil {
		return err
	}
	defer httpListener.Close()
	setMemory(v.Int("memory"))
	setProcessors()
	fmt.Fprintf(cmd.OutOrStdout(), "store: grpc %s, raft %s, http %s, data in %s\n",
		grpcListener.Addr(), options.RaftListenAddress, httpListener.Addr(), options.Dir)
	p := process{
		members: []member{{
			name: "store", node: server, listener: grpcListener, registry: registry,
			readiness: server.Readiness,
		}},
		tls: files, logger: logger, registry: registry, http: httpListener,
		insecure: v.Bool("insecure"),
		announce: func(context.Context) error {
			return printReady(cmd.OutOrStdout(), fmt.Sprintf("store %d", server.StoreID()))
		},
	}
	return p.run(cmd.Context())
}

func storeOptions(v config.Values) storenode.Options {
	return storenode.Options{
		Dir: v.String("storage.data_path"), PD: v.Strings("pd"),
		GRPCAddress:       advertised(v, "advertise", v.String("listen")),
		RaftListenAddress: v.String("raft.listen"),
		RaftAddress:       advertised(v, "raft.advertise", v.String("raft.listen")),
		Labels:            v.Labels("labels"), Version: Version, Insecure: v.Bool("insecure"),
		CapacityBytes: uint64(v.Int("storage.capacity")), MemoryBytes: v.Int("memory"),
		SyncWrites: v.Bool("storage.sync_writes"), Engine: engineOptions(v),
		LogKind: v.String("storage.raft_log"),
		Tick:    v.Duration("raft.tick"), DrainTimeout: v.Duration("drain_timeout"),
	}
}

func engineOptions(v config.Values) storenode.EngineOptions {
	return storenode.EngineOptions{
		MemTableSizeBytes:   v.Int("storage.memtable_size"),
		NumMemtables:        int(v.Int("storage.num_memtables")),
		BlockCacheSizeBytes: v.Int("storage.block_cache_size"),
		RowCacheSizeBytes:   v.Int("storage.row_cache_size"),
		IndexCacheSizeBytes: v.Int("storage.index_cache_size"),
		NumLevelZeroTables:  int(v.Int("storage.num_level_zero_tables")),
		LevelSizeMultiplier: int(v.Int("storage.level_size_multiplier")),
		NumCompactors:       int(v.Int("storage.num_compactors")),
		Compression:         v.String("storage.compression"),
	}
}
