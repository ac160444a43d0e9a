package agent

import (
	"context"
	"errors"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"
	"google.golang.org/grpc"

	"github.com/ridgekv/ridge/client/storeclient"
	logpb "github.com/ridgekv/ridge/proto/ridge/log/v1"
	metapb "github.com/ridgekv/ridge/proto/ridge/meta/v1"
	pdpb "github.com/ridgekv/ridge/proto/ridge/pd/v1"
	storepb "github.com/ridgekv/ridge/proto/ridge/store/v1"
	"github.com/ridgekv/ridge/storenode/internal/catalog"
	"github.com/ridgekv/ridge/storenode/internal/engine"
	"github.com/ridgekv/ridge/storenode/internal/evaluate"
	"github.com/ridgekv/ridge/storenode/internal/raft"
)

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m,
		goleak.IgnoreTopFunction("github.com/golang/glog.(*fileSink).flushDaemon"))
}

// fakeHost plays raft for range 1: replica 1 here (store 1), replica 2 on store
// 2, learner 3 on store 3, at config 20, led here at term 2.
type fakeHost struct {
	mu      sync.Mutex
	calls   []string
	members []*metapb.Replica
	config  uint64
	leader  raft.Leader
	suspect map[uint64]bool
	// settle is what happens until all is decided.
	settle func() error
	// read is what happens until a read of its own is answered.
	read func() error
	// block holds calls until it is closed.
	block chan struct{}
}

func newFakeHost() *fakeHost {
	return &fakeHost{
		config: 20,
		members: []*metapb.Replica{
			{ReplicaId: 1, StoreId: 1, Role: metapb.Role_ROLE_VOTER},
			{ReplicaId: 2, StoreId: 2, Role: metapb.Role_ROLE_VOTER},
			{ReplicaId: 3, StoreId: 3, Role: metapb.Role_ROLE_LEARNER},
		},
		leader:  raft.Leader{ReplicaID: 1, StoreID: 1, Term: 2, Known: true, Self: true},
		suspect: map[uint64]bool{},
	}
}

func (h *fakeHost) call(name string) error {
	h.mu.Lock()
	h.calls = append(h.calls, name)
	block := h.block
	h.mu.Unlock()
	if block != nil {
		<-block
	}
	return nil
}

func (h *fakeHost) called() []string {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.Clone(h.calls)
}

func (h *fakeHost) AddLearner(context.Context, uint64, uint64, uint64, uint64) error {
	return h.call("add")
}

func (h *fakeHost) Promote(context.Context, uint64, uint64, uint64, uint64) error {
	return h.call("promote")
}

func (h *fakeHost) RemoveReplica(context.Context, uint64, uint64, uint64) error {
	return h.call("remove")
}

func (h *fakeHost) TransferLeader(_ context.Context, _, replicaID uint64) error {
	h.mu.Lock()
	h.leader = raft.Leader{ReplicaID: replicaID, StoreID: 2, Term: 3, Known: true}
	h.mu.Unlock()
	return h.call("transfer")
}

func (h *fakeHost) BearFirst(context.Context, *metapb.Range) error { return h.call("bear") }

func (h *fakeHost) CreateLearner(context.Context, uint64, uint64) error { return h.call("create") }

func (h *fakeHost) DestroyReplica(context.Context, uint64, uint64) error {
	return h.call("destroy")
}

func (h *fakeHost) CaughtUp(context.Context, uint64) error {
	if h.read == nil {
		return nil
	}
	return h.read()
}

func (h *fakeHost) Leader(rangeID uint64) raft.Leader {
	h.mu.Lock()
	defer h.mu.Unlock()
	if rangeID != 1 {
		return raft.Leader{}
	}
	return h.leader
}

func (h *fakeHost) Membership(rangeID uint64) ([]*metapb.Replica, uint64, bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.members, h.config, rangeID == 1
}

func (h *fakeHost) Suspect(storeID uint64, silent bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.suspect[storeID] = silent
}

// fakeLeaseholder notes transfers.
type fakeLeaseholder struct{ host *fakeHost }

func (f fakeLeaseholder) Split(
	context.Context, uint64, []byte, evaluate.SplitChild,
) (left, right *metapb.Range, err error) {
	return nil, nil, errors.New("not here")
}

func (f fakeLeaseholder) PrepareTransfer(context.Context, uint64) error {
	return f.host.call("prepare")
}

func (f fakeLeaseholder) Settled(context.Context, uint64) error {
	if f.host.settle == nil {
		return nil
	}
	return f.host.settle()
}

func (f fakeLeaseholder) Leaseholder(uint64) bool { return true }

func (f fakeLeaseholder) LoadOf(uint64) evaluate.Load { return evaluate.Load{} }

