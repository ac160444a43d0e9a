package client_test

import (
	"fmt"
	"testing"

	"github.com/ridgekv/ridge/client"
	"github.com/ridgekv/ridge/client/internal/clustertest"
)

// What does a lone caller's operation cost, from the call over gRPC to a store
// that answers at once and back? The scripted store's share is in it.
func BenchmarkRoundTrip(b *testing.B) {
	cluster := clustertest.New(b, 1, 1)
	c, err := client.Open(b.Context(), client.Options{PD: cluster.PDAddresses()})
	if err != nil {
		b.Fatal(err)
	}
	defer func() {
		if err := c.Close(); err != nil {
			b.Error(err)
		}
	}()
	key, value := fmt.Appendf(nil, "%020d", 7), make([]byte, 128)
	put := func() error { _, err := c.Put(b.Context(), key, value); return err }
	get := func() error { _, _, err := c.Get(b.Context(), key); return err }
	for _, op := range []struct {
		name string
		call func() error
	}{{"put", put}, {"get", get}} {
		b.Run(op.name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if err := op.call(); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
