package service

import (
	"context"
	"errors"
	"strings"
	"sync"

	"golang.org/x/sync/semaphore"

	"github.com/ridgekv/ridge/proto/errs"
	logpb "github.com/ridgekv/ridge/proto/ridge/log/v1"
	metapb "github.com/ridgekv/ridge/proto/ridge/meta/v1"
	storepb "github.com/ridgekv/ridge/proto/ridge/store/v1"
	"github.com/ridgekv/ridge/storenode/internal/catalog"
	"github.com/ridgekv/ridge/storenode/internal/engine"
	"github.com/ridgekv/ridge/storenode/internal/raft"
)

// errMoving: the replica went on while its checksum was computed.
var errMoving = errors.New("service: the replica kept changing")

// Hand is PD's hand on this store, as far as other stores ask for it.
type Hand interface {
	// Joining reports whether the replica is not yet a full copy.
	Joining(rangeID uint64) bool
	// Size is the last known size of a range.
	Size(rangeID uint64) uint64
}

// Children is told about births elsewhere; raft.Host is.
type Children interface {
	ChildStarted(rangeID, storeID uint64)
}

// Store answers StoreService on an open store.
type Store struct {
	storepb.UnimplementedStoreServiceServer

	ClusterID uint64
	Self      *metapb.Store
	Engine    *engine.Engine
	Catalog   *catalog.Catalog
	Leaders   Leaders
	Leases    Leases
	Children  Children
	Hand      Hand

	sums checksumTurns
}

// checksumTurns bounds how many ranges are read through at a time for those who
// ask for checksums; the others wait.
type checksumTurns struct {
	once  sync.Once
	turns *semaphore.Weighted
}

// maxChecksums leaves the disk to those who read and write.
const maxChecksums = 2

func (c *checksumTurns) take(ctx context.Context) (release func(), err error) {
	c.once.Do(func() { c.turns = semaphore.NewWeighted(maxChecksums) })
	if err := c.turns.Acquire(ctx, 1); err != nil {
		return nil, err
	}
	return func() { c.turns.Release(1) }, nil
}

// Status implements StoreService.
func (s *Store) Status(
	context.Context, *storepb.StatusRequest,
) (*storepb.StatusResponse, error) {
	disk := s.Engine.Disk()
	out := &storepb.StatusResponse{
		ClusterId: s.ClusterID, Store: s.Self,
		VisibleSeq: uint64(s.Engine.Visible()), FlushedSeq: uint64(s.Engine.Flushed()),
		GcFloor:       uint64(s.Engine.Floor()),
		GarbageSlices: uint64(len(s.Engine.Garbage())),
		CapacityBytes: disk.CapacityBytes, AvailableBytes: disk.AvailableBytes,
	}
	for _, r := range s.Catalog.Replicas() {
		out.RangeCount++
		if s.Leaders.Leader(r.RangeID()).Self {
			out.LeaderCount++
		}
	}
	for _, l := range s.Engine.Levels() {
		out.Levels = append(out.Levels, &storepb.LevelStatus{
			Level: uint32(l.Number), Tables: uint64(l.Tables), SizeBytes: l.SizeBytes,
		})
	}
	return out, nil
}

// ListReplicas implements StoreService.
func (s *Store) ListReplicas(
	_ context.Context, in *storepb.ListReplicasRequest,
) (*storepb.ListReplicasResponse, error) {
	out := &storepb.ListReplicasResponse{}
	if id := in.GetRangeId(); id != 0 {
		if r, ok := s.Catalog.Replica(id); ok {
			out.Replicas = append(out.Replicas, s.replica(r))
		}
		return out, nil
	}
	for _, r := range s.Catalog.Replicas() {
		out.Replicas = append(out.Replicas, s.replica(r))
	}
	return out, nil
}

