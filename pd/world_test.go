package pd

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/ridgekv/ridge/proto/keys"
	metapb "github.com/ridgekv/ridge/proto/ridge/meta/v1"
	pdpb "github.com/ridgekv/ridge/proto/ridge/pd/v1"
)

// world is what stores would hold: ranges without data, changed at once by
// whoever gets an order. It judges the orders.
type world struct {
	t *testing.T
	c *cluster

	mu      sync.Mutex
	ranges  map[uint64]*metapb.Range
	leaders map[uint64]uint64            // range → store
	sizes   map[uint64]uint64            // range → bytes
	held    map[uint64]map[uint64]uint64 // store → range → replica
	named   map[uint64]bool              // ids of replicas and ranges ever given
	stopped map[uint64]bool              // stores that are switched off
	orders  map[string]int
}

func newWorld(t *testing.T, c *cluster) *world {
	return &world{
		t: t, c: c, ranges: map[uint64]*metapb.Range{}, leaders: map[uint64]uint64{},
		sizes: map[uint64]uint64{}, held: map[uint64]map[uint64]uint64{},
		named: map[uint64]bool{}, stopped: map[uint64]bool{}, orders: map[string]int{},
	}
}

// call tries all PD nodes until one answers without an error.
func (w *world) call(ctx context.Context, f func(pdpb.PDServiceClient) error) error {
	err := errors.New("no PD node")
	for _, n := range w.c.nodes {
		if err = f(n.client); err == nil || ctx.Err() != nil {
			return err
		}
	}
	return err
}

// store runs one store until ctx ends.
func (w *world) store(ctx context.Context, name string) {
	id := uint64(0)
	for ctx.Err() == nil && id == 0 {
		_ = w.call(ctx, func(c pdpb.PDServiceClient) error {
			r, err := c.RegisterStore(ctx, &pdpb.RegisterStoreRequest{
				Store: &metapb.Store{
					GrpcAddress: name + ":1", RaftAddress: name + ":2", Labels: labelsOf(name),
				},
			})
			if err == nil {
				err = asError(r.GetError())
			}
			if err == nil {
				id = r.GetStoreId()
				w.bear(id, r.GetFirstRange())
			}
			return err
		})
		rest(ctx)
	}
	for ctx.Err() == nil {
		for _, n := range w.c.nodes {
			w.talk(ctx, n.client, id)
		}
		rest(ctx)
	}
}

// labelsOf are the labels of a store by its name: "s4@eu" is in the zone eu.
func labelsOf(name string) map[string]string {
	if _, zone, ok := strings.Cut(name, "@"); ok {
		return map[string]string{"zone": zone}
	}
	return nil
}

func rest(ctx context.Context) {
	t := time.NewTimer(20 * time.Millisecond)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-t.C:
	}
}

func (w *world) bear(id uint64, first *metapb.Range) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.held[id] == nil {
		w.held[id] = map[uint64]uint64{}
	}
	if first != nil && w.ranges[first.GetRangeId()] == nil {
		w.ranges[first.GetRangeId()], w.leaders[first.GetRangeId()] = first, id
		w.held[id][first.GetRangeId()] = first.GetReplicas()[0].GetReplicaId()
	}
}

// talk uses one PD node for as long as it leads.
func (w *world) talk(ctx context.Context, c pdpb.PDServiceClient, id uint64) {
	ctx, cancel := context.WithCancel(ctx)
	stream, err := c.RangeHeartbeat(ctx)
	if err != nil {
		cancel()
		return
	}
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	wg.Go(func() {
		defer cancel()
		for {
			m, err := stream.Recv()
			if err != nil || m.GetError() != nil {
				return
			}
			for _, o := range m.GetOrders() {
				w.obey(ctx, c, id, o)
			}
		}
	})
	for ctx.Err() == nil {
		h, err := c.StoreHeartbeat(ctx, &pdpb.StoreHeartbeatRequest{
			StoreId: id, Stats: &pdpb.StoreStats{CapacityBytes: 1 << 40, AvailableBytes: 1 << 40},
			DiskState: metapb.DiskState_DISK_STATE_OK,
		})
		if err != nil || h.GetError() != nil || stream.Send(w.report(id)) != nil {
			return
		}
		rest(ctx)
	}
}

