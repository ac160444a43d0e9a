package route

import (
	"bytes"
	"cmp"
	"fmt"
	"slices"
	"testing"

	"go.uber.org/goleak"
	"pgregory.net/rapid"

	"github.com/ridgekv/ridge/proto/keys"
	metapb "github.com/ridgekv/ridge/proto/ridge/meta/v1"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func rng(id, config, span uint64, start, end string, stores ...uint64) *metapb.Range {
	r := &metapb.Range{
		RangeId: id, Epoch: &metapb.Epoch{Config: config, Span: span},
		Span: &metapb.Span{Start: []byte(start), End: []byte(end)},
	}
	for _, s := range stores {
		r.Replicas = append(r.Replicas, &metapb.Replica{
			ReplicaId: s, StoreId: s, Role: metapb.Role_ROLE_VOTER,
		})
	}
	return r
}

func on(store, term uint64) *metapb.Leader { return &metapb.Leader{StoreId: store, Term: term} }

func show(c *Cache) string {
	var b bytes.Buffer
	for _, r := range c.All() {
		fmt.Fprintf(&b, "%d%s@%d.%d leader %d; ", r.RangeID, r.Span, r.Config, r.Epoch, r.Leader)
	}
	return b.String()
}

func TestEpochHalvesAreTakenApart(t *testing.T) {
	c := NewCache(10)
	c.Learn(rng(1, 5, 3, "", "", 1, 2), on(1, 1))
	c.Learn(rng(1, 7, 2, "", "m", 3), nil) // newer members, older span
	if got := show(c); got != `1["",+inf)@7.3 leader 0; ` {
		t.Fatalf("got %s", got)
	}
	c.Learn(rng(1, 6, 4, "", "k", 1, 2), nil) // newer span, older members
	if got := show(c); got != `1["","k")@7.4 leader 0; ` {
		t.Fatalf("got %s", got)
	}
	if r := c.Find([]byte("a")); r.Replicas[0].StoreId != 3 {
		t.Fatalf("got %v", r.Replicas)
	}
}

func TestOlderClaimsOnAKeyLose(t *testing.T) {
	c := NewCache(10)
	c.Learn(rng(1, 5, 1, "", "", 1), nil)
	c.Learn(rng(2, 5, 2, "m", "", 1), nil) // the child is heard of first
	if got := show(c); got != `2["m",+inf)@5.2 leader 0; ` {
		t.Fatalf("got %s", got)
	}
	if c.Learn(rng(1, 9, 1, "", "", 1), nil) {
		t.Error("the parent from before the split came back")
	}
	c.Learn(rng(1, 5, 2, "", "m", 1), nil)
	if got := show(c); got != `1["","m")@5.2 leader 0; 2["m",+inf)@5.2 leader 0; ` {
		t.Fatalf("got %s", got)
	}
	// The parent's newer members are taken although its span is old.
	c.Learn(rng(1, 9, 1, "", "", 4), nil)
	if got := show(c); got != `1["","m")@9.2 leader 0; 2["m",+inf)@5.2 leader 0; ` {
		t.Fatalf("got %s", got)
	}
}

func TestLeaders(t *testing.T) {
	c := NewCache(10)
	c.Learn(rng(1, 5, 1, "", "", 1, 2, 3), on(1, 4))
	leader := func(want uint64) {
		t.Helper()
		if r := c.Find([]byte("k")); r.Leader != want {
			t.Fatalf("leader %d, want %d", r.Leader, want)
		}
	}
	r := c.Find([]byte("k"))
	c.SetLeader(r, 3, on(2, 3)) // a hint of an older term
	leader(1)
	c.SetLeader(r, 1, on(2, 3)) // but the leader itself must know
	leader(2)
	c.SetLeader(r, 3, on(3, 5))
	leader(3)
	c.Learn(rng(1, 5, 1, "", "", 1, 2, 3), on(1, 4)) // PD is behind
	leader(3)
	c.DropLeader(r, 1) // somebody else leads
	leader(3)
	c.DropLeader(r, 3)
	leader(0)
	c.Led(r, 2)
	leader(2)
	c.SetLeader(r, 2, nil)
	leader(2)
	c.Learn(rng(1, 6, 1, "", "", 1, 3), nil) // store 2 has no replica any more
	leader(0)
	if got := c.Find([]byte("k")).Stores(false); !slices.Equal(got, []uint64{1, 3}) {
		t.Fatalf("got %v", got)
	}
	c.Drop(r)
	if c.Len() != 0 {
		t.Error("the range is still there")
	}
	c.SetLeader(r, 1, on(1, 9)) // nothing to change
}

func TestLearnersAnswerOnlyStaleReads(t *testing.T) {
	c := NewCache(10)
	d := rng(1, 5, 1, "", "", 1, 2)
	d.Replicas[1].Role = metapb.Role_ROLE_LEARNER
	c.Learn(d, on(1, 1))
	r := c.Find(nil)
	if got := r.Stores(false); !slices.Equal(got, []uint64{1}) {
		t.Fatalf("got %v", got)
	}
	if got := r.Stores(true); !slices.Equal(got, []uint64{1, 2}) {
		t.Fatalf("got %v", got)
	}
}

func TestIsBounded(t *testing.T) {
	const limit = 100
	c := NewCache(limit)
	for i := range 1000 {
		c.Learn(rng(uint64(i+1), 1, 1, fmt.Sprintf("%04d", i), fmt.Sprintf("%04d", i+1), 1), nil)
		if c.Len() > limit {
			t.Fatalf("%d ranges after %d", c.Len(), i)
		}
		if c.Find([]byte(fmt.Sprintf("%04d", i))) == nil {
			t.Fatalf("the range just learned is gone")
		}
	}
}

func TestNonsenseIsIgnored(t *testing.T) {
	c := NewCache(10)
	for _, d := range []*metapb.Range{nil, {}, rng(0, 1, 1, "", ""), rng(1, 1, 1, "b", "a")} {
		if c.Learn(d, nil) {
			t.Errorf("%v was taken", d)
		}
	}
}

// dumb is the cache as a list: the rules of the law, written down once more
// without a tree.
type dumb []*metapb.Range

func (d dumb) learn(h *metapb.Range) dumb {
	span := keys.FromProto(h.Span)
	r := h
	for _, o := range d {
		if !keys.FromProto(o.Span).Overlaps(span) {
			continue
		}
		if o.RangeId != h.RangeId {
			if o.Epoch.Span > r.Epoch.Span {
				return d
			}
			continue
		}
		r = &metapb.Range{
			RangeId: o.RangeId, Span: h.Span, Replicas: h.Replicas,
			Epoch: &metapb.Epoch{
				Span: max(o.Epoch.Span, h.Epoch.Span), Config: max(o.Epoch.Config, h.Epoch.Config),
			},
		}
		if o.Epoch.Span > h.Epoch.Span {
			r.Span = o.Span
		}
		if o.Epoch.Config > h.Epoch.Config {
			r.Replicas = o.Replicas
		}
	}
	var out dumb
	for _, o := range d {
		if o.RangeId == r.RangeId && keys.FromProto(o.Span).Overlaps(span) ||
			keys.FromProto(o.Span).Overlaps(keys.FromProto(r.Span)) {
			continue
		}
		out = append(out, o)
	}
	return append(out, r)
}

func (d dumb) find(key []byte) *metapb.Range {
	for _, o := range d {
		if keys.FromProto(o.Span).Contains(key) {
			return o
		}
	}
	return nil
}

// history makes descriptors as a cluster would: a range is split, merged into
// its left neighbour, or gets other members; every state stays in the history,
// and the cache hears of them in any order.
func history(t *rapid.T) []*metapb.Range {
	live := []*metapb.Range{rng(1, 1, 1, "", "", 1)}
	all := slices.Clone(live)
	next, config := uint64(2), uint64(2)
	for range rapid.IntRange(1, 25).Draw(t, "steps") {
		i := rapid.IntRange(0, len(live)-1).Draw(t, "range")
		old := live[i]
		span := keys.FromProto(old.Span)
		config++
		switch rapid.IntRange(0, 2).Draw(t, "what") {
		case 0: // members
			live[i] = rng(old.RangeId, config, old.Epoch.Span, string(span.Start), string(span.End),
				config)
			all = append(all, live[i])
		case 1: // split
			key := rapid.StringMatching("[a-f]{1,2}").Draw(t, "key")
			if !span.Contains([]byte(key)) || key == string(span.Start) {
				continue
			}
			left := rng(old.RangeId, old.Epoch.Config, old.Epoch.Span+1, string(span.Start), key,
				old.Replicas[0].StoreId)
			right := rng(next, config, old.Epoch.Span+1, key, string(span.End), 1)
			next++
			live = slices.Replace(live, i, i+1, left, right)
			all = append(all, left, right)
		case 2: // merge
			if i == 0 {
				continue
			}
			l := live[i-1]
			m := rng(l.RangeId, l.Epoch.Config, max(l.Epoch.Span, old.Epoch.Span)+1,
				string(l.Span.Start), string(span.End), l.Replicas[0].StoreId)
			live = slices.Replace(live, i-1, i+1, m)
			all = append(all, m)
		}
	}
	return all
}

func TestCacheAgainstTheDumbOne(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		all := history(t)
		c, d := NewCache(1000), dumb{}
		for range rapid.IntRange(1, 60).Draw(t, "hears") {
			h := all[rapid.IntRange(0, len(all)-1).Draw(t, "which")]
			c.Learn(h, nil)
			d = d.learn(h)
			slices.SortFunc(d, func(a, b *metapb.Range) int {
				return bytes.Compare(a.Span.Start, b.Span.Start)
			})
			compare(t, c, d)
		}
	})
}

func compare(t *rapid.T, c *Cache, d dumb) {
	got := c.All()
	if len(got) != len(d) {
		t.Fatalf("%d ranges, want %d: %s", len(got), len(d), show(c))
	}
	for i, r := range got {
		w := d[i]
		if r.RangeID != w.RangeId || r.Epoch != w.Epoch.Span || r.Config != w.Epoch.Config ||
			!r.Span.Equal(keys.FromProto(w.Span)) ||
			cmp.Compare(r.Replicas[0].StoreId, w.Replicas[0].StoreId) != 0 {
			t.Fatalf("got %s\nwant %v", show(c), d)
		}
		if i > 0 && got[i-1].Span.Overlaps(r.Span) {
			t.Fatalf("overlap: %s", show(c))
		}
	}
	for _, k := range []string{"", "a", "ab", "c", "cc", "f", "zz"} {
		r, w := c.Find([]byte(k)), d.find([]byte(k))
		if (r == nil) != (w == nil) || r != nil && r.RangeID != w.RangeId {
			t.Fatalf("key %q: got %v, want %v", k, r, w)
		}
	}
}
