package operator

import (
	"cmp"
	"slices"
	"time"
)

// Flight is what is under way and what lately was, as planners see it. It is
// immutable: same view, same flight, same plan.
type Flight struct {
	Limits Limits
	// Operators are those in flight, by range id.
	Operators []*Operator
	// Rests are the changes that failed and are not tried again yet, by range id.
	Rests []Rest
	// Recent are the moves and the last transfer of ranges that had one lately,
	// by range id: balancing does not turn them back.
	Recent []Recent
}

// Rest is a change that failed.
type Rest struct {
	RangeID uint64
	// By is the planner that wanted it; others may go on.
	By string
	// Why says how it failed, Failures how often in a row.
	Why      string
	Failures int
	// Until is when it is tried again. Final means not at all before the range has
	// doubled beyond SizeBytes or has another span.
	Until     time.Time
	Final     bool
	SizeBytes uint64
	SpanEpoch uint64
}

// Recent is where a replica or the leadership of a range went.
type Recent struct {
	RangeID  uint64
	Kind     Kind // AddLearner for a move, TransferLeader
	From, To uint64
	At       time.Time
	keep     time.Duration // how long it is remembered
}

// Busy reports whether the range has an operator.
func (f Flight) Busy(rangeID uint64) bool {
	_, ok := slices.BinarySearchFunc(f.Operators, rangeID, func(o *Operator, id uint64) int {
		return cmp.Compare(o.RangeID, id)
	})
	return ok
}

// Rest finds the rest of a planner's change of a range, if there is one.
func (f Flight) Rest(rangeID uint64, by string) (Rest, bool) {
	i, _ := slices.BinarySearchFunc(f.Rests, rangeID, func(r Rest, id uint64) int {
		return cmp.Compare(r.RangeID, id)
	})
	for ; i < len(f.Rests) && f.Rests[i].RangeID == rangeID; i++ {
		if f.Rests[i].By == by {
			return f.Rests[i], true
		}
	}
	return Rest{}, false
}

// Moved lists where a range, or its leadership, went lately.
func (f Flight) Moved(rangeID uint64) []Recent {
	i, _ := slices.BinarySearchFunc(f.Recent, rangeID, func(r Recent, id uint64) int {
		return cmp.Compare(r.RangeID, id)
	})
	end := i
	for end < len(f.Recent) && f.Recent[end].RangeID == rangeID {
		end++
	}
	return f.Recent[i:end]
}