// report is the complete report of a store.
func (w *world) report(id uint64) *pdpb.RangeHeartbeatRequest {
	w.mu.Lock()
	defer w.mu.Unlock()
	m := &pdpb.RangeHeartbeatRequest{StoreId: id, Complete: true}
	for rangeID, replica := range w.held[id] {
		m.Replicas = append(m.Replicas, &pdpb.LocalReplica{RangeId: rangeID, ReplicaId: replica})
		if w.leaders[rangeID] == id {
			m.Ranges = append(m.Ranges, w.reportLocked(rangeID))
		}
	}
	return m
}

func (w *world) reportLocked(id uint64) *pdpb.RangeReport {
	r := w.ranges[id]
	out := &pdpb.RangeReport{
		Range: proto.CloneOf(r), SizeBytes: w.sizes[id], KeyCount: 10,
		Leader: &metapb.Leader{StoreId: w.leaders[id], Term: 6},
	}
	for _, m := range r.GetReplicas() {
		if m.GetStoreId() == w.leaders[id] {
			out.Leader.ReplicaId = m.GetReplicaId()
		}
		out.Health = append(out.Health, &pdpb.ReplicaHealth{
			ReplicaId: m.GetReplicaId(),
			Lagging:   w.held[m.GetStoreId()][id] != m.GetReplicaId(),
		})
	}
	return out
}

