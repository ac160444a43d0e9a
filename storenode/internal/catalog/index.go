package catalog

import (
	"bytes"
	"cmp"
	"slices"
	"sort"

	"github.com/ridgekv/ridge/proto/keys"
)

// index finds replicas. It is immutable.
type index struct {
	byID []*Replica // ascending
	// segments are disjoint and ascending. A replica has several when a newer
	// one covers its middle, none when it does not serve.
	segments []segment
}

type segment struct {
	span    keys.Span
	replica *Replica
}

// newIndex takes over the slice.
func newIndex(replicas []*Replica) *index {
	slices.SortFunc(replicas, func(a, b *Replica) int { return cmp.Compare(a.rangeID, b.rangeID) })
	return &index{byID: replicas, segments: segmentsOf(replicas)}
}

func (x *index) replica(rangeID uint64) (*Replica, bool) {
	i, ok := slices.BinarySearchFunc(x.byID, rangeID, func(r *Replica, id uint64) int {
		return cmp.Compare(r.rangeID, id)
	})
	if !ok {
		return nil, false
	}
	return x.byID[i], true
}

func (x *index) lookup(key []byte) (*Replica, bool) {
	i := sort.Search(len(x.segments), func(i int) bool {
		return bytes.Compare(x.segments[i].span.Start, key) > 0
	})
	if i == 0 || !x.segments[i-1].span.Contains(key) {
		return nil, false
	}
	return x.segments[i-1].replica, true
}

func (x *index) overlapping(span keys.Span) []*Replica {
	i := sort.Search(len(x.segments), func(i int) bool {
		end := x.segments[i].span.End
		return len(end) == 0 || bytes.Compare(end, span.Start) > 0
	})
	var out []*Replica
	for ; i < len(x.segments) && x.segments[i].span.Overlaps(span); i++ {
		if r := x.segments[i].replica; !slices.Contains(out, r) {
			out = append(out, r)
		}
	}
	return out
}

// segmentsOf divides the keyspace among the replicas that serve. They hardly
// ever overlap (a parent that has not applied its split yet, beside a child
// that came by an image); then the larger span epoch wins.
func segmentsOf(replicas []*Replica) []segment {
	type claim struct {
		segment
		epoch uint64
	}
	var claims []claim
	for _, r := range replicas {
		if s := r.State(); s.Serving() {
			claims = append(claims, claim{segment{s.Span(), r}, s.SpanEpoch()})
		}
	}
	slices.SortStableFunc(claims, func(a, b claim) int { return cmp.Compare(b.epoch, a.epoch) })
	out := make([]segment, 0, len(claims))
	for _, c := range claims {
		out = append(out, c.segment)
	}
	byStart := func(a, b segment) int { return bytes.Compare(a.span.Start, b.span.Start) }
	ordered := slices.SortedFunc(slices.Values(out), byStart)
	overlap := false
	for i := 1; i < len(ordered) && !overlap; i++ {
		overlap = ordered[i-1].span.Overlaps(ordered[i].span)
	}
	if !overlap {
		return ordered
	}
	taken := make([]segment, 0, len(out))
	for _, c := range out {
		for _, free := range uncovered(c.span, taken) {
			taken = append(taken, segment{free, c.replica})
		}
		slices.SortFunc(taken, byStart)
	}
	return taken
}

// uncovered is what the ordered, disjoint segments leave of span.
func uncovered(span keys.Span, taken []segment) []keys.Span {
	var out []keys.Span
	for _, t := range taken {
		if !t.span.Overlaps(span) {
			continue
		}
		if bytes.Compare(span.Start, t.span.Start) < 0 {
			out = append(out, keys.Span{Start: span.Start, End: t.span.Start})
		}
		if len(t.span.End) == 0 {
			return out
		}
		span.Start = t.span.End
		if !span.Valid() {
			return out
		}
	}
	return append(out, span)
}
