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
	// Operators is how many operators of all kinds may be in flight.
	Operators int
}

// Controller runs operators: one per range, under limits.
type Controller struct {
	limits Limits
	mu     struct {
		sync.Mutex
		byRange map[uint64]*Operator
		nextID  uint64
		// images counts the learners each store is about to receive, splits the
		// splits under way. They are counted anew when nil.
		images map[uint64]int
		splits int
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
	if len(c.mu.byRange) >= c.limits.Operators {
		return fmt.Sprintf("%d operators are in flight", len(c.mu.byRange))
	}
	c.countLocked()
	for _, s := range o.Steps {
		n := c.mu.images[s.StoreID]
		switch {
		case s.Kind == AddLearner && n >= c.limits.StoreImages:
			return fmt.Sprintf("store %d already receives %d replicas", s.StoreID, n)
		case s.Kind == Split && c.mu.splits >= c.limits.Splits:
			return fmt.Sprintf("%d splits are under way", c.mu.splits)
		}
	}
	return ""
}

// countLocked counts what is in flight, unless it is known.
func (c *Controller) countLocked() {
	if c.mu.images != nil {
		return
	}
	c.mu.images, c.mu.splits = map[uint64]int{}, 0
	for _, o := range c.mu.byRange {
		c.addLocked(o)
	}
}

func (c *Controller) addLocked(o *Operator) {
	for _, s := range o.Steps[o.Current:] {
		switch s.Kind {
		case AddLearner:
			c.mu.images[s.StoreID]++
		case Split:
			c.mu.splits++
		}
	}
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
	c.addLocked(o) // roomLocked has counted the others
	return nil
}

// Ended is an operator that is over, and how.
type Ended struct {
	Operator *Operator
	// Failure is empty for success.
	Failure string
}

// Advance moves every operator on, and returns the orders to send by store and
// the operators that ended. A step that allow objects to is not ordered, and
// waits for better times until its own are over.
func (c *Controller) Advance(
	find func(rangeID uint64) *topology.Range, allow func(*topology.Range, Step) string,
	now time.Time,
) (orders map[uint64][]*pdpb.Order, ended []Ended) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.mu.images = nil
	orders = map[uint64][]*pdpb.Order{}
	for _, id := range slices.Sorted(maps.Keys(c.mu.byRange)) {
		o := c.mu.byRange[id]
		r := find(id)
		if over, failure := o.advance(r, now, c.limits.StepTimeout); over {
			delete(c.mu.byRange, id)
			ended = append(ended, Ended{Operator: o, Failure: failure})
			continue
		}
		if o.Held = allow(r, o.Steps[o.Current]); o.Held != "" {
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
			AgeMs: uint64(max(0, now.Sub(o.Began)).Milliseconds()),
		}
		if o.Held != "" {
			info.Reason += "; held back: " + o.Held
		}
		for _, s := range o.Steps {
			info.Steps = append(info.Steps, s.String())
		}
		out = append(out, info)
	}
	return out
}
