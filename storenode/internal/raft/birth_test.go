package raft

import (
	"errors"
	"fmt"
	"io"
	"sync"
	"testing"
	"time"

	sm "github.com/lni/dragonboat/v4/statemachine"

	logpb "github.com/ridgekv/ridge/proto/ridge/log/v1"
	metapb "github.com/ridgekv/ridge/proto/ridge/meta/v1"
	"github.com/ridgekv/ridge/storenode/internal/catalog"
	"github.com/ridgekv/ridge/storenode/internal/engine"
)

// threeVoters is range 1 on stores 1, 2 and 3, led by store 1.
func threeVoters(t *testing.T, opts func(*Options)) *testCluster {
	t.Helper()
	c := startTestCluster(t, 3, opts)
	c.grow(t, 1, 2, 2)
	c.grow(t, 1, 3, 3)
	return c
}

// TestSplitBirth: a child is born at (5,5) on all stores, is led within
// milliseconds by the store that led its parent, and its first lease settles
// the parent's note.
func TestSplitBirth(t *testing.T) {
	c := threeVoters(t, shippedTicks)
	lead := c.stores[1]
	lead.put(t, 1, "a", "left")
	lead.put(t, 1, "m", "right")
	began := time.Now()
	lead.split(t, 1, 2, "k", 1, 2, 3)
	lead.awaitLeader(t, 2, 1)
	took := time.Since(began)
	t.Logf("child led after %s", took)
	if took > time.Second { // an ordinary election takes 2 to 4 s
		t.Errorf("the child was led after %s", took)
	}
	for _, s := range c.stores {
		s.awaitLeader(t, 2, 1)
		if got := len(s.state(t, 1).Unborn()); got != 1 {
			t.Errorf("store %d notes %d unborn children before the birth", s.id, got)
		}
		if _, ok := s.births.Load(uint64(2)); !ok {
			t.Errorf("store %d did not announce the birth", s.id)
		}
		snapshot, err := s.host.logDB.GetSnapshot(2, s.id)
		if err != nil || snapshot.Index != 5 || snapshot.Term != 5 {
			t.Errorf("store %d: the log begins at %d, term %d: %v", s.id, snapshot.Index,
				snapshot.Term, err)
		}
	}
	if err := lead.host.AddLearner(testContext(t), 1, 9, 9, lead.config(t, 1)); err == nil {
		t.Error("members changed with an unborn child")
	}
	lead.acquire(t, 2)
	for _, s := range c.stores {
		eventually(t, "note settled", func() error {
			if n := len(s.state(t, 1).Unborn()); n > 0 {
				return fmt.Errorf("store %d notes %d unborn children", s.id, n)
			}
			return nil
		})
	}
	lead.put(t, 2, "z", "new")
	for _, s := range c.stores {
		must(t, s.readIndex(t, 2))
		for key, want := range map[string]string{"m": "right", "z": "new"} {
			if v, _ := s.get(t, 2, key); v != want {
				t.Errorf("store %d: %s is %q", s.id, key, v)
			}
		}
	}
	for _, s := range c.stores {
		s.restart(t)
	}
	again := c.leader(t, 2)
	again.acquire(t, 2)
	again.put(t, 2, "z", "newer")
}

// TestLateBirth: a store that applies the split late still gets the base by
// the parent's log, and the child is led although one member was missing.
func TestLateBirth(t *testing.T) {
	c := threeVoters(t, nil)
	lead, late := c.stores[1], c.stores[3]
	lead.put(t, 1, "m", "right")
	late.stop(t)
	lead.split(t, 1, 2, "k", 1, 2, 3)
	lead.awaitLeader(t, 2, 1)
	lead.acquire(t, 2)
	lead.put(t, 2, "z", "new")
	late.start(t)
	eventually(t, "late child", func() error { return late.host.CaughtUp(testContext(t), 2) })
	if v, _ := late.get(t, 2, "m"); v != "right" {
		t.Errorf("the base of the late child has %q", v)
	}
	if v, _ := late.get(t, 2, "z"); v != "new" {
		t.Errorf("the late child has %q", v)
	}
}

