package service

import (
	"context"
	"time"

	"github.com/ridgekv/ridge/pd/internal/operator"
	"github.com/ridgekv/ridge/pd/internal/schedule"
	pdpb "github.com/ridgekv/ridge/proto/ridge/pd/v1"
)

// refused turns why something cannot be done into an error.
func refused(r *schedule.Refusal) error {
	reason := pdpb.PDErrorReason_PD_ERROR_REASON_INVALID_ARGUMENT
	switch r.Kind {
	case schedule.RefusedUnknown:
		reason = pdpb.PDErrorReason_PD_ERROR_REASON_NOT_FOUND
	case schedule.RefusedState:
		reason = pdpb.PDErrorReason_PD_ERROR_REASON_REFUSED
	}
	return refuse(reason, "%s", r.Error())
}

// CancelOperator ends a change in flight.
func (s *Service) CancelOperator(
	ctx context.Context, req *pdpb.CancelOperatorRequest,
) (*pdpb.CancelOperatorResponse, error) {
	_, l, err := s.confirmed(ctx, req.GetHeader())
	if err != nil {
		return &pdpb.CancelOperatorResponse{Error: s.pdError(err)}, nil
	}
	o := l.Operators.Cancel(req.GetOperatorId())
	if o == nil {
		err = refuse(pdpb.PDErrorReason_PD_ERROR_REASON_NOT_FOUND,
			"no operator %d is in flight: it may have ended; see `ridge operator list`",
			req.GetOperatorId())
		return &pdpb.CancelOperatorResponse{Error: s.pdError(err)}, nil
	}
	l.Note(&pdpb.Decision{
		Kind: pdpb.DecisionKind_DECISION_KIND_CANCELLED, OperatorId: o.ID,
		RangeIds: []uint64{o.RangeID}, What: o.What(), Why: "cancelled by hand; " + o.Reason,
	})
	return &pdpb.CancelOperatorResponse{Operator: o.Info(time.Now())}, nil
}

// MoveReplica moves a replica from store to store.
func (s *Service) MoveReplica(
	ctx context.Context, req *pdpb.MoveReplicaRequest,
) (*pdpb.MoveReplicaResponse, error) {
	_, l, err := s.confirmed(ctx, req.GetHeader())
	var info *pdpb.OperatorInfo
	if err == nil {
		op, no := schedule.MoveReplica(l.View(time.Now()), l.Topology.Range(req.GetRangeId()),
			schedule.ManualMove{
				RangeID: req.GetRangeId(), From: req.GetFromStoreId(), To: req.GetToStoreId(),
				Force: req.GetForce(),
			})
		info, err = l.begin(ctx, op, no)
	}
	return &pdpb.MoveReplicaResponse{Error: s.pdError(err), Operator: info}, nil
}

// MoveLeader moves the leadership of a range to a store.
func (s *Service) MoveLeader(
	ctx context.Context, req *pdpb.MoveLeaderRequest,
) (*pdpb.MoveLeaderResponse, error) {
	_, l, err := s.confirmed(ctx, req.GetHeader())
	var info *pdpb.OperatorInfo
	if err == nil {
		op, no := schedule.MoveLeader(l.View(time.Now()), l.Topology.Range(req.GetRangeId()),
			req.GetRangeId(), req.GetStoreId())
		if op == nil && no == nil {
			return &pdpb.MoveLeaderResponse{}, nil // it leads already
		}
		info, err = l.begin(ctx, op, no)
	}
	return &pdpb.MoveLeaderResponse{Error: s.pdError(err), Operator: info}, nil
}

// begin starts an operator by hand, unless it is refused.
func (l *Leading) begin(
	ctx context.Context, op *operator.Operator, no *schedule.Refusal,
) (*pdpb.OperatorInfo, error) {
	if no != nil {
		return nil, refused(no)
	}
	if why := l.Begin(ctx, op); why != "" {
		return nil, refuse(pdpb.PDErrorReason_PD_ERROR_REASON_REFUSED,
			"range %d: %s: wait, or see `ridge operator list`", op.RangeID, why)
	}
	return op.Info(time.Now()), nil
}
