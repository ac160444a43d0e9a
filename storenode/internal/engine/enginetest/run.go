package enginetest

import (
	"context"
	"fmt"
	"slices"
	"testing"

	"github.com/ridgekv/ridge/proto/keys"
	logpb "github.com/ridgekv/ridge/proto/ridge/log/v1"
	"github.com/ridgekv/ridge/proto/ts"
	"github.com/ridgekv/ridge/storenode/internal/engine"
)

// Run passes the engines that open makes through the suite.
func Run(t *testing.T, open func(t testing.TB) Engine) {
	tests := []struct {
		name string
		run  func(*testing.T, *subject)
	}{
		{"point reads", pointReads},
		{"history of a key", historyOfAKey},
		{"one key in two sets", oneKeyInTwoSets},
		{"one key twice in a set", oneKeyTwiceInASet},
		{"views stand still", viewsStandStill},
		{"scans", scans},
		{"scans of several slices", scansOfSlices},
		{"scans of hot keys", scansOfHotKeys},
		{"versions", versionsOldestFirst},
		{"image", imageIntoNewExtent},
		{"records", records},
		{"measure", measure},
		{"checksum", checksum},
		{"random operations", randomOperations},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) { test.run(t, &subject{t, open(t)}) })
	}
}

const extent engine.Extent = 16

// subject is an engine under test.
type subject struct {
	testing.TB
	Engine
}

func (s *subject) must(err error) {
	s.Helper()
	if err != nil {
		s.Fatal(err)
	}
}

func (s *subject) commit(f func(w *engine.WriteSet)) {
	s.Helper()
	var w engine.WriteSet
	f(&w)
	s.must(s.Commit(&w))
}

// many calls f n times and commits now and then.
func (s *subject) many(n int, f func(w *engine.WriteSet, i int)) {
	s.Helper()
	w := new(engine.WriteSet)
	for i := range n {
		if f(w, i); i%20 == 19 || i == n-1 {
			s.must(s.Commit(w))
			w = new(engine.WriteSet)
		}
	}
}

func (s *subject) put(key, value string, at ts.Timestamp) {
	s.Helper()
	s.commit(func(w *engine.WriteSet) {
		w.Put(extent, []byte(key), engine.Row{CommitTS: at, Value: []byte(value)})
	})
}

func (s *subject) del(key string, at ts.Timestamp) {
	s.Helper()
	s.commit(func(w *engine.WriteSet) { w.Delete(extent, []byte(key), at) })
}

// wantAt checks GetAt; want "-" is for none.
func (s *subject) wantAt(v View, key string, at ts.Timestamp, want string) {
	s.Helper()
	r, ok, err := v.GetAt(extent, []byte(key), at)
	s.must(err)
	if got := text(r, ok); got != want {
		s.Errorf("%s at %d: %s, want %s", key, at, got, want)
	}
}

func (s *subject) want(v View, key, want string) {
	s.Helper()
	r, ok, err := v.Get(extent, []byte(key))
	s.must(err)
	if got := text(r, ok); got != want {
		s.Errorf("%s: %s, want %s", key, got, want)
	}
}

func text(r engine.Row, ok bool) string {
	if !ok {
		return "-"
	}
	if r.Deleted {
		return fmt.Sprintf("deleted@%d", r.CommitTS)
	}
	return fmt.Sprintf("%s@%d", r.Value, r.CommitTS)
}

func all(x engine.Extent) engine.Slice { return engine.Slice{Extent: x} }

func span(start, end string) keys.Span {
	return keys.Span{Start: []byte(start), End: []byte(end)}
}

func (s *subject) wantScan(v View, o engine.ScanOptions, want ...string) {
	s.Helper()
	if o.Slices == nil {
		o.Slices = []engine.Slice{all(extent)}
	}
	if got := s.scan(v, o); !slices.Equal(got, want) {
		s.Errorf("scan of %v at %d reverse=%t:\n got %v\nwant %v", o.Span, o.At, o.Reverse, got, want)
	}
}