// TestLateBirthDeposesNobody: a store that starts its replica of a child late, and
// leads the parent by then, does not campaign against the child's leader.
func TestLateBirthDeposesNobody(t *testing.T) {
	c := newTestCluster(t, 3)
	released := make(chan struct{})
	lead, late := c.stores[1], c.stores[3]
	late.wrap = func(rangeID, _ uint64, m sm.IOnDiskStateMachine) sm.IOnDiskStateMachine {
		if rangeID == 2 {
			return stuck{m, released}
		}
		return m
	}
	release := sync.OnceFunc(func() { close(released) })
	for _, s := range c.stores {
		s.start(t)
	}
	t.Cleanup(release) // before the stores are stopped
	lead.bearFirst(t)
	c.grow(t, 1, 2, 2)
	c.grow(t, 1, 3, 3)
	lead.put(t, 1, "m", "right")
	lead.split(t, 1, 2, "k", 1, 2, 3)
	lead.awaitLeader(t, 2, 1)
	lead.acquire(t, 2)
	lead.put(t, 2, "z", "new")
	must(t, lead.host.TransferLeader(testContext(t), 1, 3))
	late.awaitLeader(t, 1, 3)
	term := lead.host.Leader(2).Term
	release()
	eventually(t, "late child", func() error { return late.host.CaughtUp(testContext(t), 2) })
	eventually(t, "its birth", func() error {
		if _, ok := late.births.Load(uint64(2)); !ok {
			return errors.New("is not announced")
		}
		return nil
	})
	for i := range 100 { // what was sent when it started has arrived
		lead.put(t, 2, "z", fmt.Sprint(i))
	}
	if l := lead.host.Leader(2); !l.Self || l.Term != term {
		t.Errorf("led by store %d in term %d; before it was store 1 in %d", l.StoreID, l.Term, term)
	}
}

// spy notes the order of what Dragonboat asks of a machine.
type spy struct {
	sm.IOnDiskStateMachine
	mu    *sync.Mutex
	calls *[]string
}

func (s spy) note(call string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	*s.calls = append(*s.calls, call)
}

func (s spy) Update(e []sm.Entry) ([]sm.Entry, error) {
	s.note(fmt.Sprintf("update from %d", e[0].Index))
	return s.IOnDiskStateMachine.Update(e)
}

func (s spy) RecoverFromSnapshot(r io.Reader, stop <-chan struct{}) error {
	s.note("recover")
	return s.IOnDiskStateMachine.RecoverFromSnapshot(r, stop)
}

// spyOn notes the calls to the machine of one range on the store.
func spyOn(s *testStore, rangeID uint64) func() []string {
	var mu sync.Mutex
	var calls []string
	s.wrap = func(id, _ uint64, m sm.IOnDiskStateMachine) sm.IOnDiskStateMachine {
		if id != rangeID {
			return m
		}
		return spy{m, &mu, &calls}
	}
	return func() []string {
		mu.Lock()
		defer mu.Unlock()
		return append([]string(nil), calls...)
	}
}

// TestLaw4Joiner: a replica without the base is sent an image before it
// applies anything of a child's log.
func TestLaw4Joiner(t *testing.T) {
	c := newTestCluster(t, 4)
	calls := spyOn(c.stores[4], 2)
	for _, s := range c.stores {
		s.start(t)
	}
	c.stores[1].bearFirst(t)
	c.grow(t, 1, 2, 2)
	c.grow(t, 1, 3, 3)
	lead := c.stores[1]
	lead.put(t, 1, "m", "inherited")
	lead.split(t, 1, 2, "k", 1, 2, 3)
	lead.awaitLeader(t, 2, 1)
	lead.acquire(t, 2)
	lead.put(t, 2, "z", "own")
	c.grow(t, 2, 4, 4)
	got := calls()
	if len(got) == 0 || got[0] != "recover" {
		t.Errorf("the joiner was asked for %v, want an image first", got)
	}
	for key, want := range map[string]string{"m": "inherited", "z": "own"} {
		if v, _ := c.stores[4].get(t, 2, key); v != want {
			t.Errorf("the joiner has %s = %q, want %q", key, v, want)
		}
	}
}

