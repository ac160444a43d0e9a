package catalog

import (
	"math/rand/v2"
	"slices"
	"testing"

	"go.uber.org/goleak"

	logpb "github.com/ridgekv/ridge/proto/ridge/log/v1"
)

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m)
}

func TestIndex(t *testing.T) {
	a := newReplica(1, NewState(record(1, "", "g", 2)), Applied{})
	b := newReplica(2, NewState(record(2, "g", "m", 2)), Applied{})
	late := newReplica(3, NewState(record(3, "m", "", 1)), Applied{})
	newer := newReplica(4, NewState(record(4, "p", "t", 3)), Applied{})
	poisoned := record(5, "g", "m", 9)
	poisoned.State = logpb.ReplicaState_REPLICA_STATE_POISONED
	halted := NewState(record(6, "a", "b", 9)).WithHalted("test")
	x := newIndex([]*Replica{
		newer, b, late, a, newReplica(5, NewState(poisoned), Applied{}),
		newReplica(6, halted, Applied{}),
	})
	for key, want := range map[string]uint64{
		"": 1, "a": 1, "f": 1, "g": 2, "l": 2, "m": 3, "o": 3, "p": 4, "s": 4, "t": 3, "z": 3,
	} {
		if r, ok := x.lookup([]byte(key)); !ok || r.RangeID() != want {
			t.Errorf("key %q is in range %v, want %d", key, r, want)
		}
	}
	for _, c := range []struct {
		start, end string
		want       []uint64
	}{
		{"", "", []uint64{1, 2, 3, 4}},
		{"f", "h", []uint64{1, 2}},
		{"g", "h", []uint64{2}},
		{"q", "r", []uint64{4}},
		{"n", "q", []uint64{3, 4}},
	} {
		var got []uint64
		for _, r := range x.overlapping(span(c.start, c.end)) {
			got = append(got, r.RangeID())
		}
		if !slices.Equal(got, c.want) {
			t.Errorf("[%s,%s) overlaps %v, want %v", c.start, c.end, got, c.want)
		}
	}
	for i, r := range x.byID {
		if r.RangeID() != uint64(i+1) {
			t.Errorf("replica %d is at %d", r.RangeID(), i)
		}
	}
	if _, ok := x.replica(7); ok {
		t.Error("found a range that is not there")
	}
	if _, ok := newIndex(nil).lookup([]byte("a")); ok {
		t.Error("an empty index found something")
	}
}

// TestIndexAgainstScan compares the index with the plain rule: of the serving
// replicas that hold a key, the one with the largest span epoch has it.
func TestIndexAgainstScan(t *testing.T) {
	seed := rand.Uint64()
	rng := rand.New(rand.NewPCG(seed, 0))
	for range 300 {
		var replicas []*Replica
		for id := range uint64(1 + rng.IntN(8)) {
			lo, hi := rng.IntN(26), 0
			hi = lo + 1 + rng.IntN(26-lo)
			end := ""
			if hi < 26 {
				end = string(rune('a' + hi))
			}
			// Distinct epochs, so that the rule has one answer.
			pb := record(id+1, string(rune('a'+lo)), end, id*7%10)
			replicas = append(replicas, newReplica(id+1, NewState(pb), Applied{}))
		}
		x := newIndex(replicas)
		for k := 'a'; k <= 'z'; k++ {
			key := []byte(string(k))
			var want *Replica
			for _, r := range replicas {
				if r.State().Span().Contains(key) &&
					(want == nil || r.State().SpanEpoch() > want.State().SpanEpoch()) {
					want = r
				}
			}
			if got, _ := x.lookup(key); got != want {
				t.Fatalf("seed %d: key %c is in %v, want %v", seed, k, got, want)
			}
		}
		for i := 1; i < len(x.segments); i++ {
			if x.segments[i-1].span.Overlaps(x.segments[i].span) {
				t.Fatalf("seed %d: segments overlap: %v", seed, x.segments)
			}
		}
	}
}
