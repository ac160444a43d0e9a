package operator

import (
	"fmt"
	"time"
)

// Limits bound what is in flight.
type Limits struct {
	// StoreMoves is how many replicas may be under construction on one store,
	// and how many images one store may be sending, at a time. Balancing leaves
	// one of them free for repair.
	StoreMoves int
	// LeaderTransfers is how many leaderships one store may be giving away, and
	// how many it may be taking over, at a time.
	LeaderTransfers int
	// Splits is how many splits may be under way at a time.
	Splits int
	// Operators is how many operators of all kinds may be in flight.
	Operators int
	// StepTimeout is what the copying of a replica, the only long step, may take
	// beyond the time for its bytes.
	StepTimeout time.Duration
	// ImageBytesPerSecond is the rate at which a store sends images; 0 is no
	// bound. The stores keep to it; here it only tells how long a copy may take.
	ImageBytesPerSecond uint64
}

// Budget is what the operators in flight use up of the limits.
type Budget struct {
	limits    Limits
	operators int
	splits    int
	stores    map[uint64]*use
}

// use is what one store takes part in.
type use struct{ receives, sends, gives, takes int }

// NewBudget returns what the operators leave of the limits.
func NewBudget(l Limits, inFlight []*Operator) *Budget {
	b := &Budget{limits: l, stores: map[uint64]*use{}}
	for _, o := range inFlight {
		b.Take(o)
	}
	return b
}

func (b *Budget) of(store uint64) use {
	if u := b.stores[store]; u != nil {
		return *u
	}
	return use{}
}

func (b *Budget) at(store uint64) *use {
	u := b.stores[store]
	if u == nil {
		u = &use{}
		b.stores[store] = u
	}
	return u
}

// Take notes that o is in flight.
func (b *Budget) Take(o *Operator) { b.add(o, 1) }

func (b *Budget) add(o *Operator, n int) {
	b.operators += n
	leader := o.Leader
	for _, s := range o.Steps[o.Current:] {
		switch s.Kind {
		case AddLearner:
			b.at(s.StoreID).receives += n
			b.at(leader).sends += n
		case TransferLeader:
			b.at(leader).gives += n
			b.at(s.StoreID).takes += n
			leader = s.StoreID
		case Split:
			b.splits += n
		}
	}
}

// RoomForAll says why operators do not fit in together.
func (b *Budget) RoomForAll(ops []*Operator) string {
	for i, o := range ops {
		if why := b.Room(o); why != "" {
			return why
		}
		if i+1 < len(ops) {
			b.add(o, 1)
			defer b.add(o, -1)
		}
	}
	return ""
}

// moves is how many replicas a store may receive, and send, for operators of a
// priority.
func (b *Budget) moves(p Priority) int {
	if p >= Balance {
		return max(1, b.limits.StoreMoves-1)
	}
	return b.limits.StoreMoves
}

// RoomToReceive says why no operator of a priority may add a replica to a store
// now; empty when one may, as far as that store goes.
func (b *Budget) RoomToReceive(store uint64, p Priority) string {
	if n := b.of(store).receives; n >= b.moves(p) {
		return fmt.Sprintf("store %d already receives %d replicas", store, n)
	}
	return ""
}

// Room says why o does not fit in now; empty when it does.
func (b *Budget) Room(o *Operator) string {
	if b.operators >= b.limits.Operators {
		return fmt.Sprintf("%d operators are in flight", b.operators)
	}
	moves, leader := b.moves(o.Priority), o.Leader
	for _, s := range o.Steps {
		to, from := b.of(s.StoreID), b.of(leader)
		switch {
		case s.Kind == AddLearner && to.receives >= moves:
			return b.RoomToReceive(s.StoreID, o.Priority)
		case s.Kind == AddLearner && from.sends >= moves:
			return fmt.Sprintf("store %d already sends %d replicas", leader, from.sends)
		case s.Kind == TransferLeader && from.gives >= b.limits.LeaderTransfers:
			return fmt.Sprintf("store %d already gives %d leaders away", leader, from.gives)
		case s.Kind == TransferLeader && to.takes >= b.limits.LeaderTransfers:
			return fmt.Sprintf("store %d already takes %d leaders over", s.StoreID, to.takes)
		case s.Kind == Split && b.splits >= b.limits.Splits:
			return fmt.Sprintf("%d splits are under way", b.splits)
		}
		if s.Kind == TransferLeader {
			leader = s.StoreID
		}
	}
	return ""
}
