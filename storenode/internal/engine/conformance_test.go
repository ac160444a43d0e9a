package engine_test

import (
	"testing"

	"go.uber.org/goleak"

	"github.com/ridgekv/ridge/storenode/internal/engine"
	"github.com/ridgekv/ridge/storenode/internal/engine/enginetest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestConformance(t *testing.T) {
	enginetest.Run(t, func(t testing.TB) enginetest.Engine {
		return enginetest.Of(open(t, engine.Options{Dir: t.TempDir()}))
	})
}

// The same without a row cache, and with one so small that rows hardly stay.
func TestConformanceOfRowCaches(t *testing.T) {
	for name, sizeBytes := range map[string]int64{"off": -1, "tiny": 8 << 10} {
		t.Run(name, func(t *testing.T) {
			enginetest.Run(t, func(t testing.TB) enginetest.Engine {
				return enginetest.Of(open(t, engine.SmallTables(engine.Options{
					Dir: t.TempDir(), RowCacheSizeBytes: sizeBytes,
				})))
			})
		})
	}
}

// The same with tables so small that rows come from all levels.
func TestConformanceOfSmallTables(t *testing.T) {
	enginetest.Run(t, func(t testing.TB) enginetest.Engine {
		return enginetest.Of(open(t, engine.SmallTables(engine.Options{Dir: t.TempDir()})))
	})
}
