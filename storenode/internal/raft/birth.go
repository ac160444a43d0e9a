package raft

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/lni/dragonboat/v4/raftpb"

	"github.com/ridgekv/ridge/proto/keys"
	logpb "github.com/ridgekv/ridge/proto/ridge/log/v1"
	metapb "github.com/ridgekv/ridge/proto/ridge/meta/v1"
	"github.com/ridgekv/ridge/storenode/internal/catalog"
	"github.com/ridgekv/ridge/storenode/internal/engine"
)

// writeBirth writes the truncated log of a replica that holds its range's base
// (Law 4): a snapshot record at (5,5) and nothing else. It is idempotent.
func (h *Host) writeBirth(ctx context.Context, s *catalog.State) error {
	rangeID, replicaID := s.RangeID(), s.ReplicaID()
	members := s.PB().GetBirthMembers()
	self := func(m *metapb.Replica) bool {
		return m.GetReplicaId() == replicaID && m.GetStoreId() == h.opts.StoreID
	}
	if !slices.ContainsFunc(members, self) {
		return fmt.Errorf("%w: not among the members it is born with", errQuarantine)
	}
	// The record says that the base is here, so the base must be able to
	// outlive a power failure first.
	if err := h.engine.Flush(ctx); err != nil {
		return fmt.Errorf("raft: birth of range %d: %w", rangeID, err)
	}
	// A log that exists was written by an attempt that did not live to note
	// it. Writing again would forget its votes.
	if !h.nh.HasNodeInfo(rangeID, replicaID) {
		err := h.logDB.ImportSnapshot(raftpb.Snapshot{
			ShardID:     rangeID,
			Index:       catalog.BirthIndex,
			Term:        catalog.BirthIndex,
			OnDiskIndex: catalog.BirthIndex,
			Dummy:       true,
			Type:        raftpb.OnDiskStateMachine,
			Membership:  membership(members, catalog.BirthIndex),
		}, replicaID)
		if err != nil {
			return fmt.Errorf("raft: birth of range %d: %w", rangeID, err)
		}
	}
	return h.catalog.SetLogWritten(rangeID, replicaID)
}

// BearFirst creates the first range of the cluster on this store, as PD's
// Bootstrap names it, and waits until it runs. It is idempotent.
func (h *Host) BearFirst(ctx context.Context, rng *metapb.Range) error {
	i := slices.IndexFunc(rng.GetReplicas(), func(r *metapb.Replica) bool {
		return r.GetStoreId() == h.opts.StoreID
	})
	if i < 0 || len(rng.GetReplicas()) != 1 {
		return fmt.Errorf("raft: range %d is not born with this store alone", rng.GetRangeId())
	}
	replicaID := rng.GetReplicas()[i].GetReplicaId()
	if _, ok := h.catalog.Replica(rng.GetRangeId()); !ok {
		if err := h.createFirst(rng, replicaID); err != nil &&
			!errors.Is(err, catalog.ErrExists) {
			return fmt.Errorf("raft: bear range %d: %w", rng.GetRangeId(), err)
		}
	}
	h.catalog.Ring()
	return h.untilRunning(ctx, rng.GetRangeId(), replicaID)
}

func (h *Host) createFirst(rng *metapb.Range, replicaID uint64) error {
	span := keys.FromProto(rng.GetSpan())
	w := &engine.WriteSet{}
	extent := h.engine.NewExtent(w)
	// The record of the range names the extent but does not write to it, so
	// the counter is committed on its own first: w holds nothing else.
	if err := h.engine.Commit(w); err != nil {
		return err
	}
	s := catalog.NewState(&logpb.RangeState{
		RangeId:      rng.GetRangeId(),
		Span:         span.Proto(),
		SpanEpoch:    max(rng.GetEpoch().GetSpan(), 1),
		ReplicaId:    replicaID,
		Role:         metapb.Role_ROLE_VOTER,
		State:        logpb.ReplicaState_REPLICA_STATE_NORMAL,
		Slices:       []*logpb.Slice{{Extent: uint32(extent), Span: span.Proto()}},
		BirthMembers: rng.GetReplicas(),
	})
	return h.catalog.Create(s, catalog.Applied{Index: catalog.BirthIndex})
}

// CreateLearner creates an empty replica that waits for its image, and waits
// until it runs. The range must list it as a learner before. It is idempotent.
func (h *Host) CreateLearner(ctx context.Context, rangeID, replicaID uint64) error {
	s := catalog.NewState(&logpb.RangeState{
		RangeId:   rangeID,
		Span:      &metapb.Span{},
		ReplicaId: replicaID,
		Role:      metapb.Role_ROLE_LEARNER,
		State:     logpb.ReplicaState_REPLICA_STATE_JOINING,
	})
	err := h.catalog.Create(s, catalog.Applied{})
	if err != nil && !errors.Is(err, catalog.ErrExists) {
		return fmt.Errorf("raft: create replica %d of range %d: %w", replicaID, rangeID, err)
	}
	if cr, ok := h.catalog.Replica(rangeID); ok && cr.State().ReplicaID() != replicaID {
		return fmt.Errorf("raft: create replica %d of range %d: this store holds replica %d",
			replicaID, rangeID, cr.State().ReplicaID())
	}
	h.catalog.Ring()
	return h.untilRunning(ctx, rangeID, replicaID)
}

// DestroyReplica removes a replica that is no longer a member from this store
// and waits until it is gone. The caller answers for the replica being no
// member: PD says so, fenced by the config index. It is idempotent.
func (h *Host) DestroyReplica(ctx context.Context, rangeID, replicaID uint64) error {
	err := h.catalog.SetRemoved(rangeID, replicaID)
	if errors.Is(err, catalog.ErrNoReplica) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("raft: destroy replica %d of range %d: %w", replicaID, rangeID, err)
	}
	h.catalog.Ring()
	return h.until(ctx, fmt.Sprintf("destroy replica %d of range %d", replicaID, rangeID),
		func() (bool, error) {
			cr, ok := h.catalog.Replica(rangeID)
			return !ok || cr.State().ReplicaID() != replicaID, nil
		})
}

func (h *Host) untilRunning(ctx context.Context, rangeID, replicaID uint64) error {
	return h.until(ctx, fmt.Sprintf("start replica %d of range %d", replicaID, rangeID),
		func() (bool, error) {
			if r, ok := h.replica(rangeID); ok && r.replicaID == replicaID && r.started.Load() {
				return true, nil
			}
			cr, ok := h.catalog.Replica(rangeID)
			if !ok || cr.State().ReplicaID() != replicaID {
				return false, ErrNotFound
			}
			if reason := cr.State().PB().GetPoisonReason(); reason != "" {
				return false, fmt.Errorf("%w: %s", errQuarantine, reason)
			}
			return false, nil
		})
}

// until waits for what the reconciler brings about.
func (h *Host) until(ctx context.Context, op string, cond func() (bool, error)) error {
	for {
		pass := h.nextPass()
		ok, err := cond()
		if err != nil {
			return fmt.Errorf("raft: %s: %w", op, err)
		}
		if ok {
			return nil
		}
		select {
		case <-pass:
		case <-ctx.Done():
			return fmt.Errorf("raft: %s: %w", op, context.Cause(ctx))
		}
	}
}
