package engine

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"github.com/dgraph-io/badger/v4"
	"github.com/dgraph-io/badger/v4/options"
	"github.com/prometheus/client_golang/prometheus"
)

// Options configure an engine. The zero value of a field is its default.
type Options struct {
	// Dir is the engine's own directory. It is created when missing.
	Dir string
	// Logger gets one line per change of state. Default: nothing is logged.
	Logger *slog.Logger
	// Registerer gets the metrics. Nil: no metrics are registered.
	Registerer prometheus.Registerer

	// CapacityBytes is how much disk the store may use. Default 0: the whole
	// disk. Below it the store goes through the disk states HIGH and FULL.
	CapacityBytes uint64
	// CapacityDirs are further directories that count against CapacityBytes,
	// such as that of the Raft log.
	CapacityDirs []string
	// FlushInterval is how often commits are made durable when nobody asks.
	// Default 1s. Longer means longer waits for those who ask.
	FlushInterval time.Duration

	// MemTableSizeBytes is the size of a memtable and of its log file.
	// Default 64 MiB, at least 32 MiB: 15 % of it must hold one log entry.
	// Never lower it after an unclean stop.
	MemTableSizeBytes int64
	// BlockCacheSizeBytes is the cache of decompressed blocks. Default 256 MiB.
	BlockCacheSizeBytes int64
	// RowCacheSizeBytes is the cache of rows that answers point reads before
	// Badger is asked. Default 64 MiB; negative: none.
	RowCacheSizeBytes int64
	// IndexCacheSizeBytes is unused without encryption. Default 0.
	IndexCacheSizeBytes int64
	// ValueThresholdBytes: values from this size on leave the LSM tree. Only
	// its default, 1 MiB, is accepted in this release.
	ValueThresholdBytes int64
	// NumMemtables is how many full memtables may wait. Default 5.
	NumMemtables int
	// NumLevelZeroTables is where compaction of L0 begins. Default 5.
	NumLevelZeroTables int
	// NumLevelZeroTablesStall is where Badger stops all writes. Default 20.
	NumLevelZeroTablesStall int
	// TableSizeBytes is the size of tables below L0, down to the first level that
	// is not empty; below that they grow by TableSizeMultiplier from level to
	// level. Defaults 8 MiB and 2. Larger tables are fewer, and take more memory
	// while they are made: see BuilderMemory.
	TableSizeBytes      int64
	TableSizeMultiplier int
	// LevelSizeMultiplier is the growth from level to level. Default 10.
	LevelSizeMultiplier int
	// NumCompactors run compactions. Default 3, at least 2.
	NumCompactors int
	// SyncWrites makes each commit durable before it is visible. Default
	// false: the Raft log is durable already and Law 3 makes replay exact.
	SyncWrites bool
	// DetectConflicts must be false: in managed mode it leaks memory.
	DetectConflicts bool
	// Compression of tables: "snappy" (default), "zstd" or "none".
	Compression string

	// CollectAfter is how long a slice stays on the garbage list before its
	// data is deleted. Default 2m. It must exceed the longest read.
	CollectAfter time.Duration
	// CollectRowsPerSecond bounds the deleting. Default 20000.
	CollectRowsPerSecond int
	// VerifyBytesPerSecond bounds the slow check of all tables against their
	// checksums. Default 8 MiB. Negative: no check.
	VerifyBytesPerSecond int64
	// DiskInterval is how often the disk is looked at. Default 1s.
	DiskInterval time.Duration
	// DiskHighFraction of the capacity must be available, or growing writes
	// are refused. Default 0.1, at most 20 GiB.
	DiskHighFraction float64
	// DiskFullFraction of the capacity must be available, or the store
	// stops before the disk does it. Default 0.03, at most 4 GiB.
	DiskFullFraction float64
	// GCInterval is how often the floor and the versions to keep are worked
	// out anew. Default 10s.
	GCInterval time.Duration

	// gcDistance is how far behind visible versions may be dropped; views
	// rely on it. Default 60s; only tests shorten it.
	gcDistance time.Duration
	// smallTables lifts the lower bound of MemTableSizeBytes; tests only.
	smallTables bool
}

const (
	minMemTableSizeBytes = 32 << 20
	maxMemTableSizeBytes = 1 << 30
	valueThresholdBytes  = 1 << 20
)

