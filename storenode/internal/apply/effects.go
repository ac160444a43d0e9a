package apply

import (
	"fmt"

	sm "github.com/lni/dragonboat/v4/statemachine"

	logpb "github.com/ridgekv/ridge/proto/ridge/log/v1"
	"github.com/ridgekv/ridge/storenode/internal/engine"
)

// write stages the effects of a Write. What the evaluator must have kept is
// checked again: a key outside the slices would belong to somebody else, and a
// commit_ts that goes back would break the order of a key's versions. It
// returns the set to stage, which is another one when the entry is refused.
func (b *batch) write(w *engine.WriteSet, e *Entry) (*engine.WriteSet, sm.Result) {
	if e.CommitTS <= b.applied.MaxCommitTS {
		return w, refused("commit_ts %d is not above %d", e.CommitTS, b.applied.MaxCommitTS)
	}
	w.Reserve(e.count, len(e.effects))
	slices, written := b.state.Slices(), uint64(0)
	for f := range e.Effects() {
		for len(slices) > 0 && !slices[0].Span.Contains(f.Key) {
			slices = slices[1:]
		}
		if len(slices) == 0 {
			return &engine.WriteSet{}, refused("key %q lies outside %s", f.Key, b.state.Span())
		}
		x := slices[0].Extent
		if f.Delete {
			w.Delete(x, f.Key, e.CommitTS)
			continue
		}
		w.Put(x, f.Key, engine.Row{
			CommitTS: e.CommitTS, ExpiresAt: f.ExpiresAt, Value: f.Value,
		})
		written += uint64(len(f.Key) + len(f.Value))
	}
	w.NoteCommitTS(e.CommitTS)
	b.applied.MaxCommitTS = e.CommitTS
	b.written += written
	if e.HasExpiry && !b.state.HasTTL() {
		b.setState(w, func(pb *logpb.RangeState) { pb.HasTtl = true })
	}
	return w, sm.Result{Value: ResultApplied}
}

// refused is a refusal with a reason for people.
func refused(format string, args ...any) sm.Result {
	return sm.Result{Value: ResultRefused, Data: fmt.Appendf(nil, format, args...)}
}