// TestLaw4Lagging: a member that slept past the end of the log is sent an
// image.
func TestLaw4Lagging(t *testing.T) {
	c := threeVoters(t, func(o *Options) { o.LogSnapshotEntries = 8 })
	lead, late := c.stores[1], c.stores[3]
	lead.put(t, 1, "a", "0")
	late.stop(t)
	for i := range 60 {
		lead.put(t, 1, "a", fmt.Sprint(i))
	}
	for _, s := range []*testStore{lead, c.stores[2]} {
		eventually(t, "log cut", func() error {
			first, _ := s.logRange(t, 1)
			if first < 40 {
				return fmt.Errorf("the log of store %d begins at %d", s.id, first)
			}
			return nil
		})
	}
	calls := spyOn(late, 1)
	late.start(t)
	eventually(t, "caught up", func() error {
		if got, want := late.applied(t, 1), lead.applied(t, 1); got != want {
			return fmt.Errorf("applied %+v, the leader %+v", got, want)
		}
		return nil
	})
	got := calls()
	if !contains(got, "recover") {
		t.Errorf("the lagging replica was asked for %v, want an image", got)
	}
	if v, _ := late.get(t, 1, "a"); v != "59" {
		t.Errorf("it has %q", v)
	}
	late.restart(t)
	eventually(t, "back", func() error { return late.host.CaughtUp(testContext(t), 1) })
}

// TestUnbornHoldsLog: no log snapshot while a child is unborn.
func TestUnbornHoldsLog(t *testing.T) {
	c := startTestCluster(t, 1, func(o *Options) { o.LogSnapshotEntries = 4 })
	s := c.stores[1]
	s.put(t, 1, "a", "1")
	s.split(t, 1, 2, "k", 1)
	eventually(t, "child", func() error {
		if _, ok := s.catalog.Replica(2); !ok {
			return fmt.Errorf("no child")
		}
		return nil
	})
	splitIndex := s.state(t, 1).Unborn()[0].GetSplitIndex()
	for i := range 40 {
		s.put(t, 1, "a", fmt.Sprint(i))
	}
	<-time.After(10 * s.host.opts.LogSnapshotInterval)
	if first, _ := s.logRange(t, 1); first > splitIndex {
		t.Errorf("the log begins at %d, past the split at %d", first, splitIndex)
	}
	if sn, _ := s.host.logDB.GetSnapshot(1, 1); sn.Index >= splitIndex {
		t.Errorf("log snapshot at %d, past the split at %d", sn.Index, splitIndex)
	}
	s.awaitLeader(t, 2, 1)
	s.acquire(t, 2)
	eventually(t, "cut after the birth", func() error {
		if sn, _ := s.host.logDB.GetSnapshot(1, 1); sn.Index <= splitIndex {
			return fmt.Errorf("log snapshot at %d", sn.Index)
		}
		return nil
	})
}

// logRange is the first and last index of the log.
func (s *testStore) logRange(t *testing.T, rangeID uint64) (first, last uint64) {
	t.Helper()
	lr, err := s.host.nh.GetLogReader(rangeID)
	if err != nil {
		t.Fatal(err)
	}
	return lr.GetRange()
}

func contains(list []string, want string) bool {
	for _, s := range list {
		if s == want {
			return true
		}
	}
	return false
}

