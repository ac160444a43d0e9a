package raft

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/lni/dragonboat/v4"

	logpb "github.com/ridgekv/ridge/proto/ridge/log/v1"
	metapb "github.com/ridgekv/ridge/proto/ridge/meta/v1"
	"github.com/ridgekv/ridge/storenode/internal/catalog"
	"github.com/ridgekv/ridge/storenode/internal/engine"
)

const (
	// reconcileInterval is how often the reconciler looks unasked.
	reconcileInterval = time.Second
	// removeTimeout bounds the wait for a replica to be unloaded.
	removeTimeout = 10 * time.Second
	// handOverTimeout bounds the wait for one successor.
	handOverTimeout = 2 * time.Second
)

// reconcile makes what runs here what the catalog says. It is the only one who
// starts, stops and removes replicas, so a crash at any point is just another
// beginning. It ends with the first failure of the engine.
func (h *Host) reconcile(ctx context.Context) error {
	ticker := time.NewTicker(reconcileInterval)
	defer ticker.Stop()
	for first := true; ; first = false {
		if err := h.pass(ctx); err != nil {
			return err
		}
		if first {
			close(h.booted)
		}
		h.endPass()
		select {
		case <-ctx.Done():
			return nil
		case <-h.catalog.Bell():
		case <-h.events.removedBell:
		case <-ticker.C:
		}
	}
}

// pass looks at every replica once. What fails is logged and tried again in
// the next pass.
func (h *Host) pass(ctx context.Context) error {
	for info := range h.events.takeRemoved() {
		err := h.catalog.SetRemoved(info.ShardID, info.ReplicaID)
		if err != nil && !errors.Is(err, catalog.ErrNoReplica) {
			return err
		}
	}
	if err := h.catalog.SettleBirths(); err != nil {
		return err
	}
	for _, cr := range h.catalog.Replicas() {
		if ctx.Err() != nil {
			return nil
		}
		if err := h.settle(ctx, cr); err != nil {
			s := cr.State()
			h.log.Warn("replica not settled", "range", s.RangeID(), "replica", s.ReplicaID(),
				"err", err)
			if errors.Is(err, engine.ErrClosed) {
				return err
			}
		}
	}
	return nil
}

// settle brings one replica to what its record says.
func (h *Host) settle(ctx context.Context, cr *catalog.Replica) error {
	s := cr.State()
	running, runs := h.replica(s.RangeID())
	switch s.Status() {
	case logpb.ReplicaState_REPLICA_STATE_REMOVED:
		return h.remove(ctx, s)
	case logpb.ReplicaState_REPLICA_STATE_POISONED:
		if !runs || !h.handedOver(running) {
			return nil
		}
		return h.stop(running)
	}
	if runs {
		if s.Halted() != "" {
			h.handedOver(running)
		}
		return nil
	}
	err := h.start(ctx, cr)
	switch {
	case errors.Is(err, errQuarantine):
		h.metrics.quarantined.inc()
		h.log.Error("replica quarantined", "range", s.RangeID(), "replica", s.ReplicaID(),
			"err", err)
		return h.catalog.Poison(s.RangeID(), s.ReplicaID(), err.Error())
	case errors.Is(err, dragonboat.ErrReplicaRemoved):
		return h.catalog.SetRemoved(s.RangeID(), s.ReplicaID())
	case errors.Is(err, dragonboat.ErrShardAlreadyExist):
		return nil // still being unloaded: the next pass comes
	}
	return err
}

// start starts a replica after looking at its log. Replicas born here get
// their truncated log first.
func (h *Host) start(ctx context.Context, cr *catalog.Replica) error {
	s, applied := cr.Both()
	rangeID, replicaID := s.RangeID(), s.ReplicaID()
	born := len(s.PB().GetBirthMembers()) > 0
	birth := born && !s.PB().GetLogWritten()
	if birth {
		if err := h.writeBirth(ctx, s); err != nil {
			return err
		}
	}
	if s.Status() == logpb.ReplicaState_REPLICA_STATE_JOINING {
		// The record must outlive a power failure before there is a log: an
		// orphan log would have nobody to remove it.
		if err := h.engine.Flush(ctx); err != nil {
			return fmt.Errorf("raft: start range %d replica %d: %w", rangeID, replicaID, err)
		}
	}
	logIndex, err := h.preflight(s, applied.Index)
	if err != nil {
		return err
	}
	r := &replica{rangeID: rangeID, replicaID: replicaID, session: h.nh.GetNoOPSession(rangeID)}
	r.cut.begin(logIndex, cr.WrittenBytes())
	r.applied.Store(applied.Index)
	h.replicas.Store(rangeID, r) // before its first event
	learner := s.Role() == metapb.Role_ROLE_LEARNER
	cfg := h.replicaConfig(rangeID, replicaID, learner)
	cfg.WaitReady = birth // an election can only begin when it is ready
	h.intake.begin(rangeID, applied.Index)
	var startErr error
	err = guard("start replica", func() {
		startErr = h.nh.StartOnDiskReplica(nil, !born, h.metered, cfg)
	})
	if err := errors.Join(err, startErr); err != nil {
		h.replicas.Delete(rangeID)
		h.intake.end(rangeID)
		return fmt.Errorf("raft: start range %d replica %d: %w", rangeID, replicaID, err)
	}
	r.started.Store(true)
	h.metrics.starts.inc()
	h.events.noteMembers(rangeID)
	h.log.Info("replica started", "range", rangeID, "replica", replicaID,
		"applied", applied.Index, "birth", birth, "learner", learner)
	if birth {
		h.startedBirth(s)
	}
	return nil
}

