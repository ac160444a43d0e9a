package pd

import (
	"regexp"
	"time"

	pdpb "github.com/ridgekv/ridge/proto/ridge/pd/v1"
)

const (
	// refusalRest is how long a refusal must be gone to count as new again, and
	// how long one stands before another reason for the same thing is written.
	refusalRest = 10 * time.Second
	// maxRefusals bounds what is remembered, maxRefusalLines the lines of one
	// pass, and maxRefusalRanges the ranges that a line names. What does not fit is
	// written later if it lasts.
	maxRefusals      = 10_000
	maxRefusalLines  = 8
	maxRefusalRanges = 32
)

// refusals remembers which refusals the journal has: one is written when it is
// new, or its reason is another. Only the driver's loop touches it.
type refusals struct {
	known map[refusalKey]refusal
}

type refusalKey struct {
	rangeID, storeID uint64
	by               string
}

type refusal struct {
	// reason is without what counts, text what was said last.
	reason, text  string
	written, seen time.Time
}

// counting matches what changes while the reason stays: times and repetitions.
var counting = regexp.MustCompile(`\b\d+(\.\d+)?(ns|µs|ms|s|m|h)\S*|failed \d+ times`)

// lines are the decisions to write, one for each reason that is new.
func (f *refusals) lines(verdicts []*pdpb.Verdict, now time.Time) []*pdpb.Decision {
	if f.known == nil {
		f.known = map[refusalKey]refusal{}
	}
	for k, r := range f.known {
		if now.Sub(r.seen) > refusalRest {
			delete(f.known, k)
		}
	}
	var out []*pdpb.Decision
	line := map[string]*pdpb.Decision{}
	for _, w := range verdicts {
		key := refusalKey{w.GetRangeId(), w.GetStoreId(), w.GetBy()}
		have, ok := f.known[key]
		reason := have.reason
		if have.text != w.GetReason() {
			reason = counting.ReplaceAllString(w.GetReason(), "~")
		}
		if ok && (have.reason == reason || now.Sub(have.written) < refusalRest) {
			if have.seen = now; have.reason == reason {
				have.text = w.GetReason()
			}
			f.known[key] = have
			continue
		}
		d := line[w.GetBy()+"\x00"+reason]
		if d == nil && len(out) == maxRefusalLines || !ok && len(f.known) >= maxRefusals {
			continue
		}
		f.known[key] = refusal{reason: reason, text: w.GetReason(), written: now, seen: now}
		if d == nil {
			d = &pdpb.Decision{
				Kind: pdpb.DecisionKind_DECISION_KIND_REFUSED, What: "nothing, by " + w.GetBy(),
				Why: w.GetReason(), Remedy: w.GetRemedy(),
			}
			line[w.GetBy()+"\x00"+reason] = d
			out = append(out, d)
		}
		if w.GetRangeId() != 0 {
			d.RangeCount++
			if len(d.GetRangeIds()) < maxRefusalRanges {
				d.RangeIds = append(d.RangeIds, w.GetRangeId())
			}
		}
		if w.GetStoreId() != 0 && len(d.GetStoreIds()) < maxRefusalRanges {
			d.StoreIds = append(d.StoreIds, w.GetStoreId())
		}
	}
	return out
}
