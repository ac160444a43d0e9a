package agent

import (
	"errors"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	logpb "github.com/ridgekv/ridge/proto/ridge/log/v1"
	metapb "github.com/ridgekv/ridge/proto/ridge/meta/v1"
	pdpb "github.com/ridgekv/ridge/proto/ridge/pd/v1"
	storepb "github.com/ridgekv/ridge/proto/ridge/store/v1"
	"github.com/ridgekv/ridge/storenode/internal/catalog"
	"github.com/ridgekv/ridge/storenode/internal/raft"
)

func removeOrder(replicaID uint64, await bool) *pdpb.Order {
	return &pdpb.Order{
		RangeId: 1, Epoch: &metapb.Epoch{Config: 20, Span: 4},
		Step: &pdpb.Order_RemoveReplica{RemoveReplica: &pdpb.RemoveReplica{
			ReplicaId: replicaID, AwaitSplits: await,
		}},
	}
}

// word is how the store of replica 2 answers the n-th question.
type word func(n int64) (*storepb.ReplicaStatus, error)

// A voter is removed when it has applied the splits of its range, and not before;
// one whose store does not answer is not waited for for ever, and one that is lost
// not at all.
func TestRemovalAwaitsSplits(t *testing.T) {
	t.Parallel()
	well := func(int64) (*storepb.ReplicaStatus, error) { return replicaTwo(4), nil }
	behind := func(int64) (*storepb.ReplicaStatus, error) { return replicaTwo(3), nil }
	absent := func(int64) (*storepb.ReplicaStatus, error) { return nil, nil }
	another := func(int64) (*storepb.ReplicaStatus, error) {
		s := replicaTwo(4)
		s.ReplicaId = 7
		return s, nil
	}
	dead := func(int64) (*storepb.ReplicaStatus, error) {
		return nil, status.Error(codes.Unavailable, "dead")
	}
	in := func(state string) word {
		return func(int64) (*storepb.ReplicaStatus, error) {
			s := replicaTwo(3)
			s.State = state
			return s, nil
		}
	}
	then := func(first word) word {
		return func(n int64) (*storepb.ReplicaStatus, error) {
			if n < 5 {
				return first(n)
			}
			return well(n)
		}
	}
	for _, c := range []struct {
		name  string
		order *pdpb.Order
		say   word
		// asked is how often it must be asked at least; 0: not at all.
		asked int64
		calls string
		err   error
	}{
		{"it has them", removeOrder(2, true), well, 1, "remove", nil},
		{"it gets them", removeOrder(2, true), then(behind), 5, "remove", nil},
		{"it begins", removeOrder(2, true), then(absent), 5, "remove", nil},
		{"it answers again", removeOrder(2, true), then(dead), 5, "remove", nil},
		{"it stays behind", removeOrder(2, true), behind, 2, "", errBehind},
		{"it does not begin", removeOrder(2, true), absent, 2, "", errBehind},
		{"another is there", removeOrder(2, true), another, 2, "", errBehind},
		{"it is halted", removeOrder(2, true), in("halted"), 1, "remove", nil},
		{"it is poisoned", removeOrder(2, true), in("poisoned"), 1, "remove", nil},
		{"its store is dead", removeOrder(2, true), dead, 2, "remove", nil},
		{"it is lost", removeOrder(2, false), absent, 0, "remove", nil},
		{"a learner owes nothing", removeOrder(3, true), absent, 0, "remove", nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			a, h := newTestAgent(t)
			asked := meet(t, a, c.say)
			if err := a.carryOut(t.Context(), c.order); !errors.Is(err, c.err) {
				t.Errorf("got %v, want %v", err, c.err)
			}
			if got := strings.Join(h.called(), " "); got != c.calls {
				t.Errorf("did %q, want %q", got, c.calls)
			}
			if n := asked.Load(); n < c.asked || c.asked == 0 && n > 0 {
				t.Errorf("asked %d times, want %d", n, c.asked)
			}
		})
	}
}

