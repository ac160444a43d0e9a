package topology

import (
	"bytes"
	"cmp"
	"fmt"
	"maps"
	"slices"
	"testing"
	"time"

	"go.uber.org/goleak"
	"google.golang.org/protobuf/proto"
	"pgregory.net/rapid"

	"github.com/ridgekv/ridge/proto/keys"
	metapb "github.com/ridgekv/ridge/proto/ridge/meta/v1"
	pdpb "github.com/ridgekv/ridge/proto/ridge/pd/v1"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var epoch = time.Unix(1_700_000_000, 0)

func describe(id, config, span uint64, start, end string, stores ...uint64) *metapb.Range {
	r := &metapb.Range{
		RangeId: id, Epoch: &metapb.Epoch{Config: config, Span: span},
		Span: &metapb.Span{Start: []byte(start), End: []byte(end)},
	}
	for _, st := range stores {
		r.Replicas = append(r.Replicas, &metapb.Replica{
			ReplicaId: 10*id + st, StoreId: st, Role: metapb.Role_ROLE_VOTER,
		})
	}
	return r
}

func report(r *metapb.Range, term uint64) *pdpb.RangeReport {
	out := &pdpb.RangeReport{Range: r}
	if len(r.GetReplicas()) > 0 {
		out.Leader = &metapb.Leader{
			ReplicaId: r.GetReplicas()[0].GetReplicaId(), StoreId: r.GetReplicas()[0].GetStoreId(),
			Term: term,
		}
	}
	return out
}

// dumb is a topology that keeps a list and looks at all of it.
type dumb struct{ ranges []*pdpb.RangeReport }

func (d *dumb) find(id uint64) *pdpb.RangeReport {
	for _, r := range d.ranges {
		if r.GetRange().GetRangeId() == id {
			return r
		}
	}
	return nil
}

func (d *dumb) report(in *pdpb.RangeReport) bool {
	span := keys.FromProto(in.GetRange().GetSpan())
	if in.GetRange().GetRangeId() == 0 || !span.Valid() {
		return false
	}
	next := proto.CloneOf(in)
	if old := d.find(in.GetRange().GetRangeId()); old != nil {
		if old.GetLeader().GetTerm() > in.GetLeader().GetTerm() {
			return false
		}
		a, b := old.GetRange(), in.GetRange()
		if a.GetEpoch().GetSpan() >= b.GetEpoch().GetSpan() {
			next.Range.Span, next.Range.Epoch.Span = a.GetSpan(), a.GetEpoch().GetSpan()
		}
		if a.GetEpoch().GetConfig() >= b.GetEpoch().GetConfig() {
			next.Range.Replicas, next.Range.Epoch.Config = a.GetReplicas(), a.GetEpoch().GetConfig()
		}
	}
	span = keys.FromProto(next.GetRange().GetSpan())
	var keep []*pdpb.RangeReport
	for _, o := range d.ranges {
		switch {
		case o.GetRange().GetRangeId() == next.GetRange().GetRangeId():
		case !keys.FromProto(o.GetRange().GetSpan()).Overlaps(span):
			keep = append(keep, o)
		case o.GetRange().GetEpoch().GetSpan() >= next.GetRange().GetEpoch().GetSpan():
			return false
		}
	}
	d.ranges = append(keep, next)
	return true
}

func (d *dumb) sorted() []*pdpb.RangeReport {
	return slices.SortedFunc(slices.Values(d.ranges), func(a, b *pdpb.RangeReport) int {
		return bytes.Compare(a.GetRange().GetSpan().GetStart(), b.GetRange().GetSpan().GetStart())
	})
}

// check compares all answers of topo with those of d.
func (d *dumb) check(t *rapid.T, topo *Topology) {
	all, more := topo.List(keys.All(), 1000)
	want := d.sorted()
	if len(all) != len(want) || more || len(topo.View(epoch).Ranges) != len(want) {
		t.Fatalf("%d ranges, want %d", len(all), len(want))
	}
	for i, r := range all {
		if !proto.Equal(r.Range, want[i].GetRange()) || !proto.Equal(r.Leader, want[i].GetLeader()) {
			t.Fatalf("range %d is %v led by %v, want %v", i, r.Range, r.Leader, want[i])
		}
		if topo.Range(r.Range.GetRangeId()) != r {
			t.Fatalf("range %d is not the same by its id", r.Range.GetRangeId())
		}
		if i > 0 && keys.FromProto(all[i-1].Range.GetSpan()).Overlaps(keys.FromProto(r.Range.GetSpan())) {
			t.Fatalf("%v overlaps %v", all[i-1].Range, r.Range)
		}
	}
	checkMembers(t, topo, all)
	for _, key := range []string{"", "a", "b", "bb", "e", "h", "zz"} {
		var found *metapb.Range
		for _, r := range want {
			if keys.FromProto(r.GetRange().GetSpan()).Contains([]byte(key)) {
				found = r.GetRange()
			}
		}
		var have *metapb.Range
		if r := topo.Find([]byte(key)); r != nil {
			have = r.Range
		}
		if !proto.Equal(have, found) {
			t.Fatalf("key %q is in %v, want %v", key, have, found)
		}
	}
}

// checkMembers: the index by store holds exactly the members of the ranges.
func checkMembers(t *rapid.T, topo *Topology, all []*Range) {
	want := map[uint64]map[uint64]struct{}{}
	for _, r := range all {
		for _, m := range r.Range.GetReplicas() {
			if want[m.GetStoreId()] == nil {
				want[m.GetStoreId()] = map[uint64]struct{}{}
			}
			want[m.GetStoreId()][r.Range.GetRangeId()] = struct{}{}
		}
	}
	for store, ids := range topo.mu.members {
		if len(ids) > 0 && !maps.Equal(ids, want[store]) || len(ids) == 0 && len(want[store]) > 0 {
			t.Fatalf("store %d has %v, want %v", store, ids, want[store])
		}
		delete(want, store)
	}
	if len(want) > 0 {
		t.Fatalf("not in the index: %v", want)
	}
}

var letters = rapid.SampledFrom([]string{"", "a", "b", "c", "d", "e", "f", "g", "h"})

// TestIngestAgainstDumb: any reports, sane or not, in any order.
func TestIngestAgainstDumb(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		topo, d := New(epoch, nil, nil), &dumb{}
		remembered := map[uint64]*metapb.Range{} // what would be in PD's group
		for range rapid.IntRange(1, 40).Draw(t, "reports") {
			n := rapid.Uint64Range(0, 5)
			r := describe(n.Draw(t, "id"), n.Draw(t, "config"), n.Draw(t, "span"),
				letters.Draw(t, "start"), letters.Draw(t, "end"), 1+n.Draw(t, "store"))
			in := report(r, n.Draw(t, "term"))
			if have, want := topo.Report(proto.CloneOf(in), epoch), d.report(in); have != want {
				t.Fatalf("%v: taken %v, want %v", in, have, want)
			}
			d.check(t, topo)
			switch rapid.IntRange(0, 3).Draw(t, "persist") {
			case 0:
				changed, dropped := topo.TakeDirty()
				for _, id := range dropped {
					delete(remembered, id)
				}
				for _, r := range changed {
					remembered[r.GetRangeId()] = r
				}
				checkRemembered(t, topo, remembered)
			case 1:
				topo.PutBack(topo.TakeDirty()) // the proposal failed
			}
		}
	})
}