func (s *subject) scan(v View, o engine.ScanOptions) []string {
	s.Helper()
	var got []string
	for r, err := range v.Scan(o) {
		s.must(err)
		got = append(got, string(r.Key)+"="+text(r.Row, true))
	}
	return got
}

func pointReads(t *testing.T, s *subject) {
	s.want(s.View(), "a", "-")
	s.put("a", "1", 10)
	s.put("ab", "", 11)
	s.commit(func(w *engine.WriteSet) {
		w.Put(extent, []byte("ttl"), engine.Row{CommitTS: 12, ExpiresAt: 1, Value: []byte("v")})
	})
	v := s.View()
	s.want(v, "a", "1@10")
	s.want(v, "ab", "@11")
	s.want(v, "abc", "-")
	if r, ok, err := v.Get(extent, []byte("ttl")); err != nil || !ok || r.ExpiresAt != 1 {
		t.Errorf("row with expiry: %+v %t %v", r, ok, err)
	}
	if _, ok, _ := v.Get(extent+1, []byte("a")); ok {
		t.Error("found in another extent")
	}
	s.del("a", 20)
	s.want(s.View(), "a", "-")
	r, ok, err := s.View().Newest(extent, []byte("a"))
	if err != nil || !ok || !r.Deleted || r.CommitTS != 20 {
		t.Errorf("newest of a deleted key: %+v %t %v", r, ok, err)
	}
	if _, ok, err := s.View().Newest(extent, []byte("never")); ok || err != nil {
		t.Errorf("newest of no key: %t %v", ok, err)
	}
}

func historyOfAKey(t *testing.T, s *subject) {
	s.put("k", "a", 10)
	s.put("k", "b", 20)
	s.del("k", 30)
	s.put("k", "c", 40)
	v := s.View()
	for at, want := range map[ts.Timestamp]string{
		9: "-", 10: "a@10", 19: "a@10", 20: "b@20", 30: "-", 39: "-", 40: "c@40", ts.Max: "c@40",
	} {
		s.wantAt(v, "k", at, want)
	}
	s.wantAt(v, "kk", 40, "-")
}

// Two entries of a log write the same key: both versions must exist.
func oneKeyInTwoSets(t *testing.T, s *subject) {
	var one, two, three engine.WriteSet
	one.Put(extent, []byte("k"), engine.Row{CommitTS: 100, Value: []byte("a")})
	two.Put(extent, []byte("other"), engine.Row{CommitTS: 101})
	two.Put(extent, []byte("k"), engine.Row{CommitTS: 101, Value: []byte("b")})
	three.Delete(extent, []byte("k"), 102)
	s.must(s.Commit(&one, &two, &three))
	v := s.View()
	s.wantAt(v, "k", 100, "a@100")
	s.wantAt(v, "k", 101, "b@101")
	s.wantAt(v, "k", 102, "-")
}

// One entry writes a key twice, at one commit_ts: the last one wins.
func oneKeyTwiceInASet(t *testing.T, s *subject) {
	s.commit(func(w *engine.WriteSet) {
		w.Put(extent, []byte("k"), engine.Row{CommitTS: 5, Value: []byte("a")})
		w.Delete(extent, []byte("k"), 5)
		w.Put(extent, []byte("k"), engine.Row{CommitTS: 5, Value: []byte("b")})
		w.Put(extent, []byte("gone"), engine.Row{CommitTS: 5})
		w.Delete(extent, []byte("gone"), 5)
	})
	s.want(s.View(), "k", "b@5")
	s.want(s.View(), "gone", "-")
}

func viewsStandStill(t *testing.T, s *subject) {
	s.put("a", "1", 1)
	old := s.View()
	pinned, release := s.Pin()
	defer release()
	s.put("a", "2", 2)
	s.put("b", "2", 3)
	for _, v := range []View{old, pinned} {
		s.want(v, "a", "1@1")
		s.want(v, "b", "-")
		s.wantScan(v, engine.ScanOptions{}, "a=1@1")
		s.wantScan(v, engine.ScanOptions{Reverse: true, At: 9}, "a=1@1")
	}
	if s.View().Seq() <= old.Seq() {
		t.Errorf("view at %d after one at %d", s.View().Seq(), old.Seq())
	}
}

