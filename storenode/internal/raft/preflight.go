package raft

import (
	"errors"
	"fmt"

	"github.com/lni/dragonboat/v4/raftio"

	logpb "github.com/ridgekv/ridge/proto/ridge/log/v1"
	"github.com/ridgekv/ridge/storenode/internal/catalog"
)

// errQuarantine is why a replica must not be started. Starting it would
// either panic, and again at every start of the store, or lose entries without
// a word.
var errQuarantine = errors.New("raft: quarantined")

// preflight compares what the engine has applied with what the log holds.
// logIndex is the index of the newest log snapshot.
func (h *Host) preflight(s *catalog.State, applied uint64) (logIndex uint64, err error) {
	rangeID, replicaID := s.RangeID(), s.ReplicaID()
	if !h.nh.HasNodeInfo(rangeID, replicaID) {
		if s.Status() == logpb.ReplicaState_REPLICA_STATE_JOINING && applied == 0 {
			return 0, nil // never started: an empty log is right
		}
		return 0, fmt.Errorf("%w: its log is lost, %d entries are applied", errQuarantine, applied)
	}
	snapshot, err := h.logDB.GetSnapshot(rangeID, replicaID)
	if err != nil && !errors.Is(err, raftio.ErrNoSavedLog) {
		return 0, fmt.Errorf("raft: read log of range %d: %w", rangeID, err)
	}
	last := snapshot.Index
	state, err := h.logDB.ReadRaftState(rangeID, replicaID, snapshot.Index)
	switch {
	case errors.Is(err, raftio.ErrNoSavedLog):
	case err != nil:
		return 0, fmt.Errorf("raft: read log of range %d: %w", rangeID, err)
	case state.EntryCount > 0:
		last = state.FirstIndex + state.EntryCount - 1
	}
	switch {
	case applied > last:
		// Dragonboat would take entries up to applied for done, whatever they
		// are: a log was lost or put back.
		return 0, fmt.Errorf("%w: %d is applied, the log ends at %d", errQuarantine, applied, last)
	case snapshot.Dummy && applied < snapshot.OnDiskIndex:
		// Dragonboat would panic: the entries between are gone.
		return 0, fmt.Errorf("%w: %d is applied, the log begins after %d",
			errQuarantine, applied, snapshot.OnDiskIndex)
	}
	// A record that is no dummy is a received image. Its file is applied again
	// unless it was applied and flushed before.
	return snapshot.Index, nil
}