// checkRemembered: a PD that starts from what was persisted has the same map.
func checkRemembered(t *rapid.T, topo *Topology, remembered map[uint64]*metapb.Range) {
	var list []*metapb.Range
	for _, r := range remembered {
		list = append(list, r)
	}
	next := New(epoch, nil, list)
	if len(list) != len(topo.View(epoch).Ranges) || len(next.View(epoch).Ranges) != len(list) {
		t.Fatalf("%d ranges are remembered, %d start, of %d", len(list),
			len(next.View(epoch).Ranges), len(topo.View(epoch).Ranges))
	}
	for _, r := range topo.View(epoch).Ranges {
		if o := next.Range(r.Range.GetRangeId()); o == nil || !proto.Equal(o.Range, r.Range) {
			t.Fatalf("%v is remembered as %v", r.Range, o)
		}
	}
}

// TestHistoriesConverge: ranges split and change members; their reports arrive
// in any order, again and again; once the newest of each has come twice the map
// is the truth.
func TestHistoriesConverge(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		truth := []*metapb.Range{describe(1, 5, 1, "", "", 1)}
		sent := []*metapb.Range{proto.CloneOf(truth[0])}
		topo := New(epoch, nil, nil)
		next := uint64(2)
		for range rapid.IntRange(0, 12).Draw(t, "changes") {
			i := rapid.IntRange(0, len(truth)-1).Draw(t, "range")
			r := truth[i]
			key := []byte(rapid.StringMatching(`[a-h]{1,3}`).Draw(t, "key"))
			span := keys.FromProto(r.GetSpan())
			if !span.Contains(key) || bytes.Equal(key, span.Start) {
				r.Epoch.Config += uint64(rapid.IntRange(1, 4).Draw(t, "config"))
			} else {
				child := proto.CloneOf(r)
				child.RangeId, child.Epoch.Config = next, 5
				next++
				r.Epoch.Span++
				child.Epoch.Span = r.GetEpoch().GetSpan()
				r.Span.End, child.Span.Start = key, key
				truth = append(truth, child)
				sent = append(sent, proto.CloneOf(child))
			}
			sent = append(sent, proto.CloneOf(r))
			for range rapid.IntRange(0, 3).Draw(t, "arrivals") {
				topo.Report(report(rapid.SampledFrom(sent).Draw(t, "arrival"), 1), epoch)
			}
		}
		for range 2 {
			for _, r := range rapid.Permutation(truth).Draw(t, "order") {
				topo.Report(report(proto.CloneOf(r), 1), epoch)
			}
		}
		slices.SortFunc(truth, func(a, b *metapb.Range) int {
			return bytes.Compare(a.GetSpan().GetStart(), b.GetSpan().GetStart())
		})
		have := topo.View(epoch).Ranges
		if len(have) != len(truth) {
			t.Fatalf("%d ranges, want %d", len(have), len(truth))
		}
		for i, r := range have {
			if !proto.Equal(r.Range, truth[i]) {
				t.Fatalf("have %v, want %v", r.Range, truth[i])
			}
		}
	})
}