func (s *Store) replica(r *catalog.Replica) *storepb.ReplicaStatus {
	state, applied := r.Both()
	members, config, _ := s.Leaders.Membership(r.RangeID())
	out := &storepb.ReplicaStatus{
		Range: &metapb.Range{
			RangeId: r.RangeID(), Span: state.Span().Proto(), Replicas: members,
			Epoch: &metapb.Epoch{Config: config, Span: state.SpanEpoch()},
		},
		ReplicaId: state.ReplicaID(), Role: roleOf(members, state),
		State:        stateName(state, s.Hand.Joining(r.RangeID())),
		Leader:       leaderProto(s.Leaders.Leader(r.RangeID())),
		AppliedIndex: applied.Index, Tenure: state.Tenure(), LastNumber: applied.Number,
		Leaseholder: s.Leases.Leaseholder(r.RangeID()),
		ReadBound:   uint64(state.ReadBound()), MaxCommitTs: uint64(applied.MaxCommitTS),
		SizeBytes: s.Hand.Size(r.RangeID()), PoisonReason: state.PB().GetPoisonReason(),
		SliceCount: uint32(len(state.Slices())),
	}
	for _, u := range state.Unborn() {
		out.UnbornChildren = append(out.UnbornChildren, u.GetRangeId())
	}
	return out
}

func roleOf(members []*metapb.Replica, s *catalog.State) metapb.Role {
	for _, p := range members {
		if p.GetReplicaId() == s.ReplicaID() {
			return p.GetRole()
		}
	}
	return s.Role()
}

// stateName is how people, and leaders of learners, read the state.
func stateName(s *catalog.State, joining bool) string {
	switch {
	case s.Halted() != "":
		return "halted"
	case s.Status() == logpb.ReplicaState_REPLICA_STATE_NORMAL && joining:
		return "joining"
	}
	return strings.ToLower(strings.TrimPrefix(s.Status().String(), "REPLICA_STATE_"))
}

func leaderProto(l raft.Leader) *metapb.Leader {
	return &metapb.Leader{ReplicaId: l.ReplicaID, StoreId: l.StoreID, Term: l.Term}
}

// ChildStarted implements StoreService.
func (s *Store) ChildStarted(
	_ context.Context, in *storepb.ChildStartedRequest,
) (*storepb.ChildStartedResponse, error) {
	if in.GetClusterId() != s.ClusterID {
		return nil, errs.ClusterMismatch{Want: in.GetClusterId(), Have: s.ClusterID}
	}
	s.Children.ChildStarted(in.GetRangeId(), in.GetStoreId())
	return &storepb.ChildStartedResponse{}, nil
}

// Checksum implements StoreService. The sum belongs to applied_index exactly:
// it is computed again when the replica moved on meanwhile.
func (s *Store) Checksum(
	ctx context.Context, in *storepb.ChecksumRequest,
) (*storepb.ChecksumResponse, error) {
	const tries = 5
	r, ok := s.Catalog.Replica(in.GetRangeId())
	if !ok {
		return nil, errs.RangeNotFound{RangeID: in.GetRangeId()}
	}
	err := r.WaitApplied(ctx, func(a catalog.Applied, st *catalog.State) bool {
		return a.Index >= in.GetMinAppliedIndex() && st.Serving()
	})
	if err != nil {
		return nil, err
	}
	release, err := s.sums.take(ctx)
	if err != nil {
		return nil, err
	}
	defer release()
	for range tries {
		out, err := s.checksumOnce(ctx, r)
		if !errors.Is(err, errMoving) {
			return out, err
		}
	}
	return nil, errs.Busy{Reason: errMoving.Error()}
}

func (s *Store) checksumOnce(
	ctx context.Context, r *catalog.Replica,
) (*storepb.ChecksumResponse, error) {
	state, applied := r.Both()
	view, release := s.Engine.Pin()
	defer release()
	if _, now := r.Both(); now.Index != applied.Index {
		return nil, errMoving
	}
	sum, rows, bytes, err := s.Engine.Checksum(ctx, view, state.Slices(), state.Span())
	if err != nil {
		return nil, err
	}
	// A commit becomes visible just before the catalog tells of it. What was
	// in the view without being told of has been told of by now.
	if now := s.Engine.View(); now.Seq() != view.Seq() {
		if _, later := r.Both(); later.Index != applied.Index {
			return nil, errMoving
		}
	}
	return &storepb.ChecksumResponse{
		RangeId: r.RangeID(), ReplicaId: state.ReplicaID(), AppliedIndex: applied.Index,
		Checksum: sum, KeyCount: rows, SizeBytes: bytes, SpanEpoch: state.SpanEpoch(),
	}, nil
}