// What the leader compares with is its own state once all that it proposed is
// decided; if it cannot say so, nobody goes.
func TestRemovalAwaitsItsOwnSplits(t *testing.T) {
	t.Parallel()
	a, h := newTestAgent(t)
	asked := meetPeer(t, a)
	h.settle = func() error { // a split whose caller had given up is applied
		a.d.Catalog.Update(1, rangeOne(func(pb *logpb.RangeState) { pb.SpanEpoch = 5 }),
			catalog.Applied{Index: 31})
		return nil
	}
	if err := a.carryOut(t.Context(), removeOrder(2, true)); !errors.Is(err, errBehind) {
		t.Errorf("got %v, want %v", err, errBehind)
	}
	undecided := errors.New("undecided")
	h.settle = func() error { return undecided }
	before := asked.Load()
	if err := a.carryOut(t.Context(), removeOrder(2, true)); !errors.Is(err, undecided) {
		t.Errorf("got %v, want %v", err, undecided)
	}
	if len(h.called()) > 0 || asked.Load() != before {
		t.Errorf("did %v, asked %d times", h.called(), asked.Load()-before)
	}
}

// The lease that is held here may have been lost already, in entries that are not
// applied yet: what is settled under it says nothing before a read has succeeded.
func TestRemovalReadsFirst(t *testing.T) {
	t.Parallel()
	a, h := newTestAgent(t)
	asked := meetPeer(t, a)
	read := false
	h.read = func() error { // the split of the leader between is applied
		read = true
		a.d.Catalog.Update(1, rangeOne(func(pb *logpb.RangeState) { pb.SpanEpoch = 5 }),
			catalog.Applied{Index: 31})
		return nil
	}
	h.settle = func() error {
		if !read {
			t.Error("settled before a read")
		}
		return nil
	}
	if err := a.carryOut(t.Context(), removeOrder(2, true)); !errors.Is(err, errBehind) {
		t.Errorf("got %v, want %v", err, errBehind)
	}
	lost := errors.New("lost")
	h.read = func() error { return lost }
	before := asked.Load()
	if err := a.carryOut(t.Context(), removeOrder(2, true)); !errors.Is(err, lost) {
		t.Errorf("got %v, want %v", err, lost)
	}
	if len(h.called()) > 0 || asked.Load() != before {
		t.Errorf("did %v, asked %d times", h.called(), asked.Load()-before)
	}
}

// Another leader may have split the range since the replica was compared with this
// one, even if this one leads again.
func TestRemovalWithinATerm(t *testing.T) {
	t.Parallel()
	for name, next := range map[string]raft.Leader{
		"deposed":     {ReplicaID: 2, StoreID: 2, Term: 3, Known: true},
		"leads again": {ReplicaID: 1, StoreID: 1, Term: 4, Known: true, Self: true},
	} {
		a, h := newTestAgent(t)
		meet(t, a, func(int64) (*storepb.ReplicaStatus, error) {
			h.mu.Lock()
			defer h.mu.Unlock()
			h.leader = next
			return replicaTwo(4), nil
		})
		if err := a.carryOut(t.Context(), removeOrder(2, true)); !errors.Is(err, errStale) {
			t.Errorf("%s: got %v, want %v", name, err, errStale)
		}
		if len(h.called()) > 0 {
			t.Errorf("%s: did %v", name, h.called())
		}
	}
}

// A store that is not heard is not asked, and its replica goes all the same.
func TestRemovalFromASilentStore(t *testing.T) {
	t.Parallel()
	a, h := newTestAgent(t)
	asked := meetPeer(t, a)
	a.watch.lose(2)
	if err := a.carryOut(t.Context(), removeOrder(2, true)); err != nil {
		t.Error(err)
	}
	if got := strings.Join(h.called(), " "); got != "remove" || asked.Load() != 0 {
		t.Errorf("did %q, asked %d times", got, asked.Load())
	}
}