func (f fakeLeaseholder) Stats(uint64) evaluate.Stats { return evaluate.Stats{ReadOps: 3} }

// peer is the StoreService of store 2.
type peer struct {
	storepb.UnimplementedStoreServiceServer
	// status tells how replica 2 is at the n-th question: nil when it is not there.
	status func(n int64) (*storepb.ReplicaStatus, error)
	asked  *atomic.Int64
}

func (p peer) ListReplicas(
	context.Context, *storepb.ListReplicasRequest,
) (*storepb.ListReplicasResponse, error) {
	s, err := p.status(p.asked.Add(1))
	out := &storepb.ListReplicasResponse{}
	if s != nil {
		out.Replicas = []*storepb.ReplicaStatus{s}
	}
	return out, err
}

// replicaTwo is replica 2 when it follows closely, at a span epoch.
func replicaTwo(spanEpoch uint64) *storepb.ReplicaStatus {
	return &storepb.ReplicaStatus{
		ReplicaId: 2, State: "normal", AppliedIndex: 30,
		Range: &metapb.Range{RangeId: 1, Epoch: &metapb.Epoch{Config: 20, Span: spanEpoch}},
	}
}

// meetPeer lets a reach store 2, whose replica 2 follows closely.
func meetPeer(t *testing.T, a *Agent) *atomic.Int64 {
	t.Helper()
	return meet(t, a, func(int64) (*storepb.ReplicaStatus, error) { return replicaTwo(4), nil })
}

// meet lets a reach store 2, and counts the questions.
func meet(
	t *testing.T, a *Agent, status func(int64) (*storepb.ReplicaStatus, error),
) *atomic.Int64 {
	t.Helper()
	asked := &atomic.Int64{}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer()
	storepb.RegisterStoreServiceServer(server, peer{status: status, asked: asked})
	var wg sync.WaitGroup
	wg.Go(func() { _ = server.Serve(l) })
	a.d.Pool = storeclient.New(storeclient.Options{})
	t.Cleanup(func() {
		_ = a.d.Pool.Close()
		server.Stop()
		wg.Wait()
	})
	err = a.d.Book.Learn([]*metapb.Store{{StoreId: 2, GrpcAddress: l.Addr().String()}})
	if err != nil {
		t.Fatal(err)
	}
	return asked
}

// newTestAgent is an agent over a real engine and catalog with range 1 in them.
func newTestAgent(t *testing.T) (*Agent, *fakeHost) {
	t.Helper()
	e, err := engine.Open(engine.Options{Dir: t.TempDir(), MemTableSizeBytes: 32 << 20})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := e.Close(); err != nil {
			t.Error(err)
		}
	})
	c, err := catalog.Load(e)
	if err != nil {
		t.Fatal(err)
	}
	c.Update(1, rangeOne(nil), catalog.Applied{Index: 30})
	book, err := OpenBook(e)
	if err != nil {
		t.Fatal(err)
	}
	h := newFakeHost()
	a := New(Options{
		HeartbeatInterval: time.Second, RangeHeartbeatInterval: time.Second,
		PingInterval: 10 * time.Millisecond, SilenceAfter: 50 * time.Millisecond,
	}, Deps{
		ClusterID: 7, Self: &metapb.Store{StoreId: 1}, Engine: e, Catalog: c, Host: h,
		Book: book, Clock: NewClock(nil), Evaluator: fakeLeaseholder{h},
	})
	return a, h
}

func rangeOne(edit func(*logpb.RangeState)) *catalog.State {
	pb := &logpb.RangeState{
		RangeId: 1, ReplicaId: 1, Span: &metapb.Span{}, SpanEpoch: 4,
		State:  logpb.ReplicaState_REPLICA_STATE_NORMAL,
		Role:   metapb.Role_ROLE_VOTER,
		Slices: []*logpb.Slice{{Extent: 1, Span: &metapb.Span{}}},
	}
	if edit != nil {
		edit(pb)
	}
	return catalog.NewState(pb)
}

