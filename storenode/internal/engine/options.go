package engine

import (
	"log/slog"
	"time"

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
}
