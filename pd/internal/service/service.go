// Package service answers PD's RPCs: values in, values out, no decisions of its
// own.
package service

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync/atomic"
	"time"
	"unicode/utf8"

	"google.golang.org/protobuf/proto"

	"github.com/ridgekv/ridge/pd/internal/members"
	"github.com/ridgekv/ridge/pd/internal/meta"
	"github.com/ridgekv/ridge/pd/internal/operator"
	"github.com/ridgekv/ridge/pd/internal/schedule"
	"github.com/ridgekv/ridge/pd/internal/settings"
	"github.com/ridgekv/ridge/pd/internal/topology"
	"github.com/ridgekv/ridge/pd/internal/tso"
	kvpb "github.com/ridgekv/ridge/proto/ridge/kv/v1"
	metapb "github.com/ridgekv/ridge/proto/ridge/meta/v1"
	pdpb "github.com/ridgekv/ridge/proto/ridge/pd/v1"
)

// Leading is what a PD node has while it leads.
type Leading struct {
	Oracle    *tso.Oracle
	Topology  *topology.Topology
	Operators *operator.Controller
	// Verdicts and Waiting say why nothing is done.
	Verdicts func() []*pdpb.Verdict
	Waiting  func() string
	// Split asks for a manual split; empty when it was admitted.
	Split func(r *topology.Range, key []byte) string
	// Begin starts an operator by hand; empty when it was admitted.
	Begin func(ctx context.Context, o *operator.Operator) string
	// View is the picture planners have.
	View func(now time.Time) topology.View
	// Apply begins to carry a plan out, or tells what is not as the plan found it;
	// Progress tells how the last one goes, StopPlan ends it and says why.
	Apply    func(*schedule.Blueprint) (*pdpb.PlanProgress, []string)
	Progress func() *pdpb.PlanProgress
	StopPlan func(why string)
	// Settings are in force, Given are those this node was started with.
	Settings func() settings.Settings
	Given    settings.Settings
	// Note adds to the journal, Journal lists it, oldest first.
	Note    func(*pdpb.Decision)
	Journal func() []*pdpb.Decision
	// Group changes who PD's nodes are.
	Group *members.Group
	// Done is closed when this node no longer leads.
	Done <-chan struct{}

	streams streams
	stale   staleReplicas
	runs    runs
	plans   plans
	roster  roster
}

// Options configure a Service.
type Options struct {
	Version string
	Logger  *slog.Logger
}

// Service implements pdpb.PDServiceServer.
type Service struct {
	pdpb.UnimplementedPDServiceServer
	pdpb.UnimplementedPDAdminServiceServer
	o       Options
	meta    atomic.Pointer[meta.Meta]
	leading atomic.Pointer[Leading]
}

// New returns a service that answers UNAVAILABLE until Open.
func New(o Options) *Service { return &Service{o: o} }

// Open gives the service this node's member of PD's group; nil takes it away.
func (s *Service) Open(m *meta.Meta) { s.meta.Store(m) }

// Lead makes the service answer as the leader; nil ends that.
func (s *Service) Lead(l *Leading) {
	if l != nil {
		l.streams.init()
		l.stale.init()
	}
	s.leading.Store(l)
}

// refusal is an error on its way into a PDError.
type refusal struct {
	reason  pdpb.PDErrorReason
	message string
}

func (e refusal) Error() string { return e.message }

func refuse(reason pdpb.PDErrorReason, format string, args ...any) error {
	return refusal{reason: reason, message: fmt.Sprintf(format, args...)}
}

func invalid(format string, args ...any) error {
	return refuse(pdpb.PDErrorReason_PD_ERROR_REASON_INVALID_ARGUMENT, format, args...)
}

// fromResult turns a refusal of the state machine into an error.
func fromResult(r *pdpb.CommandResult, err error) (*pdpb.CommandResult, error) {
	if err != nil {
		return nil, err
	}
	if r.GetReason() != pdpb.PDErrorReason_PD_ERROR_REASON_UNSPECIFIED {
		return r, refusal{reason: r.GetReason(), message: r.GetMessage()}
	}
	return r, nil
}

// pdError renders err; nil stays nil.
func (s *Service) pdError(err error) *pdpb.PDError {
	if err == nil {
		return nil
	}
	out := &pdpb.PDError{
		Reason: pdpb.PDErrorReason_PD_ERROR_REASON_UNAVAILABLE, Message: err.Error(),
		Class: kvpb.ErrorClass_ERROR_CLASS_RETRY, BackoffMs: 100,
	}
	if errors.Is(err, tso.ErrNotOwner) {
		err = s.notLeader()
	}
	r, ok := errors.AsType[refusal](err)
	if !ok {
		return out
	}
	out.Reason, out.Message = r.reason, r.message
	switch r.reason {
	case pdpb.PDErrorReason_PD_ERROR_REASON_NOT_LEADER:
		out.Class, out.BackoffMs = kvpb.ErrorClass_ERROR_CLASS_REROUTE, 20
		out.LeaderAddress = s.leaderAddress()
	case pdpb.PDErrorReason_PD_ERROR_REASON_UNAVAILABLE,
		pdpb.PDErrorReason_PD_ERROR_REASON_NOT_BOOTSTRAPPED,
		pdpb.PDErrorReason_PD_ERROR_REASON_STALE_EPOCH:
	default:
		out.Class, out.BackoffMs = kvpb.ErrorClass_ERROR_CLASS_FAIL, 0
	}
	return out
}

