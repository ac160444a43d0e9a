package bench

import (
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/ridgekv/ridge/proto/keys"
)

// The limits of a configuration. They keep a slip of the finger from taking
// all memory.
const (
	maxCallers   = 100_000
	maxKeys      = 1 << 40
	maxBatchSize = 10_000
	maxBatchSum  = 4 << 20
	maxScan      = 1_000_000
	maxRate      = 10_000_000
	maxWindow    = 30 * 24 * time.Hour
)

// MaxRanges is how many ranges Presplit makes at most.
const MaxRanges = 10_000

// Config is what to run. Validate explains itself in the words of the command
// line.
type Config struct {
	// Workload is one of Workloads, or LoadWorkload.
	Workload string
	// Distribution draws the keys. "" is the workload's own.
	Distribution string
	// Prefix begins every key.
	Prefix string
	// Keys is how many keys there are before inserts.
	Keys int64
	// ValueSize is in bytes.
	ValueSize int
	// Callers is how many operations are under way at most.
	Callers int
	// Duration ends the window by time, Operations by count; 0 is without this
	// end. One of them is needed, except for LoadWorkload, which ends with Keys.
	Duration   time.Duration
	Operations int64
	// Warmup goes before the window and is not measured.
	Warmup time.Duration
	// Rate, in operations a second, makes the loop an open one.
	Rate float64
	// Consistency is linearizable, stale or snapshot.
	Consistency string
	// Staleness is how old a stale read may be.
	Staleness time.Duration
	// ScanLength is the number of rows of a scan, or the largest (YCSB E).
	ScanLength int
	// BatchSize is the number of keys of a batch.
	BatchSize int
	// HotKeys is how many keys the workload hot uses.
	HotKeys int64
	// Seed decides what is drawn.
	Seed uint64
}

// Validate reports every fault of c, joined.
func (c Config) Validate() error {
	var faults []error
	fault := func(wrong bool, format string, args ...any) {
		if wrong {
			faults = append(faults, fmt.Errorf(format, args...))
		}
	}
	w, known := find(c.Workload)
	fault(!known, "--workload %q: choose one of %s", c.Workload, strings.Join(Workloads(), ", "))
	fault(c.Distribution != "" && !slices.Contains(Distributions(), c.Distribution),
		"--distribution %q: choose one of %s", c.Distribution, strings.Join(Distributions(), ", "))
	fault(known && w.hot && c.Distribution != "",
		"--distribution: the workload hot has its own; choose how many keys with --hot-keys")
	fault(!slices.Contains(Consistencies(), c.Consistency),
		"--consistency %q: choose one of %s", c.Consistency, strings.Join(Consistencies(), ", "))
	fault(c.Staleness < time.Millisecond, "--staleness %s: at least 1ms", c.Staleness)
	c.validateSizes(fault, w)
	fault(c.Rate < 0 || c.Rate > maxRate || math.IsNaN(c.Rate),
		"--rate %v: from 1 to %d a second; leave it out for a closed loop", c.Rate, maxRate)
	fault(c.Rate > 0 && c.Rate < 0.01, "--rate %v: too low to be measured", c.Rate)
	fault(c.Duration < 0 || c.Duration > maxWindow,
		"--duration %s: from 0 to %s", c.Duration, maxWindow)
	fault(c.Warmup < 0 || c.Warmup > maxWindow, "--warmup %s: from 0 to %s", c.Warmup, maxWindow)
	fault(c.Operations < 0, "--operations %d: it is negative", c.Operations)
	fault(c.Duration == 0 && c.Operations == 0 && c.Workload != LoadWorkload,
		"--duration and --operations are both 0: the run would not end")
	return errors.Join(faults...)
}

func (c Config) validateSizes(fault func(bool, string, ...any), w workload) {
	fault(c.Callers < 1 || c.Callers > maxCallers,
		"--callers %d: from 1 to %d", c.Callers, maxCallers)
	fault(c.Keys < 1 || c.Keys > maxKeys, "--keys %d: from 1 to %d", c.Keys, int64(maxKeys))
	fault(c.ValueSize < 0 || c.ValueSize > keys.MaxValueSizeBytes,
		"--value-size %d: from 0 to %d bytes", c.ValueSize, keys.MaxValueSizeBytes)
	fault(len(c.Prefix)+hashDigits > keys.MaxKeySizeBytes,
		"--prefix: %d bytes; a key has %d more and %d at most",
		len(c.Prefix), hashDigits, keys.MaxKeySizeBytes)
	fault(c.Prefix == "", "--prefix is empty: the benchmark would mix with other keys")
	fault(c.ScanLength < 1 || c.ScanLength > maxScan, "--scan-length %d: from 1 to %d",
		c.ScanLength, maxScan)
	fault(c.BatchSize < 1 || c.BatchSize > maxBatchSize, "--batch-size %d: from 1 to %d",
		c.BatchSize, maxBatchSize)
	fault(w.batches() && c.BatchSize > 1 && c.BatchSize <= maxBatchSize &&
		c.BatchSize*(c.ValueSize+len(c.Prefix)+hashDigits) > maxBatchSum,
		"--batch-size %d x --value-size %d: a batch may have %d bytes",
		c.BatchSize, c.ValueSize, maxBatchSum)
	fault(w.hot && (c.HotKeys < 1 || c.HotKeys > c.Keys), "--hot-keys %d: from 1 to --keys %d",
		c.HotKeys, c.Keys)
}

// distribution is the one that counts.
func (c Config) distribution() string {
	w, _ := find(c.Workload)
	if c.Distribution != "" && !w.hot {
		return c.Distribution
	}
	return w.distribution
}

// Consistencies lists the consistencies of reads.
func Consistencies() []string { return []string{"linearizable", "stale", "snapshot"} }
