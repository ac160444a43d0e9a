// Package operator is one change to one range in flight: a list of steps, each
// of which knows when it is done and which order brings it about.
package operator

import (
	"fmt"
	"strings"
	"time"

	"github.com/ridgekv/ridge/pd/internal/topology"
	metapb "github.com/ridgekv/ridge/proto/ridge/meta/v1"
	pdpb "github.com/ridgekv/ridge/proto/ridge/pd/v1"
)

// Kind is what a step does.
type Kind int

// The steps. They are done in the order an operator lists them.
const (
	// AddLearner adds a learner and waits until it is a full copy.
	AddLearner Kind = iota
	// Promote makes a learner a voter.
	Promote
	// TransferLeader moves leadership and lease to a replica.
	TransferLeader
	// Remove takes a replica out of the members.
	Remove
	// Split divides the range.
	Split
)

// Step is one indivisible part of an operator.
type Step struct {
	Kind Kind
	// ReplicaID and StoreID name the replica; 0 for Split. The id of a learner
	// to add is given when the operator is admitted.
	ReplicaID, StoreID uint64
	// Key is where to split; empty lets the store choose.
	Key []byte
	// Lost: the replica to remove is broken or its store is not heard, so nobody
	// waits for it to learn of its range's splits.
	Lost bool
}

// String renders the step as scripts and people see it.
func (s Step) String() string {
	switch s.Kind {
	case AddLearner:
		return fmt.Sprintf("add learner@%d", s.StoreID)
	case Promote:
		return fmt.Sprintf("promote @%d", s.StoreID)
	case TransferLeader:
		return fmt.Sprintf("transfer leader @%d", s.StoreID)
	case Remove:
		return fmt.Sprintf("remove @%d", s.StoreID)
	}
	if len(s.Key) > 0 {
		return fmt.Sprintf("split at %q", s.Key)
	}
	return "split"
}

// Priority is the order in which operators are admitted.
type Priority int

// The priorities, most urgent first.
const (
	ByHand Priority = iota
	Repair
	Divide
	Rules
	Drain
	Balance
)

// Operator is a change of one range. Planners make it; a Controller runs it.
type Operator struct {
	ID      uint64
	RangeID uint64
	// By names the planner that wants it, Reason says why.
	By, Reason string
	Priority   Priority
	Steps      []Step
	// Leader is the store that led the range when the operator was made: it sends
	// the images.
	Leader uint64
	// RememberFor is how long balancing does not turn a copy that this operator
	// makes back; 0 is 5 min.
	RememberFor time.Duration

	// Current is the step under way, Began and StepBegan when it started.
	Current          int
	Began, StepBegan time.Time
	// Held says why the current step is not ordered; empty when it is.
	Held      string
	heldSince time.Time
	// spanEpoch is the range's at admission: another one ends the operator.
	spanEpoch uint64
	// refusal is why a store did not carry out the current step; final that it
	// never will.
	refusal string
	final   bool
}

// String renders the operator: range, steps, reason.
func (o *Operator) String() string {
	return fmt.Sprintf("range %d: %s   # %s", o.RangeID, o.What(), o.Reason)
}

// What renders the steps.
func (o *Operator) What() string {
	parts := make([]string, len(o.Steps))
	for i, s := range o.Steps {
		parts[i] = s.String()
	}
	return strings.Join(parts, ", ")
}

// limit is how long the step may take, of a range of that size.
func (s Step) limit(sizeBytes uint64, l Limits) time.Duration {
	switch s.Kind {
	case AddLearner:
		rate := uint64(minImageRate)
		if l.ImageBytesPerSecond > 0 {
			// Several images share the rate.
			rate = max(1, min(rate, l.ImageBytesPerSecond/uint64(max(1, l.StoreMoves))))
		}
		seconds := min(sizeBytes/rate, uint64(maxCopy/time.Second))
		return l.StepTimeout + 2*time.Duration(seconds)*time.Second
	case Split:
		return splitLimit
	}
	return quickLimit
}

const (
	// minImageRate is the slowest copy, in bytes per second, that is waited for.
	minImageRate = 1 << 20
	// maxCopy bounds the time that bytes are given.
	maxCopy = 24 * time.Hour
	// splitLimit lets a store measure a large range; quickLimit lets a store try
	// twice what it gives up after 10 s.
	splitLimit = 40 * time.Second
	quickLimit = 20 * time.Second
	// heldLimit is how long a step may be held back before the range is judged
	// anew.
	heldLimit = 3 * time.Second
)

// Done reports whether the step has come about.
func (s Step) Done(r *topology.Range, spanEpoch uint64) bool {
	m := r.Replica(s.ReplicaID)
	switch s.Kind {
	case AddLearner:
		h := r.Health(s.ReplicaID)
		return m != nil && (m.GetRole() == metapb.Role_ROLE_VOTER || h != nil &&
			!h.GetLagging() && !h.GetMissing() && !h.GetPoisoned())
	case Promote:
		return m.GetRole() == metapb.Role_ROLE_VOTER
	case TransferLeader:
		return r.Leader.GetReplicaId() == s.ReplicaID
	case Remove:
		return m == nil
	}
	return r.Range.GetEpoch().GetSpan() > spanEpoch
}

// Orders returns what must be sent, and to which store, to bring the step
// about. It may be sent again and again.
func (s Step) Orders(o *Operator, r *topology.Range) map[uint64]*pdpb.Order {
	out := map[uint64]*pdpb.Order{}
	add := func(store uint64, order *pdpb.Order) {
		order.RangeId, order.Epoch, order.OperatorId = o.RangeID, r.Range.GetEpoch(), o.ID
		out[store] = order
	}
	leader := r.Leader.GetStoreId()
	switch s.Kind {
	case AddLearner:
		add(s.StoreID, &pdpb.Order{Step: &pdpb.Order_CreateReplica{
			CreateReplica: &pdpb.CreateReplica{ReplicaId: s.ReplicaID},
		}})
		if r.Replica(s.ReplicaID) == nil {
			add(leader, &pdpb.Order{Step: &pdpb.Order_AddLearner{
				AddLearner: &pdpb.AddLearner{ReplicaId: s.ReplicaID, StoreId: s.StoreID},
			}})
		}
	case Promote:
		add(leader, &pdpb.Order{Step: &pdpb.Order_Promote{
			Promote: &pdpb.Promote{ReplicaId: s.ReplicaID, StoreId: s.StoreID},
		}})
	case TransferLeader:
		add(leader, &pdpb.Order{Step: &pdpb.Order_TransferLeader{
			TransferLeader: &pdpb.TransferLeader{ReplicaId: s.ReplicaID, StoreId: s.StoreID},
		}})
	case Remove:
		add(leader, &pdpb.Order{Step: &pdpb.Order_RemoveReplica{
			RemoveReplica: &pdpb.RemoveReplica{
				ReplicaId: s.ReplicaID, StoreId: s.StoreID, AwaitSplits: !s.Lost,
			},
		}})
	case Split:
		add(leader, &pdpb.Order{Step: &pdpb.Order_Split{
			Split: &pdpb.SplitOrder{SplitKey: s.Key},
		}})
	}
	return out
}
