package apply

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"

	sm "github.com/lni/dragonboat/v4/statemachine"
	"golang.org/x/time/rate"

	logpb "github.com/ridgekv/ridge/proto/ridge/log/v1"
	"github.com/ridgekv/ridge/storenode/internal/catalog"
	"github.com/ridgekv/ridge/storenode/internal/engine"
)

// Deps is what the machines of a store work with.
type Deps struct {
	Engine  *engine.Engine
	Catalog *catalog.Catalog
	// StoreID tells which replica of a split's child is this store's.
	StoreID uint64
	// Logger. Default: none.
	Logger *slog.Logger
	// ConfigIndex is the config-change index of the range exactly as of the
	// entry being applied. It is unknown while NodeHost closes or when it does
	// not list the replica; apply then decides nothing. nil: never known.
	ConfigIndex func(rangeID uint64) (index uint64, known bool)
	// ImageLimiter bounds the bytes per second of all images sent. nil: none.
	ImageLimiter *rate.Limiter
	// Checker computes the checksums that Checksum entries ask for. nil: they
	// only move the applied index.
	Checker *Checker
	// Metrics counts. nil: nothing is counted.
	Metrics *Metrics
}

// ErrNotServing is what Lookup answers for a replica that must not be read.
var ErrNotServing = errors.New("apply: the replica does not serve")

// Machine applies the log of one replica. It implements
// statemachine.IOnDiskStateMachine.
//
// No method returns an error for anything but a failure of the engine: an error
// kills the whole store, and again at every start.
type Machine struct {
	deps      Deps
	rangeID   uint64
	replicaID uint64
	log       *slog.Logger

	mu struct {
		sync.Mutex
		// written is a seq that covers all commits of this machine and what
		// its Open found.
		written engine.Seq
		// idle is a pin that PrepareSnapshot took and nobody has come for.
		idle *imagePin
	}
}

var _ sm.IOnDiskStateMachine = (*Machine)(nil)

// New returns the machine of one replica.
func New(d Deps, rangeID, replicaID uint64) *Machine {
	if d.Logger == nil {
		d.Logger = slog.New(slog.DiscardHandler)
	}
	return &Machine{
		deps: d, rangeID: rangeID, replicaID: replicaID,
		log: d.Logger.With("range", rangeID, "replica", replicaID),
	}
}

// Open returns the applied index found in the engine, and 0 unless the record
// of the range names this replica. A halt ends here: this is the next start.
func (m *Machine) Open(<-chan struct{}) (uint64, error) {
	r, ok := m.replica()
	if !ok {
		return 0, nil
	}
	r.Lock()
	defer r.Unlock()
	state, applied := r.Both()
	m.noteWritten()
	if state.Halted() != "" {
		m.deps.Catalog.Update(m.rangeID, state.WithHalted(""), applied)
	}
	return applied.Index, nil
}

// Update applies entries: one write set each, all committed together, then
// published. Every entry moves the applied index, refused or not, unless the
// replica halts.
func (m *Machine) Update(entries []sm.Entry) ([]sm.Entry, error) {
	r, ok := m.replica()
	if !ok {
		m.log.Error("entries for a replica that this store does not hold")
		for i := range entries {
			entries[i].Result = sm.Result{Value: ResultHalted}
		}
		return entries, nil
	}
	r.Lock()
	defer r.Unlock()
	b := newBatch(m, r)
	for i := range entries {
		res, err := b.apply(entries[i].Index, entries[i].Cmd)
		if err != nil {
			return nil, err
		}
		entries[i].Result = res
		m.deps.Metrics.entry(res.Value)
	}
	if err := b.commit(); err != nil {
		return nil, err
	}
	return entries, nil
}

// Lookup answers any question with the applied index: reads go to the engine
// directly. It fails for a replica that does not serve.
func (m *Machine) Lookup(any) (any, error) {
	r, ok := m.replica()
	if !ok {
		return nil, fmt.Errorf("%w: range %d is not here", ErrNotServing, m.rangeID)
	}
	state, applied := r.Both()
	if !state.Serving() {
		return nil, fmt.Errorf("%w: range %d is %s%s",
			ErrNotServing, m.rangeID, state.Status(), state.Halted())
	}
	return applied.Index, nil
}

// Sync makes all that this machine found and committed durable.
func (m *Machine) Sync() error {
	m.mu.Lock()
	written := m.mu.written
	m.mu.Unlock()
	if m.deps.Engine.Flushed() >= written {
		return nil
	}
	if err := m.deps.Engine.Flush(context.Background()); err != nil {
		return fmt.Errorf("apply: sync range %d: %w", m.rangeID, err)
	}
	return nil
}

// Close releases what is held in memory.
func (m *Machine) Close() error {
	m.swapIdle(nil)
	return nil
}

// replica finds what the store holds of the range, if it is this replica.
func (m *Machine) replica() (*catalog.Replica, bool) {
	r, ok := m.deps.Catalog.Replica(m.rangeID)
	if !ok || r.State().ReplicaID() != m.replicaID {
		return nil, false
	}
	return r, true
}

// commit commits sets in order and notes how far Sync must flush.
func (m *Machine) commit(sets ...*engine.WriteSet) error {
	if err := m.deps.Engine.Commit(sets...); err != nil {
		return fmt.Errorf("apply: commit range %d: %w", m.rangeID, err)
	}
	m.noteWritten()
	return nil
}