// obey carries an order out as a store would, and judges it.
func (w *world) obey(ctx context.Context, c pdpb.PDServiceClient, id uint64, o *pdpb.Order) {
	if o.GetSplit() != nil {
		w.split(ctx, c, o)
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	r := w.ranges[o.GetRangeId()]
	if s := o.GetCreateReplica(); s != nil {
		if _, ok := w.held[id][o.GetRangeId()]; !ok {
			w.held[id][o.GetRangeId()] = s.GetReplicaId()
			w.nameLocked(s.GetReplicaId())
		}
		return
	}
	if s := o.GetDestroyReplica(); s != nil {
		if find(r, s.GetReplicaId()) != nil {
			w.t.Errorf("a member is condemned: %v, %v", o, r)
		}
		if w.held[id][o.GetRangeId()] == s.GetReplicaId() {
			delete(w.held[id], o.GetRangeId())
		}
		return
	}
	if w.leaders[o.GetRangeId()] != id || r.GetEpoch().GetConfig() != o.GetEpoch().GetConfig() {
		return // for a former leader, or at a former epoch
	}
	next := proto.CloneOf(r)
	next.Epoch.Config += 2
	switch s := o.GetStep().(type) {
	case *pdpb.Order_AddLearner:
		if find(r, s.AddLearner.GetReplicaId()) != nil {
			return
		}
		next.Replicas = append(next.Replicas, &metapb.Replica{
			ReplicaId: s.AddLearner.GetReplicaId(), StoreId: s.AddLearner.GetStoreId(),
			Role: metapb.Role_ROLE_LEARNER,
		})
	case *pdpb.Order_Promote:
		find(next, s.Promote.GetReplicaId()).Role = metapb.Role_ROLE_VOTER
	case *pdpb.Order_RemoveReplica:
		gone := find(r, s.RemoveReplica.GetReplicaId())
		if !w.stopped[gone.GetStoreId()] {
			delete(w.held[gone.GetStoreId()], r.GetRangeId()) // it applies its own removal
		}
		next.Replicas = slices.DeleteFunc(next.Replicas, func(m *metapb.Replica) bool {
			return m.GetReplicaId() == s.RemoveReplica.GetReplicaId()
		})
	case *pdpb.Order_TransferLeader:
		if !w.stopped[s.TransferLeader.GetStoreId()] {
			w.leaders[r.GetRangeId()] = s.TransferLeader.GetStoreId()
		}
		return
	}
	w.orders[fmt.Sprintf("%T", o.GetStep())]++
	w.judgeLocked(o, r, next)
	w.ranges[r.GetRangeId()] = next
}

func (w *world) nameLocked(id uint64) {
	if w.named[id] {
		w.t.Errorf("id %d was given twice", id)
	}
	w.named[id] = true
}

func find(r *metapb.Range, replicaID uint64) *metapb.Replica {
	for _, m := range r.GetReplicas() {
		if m.GetReplicaId() == replicaID {
			return m
		}
	}
	return nil
}

// judgeLocked: a change keeps a majority of voters on stores that run, and the
// leader among them.
func (w *world) judgeLocked(o *pdpb.Order, before, after *metapb.Range) {
	voters, running, leads := 0, 0, false
	for _, m := range after.GetReplicas() {
		if m.GetRole() == metapb.Role_ROLE_VOTER {
			voters++
			if !w.stopped[m.GetStoreId()] {
				running++
			}
			leads = leads || m.GetStoreId() == w.leaders[after.GetRangeId()]
		}
	}
	if running < voters/2+1 || !leads {
		w.t.Errorf("%v leaves %d of %d voters running, of %v", o, running, voters, before)
	}
}

func (w *world) split(ctx context.Context, c pdpb.PDServiceClient, o *pdpb.Order) {
	w.mu.Lock()
	left := proto.CloneOf(w.ranges[o.GetRangeId()])
	leader := w.leaders[o.GetRangeId()]
	w.mu.Unlock()
	key := o.GetSplit().GetSplitKey()
	if len(key) == 0 {
		key = append(bytes.Clone(left.GetSpan().GetStart()), 'm')
	}
	ids, err := c.AskSplit(ctx, &pdpb.AskSplitRequest{Range: left})
	if err != nil || ids.GetError() != nil || !keys.FromProto(left.GetSpan()).Contains(key) {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if !proto.Equal(w.ranges[o.GetRangeId()].GetEpoch(), o.GetEpoch()) {
		return
	}
	left.Epoch.Span++
	right := proto.CloneOf(left)
	right.RangeId, right.Epoch.Config = ids.GetChildRangeId(), 5
	left.Span.End, right.Span.Start = key, key
	w.nameLocked(right.GetRangeId())
	for i, m := range right.GetReplicas() {
		m.ReplicaId = ids.GetChildReplicaIds()[i]
		w.nameLocked(m.GetReplicaId())
		w.held[m.GetStoreId()][right.GetRangeId()] = m.GetReplicaId()
	}
	w.ranges[left.GetRangeId()], w.ranges[right.GetRangeId()] = left, right
	w.leaders[right.GetRangeId()] = leader
	w.sizes[left.GetRangeId()], w.sizes[right.GetRangeId()] = 1, 1
	_, _ = c.ReportSplit(ctx, &pdpb.ReportSplitRequest{
		Left: w.reportLocked(left.GetRangeId()), Right: w.reportLocked(right.GetRangeId()),
	})
}

// await waits until every range has exactly these stores as voters.
func (w *world) await(what string, ranges int, voters ...uint64) {
	w.t.Helper()
	eventually(w.t, what, func() error {
		w.mu.Lock()
		defer w.mu.Unlock()
		if len(w.ranges) != ranges {
			return fmt.Errorf("%d ranges", len(w.ranges))
		}
		for _, r := range w.ranges {
			var have []uint64
			for _, m := range r.GetReplicas() {
				if m.GetRole() == metapb.Role_ROLE_VOTER {
					have = append(have, m.GetStoreId())
				}
			}
			if slices.Sort(have); !slices.Equal(have, voters) || len(have) != len(r.GetReplicas()) {
				return fmt.Errorf("range %v", r)
			}
		}
		return nil
	})
}

// routes checks that PD's map is the truth.
func (w *world) routes() {
	w.t.Helper()
	eventually(w.t, "the map to be the truth", func() error {
		return w.call(testContext(w.t), func(c pdpb.PDServiceClient) error {
			r, err := c.ListRoutes(testContext(w.t), &pdpb.ListRoutesRequest{})
			if err != nil {
				return err
			}
			if r.GetError() != nil {
				return asError(r.GetError())
			}
			w.mu.Lock()
			defer w.mu.Unlock()
			if len(r.GetRoutes()) != len(w.ranges) {
				return fmt.Errorf("%d routes of %d", len(r.GetRoutes()), len(w.ranges))
			}
			for _, route := range r.GetRoutes() {
				if id := route.GetRange().GetRangeId(); !proto.Equal(route.GetRange(), w.ranges[id]) ||
					route.GetLeader().GetStoreId() != w.leaders[id] {
					return fmt.Errorf("%v is %v", route, w.ranges[id])
				}
			}
			return nil
		})
	})
}

// TestLifeOfACluster: stores come and grow the ranges, a range is split by size
// and by hand, PD's leader dies, a store dies and is replaced; every order is
// judged, and whoever watches learns all of it.
func TestLifeOfACluster(t *testing.T) {
	c := startCluster(t, 3, func(o *Options) { o.SplitSizeBytes = 64 << 10 })
	c.leader()
	w := newWorld(t, c)
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	stops := map[uint64]func(){}
	start := func(id uint64) {
		one, stop := context.WithCancel(ctx)
		done := make(chan struct{})
		wg.Go(func() { w.store(one, fmt.Sprint("s", id)); close(done) })
		stops[id] = func() { stop(); <-done }
		eventually(t, "a store to join", func() error {
			w.mu.Lock()
			defer w.mu.Unlock()
			if w.held[id] == nil {
				return errors.New("not yet")
			}
			return nil
		})
	}
	start(1)
	w.await("one voter", 1, 1)
	start(2)
	eventually(t, "a learner", func() error {
		w.mu.Lock()
		defer w.mu.Unlock()
		if n := len(w.ranges[1].GetReplicas()); n != 2 {
			return fmt.Errorf("%d replicas", n)
		}
		return nil
	})
	start(3)
	w.await("three voters", 1, 1, 2, 3)
	watched := watch(ctx, t, &wg, c.client())
	w.mu.Lock()
	w.sizes[1] = 1 << 20
	w.mu.Unlock()
	w.await("a split by size", 2, 1, 2, 3)
	w.routes()
	eventually(t, "a split by hand", func() error { // the operator before may not be over yet
		r, err := c.client().SplitRange(ctx, &pdpb.SplitRangeRequest{Key: []byte("b")})
		return errors.Join(err, asError(r.GetError()))
	})
	w.await("a split by hand", 3, 1, 2, 3)
	w.routes()
	eventually(t, "the watcher to see it", func() error {
		if n := watched(); n != 3 {
			return fmt.Errorf("%d ranges", n)
		}
		return nil
	})
	r, err := c.client().SplitRange(ctx, &pdpb.SplitRangeRequest{Key: []byte("b")})
	want(t, "the same split again", r.GetError(), err, noReason)

	c.kill(c.leader())
	start(4)
	w.mu.Lock()
	w.stopped[3] = true
	for id, store := range w.leaders { // Raft elects others
		if store == 3 {
			w.leaders[id] = 1
		}
	}
	w.mu.Unlock()
	stops[3]()
	w.await("the store that is down to be replaced", 3, 1, 2, 4)
	w.routes()
	s, err := c.admin().DrainStore(ctx, &pdpb.DrainStoreRequest{StoreId: 1})
	want(t, "draining", s.GetError(), err, noReason)
	eventually(t, "store 1 to lead nothing", func() error {
		w.mu.Lock()
		defer w.mu.Unlock()
		for id, store := range w.leaders {
			if store == 1 {
				return fmt.Errorf("range %d", id)
			}
		}
		return nil
	})
}

// watch counts the ranges that a watcher of everything has heard of.
func watch(
	ctx context.Context, t *testing.T, wg *sync.WaitGroup, c pdpb.PDServiceClient,
) func() int {
	t.Helper()
	stream, err := c.WatchRoutes(ctx, &pdpb.WatchRoutesRequest{})
	if err != nil {
		t.Fatal(err)
	}
	first, err := stream.Recv()
	if err != nil || !first.GetSynced() || len(first.GetRoutes()) != 1 || len(first.GetStores()) != 3 {
		t.Fatalf("watching begins with %v, %v", first, err)
	}
	var mu sync.Mutex
	known := map[uint64]bool{}
	wg.Go(func() {
		for {
			m, err := stream.Recv()
			if err != nil {
				return
			}
			mu.Lock()
			for _, r := range m.GetRoutes() {
				known[r.GetRange().GetRangeId()] = true
			}
			mu.Unlock()
		}
	})
	return func() int {
		mu.Lock()
		defer mu.Unlock()
		return len(known)
	}
}