// Orders are checked against what is true now, and repeated ones do nothing.
func TestOrders(t *testing.T) {
	epoch := &metapb.Epoch{Config: 20, Span: 4}
	old := &metapb.Epoch{Config: 19, Span: 3}
	add := func(id uint64) *pdpb.Order {
		return &pdpb.Order{RangeId: 1, Epoch: epoch, Step: &pdpb.Order_AddLearner{
			AddLearner: &pdpb.AddLearner{ReplicaId: id, StoreId: 4},
		}}
	}
	promote := func(id uint64) *pdpb.Order {
		return &pdpb.Order{RangeId: 1, Epoch: epoch, Step: &pdpb.Order_Promote{
			Promote: &pdpb.Promote{ReplicaId: id, StoreId: 3},
		}}
	}
	remove := func(id uint64) *pdpb.Order {
		return &pdpb.Order{RangeId: 1, Epoch: epoch, Step: &pdpb.Order_RemoveReplica{
			RemoveReplica: &pdpb.RemoveReplica{ReplicaId: id},
		}}
	}
	transfer := func(id uint64) *pdpb.Order {
		return &pdpb.Order{RangeId: 1, Epoch: epoch, Step: &pdpb.Order_TransferLeader{
			TransferLeader: &pdpb.TransferLeader{ReplicaId: id},
		}}
	}
	create := func(rangeID, id uint64) *pdpb.Order {
		return &pdpb.Order{RangeId: rangeID, Epoch: epoch, Step: &pdpb.Order_CreateReplica{
			CreateReplica: &pdpb.CreateReplica{ReplicaId: id},
		}}
	}
	destroy := func(id uint64) *pdpb.Order {
		return &pdpb.Order{RangeId: 1, Epoch: epoch, Step: &pdpb.Order_DestroyReplica{
			DestroyReplica: &pdpb.DestroyReplica{ReplicaId: id},
		}}
	}
	split := &pdpb.Order{RangeId: 1, Epoch: epoch, Step: &pdpb.Order_Split{
		Split: &pdpb.SplitOrder{},
	}}
	at := func(o *pdpb.Order, e *metapb.Epoch) *pdpb.Order { o.Epoch = e; return o }
	elsewhere := add(9)
	elsewhere.RangeId = 5
	for _, c := range []struct {
		name  string
		order *pdpb.Order
		calls string
		err   error
	}{
		{"add", add(9), "add", nil},
		{"add again", add(3), "", errDone},
		{"add again, old epoch", at(add(3), old), "", errDone},
		{"add, old epoch", at(add(9), old), "", errStale},
		{"add to a range not here", elsewhere, "", errNotHere},
		{"promote", promote(3), "promote", nil},
		{"promote again", promote(2), "", errDone},
		{"remove", remove(2), "remove", nil},
		{"remove again", remove(7), "", errDone},
		{"transfer", transfer(2), "prepare transfer", nil},
		{"transfer to the leader", transfer(1), "", errDone},
		{"transfer to a learner", transfer(3), "", errStale},
		{"create", create(5, 12), "create", nil},
		{"create what is here", create(1, 1), "", errDone},
		{"destroy what is not here", destroy(2), "", errDone},
		{"destroy", destroy(1), "destroy", nil},
		{"destroy of a member, by an old epoch", at(destroy(1), old), "", errStale},
		{"split without a middle", split, "", errUnsplittable},
		{"split, old epoch", at(&pdpb.Order{RangeId: 1, Step: split.Step}, old), "", errStale},
		{"empty", &pdpb.Order{RangeId: 1, Epoch: epoch}, "", errUnknown},
	} {
		a, h := newTestAgent(t)
		meetPeer(t, a)
		err := a.carryOut(t.Context(), c.order)
		if !errors.Is(err, c.err) {
			t.Errorf("%s: got %v, want %v", c.name, err, c.err)
		}
		if got := strings.Join(h.called(), " "); got != c.calls {
			t.Errorf("%s: did %q, want %q", c.name, got, c.calls)
		}
	}
}

func TestMembersRestWhileAChildIsUnborn(t *testing.T) {
	a, h := newTestAgent(t)
	a.d.Catalog.Update(1, rangeOne(func(pb *logpb.RangeState) {
		pb.Unborn = []*logpb.UnbornChild{{RangeId: 2, SplitIndex: 9}}
	}), catalog.Applied{Index: 31})
	err := a.carryOut(t.Context(), &pdpb.Order{
		RangeId: 1, Epoch: &metapb.Epoch{Config: 20, Span: 4},
		Step: &pdpb.Order_AddLearner{AddLearner: &pdpb.AddLearner{ReplicaId: 9, StoreId: 4}},
	})
	if !errors.Is(err, errStale) || len(h.called()) != 0 {
		t.Errorf("got %v, %v", err, h.called())
	}
}

