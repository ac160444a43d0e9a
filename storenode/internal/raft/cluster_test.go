package raft

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"os"
	"sync"
	"testing"
	"time"

	sm "github.com/lni/dragonboat/v4/statemachine"
	"go.uber.org/goleak"

	logpb "github.com/ridgekv/ridge/proto/ridge/log/v1"
	metapb "github.com/ridgekv/ridge/proto/ridge/meta/v1"
	"github.com/ridgekv/ridge/proto/ts"
	"github.com/ridgekv/ridge/storenode/internal/apply"
	"github.com/ridgekv/ridge/storenode/internal/catalog"
	"github.com/ridgekv/ridge/storenode/internal/engine"
)

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m,
		// Dragonboat's Pebble and Badger's caches keep these for the process.
		goleak.IgnoreTopFunction("github.com/golang/glog.(*fileSink).flushDaemon"),
		goleak.IgnoreTopFunction("github.com/cockroachdb/pebble/vfs.(*diskHealthCheckingFS).startTickerLocked.func1"),
	)
}

const testTimeout = 20 * time.Second

// testCluster is several stores in one process.
type testCluster struct {
	stores map[uint64]*testStore
	opts   func(*Options)
	mu     sync.Mutex
	addrs  map[uint64]string
	// hosts are those that run, for the hooks.
	hosts map[uint64]*Host
}

// testStore is one store. host, engine and catalog are nil while it is down.
type testStore struct {
	c       *testCluster
	id      uint64
	dir     string
	address string
	engine  *engine.Engine
	catalog *catalog.Catalog
	host    *Host
	// wrap, when set, wraps every machine.
	wrap func(rangeID, replicaID uint64, m sm.IOnDiskStateMachine) sm.IOnDiskStateMachine
	// meddle, when set, is called with every host before it opens.
	meddle func(h *Host)
	births sync.Map // range id of every birth announced
	cancel context.CancelFunc
	done   chan error
}

// newTestCluster makes stores 1..n without starting them.
func newTestCluster(t testing.TB, n int) *testCluster {
	t.Helper()
	c := &testCluster{
		stores: make(map[uint64]*testStore), addrs: make(map[uint64]string),
		hosts: make(map[uint64]*Host),
	}
	for id := uint64(1); id <= uint64(n); id++ {
		s := &testStore{c: c, id: id, dir: t.TempDir(), address: freeAddress(t)}
		c.addrs[id] = s.address
		c.stores[id] = s
	}
	return c
}

// shippedTicks makes elections as slow as they are by default.
func shippedTicks(o *Options) { o.Tick = 0 }

// startTestCluster starts stores 1..n, with range 1 on store 1.
func startTestCluster(t testing.TB, n int, opts func(*Options)) *testCluster {
	t.Helper()
	c := newTestCluster(t, n)
	c.opts = opts
	for _, s := range c.stores {
		s.start(t)
	}
	c.stores[1].bearFirst(t)
	return c
}

// freeAddress picks a port that nobody listens on. Dragonboat cannot be given
// port 0.
func freeAddress(t testing.TB) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

func (c *testCluster) resolve(storeID uint64) (string, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	a, ok := c.addrs[storeID]
	return a, ok
}

func (s *testStore) options() Options {
	o := Options{
		Dir: s.dir + "/log", ClusterID: 42, StoreID: s.id, ListenAddress: s.address,
		Resolve: s.c.resolve, ExecShards: 2, LogShards: 1, Logger: testLogger(),
		LogSnapshotInterval: 20 * time.Millisecond, Tick: 50 * time.Millisecond,
	}
	if s.c.opts != nil {
		s.c.opts(&o)
	}
	return o
}

// openOnly opens a host without an engine and without running it.
func (s *testStore) openOnly(t testing.TB) *Host {
	t.Helper()
	h, err := Open(s.options(), Deps{})
	if err != nil {
		t.Fatal(err)
	}
	return h
}

