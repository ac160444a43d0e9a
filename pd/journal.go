package pd

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/ridgekv/ridge/pd/internal/meta"
	"github.com/ridgekv/ridge/pd/internal/operator"
	pdpb "github.com/ridgekv/ridge/proto/ridge/pd/v1"
)

const (
	// journalInterval is how often decisions are written down: at most one entry
	// of PD's log.
	journalInterval = time.Second
	// maxJournal bounds the decisions that wait, and so one entry.
	maxJournal = 1024
	// maxDecisionText bounds each text of a decision.
	maxDecisionText = 1024
)

// journal collects what this PD decides while it leads, and writes it to PD's
// group. It explains; nothing depends on it. What waits is lost with the leader.
type journal struct {
	m *meta.Meta
	// member is this node, writer this leadership of it.
	member, writer uint64
	// sent is the batch under way, kept until its outcome is known; number counts
	// the batches. Only run touches both.
	sent   []*pdpb.Decision
	number uint64
	mu     struct {
		sync.Mutex
		waiting []*pdpb.Decision
		dropped int
	}
}

// add notes a decision. It never blocks.
func (j *journal) add(d *pdpb.Decision) {
	if d.UnixMs == 0 {
		d.UnixMs = uint64(time.Now().UnixMilli())
	}
	d.MemberId, d.RangeCount = j.member, max(d.GetRangeCount(), uint32(len(d.GetRangeIds())))
	for _, text := range []*string{&d.What, &d.Why, &d.Remedy} {
		if len(*text) > maxDecisionText {
			*text = (*text)[:maxDecisionText] + "..."
		}
		*text = strings.ToValidUTF8(*text, "?")
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	if len(j.mu.waiting) >= maxJournal {
		j.mu.dropped++
		return
	}
	j.mu.waiting = append(j.mu.waiting, d)
}

// operator notes what became of an operator.
func (j *journal) operator(kind pdpb.DecisionKind, o *operator.Operator, what, why string) {
	d := &pdpb.Decision{
		Kind: kind, OperatorId: o.ID, RangeIds: []uint64{o.RangeID}, What: what, Why: why,
	}
	seen := map[uint64]bool{0: true}
	for _, s := range o.Steps {
		if !seen[s.StoreID] {
			seen[s.StoreID] = true
			d.StoreIds = append(d.StoreIds, s.StoreID)
		}
	}
	j.add(d)
}

// run writes what was noted until ctx ends.
func (j *journal) run(ctx context.Context) error {
	ticker := time.NewTicker(journalInterval)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-ticker.C:
			j.flush(ctx)
		}
	}
}

// flush writes what waits. A batch of unknown outcome is sent again under its
// number.
func (j *journal) flush(ctx context.Context) {
	if j.sent == nil {
		if j.sent = j.take(); j.sent == nil {
			return
		}
		j.number++
	}
	_, err := j.m.Propose(ctx, &pdpb.Command{Command: &pdpb.Command_AppendJournal{
		AppendJournal: &pdpb.AppendJournal{Decisions: j.sent, Writer: j.writer, Batch: j.number},
	}})
	if err == nil {
		j.sent = nil
	}
}

func (j *journal) take() []*pdpb.Decision {
	j.mu.Lock()
	defer j.mu.Unlock()
	batch := j.mu.waiting
	if j.mu.dropped > 0 {
		batch = append(batch, &pdpb.Decision{
			UnixMs: uint64(time.Now().UnixMilli()), MemberId: j.member,
			Kind: pdpb.DecisionKind_DECISION_KIND_REFUSED,
			Why:  fmt.Sprintf("%d more decisions within a second were not written", j.mu.dropped),
		})
	}
	j.mu.waiting, j.mu.dropped = nil, 0
	return batch
}

// list returns the decisions, oldest first: those written and those that wait.
func (j *journal) list() []*pdpb.Decision {
	out := j.m.Journal()
	j.mu.Lock()
	defer j.mu.Unlock()
	return append(out, j.mu.waiting...)
}
