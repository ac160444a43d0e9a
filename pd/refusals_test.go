package pd

import (
	"fmt"
	"testing"
	"time"

	pdpb "github.com/ridgekv/ridge/proto/ridge/pd/v1"
)

// A refusal is written when it is new or its reason changes, not when a count in
// it does; equal ones share a line; the lines and the memory are bounded.
func TestRefusals(t *testing.T) {
	var f refusals
	now := time.Unix(1_000_000, 0)
	on := func(id uint64, reason string) *pdpb.Verdict {
		return &pdpb.Verdict{RangeId: id, By: "repair", Reason: reason, Remedy: "add a store"}
	}
	check := func(after time.Duration, want string, verdicts ...*pdpb.Verdict) {
		t.Helper()
		now = now.Add(after)
		var got []string
		for _, d := range f.lines(verdicts, now) {
			got = append(got, fmt.Sprintf("%v%d %s", d.GetRangeIds(), d.GetRangeCount(), d.GetWhy()))
		}
		if s := fmt.Sprint(got); s != want {
			t.Errorf("wrote %s, want %s", s, want)
		}
	}
	down := "store 3 down 1h5m5s, and no other store can take a replica"
	check(0, "[[7 8]2 "+down+"]", on(7, down), on(8, down))
	check(time.Second, "[]", on(7, down), on(8, "store 3 down 1h5m6s, and no other store can take a replica"))
	check(time.Second, "[[9]1 "+down+"]", on(7, down), on(8, down), on(9, down))
	for range 20 {
		check(time.Second, "[]", on(7, down), on(8, down), on(9, down))
	}
	check(time.Second, "[[7]1 store 4 down 1s]", on(7, "store 4 down 1s"), on(8, down))
	check(time.Second, "[]", on(7, down), on(8, down)) // to and fro is not written each time
	check(refusalRest+time.Second, "[[7]1 "+down+"]", on(7, down))
	check(2*refusalRest, "[]")
	check(time.Second, "[[7]1 "+down+"]", on(7, down)) // it was over

	var many []*pdpb.Verdict
	for id := range uint64(maxRefusals + 1000) {
		many = append(many, on(100+id, fmt.Sprint("reason ", id%20, " of many")))
	}
	lines := f.lines(many, now.Add(time.Second))
	if len(lines) != maxRefusalLines || len(lines[0].GetRangeIds()) != maxRefusalRanges ||
		lines[0].GetRangeCount() < 100 {
		t.Errorf("%d lines, the first of %d ranges", len(lines), lines[0].GetRangeCount())
	}
	for range 5 {
		f.lines(many, now.Add(time.Second))
	}
	if len(f.known) > maxRefusals {
		t.Errorf("%d are remembered", len(f.known))
	}
}
