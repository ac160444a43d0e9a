package evaluate

import (
	"context"
	"errors"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	sm "github.com/lni/dragonboat/v4/statemachine"
	"go.uber.org/goleak"

	"github.com/ridgekv/ridge/proto/keys"
	logpb "github.com/ridgekv/ridge/proto/ridge/log/v1"
	metapb "github.com/ridgekv/ridge/proto/ridge/meta/v1"
	"github.com/ridgekv/ridge/proto/ts"
	"github.com/ridgekv/ridge/storenode/internal/apply"
	"github.com/ridgekv/ridge/storenode/internal/catalog"
	"github.com/ridgekv/ridge/storenode/internal/engine"
	"github.com/ridgekv/ridge/storenode/internal/raft"
)

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m,
		goleak.IgnoreTopFunction("github.com/golang/glog.(*fileSink).flushDaemon"))
}

const (
	rangeOne = uint64(1)
	config   = uint64(5)
)

// fastTiming is the timing of tests: everything that is waited for is short.
func fastTiming() timing {
	t := defaultTiming()
	t.request, t.propose, t.readIndex, t.acquire = 3*time.Second, 80*time.Millisecond,
		80*time.Millisecond, 80*time.Millisecond
	t.undecided, t.boundStep, t.tick = 300*time.Millisecond, 100*time.Millisecond,
		2*time.Millisecond
	t.forgotten = 400 * time.Millisecond
	t.acquireBackoffMin, t.acquireBackoffMax = 2*time.Millisecond, 20*time.Millisecond
	t.rest, t.look, t.oracle = 100*time.Millisecond, 20*time.Millisecond, 50*time.Millisecond
	return t
}

// testOracle is PD: it never goes back, and tests may move it ahead.
type testOracle struct {
	mu    sync.Mutex
	last  ts.Timestamp
	ahead time.Duration
	away  bool
}

func (o *testOracle) fresh() (ts.Timestamp, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.away {
		return 0, errors.New("away")
	}
	o.last = max(o.last+1, ts.FromTime(time.Now().Add(o.ahead)))
	return o.last, nil
}

func (o *testOracle) advance(d time.Duration) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.ahead += d
}

func (o *testOracle) setAway(away bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.away = away
}

// testClock is one store's knowledge of it.
type testClock struct {
	oracle *testOracle
	mu     sync.Mutex
	seen   ts.Timestamp
	at     time.Time
	// lazy: it is not asked as often as it is wanted.
	lazy bool
}

// pass lets d go by without a question to PD.
func (c *testClock) pass(d time.Duration) {
	c.oracle.advance(d)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.lazy, c.at = true, c.at.Add(-d)
}

func (c *testClock) Seen() ts.Timestamp {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.seen
}

func (c *testClock) Limit() ts.Timestamp {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.seen.Add(time.Since(c.at) + time.Second)
}

func (c *testClock) Fresh(context.Context) (ts.Timestamp, error) {
	t, err := c.oracle.fresh()
	c.mu.Lock()
	defer c.mu.Unlock()
	if err == nil && t > c.seen {
		c.seen, c.at = t, time.Now()
	}
	return t, err
}

func (c *testClock) Want() {
	c.mu.Lock()
	due := !c.lazy && time.Since(c.at) > 5*time.Millisecond
	c.mu.Unlock()
	if due {
		_, _ = c.Fresh(context.Background())
	}
}

// what a script does with a proposal.
type action int

const (
	deliver   action = iota
	refuse           // ErrNotProposed
	swallow          // ErrUnknown, never in the log
	deafen           // in the log, but the proposer hears ErrUnknown
	duplicate        // twice in the log
	limbo            // ErrUnknown; release puts it into the log later
)

// cluster is three stores around one scripted log per range. The log is what a
// quorum has agreed on; every store applies it with the real machine on a real
// engine, as fast as it is allowed to.
type cluster struct {
	t      testing.TB
	oracle *testOracle
	stores []*testStore
	stop   chan struct{}
	wg     sync.WaitGroup

	mu   sync.Mutex
	cond *sync.Cond
	logs map[uint64]*scriptedLog
	// script decides about each proposal; nil delivers all.
	script func(store uint64, rangeID uint64, e apply.Entry) action
	// readDelay, when set, delays the beginning of ReadIndex.
	closed bool
}

type scriptedLog struct {
	entries  [][]byte
	leader   uint64 // store id of the real leader; 0: none
	term     uint64
	inLimbo  [][]byte
	proposed int
}

