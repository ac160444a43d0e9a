package evaluate

import (
	"github.com/ridgekv/ridge/proto/errs"
	"github.com/ridgekv/ridge/proto/keys"
	kvpb "github.com/ridgekv/ridge/proto/ridge/kv/v1"
	metapb "github.com/ridgekv/ridge/proto/ridge/meta/v1"
	"github.com/ridgekv/ridge/storenode/internal/catalog"
)

// Kind says what a request is, as far as its range is concerned.
type Kind uint8

// The kinds of requests.
const (
	KindUnknown Kind = iota
	KindGet
	KindBatchGet
	KindScan
	KindPut
	KindDelete
	KindCompareAndSwap
	KindBatchWrite
	KindBulkWrite
	KindDeleteRange
	KindSplit
	KindChecksum
	// KindSweep is the leaseholder's own delete of expired rows.
	KindSweep
	kindEnd
)

// epochRule says which half of the epoch, and what of the span, a kind of
// request is checked against. Nothing checks epoch.config: moving a replica
// must never fail a request.
type epochRule struct {
	name string
	// spanEpoch: the caller's epoch.span, when it gives one, must be ours.
	spanEpoch bool
	// mustGive: the caller must give it.
	mustGive bool
	// keys: every key, or the span asked for, must lie in the range.
	keys bool
	// write: it may leave an entry in the log.
	write bool
}

// epochTable is the one place that says which request checks which counter.
// Apply checks epoch.span again for what it writes.
var epochTable = [kindEnd]epochRule{
	KindUnknown:        {name: "unknown", spanEpoch: true, mustGive: true, keys: true},
	KindGet:            {name: "get", spanEpoch: true, keys: true},
	KindBatchGet:       {name: "batch_get", spanEpoch: true, keys: true},
	KindScan:           {name: "scan", spanEpoch: true, keys: true},
	KindPut:            {name: "put", spanEpoch: true, keys: true, write: true},
	KindDelete:         {name: "delete", spanEpoch: true, keys: true, write: true},
	KindCompareAndSwap: {name: "compare_and_swap", spanEpoch: true, keys: true, write: true},
	KindBatchWrite:     {name: "batch_write", spanEpoch: true, keys: true, write: true},
	KindBulkWrite:      {name: "bulk_write", spanEpoch: true, keys: true, write: true},
	KindDeleteRange:    {name: "delete_range", spanEpoch: true, keys: true, write: true},
	KindSplit:          {name: "split", spanEpoch: true, mustGive: true, keys: true, write: true},
	KindChecksum:       {name: "checksum", write: true},
	KindSweep:          {name: "sweep", keys: true, write: true},
}

// String names k, as metrics do.
func (k Kind) String() string {
	if k >= kindEnd {
		k = KindUnknown
	}
	return epochTable[k].name
}

// Write reports whether requests of this kind may leave an entry in the log.
func (k Kind) Write() bool { return k < kindEnd && epochTable[k].write }

// CheckHeader compares what the caller believed about the range with what the
// state says. It is used at the door, where it is fast, again when a request is
// evaluated or a read is answered, and apply does the like for entries. An
// EpochMismatch from here names only the range itself; its replicas are not
// filled in.
func CheckHeader(k Kind, h *kvpb.Header, s *catalog.State) error {
	if k >= kindEnd {
		k = KindUnknown
	}
	rule := epochTable[k]
	if h.GetRangeId() != s.RangeID() {
		return errs.RangeNotFound{RangeID: h.GetRangeId()}
	}
	if !rule.spanEpoch {
		return nil
	}
	given := h.GetSpanEpoch()
	if given == s.SpanEpoch() || given == 0 && !rule.mustGive {
		return nil
	}
	return errs.EpochMismatch{RangeID: s.RangeID(), Current: []*metapb.Range{describeState(s)}}
}

// checkSpan refuses what does not lie in the range, when the kind looks at it.
func (c *call) checkSpan(s *catalog.State) error {
	if !epochTable[c.kind].keys {
		return nil
	}
	span := s.Span()
	for _, k := range c.keys {
		if !span.Contains(k) {
			return errs.KeyNotInRange{Key: k, Range: describeState(s)}
		}
	}
	if c.hasSpan && !span.ContainsSpan(c.span) {
		key := c.span.Start
		if span.Contains(key) {
			key = c.span.End
		}
		return errs.KeyNotInRange{Key: key, Range: describeState(s)}
	}
	return nil
}

// describeState is the descriptor of s without its members.
func describeState(s *catalog.State) *metapb.Range {
	return &metapb.Range{
		RangeId: s.RangeID(), Span: s.Span().Proto(), Epoch: &metapb.Epoch{Span: s.SpanEpoch()},
	}
}

// current lists what this store knows to cover the span of c now, with
// members, for an EpochMismatch.
func (ev *Evaluator) current(c *call, s *catalog.State) []*metapb.Range {
	out := []*metapb.Range{ev.describe(s)}
	span := c.span
	if len(c.keys) > 0 {
		span = keys.Single(c.keys[0])
	}
	for _, r := range ev.deps.Catalog.Overlapping(span) {
		if r.RangeID() != s.RangeID() {
			out = append(out, ev.describe(r.State()))
		}
	}
	return out
}

// describe is the descriptor of s with its members, as far as they are known.
func (ev *Evaluator) describe(s *catalog.State) *metapb.Range {
	out := describeState(s)
	if members, config, ok := ev.deps.Host.Membership(s.RangeID()); ok {
		out.Replicas, out.Epoch.Config = members, config
	}
	return out
}