// startedBirth begins the campaign of a child on the store that led its
// parent, and tells the members. The others wait their turn: that store may die
// before it comes to it.
//
// That store led the parent at the split and leads it still. One that was given
// the parent since, and starts its replica late, would depose whoever leads the
// child by now; and so would one that led it at the split and starts again.
func (h *Host) startedBirth(s *catalog.State) {
	members := s.PB().GetBirthMembers()
	parent := s.PB().GetParentRangeId()
	split := s.PB().GetBirthStoreId()
	first := h.Leader(parent).Self && (split == h.opts.StoreID || split == 0)
	if len(members) == 1 || first {
		h.births.add(s.RangeID(), s.ReplicaID())
	} else {
		rank := slices.IndexFunc(members, func(m *metapb.Replica) bool {
			return m.GetReplicaId() == s.ReplicaID()
		})
		h.births.addPatient(s.RangeID(), s.ReplicaID(), rank)
	}
	h.hooks.Lock()
	hooks := h.hooks.births
	h.hooks.Unlock()
	for _, fn := range hooks {
		fn(s.RangeID(), members)
	}
}

// stop stops a replica and forgets it. No log snapshot may be under way: it
// could record an index that apply has decided not to write.
func (h *Host) stop(r *replica) error {
	r.cut.stop()
	err := h.call(func() error { return h.nh.StopReplica(r.rangeID, r.replicaID) })
	if err != nil && !errors.Is(err, dragonboat.ErrShardNotFound) {
		return fmt.Errorf("raft: stop range %d replica %d: %w", r.rangeID, r.replicaID, err)
	}
	h.replicas.CompareAndDelete(r.rangeID, r)
	h.intake.end(r.rangeID)
	r.announce()
	h.events.noteLeader(r.rangeID, nil)
	h.log.Info("replica stopped", "range", r.rangeID, "replica", r.replicaID)
	return nil
}

// remove removes a replica whose record says so: its log goes when the record
// can no longer be lost, its data when the log is gone.
func (h *Host) remove(ctx context.Context, s *catalog.State) error {
	rangeID, replicaID := s.RangeID(), s.ReplicaID()
	if r, ok := h.replica(rangeID); ok && r.replicaID == replicaID {
		if err := h.stop(r); err != nil {
			return err
		}
	}
	if err := h.engine.Flush(ctx); err != nil {
		return fmt.Errorf("raft: remove range %d replica %d: %w", rangeID, replicaID, err)
	}
	ctx, cancel := context.WithTimeout(ctx, removeTimeout)
	defer cancel()
	var removeErr error
	err := guard("remove data", func() {
		removeErr = h.call(func() error { return h.nh.SyncRemoveData(ctx, rangeID, replicaID) })
	})
	if err := errors.Join(err, removeErr); err != nil {
		return fmt.Errorf("raft: remove range %d replica %d: %w", rangeID, replicaID, err)
	}
	if err := h.catalog.Destroy(rangeID, replicaID); err != nil {
		return err
	}
	h.log.Info("replica removed", "range", rangeID, "replica", replicaID)
	return nil
}

// handedOver sees to it that a replica which will answer nothing any more does
// not lead. It reports true when it does not, or when nobody took over in time:
// before a stop this is a kindness, without it the others wait for an election.
// The reconciler does not wait for it: the bell rings when it has ended.
func (h *Host) handedOver(r *replica) bool {
	if !r.leading().Self || r.handOverEnded.Load() {
		r.handOverEnded.Store(false)
		r.handingOver.Store(false)
		return true
	}
	if !r.handingOver.CompareAndSwap(false, true) {
		return false
	}
	begun := h.future(func() {
		for _, m := range r.members.Load().list() {
			if m.GetReplicaId() == r.replicaID || m.GetRole() != metapb.Role_ROLE_VOTER {
				continue
			}
			ctx, cancel := context.WithTimeout(context.Background(), handOverTimeout)
			err := h.TransferLeader(ctx, r.rangeID, m.GetReplicaId())
			cancel()
			if err == nil || h.closing.Load() {
				break
			}
		}
		r.handOverEnded.Store(true) // handingOver stays: one at a time
		h.catalog.Ring()
	})
	return !begun
}

// nextPass is closed when the pass of the reconciler that runs, or the next
// one, has ended.
func (h *Host) nextPass() <-chan struct{} {
	h.passes.Lock()
	defer h.passes.Unlock()
	if h.passes.done == nil {
		h.passes.done = make(chan struct{})
	}
	return h.passes.done
}

func (h *Host) endPass() {
	h.passes.Lock()
	defer h.passes.Unlock()
	if h.passes.done != nil {
		close(h.passes.done)
		h.passes.done = nil
	}
}