type testStore struct {
	c       *cluster
	id      uint64
	engine  *engine.Engine
	catalog *catalog.Catalog
	clock   *testClock
	ev      *Evaluator
	cancel  context.CancelFunc
	done    chan error
	limits  Limits
	full    bool

	// guarded by c.mu
	cut      bool // partitioned: neither hears nor is heard
	lagging  bool // applies nothing
	believes map[uint64]raft.Leader
	watchers []func(uint64, raft.Leader)
	waits    []applyWait
	machines map[uint64]*apply.Machine
}

type applyWait struct {
	rangeID, index uint64
	fn             func(result sm.Result)
}

func newCluster(t testing.TB, stores int) *cluster {
	c := &cluster{
		t: t, oracle: &testOracle{}, stop: make(chan struct{}),
		logs: map[uint64]*scriptedLog{rangeOne: {}},
	}
	c.cond = sync.NewCond(&c.mu)
	var members []*metapb.Replica
	for i := range stores {
		members = append(members, &metapb.Replica{
			ReplicaId: uint64(i + 1), StoreId: uint64(i + 1), Role: metapb.Role_ROLE_VOTER,
		})
	}
	dir := t.TempDir()
	for i := range stores {
		c.stores = append(c.stores, c.newStore(filepath.Join(dir, string(rune('a'+i))),
			uint64(i+1), members))
	}
	for _, s := range c.stores {
		s.start()
		c.wg.Go(s.applyLoop)
	}
	t.Cleanup(c.close)
	return c
}

func (c *cluster) newStore(dir string, id uint64, members []*metapb.Replica) *testStore {
	c.t.Helper()
	e, err := engine.Open(engine.Options{
		Dir: dir, MemTableSizeBytes: 32 << 20, BlockCacheSizeBytes: 4 << 20,
	})
	if err != nil {
		c.t.Fatal(err)
	}
	cat, err := catalog.Load(e)
	if err != nil {
		c.t.Fatal(err)
	}
	w := &engine.WriteSet{}
	x := e.NewExtent(w)
	if err := e.Commit(w); err != nil {
		c.t.Fatal(err)
	}
	st := catalog.NewState(&logpb.RangeState{
		RangeId: rangeOne, Span: keys.All().Proto(), SpanEpoch: 1, ReplicaId: id,
		Role: metapb.Role_ROLE_VOTER, State: logpb.ReplicaState_REPLICA_STATE_NORMAL,
		Slices:       []*logpb.Slice{{Extent: uint32(x), Span: keys.All().Proto()}},
		BirthMembers: members,
	})
	if err := cat.Create(st, catalog.Applied{Index: catalog.BirthIndex}); err != nil {
		c.t.Fatal(err)
	}
	s := &testStore{
		c: c, id: id, engine: e, catalog: cat, clock: &testClock{oracle: c.oracle},
		believes: map[uint64]raft.Leader{}, machines: map[uint64]*apply.Machine{},
	}
	_, _ = s.clock.Fresh(context.Background())
	return s
}

// start runs an evaluator, as a new process would.
func (s *testStore) start() {
	level := slog.LevelError + 4
	if os.Getenv("RIDGE_TEST_LOG") != "" {
		level = slog.LevelDebug
	}
	s.c.mu.Lock()
	s.watchers = nil
	s.c.mu.Unlock()
	ev := newEvaluator(Deps{
		Host: s, Catalog: s.catalog, Engine: s.engine, Clock: s.clock, StoreID: s.id,
		Logger: slog.New(slog.NewTextHandler(os.Stderr,
			&slog.HandlerOptions{Level: level})).With("store", s.id),
		DiskFull: func(uint64) (uint64, bool) { return s.id, s.full },
		Limits:   s.limits,
	}, fastTiming())
	s.c.mu.Lock()
	s.ev = ev
	s.c.mu.Unlock()
	ctx, cancel := context.WithCancel(context.Background())
	s.cancel, s.done = cancel, make(chan error, 1)
	s.c.wg.Go(func() { s.done <- s.ev.Run(ctx) })
	eventually(s.c.t, "the evaluator runs", func() bool {
		s.ev.mu.Lock()
		defer s.ev.mu.Unlock()
		return s.ev.mu.running
	})
}

// kill ends the evaluator; what it has proposed goes its own way.
func (s *testStore) kill() {
	s.cancel()
	if err := <-s.done; err != nil {
		s.c.t.Error(err)
	}
}