// Validate reports all faults of o, joined.
func (o Options) Validate() error {
	o = o.withDefaults()
	var faults []error
	refuse := func(bad bool, format string, args ...any) {
		if bad {
			faults = append(faults, fmt.Errorf("engine: "+format, args...))
		}
	}
	refuse(o.Dir == "", "a directory is needed")
	refuse(o.MemTableSizeBytes < minMemTableSizeBytes && !o.smallTables,
		"memtable_size %d is below 32 MiB: 15 %% of it must hold one log entry of 4 MiB",
		o.MemTableSizeBytes)
	refuse(o.MemTableSizeBytes > maxMemTableSizeBytes,
		"memtable_size %d is above 1 GiB: its log file is addressed with 32 bits",
		o.MemTableSizeBytes)
	refuse(o.ValueThresholdBytes != valueThresholdBytes && !o.smallTables,
		"value_threshold %d is not 1 MiB: smaller values would go to the value log, whose garbage"+
			" collection writes a key twice at one version", o.ValueThresholdBytes)
	refuse(o.DetectConflicts,
		"detect_conflicts is on: in managed mode it leaks memory and can end the process")
	refuse(o.NumCompactors < 2, "num_compactors %d is below 2: L0 would stay behind the rest",
		o.NumCompactors)
	refuse(o.NumMemtables < 1, "num_memtables %d is below 1", o.NumMemtables)
	refuse(o.NumLevelZeroTables < 1, "num_level_zero_tables %d is below 1", o.NumLevelZeroTables)
	refuse(o.NumLevelZeroTablesStall <= o.NumLevelZeroTables,
		"num_level_zero_tables_stall %d is not above num_level_zero_tables %d:"+
			" writes would stop before compaction begins",
		o.NumLevelZeroTablesStall, o.NumLevelZeroTables)
	refuse(o.TableSizeBytes < 1<<20, "table_size %d is below 1 MiB", o.TableSizeBytes)
	refuse(o.TableSizeMultiplier < 1, "table_size_multiplier %d is below 1", o.TableSizeMultiplier)
	refuse(o.LevelSizeMultiplier < 2, "level_size_multiplier %d is below 2", o.LevelSizeMultiplier)
	refuse(o.BlockCacheSizeBytes < 1<<20, "block_cache_size %d is below 1 MiB:"+
		" compressed tables cannot be read without it", o.BlockCacheSizeBytes)
	refuse(o.RowCacheSizeBytes >= 0 && o.RowCacheSizeBytes < 1<<20 && !o.smallTables,
		"row_cache_size %d is below 1 MiB: too small to help, turn it off", o.RowCacheSizeBytes)
	refuse(o.IndexCacheSizeBytes < 0, "index_cache_size %d is negative", o.IndexCacheSizeBytes)
	refuse(o.FlushInterval < 0 || o.CollectAfter < 0 || o.DiskInterval < 0 || o.GCInterval < 0,
		"an interval is negative")
	refuse(o.CollectRowsPerSecond < 0, "the collector's rate is negative")
	refuse(o.DiskFullFraction <= 0 || o.DiskFullFraction >= o.DiskHighFraction ||
		o.DiskHighFraction >= 1, "the disk fractions must be 0 < full (%g) < high (%g) < 1",
		o.DiskFullFraction, o.DiskHighFraction)
	if _, ok := compressions[o.Compression]; !ok {
		refuse(true, "compression %q is not one of snappy, zstd, none", o.Compression)
	}
	return errors.Join(faults...)
}

var compressions = map[string]options.CompressionType{
	"snappy": options.Snappy,
	"zstd":   options.ZSTD,
	"none":   options.None,
}

