package storenode

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/ridgekv/ridge/storenode/internal/engine"
)

// Options are the knobs of one store. The zero value of every optional field
// is its default.
type Options struct {
	// Dir holds everything of the store: <Dir>/engine (data) and <Dir>/log
	// (Raft log). Required. Both are one store: never copy or restore one
	// without the other.
	Dir string
	// PD lists gRPC addresses of PD nodes. Required; one is enough to find the
	// others, but only the listed ones are tried at start.
	PD []string
	// GRPCAddress is where clients and other stores reach this store's gRPC
	// server (host:port). Required. The caller listens; the store only tells
	// it to PD.
	GRPCAddress string
	// RaftListenAddress is where the Raft transport listens. Required.
	RaftListenAddress string
	// RaftAddress is how other stores reach RaftListenAddress. Default: the
	// listen address. Must not be a wildcard.
	RaftAddress string
	// Labels describe where the store stands (zone, rack, ...) for placement.
	Labels map[string]string
	// Version is the version of the binary, shown by PD.
	Version string

	// TLS secures Raft, PD and store traffic (mutual). Default: none.
	TLS *TLSFiles
	// Insecure permits a Raft listener beyond loopback without TLS. Whoever
	// reaches that port can then crash the store or write into its logs.
	Insecure bool

	// CapacityBytes bounds what the store may use of its disk. Default: the
	// whole disk. Growing writes are refused near it, and the store stops
	// cleanly at it.
	CapacityBytes uint64
	// MemoryBytes is the budget of the process; Budget says how it is divided.
	// Default 1 GiB. Below 256 MiB it is refused. The Go memory limit
	// is set by the caller.
	MemoryBytes int64
	// SyncWrites makes every engine commit wait for the disk. Default false:
	// the Raft log is synced anyway and replays what the engine lost.
	SyncWrites bool
	// Engine overrides single engine settings. Zero fields follow from
	// MemoryBytes.
	Engine EngineOptions

	// Tick is Raft's clock. Default 500 ms. Fewer ticks cost less of a core where
	// there are many ranges. Elections do not wait for it: they are called on demand.
	Tick time.Duration
	// LogKind is the format of the Raft log: "ridge-log", one log and one fsync
	// for all ranges, or "sharded-pebble", Dragonboat's own. Frozen by the first
	// start on a directory. Default: what the directory was made with; for a
	// new one "ridge-log".
	LogKind string
	// ExecShards are the workers that step Raft, LogShards the instances of
	// Pebble (1 for "ridge-log"). Frozen and by default as LogKind; for a new
	// directory: raft's.
	ExecShards, LogShards int

	// HeartbeatInterval is how often the store reports to PD. Default 1 s. Keep
	// it below a third of PD's StoreDownAfter, or a slow tick looks like death.
	HeartbeatInterval time.Duration
	// RangeHeartbeatInterval is how often unchanged ranges are reported.
	// Default 10 s. Changes are reported at once.
	RangeHeartbeatInterval time.Duration
	// PingInterval is how often other stores are pinged. Default 100 ms.
	PingInterval time.Duration
	// SilenceAfter is how long a store may be silent before it is suspected.
	// Default 500 ms. A wrong suspicion is harmless but costs elections.
	SilenceAfter time.Duration
	// DrainTimeout bounds handing leaders away and finishing calls in flight
	// when the store stops. Default 5 s.
	DrainTimeout time.Duration

	// Logger receives one line per change of state. Default: discarded.
	Logger *slog.Logger
	// Registerer receives the metrics. Default: none.
	Registerer prometheus.Registerer
}

// TLSFiles name PEM files. Every member of the cluster trusts the same CA and
// shows a certificate of it.
type TLSFiles struct {
	CA, Cert, Key string
}

// EngineOptions override what follows from the memory budget.
type EngineOptions struct {
	// MemTableSizeBytes is the size of one memtable. Default: 64 MiB from
	// 4 GiB of memory on, else 32 MiB, the least that is accepted. Tables are
	// larger, and fewer, from 64 MiB on.
	MemTableSizeBytes int64
	// NumMemtables is how many memtables may wait. Default: what a fifth of the
	// memory holds, 1 to 5. Fewer means that writes wait sooner for the disk.
	NumMemtables int
	// BlockCacheSizeBytes is the read cache. Default: what the other parts of the
	// memory budget leave.
	BlockCacheSizeBytes int64
	// RowCacheSizeBytes is the cache of rows that answers point reads. Default:
	// a tenth of the memory budget, a 32nd below 512 MiB. Negative: none.
	RowCacheSizeBytes int64
	// IndexCacheSizeBytes is unused without encryption. Default: the engine's.
	IndexCacheSizeBytes int64
	// NumLevelZeroTables is where compaction of level 0 begins. Default 5.
	NumLevelZeroTables int
	// LevelSizeMultiplier is the growth from level to level. Default 10.
	LevelSizeMultiplier int
	// NumCompactors run compactions. Default 3, or 2 below 1 GiB; at least 2.
	NumCompactors int
	// Compression of tables: "snappy", "zstd" or "none". Default snappy.
	Compression string
	// FlushInterval is how often commits are brought to the disk. Default 1 s.
	FlushInterval time.Duration
	// DiskInterval is how often the disk is looked at. Default: the engine's,
	// 1 s. What is written in between must fit above the last watermark.
	DiskInterval time.Duration
}