func (c *cluster) close() {
	for _, s := range c.stores {
		s.kill()
	}
	c.mu.Lock()
	c.closed = true
	c.mu.Unlock()
	close(c.stop)
	c.cond.Broadcast()
	c.wg.Wait()
	for _, s := range c.stores {
		if err := s.engine.Close(); err != nil {
			c.t.Error(err)
		}
	}
}

// applyLoop applies what is agreed on, in batches.
func (s *testStore) applyLoop() {
	c := s.c
	c.mu.Lock()
	defer c.mu.Unlock()
	for !c.closed {
		worked := false
		if !s.cut && !s.lagging {
			for id, l := range c.logs {
				worked = s.applySomeLocked(id, l) || worked
			}
		}
		if !worked {
			c.cond.Wait()
		}
	}
}

func (s *testStore) applySomeLocked(id uint64, l *scriptedLog) bool {
	rep, ok := s.catalog.Replica(id)
	if !ok {
		return false
	}
	next := rep.Applied().Index + 1
	first := next - catalog.BirthIndex - 1
	if first >= uint64(len(l.entries)) {
		return s.wakeLocked(id, next-1, nil)
	}
	var batch []sm.Entry
	for i, cmd := range l.entries[first:min(first+8, uint64(len(l.entries)))] {
		batch = append(batch, sm.Entry{Index: next + uint64(i), Cmd: cmd})
	}
	m := s.machines[id]
	if m == nil {
		m = apply.New(apply.Deps{
			Engine: s.engine, Catalog: s.catalog, StoreID: s.id,
			Logger:      slog.New(slog.DiscardHandler),
			ConfigIndex: func(uint64) (uint64, bool) { return config, true },
		}, id, rep.State().ReplicaID())
		s.machines[id] = m
	}
	s.c.mu.Unlock()
	out, err := m.Update(batch)
	s.c.mu.Lock()
	if err != nil {
		s.c.t.Error(err)
		return false
	}
	results := map[uint64]sm.Result{}
	for _, e := range out {
		results[e.Index] = e.Result
	}
	s.wakeLocked(id, out[len(out)-1].Index, results)
	return true
}

// wakeLocked answers what waited for an index.
func (s *testStore) wakeLocked(id, applied uint64, results map[uint64]sm.Result) bool {
	var due []applyWait
	kept := s.waits[:0]
	for _, w := range s.waits {
		if w.rangeID == id && w.index <= applied {
			due = append(due, w)
		} else {
			kept = append(kept, w)
		}
	}
	s.waits = kept
	if len(due) == 0 {
		return false
	}
	s.c.mu.Unlock()
	for _, w := range due {
		w.fn(results[w.index])
	}
	s.c.mu.Lock()
	return true
}

// lead makes a store the leader of a range. Stores that are cut off keep
// believing what they believed.
func (c *cluster) lead(rangeID, store uint64) {
	c.mu.Lock()
	l := c.logs[rangeID]
	l.term++
	l.leader = store
	var told []func()
	for _, s := range c.stores {
		if s.cut {
			continue
		}
		b := raft.Leader{
			ReplicaID: c.replicaIDLocked(rangeID, store), StoreID: store, Term: l.term,
			Known: store != 0, Self: s.id == store,
		}
		s.believes[rangeID] = b
		for _, fn := range s.watchers {
			told = append(told, func() { fn(rangeID, b) })
		}
	}
	c.mu.Unlock()
	for _, fn := range told {
		fn()
	}
}

func (c *cluster) replicaIDLocked(rangeID, store uint64) uint64 {
	for _, s := range c.stores {
		if rep, ok := s.catalog.Replica(rangeID); ok && s.id == store {
			return rep.State().ReplicaID()
		}
	}
	return 0
}

// cutOff partitions a store, heal brings it back: it then knows who leads.
func (c *cluster) cutOff(s *testStore) {
	c.mu.Lock()
	defer c.mu.Unlock()
	s.cut = true
}

func (c *cluster) heal(s *testStore) {
	c.mu.Lock()
	s.cut = false
	type told struct {
		id uint64
		l  raft.Leader
	}
	var news []told
	for id, l := range c.logs {
		b := raft.Leader{
			ReplicaID: c.replicaIDLocked(id, l.leader), StoreID: l.leader,
			Term: l.term, Known: l.leader != 0, Self: s.id == l.leader,
		}
		if s.believes[id] != b {
			s.believes[id] = b
			news = append(news, told{id, b})
		}
	}
	watchers := s.watchers
	c.mu.Unlock()
	c.cond.Broadcast()
	for _, n := range news {
		for _, fn := range watchers {
			fn(n.id, n.l)
		}
	}
}