func (o Options) withDefaults() Options {
	orDefault(&o.Logger, slog.New(slog.DiscardHandler))
	orDefault(&o.FlushInterval, time.Second)
	orDefault(&o.MemTableSizeBytes, 64<<20)
	orDefault(&o.BlockCacheSizeBytes, 256<<20)
	orDefault(&o.RowCacheSizeBytes, 64<<20)
	orDefault(&o.ValueThresholdBytes, valueThresholdBytes)
	orDefault(&o.NumMemtables, 5)
	orDefault(&o.NumLevelZeroTables, 5)
	orDefault(&o.NumLevelZeroTablesStall, max(20, o.NumLevelZeroTables*2))
	orDefault(&o.TableSizeBytes, 8<<20)
	orDefault(&o.TableSizeMultiplier, 2)
	orDefault(&o.LevelSizeMultiplier, 10)
	orDefault(&o.NumCompactors, 3)
	orDefault(&o.Compression, "snappy")
	orDefault(&o.CollectAfter, 2*time.Minute)
	orDefault(&o.CollectRowsPerSecond, 20_000)
	orDefault(&o.VerifyBytesPerSecond, 8<<20)
	orDefault(&o.DiskInterval, time.Second)
	orDefault(&o.DiskHighFraction, 0.1)
	orDefault(&o.DiskFullFraction, 0.03)
	orDefault(&o.GCInterval, 10*time.Second)
	orDefault(&o.gcDistance, time.Minute)
	return o
}

func orDefault[T comparable](v *T, d T) {
	var zero T
	if *v == zero {
		*v = d
	}
}

// badger translates o, which must have its defaults.
func (o Options) badger() badger.Options {
	b := badger.DefaultOptions(o.Dir).
		WithLogger(badgerLogger{log: o.Logger}).
		WithMetricsEnabled(false).
		WithSyncWrites(o.SyncWrites).
		WithDetectConflicts(false).
		WithNumVersionsToKeep(1).
		WithMemTableSize(o.MemTableSizeBytes).
		WithNumMemtables(o.NumMemtables).
		WithNumLevelZeroTables(o.NumLevelZeroTables).
		WithNumLevelZeroTablesStall(o.NumLevelZeroTablesStall).
		WithBaseTableSize(o.TableSizeBytes).
		WithBaseLevelSize(256 << 20).
		WithLevelSizeMultiplier(o.LevelSizeMultiplier).
		WithNumCompactors(o.NumCompactors).
		WithCompactL0OnClose(false).
		WithValueThreshold(o.ValueThresholdBytes).
		WithValueLogFileSize(16 << 20).
		WithCompression(compressions[o.Compression]).
		WithBloomFalsePositive(0.01).
		WithBlockCacheSize(o.BlockCacheSizeBytes).
		WithIndexCacheSize(o.IndexCacheSizeBytes)
	b.TableSizeMultiplier = o.TableSizeMultiplier
	b.LmaxCompaction = o.NumCompactors > 2
	if o.smallTables {
		b = b.WithBaseTableSize(256 << 10).WithBaseLevelSize(1 << 20)
	}
	return b
}

// badgerLogger hands Badger's lines on. Its progress reports are of interest
// only when something is wrong, and to the pacer of compactions, unless it is nil.
type badgerLogger struct {
	log         *slog.Logger
	compactions *compactionPacer
}

func (l badgerLogger) Errorf(f string, a ...any)   { l.line(slog.LevelError, f, a) }
func (l badgerLogger) Warningf(f string, a ...any) { l.line(slog.LevelWarn, f, a) }
func (l badgerLogger) Infof(f string, a ...any)    { l.line(slog.LevelDebug, f, a) }

func (l badgerLogger) Debugf(f string, a ...any) {
	l.line(slog.LevelDebug, f, a)
	if l.compactions != nil {
		l.compactions.hear(f, a)
	}
}

func (l badgerLogger) line(level slog.Level, f string, a []any) {
	if ctx := context.Background(); l.log.Enabled(ctx, level) {
		l.log.Log(ctx, level, "badger: "+strings.TrimSpace(fmt.Sprintf(f, a...)))
	}
}

// MemTableMemory is the memory of a memtable of this size: Badger adds room for
// the largest transaction and for the nodes of its entries.
func MemTableMemory(sizeBytes int64) int64 {
	const largest = 15 // per cent, twice
	return sizeBytes + 2*(sizeBytes*largest/100)
}

// BuilderMemory is what Badger takes to build a table of sizeBytes, when tables are
// of tableSizeBytes: it begins with twice that and doubles, and values larger than
// a block take more than four times their size (dropBuilderPool).
func BuilderMemory(sizeBytes, tableSizeBytes int64) int64 {
	const overhead = 43 // tenths
	chunk, sum := 2*tableSizeBytes, int64(0)
	for sum < sizeBytes*overhead/10 {
		sum += chunk
		chunk *= 2
	}
	return sum
}
