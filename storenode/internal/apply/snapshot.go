package apply

import (
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"

	sm "github.com/lni/dragonboat/v4/statemachine"

	"github.com/ridgekv/ridge/proto/keys"
	logpb "github.com/ridgekv/ridge/proto/ridge/log/v1"
	"github.com/ridgekv/ridge/proto/ts"
	"github.com/ridgekv/ridge/storenode/internal/catalog"
	"github.com/ridgekv/ridge/storenode/internal/engine"
)

const (
	// receiveSizeBytes and receiveRows are where a receiver commits.
	receiveSizeBytes = 1 << 20
	receiveRows      = 2_000
)

// imagePin is what PrepareSnapshot hands to SaveSnapshot: a view with the
// state that belongs to it.
type imagePin struct {
	view    engine.View
	state   *catalog.State
	applied catalog.Applied
	// floor is the oldest timestamp at which the view is complete.
	floor   ts.Timestamp
	release func()
	// refused: the replica must not be copied.
	refused bool
}

// PrepareSnapshot pins the present state. Dragonboat calls it between two
// Updates, so state, applied index and data belong together.
func (m *Machine) PrepareSnapshot() (any, error) {
	r, ok := m.replica()
	if !ok {
		return &imagePin{refused: true, release: func() {}}, nil
	}
	view, release := m.deps.Engine.Pin()
	p := &imagePin{view: view, release: sync.OnceFunc(release), floor: m.deps.Engine.Floor()}
	p.state, p.applied = r.Both()
	p.refused = !p.state.Serving()
	m.swapIdle(p)
	return p, nil
}

// swapIdle lets go of a pin that was prepared and never saved.
func (m *Machine) swapIdle(p *imagePin) {
	m.mu.Lock()
	old := m.mu.idle
	m.mu.idle = p
	m.mu.Unlock()
	if old != nil {
		old.release()
	}
}

// takeIdle makes p the caller's to release.
func (m *Machine) takeIdle(p *imagePin) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.mu.idle == p {
		m.mu.idle = nil
	}
}

// SaveSnapshot streams the image that was pinned.
func (m *Machine) SaveSnapshot(ctx any, w io.Writer, stop <-chan struct{}) error {
	p := ctx.(*imagePin)
	m.takeIdle(p)
	defer p.release()
	if p.refused {
		return sm.ErrSnapshotAborted
	}
	out := newImageWriter(w, m.deps.ImageLimiter, stop)
	state := p.state.Replicated()
	state.HistoryFloor = uint64(max(p.state.HistoryFloor(), p.floor))
	err := out.header(&logpb.ImageHeader{
		Format:       imageFormat,
		AppliedIndex: p.applied.Index,
		LastNumber:   p.applied.Number,
		MaxCommitTs:  uint64(p.applied.MaxCommitTS),
		State:        state,
	})
	if err != nil {
		return err
	}
	for _, s := range p.state.Slices() {
		for row, err := range p.view.Versions(s) {
			if err != nil {
				return m.unreadable(s, err)
			}
			if err := out.row(row); err != nil {
				return err
			}
		}
	}
	if err := out.end(); err != nil {
		return err
	}
	m.deps.Metrics.sent(out.sizeBytes)
	m.log.Info("range image sent", "index", p.applied.Index, "rows", out.rows,
		"bytes", out.sizeBytes)
	return nil
}

// unreadable gives up on an image that the engine cannot read. The stream ends
// and Raft tries again; an error of its own would end the process.
func (m *Machine) unreadable(s engine.Slice, err error) error {
	m.log.Error("range image given up", "slice", s.String(), "error", err)
	return sm.ErrSnapshotAborted
}

// RecoverFromSnapshot receives an image into an extent of its own, which is
// garbage until one commit makes it the replica's only slice and its former
// slices garbage. A crash before that commit leaves the old state whole.
//
// An image that cannot be used poisons the replica: an error would end the
// process now and at every start.
func (m *Machine) RecoverFromSnapshot(r io.Reader, stop <-chan struct{}) error {
	rep, ok := m.replica()
	if !ok {
		m.log.Error("image for a replica that this store does not hold")
		return nil
	}
	in := newImageReader(r)
	header, err := in.header(m.rangeID)
	if err != nil {
		return m.spoil(rep, 0, err)
	}
	state, applied := rep.Both()
	switch state.Status() {
	case logpb.ReplicaState_REPLICA_STATE_NORMAL:
		if header.GetAppliedIndex() <= applied.Index {
			m.log.Warn("image is not newer than the replica", "index", header.GetAppliedIndex())
			return nil
		}
	case logpb.ReplicaState_REPLICA_STATE_JOINING:
	default:
		return m.spoil(rep, header.GetAppliedIndex(),
			errors.New("image for a replica that must not go on"))
	}
	slice, err := m.receive(in, header, stop)
	switch {
	case errors.Is(err, errImage):
		return m.spoil(rep, header.GetAppliedIndex(), err)
	case err != nil:
		return err
	}
	return m.adopt(rep, header, slice)
}

