package engine_test

import (
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"runtime"
	"testing"

	"github.com/ridgekv/ridge/storenode/internal/engine"
)

// Tables that were made keep no memory: what building them took is garbage at
// once, however large their values were. Badger's own pool would hold several
// times a memtable here, and for as long as there is work.
func TestBuildersKeepNothing(t *testing.T) {
	const memTable = 32 << 20
	dir := t.TempDir()
	e := open(t, engine.Options{
		Dir: dir, MemTableSizeBytes: memTable, NumMemtables: 1,
		BlockCacheSizeBytes: 8 << 20, RowCacheSizeBytes: -1,
	})
	if engine.PoolsBuilders(e) {
		t.Error("Badger has its pool, which gives back one heap in two idle seconds")
	}
	before := heapBytes()
	value := make([]byte, 64<<10)
	random := rand.NewChaCha8([32]byte{})
	for i := range 3 * memTable / len(value) {
		_, _ = random.Read(value)
		w := new(engine.WriteSet)
		w.Put(20, fmt.Appendf(nil, "%06d", i), engine.Row{CommitTS: 5, Value: value})
		if err := e.Commit(w); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, "two tables are made", func() bool {
		tables, err := filepath.Glob(filepath.Join(dir, "*.sst"))
		return err == nil && len(tables) >= 2
	})
	// The memtable that is written, and one that may be written out just now.
	limit := 2*engine.MemTableMemory(memTable) + 24<<20
	eventually(t, "the builders' memory is garbage", func() bool {
		return heapBytes()-before < limit
	})
}

func heapBytes() int64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

// A builder needs what it was measured to take, and never less than its table.
func TestBuilderMemory(t *testing.T) {
	const mib = 1 << 20
	for _, c := range []struct{ size, table, want int64 }{
		{64 * mib, 8 * mib, 496 * mib}, {32 * mib, 4 * mib, 248 * mib}, {4 * mib, 4 * mib, 24 * mib},
	} {
		if got := engine.BuilderMemory(c.size, c.table); got != c.want {
			t.Errorf("a table of %d MiB: %d MiB, want %d", c.size/mib, got/mib, c.want/mib)
		}
	}
}
