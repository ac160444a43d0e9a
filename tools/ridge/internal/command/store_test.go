package command

import (
	"path/filepath"
	"testing"

	"github.com/spf13/pflag"

	"github.com/ridgekv/ridge/tools/ridge/internal/config"
)

// The profile for a machine with 2 GiB leaves half of it to the kernel, and a
// store accepts it: its parts are no more than its memory.
func TestSmallProfile(t *testing.T) {
	schema, flags := config.Store(), pflag.NewFlagSet("store", pflag.ContinueOnError)
	schema.AddFlags(flags)
	file := filepath.Join("..", "..", "..", "..", "deploy", "config", "small.yaml")
	if err := flags.Parse([]string{"--config", file}); err != nil {
		t.Fatal(err)
	}
	v, err := schema.Load(flags, nil)
	if err != nil {
		t.Fatal(err)
	}
	o := storeOptions(v)
	o.Dir, o.Insecure = t.TempDir(), true
	if err := o.Validate(); err != nil {
		t.Error(err)
	}
	b := o.Budget()
	if o.MemoryBytes > 1<<30 || b.All() > o.MemoryBytes || b.BlockCache < 100<<20 {
		t.Errorf("memory %d: %s", o.MemoryBytes, b)
	}
	t.Log(b)
}
