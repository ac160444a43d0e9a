package agent

import (
	"errors"

	pdpb "github.com/ridgekv/ridge/proto/ridge/pd/v1"
)

// maxFailures bounds the failures that wait for the next report. PD repeats
// orders, so one that is dropped comes again.
const maxFailures = 64

// failed notes for the next report that an order was not carried out.
func (a *Agent) failed(o *pdpb.Order, err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if len(a.mu.failures) < maxFailures {
		a.mu.failures = append(a.mu.failures, &pdpb.OrderFailure{
			RangeId: o.GetRangeId(), OperatorId: o.GetOperatorId(), Reason: err.Error(),
			Final: errors.Is(err, errUnsplittable),
		})
	}
}

// takeFailures returns what was noted, and forgets it.
func (a *Agent) takeFailures() []*pdpb.OrderFailure {
	a.mu.Lock()
	defer a.mu.Unlock()
	out := a.mu.failures
	a.mu.failures = nil
	return out
}
