package ts

import (
	"testing"
	"time"

	"pgregory.net/rapid"
)

func TestAddAndSubAreInverse(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		at := New(rapid.Uint64Range(1, 1<<44).Draw(t, "ms"), 7)
		d := time.Duration(rapid.Int64Range(0, int64(time.Hour)).Draw(t, "d"))
		if got := at.Add(d).Sub(at); got > d || d-got > time.Microsecond {
			t.Fatalf("added %v, found %v", d, got)
		}
		if at.Add(d) < at || at.Add(-d) > at {
			t.Fatalf("Add(%v) went the wrong way", d)
		}
	})
}

func TestAddSaturates(t *testing.T) {
	if Max.Add(time.Second) != Max || Timestamp(1).Add(-time.Second) != 0 {
		t.Fatal("Add must saturate")
	}
}

func TestLogicalIsTheSubMillisecondClock(t *testing.T) {
	whole := time.UnixMilli(1_700_000_000_000)
	half := FromTime(whole.Add(500 * time.Microsecond))
	if half.Physical() != 1_700_000_000_000 || half.Logical() != 1<<17 {
		t.Fatalf("got %d.%d", half.Physical(), half.Logical())
	}
}
