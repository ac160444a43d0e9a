package pd

import (
	"context"
	"errors"
	"sync"
	"testing"
	"time"

	metapb "github.com/ridgekv/ridge/proto/ridge/meta/v1"
	pdpb "github.com/ridgekv/ridge/proto/ridge/pd/v1"
)

// TestCutOffLeaderOrdersNothing: a leader that lost its group still hears its
// stores. It repeats no order, and soon says that it does not lead.
func TestCutOffLeaderOrdersNothing(t *testing.T) {
	c := startCluster(t, 3, nil)
	at := c.leader()
	client := c.nodes[at].client
	first := register(t, client, 0, "a").GetFirstRange()
	register(t, client, 0, "b")
	ctx, cancel := context.WithCancel(testContext(t))
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	wg.Go(func() { // both stores go on
		for ctx.Err() == nil {
			for id := range uint64(2) {
				_, _ = client.StoreHeartbeat(ctx, &pdpb.StoreHeartbeatRequest{
					StoreId: id + 1, Stats: &pdpb.StoreStats{},
				})
			}
			rest(ctx)
		}
	})
	stream, err := client.RangeHeartbeat(ctx)
	if err != nil {
		t.Fatal(err)
	}
	err = stream.Send(&pdpb.RangeHeartbeatRequest{StoreId: 1, Ranges: []*pdpb.RangeReport{{
		Range: first, Leader: &metapb.Leader{ReplicaId: 1, StoreId: 1, Term: 6},
	}}})
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, "the map to be written down", func() error { // else the driver waits for that
		if register(t, client, 1, "a").GetFirstRange() != nil {
			return errors.New("not yet")
		}
		return nil
	})
	for range 3 { // it is repeated
		m, err := stream.Recv()
		if err != nil || m.GetError() != nil || m.GetOrders()[0].GetAddLearner() == nil {
			t.Fatalf("%v, %v", m, err)
		}
	}
	c.kill((at + 1) % 3)
	c.kill((at + 2) % 3)
	alone := time.Now()
	for {
		m, err := stream.Recv()
		if err != nil {
			t.Fatal(err)
		}
		if m.GetError().GetReason() == notLeader {
			break
		}
		if since := time.Since(alone); since > time.Second { // a pass may have been under way
			t.Fatalf("ordered %v %s after it was cut off", m.GetOrders(), since)
		}
	}
	t.Logf("it said so after %s", time.Since(alone))
	e, err := calls["GetRoute"](testContext(t), client, nil)
	want(t, "a route", e, err, notLeader)
}
