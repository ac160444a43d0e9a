package operator

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/ridgekv/ridge/pd/internal/topology"
	pdpb "github.com/ridgekv/ridge/proto/ridge/pd/v1"
)

// Controller runs operators: one per range, under limits.
type Controller struct {
	mu struct {
		sync.Mutex
		limits  Limits
		byRange map[uint64]*Operator
		nextID  uint64
		// budget is what they use up; it is counted anew when nil.
		budget *Budget
		memory memory
		// stepped are the steps that the last Advance found done.
		stepped []Stepped
	}
}

// Stepped is a step that is done while its operator goes on.
type Stepped struct {
	// Operator is a copy, of the moment.
	Operator Operator
	// Index is the step's place.
	Index int
	Took  time.Duration
}

// NewController returns a controller without operators. firstID keeps apart
// the operators of successive PD leaders.
func NewController(l Limits, firstID uint64) *Controller {
	c := &Controller{}
	c.mu.limits, c.mu.nextID = l, firstID
	c.mu.byRange, c.mu.memory = map[uint64]*Operator{}, newMemory()
	return c
}

// SetLimits replaces the limits. What is in flight goes on.
func (c *Controller) SetLimits(l Limits) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.mu.limits, c.mu.budget = l, nil
}

// Flight is what is under way, for planners.
func (c *Controller) Flight() Flight {
	c.mu.Lock()
	defer c.mu.Unlock()
	f := Flight{Limits: c.mu.limits, Operators: c.operatorsLocked()}
	f.Rests, f.Recent = c.mu.memory.lists()
	return f
}

// operatorsLocked copies what is in flight, by range id.
func (c *Controller) operatorsLocked() []*Operator {
	out := make([]*Operator, 0, len(c.mu.byRange))
	for _, id := range slices.Sorted(maps.Keys(c.mu.byRange)) {
		o := *c.mu.byRange[id]
		out = append(out, &o)
	}
	return out
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
	return c.budgetLocked().Room(o)
}

func (c *Controller) budgetLocked() *Budget {
	if c.mu.budget == nil {
		c.mu.budget = NewBudget(c.mu.limits, c.operatorsLocked())
	}
	return c.mu.budget
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
	c.budgetLocked().Take(o)
	return nil
}

// Cancel ends an operator; nil when none has the id. What it has done stays: a
// learner it leaves behind is taken up or removed by repair.
func (c *Controller) Cancel(id uint64) *Operator {
	c.mu.Lock()
	defer c.mu.Unlock()
	for rangeID, o := range c.mu.byRange {
		if o.ID == id {
			delete(c.mu.byRange, rangeID)
			c.mu.budget = nil
			return o
		}
	}
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
// waits a little for better times.
func (c *Controller) Advance(
	find func(rangeID uint64) *topology.Range, allow func(*topology.Range, Step) string,
	now time.Time,
) (orders map[uint64][]*pdpb.Order, ended []Ended) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.mu.budget = nil
	c.mu.memory.forget(now)
	c.mu.stepped = nil
	orders = map[uint64][]*pdpb.Order{}
	for _, id := range slices.Sorted(maps.Keys(c.mu.byRange)) {
		o := c.mu.byRange[id]
		r, at, began := find(id), o.Current, o.StepBegan
		over, failure := o.advance(r, now, c.mu.limits)
		for ; at < o.Current && at < len(o.Steps)-1; at++ {
			c.mu.stepped = append(c.mu.stepped, Stepped{*o, at, now.Sub(began)})
			began = now
		}
		if over {
			delete(c.mu.byRange, id)
			c.mu.memory.ended(o, r, failure, o.final, now)
			ended = append(ended, Ended{Operator: o, Failure: failure})
			continue
		}
		if o.Held = allow(r, o.Steps[o.Current]); o.Held == "" {
			o.heldSince = time.Time{}
		} else {
			if o.heldSince.IsZero() {
				o.heldSince = now
			}
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

// Steps are the steps that the last Advance found done, but for the last steps of
// operators: those end with them.
func (c *Controller) Steps() []Stepped {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.mu.stepped
}

// advance skips steps that have come about and tells whether o is over.
func (o *Operator) advance(
	r *topology.Range, now time.Time, l Limits,
) (over bool, failure string) {
	if r == nil {
		return true, "the range is gone"
	}
	for o.Steps[o.Current].Done(r, o.spanEpoch) {
		o.Current, o.StepBegan, o.refusal = o.Current+1, now, ""
		if o.Current == len(o.Steps) {
			return true, ""
		}
	}
	switch {
	case r.Range.GetEpoch().GetSpan() != o.spanEpoch:
		return true, "the range was split or merged meanwhile"
	case o.Held != "" && now.Sub(o.heldSince) > heldLimit:
		return true, fmt.Sprintf("%s was held back: %s", o.Steps[o.Current], o.Held)
	case o.final:
		return true, fmt.Sprintf("%s: %s", o.Steps[o.Current], o.refusal)
	}
	limit := o.Steps[o.Current].limit(r.SizeBytes(), l)
	if now.Sub(o.StepBegan) <= limit {
		return false, ""
	}
	failure = fmt.Sprintf("%s took longer than %s", o.Steps[o.Current], limit)
	if why := cmp.Or(o.Held, o.refusal); why != "" {
		failure += ": " + why
	}
	return true, failure
}

// Refused takes in why a store did not carry out an order. The operator ends
// with the next Advance if the refusal is final; else the order is repeated,
// since the reason may pass, until the step has had its time.
func (c *Controller) Refused(f *pdpb.OrderFailure) {
	c.mu.Lock()
	defer c.mu.Unlock()
	o := c.mu.byRange[f.GetRangeId()]
	if o == nil || o.ID != f.GetOperatorId() {
		return
	}
	o.refusal, o.final = f.GetReason(), f.GetFinal()
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
		out = append(out, c.mu.byRange[id].Info(now))
	}
	return out
}

// Info describes the operator for people.
func (o *Operator) Info(now time.Time) *pdpb.OperatorInfo {
	info := &pdpb.OperatorInfo{
		OperatorId: o.ID, RangeId: o.RangeID, By: o.By, Reason: o.Reason,
		Current: uint32(o.Current),
		AgeMs:   uint64(max(0, now.Sub(o.Began)).Milliseconds()),
	}
	switch {
	case o.Held != "":
		info.Reason += "; held back: " + o.Held
	case o.refusal != "":
		info.Reason += "; refused, and tried again: " + o.refusal
	}
	for _, s := range o.Steps {
		info.Steps = append(info.Steps, s.String())
	}
	return info
}