func scans(t *testing.T, s *subject) {
	s.put("a", "1", 10)
	s.put("b", "1", 10)
	s.put("c", "1", 10)
	s.put("b", "2", 20)
	s.del("c", 20)
	s.put("d\xff", "1", 20)
	s.put("\xff\xff", "1", 30)
	s.commit(func(w *engine.WriteSet) {
		w.Put(extent-1, []byte("z"), engine.Row{CommitTS: 1})
		w.Put(extent+1, []byte("\x00"), engine.Row{CommitTS: 1})
	})
	v := s.View()
	type o = engine.ScanOptions
	s.wantScan(v, o{}, "a=1@10", "b=2@20", "d\xff=1@20", "\xff\xff=1@30")
	s.wantScan(v, o{Reverse: true}, "\xff\xff=1@30", "d\xff=1@20", "b=2@20", "a=1@10")
	s.wantScan(v, o{At: 10}, "a=1@10", "b=1@10", "c=1@10")
	s.wantScan(v, o{At: 10, Reverse: true}, "c=1@10", "b=1@10", "a=1@10")
	s.wantScan(v, o{At: 20}, "a=1@10", "b=2@20", "d\xff=1@20")
	s.wantScan(v, o{At: 20, Reverse: true}, "d\xff=1@20", "b=2@20", "a=1@10")
	s.wantScan(v, o{At: 9})
	s.wantScan(v, o{Span: span("b", "d")}, "b=2@20")
	s.wantScan(v, o{Span: span("a", "b"), Reverse: true}, "a=1@10")
	s.wantScan(v, o{Span: span("b", "c"), At: 10}, "b=1@10")
	s.wantScan(v, o{Span: span("b", "c"), At: 10, Reverse: true}, "b=1@10")
	s.wantScan(v, o{Span: span("b", ""), Limit: 1}, "b=2@20")
	s.wantScan(v, o{Limit: 2, Reverse: true}, "\xff\xff=1@30", "d\xff=1@20")
	s.wantScan(v, o{KeysOnly: true, Limit: 2}, "a=@10", "b=@20")
	s.wantScan(v, o{Span: span("x", "y")})
}

func scansOfSlices(t *testing.T, s *subject) {
	s.many(300, func(w *engine.WriteSet, i int) {
		x := extent + engine.Extent(i/100)
		// Every extent holds every key; the slices say which count.
		for _, y := range []engine.Extent{extent, extent + 1, extent + 2} {
			value := []byte("hidden")
			if x == y {
				value = []byte("shown")
			}
			w.Put(y, fmt.Appendf(nil, "%03d", i), engine.Row{CommitTS: 1, Value: value})
		}
	})
	list := []engine.Slice{
		{Extent: extent, Span: span("", "100")},
		{Extent: extent + 1, Span: span("100", "200")},
		{Extent: extent + 2, Span: span("200", "")},
	}
	for _, at := range []ts.Timestamp{0, 1} {
		for _, reverse := range []bool{false, true} {
			o := engine.ScanOptions{Slices: list, Span: span("050", "250"), At: at, Reverse: reverse}
			got := s.scan(s.View(), o)
			if reverse {
				slices.Reverse(got)
			}
			if len(got) != 200 {
				t.Fatalf("at %d reverse=%t: %d rows, want 200", at, reverse, len(got))
			}
			for i, r := range got {
				if want := fmt.Sprintf("%03d=shown@1", i+50); r != want {
					t.Fatalf("at %d reverse=%t: row %d is %s, want %s", at, reverse, i, r, want)
				}
			}
		}
	}
}