// TestFirstRangeOwnsItsExtent: the extent of the first range is never handed
// out again, also when the store restarts before anything is written to it.
// A range image would be received into it, and then both listed and owned.
func TestFirstRangeOwnsItsExtent(t *testing.T) {
	c := startTestCluster(t, 1, nil)
	s := c.stores[1]
	s.restart(t)
	owned := s.state(t, 1).Slices()[0].Extent
	w := &engine.WriteSet{}
	if x := s.engine.NewExtent(w); x == owned {
		t.Errorf("extent %d belongs to range 1 and was handed out again", x)
	}
}

// heldReader gives nothing before stop is closed.
type heldReader struct {
	io.Reader
	reading chan<- struct{}
	stop    <-chan struct{}
}

func (r heldReader) Read(b []byte) (int, error) {
	select {
	case r.reading <- struct{}{}:
	default:
	}
	<-r.stop
	return r.Reader.Read(b)
}

// holder holds images up until the replica is stopped.
type holder struct {
	sm.IOnDiskStateMachine
	reading chan<- struct{}
}

func (h holder) RecoverFromSnapshot(r io.Reader, stop <-chan struct{}) error {
	return h.IOnDiskStateMachine.RecoverFromSnapshot(heldReader{r, h.reading, stop}, stop)
}

// TestStopWhileReceiving: a store that stops in the middle of an image does so
// in good order, and gets the image when it is back.
func TestStopWhileReceiving(t *testing.T) {
	c := newTestCluster(t, 2)
	lead, joiner := c.stores[1], c.stores[2]
	reading := make(chan struct{}, 1)
	joiner.wrap = func(_, _ uint64, m sm.IOnDiskStateMachine) sm.IOnDiskStateMachine {
		return holder{m, reading}
	}
	lead.start(t)
	joiner.start(t)
	lead.bearFirst(t)
	lead.put(t, 1, "a", "1")
	must(t, lead.host.AddLearner(testContext(t), 1, 2, 2, lead.config(t, 1)))
	must(t, joiner.host.CreateLearner(testContext(t), 1, 2))
	select {
	case <-reading:
	case <-time.After(testTimeout):
		t.Fatal("no image came")
	}
	joiner.stop(t)
	joiner.wrap = nil
	joiner.start(t)
	eventually(t, "caught up", func() error { return joiner.host.CaughtUp(testContext(t), 1) })
	if v, _ := joiner.get(t, 1, "a"); v != "1" {
		t.Errorf("it has %q", v)
	}
}

// TestLearnerIsFlushedFirst: the reconciler may look between the commit and the
// flush of CreateLearner. It does not start what a power loss could forget.
func TestLearnerIsFlushedFirst(t *testing.T) {
	c := newTestCluster(t, 2)
	lead, joiner := c.stores[1], c.stores[2]
	created := make(chan error, 1)
	joiner.wrap = func(_, _ uint64, m sm.IOnDiskStateMachine) sm.IOnDiskStateMachine {
		var err error
		if f, v := joiner.engine.Flushed(), joiner.engine.Visible(); f < v {
			err = fmt.Errorf("flushed %d of %d", f, v)
		}
		select {
		case created <- err:
		default:
		}
		return m
	}
	lead.start(t)
	joiner.start(t)
	lead.bearFirst(t)
	must(t, lead.host.AddLearner(testContext(t), 1, 2, 2, lead.config(t, 1)))
	must(t, joiner.catalog.Create(catalog.NewState(&logpb.RangeState{
		RangeId: 1, Span: &metapb.Span{}, ReplicaId: 2, Role: metapb.Role_ROLE_LEARNER,
		State: logpb.ReplicaState_REPLICA_STATE_JOINING,
	}), catalog.Applied{}))
	joiner.catalog.Ring()
	select {
	case err := <-created:
		if err != nil {
			t.Errorf("the learner was started too early: %v", err)
		}
	case <-time.After(testTimeout):
		t.Fatal("the learner was not started")
	}
}
