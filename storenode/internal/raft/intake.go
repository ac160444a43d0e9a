package raft

import (
	"cmp"
	"io"
	"slices"
	"sync"

	pb "github.com/lni/dragonboat/v4/raftpb"
	"github.com/lni/dragonboat/v4/statemachine"
)

// intake bounds what followers here have been sent and have not yet applied.
//
// Dragonboat keeps every entry in memory until it is applied. A leader bounds
// itself, since evaluate waits for its entries; a follower whose disk stalls is
// sent what the quorum of the others commits without it, of all its ranges,
// and would die of it. Dragonboat's own limit (MaxInMemLogSize) is off: it is
// per range, so it bounds no store; one slow follower makes the leader refuse
// everything, AcquireLease too; and it is looked at anew only every tenth
// election timeout, so one full moment is an outage of 20 s.
//
// Instead, beyond the limit new entries are dropped at the door, as a network
// may: Raft sends them again, from the log, after the next heartbeat, and the
// quorum of the others goes on. Heartbeats pass, so what is here is committed
// and applied, and room comes back. A range without a backlog is always served:
// no range waits for another one for ever, and the bound is the limit plus one
// message a range.
type intake struct {
	limit   uint64
	dropped counter

	mu struct {
		sync.Mutex
		ranges map[uint64]*backlog
		// bytes is the sum over all ranges.
		bytes uint64
	}
}

// backlog is what one range has been sent and has not applied.
type backlog struct {
	// applied is the newest index known to be applied.
	applied uint64
	// term is the newest that entries came with.
	term uint64
	// batches are ordered by index, all above applied.
	batches []receivedBatch
}

// receivedBatch is the entries of one message. Index is the last one that apply
// will see; membership changes and empty entries it does not.
type receivedBatch struct{ index, bytes uint64 }

func newIntake(limit uint64, dropped counter) *intake {
	in := &intake{limit: limit, dropped: dropped}
	in.mu.ranges = make(map[uint64]*backlog)
	return in
}

// admit returns the messages that go on to the replicas. It may reuse ms.
func (in *intake) admit(ms []pb.Message) []pb.Message {
	return slices.DeleteFunc(ms, func(m pb.Message) bool {
		return m.Type == pb.Replicate && !in.take(&m)
	})
}

// take counts the entries of m, or reports that there is no room.
func (in *intake) take(m *pb.Message) bool {
	batch := receivedBatch{}
	for i := range m.Entries {
		if e := &m.Entries[i]; e.Type != pb.ConfigChangeEntry && len(e.Cmd) > 0 {
			batch.index = e.Index
			batch.bytes += uint64(len(e.Cmd))
		}
	}
	in.mu.Lock()
	defer in.mu.Unlock()
	b := in.mu.ranges[m.ShardID]
	if b == nil || len(m.Entries) == 0 || m.LogIndex < b.applied || m.Term < b.term {
		return true // Not for a replica here, or nothing that Raft would keep.
	}
	b.term = m.Term
	// What follows m.LogIndex is sent again, or replaced by what another leader
	// has there.
	keep, _ := slices.BinarySearchFunc(b.batches, m.LogIndex+1, byIndex)
	total := in.mu.bytes - sumBytes(b.batches[keep:]) + batch.bytes
	if keep > 0 && batch.bytes > 0 && total > in.limit {
		in.dropped.inc()
		return false
	}
	b.batches, in.mu.bytes = b.batches[:keep], total
	if batch.bytes > 0 {
		b.batches = append(b.batches, batch)
	}
	return true
}

func byIndex(b receivedBatch, index uint64) int { return cmp.Compare(b.index, index) }

func sumBytes(batches []receivedBatch) uint64 {
	total := uint64(0)
	for _, b := range batches {
		total += b.bytes
	}
	return total
}

// begin counts what the range is sent from now on.
func (in *intake) begin(rangeID, applied uint64) {
	in.end(rangeID)
	in.mu.Lock()
	defer in.mu.Unlock()
	in.mu.ranges[rangeID] = &backlog{applied: applied}
}

// end forgets the range: its replica has stopped.
func (in *intake) end(rangeID uint64) {
	in.mu.Lock()
	defer in.mu.Unlock()
	if b := in.mu.ranges[rangeID]; b != nil {
		in.mu.bytes -= sumBytes(b.batches)
		delete(in.mu.ranges, rangeID)
	}
}

// advance notes that the range has applied everything up to index.
func (in *intake) advance(rangeID, index uint64) {
	in.mu.Lock()
	defer in.mu.Unlock()
	b := in.mu.ranges[rangeID]
	if b == nil || index <= b.applied {
		return
	}
	b.applied = index
	n, _ := slices.BinarySearchFunc(b.batches, index+1, byIndex)
	in.mu.bytes -= sumBytes(b.batches[:n])
	b.batches = slices.Delete(b.batches, 0, n)
}

// heldBytes is what is received and not applied.
func (in *intake) heldBytes() uint64 {
	in.mu.Lock()
	defer in.mu.Unlock()
	return in.mu.bytes
}

// meteredMachine tells the intake how far its range is. Whether an entry was
// refused or the replica is halted does not matter: Dragonboat lets go of it.
type meteredMachine struct {
	statemachine.IOnDiskStateMachine
	intake  *intake
	rangeID uint64
	// applied is asked after an image.
	applied func() uint64
	// reached is told how far apply has seen the log, once reads see what it did.
	reached func(index uint64)
}

// Update implements statemachine.IOnDiskStateMachine.
func (m *meteredMachine) Update(es []statemachine.Entry) ([]statemachine.Entry, error) {
	out, err := m.IOnDiskStateMachine.Update(es)
	if len(es) > 0 {
		m.intake.advance(m.rangeID, es[len(es)-1].Index)
		m.reached(es[len(es)-1].Index)
	}
	return out, err
}

// RecoverFromSnapshot implements statemachine.IOnDiskStateMachine.
func (m *meteredMachine) RecoverFromSnapshot(r io.Reader, stop <-chan struct{}) error {
	err := m.IOnDiskStateMachine.RecoverFromSnapshot(r, stop)
	m.intake.advance(m.rangeID, m.applied())
	m.reached(m.applied())
	return err
}

// reached notes how far a replica has applied. Only its apply worker calls it.
func (h *Host) reached(r *replica, index uint64) {
	r.applied.Store(max(index, r.applied.Load()))
	if r.awaited.Load() > 0 {
		h.confirms.look()
	}
}

// metered wraps what newMachine makes.
func (h *Host) metered(rangeID, replicaID uint64) statemachine.IOnDiskStateMachine {
	return &meteredMachine{
		IOnDiskStateMachine: h.newMachine(rangeID, replicaID),
		intake:              h.intake, rangeID: rangeID,
		reached: func(index uint64) {
			if r, ok := h.replica(rangeID); ok && r.replicaID == replicaID {
				h.reached(r, index)
			}
		},
		applied: func() uint64 {
			r, ok := h.catalog.Replica(rangeID)
			if !ok {
				return 0
			}
			return r.Applied().Index
		},
	}
}