func TestListPages(t *testing.T) {
	topo := New(epoch, nil, nil)
	for i := range 100 {
		start, end := fmt.Sprintf("%02d", i), fmt.Sprintf("%02d", i+1)
		if i == 99 {
			end = ""
		}
		topo.Report(report(describe(uint64(i+1), 5, 1, start, end, 1), 1), epoch)
	}
	for _, c := range []struct {
		start, end string
		limit      int
		n          int
		more       bool
	}{
		{"", "", 100, 100, false},
		{"", "", 99, 99, true},
		{"505", "", 10, 10, true},
		{"505", "52", 10, 2, false},
		{"505", "52", 2, 2, false},
		{"505", "52", 1, 1, true},
		{"a", "", 5, 1, false},
		{"", "0", 5, 0, false},
	} {
		got, more := topo.List(keys.Span{Start: []byte(c.start), End: []byte(c.end)}, c.limit)
		if len(got) != c.n || more != c.more {
			t.Errorf("[%s,%s) limit %d: %d ranges, more %v", c.start, c.end, c.limit, len(got), more)
		}
	}
}

func TestDeposedLeader(t *testing.T) {
	topo := New(epoch, nil, nil)
	r := describe(1, 5, 1, "", "", 1, 2)
	if !topo.Report(report(r, 7), epoch) {
		t.Fatal("refused")
	}
	revision, changed := topo.Changed()
	old := report(r, 6)
	old.Leader.StoreId = 2
	if topo.Report(old, epoch.Add(time.Second)) || topo.Range(1).Leader.GetStoreId() != 1 {
		t.Fatal("a deposed leader was believed")
	}
	// The same again is no news.
	topo.Report(report(r, 7), epoch.Add(time.Second))
	if now, _ := topo.Changed(); now != revision || !topo.Range(1).Reported.After(epoch) {
		t.Fatal("a repetition is not taken as one")
	}
	select {
	case <-changed:
		t.Fatal("a repetition was announced")
	default:
	}
	led := report(r, 8)
	led.Leader.StoreId = 2
	topo.Report(led, epoch)
	<-changed
}

