package agent

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"time"

	metapb "github.com/ridgekv/ridge/proto/ridge/meta/v1"
	pdpb "github.com/ridgekv/ridge/proto/ridge/pd/v1"
	"github.com/ridgekv/ridge/storenode/internal/catalog"
	"github.com/ridgekv/ridge/storenode/internal/evaluate"
	"github.com/ridgekv/ridge/storenode/internal/raft"
)

const (
	// maxOrders bounds the orders under way. PD repeats what is dropped.
	maxOrders = 16
	// orderTimeout bounds one order; splitTimeout one that reads data first.
	orderTimeout = 10 * time.Second
	splitTimeout = 30 * time.Second
)

// Why an order is not carried out. PD learns the present state by the report
// that follows, and decides anew.
var (
	errDone         = errors.New("agent: already done")
	errStale        = errors.New("agent: order of another epoch")
	errNotHere      = errors.New("agent: no such replica here")
	errUnsplittable = errors.New("agent: nothing to split")
	errBehind       = errors.New("agent: the replica is behind")
	errUnknown      = errors.New("agent: unknown order")
)

// obey starts an order unless one of the range is under way or too many are.
func (a *Agent) obey(ctx context.Context, o *pdpb.Order) {
	if a.draining.Load() || !a.begin(o.GetRangeId()) {
		return
	}
	a.workers.Go(func() {
		defer a.end(o.GetRangeId())
		defer a.Kick()
		err := a.carryOut(ctx, o)
		result := "done"
		switch {
		case errors.Is(err, errDone):
			result = "already done"
		case err != nil:
			result = "failed"
			a.failed(o, err)
			a.o.Logger.Info("order not carried out", "range", o.GetRangeId(),
				"op", stepName(o), "epoch", o.GetEpoch().String(), "error", err)
		default:
			a.o.Logger.Info("order carried out", "range", o.GetRangeId(), "op", stepName(o))
		}
		a.metrics.orders.WithLabelValues(stepName(o), result).Inc()
	})
}

func (a *Agent) begin(rangeID uint64) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	if _, busy := a.mu.busy[rangeID]; busy || len(a.mu.busy) >= maxOrders {
		return false
	}
	a.mu.busy[rangeID] = struct{}{}
	return true
}

func (a *Agent) end(rangeID uint64) {
	a.mu.Lock()
	defer a.mu.Unlock()
	delete(a.mu.busy, rangeID)
}

func stepName(o *pdpb.Order) string {
	switch o.GetStep().(type) {
	case *pdpb.Order_AddLearner:
		return "add learner"
	case *pdpb.Order_Promote:
		return "promote"
	case *pdpb.Order_RemoveReplica:
		return "remove replica"
	case *pdpb.Order_TransferLeader:
		return "transfer leader"
	case *pdpb.Order_Split:
		return "split"
	case *pdpb.Order_DestroyReplica:
		return "destroy replica"
	case *pdpb.Order_CreateReplica:
		return "create replica"
	}
	return "unknown"
}

