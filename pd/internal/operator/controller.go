package operator

import (
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/ridgekv/ridge/pd/internal/topology"
	pdpb "github.com/ridgekv/ridge/proto/ridge/pd/v1"
)

// Limits bound what is in flight.
type Limits struct {
	// StoreImages is how many learners may be under construction on one store.
	StoreImages int
	// StepTimeout gives an operator up when one step takes longer.
	StepTimeout time.Duration
	// Splits is how many splits may be under way at a time.
	Splits int
}

// Controller runs operators: one per range, under limits.
type Controller struct {
	limits Limits
	mu     struct {
		sync.Mutex
		byRange map[uint64]*Operator
		nextID  uint64
	}
}

// NewController returns a controller without operators. firstID keeps apart
// the operators of successive PD leaders.
func NewController(l Limits, firstID uint64) *Controller {
	c := &Controller{limits: l}
	c.mu.byRange = map[uint64]*Operator{}
	c.mu.nextID = firstID
	return c
}

// Busy reports whether the range has an operator.
func (c *Controller) Busy(rangeID uint64) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.mu.byRange[rangeID] != nil
}

// Room says why an operator cannot be admitted now; empty when it can.
func (c *Controller) Room(o *Operator) string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.roomLocked(o)
}

func (c *Controller) roomLocked(o *Operator) string {
	if c.mu.byRange[o.RangeID] != nil {
		return "another operator changes the range"
	}
	images, splits := map[uint64]int{}, 0
	for _, other := range c.mu.byRange {
		for _, s := range other.Steps[other.Current:] {
			switch s.Kind {
			case AddLearner:
				images[s.StoreID]++
			case Split:
				splits++
			}
		}
	}
	for _, s := range o.Steps {
		switch {
		case s.Kind == AddLearner && images[s.StoreID] >= c.limits.StoreImages:
			return fmt.Sprintf("store %d already receives %d replicas", s.StoreID, images[s.StoreID])
		case s.Kind == Split && splits >= c.limits.Splits:
			return fmt.Sprintf("%d splits are under way", splits)
		}
	}
	return ""
}

// Admit begins an operator on r. Its steps must carry all ids.
func (c *Controller) Admit(o *Operator, r *topology.Range, now time.Time) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if why := c.roomLocked(o); why != "" {
		return fmt.Errorf("operator: range %d: %s", o.RangeID, why)
	}
	c.mu.nextID++
	o.ID, o.Began, o.StepBegan = c.mu.nextID, now, now
	o.spanEpoch = r.Range.GetEpoch().GetSpan()
	c.mu.byRange[o.RangeID] = o
	return nil
}

// Ended is an operator that is over, and how.
type Ended struct {
	Operator *Operator
	// Failure is empty for success.
	Failure string
}

// Advance moves every operator on, and returns the orders to send by store and
// the operators that ended.
func (c *Controller) Advance(
	find func(rangeID uint64) *topology.Range, now time.Time,
) (orders map[uint64][]*pdpb.Order, ended []Ended) {
	c.mu.Lock()
	defer c.mu.Unlock()
	orders = map[uint64][]*pdpb.Order{}
	for _, id := range slices.Sorted(maps.Keys(c.mu.byRange)) {
		o := c.mu.byRange[id]
		r := find(id)
		if over, failure := o.advance(r, now, c.limits.StepTimeout); over {
			delete(c.mu.byRange, id)
			ended = append(ended, Ended{Operator: o, Failure: failure})
			continue
		}
		for store, order := range o.Steps[o.Current].Orders(o, r) {
			if store != 0 {
				orders[store] = append(orders[store], order)
			}
		}
	}
	return orders, ended
}

// advance skips steps that have come about and tells whether o is over.
func (o *Operator) advance(
	r *topology.Range, now time.Time, timeout time.Duration,
) (over bool, failure string) {
	if r == nil {
		return true, "the range is gone"
	}
	for o.Steps[o.Current].Done(r, o.spanEpoch) {
		o.Current, o.StepBegan = o.Current+1, now
		if o.Current == len(o.Steps) {
			return true, ""
		}
	}
	switch {
	case r.Range.GetEpoch().GetSpan() != o.spanEpoch:
		return true, "the range was split or merged meanwhile"
	case now.Sub(o.StepBegan) > timeout:
		return true, fmt.Sprintf("%s took longer than %s", o.Steps[o.Current], timeout)
	}
	return false, ""
}

// Cancel ends the operator of a range, if it has one.
func (c *Controller) Cancel(rangeID uint64) *Operator {
	c.mu.Lock()
	defer c.mu.Unlock()
	o := c.mu.byRange[rangeID]
	delete(c.mu.byRange, rangeID)
	return o
}

// Pending reports whether an operator is adding the replica, so that it is not
// taken for a stale one.
func (c *Controller) Pending(rangeID, replicaID uint64) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	o := c.mu.byRange[rangeID]
	return o != nil && slices.ContainsFunc(o.Steps, func(s Step) bool {
		return s.Kind == AddLearner && s.ReplicaID == replicaID
	})
}

// List returns what is in flight, by range id.
func (c *Controller) List(now time.Time) []*pdpb.OperatorInfo {
	c.mu.Lock()
	defer c.mu.Unlock()
	out := make([]*pdpb.OperatorInfo, 0, len(c.mu.byRange))
	for _, id := range slices.Sorted(maps.Keys(c.mu.byRange)) {
		o := c.mu.byRange[id]
		info := &pdpb.OperatorInfo{
			OperatorId: o.ID, RangeId: o.RangeID, Reason: o.Reason, Current: uint32(o.Current),
			AgeMs: uint64(now.Sub(o.Began).Milliseconds()),
		}
		for _, s := range o.Steps {
			info.Steps = append(info.Steps, s.String())
		}
		out = append(out, info)
	}
	return out
}