func TestStores(t *testing.T) {
	rec := func(id uint64, s metapb.StoreState) *pdpb.StoreRecord {
		return &pdpb.StoreRecord{Store: &metapb.Store{StoreId: id, State: s}}
	}
	up := metapb.StoreState_STORE_STATE_UP
	topo := New(epoch, []*pdpb.StoreRecord{rec(2, up), rec(1, up)}, nil)
	full := metapb.DiskState_DISK_STATE_FULL
	if !topo.HeardStore(1, &pdpb.StoreStats{RangeCount: 3}, full, epoch.Add(time.Second)) {
		t.Fatal("store 1 is not known")
	}
	if topo.HeardStore(9, nil, full, epoch) {
		t.Fatal("store 9 is known")
	}
	leaving := rec(1, metapb.StoreState_STORE_STATE_LEAVING)
	_, changed := topo.Changed()
	topo.PutStores([]*pdpb.StoreRecord{leaving, rec(3, up)}, epoch.Add(2*time.Second))
	<-changed
	_, changed = topo.Changed()
	topo.PutStores([]*pdpb.StoreRecord{leaving}, epoch.Add(3*time.Second))
	select {
	case <-changed:
		t.Fatal("nothing new was announced")
	default:
	}
	got := topo.Stores()
	if len(got) != 3 || !slices.IsSortedFunc(got, func(a, b *Store) int {
		return cmp.Compare(a.Store.GetStoreId(), b.Store.GetStoreId())
	}) {
		t.Fatalf("stores %v", got)
	}
	if one := got[0]; one.Stats.GetRangeCount() != 3 || one.Store.GetDiskState() != full ||
		one.Store.GetState() != metapb.StoreState_STORE_STATE_LEAVING ||
		!one.Heard.Equal(epoch.Add(time.Second)) {
		t.Fatalf("store 1 is %v, heard %s", one.Store, one.Heard)
	}
	v := topo.View(epoch.Add(10 * time.Second))
	v.DownAfter, v.SilentAfter = 9500*time.Millisecond, 9*time.Second
	for id, want := range map[uint64]metapb.StoreState{
		1: metapb.StoreState_STORE_STATE_LEAVING, 2: metapb.StoreState_STORE_STATE_DOWN, 3: up,
		4: metapb.StoreState_STORE_STATE_GONE,
	} {
		if got := v.State(v.Store(id)); got != want {
			t.Errorf("store %d is %v, want %v", id, got, want)
		}
		if v.Receives(v.Store(id)) {
			t.Errorf("store %d receives replicas", id)
		}
	}
	// Store 3 has said nothing to this PD yet.
	if !v.Silent(v.Store(1)) || !v.Silent(v.Store(3)) || !v.Silent(nil) {
		t.Error("who is silent is wrong")
	}
	topo.HeardStore(3, &pdpb.StoreStats{}, metapb.DiskState_DISK_STATE_OK, v.Now)
	v.Stores = topo.Stores()
	if !v.Receives(v.Store(3)) || v.Silent(v.Store(3)) {
		t.Error("store 3 receives nothing")
	}
}

