package agent

import (
	"context"
	"errors"
	"fmt"
	"time"

	metapb "github.com/ridgekv/ridge/proto/ridge/meta/v1"
)

// A removed member hears nothing more of its range. A split that was proposed
// before its removal gives the child a member on its store, and only the replica
// of the parent there makes that member: if it had not applied the split, the
// child lacks a replica until PD misses it. So a voter that is taken for well
// goes only when
//
//	its span epoch >= the span epoch of its leader, all splits before decided.
//
// The leader's part is a read of its own, so that what was in the log when its term
// began is applied, and then Evaluator.Settled: it has the lease, and nothing is in
// flight. Then the log holds no split that this replica has not applied, whoever
// proposed it: those of earlier leaders come before the lease's entry, or after it
// and are refused. Nor does one follow: orders of a range are carried out one at a
// time, and a split of another leader after the removal is refused by its
// config-change index. One before it would need another term, and
// the removal is proposed in the term in which the leader settled, or not at all.
// What is left is a leader that is deposed between that look and the proposal,
// which Raft then sends on to the next one; PD's repair of missing replicas is for
// that.
//
// Learners owe nothing: a range that has one is not split. Nor do replicas that
// decide nothing any more: PD is not told of one that is halted.
const (
	// behindPatience is how long one order waits for a replica whose store answers,
	// silencePatience for one whose store does not: it may have to be done without.
	behindPatience  = 3 * time.Second
	silencePatience = 8 * time.Second
	// splitPeriod is how often the replica is asked.
	splitPeriod = 20 * time.Millisecond
)

// awaitSplits waits until p has applied every split of the range, or its store
// does not answer. An error means that p must not be removed now.
func (a *Agent) awaitSplits(ctx context.Context, rangeID uint64, p *metapb.Replica) error {
	if p.GetRole() != metapb.Role_ROLE_VOTER {
		return nil
	}
	led := a.d.Host.Leader(rangeID)
	// A read first: a lease that is held here may have been lost in entries that
	// are not applied yet, with a split after it.
	if err := a.d.Host.CaughtUp(ctx, rangeID); err != nil {
		return err
	}
	if err := a.d.Evaluator.Settled(ctx, rangeID); err != nil {
		return err
	}
	if err := a.untilApplied(ctx, rangeID, p); err != nil {
		return err
	}
	if now := a.d.Host.Leader(rangeID); !now.Self || now.Term != led.Term {
		return fmt.Errorf("%w: the range changed its leader meanwhile", errStale)
	}
	return nil
}

// untilApplied waits until p is at the span epoch of this replica.
func (a *Agent) untilApplied(ctx context.Context, rangeID uint64, p *metapb.Replica) error {
	r, ok := a.d.Catalog.Replica(rangeID)
	if !ok {
		return errNotHere
	}
	want, began := r.State().SpanEpoch(), time.Now()
	for {
		err := a.hasApplied(ctx, rangeID, p, want)
		waited := time.Since(began)
		switch {
		case err == nil:
			return nil
		case errors.Is(err, errBehind) && waited >= behindPatience:
			return err
		case ctx.Err() != nil:
			return fmt.Errorf("agent: replica %d: %w", p.GetReplicaId(), err)
		case waited >= silencePatience:
			a.o.Logger.Warn("a replica is removed that may lack a split: its store does not answer",
				"range", rangeID, "replica", p.GetReplicaId(), "error", err)
			return nil
		}
		sleep(ctx, splitPeriod)
	}
}

// hasApplied asks the store of p once. It is errBehind when that answers and p has
// not come to the span epoch but may yet, or has not even begun; other errors are
// silence.
func (a *Agent) hasApplied(
	ctx context.Context, rangeID uint64, p *metapb.Replica, spanEpoch uint64,
) error {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	s, err := a.askReplica(ctx, rangeID, p)
	switch {
	case errors.Is(err, errNotHere):
		return fmt.Errorf("%w: store %d has not begun replica %d", errBehind, p.GetStoreId(),
			p.GetReplicaId())
	case err != nil:
		return err
	case s.GetState() == "halted" || s.GetState() == "poisoned":
		return nil // it never will
	case s.GetRange().GetEpoch().GetSpan() < spanEpoch:
		return fmt.Errorf("%w: replica %d is at span epoch %d of %d", errBehind, p.GetReplicaId(),
			s.GetRange().GetEpoch().GetSpan(), spanEpoch)
	}
	return nil
}
