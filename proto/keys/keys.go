// Package keys is the arithmetic of keys and spans.
//
// Keys are plain bytes in lexicographic order. A span is half-open,
// [Start, End); an empty Start is the smallest key and an empty End means "no
// upper bound".
package keys

import (
	"bytes"
	"fmt"
	"strconv"

	metapb "github.com/ridgekv/ridge/proto/ridge/meta/v1"
)

const (
	// MaxKeySizeBytes is the longest key that is accepted. Keys are not empty.
	MaxKeySizeBytes = 4 << 10
	// MaxValueSizeBytes is the longest value that is accepted. It leaves room
	// for the row header below the 1 MiB at which Badger would move a value
	// out of the LSM tree.
	MaxValueSizeBytes = 1<<20 - 64
	// MaxEntrySizeBytes and MaxEntryKeys bound one log entry, and so one
	// atomic batch. They are constants of the format.
	MaxEntrySizeBytes = 4 << 20
	MaxEntryKeys      = 10_000
)

// Span is the half-open interval [Start, End).
type Span struct {
	Start, End []byte
}

// All is the whole keyspace.
func All() Span { return Span{} }

// Single is the span that holds exactly key.
func Single(key []byte) Span { return Span{Start: key, End: Next(key)} }

// Prefix is the span of all keys that begin with p.
func Prefix(p []byte) Span { return Span{Start: p, End: PrefixEnd(p)} }

// FromProto converts a wire span; nil is the whole keyspace.
func FromProto(p *metapb.Span) Span { return Span{Start: p.GetStart(), End: p.GetEnd()} }

// Proto converts s to its wire form, sharing the bytes.
func (s Span) Proto() *metapb.Span { return &metapb.Span{Start: s.Start, End: s.End} }

// Valid reports whether s holds at least one key.
func (s Span) Valid() bool { return len(s.End) == 0 || bytes.Compare(s.Start, s.End) < 0 }

// Contains reports whether key lies in s.
func (s Span) Contains(key []byte) bool {
	return bytes.Compare(key, s.Start) >= 0 && (len(s.End) == 0 || bytes.Compare(key, s.End) < 0)
}

// ContainsSpan reports whether every key of o lies in s.
func (s Span) ContainsSpan(o Span) bool {
	return bytes.Compare(o.Start, s.Start) >= 0 && CompareEnds(o.End, s.End) <= 0
}

// Overlaps reports whether some key lies in both.
func (s Span) Overlaps(o Span) bool {
	return startsBeforeEnd(s.Start, o.End) && startsBeforeEnd(o.Start, s.End)
}

// Intersect returns the common part. It is not Valid when there is none.
func (s Span) Intersect(o Span) Span {
	out := s
	if bytes.Compare(o.Start, out.Start) > 0 {
		out.Start = o.Start
	}
	if CompareEnds(o.End, out.End) < 0 {
		out.End = o.End
	}
	if !startsBeforeEnd(out.Start, out.End) {
		return Span{Start: out.Start, End: out.Start}
	}
	return out
}

// Equal reports whether both hold the same keys by the same bounds.
func (s Span) Equal(o Span) bool {
	return bytes.Equal(s.Start, o.Start) && bytes.Equal(s.End, o.End)
}

// SplitAt cuts s at key, which must lie strictly inside.
func (s Span) SplitAt(key []byte) (left, right Span) {
	if !s.Contains(key) || bytes.Equal(key, s.Start) {
		panic(fmt.Sprintf("keys: split key %s not inside %s", Format(key), s))
	}
	return Span{Start: s.Start, End: key}, Span{Start: key, End: s.End}
}

// String renders s for people, as ["a","b") or ["a",+inf).
func (s Span) String() string {
	if len(s.End) == 0 {
		return fmt.Sprintf("[%s,+inf)", Format(s.Start))
	}
	return fmt.Sprintf("[%s,%s)", Format(s.Start), Format(s.End))
}

// CompareEnds compares two upper bounds, where empty is the largest.
func CompareEnds(a, b []byte) int {
	switch {
	case len(a) == 0 && len(b) == 0:
		return 0
	case len(a) == 0:
		return 1
	case len(b) == 0:
		return -1
	}
	return bytes.Compare(a, b)
}

// Next returns the smallest key above key, in memory of its own.
func Next(key []byte) []byte {
	out := make([]byte, len(key)+1)
	copy(out, key)
	return out
}

// PrefixEnd returns the smallest key above all keys with prefix p; empty when
// there is none.
func PrefixEnd(p []byte) []byte {
	for i := len(p) - 1; i >= 0; i-- {
		if p[i] != 0xff {
			out := bytes.Clone(p[:i+1])
			out[i]++
			return out
		}
	}
	return nil
}

// Format renders a key for people, quoted.
func Format(key []byte) string { return strconv.Quote(string(key)) }

func startsBeforeEnd(start, end []byte) bool {
	return len(end) == 0 || bytes.Compare(start, end) < 0
}