// noteWritten makes the next Sync cover what is visible now.
func (m *Machine) noteWritten() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.mu.written = max(m.mu.written, m.deps.Engine.Visible())
}

// batch is the entries of one Update.
type batch struct {
	m       *Machine
	replica *catalog.Replica
	// state and applied are as of the last entry taken, not yet published.
	state   *catalog.State
	applied catalog.Applied
	// sets are not yet committed, children were made by them.
	sets     []*engine.WriteSet
	children []catalog.Change
	// written counts the bytes put by sets.
	written uint64
	ring    bool
}

func newBatch(m *Machine, r *catalog.Replica) *batch {
	b := &batch{m: m, replica: r}
	b.state, b.applied = r.Both()
	return b
}

// apply decides one entry and stages what it does.
func (b *batch) apply(index uint64, cmd []byte) (sm.Result, error) {
	switch {
	case b.state.Halted() != "":
		return sm.Result{Value: ResultHalted}, nil
	case index <= b.applied.Index:
		return b.halt(fmt.Sprintf("entry %d came after %d", index, b.applied.Index)), nil
	}
	w := &engine.WriteSet{}
	switch b.state.Status() {
	case logpb.ReplicaState_REPLICA_STATE_NORMAL:
	case logpb.ReplicaState_REPLICA_STATE_JOINING:
		b.poison(w, fmt.Sprintf("entry %d came before an image", index))
		fallthrough
	default:
		b.take(w, index)
		return sm.Result{Value: ResultPoisoned}, nil
	}
	entry, err := Decode(cmd)
	if err != nil {
		return b.halt(fmt.Sprintf("entry %d: %v", index, err)), nil
	}
	if code := b.fence(&entry); code != 0 {
		b.take(w, index)
		return sm.Result{Value: code}, nil
	}
	return b.decide(w, index, &entry)
}

// fence reports why the entry cannot take effect, whatever it holds; 0 means
// that it can. Only an epoch mismatch of a kind other than Write consumes the
// number.
func (b *batch) fence(e *Entry) uint64 {
	if e.Kind.Numbered() {
		switch {
		case e.Tenure == 0 || e.Tenure != b.state.Tenure():
			return ResultWrongTenure
		case e.Number <= b.applied.Number:
			return ResultDuplicate
		case e.Number != b.applied.Number+1:
			return ResultGap
		}
	}
	if e.Kind.ChecksSpanEpoch() && e.SpanEpoch != b.state.SpanEpoch() {
		if e.Kind != KindWrite {
			b.applied.Number = e.Number
		}
		return ResultEpochMismatch
	}
	return 0
}

// decide applies an entry that passed the fence.
func (b *batch) decide(w *engine.WriteSet, index uint64, e *Entry) (sm.Result, error) {
	res := sm.Result{Value: ResultApplied}
	switch e.Kind {
	case KindWrite:
		w, res = b.write(w, e)
	case KindAcquireLease:
		res = b.acquire(w, e.Message.(*logpb.AcquireLease))
	case KindRaiseReadBound:
		b.raiseReadBound(w, e.Message.(*logpb.RaiseReadBound))
	case KindSetTxnSafePoint:
		b.setTxnSafePoint(w, e.Message.(*logpb.SetTxnSafePoint))
	case KindSplit:
		res = b.split(w, index, e.Message.(*logpb.Split))
		if res.Value == ResultHalted {
			return res, nil
		}
	case KindChecksum:
	}
	if e.Kind.Numbered() && (e.Kind != KindWrite || res.Value == ResultApplied) {
		b.applied.Number = e.Number
	}
	b.take(w, index)
	if e.Kind == KindChecksum {
		return res, b.checksum(e.Message.(*logpb.Checksum).GetCheckId())
	}
	return res, nil
}

// take moves the applied index and stages w.
func (b *batch) take(w *engine.WriteSet, index uint64) {
	b.applied.Index = index
	catalog.StageApplied(w, b.m.rangeID, b.applied)
	b.sets = append(b.sets, w)
}

// setState changes the range's state in w.
func (b *batch) setState(w *engine.WriteSet, edit func(*logpb.RangeState)) {
	b.state = b.state.With(edit)
	catalog.StageState(w, b.state)
}

// halt ends all decisions of this replica until its next start: nothing is
// written any more, not even the index.
func (b *batch) halt(reason string) sm.Result {
	b.state = b.state.WithHalted(reason)
	b.ring = true
	b.m.log.Error("replica halted until the next start", "reason", reason)
	return sm.Result{Value: ResultHalted}
}

// poison marks the replica as one that must not go on.
func (b *batch) poison(w *engine.WriteSet, reason string) {
	b.setState(w, func(pb *logpb.RangeState) {
		pb.State = logpb.ReplicaState_REPLICA_STATE_POISONED
		pb.PoisonReason = reason
	})
	b.ring = true
	b.m.log.Error("replica poisoned", "reason", reason)
}

// commit commits what is staged and publishes it.
func (b *batch) commit() error {
	if len(b.sets) > 0 {
		if err := b.m.commit(b.sets...); err != nil {
			return err
		}
	}
	b.replica.AddWritten(b.written)
	own := catalog.Change{RangeID: b.m.rangeID, State: b.state, Applied: b.applied}
	b.m.deps.Catalog.Publish(append([]catalog.Change{own}, b.children...)...)
	if b.ring {
		b.m.deps.Catalog.Ring()
	}
	b.sets, b.children, b.written, b.ring = nil, nil, 0, false
	return nil
}