// TestWords: only the store of a replica knows that it is poisoned or missing.
func TestWords(t *testing.T) {
	topo := New(epoch, nil, nil)
	topo.Report(report(describe(1, 5, 1, "", "m", 1, 2), 1), epoch)
	topo.Report(report(describe(2, 5, 1, "m", "", 1, 2), 1), epoch)
	at := func(s int) time.Time { return epoch.Add(time.Duration(s) * time.Second) }
	has := func(rangeID, replicaID uint64, poisoned bool) *pdpb.LocalReplica {
		return &pdpb.LocalReplica{RangeId: rangeID, ReplicaId: replicaID, Poisoned: poisoned}
	}
	topo.HeardReplicas(2, []*pdpb.LocalReplica{has(1, 12, true)}, false, at(1))
	topo.HeardReplicas(1, []*pdpb.LocalReplica{has(1, 12, false), has(9, 1, true)}, false, at(1))
	if w := topo.Range(1).Word(12); !w.Poisoned || !w.MissingFrom.IsZero() {
		t.Fatalf("word %+v: the wrong store was believed", w)
	}
	topo.HeardReplicas(2, []*pdpb.LocalReplica{has(1, 99, false)}, true, at(2))
	topo.HeardReplicas(2, nil, true, at(40))
	for _, id := range []uint64{1, 2} {
		w := topo.Range(id).Word(10*id + 2)
		if !w.MissingFrom.Equal(at(2)) || !w.MissingTo.Equal(at(40)) {
			t.Fatalf("range %d: %+v", id, w)
		}
		if w := topo.Range(id).Word(10*id + 1); w != (Word{ReplicaID: 10*id + 1}) {
			t.Fatalf("range %d: %+v about another store", id, w)
		}
	}
	topo.Report(report(describe(2, 5, 1, "m", "", 1, 2), 2), at(41)) // words outlive reports
	topo.Report(report(describe(1, 8, 1, "", "m", 1), 2), at(41))    // but not membership
	if topo.Range(2).Word(22).MissingTo.IsZero() || len(topo.Range(1).Words) != 0 {
		t.Fatalf("words %+v, %+v", topo.Range(2).Words, topo.Range(1).Words)
	}
	topo.HeardReplicas(2, []*pdpb.LocalReplica{has(2, 22, false)}, false, at(42))
	if len(topo.Range(2).Words) != 0 || topo.Find([]byte("x")) != topo.Range(2) {
		t.Fatalf("words %+v of a replica that is back", topo.Range(2).Words)
	}
}

// TestUnlisted: a replica of a range that becomes known is held once its store has
// named it, be that before the leader's report or after.
func TestUnlisted(t *testing.T) {
	topo := New(epoch, nil, []*metapb.Range{describe(1, 5, 1, "", "", 1, 2, 3)})
	held := func(rangeID uint64) (out []uint64) {
		for _, m := range topo.Range(rangeID).Range.GetReplicas() {
			if topo.Range(rangeID).Word(m.GetReplicaId()).Held() {
				out = append(out, m.GetStoreId())
			}
		}
		return out
	}
	expect := func(when string, rangeID uint64, want ...uint64) {
		t.Helper()
		if got := held(rangeID); !slices.Equal(got, want) {
			t.Fatalf("%s: range %d is held by %v, want %v", when, rangeID, got, want)
		}
	}
	has := func(rangeID, replicaID uint64) *pdpb.LocalReplica {
		return &pdpb.LocalReplica{RangeId: rangeID, ReplicaId: replicaID}
	}
	expect("remembered", 1, 1, 2, 3)
	topo.Report(report(describe(1, 5, 1, "", "", 1, 2, 3), 1), epoch)
	// The child's follower on store 3 is named before its leader's report, which comes
	// before that of the parent.
	topo.HeardReplicas(3, []*pdpb.LocalReplica{has(2, 23)}, false, epoch)
	topo.Report(report(describe(2, 5, 2, "m", "", 1, 2, 3), 1), epoch)
	expect("split", 2, 1, 3)
	if topo.Range(1) != nil {
		t.Fatal("the parent overlaps its child")
	}
	topo.Report(report(describe(1, 5, 2, "", "m", 1, 2, 3), 1), epoch)
	expect("split", 1, 1, 2, 3)
	topo.Report(report(describe(2, 5, 2, "m", "", 1, 2, 3), 2), epoch) // words outlive reports
	topo.HeardReplicas(2, []*pdpb.LocalReplica{has(1, 12)}, true, epoch)
	expect("store 2 lags behind", 2, 1, 3)
	topo.HeardReplicas(2, []*pdpb.LocalReplica{has(2, 22)}, false, epoch)
	expect("store 2 has begun", 2, 1, 2, 3)
	// What was named early is forgotten when the store does not name it again.
	topo.HeardReplicas(3, []*pdpb.LocalReplica{has(3, 33)}, false, epoch)
	topo.HeardReplicas(3, []*pdpb.LocalReplica{has(1, 13), has(2, 23)}, true, epoch)
	topo.Report(report(describe(3, 5, 3, "t", "", 1, 2, 3), 1), epoch)
	expect("gone again", 3, 1)
}