func (s *Service) notLeader() error {
	return refuse(pdpb.PDErrorReason_PD_ERROR_REASON_NOT_LEADER, "this PD does not lead")
}

// leaderAddress is a hint at who leads.
func (s *Service) leaderAddress() string {
	m := s.meta.Load()
	if m == nil {
		return ""
	}
	if id := m.Leader(); id != m.MemberID() {
		return m.Member(id).GetGrpcAddress()
	}
	return ""
}

// lead returns what this node leads with, after the identity was checked.
func (s *Service) lead(h *pdpb.RequestHeader) (*meta.Meta, *Leading, error) {
	m, l := s.meta.Load(), s.leading.Load()
	if m == nil {
		return nil, nil, refuse(pdpb.PDErrorReason_PD_ERROR_REASON_UNAVAILABLE, "PD is not open")
	}
	if have := m.ClusterID(); h.GetClusterId() != 0 && have != 0 && h.GetClusterId() != have {
		return nil, nil, refuse(pdpb.PDErrorReason_PD_ERROR_REASON_CLUSTER_MISMATCH,
			"request is for cluster %d, this is cluster %d", h.GetClusterId(), have)
	}
	if l == nil {
		return nil, nil, s.notLeader()
	}
	return m, l, nil
}

// confirmed is lead, for calls whose answer must not come from a deposed
// leader.
func (s *Service) confirmed(
	ctx context.Context, h *pdpb.RequestHeader,
) (*meta.Meta, *Leading, error) {
	m, l, err := s.lead(h)
	if err == nil {
		err = l.Oracle.Confirm(ctx)
	}
	return m, l, err
}

// Members lists PD's nodes.
func (s *Service) Members(context.Context, *pdpb.MembersRequest) (*pdpb.MembersResponse, error) {
	out := &pdpb.MembersResponse{}
	m := s.meta.Load()
	if m == nil {
		out.Error = s.pdError(refuse(pdpb.PDErrorReason_PD_ERROR_REASON_UNAVAILABLE, "PD is not open"))
		return out, nil
	}
	out.ClusterId, out.LeaderId = m.ClusterID(), m.Leader()
	// Read before the list: a list is never called newer than it is.
	out.Revision = m.MemberRevision()
	out.Members, out.LastMemberId = m.Members()
	return out, nil
}

// Status describes this node and, on the leader, the cluster.
func (s *Service) Status(context.Context, *pdpb.StatusRequest) (*pdpb.StatusResponse, error) {
	out := &pdpb.StatusResponse{Version: s.o.Version}
	m := s.meta.Load()
	if m == nil {
		out.Error = s.pdError(refuse(pdpb.PDErrorReason_PD_ERROR_REASON_UNAVAILABLE, "PD is not open"))
		return out, nil
	}
	first, _ := m.FirstRange()
	out.MemberId = m.MemberID()
	out.ClusterId, out.LeaderId, out.Bootstrapped = m.ClusterID(), m.Leader(), first != nil
	out.Config = m.Config()
	out.RangeCount, out.StoreCount = uint64(len(m.Ranges())), uint64(len(m.Stores()))
	if l := s.leading.Load(); l != nil {
		out.OperatorCount = uint64(len(l.Operators.List(time.Now())))
		out.Timestamp = uint64(l.Oracle.Bound())
	}
	return out, nil
}

// AllocateIds hands out ids that were never given before.
func (s *Service) AllocateIds(
	ctx context.Context, req *pdpb.AllocateIdsRequest,
) (*pdpb.AllocateIdsResponse, error) {
	first, err := s.allocate(ctx, req.GetHeader(), req.GetCount())
	return &pdpb.AllocateIdsResponse{Error: s.pdError(err), First: first}, nil
}

func (s *Service) allocate(
	ctx context.Context, h *pdpb.RequestHeader, n uint32,
) (uint64, error) {
	m, _, err := s.lead(h)
	if err != nil {
		return 0, err
	}
	r, err := fromResult(m.Propose(ctx, &pdpb.Command{Command: &pdpb.Command_AllocateIds{
		AllocateIds: &pdpb.AllocateIDs{Count: n},
	}}))
	return r.GetFirstId(), err
}

// ListOperators shows what is in flight and why other things are not.
func (s *Service) ListOperators(
	_ context.Context, req *pdpb.ListOperatorsRequest,
) (*pdpb.ListOperatorsResponse, error) {
	_, l, err := s.lead(req.GetHeader())
	if err != nil {
		return &pdpb.ListOperatorsResponse{Error: s.pdError(err)}, nil
	}
	return &pdpb.ListOperatorsResponse{
		Operators: l.Operators.List(time.Now()), Verdicts: l.Verdicts(), Waiting: l.Waiting(),
	}, nil
}

// checkStore refuses a store description that could not be stored.
func checkStore(st *metapb.Store) error {
	switch {
	case st == nil:
		return invalid("store is missing")
	case proto.Size(st) > 64<<10:
		return invalid("store description of %d bytes", proto.Size(st))
	case !utf8.ValidString(st.GetGrpcAddress()) || !utf8.ValidString(st.GetRaftAddress()):
		return invalid("addresses are not text")
	}
	return nil
}
