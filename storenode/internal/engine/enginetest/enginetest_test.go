package enginetest_test

import (
	"testing"

	"github.com/ridgekv/ridge/storenode/internal/engine/enginetest"
)

func TestModel(t *testing.T) {
	enginetest.Run(t, func(testing.TB) enginetest.Engine { return enginetest.NewModel() })
}