const (
	defaultMemoryBytes = 1 << 30
	minMemoryBytes     = 256 << 20
)

// withDefaults returns o with every zero field filled in.
func (o Options) withDefaults() Options {
	setDefault(&o.RaftAddress, o.RaftListenAddress)
	setDefault(&o.MemoryBytes, defaultMemoryBytes)
	setDefault(&o.Tick, 500*time.Millisecond)
	setDefault(&o.HeartbeatInterval, time.Second)
	setDefault(&o.RangeHeartbeatInterval, 10*time.Second)
	setDefault(&o.PingInterval, 100*time.Millisecond)
	setDefault(&o.SilenceAfter, 500*time.Millisecond)
	setDefault(&o.DrainTimeout, 5*time.Second)
	setDefault(&o.Logger, slog.New(slog.DiscardHandler))
	o = o.divided()
	setDefault(&o.Engine.BlockCacheSizeBytes, o.Budget().BlockCache)
	setDefault(&o.Engine.FlushInterval, time.Second)
	return o
}

func setDefault[T comparable](p *T, v T) {
	var zero T
	if *p == zero {
		*p = v
	}
}

func (o Options) engineOptions() engine.Options {
	dirs, tables := o.directories(), o.Engine.tableShape()
	return engine.Options{
		Dir: dirs.engine, Logger: o.Logger, Registerer: o.Registerer,
		CapacityBytes: o.CapacityBytes, CapacityDirs: []string{dirs.log},
		FlushInterval: o.Engine.FlushInterval, DiskInterval: o.Engine.DiskInterval,
		MemTableSizeBytes:   o.Engine.MemTableSizeBytes,
		NumMemtables:        o.Engine.NumMemtables,
		BlockCacheSizeBytes: o.Engine.BlockCacheSizeBytes,
		RowCacheSizeBytes:   o.Engine.RowCacheSizeBytes,
		IndexCacheSizeBytes: o.Engine.IndexCacheSizeBytes, SyncWrites: o.SyncWrites,
		NumLevelZeroTables:  o.Engine.NumLevelZeroTables,
		LevelSizeMultiplier: o.Engine.LevelSizeMultiplier,
		NumCompactors:       o.Engine.NumCompactors, Compression: o.Engine.Compression,
		TableSizeBytes: tables.sizeBytes, TableSizeMultiplier: tables.multiplier,
	}
}

// Validate reports every fault of o, joined.
func (o Options) Validate() error {
	o = o.withDefaults()
	var faults []error
	fault := func(format string, args ...any) {
		faults = append(faults, fmt.Errorf(format, args...))
	}
	if o.Dir == "" {
		fault("dir: missing")
	}
	if len(o.PD) == 0 {
		fault("pd: at least one address is needed")
	}
	for _, a := range append([]string{o.GRPCAddress}, o.PD...) {
		if err := checkReachable(a); err != nil {
			fault("grpc address %q: %w", a, err)
		}
	}
	if err := checkReachable(o.RaftAddress); err != nil {
		fault("raft address %q: %w", o.RaftAddress, err)
	}
	if o.TLS == nil && !o.Insecure && !loopback(o.RaftListenAddress) {
		fault("raft listen address %q is beyond loopback: set TLS, or Insecure to accept that "+
			"whoever reaches the port can crash the store", o.RaftListenAddress)
	}
	if t := o.TLS; t != nil && (t.CA == "" || t.Cert == "" || t.Key == "") {
		fault("tls: ca, cert and key belong together")
	}
	if o.MemoryBytes < minMemoryBytes {
		fault("memory %d: the least is %d", o.MemoryBytes, minMemoryBytes)
	} else if b := o.Budget(); b.All() > o.MemoryBytes {
		fault("memory of %d MiB is less than its parts: %s", o.MemoryBytes>>20, b)
	}
	if o.SilenceAfter < 2*o.PingInterval {
		fault("silence after %v: less than two ping intervals of %v suspects healthy stores",
			o.SilenceAfter, o.PingInterval)
	}
	if o.HeartbeatInterval < 0 || o.RangeHeartbeatInterval < 0 || o.DrainTimeout < 0 || o.Tick < 0 {
		fault("intervals must not be negative")
	}
	return errors.Join(faults...)
}

// checkReachable refuses addresses that others cannot dial.
func checkReachable(address string) error {
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return fmt.Errorf("not host:port: %w", err)
	}
	if host == "" || net.ParseIP(host).IsUnspecified() {
		return errors.New("a wildcard cannot be dialled; name the host")
	}
	if port == "" || port == "0" {
		return errors.New("needs a port")
	}
	return nil
}

func loopback(address string) bool {
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return false
	}
	return host == "localhost" || net.ParseIP(host).IsLoopback()
}

// hostName is the name that Dragonboat puts into its directory path.
func hostName() (string, error) {
	name, err := os.Hostname()
	if err != nil {
		return "", fmt.Errorf("storenode: host name: %w", err)
	}
	return name, nil
}
