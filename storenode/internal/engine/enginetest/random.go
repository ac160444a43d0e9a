package enginetest

import (
	"fmt"
	"maps"
	"slices"
	"testing"

	"github.com/ridgekv/ridge/proto/ts"
	"github.com/ridgekv/ridge/storenode/internal/engine"
	"pgregory.net/rapid"
)

// randomOperations drives the engine and a fresh model in lockstep. One
// engine serves all rounds; each round has an extent of its own.
func randomOperations(t *testing.T, s *subject) {
	next := engine.Extent(100)
	rapid.Check(t, func(rt *rapid.T) {
		next += 2
		r := &round{T: rt, real: s.Engine, model: NewModel(), extent: next}
		rt.Repeat(map[string]func(*rapid.T){
			"commit": r.commit,
			"view":   r.view,
			"":       func(*rapid.T) {},
		})
		r.compare(s.View(), r.model.View())
		for _, p := range r.views {
			r.compare(p.real, p.model)
		}
	})
}

type round struct {
	*rapid.T
	real   Engine
	model  *Model
	extent engine.Extent
	now    ts.Timestamp
	views  []viewPair
}

type viewPair struct{ real, model View }

var randomKey = rapid.Custom(func(t *rapid.T) string {
	return rapid.StringOfN(rapid.SampledFrom([]rune("ab\x00")), 1, 3, -1).Draw(t, "key")
})

func (r *round) commit(t *rapid.T) {
	var sets []*engine.WriteSet
	for range rapid.IntRange(1, 3).Draw(t, "sets") {
		w := new(engine.WriteSet)
		r.now++
		for range rapid.IntRange(0, 5).Draw(t, "ops") {
			x := r.extent + engine.Extent(rapid.IntRange(0, 1).Draw(t, "extent"))
			key := []byte(randomKey.Draw(t, "key"))
			if rapid.Bool().Draw(t, "delete") {
				w.Delete(x, key, r.now)
				continue
			}
			w.Put(x, key, engine.Row{
				CommitTS:  r.now,
				ExpiresAt: ts.Timestamp(rapid.IntRange(0, 2).Draw(t, "expires")),
				Value:     []byte(rapid.StringN(0, 5, -1).Draw(t, "value")),
			})
		}
		w.SetApplied(uint64(r.extent), fmt.Append(nil, r.now))
		sets = append(sets, w)
	}
	if err := r.real.Commit(sets...); err != nil {
		t.Fatal(err)
	}
	if err := r.model.Commit(sets...); err != nil {
		t.Fatal(err)
	}
}

func (r *round) view(t *rapid.T) {
	if len(r.views) == 3 {
		t.Skip("enough views")
	}
	r.views = append(r.views, viewPair{r.real.View(), r.model.View()})
}

// compare reads everything through both views.
func (r *round) compare(got, want View) {
	at := ts.Timestamp(rapid.Uint64Range(0, uint64(r.now)).Draw(r.T, "at"))
	for x := r.extent; x < r.extent+2; x++ {
		for k := range r.keys() {
			key := []byte(k)
			a, aok, aerr := got.Newest(x, key)
			b, bok, _ := want.Newest(x, key)
			r.same("newest", k, aerr, text(a, aok), text(b, bok))
			a, aok, aerr = got.Get(x, key)
			b, bok, _ = want.Get(x, key)
			r.same("get", k, aerr, text(a, aok), text(b, bok))
			a, aok, aerr = got.GetAt(x, key, at)
			b, bok, _ = want.GetAt(x, key, at)
			r.same("get at", k, aerr, text(a, aok), text(b, bok))
		}
		o := engine.ScanOptions{
			Slices:  []engine.Slice{{Extent: x}},
			At:      rapid.SampledFrom([]ts.Timestamp{0, at}).Draw(r.T, "scan at"),
			Reverse: rapid.Bool().Draw(r.T, "reverse"),
			Limit:   rapid.IntRange(0, 3).Draw(r.T, "limit"),
		}
		o.Span.Start = []byte(rapid.SampledFrom([]string{"", "a", "ab", "b"}).Draw(r.T, "start"))
		o.Span.End = []byte(rapid.SampledFrom([]string{"", "b", "ba", "c"}).Draw(r.T, "end"))
		if !o.Span.Valid() {
			o.Span.End = nil
		}
		rows := scanRows(want, o)
		r.same("scan", fmt.Sprintf("%+v", o), nil, fmt.Sprint(scanRows(got, o)), fmt.Sprint(rows))
		if v, ok := got.(engine.View); ok {
			end := rapid.IntRange(1, 4).Draw(r.T, "visits")
			visited, err := visitRows(v, o, end)
			r.same("visit", fmt.Sprintf("%d of %+v", end, o), err,
				fmt.Sprint(visited), fmt.Sprint(rows[:min(end, len(rows))]))
		}
		s := engine.Slice{Extent: x, Span: o.Span}
		r.same("versions", s.String(), nil, versionText(got, s), versionText(want, s))
	}
}

// keys are all that the model ever saw, and one that it did not.
func (r *round) keys() map[string]bool {
	out := map[string]bool{"zz": true}
	for k := range maps.Keys(r.model.rows) {
		out[k.key] = true
	}
	return out
}

func (r *round) same(what, where string, err error, got, want string) {
	if err != nil || got != want {
		r.Fatalf("%s %q: got %s, %v; want %s", what, where, got, err, want)
	}
}

func scanRows(v View, o engine.ScanOptions) []string {
	var out []string
	for row, err := range v.Scan(o) {
		out = append(out, rowText(row.Key, row.Row)+fmt.Sprint(err))
	}
	return out
}

func rowText(key []byte, row engine.Row) string {
	return fmt.Sprintf("%q=%s/%d ", key, text(row, true), row.ExpiresAt)
}

// visitRows is scanRows of the first rows by Visit.
func visitRows(v engine.View, o engine.ScanOptions, end int) ([]string, error) {
	var out []string
	var err error
	err = v.Visit(o, func(key []byte, row engine.Row) bool {
		out = append(out, rowText(key, row)+fmt.Sprint(err))
		return len(out) < end
	})
	return out, err
}

func versionText(v View, s engine.Slice) string {
	var out []string
	for row, err := range v.Versions(s) {
		out = append(out, fmt.Sprintf("%v %q %x %t %v",
			row.Kind, row.Key, row.EncodedRow, row.DeleteMark, err))
	}
	return fmt.Sprint(slices.Clone(out))
}