func (s *testStore) openEngine(t testing.TB) {
	t.Helper()
	e, err := engine.Open(engine.Options{
		Dir: s.dir + "/engine", MemTableSizeBytes: 32 << 20, BlockCacheSizeBytes: 1 << 20,
		Logger: testLogger(),
	})
	if err != nil {
		t.Fatal(err)
	}
	c, err := catalog.Load(e)
	if err != nil {
		t.Fatal(err)
	}
	s.engine, s.catalog = e, c
}

// start starts the store and waits until its replicas were started.
func (s *testStore) start(t testing.TB) {
	t.Helper()
	if s.engine == nil {
		s.openEngine(t)
	}
	h := s.open(t)
	if s.wrap != nil {
		inner := h.newMachine
		h.newMachine = func(rangeID, replicaID uint64) sm.IOnDiskStateMachine {
			return s.wrap(rangeID, replicaID, inner(rangeID, replicaID))
		}
	}
	h.Births(func(rangeID uint64, members []*metapb.Replica) {
		s.births.Store(rangeID, members)
		s.c.mu.Lock()
		defer s.c.mu.Unlock()
		for _, other := range s.c.hosts {
			other.ChildStarted(rangeID, s.id)
		}
	})
	s.c.mu.Lock()
	s.c.hosts[s.id] = h
	s.c.mu.Unlock()
	ctx, cancel := context.WithCancel(context.Background())
	s.host, s.cancel, s.done = h, cancel, make(chan error, 1)
	done := s.done
	var wg sync.WaitGroup
	wg.Go(func() { done <- h.Run(ctx) })
	t.Cleanup(func() { s.stop(t) })
	select {
	case <-h.Booted():
	case <-time.After(testTimeout):
		t.Fatal("not booted")
	}
}

func (s *testStore) open(t testing.TB) *Host {
	t.Helper()
	deps := Deps{Engine: s.engine, Catalog: s.catalog}
	if s.meddle == nil {
		h, err := Open(s.options(), deps)
		must(t, err)
		return h
	}
	h := newHost(s.options().withDefaults(), deps)
	s.meddle(h)
	must(t, h.openNodeHost())
	return h
}

// stop stops the store. The directories stay.
func (s *testStore) stop(t testing.TB) {
	t.Helper()
	s.stopHost(t)
	s.closeEngine(t)
}

func (s *testStore) stopHost(t testing.TB) {
	t.Helper()
	if s.host == nil {
		return
	}
	s.c.mu.Lock()
	delete(s.c.hosts, s.id)
	s.c.mu.Unlock()
	s.cancel()
	if err := <-s.done; err != nil {
		t.Errorf("store %d: %v", s.id, err)
	}
	s.host = nil
}

func (s *testStore) closeEngine(t testing.TB) {
	t.Helper()
	if s.engine == nil {
		return
	}
	if err := s.engine.Close(); err != nil {
		t.Errorf("store %d: %v", s.id, err)
	}
	s.engine, s.catalog = nil, nil
}

func (s *testStore) restart(t testing.TB) {
	t.Helper()
	s.stop(t)
	s.start(t)
}

func (s *testStore) bearFirst(t testing.TB) {
	t.Helper()
	if err := s.host.BearFirst(testContext(t), firstRange(s.id)); err != nil {
		t.Fatal(err)
	}
	s.awaitLeader(t, 1, s.id)
	s.acquire(t, 1)
}

func firstRange(storeID uint64) *metapb.Range {
	return &metapb.Range{
		RangeId: 1, Span: &metapb.Span{}, Epoch: &metapb.Epoch{Span: 1},
		Replicas: []*metapb.Replica{
			{ReplicaId: 1, StoreId: storeID, Role: metapb.Role_ROLE_VOTER},
		},
	}
}

