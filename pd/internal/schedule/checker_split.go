package schedule

import (
	"bytes"
	"fmt"

	"github.com/ridgekv/ridge/pd/internal/operator"
	"github.com/ridgekv/ridge/pd/internal/topology"
	"github.com/ridgekv/ridge/proto/keys"
	metapb "github.com/ridgekv/ridge/proto/ridge/meta/v1"
)

// checkSplit wants a range divided where a rule begins or ends, that has
// outgrown the split size, or that bears too much load. settled tells that
// nothing is amiss: learners it has then are spare ones.
func (p *Planner) checkSplit(r *topology.Range, settled bool) (*operator.Operator, Verdict) {
	if key := p.boundary(r); key != nil {
		steps := SplitSteps(r, bytes.Clone(key))
		if len(steps) > 1 && !settled {
			return nil, Verdict{}
		}
		return divide.operator("a rule begins or ends there", steps), Verdict{}
	}
	steps := SplitSteps(r, nil)
	if len(steps) > 1 && !settled {
		return nil, Verdict{}
	}
	size := r.SizeBytes()
	if size >= p.v.SplitSizeBytes && r.Report.GetKeyCount() >= 2 {
		return divide.operator(
			fmt.Sprintf("%d bytes, the limit is %d", size, p.v.SplitSizeBytes), steps), Verdict{}
	}
	return p.checkLoad(r)
}

// divideFirst wants a range divided where a rule begins or ends, if that can be
// done now.
func (p *Planner) divideFirst(r *topology.Range) *operator.Operator {
	if p.boundary(r) == nil {
		return nil
	}
	if _, rests := p.f.Rest(r.Range.GetRangeId(), BySplit); rests {
		return nil
	}
	op, _ := p.checkSplit(r, false)
	return op
}

// checkLoad divides a range that bears too much load where its store says that
// the load is halved. A single hot key cannot be divided: it is named.
func (p *Planner) checkLoad(r *topology.Range) (*operator.Operator, Verdict) {
	load := r.Report.GetReadRate() + r.Report.GetWriteRate()
	if p.v.SplitLoadOps == 0 || load < p.v.SplitLoadOps {
		return nil, Verdict{}
	}
	key, span := r.Report.GetLoadSplitKey(), keys.FromProto(r.Range.GetSpan())
	switch {
	case len(key) > 0 && span.Contains(key) && !bytes.Equal(key, span.Start):
		return divide.operator(fmt.Sprintf("%d operations/s, the limit is %d", load,
			p.v.SplitLoadOps), SplitSteps(r, bytes.Clone(key))), Verdict{}
	case len(r.Report.GetHotKey()) > 0:
		return nil, divide.refuse(fmt.Sprintf(
			"bears %d operations/s, %d %% of them on key %s, and a key cannot be divided", load,
			r.Report.GetHotKeyPercent(), keys.Format(r.Report.GetHotKey())),
			"spread that key over several, or read it with Stale from other replicas")
	}
	return nil, divide.refuse(fmt.Sprintf(
		"bears %d operations/s, and no key that would halve them is known yet", load), "")
}

// SplitSteps divides r at key, or in its middle. A range with learners is not
// divided, so they go first, and both halves get new ones: else the ranges of a
// cluster of two stores, which all have one, would grow for ever.
func SplitSteps(r *topology.Range, key []byte) []operator.Step {
	var steps []operator.Step
	for _, m := range r.Range.GetReplicas() {
		if m.GetRole() == metapb.Role_ROLE_LEARNER {
			steps = append(steps, operator.Step{
				Kind: operator.Remove, ReplicaID: m.GetReplicaId(), StoreID: m.GetStoreId(),
			})
		}
	}
	return append(steps, operator.Step{Kind: operator.Split, Key: key})
}
