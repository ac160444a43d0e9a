package storenode_test

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/ridgekv/ridge/client"
	"github.com/ridgekv/ridge/pd"
	"github.com/ridgekv/ridge/proto/keys"
	metapb "github.com/ridgekv/ridge/proto/ridge/meta/v1"
	pdpb "github.com/ridgekv/ridge/proto/ridge/pd/v1"
	storepb "github.com/ridgekv/ridge/proto/ridge/store/v1"
)

// startPD runs a PD of one node and returns its address and how to stop it.
func startPD(
	t *testing.T, dir string, config *tls.Config, change func(*pd.Options),
) (address string, stop func()) {
	t.Helper()
	o := pd.Options{
		Dir: dir, MemberID: 1, Members: []pd.Member{{
			ID: 1, RaftAddress: freePort(t), GRPCAddress: freePort(t),
		}},
		StoreHeartbeat: 100 * time.Millisecond, ScheduleAfter: 2 * time.Second,
		Logger: logger(t).With("pd", 1),
	}
	if change != nil {
		change(&o)
	}
	server, err := pd.New(o)
	if err != nil {
		t.Fatal(err)
	}
	stopListening := listen(t, o.Members[0].GRPCAddress, config, server.Register)
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	var wg sync.WaitGroup
	wg.Go(func() { ended <- server.Run(ctx) })
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-ended; err != nil && !errors.Is(err, context.Canceled) {
			t.Errorf("pd: %v", err)
		}
		wg.Wait()
		stopListening()
	})
	t.Cleanup(stop)
	return o.Members[0].GRPCAddress, stop
}

// One PD and one store, then three stores: bootstrap, data, growth to three
// replicas, splits by size, a restart of everything; all copies are equal.
func TestCluster(t *testing.T) {
	address, _ := startPD(t, t.TempDir(), nil, func(o *pd.Options) { o.SplitSizeBytes = 256 << 10 })
	s1 := startStore(t, storeOptions(t, t.TempDir(), address))
	s1.waitReady()
	s1.mustPut("first", "value")
	s1.mustGet("first", "value")
	stores := []*testStore{s1}
	for range 2 {
		stores = append(stores, startStore(t, storeOptions(t, t.TempDir(), address)))
	}
	for _, s := range stores[1:] {
		s.waitReady()
	}
	c, err := client.Open(t.Context(), client.Options{PD: []string{address}})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	waitVoters(t, c, 1, 3)

	value := make([]byte, 8<<10)
	for i := range 128 {
		if _, err := c.Put(t.Context(), fmt.Appendf(nil, "k%04d", i), value); err != nil {
			t.Fatal(err)
		}
	}
	waitVoters(t, c, 3, 3)
	if n := countRows(t, c); n != 129 {
		t.Fatalf("%d rows, want 129", n)
	}
	compareCopies(t, c, stores)

	for i, s := range stores {
		if err := s.stop(); err != nil {
			t.Fatal(err)
		}
		stores[i] = startStore(t, s.options)
	}
	for _, s := range stores {
		s.waitReady()
	}
	stores[2].mustGet("first", "value")
	if n := countRows(t, c); n != 129 {
		t.Fatalf("%d rows after the restart, want 129", n)
	}
	stores[0].mustPut("last", "value")
	compareCopies(t, c, stores)
}

func countRows(t *testing.T, c *client.Client) (n int) {
	t.Helper()
	for _, err := range c.Scan(t.Context(), keys.All()) {
		if err != nil {
			t.Fatal(err)
		}
		n++
	}
	return n
}

// waitVoters waits until there are at least so many ranges and each of them has
// so many voters.
func waitVoters(t *testing.T, c *client.Client, ranges, voters int) []*pdpb.Route {
	t.Helper()
	var routes []*pdpb.Route
	eventually(t, 60*time.Second, fmt.Sprintf("%d ranges of %d voters", ranges, voters),
		func() bool {
			list, err := c.PD().ListRoutes(t.Context(), keys.All(), 0)
			if err != nil {
				return false
			}
			routes = list.GetRoutes()
			for _, r := range routes {
				n := 0
				for _, p := range r.GetRange().GetReplicas() {
					if p.GetRole() == metapb.Role_ROLE_VOTER {
						n++
					}
				}
				if n != voters {
					return false
				}
			}
			return len(routes) >= ranges
		})
	return routes
}

// compareCopies asks every store for the checksum of every range and compares.
func compareCopies(t *testing.T, c *client.Client, stores []*testStore) {
	t.Helper()
	list, err := c.PD().ListRoutes(t.Context(), keys.All(), 0)
	if err != nil {
		t.Fatal(err)
	}
	for _, route := range list.GetRoutes() {
		id := route.GetRange().GetRangeId()
		eventually(t, 20*time.Second, fmt.Sprintf("equal copies of range %d", id), func() bool {
			var sums []*storepb.ChecksumResponse
			for _, s := range stores {
				ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
				sum, err := s.store().Checksum(ctx, &storepb.ChecksumRequest{RangeId: id})
				cancel()
				if err != nil || sum.GetError() != nil {
					return false
				}
				sums = append(sums, sum)
			}
			for _, sum := range sums {
				if sum.GetAppliedIndex() != sums[0].GetAppliedIndex() {
					return false // One is behind.
				}
				if sum.GetChecksum() != sums[0].GetChecksum() ||
					sum.GetKeyCount() != sums[0].GetKeyCount() {
					t.Fatalf("range %d: copies differ: %v", id, sums)
				}
			}
			return true
		})
	}
}