// voters are replicas whose ids are those of their stores.
func voters(stores ...uint64) []*metapb.Replica {
	var out []*metapb.Replica
	for _, id := range stores {
		out = append(out, &metapb.Replica{ReplicaId: id, StoreId: id, Role: metapb.Role_ROLE_VOTER})
	}
	return out
}

// grow makes the store a voter of the range, with the replica id given.
func (c *testCluster) grow(t testing.TB, rangeID, replicaID, storeID uint64) {
	t.Helper()
	ctx := testContext(t)
	lead := c.leader(t, rangeID)
	to := c.stores[storeID]
	must(t, lead.host.AddLearner(ctx, rangeID, replicaID, storeID, lead.config(t, rangeID)))
	must(t, to.host.CreateLearner(ctx, rangeID, replicaID))
	eventually(t, "caught up", func() error { return to.host.CaughtUp(ctx, rangeID) })
	must(t, lead.host.Promote(ctx, rangeID, replicaID, storeID, lead.config(t, rangeID)))
	eventually(t, "promoted", func() error {
		m, _, _ := to.host.Membership(rangeID)
		for _, r := range m {
			if r.GetReplicaId() == replicaID && r.GetRole() == metapb.Role_ROLE_VOTER {
				return nil
			}
		}
		return fmt.Errorf("members %v", m)
	})
}

// config waits until the members are known as of what is applied.
func (s *testStore) config(t testing.TB, rangeID uint64) (config uint64) {
	t.Helper()
	eventually(t, "members known", func() error {
		want, known := s.host.ConfigIndex(rangeID)
		_, have, ok := s.host.Membership(rangeID)
		if !known || !ok || want != have {
			return fmt.Errorf("config %d (%v), applied %d (%v)", have, ok, want, known)
		}
		config = have
		return nil
	})
	return config
}

// leader waits until a running store leads the range.
func (c *testCluster) leader(t testing.TB, rangeID uint64) (lead *testStore) {
	t.Helper()
	eventually(t, "leader", func() error {
		for _, s := range c.stores {
			if s.host != nil && s.host.Leader(rangeID).Self {
				lead = s
				return nil
			}
		}
		return fmt.Errorf("nobody leads range %d", rangeID)
	})
	return lead
}

func (s *testStore) awaitLeader(t testing.TB, rangeID, storeID uint64) {
	t.Helper()
	eventually(t, "leader", func() error {
		if l := s.host.Leader(rangeID); !l.Known || l.StoreID != storeID {
			return fmt.Errorf("range %d is led by %+v, want store %d", rangeID, l, storeID)
		}
		return nil
	})
}

// propose proposes and waits.
func (s *testStore) propose(t testing.TB, rangeID uint64, cmd []byte) Outcome {
	t.Helper()
	done := make(chan Outcome, 1)
	s.host.Propose(rangeID, cmd, 5*time.Second, func(o Outcome) { done <- o })
	select {
	case o := <-done:
		return o
	case <-time.After(testTimeout):
		t.Fatal("no outcome")
		return Outcome{}
	}
}

func (s *testStore) readIndex(t testing.TB, rangeID uint64) error {
	t.Helper()
	done := make(chan error, 1)
	s.host.ReadIndex(rangeID, 5*time.Second, func(err error) { done <- err })
	select {
	case err := <-done:
		return err
	case <-time.After(testTimeout):
		t.Fatal("no answer")
		return nil
	}
}

func (s *testStore) state(t testing.TB, rangeID uint64) *catalog.State {
	t.Helper()
	r, ok := s.catalog.Replica(rangeID)
	if !ok {
		t.Fatalf("store %d holds no replica of range %d", s.id, rangeID)
	}
	return r.State()
}

func (s *testStore) applied(t testing.TB, rangeID uint64) catalog.Applied {
	t.Helper()
	r, ok := s.catalog.Replica(rangeID)
	if !ok {
		t.Fatalf("store %d holds no replica of range %d", s.id, rangeID)
	}
	return r.Applied()
}

