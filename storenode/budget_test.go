package storenode

import (
	"strings"
	"testing"

	"github.com/ridgekv/ridge/storenode/internal/engine"
)

// The parts add up to the budget, at every size, and they are what the rooms are
// given.
func TestBudget(t *testing.T) {
	const mib = 1 << 20
	for _, m := range []int64{256, 300, 384, 512, 700, 1023, 1024, 1434, 2048, 4096, 16384} {
		o := Options{MemoryBytes: m * mib}.withDefaults()
		b := o.Budget()
		if b.All() > o.MemoryBytes {
			t.Errorf("%d MiB: %s", m, b)
		}
		if unused := o.MemoryBytes - b.All(); unused > mib {
			t.Errorf("%d MiB: %d MiB are nobody's", m, unused/mib)
		}
		e := o.engineOptions()
		if got := int64(e.NumMemtables+2) * engine.MemTableMemory(e.MemTableSizeBytes); got !=
			b.Memtables || e.BlockCacheSizeBytes != b.BlockCache || e.RowCacheSizeBytes != b.RowCache {
			t.Errorf("%d MiB: the engine got %+v, the budget is %s", m, e, b)
		}
		if b.BlockCache < o.MemoryBytes/32 || b.Memtables > o.MemoryBytes/2 {
			t.Errorf("%d MiB is badly divided: %s", m, b)
		}
		if err := e.Validate(); err != nil {
			t.Errorf("%d MiB: %v", m, err)
		}
	}
}

// What is set counts, the block cache makes room, and what does not fit is
// refused.
func TestBudgetOverridden(t *testing.T) {
	o := Options{
		Dir: t.TempDir(), PD: []string{"127.0.0.1:1"}, GRPCAddress: "127.0.0.1:2",
		RaftListenAddress: "127.0.0.1:3", MemoryBytes: 2 << 30,
		Engine: EngineOptions{RowCacheSizeBytes: 700 << 20},
	}
	if err := o.Validate(); err != nil {
		t.Error(err)
	}
	if b := o.Budget(); b.All() > 2<<30 || b.RowCache != 700<<20 {
		t.Error(b)
	}
	o.Engine.RowCacheSizeBytes = -1
	if b := o.Budget(); b.RowCache != 0 || b.All() != 2<<30 {
		t.Errorf("without a row cache: %s", b)
	}
	o.Engine.BlockCacheSizeBytes = 2 << 30
	if err := o.Validate(); err == nil || !strings.Contains(err.Error(), "block cache 2048") {
		t.Errorf("a cache of all memory: %v", err)
	}
}