// carryOut does one order. All of them may be repeated.
func (a *Agent) carryOut(ctx context.Context, o *pdpb.Order) error {
	timeout := orderTimeout
	if o.GetSplit() != nil {
		timeout = splitTimeout
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	id := o.GetRangeId()
	switch s := o.GetStep().(type) {
	case *pdpb.Order_CreateReplica:
		return a.create(ctx, id, s.CreateReplica.GetReplicaId())
	case *pdpb.Order_DestroyReplica:
		return a.destroy(ctx, o, s.DestroyReplica.GetReplicaId())
	case *pdpb.Order_Split:
		return a.split(ctx, o, s.Split.GetSplitKey())
	case *pdpb.Order_TransferLeader:
		return a.transfer(ctx, id, s.TransferLeader.GetReplicaId())
	}
	return a.changeMembers(ctx, o)
}

// changeMembers adds, promotes or removes a replica of a range led here.
func (a *Agent) changeMembers(ctx context.Context, o *pdpb.Order) error {
	id := o.GetRangeId()
	members, config, ok := a.d.Host.Membership(id)
	if !ok {
		return errNotHere
	}
	host := a.d.Host
	var change func() error
	switch s := o.GetStep().(type) {
	case *pdpb.Order_AddLearner:
		p := s.AddLearner
		if find(members, p.GetReplicaId()) != nil {
			return errDone
		}
		change = func() error {
			return host.AddLearner(ctx, id, p.GetReplicaId(), p.GetStoreId(), config)
		}
	case *pdpb.Order_Promote:
		p := s.Promote
		if find(members, p.GetReplicaId()).GetRole() == metapb.Role_ROLE_VOTER {
			return errDone
		}
		change = func() error {
			return host.Promote(ctx, id, p.GetReplicaId(), p.GetStoreId(), config)
		}
	case *pdpb.Order_RemoveReplica:
		p := find(members, s.RemoveReplica.GetReplicaId())
		if p == nil {
			return errDone
		}
		change = func() error {
			if s.RemoveReplica.GetAwaitSplits() {
				if err := a.awaitSplits(ctx, id, p); err != nil {
					return err
				}
			}
			return host.RemoveReplica(ctx, id, p.GetReplicaId(), config)
		}
	default:
		return errUnknown
	}
	if config != o.GetEpoch().GetConfig() {
		return fmt.Errorf("%w: config is %d", errStale, config)
	}
	if r, ok := a.d.Catalog.Replica(id); !ok || len(r.State().Unborn()) > 0 {
		return fmt.Errorf("%w: a child of the range is not born yet", errStale)
	}
	return change()
}

func find(members []*metapb.Replica, replicaID uint64) *metapb.Replica {
	for _, p := range members {
		if p.GetReplicaId() == replicaID {
			return p
		}
	}
	return nil
}

// create starts a learner that waits for its first image.
func (a *Agent) create(ctx context.Context, rangeID, replicaID uint64) error {
	if a.d.Catalog.Tombstoned(rangeID, replicaID) {
		return fmt.Errorf("agent: replica %d was removed from this store", replicaID)
	}
	if r, ok := a.d.Catalog.Replica(rangeID); ok {
		if r.State().ReplicaID() == replicaID {
			return errDone
		}
		return fmt.Errorf("agent: replica %d is still here", r.State().ReplicaID())
	}
	return a.d.Host.CreateLearner(ctx, rangeID, replicaID)
}

// destroy removes a replica that is no member any more. PD knows that only up to
// the epoch of the order; a replica that has seen a later one is kept.
func (a *Agent) destroy(ctx context.Context, o *pdpb.Order, replicaID uint64) error {
	r, ok := a.d.Catalog.Replica(o.GetRangeId())
	if !ok || r.State().ReplicaID() != replicaID {
		return errDone
	}
	members, config, ok := a.d.Host.Membership(o.GetRangeId())
	if ok && config > o.GetEpoch().GetConfig() && find(members, replicaID) != nil {
		return fmt.Errorf("%w: replica %d is a member at config %d", errStale, replicaID, config)
	}
	return a.d.Host.DestroyReplica(ctx, o.GetRangeId(), replicaID)
}

// transfer hands the lease and the leadership to another replica.
func (a *Agent) transfer(ctx context.Context, rangeID, replicaID uint64) error {
	l := a.d.Host.Leader(rangeID)
	if l.Known && l.ReplicaID == replicaID {
		return errDone
	}
	if !l.Self {
		return fmt.Errorf("%w: this store does not lead", errStale)
	}
	members, _, _ := a.d.Host.Membership(rangeID)
	heir := find(members, replicaID)
	if heir.GetRole() != metapb.Role_ROLE_VOTER {
		return fmt.Errorf("%w: replica %d is no voter", errStale, replicaID)
	}
	if err := a.awaitHeir(ctx, rangeID, heir, heirLag, heirPatience); err != nil {
		return err
	}
	if a.d.Evaluator.Leaseholder(rangeID) {
		if err := a.d.Evaluator.PrepareTransfer(ctx, rangeID); err != nil {
			return err
		}
	}
	// Evaluation rests now, so this is short. If it is not, Raft may do it yet.
	_ = a.awaitHeir(ctx, rangeID, heir, 0, restPatience)
	return a.d.Host.TransferLeader(ctx, rangeID, replicaID)
}

const (
	// heirLag is how far behind an heir may be before evaluation rests for it,
	// heirPatience how long it may take to get there.
	heirLag      = 256
	heirPatience = 2 * time.Second
	// restPatience is well below the second for which evaluation rests.
	restPatience = 300 * time.Millisecond
)

// awaitHeir waits until the heir is at most lag entries behind this replica. A
// replica with entries to apply ignores that it shall campaign, and Raft then
// waits an election timeout before it can be told again.
func (a *Agent) awaitHeir(
	ctx context.Context, rangeID uint64, heir *metapb.Replica, lag uint64, patience time.Duration,
) error {
	r, ok := a.d.Catalog.Replica(rangeID)
	if !ok {
		return errNotHere
	}
	applied := r.Applied().Index
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	for {
		s, err := a.askReplica(ctx, rangeID, heir)
		switch {
		case err != nil:
			return fmt.Errorf("agent: heir %d: %w", heir.GetReplicaId(), err)
		case s.GetAppliedIndex()+lag >= applied:
			return nil
		case !sleep(ctx, 2*time.Millisecond):
			return fmt.Errorf("%w: replica %d is at %d of %d", errBehind, heir.GetReplicaId(),
				s.GetAppliedIndex(), applied)
		}
	}
}

// split divides a range led here at key, or in its middle, and tells PD at once.
func (a *Agent) split(ctx context.Context, o *pdpb.Order, key []byte) error {
	r, ok := a.d.Catalog.Replica(o.GetRangeId())
	if !ok {
		return errNotHere
	}
	s := r.State()
	if s.SpanEpoch() != o.GetEpoch().GetSpan() {
		return fmt.Errorf("%w: span epoch is %d", errStale, s.SpanEpoch())
	}
	key, err := a.splitKey(ctx, r, key)
	if err != nil {
		return err
	}
	whole := a.describe(r)
	for _, p := range whole.GetReplicas() {
		if p.GetRole() != metapb.Role_ROLE_VOTER {
			return fmt.Errorf("%w: replica %d is a learner", errStale, p.GetReplicaId())
		}
	}
	ids, err := a.d.PD.AskSplit(ctx, &pdpb.AskSplitRequest{Range: whole})
	if err != nil {
		return err
	}
	if len(ids.GetChildReplicaIds()) != len(whole.GetReplicas()) {
		return fmt.Errorf("agent: PD gave %d replica ids for %d replicas",
			len(ids.GetChildReplicaIds()), len(whole.GetReplicas()))
	}
	left, right, err := a.d.Evaluator.Split(ctx, r.RangeID(), key, evaluate.SplitChild{
		RangeID: ids.GetChildRangeId(), ReplicaIDs: ids.GetChildReplicaIds(),
		Members: whole.GetReplicas(), ExpectedConfig: whole.GetEpoch().GetConfig(),
	})
	if err != nil {
		return err
	}
	a.Kick()
	return a.reportSplit(ctx, left, right)
}

// splitKey checks a given key, or measures the middle.
func (a *Agent) splitKey(
	ctx context.Context, r *catalog.Replica, key []byte,
) ([]byte, error) {
	span := r.State().Span()
	if len(key) == 0 {
		m, err := a.measure(ctx, r)
		if err != nil {
			return nil, err
		}
		key = m.Middle
	}
	if len(key) == 0 || !span.Contains(key) || bytes.Equal(key, span.Start) {
		return nil, fmt.Errorf("%w in %s", errUnsplittable, span)
	}
	return key, nil
}

// reportSplit tells both halves in one call. This store led the parent, so it
// is the one that makes the child's leader.
func (a *Agent) reportSplit(ctx context.Context, left, right *metapb.Range) error {
	m := &pdpb.ReportSplitRequest{
		Left: &pdpb.RangeReport{
			Range: left, Leader: leaderProto(a.d.Host.Leader(left.GetRangeId())),
		},
		Right: &pdpb.RangeReport{Range: right, Leader: a.childLeader(right)},
	}
	_, err := a.d.PD.ReportSplit(ctx, m)
	return err
}

func (a *Agent) childLeader(child *metapb.Range) *metapb.Leader {
	if l := a.d.Host.Leader(child.GetRangeId()); l.Known {
		return leaderProto(l)
	}
	for _, p := range child.GetReplicas() {
		if p.GetStoreId() == a.d.Self.GetStoreId() {
			return &metapb.Leader{ReplicaId: p.GetReplicaId(), StoreId: p.GetStoreId()}
		}
	}
	return leaderProto(raft.Leader{})
}
