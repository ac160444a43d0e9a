package catalog

import (
	"encoding/binary"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"google.golang.org/protobuf/proto"

	logpb "github.com/ridgekv/ridge/proto/ridge/log/v1"
	metapb "github.com/ridgekv/ridge/proto/ridge/meta/v1"
	"github.com/ridgekv/ridge/storenode/internal/engine"
)

const (
	tombstonePrefix = "tombstone/"
	tombstoneFormat = 1
)

// Edit changes what is local to the store in the record of a replica: it
// waits for apply to let go of it, commits, and publishes. An edit that returns
// false changes nothing. The caller flushes the engine when the change must
// outlive a power failure.
//
// This is how raft tells the record what it learns from Dragonboat: the role
// after a promotion, that the truncated log was written, that the replica is
// removed.
func (c *Catalog) Edit(rangeID, replicaID uint64, edit func(*logpb.RangeState) bool) error {
	r, ok := c.Replica(rangeID)
	if !ok {
		return fmt.Errorf("%w: range %d replica %d", ErrNoReplica, rangeID, replicaID)
	}
	r.Lock()
	defer r.Unlock()
	before, applied := r.Both()
	if before.ReplicaID() != replicaID {
		return fmt.Errorf("%w: range %d replica %d, it holds replica %d",
			ErrNoReplica, rangeID, replicaID, before.ReplicaID())
	}
	changed := false
	after := before.With(func(pb *logpb.RangeState) { changed = edit(pb) })
	if !changed {
		return nil
	}
	checkLocal(before, after)
	w := &engine.WriteSet{}
	StageState(w, after)
	if err := c.engine.Commit(w); err != nil {
		return fmt.Errorf("catalog: edit range %d: %w", rangeID, err)
	}
	c.Update(rangeID, after, applied)
	return nil
}

// SetRole records what raft sees in Dragonboat's membership. A replica starts
// as the role recorded; learner after a promotion is harmless, voter before one
// is not, so the promotion is told when it has happened.
func (c *Catalog) SetRole(rangeID, replicaID uint64, role metapb.Role) error {
	return c.Edit(rangeID, replicaID, func(pb *logpb.RangeState) bool {
		changed := pb.GetRole() != role
		pb.Role = role
		return changed
	})
}

// SetLogWritten records that the truncated log of a born replica exists.
func (c *Catalog) SetLogWritten(rangeID, replicaID uint64) error {
	return c.Edit(rangeID, replicaID, func(pb *logpb.RangeState) bool {
		changed := !pb.GetLogWritten()
		pb.LogWritten = true
		return changed
	})
}

// SetRemoved records that the replica is no longer a member. Its slices are
// still its own; Destroy gives them away.
func (c *Catalog) SetRemoved(rangeID, replicaID uint64) error {
	return c.Edit(rangeID, replicaID, func(pb *logpb.RangeState) bool {
		changed := pb.GetState() != logpb.ReplicaState_REPLICA_STATE_REMOVED
		pb.State = logpb.ReplicaState_REPLICA_STATE_REMOVED
		return changed
	})
}

// Poison records that the replica must not go on.
func (c *Catalog) Poison(rangeID, replicaID uint64, reason string) error {
	return c.Edit(rangeID, replicaID, func(pb *logpb.RangeState) bool {
		if pb.GetState() == logpb.ReplicaState_REPLICA_STATE_POISONED {
			return false
		}
		pb.State, pb.PoisonReason = logpb.ReplicaState_REPLICA_STATE_POISONED, reason
		return true
	})
}

// SettleBirths drops from the notes of all parents the children that are born:
// this store's replica has applied a lease, or was removed.
func (c *Catalog) SettleBirths() error {
	for _, r := range c.Replicas() {
		s := r.State()
		if !slices.ContainsFunc(s.Unborn(), c.born) {
			continue
		}
		err := c.Edit(r.rangeID, s.ReplicaID(), func(pb *logpb.RangeState) bool {
			pb.Unborn = slices.DeleteFunc(pb.Unborn, c.born)
			return true
		})
		if err != nil {
			return err
		}
	}
	return nil
}

func (c *Catalog) born(u *logpb.UnbornChild) bool {
	if c.HasTombstone(u.GetRangeId()) {
		return true
	}
	r, ok := c.Replica(u.GetRangeId())
	return ok && r.State().Tenure() > 0
}

