package engine_test

import (
	"strings"
	"testing"

	"github.com/ridgekv/ridge/storenode/internal/engine"
)

func TestValidateTellsAllFaults(t *testing.T) {
	if err := (engine.Options{Dir: "d"}).Validate(); err != nil {
		t.Errorf("the defaults: %v", err)
	}
	err := engine.Options{
		MemTableSizeBytes: 16 << 20, ValueThresholdBytes: 1024, DetectConflicts: true,
		NumCompactors: 1, NumLevelZeroTables: 5, NumLevelZeroTablesStall: 5, Compression: "lz4",
	}.Validate()
	if err == nil {
		t.Fatal("accepted")
	}
	for _, want := range []string{
		"a directory is needed", "memtable_size", "one log entry", "value_threshold",
		"a key twice at one version", "detect_conflicts", "leaks", "num_compactors",
		"num_level_zero_tables_stall", "lz4",
	} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%q is not in: %v", want, err)
		}
	}
	if _, err := engine.Open(engine.Options{Dir: t.TempDir(), DetectConflicts: true}); err == nil {
		t.Error("opened with conflict detection")
	}
}

func TestSecondOpenIsRefused(t *testing.T) {
	o := engine.Options{Dir: t.TempDir()}
	open(t, o)
	if _, err := engine.Open(o); err == nil || !strings.Contains(err.Error(), "in use") {
		t.Errorf("second open: %v", err)
	}
}
