package evaluate

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/ridgekv/ridge/proto/keys"
)

func repeat(n int, key string) [][]byte {
	out := make([][]byte, n)
	for i := range out {
		out[i] = []byte(key)
	}
	return out
}

func numbered(n int) [][]byte {
	out := make([][]byte, n)
	for i := range out {
		out[i] = fmt.Appendf(nil, "k%03d", i)
	}
	return out
}

// TestDivide: the key that is chosen, by how the load falls.
func TestDivide(t *testing.T) {
	long := string(bytes.Repeat([]byte("x"), sampleKeyBytes))
	for _, c := range []struct {
		name    string
		sampled [][]byte
		span    keys.Span
		split   string
		hot     string
		percent int
	}{
		{name: "nothing known"},
		{name: "too little known", sampled: numbered(sampleLeast - 1)},
		{name: "uniform", sampled: numbered(100), split: "k050"},
		{name: "skewed", sampled: append(numbered(60), repeat(40, "a")...), split: "k010"},
		{
			name: "one hot key", sampled: append(numbered(20), repeat(80, "k010")...),
			hot: "k010", percent: 81,
		},
		{name: "one key alone", sampled: repeat(64, "k"), hot: "k", percent: 100},
		{
			name: "half on one key", sampled: append(numbered(50), repeat(50, "k024")...),
			split: "k025",
		},
		{
			name: "two hot neighbours", sampled: append(repeat(50, "a"), repeat(50, "a\x00")...),
			split: "a\x00",
		},
		{name: "three hot keys", sampled: append(append(repeat(40, "a"), repeat(40, "b")...),
			repeat(40, "c")...), split: "b"},
		{
			name: "outside the span", sampled: numbered(100),
			span: keys.Span{Start: []byte("k050"), End: []byte("k090")}, split: "k070",
		},
		{name: "the half that left", sampled: numbered(100), span: keys.Span{Start: []byte("k080")}},
		{name: "long keys", sampled: append(repeat(50, long), repeat(50, long[:9])...), split: long},
	} {
		t.Run(c.name, func(t *testing.T) {
			got := divide(c.sampled, c.span)
			if string(got.SplitKey) != c.split || string(got.HotKey) != c.hot ||
				got.HotKeyPercent != c.percent {
				t.Fatalf("split at %q, hot %q with %d %%", got.SplitKey, got.HotKey,
					got.HotKeyPercent)
			}
		})
	}
}

// TestDivideLaw: whatever is sampled, either a cut leaves each side a quarter or
// one key bears more than half.
func TestDivideLaw(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		sampled := rapid.SliceOfN(rapid.SliceOfN(rapid.ByteRange(0, 3), 1, 2),
			sampleLeast, sampleSlots).Draw(t, "sampled")
		got, left, same := divide(sampled, keys.Span{}), 0, 0
		for _, k := range sampled {
			if bytes.Compare(k, got.SplitKey) < 0 {
				left++
			}
			if bytes.Equal(k, got.HotKey) {
				same++
			}
		}
		n := len(sampled)
		switch {
		case got.SplitKey != nil && got.HotKey == nil && 4*min(left, n-left) >= n:
		case got.SplitKey == nil && 2*same > n && got.HotKeyPercent == 100*same/n:
		default:
			t.Fatalf("%+v of %q", got, sampled)
		}
	})
}

// TestSamplesSpeakOfNow: a window is asked when it is over, forgotten when it is
// old or the span has changed, and keeps a bounded, fair choice.
func TestSamplesSpeakOfNow(t *testing.T) {
	var s samples
	now := time.Unix(1000, 0)
	load := func(epoch uint64) Load { return s.load(keys.Span{}, epoch, now) }
	second := func(from, to, epoch int) {
		for range 1000 {
			key := fmt.Appendf(nil, "k%03d", from+rand.IntN(to-from))
			s.note(key, uint64(epoch), now)
		}
		now = now.Add(time.Second)
	}
	for range 5 {
		second(0, 500, 1)
	}
	if got := load(1); got.SplitKey != nil {
		t.Fatal("a window that is not over tells")
	}
	for range 6 { // the load moves
		second(500, 1000, 1)
	}
	if len(s.mu.keys) > sampleSlots || len(s.mu.last) != sampleSlots {
		t.Fatalf("%d and %d keys", len(s.mu.keys), len(s.mu.last))
	}
	got := string(load(1).SplitKey)
	if got < "k600" || got > "k900" {
		t.Fatalf("split at %q, the load lies on k500 to k999", got)
	}
	if load(2).SplitKey != nil {
		t.Fatal("another span is judged by old samples")
	}
	second(0, 10, 2)
	if load(2).SplitKey != nil || load(1).SplitKey != nil {
		t.Fatal("the window of another span is kept")
	}
	for range 10 {
		second(0, 10, 2)
	}
	if load(2).SplitKey == nil {
		t.Fatal("nothing known after a window")
	}
	now = now.Add(2 * sampleLongest)
	if load(2).SplitKey != nil {
		t.Fatal("an old window tells")
	}
}

// BenchmarkNote is what sampling costs each operation.
func BenchmarkNote(b *testing.B) {
	var s samples
	key, now := []byte("some-key-of-a-user"), time.Now()
	b.ReportAllocs()
	for b.Loop() {
		if picked() {
			s.note(key, 1, now)
		}
	}
}
