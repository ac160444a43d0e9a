package catalog

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/ridgekv/ridge/proto/keys"
	logpb "github.com/ridgekv/ridge/proto/ridge/log/v1"
	metapb "github.com/ridgekv/ridge/proto/ridge/meta/v1"
	"github.com/ridgekv/ridge/storenode/internal/engine"
)

// open opens the catalog of a directory; closing it is the caller's, or the
// test's in the end.
func open(t *testing.T, dir string) (*engine.Engine, *Catalog) {
	t.Helper()
	e, err := engine.Open(engine.Options{
		Dir: dir, Logger: slog.New(slog.DiscardHandler), MemTableSizeBytes: 32 << 20,
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = e.Close() })
	c, err := Load(e)
	if err != nil {
		t.Fatal(err)
	}
	return e, c
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// TestLifeAcrossStarts: what was created, edited and destroyed is so after the
// next start, and in no other way.
func TestLifeAcrossStarts(t *testing.T) {
	dir := t.TempDir()
	e, c := open(t, dir)
	must(t, c.Create(NewState(record(1, "", "m", 2)), Applied{Index: 5, MaxCommitTS: 70}))
	must(t, c.Create(NewState(record(2, "m", "", 2)), Applied{Index: 5, MaxCommitTS: 90}))
	must(t, c.Create(NewState(&logpb.RangeState{
		RangeId: 3, ReplicaId: 30, Role: metapb.Role_ROLE_LEARNER,
		State: logpb.ReplicaState_REPLICA_STATE_JOINING,
	}), Applied{}))
	if err := c.Create(NewState(record(1, "", "m", 2)), Applied{}); !errors.Is(err, ErrExists) {
		t.Errorf("created twice: %v", err)
	}
	bad := record(4, "x", "y", 2)
	bad.Slices = nil
	if err := c.Create(NewState(bad), Applied{}); err == nil {
		t.Error("created a replica without slices")
	}
	must(t, c.SetRole(3, 30, metapb.Role_ROLE_VOTER))
	must(t, c.SetLogWritten(1, 10))
	must(t, c.Poison(1, 10, "because"))
	must(t, c.Poison(1, 10, "again"))
	must(t, c.SetRemoved(2, 20))
	if _, ok := c.Lookup([]byte("z")); ok {
		t.Error("a removed replica is found")
	}
	must(t, c.Destroy(2, 20))
	for _, err := range []error{
		c.Destroy(2, 20), c.Destroy(1, 11), c.SetRole(1, 11, metapb.Role_ROLE_VOTER),
		c.SetRemoved(9, 90),
	} {
		if !errors.Is(err, ErrNoReplica) {
			t.Errorf("what is not here: %v", err)
		}
	}
	must(t, e.Close())

	e, c = open(t, dir)
	if got := c.MaxCommitTS(); got != 70 {
		t.Errorf("max commit_ts %d", got)
	}
	select {
	case <-c.Bell():
	default:
		t.Error("the bell is silent after a start")
	}
	r1, _ := c.Replica(1)
	if s := r1.State(); s.Serving() || s.PB().PoisonReason != "because" || !s.PB().LogWritten {
		t.Errorf("range 1 is %v", s.PB())
	}
	if _, ok := c.Replica(2); ok || len(c.Replicas()) != 2 {
		t.Errorf("replicas %v", c.Replicas())
	}
	if !c.Tombstoned(2, 20) || c.Tombstoned(2, 21) || !c.HasTombstone(2) || c.HasTombstone(1) {
		t.Error("tombstones")
	}
	if g := e.Garbage(); len(g) != 1 || !g[0].Slice.Span.Equal(span("m", "")) || g[0].Receiving {
		t.Errorf("garbage %v", g)
	}
	if err := c.Create(NewState(record(2, "m", "", 2)), Applied{}); !errors.Is(err, ErrTombstoned) {
		t.Errorf("a removed replica came back: %v", err)
	}
	// Under another replica id the range may come back.
	again := record(2, "m", "", 2)
	again.ReplicaId, again.Slices[0].Extent = 21, 7
	must(t, c.Create(NewState(again), Applied{Index: 9}))
}

func TestLoadRefusesCorruptRecords(t *testing.T) {
	for name, spoil := range map[string]func(*engine.WriteSet){
		"state":     func(w *engine.WriteSet) { w.SetState(1, []byte{9}) },
		"applied":   func(w *engine.WriteSet) { w.SetApplied(1, []byte{1, 2}) },
		"tombstone": func(w *engine.WriteSet) { w.SetStore("tombstone/x", nil) },
		"range id": func(w *engine.WriteSet) {
			w.SetState(8, EncodeState(NewState(record(1, "", "", 1))))
		},
	} {
		e, err := engine.Open(engine.Options{
			Dir: t.TempDir(), Logger: slog.New(slog.DiscardHandler), MemTableSizeBytes: 32 << 20,
		})
		must(t, err)
		w := &engine.WriteSet{}
		StageState(w, NewState(record(1, "", "", 1)))
		spoil(w)
		must(t, e.Commit(w))
		if _, err := Load(e); !errors.Is(err, ErrCorrupt) {
			t.Errorf("%s: %v", name, err)
		}
		must(t, e.Close())
	}
}

// TestEditMayNotChangeReplicatedState: what all replicas must agree on is
// apply's alone.
func TestEditMayNotChangeReplicatedState(t *testing.T) {
	_, c := open(t, t.TempDir())
	must(t, c.Create(NewState(record(1, "", "", 1)), Applied{Index: 5}))
	defer func() {
		if recover() == nil {
			t.Error("an edit changed the span epoch")
		}
	}()
	_ = c.Edit(1, 10, func(pb *logpb.RangeState) bool {
		pb.SpanEpoch++
		return true
	})
}

// TestEditsAndApplyTakeTurns: edits of a record are not lost between the
// commits of apply, which writes the same record.
func TestEditsAndApplyTakeTurns(t *testing.T) {
	e, c := open(t, t.TempDir())
	must(t, c.Create(NewState(record(1, "", "", 1)), Applied{Index: 5}))
	const n = 50
	var wg sync.WaitGroup
	wg.Go(func() { // as apply does
		r, _ := c.Replica(1)
		for i := range uint64(n) {
			r.Lock()
			s, a := r.Both()
			s = s.With(func(pb *logpb.RangeState) { pb.ReadBound = i + 1 })
			a.Index++
			w := &engine.WriteSet{}
			StageState(w, s)
			StageApplied(w, 1, a)
			if err := e.Commit(w); err != nil {
				t.Error(err)
			}
			c.Update(1, s, a)
			r.Unlock()
		}
	})
	wg.Go(func() {
		for i := range uint64(n) {
			if err := c.Edit(1, 10, func(pb *logpb.RangeState) bool {
				pb.Unborn = append(pb.Unborn, &logpb.UnbornChild{RangeId: i + 100})
				return true
			}); err != nil {
				t.Error(err)
			}
		}
	})
	wg.Wait()
	r, _ := c.Replica(1)
	s, a := r.Both()
	if len(s.Unborn()) != n || s.ReadBound() != n || a.Index != 5+n {
		t.Errorf("%d notes, bound %d, index %d", len(s.Unborn()), s.ReadBound(), a.Index)
	}
	again, err := Load(e)
	must(t, err)
	r2, _ := again.Replica(1)
	if !proto.Equal(r2.State().PB(), s.PB()) || r2.Applied() != a {
		t.Errorf("on disk: %v", r2.State().PB())
	}
}

// TestReserve: of those who want to create a replica, one may.
func TestReserve(t *testing.T) {
	_, c := open(t, t.TempDir())
	var won atomic.Int32
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			if c.Reserve(9) {
				won.Add(1)
			}
		})
	}
	wg.Wait()
	if won.Load() != 1 {
		t.Fatalf("%d reservations", won.Load())
	}
	if err := c.Create(NewState(record(9, "", "", 1)), Applied{}); !errors.Is(err, ErrExists) {
		t.Errorf("created what is reserved: %v", err)
	}
	c.Update(9, NewState(record(9, "", "", 1)), Applied{Index: 5})
	if c.Reserve(9) {
		t.Error("reserved what is here")
	}
	c.Remove(9)
	if !c.Reserve(9) {
		t.Error("the reservation outlived the publication")
	}
	c.Release(9)
	if !c.Reserve(9) {
		t.Error("a release did nothing")
	}
}

