package pd

import (
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	metapb "github.com/ridgekv/ridge/proto/ridge/meta/v1"
	pdpb "github.com/ridgekv/ridge/proto/ridge/pd/v1"
)

func register(
	t *testing.T, c pdpb.PDServiceClient, id uint64, name string,
) *pdpb.RegisterStoreResponse {
	t.Helper()
	r, err := c.RegisterStore(testContext(t), &pdpb.RegisterStoreRequest{
		Store: &metapb.Store{StoreId: id, GrpcAddress: name + ":1", RaftAddress: name + ":2"},
	})
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func TestBootstrapRace(t *testing.T) {
	c := startCluster(t, 1, nil)
	client := c.client()
	var wg sync.WaitGroup
	answers := make([]*pdpb.RegisterStoreResponse, 8)
	for i := range answers {
		wg.Go(func() { answers[i] = register(t, client, 0, fmt.Sprintf("s%d", i)) })
	}
	wg.Wait()
	ids, first := map[uint64]bool{}, 0
	for _, a := range answers {
		if err := asError(a.GetError()); err != nil {
			t.Fatal(err)
		}
		ids[a.GetStoreId()] = true
		if r := a.GetFirstRange(); r != nil {
			first++
			if r.GetReplicas()[0].GetStoreId() != a.GetStoreId() {
				t.Errorf("store %d shall bear the replica of %v", a.GetStoreId(), r)
			}
		}
	}
	if len(ids) != len(answers) || first != 1 {
		t.Errorf("%d ids, %d first ranges; want 8 and 1", len(ids), first)
	}
}

func TestTimestampsGrowAcrossLeaders(t *testing.T) {
	c := startCluster(t, 3, nil)
	var last uint64
	take := func() error {
		at := c.leader()
		stream, err := c.nodes[at].client.Timestamps(testContext(t))
		if err != nil {
			return err
		}
		for range 20 {
			if err := stream.Send(&pdpb.TimestampsRequest{Count: 10}); err != nil {
				return err
			}
			r, err := stream.Recv()
			if err != nil {
				return err
			}
			if err := asError(r.GetError()); err != nil {
				return err
			}
			if r.GetFirst() <= last {
				t.Fatalf("%d after %d", r.GetFirst(), last)
			}
			last = r.GetFirst() + uint64(r.GetCount()) - 1
		}
		return stream.CloseSend()
	}
	eventually(t, "timestamps", take)
	for range 3 {
		at := c.leader()
		c.kill(at)
		began := time.Now()
		eventually(t, "timestamps of the next leader", take)
		t.Logf("failover took %s", time.Since(began))
		c.start(at)
	}
}

func TestFollowersSendOn(t *testing.T) {
	c := startCluster(t, 3, nil)
	at := c.leader()
	follower := c.nodes[(at+1)%3].client
	eventually(t, "the leader's address", func() error {
		r, err := follower.AllocateIds(testContext(t), &pdpb.AllocateIdsRequest{Count: 1})
		if err != nil {
			return err
		}
		if r.GetError().GetReason() != pdpb.PDErrorReason_PD_ERROR_REASON_NOT_LEADER {
			return asError(r.GetError())
		}
		if r.GetError().GetLeaderAddress() != c.nodes[at].o.self().GRPCAddress {
			return errors.New("leader at " + r.GetError().GetLeaderAddress())
		}
		return nil
	})
}

func heartbeat(t *testing.T, c pdpb.PDServiceClient, id uint64) {
	t.Helper()
	r, err := c.StoreHeartbeat(testContext(t), &pdpb.StoreHeartbeatRequest{StoreId: id})
	if err != nil {
		t.Fatal(err)
	}
	if err := asError(r.GetError()); err != nil {
		t.Fatal(err)
	}
}

// report says, as its leader's store, how the first range is.
func report(t *testing.T, c pdpb.PDServiceClient, r *metapb.Range) {
	t.Helper()
	s, err := c.RangeHeartbeat(testContext(t))
	if err != nil {
		t.Fatal(err)
	}
	m := r.GetReplicas()[0]
	err = s.Send(&pdpb.RangeHeartbeatRequest{
		StoreId: m.GetStoreId(), Ranges: []*pdpb.RangeReport{{
			Range: r, Leader: &metapb.Leader{
				ReplicaId: m.GetReplicaId(), StoreId: m.GetStoreId(), Term: 6,
			},
		}},
	})
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, "the report", func() error {
		r, err := c.GetRoute(testContext(t), &pdpb.GetRouteRequest{Key: []byte("k")})
		if err != nil {
			return err
		}
		if r.GetRoute().GetLeader().GetStoreId() != m.GetStoreId() {
			return fmt.Errorf("route %v", r)
		}
		return nil
	})
}

// The store that won bootstrap is told to bear the first range until it has
// reported it, and never again after that, whatever PD did meanwhile.
func TestFirstRangeIsBornOnce(t *testing.T) {
	c := startCluster(t, 1, nil)
	first := register(t, c.client(), 0, "a").GetFirstRange()
	c.kill(0)
	c.start(0)
	client := c.client()
	if register(t, client, 1, "a").GetFirstRange() == nil {
		t.Fatal("not told again although the range was never reported")
	}
	heartbeat(t, client, 1)
	report(t, client, first)
	eventually(t, "the birth to be written down", func() error {
		if r := register(t, client, 1, "a"); r.GetFirstRange() != nil {
			return errors.New("told again")
		}
		return nil
	})
}

func TestAheadOfAll(t *testing.T) {
	for _, c := range []struct {
		others []time.Duration
		want   bool
	}{
		{nil, false},
		{[]time.Duration{0}, false},
		{[]time.Duration{-2 * time.Hour}, true},
		{[]time.Duration{2 * time.Hour}, false},
		{[]time.Duration{-2 * time.Hour, 0}, false},
		{[]time.Duration{-2 * time.Hour, -3 * time.Hour}, true},
	} {
		others := map[uint64]time.Duration{}
		for i, d := range c.others {
			others[uint64(i+2)] = d
		}
		if got := aheadOfAll(others); got != c.want {
			t.Errorf("others ahead by %v: declines %v, want %v", c.others, got, c.want)
		}
	}
}
