package meta

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/lni/dragonboat/v4"
	"google.golang.org/protobuf/proto"

	pdpb "github.com/ridgekv/ridge/proto/ridge/pd/v1"
)

// MaxMembers bounds PD's group: each further node costs every timestamp more
// and makes nothing safer.
const MaxMembers = 7

// seedMembers names the nodes that the group began with, once.
func (s *state) seedMembers(c *pdpb.SeedMembers) *pdpb.CommandResult {
	if s.lastMemberID != 0 {
		return &pdpb.CommandResult{}
	}
	for _, m := range c.GetMembers() {
		s.setMember(proto.CloneOf(m))
		s.lastMemberID = max(s.lastMemberID, m.GetMemberId())
	}
	return &pdpb.CommandResult{}
}

// admitMember gives a new node an id that was never given, or tells the one it
// was given.
func (s *state) admitMember(c *pdpb.AdmitMember) *pdpb.CommandResult {
	if c.GetDirectoryId() == 0 || c.GetGrpcAddress() == "" || c.GetRaftAddress() == "" ||
		c.GetGrpcAddress() == c.GetRaftAddress() {
		return refuse(pdpb.PDErrorReason_PD_ERROR_REASON_INVALID_ARGUMENT,
			"a PD node needs a directory id, a gRPC address and another Raft address")
	}
	if s.lastMemberID == 0 {
		return refuse(pdpb.PDErrorReason_PD_ERROR_REASON_UNAVAILABLE, "the group is not named yet")
	}
	for _, id := range slices.Sorted(maps.Keys(s.members)) {
		m := s.members[id]
		if m.GetDirectoryId() == c.GetDirectoryId() {
			if m.GetGrpcAddress() == c.GetGrpcAddress() && m.GetRaftAddress() == c.GetRaftAddress() {
				return &pdpb.CommandResult{Member: m}
			}
			return refuse(pdpb.PDErrorReason_PD_ERROR_REASON_REFUSED, fmt.Sprintf(
				"this directory has begun to join as PD node %d at %s / %s: start it with these "+
					"addresses, or remove PD node %d and begin with an empty directory",
				id, m.GetGrpcAddress(), m.GetRaftAddress(), id))
		}
	}
	if other := s.memberAt(0, c.GetGrpcAddress(), c.GetRaftAddress()); other != nil {
		return refuseAddress(other)
	}
	if len(s.members) >= MaxMembers {
		return refuse(pdpb.PDErrorReason_PD_ERROR_REASON_REFUSED, fmt.Sprintf(
			"%d PD nodes are the most there can be: remove one first", MaxMembers))
	}
	s.lastMemberID++
	m := &pdpb.Member{
		MemberId: s.lastMemberID, GrpcAddress: c.GetGrpcAddress(),
		RaftAddress: c.GetRaftAddress(), DirectoryId: c.GetDirectoryId(), Joining: true,
	}
	s.setMember(m)
	return &pdpb.CommandResult{Member: m}
}

func refuseAddress(other *pdpb.Member) *pdpb.CommandResult {
	return refuse(pdpb.PDErrorReason_PD_ERROR_REASON_ADDRESS_IN_USE, fmt.Sprintf(
		"PD node %d is registered at %s / %s; if it is lost, remove it: ridge pd remove %d",
		other.GetMemberId(), other.GetGrpcAddress(), other.GetRaftAddress(), other.GetMemberId()))
}

// memberAt finds a member other than id that has one of the addresses.
func (s *state) memberAt(id uint64, addresses ...string) *pdpb.Member {
	for _, other := range slices.Sorted(maps.Keys(s.members)) {
		m := s.members[other]
		if other != id && (slices.Contains(addresses, m.GetGrpcAddress()) ||
			slices.Contains(addresses, m.GetRaftAddress())) {
			return m
		}
	}
	return nil
}

// putMember notes what is new about a member. A member is one directory: what
// another one says in its name is refused.
func (s *state) putMember(c *pdpb.PutMember) *pdpb.CommandResult {
	old := s.members[c.GetMemberId()]
	if old == nil {
		return s.noMember(c.GetMemberId())
	}
	m := proto.CloneOf(old)
	if d := c.GetDirectoryId(); d != 0 {
		if m.GetDirectoryId() != 0 && m.GetDirectoryId() != d {
			return refuse(pdpb.PDErrorReason_PD_ERROR_REASON_REFUSED, fmt.Sprintf(
				"PD node %d is another directory", c.GetMemberId()))
		}
		m.DirectoryId = d
	}
	if a := c.GetGrpcAddress(); a != "" && a != m.GetGrpcAddress() {
		if other := s.memberAt(c.GetMemberId(), a); other != nil {
			return refuseAddress(other)
		}
		m.GrpcAddress = a
	}
	m.Joining = m.GetJoining() && !c.GetVoter()
	if !proto.Equal(m, old) {
		s.setMember(m)
	}
	return &pdpb.CommandResult{Member: m}
}

func (s *state) setMember(m *pdpb.Member) {
	s.members[m.GetMemberId()] = m
	s.memberRevision++
}

func (s *state) dropMember(c *pdpb.DropMember) *pdpb.CommandResult {
	if s.members[c.GetMemberId()] != nil {
		delete(s.members, c.GetMemberId())
		s.memberRevision++
	}
	return &pdpb.CommandResult{}
}

