package meta

import (
	"fmt"
	"io"
	"maps"
	"slices"
	"sync"

	sm "github.com/lni/dragonboat/v4/statemachine"

	metapb "github.com/ridgekv/ridge/proto/ridge/meta/v1"
	pdpb "github.com/ridgekv/ridge/proto/ridge/pd/v1"
)

// machine is the state machine of PD's group. Dragonboat calls the methods of
// sm.IConcurrentStateMachine; everything else reads.
type machine struct {
	// bell is rung when the TSO record or a clock question changed.
	bell chan struct{}

	mu struct {
		sync.RWMutex
		state *state
		// question is the newest ProbeClock of another member that was not
		// answered yet. It and answers are no part of the replicated state:
		// they are facts about this process.
		question *pdpb.ProbeClock
		// expected is the nonce of this member's own probe; answers holds who
		// answered it, with their wall clocks in milliseconds.
		expected uint64
		answers  map[uint64]uint64
	}
}

func newMachine() *machine {
	m := &machine{bell: make(chan struct{}, 1)}
	m.mu.state = newState()
	return m
}

// Update applies entries. It fails only on a command this binary does not
// know: the log was written by a newer one, and going on would diverge.
func (m *machine) Update(entries []sm.Entry) ([]sm.Entry, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for i := range entries {
		c, err := DecodeCommand(entries[i].Cmd)
		if err != nil {
			return nil, fmt.Errorf("meta: entry %d: %w", entries[i].Index, err)
		}
		old := m.mu.state.tso
		result := m.mu.state.apply(c)
		m.mu.state.appliedIndex = entries[i].Index
		m.observeLocked(c)
		if m.mu.state.tso != old {
			m.ring()
		}
		entries[i].Result = sm.Result{Value: 1, Data: encodeResult(result)}
	}
	return entries, nil
}

func (m *machine) observeLocked(c *pdpb.Command) {
	switch c := c.GetCommand().(type) {
	case *pdpb.Command_ProbeClock:
		m.mu.question = c.ProbeClock
		m.ring()
	case *pdpb.Command_AnswerClock:
		if c.AnswerClock.GetNonce() == m.mu.expected && m.mu.expected != 0 {
			m.mu.answers[c.AnswerClock.GetMemberId()] = c.AnswerClock.GetWallUnixMs()
			m.ring()
		}
	}
}

func (m *machine) ring() {
	select {
	case m.bell <- struct{}{}:
	default:
	}
}

// Lookup answers the TSO record; it is the only query.
func (m *machine) Lookup(any) (any, error) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return m.mu.state.tso, nil
}

// PrepareSnapshot encodes the state: it is small, and Update is held off.
func (m *machine) PrepareSnapshot() (any, error) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return EncodeState(m.mu.state.proto()), nil
}

// SaveSnapshot writes what PrepareSnapshot encoded.
func (m *machine) SaveSnapshot(
	prepared any, w io.Writer, _ sm.ISnapshotFileCollection, _ <-chan struct{},
) error {
	_, err := w.Write(prepared.([]byte))
	return err
}

// RecoverFromSnapshot replaces the state.
func (m *machine) RecoverFromSnapshot(r io.Reader, _ []sm.SnapshotFile, _ <-chan struct{}) error {
	body, err := io.ReadAll(r)
	if err != nil {
		return fmt.Errorf("meta: read snapshot: %w", err)
	}
	p, err := DecodeState(body)
	if err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.mu.state = stateFromProto(p)
	m.ring()
	return nil
}

// Close does nothing: the state lives in memory.
func (m *machine) Close() error { return nil }

func (m *machine) tso() *pdpb.TSORecord {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return m.mu.state.tso
}

func (m *machine) storeRecords() []*pdpb.StoreRecord {
	m.mu.RLock()
	defer m.mu.RUnlock()
	out := make([]*pdpb.StoreRecord, 0, len(m.mu.state.stores))
	for _, id := range slices.Sorted(maps.Keys(m.mu.state.stores)) {
		out = append(out, m.mu.state.stores[id])
	}
	return out
}

func (m *machine) ranges() []*metapb.Range {
	m.mu.RLock()
	defer m.mu.RUnlock()
	out := make([]*metapb.Range, 0, len(m.mu.state.ranges))
	for _, id := range slices.Sorted(maps.Keys(m.mu.state.ranges)) {
		out = append(out, m.mu.state.ranges[id])
	}
	return out
}