func TestSettleBirths(t *testing.T) {
	_, c := open(t, t.TempDir())
	parent := record(1, "", "m", 2)
	for _, id := range []uint64{2, 3, 4} {
		parent.Unborn = append(parent.Unborn, &logpb.UnbornChild{RangeId: id, SplitIndex: id * 10})
	}
	must(t, c.Create(NewState(parent), Applied{Index: 50}))
	born := record(2, "m", "p", 2)
	born.Lease = &logpb.Lease{Tenure: 1}
	must(t, c.Create(NewState(born), Applied{Index: 7}))
	must(t, c.Create(NewState(record(3, "p", "s", 2)), Applied{Index: 5}))
	must(t, c.Create(NewState(record(4, "s", "", 2)), Applied{Index: 5}))
	must(t, c.Destroy(4, 40))
	must(t, c.SettleBirths())
	r, _ := c.Replica(1)
	if u := r.State().Unborn(); len(u) != 1 || u[0].RangeId != 3 {
		t.Errorf("unborn %v", u)
	}
	before := r.State()
	must(t, c.SettleBirths())
	if r.State() != before {
		t.Error("nothing to settle, and the record changed")
	}
}

func TestWaitApplied(t *testing.T) {
	r := newReplica(1, NewState(record(1, "", "", 1)), Applied{Index: 5})
	reached := func(index uint64) func(Applied, *State) bool {
		return func(a Applied, _ *State) bool { return a.Index >= index }
	}
	must(t, r.WaitApplied(t.Context(), reached(5)))
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := r.WaitApplied(ctx, reached(6)); !errors.Is(err, context.Canceled) {
		t.Errorf("waited for %v", err)
	}
	var wg sync.WaitGroup
	for i := range uint64(20) {
		wg.Go(func() {
			if err := r.WaitApplied(t.Context(), reached(i)); err != nil {
				t.Error(err)
			}
		})
	}
	for i := range uint64(20) {
		r.publish(r.State(), Applied{Index: 5 + i})
	}
	wg.Wait()
}