// One order per range at a time; a draining store takes none.
func TestOrdersOneAtATime(t *testing.T) {
	a, h := newTestAgent(t)
	h.block = make(chan struct{})
	o := &pdpb.Order{
		RangeId: 1, Epoch: &metapb.Epoch{Config: 20, Span: 4},
		Step: &pdpb.Order_AddLearner{AddLearner: &pdpb.AddLearner{ReplicaId: 9, StoreId: 4}},
	}
	for range 5 {
		a.obey(t.Context(), o)
	}
	for i := range uint64(2 * maxOrders) {
		a.obey(t.Context(), &pdpb.Order{RangeId: 100 + i, Step: &pdpb.Order_CreateReplica{
			CreateReplica: &pdpb.CreateReplica{ReplicaId: 1},
		}})
	}
	a.mu.Lock()
	busy := len(a.mu.busy)
	a.mu.Unlock()
	if busy != maxOrders {
		t.Errorf("%d orders under way, want %d", busy, maxOrders)
	}
	close(h.block)
	a.workers.Wait()
	if n := len(h.called()); n != maxOrders {
		t.Errorf("%d calls, want %d", n, maxOrders)
	}
	a.StopOrders()
	a.obey(t.Context(), o)
	a.workers.Wait()
	if n := len(h.called()); n != maxOrders {
		t.Error("a draining store obeyed")
	}
}

// Only what changed is reported between complete lists.
func TestReportsTellChanges(t *testing.T) {
	a, h := newTestAgent(t)
	sent := map[uint64]mark{}
	m := a.report(sent, true)
	if !m.GetComplete() || len(m.GetReplicas()) != 1 || len(m.GetRanges()) != 1 {
		t.Fatalf("complete: %v", m)
	}
	r := m.GetRanges()[0]
	if r.GetRange().GetEpoch().GetConfig() != 20 || r.GetLeader().GetTerm() != 2 ||
		r.GetReadOps() != 3 || r.GetAppliedIndex() != 30 || len(r.GetHealth()) != 3 {
		t.Errorf("report %v", r)
	}
	if r.GetHealth()[1].GetLagging() || !r.GetHealth()[2].GetLagging() {
		t.Errorf("a learner lags until it is known not to: %v", r.GetHealth())
	}
	if m := a.report(sent, false); m != nil {
		t.Fatalf("nothing changed: %v", m)
	}
	a.health.settle(map[replicaKey]bool{{1, 3}: true}, nil)
	if m := a.report(sent, false); len(m.GetRanges()) != 1 ||
		m.GetRanges()[0].GetHealth()[2].GetLagging() {
		t.Fatalf("the learner is ready: %v", m)
	}
	h.mu.Lock()
	h.leader = raft.Leader{ReplicaID: 2, StoreID: 2, Term: 3, Known: true}
	h.mu.Unlock()
	if m := a.report(sent, false); m.GetComplete() || len(m.GetRanges()) != 0 ||
		len(m.GetReplicas()) != 1 || !m.GetReplicas()[0].GetLed() {
		t.Fatalf("the leader left: %v", m)
	}
	a.d.Catalog.Remove(1)
	if m := a.report(sent, false); !m.GetComplete() || len(m.GetReplicas()) != 0 {
		t.Fatalf("the replica left: %v", m)
	}
}

func TestSizes(t *testing.T) {
	a, _ := newTestAgent(t)
	r, _ := a.d.Catalog.Replica(1)
	if _, _, known := a.sizes.estimate(r); known || !a.sizes.stale(r, 800) {
		t.Error("known before it was measured")
	}
	a.sizes.store(1, measured{spanEpoch: 4, Measure: engine.Measure{SizeBytes: 100, Keys: 2}})
	if n, _, _ := a.sizes.estimate(r); n != 100 || a.sizes.stale(r, 800) {
		t.Errorf("size %d", n)
	}
	r.AddWritten(100)
	if n, _, _ := a.sizes.estimate(r); n != 200 || a.sizes.stale(r, 800) {
		t.Errorf("size %d after 100 more", n)
	}
	r.AddWritten(1)
	if !a.sizes.stale(r, 800) {
		t.Error("an eighth was written, and it need not be measured")
	}
	a.d.Catalog.Update(1, rangeOne(func(pb *logpb.RangeState) { pb.SpanEpoch = 5 }),
		catalog.Applied{Index: 31})
	if _, _, known := a.sizes.estimate(r); known {
		t.Error("half of a split is taken for the whole")
	}
}

// A draining store gives its ranges to voters that keep up, and to nobody else.
func TestHandAway(t *testing.T) {
	a, h := newTestAgent(t)
	meetPeer(t, a)
	a.HandAway(t.Context())
	if got := strings.Join(h.called(), " "); got != "prepare transfer" {
		t.Errorf("did %q", got)
	}
	a, h = newTestAgent(t)
	meetPeer(t, a)
	a.d.Catalog.Update(1, rangeOne(nil), catalog.Applied{Index: 30 + 2*heirLag})
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	a.HandAway(ctx)
	if got := h.called(); len(got) != 0 {
		t.Errorf("gave the range to a voter that is behind: %v", got)
	}
	a, h = newTestAgent(t)
	a.watch.lose(2)
	a.HandAway(t.Context())
	if got := h.called(); len(got) != 0 {
		t.Errorf("gave the range to a silent store: %v", got)
	}
}
