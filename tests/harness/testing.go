package harness

import (
	"context"
	"os"
	"testing"
	"time"

	"github.com/ridgekv/ridge/client"
)

// New starts a cluster for a test. It ends with the test; the logs of a test
// that failed are kept and their place is told.
func New(t testing.TB, o Options) *Cluster {
	t.Helper()
	if o.Dir == "" {
		o.Dir = t.TempDir()
	}
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	c, err := Start(ctx, o)
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
		if t.Failed() {
			c.report(t)
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func (c *Cluster) report(t testing.TB) {
	for _, p := range c.Processes() {
		t.Logf("%s:\n%s", p.Name, tail(p.Output(), 15))
	}
	if dir, err := c.KeepLogs(t.Name()); err == nil {
		t.Logf("logs are kept in %s", dir)
	}
}

// Client returns a smart client that lives as long as the test.
func (c *Cluster) Client(t testing.TB) *client.Client {
	t.Helper()
	kv, err := c.Open(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return kv
}

// Run runs an admin command that must end with code.
func (c *Cluster) Run(t testing.TB, code int, args ...string) Result {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	r, err := c.Ridge(ctx, "", args...)
	if err != nil {
		t.Fatal(err)
	}
	if r.Code != code {
		t.Fatalf("ridge %q: want code %d, got %s", args, code, r)
	}
	return r
}

// Must ends the test on an error.
func Must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// Long reports whether the long form of tests is wanted.
func Long() bool { return os.Getenv("RIDGE_LONG") != "" }