func (s *state) noMember(id uint64) *pdpb.CommandResult {
	if id != 0 && id <= s.lastMemberID {
		return refuse(pdpb.PDErrorReason_PD_ERROR_REASON_MEMBER_GONE,
			fmt.Sprintf("PD node %d was removed", id))
	}
	return refuse(pdpb.PDErrorReason_PD_ERROR_REASON_NOT_FOUND, fmt.Sprintf("no PD node %d", id))
}

func (s *state) memberList() []*pdpb.Member {
	out := make([]*pdpb.Member, 0, len(s.members))
	for _, id := range slices.Sorted(maps.Keys(s.members)) {
		out = append(out, s.members[id])
	}
	return out
}

// Members lists PD's nodes, by id, and the last id that was given; nothing
// before the first leader named them. They must not be changed.
func (m *Meta) Members() (members []*pdpb.Member, lastID uint64) {
	m.machine.mu.RLock()
	defer m.machine.mu.RUnlock()
	return m.machine.mu.state.memberList(), m.machine.mu.state.lastMemberID
}

// MemberRevision counts the changes of the list.
func (m *Meta) MemberRevision() uint64 {
	m.machine.mu.RLock()
	defer m.machine.mu.RUnlock()
	return m.machine.mu.state.memberRevision
}

// Member is one of PD's nodes; nil if it is none.
func (m *Meta) Member(id uint64) *pdpb.Member {
	m.machine.mu.RLock()
	defer m.machine.mu.RUnlock()
	return m.machine.mu.state.members[id]
}

// MemberID is the id of this member.
func (m *Meta) MemberID() uint64 { return m.o.MemberID }

// DeploymentID is what a member that joins must be opened with.
func (m *Meta) DeploymentID() uint64 { return m.o.DeploymentID }

// Membership is who the group is, as Raft has it.
type Membership struct {
	// Config is the index of the last change; a change names it.
	Config uint64
	// Voters and Learners have their Raft addresses by id.
	Voters, Learners map[uint64]string
	removed          map[uint64]struct{}
}

// Removed reports whether id was taken out: Raft never takes it in again.
func (ms Membership) Removed(id uint64) bool {
	_, ok := ms.removed[id]
	return ok
}

// Membership asks the group, with a quorum: whatever was changed before the
// call is seen.
func (m *Meta) Membership(ctx context.Context) (Membership, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	for {
		ms, err := m.host.SyncGetShardMembership(ctx, shardID)
		if err == nil {
			return Membership{
				Config: ms.ConfigChangeID, Voters: ms.Nodes, Learners: ms.NonVotings,
				removed: ms.Removed,
			}, nil
		}
		if !retriable(err) || !pause(ctx) {
			return Membership{}, fmt.Errorf("meta: membership: %w (%w)", ErrUnavailable, err)
		}
	}
}

// ErrMoved means that the members were changed since the caller looked.
var ErrMoved = errors.New("the members were changed meanwhile")

// AddLearner takes a member in that has no vote.
func (m *Meta) AddLearner(ctx context.Context, id uint64, address string, config uint64) error {
	return m.change(ctx, "add learner", id, func(ctx context.Context) error {
		return m.host.SyncRequestAddNonVoting(ctx, shardID, id, address, config)
	})
}

// Promote gives a learner its vote.
func (m *Meta) Promote(ctx context.Context, id uint64, address string, config uint64) error {
	return m.change(ctx, "promote", id, func(ctx context.Context) error {
		return m.host.SyncRequestAddReplica(ctx, shardID, id, address, config)
	})
}

// Remove takes a member out, for ever.
func (m *Meta) Remove(ctx context.Context, id, config uint64) error {
	return m.change(ctx, "remove", id, func(ctx context.Context) error {
		return m.host.SyncRequestDeleteReplica(ctx, shardID, id, config)
	})
}

// change asks for one change. After any error the caller looks again: a change
// that was answered with one may have been made.
func (m *Meta) change(
	ctx context.Context, op string, id uint64, ask func(context.Context) error,
) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	err := ask(ctx)
	switch {
	case err == nil:
		m.o.Logger.Info("PD members changed", "op", op, "member", id)
		return nil
	case errors.Is(err, dragonboat.ErrRejected):
		return fmt.Errorf("meta: %s %d: %w", op, id, ErrMoved)
	}
	return fmt.Errorf("meta: %s %d: %w (%w)", op, id, ErrUnavailable, err)
}

// Expelled reports that this member has applied its own removal.
func (m *Meta) Expelled() bool {
	_, _, _, err := m.host.GetLeaderID(shardID)
	return errors.Is(err, dragonboat.ErrShardNotFound)
}

// Settle writes the state to disk, so that a member that has joined knows at
// its next start at once that it has a vote: until it has read that in its log
// it would not stand for election.
func (m *Meta) Settle(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	_, err := m.host.SyncRequestSnapshot(ctx, shardID, dragonboat.SnapshotOption{})
	if err != nil && !errors.Is(err, dragonboat.ErrRejected) {
		return fmt.Errorf("meta: settle: %w", err)
	}
	return nil
}