// receive writes the rows of an image into a new extent.
func (m *Machine) receive(
	in *imageReader, h *logpb.ImageHeader, stop <-chan struct{},
) (engine.Slice, error) {
	w := &engine.WriteSet{}
	slice := engine.Slice{
		Extent: m.deps.Engine.NewExtent(w),
		Span:   keys.FromProto(h.GetState().GetSpan()),
	}
	w.AddGarbage(slice, true)
	// Before the first row, so that no commit of this image looks older to the
	// garbage collection than what it holds.
	w.NoteCommitTS(ts.Timestamp(h.GetMaxCommitTs()))
	if err := m.commit(w); err != nil {
		return slice, err
	}
	err := m.receiveRows(in, slice, stop)
	if err == nil {
		return slice, nil
	}
	if errors.Is(err, errImage) || errors.Is(err, sm.ErrSnapshotStopped) {
		// Not joined: Dragonboat does not find ErrSnapshotStopped in a joined
		// error, and ends the process over any other.
		if failed := m.discard(slice); failed != nil {
			return slice, failed
		}
	}
	return slice, err
}

// discard leaves a slice that was received to the collector.
func (m *Machine) discard(slice engine.Slice) error {
	w := &engine.WriteSet{}
	w.AddGarbage(slice, false)
	return m.commit(w)
}

func (m *Machine) receiveRows(in *imageReader, slice engine.Slice, stop <-chan struct{}) error {
	w := &engine.WriteSet{}
	for {
		if stopped(stop) {
			return sm.ErrSnapshotStopped
		}
		chunk, err := in.next()
		if err != nil {
			return err
		}
		for _, row := range chunk.GetRows() {
			if err := checkRow(row, slice); err != nil {
				return err
			}
			w.PutImageRow(slice.Extent, row.GetKind(), row.GetKey(), row.GetRow(), row.GetDeleteMark())
			m.deps.Metrics.received(uint64(len(row.GetKey()) + len(row.GetRow())))
		}
		full := w.Rows() >= receiveRows || w.SizeBytes() >= receiveSizeBytes
		if !w.Empty() && (full || chunk == nil) {
			if err := m.commit(w); err != nil {
				return err
			}
			w = &engine.WriteSet{}
		}
		if chunk == nil {
			return nil
		}
	}
}

// checkRow refuses a row that this store could not own or could not read.
func checkRow(row *logpb.ImageRow, slice engine.Slice) error {
	if len(row.GetKey()) == 0 || !slice.Span.Contains(row.GetKey()) {
		return fmt.Errorf("%w: key %s", errImage, keys.Format(row.GetKey()))
	}
	if _, ok := logpb.ImageKind_name[int32(row.GetKind())]; !ok || row.GetKind() == 0 {
		return fmt.Errorf("%w: row of kind %d", errImage, row.GetKind())
	}
	if row.GetKind() != logpb.ImageKind_IMAGE_KIND_DATA {
		return nil // reserved
	}
	if err := engine.CheckImageRow(row.GetRow(), row.GetDeleteMark()); err != nil {
		return fmt.Errorf("%w: key %s: %w", errImage, keys.Format(row.GetKey()), err)
	}
	return nil
}

// adopt makes a received slice the replica, in one commit. A replica that was
// removed meanwhile stays so.
func (m *Machine) adopt(rep *catalog.Replica, h *logpb.ImageHeader, slice engine.Slice) error {
	rep.Lock()
	defer rep.Unlock()
	before := rep.State()
	if before.Status() == logpb.ReplicaState_REPLICA_STATE_REMOVED {
		return m.discard(slice) // since the image began
	}
	after := adopted(before, h, slice)
	applied := catalog.Applied{
		Index:       h.GetAppliedIndex(),
		Number:      h.GetLastNumber(),
		MaxCommitTS: ts.Timestamp(h.GetMaxCommitTs()),
	}
	w := &engine.WriteSet{}
	w.RemoveGarbage(slice)
	for _, old := range before.Slices() {
		w.AddGarbage(old, false)
	}
	w.NoteCommitTS(applied.MaxCommitTS)
	catalog.StageState(w, after)
	catalog.StageApplied(w, m.rangeID, applied)
	if err := m.commit(w); err != nil {
		return err
	}
	m.deps.Catalog.Update(m.rangeID, after, applied)
	m.deps.Catalog.Ring()
	m.log.Info("range image received", "index", applied.Index, "span", after.Span().String())
	return nil
}

// adopted is the state of a replica after an image: what is replicated comes
// with the image, what is local stays. It ends a halt, since nothing of the
// log is needed that was not applied.
func adopted(before *catalog.State, h *logpb.ImageHeader, slice engine.Slice) *catalog.State {
	local := before.PB()
	pb := catalog.NewState(h.GetState()).Replicated()
	pb.HistoryFloor = h.GetState().GetHistoryFloor()
	pb.ReplicaId = local.GetReplicaId()
	pb.Role = local.GetRole()
	pb.State = logpb.ReplicaState_REPLICA_STATE_NORMAL
	pb.Slices = slicesProto([]engine.Slice{slice})
	pb.Unborn = slices.Clone(local.GetUnborn())
	pb.BirthMembers = local.GetBirthMembers()
	pb.LogWritten = local.GetLogWritten()
	if pb.GetLease().GetTenure() == 0 {
		pb.ParentRangeId = local.GetParentRangeId()
		pb.BirthStoreId = local.GetBirthStoreId()
	}
	return catalog.NewState(pb)
}

// spoil poisons a replica that was given an image it cannot use. The applied
// index follows the image where that is known, as Dragonboat's does.
func (m *Machine) spoil(rep *catalog.Replica, index uint64, reason error) error {
	rep.Lock()
	defer rep.Unlock()
	b := newBatch(m, rep)
	w := &engine.WriteSet{}
	if b.state.Status() != logpb.ReplicaState_REPLICA_STATE_REMOVED {
		b.poison(w, reason.Error())
	}
	b.take(w, max(index, b.applied.Index))
	m.deps.Metrics.spoiled()
	return b.commit()
}
