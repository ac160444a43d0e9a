package keys

import (
	"bytes"
	"testing"

	"pgregory.net/rapid"
)

// span draws bounds from a tiny alphabet, so that equal and adjacent bounds
// are common.
func span(t *rapid.T, label string) Span {
	key := rapid.SliceOfN(rapid.SampledFrom([]byte{0, 'a', 0xff}), 0, 3)
	return Span{Start: key.Draw(t, label+".start"), End: key.Draw(t, label+".end")}
}

// every lists all keys over the alphabet, the "dumb" second opinion.
func every() [][]byte {
	out := [][]byte{{}}
	for i := 0; i < len(out); i++ {
		if len(out[i]) == 4 {
			continue
		}
		for _, c := range []byte{0, 'a', 0xff} {
			out = append(out, append(bytes.Clone(out[i]), c))
		}
	}
	return out
}

func TestSpanArithmeticAgreesWithEnumeration(t *testing.T) {
	all := every()
	rapid.Check(t, func(t *rapid.T) {
		a, b := span(t, "a"), span(t, "b")
		both, within := false, true
		common := a.Intersect(b)
		for _, k := range all {
			ina, inb := a.Contains(k), b.Contains(k)
			both = both || ina && inb
			within = within && (!inb || ina)
			if (ina && inb) != common.Contains(k) {
				t.Fatalf("%s ∩ %s = %s is wrong at %s", a, b, common, Format(k))
			}
		}
		if !a.Valid() || !b.Valid() {
			return
		}
		if got := a.Overlaps(b); got != both {
			t.Fatalf("%s overlaps %s: %v", a, b, got)
		}
		if got := a.ContainsSpan(b); got != within {
			t.Fatalf("%s contains %s: %v", a, b, got)
		}
	})
}

func TestPrefixHoldsExactlyItsKeys(t *testing.T) {
	all := every()
	rapid.Check(t, func(t *rapid.T) {
		p := rapid.SliceOfN(rapid.SampledFrom([]byte{0, 'a', 0xff}), 1, 3).Draw(t, "prefix")
		s := Prefix(p)
		for _, k := range all {
			if s.Contains(k) != bytes.HasPrefix(k, p) {
				t.Fatalf("prefix %s as %s is wrong at %s", Format(p), s, Format(k))
			}
		}
	})
}

func TestSplitAtDividesWithoutLoss(t *testing.T) {
	l, r := Span{Start: []byte("a"), End: []byte("m")}.SplitAt([]byte("f"))
	if !l.Equal(Span{Start: []byte("a"), End: []byte("f")}) || !r.Equal(Span{Start: []byte("f"), End: []byte("m")}) {
		t.Fatalf("got %s and %s", l, r)
	}
}