// TestPublishIsOneStep: a lookup during a split finds every key in one of the
// halves or in the whole, never nowhere.
func TestPublishIsOneStep(t *testing.T) {
	_, c := open(t, t.TempDir())
	must(t, c.Create(NewState(record(1, "", "", 1)), Applied{Index: 5}))
	must(t, c.Create(NewState(record(1000, "a", "b", 0)), Applied{Index: 5}))
	done := make(chan struct{})
	var wg sync.WaitGroup
	for range 2 {
		wg.Go(func() {
			for {
				select {
				case <-done:
					return
				default:
				}
				for _, key := range []string{"", "a", "k05", "k50", "z"} {
					if _, ok := c.Lookup([]byte(key)); !ok {
						t.Errorf("key %q is nowhere", key)
						return
					}
				}
				if n := len(c.Overlapping(keys.All())); n == 0 {
					t.Error("nothing overlaps everything")
					return
				}
			}
		})
	}
	wg.Go(func() { // another range that makes indexes of its own
		for i := uint64(0); ; i++ {
			select {
			case <-done:
				return
			default:
				pb := record(1000, "a", "b", 0)
				pb.State = logpb.ReplicaState(2 + i%2*3) // normal, poisoned
				c.Update(1000, NewState(pb), Applied{Index: i})
			}
		}
	})
	end := ""
	for i := 99; i > 0; i-- {
		at := fmt.Sprintf("k%02d", i)
		id := uint64(100 - i + 1)
		c.Publish(
			Change{1, NewState(record(1, "", at, id)), Applied{Index: id}},
			Change{id, NewState(record(id, at, end, id)), Applied{Index: 5}},
		)
		end = at
	}
	close(done)
	wg.Wait()
	if n := len(c.Overlapping(span("c", ""))); n != 100 {
		t.Errorf("%d ranges", n)
	}
}