// acquire takes the lease of a range that is led here.
func (s *testStore) acquire(t testing.TB, rangeID uint64) {
	t.Helper()
	eventually(t, "lease", func() error {
		return applied(s.propose(t, rangeID, acquireEntry(s.state(t, rangeID), s.id)))
	})
}

func acquireEntry(st *catalog.State, storeID uint64) []byte {
	return apply.EncodeMessage(
		apply.Header{Kind: apply.KindAcquireLease, SpanEpoch: st.SpanEpoch()},
		&logpb.AcquireLease{
			HolderReplicaId: st.ReplicaID(), HolderStoreId: storeID, Nonce: storeID,
			ExpectedTenure: st.Tenure(),
		})
}

// put writes a key as the next entry of the tenure in force.
func (s *testStore) put(t testing.TB, rangeID uint64, key, value string) {
	t.Helper()
	must(t, applied(s.propose(t, rangeID, s.entry(t, rangeID, key, value))))
}

func (s *testStore) entry(t testing.TB, rangeID uint64, key, value string) []byte {
	t.Helper()
	return writeEntry(s.state(t, rangeID), s.applied(t, rangeID), key, value)
}

func writeEntry(st *catalog.State, a catalog.Applied, key, value string) []byte {
	return apply.EncodeWrite(
		apply.Header{
			Kind: apply.KindWrite, Tenure: st.Tenure(), Number: a.Number + 1,
			SpanEpoch: st.SpanEpoch(),
		},
		max(a.MaxCommitTS+1, ts.Timestamp(1<<20)),
		[]apply.Effect{{Key: []byte(key), Value: []byte(value)}})
}

// split proposes a split whose child's replica ids are those of their stores.
func (s *testStore) split(t testing.TB, rangeID, childID uint64, key string, stores ...uint64) {
	t.Helper()
	must(t, applied(s.propose(t, rangeID, splitEntry(s.state(t, rangeID), s.applied(t, rangeID),
		childID, key, s.config(t, rangeID), stores...))))
}

func splitEntry(
	st *catalog.State, a catalog.Applied, childID uint64, key string, config uint64,
	stores ...uint64,
) []byte {
	return apply.EncodeMessage(
		apply.Header{
			Kind: apply.KindSplit, Tenure: st.Tenure(), Number: a.Number + 1,
			SpanEpoch: st.SpanEpoch(),
		},
		&logpb.Split{
			SplitKey: []byte(key), ChildRangeId: childID, ChildReplicas: voters(stores...),
			ExpectedConfig: config, MaxReadTs: uint64(a.MaxCommitTS),
		})
}

// get reads a key from the store's engine.
func (s *testStore) get(t testing.TB, rangeID uint64, key string) (string, bool) {
	t.Helper()
	for _, sl := range s.state(t, rangeID).Slices() {
		if !sl.Span.Contains([]byte(key)) {
			continue
		}
		row, ok, err := s.engine.View().Get(sl.Extent, []byte(key))
		if err != nil {
			t.Fatal(err)
		}
		return string(row.Value), ok
	}
	return "", false
}

func applied(o Outcome) error {
	if o.Err != nil {
		return o.Err
	}
	if o.Code != apply.ResultApplied {
		return fmt.Errorf("%s: %s", apply.ResultName(o.Code), o.Data)
	}
	return nil
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func testContext(t testing.TB) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), testTimeout)
	t.Cleanup(cancel)
	return ctx
}

// eventually polls: what is waited for is the state of other goroutines of
// several libraries.
func eventually(t testing.TB, what string, cond func() error) {
	t.Helper()
	deadline := time.Now().Add(testTimeout)
	for {
		err := cond()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s: %v", what, err)
		}
		<-time.After(2 * time.Millisecond)
	}
}

func testLogger() *slog.Logger {
	if !testing.Verbose() || os.Getenv("RIDGE_TEST_LOG") == "" {
		return slog.New(slog.DiscardHandler)
	}
	return slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug}))
}