// Create adds a replica to the store: a learner that waits for its image, or
// the first replica of the first range. The caller flushes the engine before
// it starts the replica.
func (c *Catalog) Create(s *State, a Applied) error {
	if err := s.check(); err != nil {
		return fmt.Errorf("catalog: create range %d: %w", s.RangeID(), err)
	}
	if c.Tombstoned(s.RangeID(), s.ReplicaID()) {
		return fmt.Errorf("%w: range %d replica %d", ErrTombstoned, s.RangeID(), s.ReplicaID())
	}
	if !c.Reserve(s.RangeID()) {
		return fmt.Errorf("%w: range %d", ErrExists, s.RangeID())
	}
	w := &engine.WriteSet{}
	StageState(w, s)
	StageApplied(w, s.RangeID(), a)
	if err := c.engine.Commit(w); err != nil {
		c.Release(s.RangeID())
		return fmt.Errorf("catalog: create range %d: %w", s.RangeID(), err)
	}
	c.Update(s.RangeID(), s, a)
	return nil
}

// Destroy is the last step of a removal, after Dragonboat has forgotten the
// replica: in one commit its slices become garbage, its records go, and a
// tombstone stays.
func (c *Catalog) Destroy(rangeID, replicaID uint64) error {
	r, ok := c.Replica(rangeID)
	if !ok || r.State().ReplicaID() != replicaID {
		return fmt.Errorf("%w: range %d replica %d", ErrNoReplica, rangeID, replicaID)
	}
	r.Lock()
	defer r.Unlock()
	w := &engine.WriteSet{}
	for _, s := range r.State().Slices() {
		w.AddGarbage(s, false)
	}
	w.DeleteApplied(rangeID)
	w.DeleteState(rangeID)
	StageTombstone(w, rangeID, replicaID)
	if err := c.engine.Commit(w); err != nil {
		return fmt.Errorf("catalog: destroy range %d: %w", rangeID, err)
	}
	c.AddTombstone(rangeID, replicaID)
	c.Remove(rangeID)
	c.Ring()
	return nil
}

// StageTombstone adds a tombstone to w.
func StageTombstone(w *engine.WriteSet, rangeID, replicaID uint64) {
	out := binary.BigEndian.AppendUint64([]byte{tombstoneFormat}, rangeID)
	out = binary.BigEndian.AppendUint64(out, replicaID)
	w.SetStore(fmt.Sprintf("%s%d/%d", tombstonePrefix, rangeID, replicaID), out)
}

// AddTombstone publishes a tombstone, after its commit.
func (c *Catalog) AddTombstone(rangeID, replicaID uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !slices.Contains(c.mu.tombstones[rangeID], replicaID) {
		c.mu.tombstones[rangeID] = append(c.mu.tombstones[rangeID], replicaID)
	}
}

// Tombstoned reports whether this replica was removed from the store.
func (c *Catalog) Tombstoned(rangeID, replicaID uint64) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Contains(c.mu.tombstones[rangeID], replicaID)
}

// HasTombstone reports whether any replica of the range was removed.
func (c *Catalog) HasTombstone(rangeID uint64) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.mu.tombstones[rangeID]) > 0
}

func (c *Catalog) loadTombstones() error {
	records, err := c.engine.StoreRecords(tombstonePrefix)
	if err != nil {
		return fmt.Errorf("catalog: load tombstones: %w", err)
	}
	for name := range records {
		rangeID, replicaID, err := parseTombstone(name)
		if err != nil {
			return err
		}
		c.AddTombstone(rangeID, replicaID)
	}
	return nil
}

func parseTombstone(name string) (rangeID, replicaID uint64, err error) {
	a, b, ok := strings.Cut(strings.TrimPrefix(name, tombstonePrefix), "/")
	if ok {
		rangeID, err = strconv.ParseUint(a, 10, 64)
	}
	if ok && err == nil {
		replicaID, err = strconv.ParseUint(b, 10, 64)
	}
	if !ok || err != nil {
		return 0, 0, fmt.Errorf("%w: x|%s", ErrCorrupt, name)
	}
	return rangeID, replicaID, nil
}

// checkLocal panics when an edit changed what all replicas must agree on.
func checkLocal(before, after *State) {
	b, a := before.Replicated(), after.Replicated()
	if !proto.Equal(b, a) || before.ReplicaID() != after.ReplicaID() {
		panic(fmt.Sprintf("catalog: edit of range %d changes its replicated state: %v, was %v",
			before.RangeID(), a, b))
	}
}
