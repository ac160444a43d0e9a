package pdclient_test

import (
	"context"
	"errors"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/ridgekv/ridge/client/internal/clustertest"
	"github.com/ridgekv/ridge/client/pdclient"
	"github.com/ridgekv/ridge/proto/keys"
	kvpb "github.com/ridgekv/ridge/proto/ridge/kv/v1"
	pdpb "github.com/ridgekv/ridge/proto/ridge/pd/v1"
	"github.com/ridgekv/ridge/proto/ts"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func open(t *testing.T, o pdclient.Options) *pdclient.Client {
	t.Helper()
	c, err := pdclient.Open(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	return c
}

func TestOptionsReportAllFaults(t *testing.T) {
	err := pdclient.Options{Addresses: []string{""}, Timeout: -1}.Validate()
	if err == nil || !strings.Contains(err.Error(), "empty") ||
		!strings.Contains(err.Error(), "negative") {
		t.Fatalf("got %v", err)
	}
}

func TestFindsTheLeaderFromAnyAddress(t *testing.T) {
	cluster := clustertest.New(t, 3, 1)
	cluster.MovePDLeader(2)
	c := open(t, pdclient.Options{Addresses: cluster.PDAddresses()[:1]})
	r, err := c.GetRoute(t.Context(), []byte("k"))
	if err != nil {
		t.Fatal(err)
	}
	if r.GetRoute().GetRange().GetRangeId() != 1 {
		t.Fatalf("got %v", r)
	}
}

func TestSurvivesTheLossOfTheLeaderAndOfEveryConfiguredAddress(t *testing.T) {
	cluster := clustertest.New(t, 3, 1)
	c := open(t, pdclient.Options{Addresses: cluster.PDAddresses()[:1]})
	if _, err := c.AllocateIDs(t.Context(), 3); err != nil {
		t.Fatal(err)
	}
	// The list of members is learned in the background.
	clustertest.Eventually(t, func() bool { return c.ClusterID() == clustertest.ClusterID })
	cluster.PDs[0].Kill()
	cluster.MovePDLeader(1)
	began := time.Now()
	if _, err := c.AllocateIDs(t.Context(), 3); err != nil {
		t.Fatal(err)
	}
	if d := time.Since(began); d > 2*time.Second {
		t.Errorf("failover took %v", d)
	}
}

func TestWaitsWhileThereIsNoLeader(t *testing.T) {
	cluster := clustertest.New(t, 3, 1)
	cluster.MovePDLeader(-1)
	c := open(t, pdclient.Options{Addresses: cluster.PDAddresses()})
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	_, err := c.ListStores(ctx)
	if !errors.Is(err, context.DeadlineExceeded) ||
		!pdclient.HasReason(err, pdpb.PDErrorReason_PD_ERROR_REASON_NOT_LEADER) ||
		!strings.Contains(err.Error(), "ms waiting for a pd leader") {
		t.Fatalf("got %v", err)
	}
	time.AfterFunc(100*time.Millisecond, func() { cluster.MovePDLeader(1) })
	if _, err := c.ListStores(t.Context()); err != nil {
		t.Fatal(err)
	}
}

func TestLeavesAFrozenLeader(t *testing.T) {
	cluster := clustertest.New(t, 2, 1)
	c := open(t, pdclient.Options{
		Addresses: cluster.PDAddresses(), TryTimeout: 100 * time.Millisecond,
	})
	if _, err := c.GetSafePoint(t.Context()); err != nil {
		t.Fatal(err)
	}
	cluster.PDs[0].Freeze()
	defer cluster.PDs[0].Thaw()
	cluster.MovePDLeader(1)
	if _, err := c.GetSafePoint(t.Context()); err != nil {
		t.Fatal(err)
	}
}

func TestRetriesByClass(t *testing.T) {
	for _, tt := range []struct {
		reason pdpb.PDErrorReason
		class  kvpb.ErrorClass
		again  bool
	}{
		{pdpb.PDErrorReason_PD_ERROR_REASON_UNAVAILABLE, kvpb.ErrorClass_ERROR_CLASS_RETRY, true},
		{pdpb.PDErrorReason_PD_ERROR_REASON_UNAVAILABLE, 0, true},
		{pdpb.PDErrorReason_PD_ERROR_REASON_NOT_BOOTSTRAPPED, kvpb.ErrorClass_ERROR_CLASS_RETRY, true},
		{pdpb.PDErrorReason_PD_ERROR_REASON_NOT_FOUND, kvpb.ErrorClass_ERROR_CLASS_FAIL, false},
		{pdpb.PDErrorReason_PD_ERROR_REASON_STORE_GONE, 0, false},
		{pdpb.PDErrorReason_PD_ERROR_REASON_STALE_EPOCH, 0, false},
		{99, 0, false},
	} {
		t.Run(tt.reason.String()+"/"+tt.class.String(), func(t *testing.T) {
			cluster := clustertest.New(t, 1, 1)
			c := open(t, pdclient.Options{Addresses: cluster.PDAddresses()})
			refusals := 2
			cluster.PDs[0].Refuse(func(op string) *pdpb.PDError {
				if refusals == 0 {
					return nil
				}
				refusals--
				return &pdpb.PDError{Reason: tt.reason, Class: tt.class, Message: "no"}
			})
			_, err := c.GetRange(t.Context(), 1)
			if tt.again {
				// The scripted PD has no GetRange: it is reached in the end.
				if err == nil || !strings.Contains(err.Error(), "not implemented") {
					t.Fatalf("got %v", err)
				}
			}
			refusals = 2
			_, err = c.GetRoute(t.Context(), nil)
			if tt.again != (err == nil) {
				t.Fatalf("got %v", err)
			}
			if !tt.again && !pdclient.HasReason(err, tt.reason) {
				t.Fatalf("the reason is lost: %v", err)
			}
		})
	}
}

func TestRefusesAnotherCluster(t *testing.T) {
	cluster := clustertest.New(t, 1, 1)
	c := open(t, pdclient.Options{Addresses: cluster.PDAddresses(), ClusterID: 1})
	_, err := c.Timestamp(t.Context())
	if !pdclient.HasReason(err, pdpb.PDErrorReason_PD_ERROR_REASON_CLUSTER_MISMATCH) {
		t.Fatalf("got %v", err)
	}
}

func TestTimestampsAreSharedAndMonotone(t *testing.T) {
	cluster := clustertest.New(t, 1, 1)
	cluster.PDs[0].Delay.Store(int64(2 * time.Millisecond))
	c := open(t, pdclient.Options{Addresses: cluster.PDAddresses()})
	const callers, rounds = 100, 20
	var wg sync.WaitGroup
	var mu sync.Mutex
	seen := map[ts.Timestamp]bool{}
	for range callers {
		wg.Go(func() {
			var last ts.Timestamp
			for i := range rounds {
				n := uint32(1 + i%3)
				first, err := c.Timestamps(t.Context(), n)
				if err != nil {
					t.Error(err)
					return
				}
				if first <= last {
					t.Errorf("%d after %d", first, last)
				}
				last = first + ts.Timestamp(n) - 1
				mu.Lock()
				for at := first; at <= last; at++ {
					if seen[at] {
						t.Errorf("%d was given twice", at)
					}
					seen[at] = true
				}
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	requests := cluster.PDs[0].TimestampRequests.Load()
	if requests > callers*rounds/4 {
		t.Errorf("%d requests for %d calls: they are not shared", requests, callers*rounds)
	}
}

func TestTimestampsFollowTheLeader(t *testing.T) {
	cluster := clustertest.New(t, 3, 1)
	c := open(t, pdclient.Options{
		Addresses: cluster.PDAddresses(), TryTimeout: 100 * time.Millisecond,
	})
	var last ts.Timestamp
	next := func() {
		t.Helper()
		at, err := c.Timestamp(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if at <= last {
			t.Fatalf("%d after %d", at, last)
		}
		last = at
	}
	next()
	cluster.MovePDLeader(1) // refused by the old one
	next()
	cluster.PDs[1].Kill()
	cluster.MovePDLeader(2)
	next()
	cluster.PDs[2].Freeze()
	cluster.MovePDLeader(0)
	next()
	cluster.PDs[2].Thaw()
	// A PD that falls behind what was given is not believed.
	cluster.PDs[0].Skew.Store(-1 << 40)
	time.AfterFunc(150*time.Millisecond, func() { cluster.PDs[0].Skew.Store(0) })
	next()
}

func TestTimestampCallersMayLeave(t *testing.T) {
	cluster := clustertest.New(t, 1, 1)
	cluster.PDs[0].Kill()
	c := open(t, pdclient.Options{Addresses: cluster.PDAddresses()})
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	_, err := c.Timestamp(ctx)
	if !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "does not answer") {
		t.Fatalf("got %v", err)
	}
	cluster.PDs[0].Start()
	if _, err := c.Timestamp(t.Context()); err != nil {
		t.Fatal(err)
	}
	if n := cluster.PDs[0].TimestampsAsked.Load(); n > 2 {
		t.Errorf("%d timestamps asked for one caller", n)
	}
}

func TestTimestampsRefuseNonsense(t *testing.T) {
	cluster := clustertest.New(t, 1, 1)
	c := open(t, pdclient.Options{Addresses: cluster.PDAddresses()})
	for _, n := range []uint32{0, 1 << 20} {
		if _, err := c.Timestamps(t.Context(), n); err == nil {
			t.Errorf("%d timestamps were given", n)
		}
	}
}

func TestCloseEndsWhoWaits(t *testing.T) {
	cluster := clustertest.New(t, 1, 1)
	cluster.PDs[0].Freeze()
	defer cluster.PDs[0].Thaw()
	c, err := pdclient.Open(t.Context(), pdclient.Options{Addresses: cluster.PDAddresses()})
	if err != nil {
		t.Fatal(err)
	}
	results := make(chan error, 2)
	var wg sync.WaitGroup
	wg.Go(func() { _, err := c.Timestamp(t.Context()); results <- err })
	wg.Go(func() { _, err := c.ListStores(t.Context()); results <- err })
	clustertest.Eventually(t, func() bool { return cluster.PDs[0].Calls.Load() > 0 })
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	wg.Wait()
	for range 2 {
		if err := <-results; !errors.Is(err, pdclient.ErrClosed) {
			t.Errorf("got %v", err)
		}
	}
	if _, err := c.Timestamp(t.Context()); !errors.Is(err, pdclient.ErrClosed) {
		t.Errorf("got %v", err)
	}
}

func TestRangeHeartbeatFollowsTheLeader(t *testing.T) {
	cluster := clustertest.New(t, 2, 1)
	c := open(t, pdclient.Options{Addresses: cluster.PDAddresses()})
	beat := func() (*pdpb.RangeHeartbeatResponse, error) {
		s, err := c.RangeHeartbeat(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(s.Close)
		if err := s.Send(&pdpb.RangeHeartbeatRequest{StoreId: 1}); err != nil {
			t.Fatal(err)
		}
		r, err := s.Recv()
		if err != nil {
			return nil, err
		}
		// While the stream is open, leadership moves away.
		cluster.MovePDLeader(1 - int(r.Orders[0].OperatorId))
		_ = s.Send(&pdpb.RangeHeartbeatRequest{StoreId: 1})
		_, err = s.Recv()
		return r, err
	}
	for want := range uint64(2) {
		r, err := beat()
		if r.GetOrders()[0].GetOperatorId() != want {
			t.Fatalf("order of %v, want %d", r, want)
		}
		if !pdclient.HasReason(err, pdpb.PDErrorReason_PD_ERROR_REASON_NOT_LEADER) {
			t.Fatalf("got %v", err)
		}
	}
}

func TestWatchRoutesResumes(t *testing.T) {
	cluster := clustertest.New(t, 2, 1)
	c := open(t, pdclient.Options{Addresses: cluster.PDAddresses()})
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	step := 0
	for r, err := range c.WatchRoutes(ctx, keys.All()) {
		if step == 3 {
			if !errors.Is(err, context.Canceled) {
				t.Fatalf("got %v", err)
			}
			return
		}
		if err != nil {
			t.Fatal(err)
		}
		switch len(r.GetRoutes()) {
		case 1:
			if step == 0 {
				step = 1
				cluster.Split("m")
			}
		case 2:
			if step == 1 {
				step = 2
				cluster.MovePDLeader(1)
				cluster.PDs[0].Kill()
				cluster.Split("p")
			}
		case 3:
			step = 3
			cancel()
		}
	}
}