// TestEarlyIsBounded: a store may name any number of ranges that are not known.
func TestEarlyIsBounded(t *testing.T) {
	topo := New(epoch, nil, nil)
	for i := range uint64(maxEarly + 10) {
		topo.HeardReplicas(2, []*pdpb.LocalReplica{{RangeId: i + 1, ReplicaId: i + 1}}, false, epoch)
	}
	if n := len(topo.mu.early[2]); n != maxEarly {
		t.Fatalf("%d are remembered, want %d", n, maxEarly)
	}
}

// TestMuchToPersist: a large change is written down in several entries.
func TestMuchToPersist(t *testing.T) {
	topo := New(epoch, nil, nil)
	const n = maxDirty + 100
	for i := range uint64(n) {
		topo.Report(report(describe(i+1, 5, 1, fmt.Sprintf("%06d", i), fmt.Sprintf("%06d", i+1), 1), 1),
			epoch)
	}
	seen := map[uint64]bool{}
	for _, want := range []int{maxDirty, 100, 0} {
		ranges, dropped := topo.TakeDirty()
		if len(ranges) != want || len(dropped) != 0 {
			t.Fatalf("%d ranges, %d dropped, want %d", len(ranges), len(dropped), want)
		}
		for _, r := range ranges {
			seen[r.GetRangeId()] = true
		}
	}
	if len(seen) != n {
		t.Fatalf("%d ranges of %d", len(seen), n)
	}
}

func many(n uint64) *Topology {
	topo := New(epoch, nil, nil)
	for i := range n {
		end := fmt.Sprintf("%06d", i+1)
		topo.Report(report(describe(i+1, 5, 1, fmt.Sprintf("%06d", i), end, 1, 2, 3), 1), epoch)
	}
	return topo
}

// BenchmarkComplete is the complete list of one store of ten thousand ranges.
func BenchmarkComplete(b *testing.B) {
	topo := many(10_000)
	var list []*pdpb.LocalReplica
	for i := range uint64(10_000) {
		list = append(list, &pdpb.LocalReplica{RangeId: i + 1, ReplicaId: 10*(i+1) + 2})
	}
	for b.Loop() {
		topo.HeardReplicas(2, list, true, epoch)
	}
}

// BenchmarkPage is what a client asks for at a miss.
func BenchmarkPage(b *testing.B) {
	topo := many(10_000)
	for b.Loop() {
		topo.List(keys.Span{Start: []byte("002")}, 64)
	}
}

// BenchmarkView is the picture of one pass.
func BenchmarkView(b *testing.B) {
	topo := many(10_000)
	for b.Loop() {
		topo.View(epoch)
	}
}
