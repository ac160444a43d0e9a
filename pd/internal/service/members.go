package service

import (
	"context"
	"errors"
	"fmt"
	"unicode/utf8"

	"github.com/ridgekv/ridge/pd/internal/members"
	pdpb "github.com/ridgekv/ridge/proto/ridge/pd/v1"
)

// maxAddressBytes bounds the address of a PD node.
const maxAddressBytes = 512

// JoinMember gives a new PD node its id.
func (s *Service) JoinMember(
	ctx context.Context, req *pdpb.JoinMemberRequest,
) (*pdpb.JoinMemberResponse, error) {
	m, l, err := s.confirmed(ctx, req.GetHeader())
	for _, a := range []string{req.GetGrpcAddress(), req.GetRaftAddress()} {
		if err == nil && (len(a) > maxAddressBytes || !utf8.ValidString(a)) {
			err = invalid("the address of a PD node is text of at most %d bytes", maxAddressBytes)
		}
	}
	if err != nil {
		return &pdpb.JoinMemberResponse{Error: s.pdError(err)}, nil
	}
	self, err := l.Group.Admit(ctx, &pdpb.AdmitMember{
		DirectoryId: req.GetDirectoryId(), GrpcAddress: req.GetGrpcAddress(),
		RaftAddress: req.GetRaftAddress(),
	})
	if err != nil {
		return &pdpb.JoinMemberResponse{Error: s.pdError(memberError(err))}, nil
	}
	list, _ := m.Members()
	l.admin(fmt.Sprintf("PD node %d at %s joins", self.GetMemberId(), self.GetGrpcAddress()))
	return &pdpb.JoinMemberResponse{
		ClusterId: m.ClusterID(), MemberId: self.GetMemberId(), DeploymentId: m.DeploymentID(),
		Members: list, Warnings: members.Warnings(len(list)),
	}, nil
}

// RemoveMember takes a PD node out.
func (s *Service) RemoveMember(
	ctx context.Context, req *pdpb.RemoveMemberRequest,
) (*pdpb.RemoveMemberResponse, error) {
	m, l, err := s.confirmed(ctx, req.GetHeader())
	if err != nil {
		return &pdpb.RemoveMemberResponse{Error: s.pdError(err)}, nil
	}
	there := m.Member(req.GetMemberId())
	err = l.Group.Remove(ctx, req.GetMemberId())
	if errors.Is(err, members.ErrHandedAway) {
		err = s.notLeader()
	}
	if err != nil {
		return &pdpb.RemoveMemberResponse{Error: s.pdError(memberError(err))}, nil
	}
	if there != nil {
		l.admin(fmt.Sprintf("PD node %d at %s is removed", there.GetMemberId(), there.GetGrpcAddress()))
	}
	list, _ := m.Members()
	return &pdpb.RemoveMemberResponse{Members: list, Warnings: members.Warnings(len(list))}, nil
}

// memberError turns a refusal of the group into one of the service.
func memberError(err error) error {
	if r, ok := errors.AsType[members.Refusal](err); ok {
		return refusal{reason: r.Reason, message: r.Message}
	}
	return err
}