func (c *cluster) lag(s *testStore, lagging bool) {
	c.mu.Lock()
	s.lagging = lagging
	c.mu.Unlock()
	c.cond.Broadcast()
}

func (c *cluster) setScript(fn func(store, rangeID uint64, e apply.Entry) action) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.script = fn
}

// releaseLimbo puts what is in limbo into the log, in a random order.
func (c *cluster) releaseLimbo(rangeID uint64, rnd *rand.Rand) {
	c.mu.Lock()
	l := c.logs[rangeID]
	if rnd != nil {
		rnd.Shuffle(len(l.inLimbo), func(i, j int) {
			l.inLimbo[i], l.inLimbo[j] = l.inLimbo[j], l.inLimbo[i]
		})
	}
	l.entries = append(l.entries, l.inLimbo...)
	l.inLimbo = nil
	c.mu.Unlock()
	c.cond.Broadcast()
}

func (s *testStore) Propose(
	rangeID uint64, cmd []byte, timeout time.Duration, done func(raft.Outcome),
) {
	e, err := apply.Decode(cmd)
	if err != nil {
		s.c.t.Errorf("proposed: %v", err)
	}
	unknown := func() { done(raft.Outcome{Err: raft.ErrUnknown}) }
	s.c.mu.Lock()
	defer s.c.mu.Unlock()
	l := s.c.logs[rangeID]
	if l == nil || !s.believes[rangeID].Self {
		s.later(0, func() { done(raft.Outcome{Err: raft.ErrNotProposed}) })
		return
	}
	act := deliver
	if s.c.script != nil {
		act = s.c.script(s.id, rangeID, e)
	}
	cmd = append([]byte(nil), cmd...)
	l.proposed++
	if s.cut || l.leader != s.id {
		// A deposed leader's entry: it may yet be agreed on, or not.
		if act = swallow; l.proposed%2 == 0 {
			act = limbo
		}
	}
	switch act {
	case refuse:
		s.later(0, func() { done(raft.Outcome{Err: raft.ErrNotProposed}) })
	case swallow:
		s.later(timeout, unknown)
	case limbo:
		l.inLimbo = append(l.inLimbo, cmd)
		s.later(timeout, unknown)
	case deafen:
		l.entries = append(l.entries, cmd)
		s.later(timeout, unknown)
	default:
		l.entries = append(l.entries, cmd)
		var once sync.Once
		s.waits = append(s.waits, applyWait{
			rangeID, uint64(len(l.entries)) + catalog.BirthIndex,
			func(r sm.Result) {
				once.Do(func() { done(raft.Outcome{Code: r.Value, Data: r.Data}) })
			},
		})
		s.later(timeout, func() { once.Do(unknown) })
		if act == duplicate {
			l.entries = append(l.entries, cmd)
		}
	}
	s.c.cond.Broadcast()
}

// later calls fn in another goroutine; after the cluster is closed at once.
func (s *testStore) later(d time.Duration, fn func()) {
	s.c.wg.Go(func() {
		timer := time.NewTimer(d)
		defer timer.Stop()
		select {
		case <-timer.C:
		case <-s.c.stop:
		}
		fn()
	})
}

func (s *testStore) ReadIndex(rangeID uint64, timeout time.Duration, done func(error)) {
	s.c.mu.Lock()
	defer s.c.mu.Unlock()
	l := s.c.logs[rangeID]
	if l == nil || s.cut || l.leader == 0 || s.c.stores[l.leader-1].cut {
		s.later(timeout, func() { done(errors.New("no quorum")) })
		return
	}
	var once sync.Once
	index := uint64(len(l.entries)) + catalog.BirthIndex
	s.waits = append(s.waits, applyWait{
		rangeID, index,
		func(sm.Result) { once.Do(func() { done(nil) }) },
	})
	s.later(timeout, func() { once.Do(func() { done(errors.New("timeout")) }) })
	s.c.cond.Broadcast()
}

func (s *testStore) Leader(rangeID uint64) raft.Leader {
	s.c.mu.Lock()
	defer s.c.mu.Unlock()
	return s.believes[rangeID]
}

func (s *testStore) WatchLeaders(fn func(uint64, raft.Leader)) {
	s.c.mu.Lock()
	defer s.c.mu.Unlock()
	s.watchers = append(s.watchers, fn)
}

func (s *testStore) Membership(rangeID uint64) ([]*metapb.Replica, uint64, bool) {
	rep, ok := s.catalog.Replica(rangeID)
	if !ok {
		return nil, 0, false
	}
	return rep.State().PB().GetBirthMembers(), config, true
}
