package engine_test

import (
	"fmt"
	"testing"

	"github.com/ridgekv/ridge/storenode/internal/engine"
)

// Badger's compactions tell the engine of their tables: a Badger that words its
// line in another way would take all processors again.
func TestCompactionsArePaced(t *testing.T) {
	e := open(t, engine.SmallTables(engine.Options{Dir: t.TempDir()}))
	eventually(t, "a compaction has paused", func() bool {
		for i := range 100 {
			put(t, e, fmt.Sprintf("%04d", i), string(make([]byte, 2000)), 600)
		}
		tables, paused := e.Compactions()
		return tables > 0 && paused > 0
	})
}