// Keys with many versions make a scan seek.
func scansOfHotKeys(t *testing.T, s *subject) {
	for i := range 40 {
		s.commit(func(w *engine.WriteSet) {
			for _, k := range []string{"a", "b", "c"} {
				w.Put(extent, []byte(k), engine.Row{CommitTS: ts.Timestamp(i + 1)})
			}
		})
	}
	for _, at := range []ts.Timestamp{0, 1, 7, 40} {
		want := []string{"a=@", "b=@", "c=@"}
		for i := range want {
			want[i] += fmt.Sprint(min(at-1, 39) + 1)
		}
		s.wantScan(s.View(), engine.ScanOptions{At: at}, want...)
		slices.Reverse(want)
		s.wantScan(s.View(), engine.ScanOptions{At: at, Reverse: true}, want...)
	}
}

func versionsOldestFirst(t *testing.T, s *subject) {
	s.put("a", "1", 10)
	s.put("b", "1", 11)
	s.put("a", "2", 20)
	s.del("b", 21)
	s.put("c", "1", 30)
	got := s.versions(s.View(), engine.Slice{Extent: extent, Span: span("a", "c")})
	want := []string{"a=1@10", "a=2@20", "b=1@11", "b=deleted@21"}
	if !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

func (s *subject) versions(v View, slice engine.Slice) []string {
	s.Helper()
	var got []string
	for r, err := range v.Versions(slice) {
		s.must(err)
		row := decode(r.EncodedRow)
		if r.Kind != logpb.ImageKind_IMAGE_KIND_DATA || row.Deleted != r.DeleteMark {
			s.Errorf("version %+v", r)
		}
		got = append(got, string(r.Key)+"="+text(row, true))
	}
	return got
}

// imageIntoNewExtent copies all versions into a new extent, many per set.
func imageIntoNewExtent(t *testing.T, s *subject) {
	for i := range 30 {
		at := ts.Timestamp(10 * (i + 1))
		for k := range 5 {
			if key := fmt.Sprint(k); (i+k)%4 == 0 {
				s.del(key, at)
			} else {
				s.put(key, fmt.Sprint(i), at)
			}
		}
	}
	var list engine.WriteSet
	to := s.NewExtent(&list)
	list.AddGarbage(all(to), true)
	s.must(s.Commit(&list))
	source, release := s.Pin()
	defer release()
	w := new(engine.WriteSet)
	for r, err := range source.Versions(all(extent)) {
		s.must(err)
		w.PutImageRow(to, r.Kind, r.Key, r.EncodedRow, r.DeleteMark)
		if w.Rows() == 40 {
			s.must(s.Commit(w))
			w = new(engine.WriteSet)
		}
	}
	w.SetApplied(1, []byte("with the last row"))
	s.must(s.Commit(w))
	v := s.View()
	if got, want := s.versions(v, all(to)), s.versions(v, all(extent)); !slices.Equal(got, want) {
		t.Errorf("versions of the copy:\n got %v\nwant %v", got, want)
	}
	for at := ts.Timestamp(0); at <= 310; at += 5 {
		got := s.scan(v, engine.ScanOptions{At: at, Slices: []engine.Slice{all(to)}})
		want := s.scan(v, engine.ScanOptions{At: at, Slices: []engine.Slice{all(extent)}})
		if !slices.Equal(got, want) {
			t.Errorf("at %d: got %v, want %v", at, got, want)
		}
	}
	if string(s.Applied()[1]) != "with the last row" {
		t.Errorf("applied: %v", s.Applied())
	}
}

func records(t *testing.T, s *subject) {
	s.commit(func(w *engine.WriteSet) {
		w.SetApplied(7, []byte("old"))
		w.SetApplied(7, []byte("a7"))
		w.SetApplied(1<<40, []byte("big"))
		w.SetState(7, []byte("m7"))
		w.SetStore("tombstone/1", []byte("t1"))
		w.SetStore("tombstone/2", []byte("t2"))
		w.SetStore("ident", []byte("i"))
	})
	s.commit(func(w *engine.WriteSet) {
		w.DeleteApplied(1 << 40)
		w.DeleteStore("tombstone/2")
		w.SetState(8, nil)
		w.DeleteState(9)
	})
	if got := s.Applied(); len(got) != 1 || string(got[7]) != "a7" {
		t.Errorf("applied %v", got)
	}
	if got := s.States(); len(got) != 2 || string(got[7]) != "m7" || len(got[8]) != 0 {
		t.Errorf("states %v", got)
	}
	if b, ok, err := s.Store("ident"); string(b) != "i" || !ok || err != nil {
		t.Errorf("ident %q %t %v", b, ok, err)
	}
	if _, ok, err := s.Store("none"); ok || err != nil {
		t.Errorf("none: %t %v", ok, err)
	}
	got, err := s.StoreRecords("tombstone/")
	if err != nil || len(got) != 1 || string(got["tombstone/1"]) != "t1" {
		t.Errorf("tombstones %q %v", got, err)
	}
}

func measure(t *testing.T, s *subject) {
	ctx := context.Background()
	list := []engine.Slice{{Extent: extent, Span: span("k", "")}}
	if m, err := s.Measure(ctx, list); err != nil || m.Keys != 0 || m.Middle != nil {
		t.Errorf("nothing: %+v %v", m, err)
	}
	s.put("k", "v", 1)
	if m, err := s.Measure(ctx, list); err != nil || m.Keys != 1 || m.Middle != nil {
		t.Errorf("one key: %+v %v", m, err)
	}
	s.many(5000, func(w *engine.WriteSet, i int) {
		w.Put(extent, fmt.Appendf(nil, "k%04d", i), engine.Row{CommitTS: 2, Value: make([]byte, 90)})
	})
	s.put("a", "", 2)
	m, err := s.Measure(ctx, list)
	if err != nil || m.Keys != 5001 || m.SizeBytes < 5000*95 || m.SizeBytes > 5000*120 {
		t.Fatalf("%+v %v", m, err)
	}
	if string(m.Middle) < "k2400" || string(m.Middle) > "k2600" {
		t.Errorf("middle %q", m.Middle)
	}
}

func checksum(t *testing.T, s *subject) {
	sum := func(list ...engine.Slice) string {
		a, b, c, err := s.Checksum(context.Background(), s.View(), list, keys.All())
		s.must(err)
		return fmt.Sprint(a, b, c)
	}
	seen := map[string]string{sum(all(extent)): "empty"}
	distinct := func(step string) {
		t.Helper()
		got := sum(all(extent))
		if other, ok := seen[got]; ok {
			t.Errorf("the sum after %s is that of %s", step, other)
		}
		seen[got] = step
	}
	s.put("a", "bc", 1)
	distinct("a put")
	s.put("a", "bc", 2)
	distinct("a commit_ts")
	s.put("a", "bd", 2)
	distinct("a value")
	s.put("ab", "d", 3)
	distinct("a key")
	s.commit(func(w *engine.WriteSet) {
		w.Put(extent, []byte("ab"), engine.Row{CommitTS: 3, ExpiresAt: 4, Value: []byte("d")})
	})
	distinct("an expiry")
	before := sum(all(extent))
	s.put("gone", "", 5)
	s.del("gone", 6)
	if sum(all(extent)) != before {
		t.Error("a deleted row counts")
	}
	s.commit(func(w *engine.WriteSet) {
		w.Put(extent+1, []byte("a"), engine.Row{CommitTS: 2, Value: []byte("bd")})
		w.Put(extent+2, []byte("ab"), engine.Row{CommitTS: 3, ExpiresAt: 4, Value: []byte("d")})
	})
	moved := sum(engine.Slice{Extent: extent + 1, Span: span("", "aa")},
		engine.Slice{Extent: extent + 2, Span: span("aa", "")})
	if moved != before {
		t.Error("the same rows in other slices have another sum")
	}
}
