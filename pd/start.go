package pd

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/ridgekv/ridge/pd/internal/members"
	"github.com/ridgekv/ridge/pd/internal/meta"
	pdpb "github.com/ridgekv/ridge/proto/ridge/pd/v1"
)

const (
	// askOthers bounds the look at other PD nodes before a start. It never keeps a
	// node from starting that the others do not contradict.
	askOthers = time.Second
	// askAgain is the pause between two attempts to join.
	askAgain = 500 * time.Millisecond
)

// ErrRemoved is why Run returns on a node that was taken out of its cluster. The
// directory is of no use any more.
var ErrRemoved = members.ErrRemoved

// identify says what this node is: what its directory says, else what it is
// started for. Nothing of Raft runs yet.
func (s *Server) identify(ctx context.Context) (*members.Identity, error) {
	id, err := members.Load(s.o.Dir)
	if err != nil {
		return nil, err
	}
	log, err := members.HasLog(s.o.Dir)
	if err != nil {
		return nil, err
	}
	switch {
	case id != nil:
		err = s.checkIdentity(ctx, id, log)
	case len(s.o.Join) == 0:
		id = s.founder()
		if !log {
			err = s.checkFounder(ctx)
		}
	case log:
		err = fmt.Errorf("%s holds the data of a PD node that did not join: start it without "+
			"--join, or join with an empty directory", s.o.Dir)
	default:
		self := s.o.self()
		id = &members.Identity{
			DirectoryID: members.NewDirectoryID(), Joined: true,
			GRPCAddress: self.GRPCAddress, RaftAddress: self.RaftAddress,
		}
		err = id.Save(s.o.Dir)
	}
	if err == nil && id.MemberID == 0 {
		err = s.join(ctx, id)
	}
	if err != nil {
		return nil, err
	}
	return id, nil
}

// founder is the identity of a node that begins a group with others, or began it
// before nodes had identities.
func (s *Server) founder() *members.Identity {
	self := s.o.self()
	id := &members.Identity{
		DirectoryID: members.NewDirectoryID(), MemberID: self.ID,
		GRPCAddress: self.GRPCAddress, RaftAddress: self.RaftAddress,
		Members: map[uint64]string{},
	}
	for _, m := range s.o.Members {
		id.Members[m.ID] = m.RaftAddress
		if m.ID != self.ID {
			id.Seeds = append(id.Seeds, m.GRPCAddress)
		}
	}
	return id
}

// checkFounder refuses to begin anew what the others have begun: an empty
// directory in the place of one that had a vote would vote a second time. A
// node that just starts later than the others is not known to them by its
// directory.
func (s *Server) checkFounder(ctx context.Context) error {
	for _, a := range []string{s.o.self().GRPCAddress, s.o.self().RaftAddress} {
		if members.Wildcard(a) {
			return fmt.Errorf("%s is what others would dial, for ever: name the host with --advertise "+
				"and --raft-advertise", a)
		}
	}
	var others []string
	for _, m := range s.o.Members {
		if m.ID != s.o.self().ID {
			others = append(others, m.GRPCAddress)
		}
	}
	if s.o.Peers == nil || len(others) == 0 {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, askOthers)
	defer cancel()
	r, err := s.o.Peers.Members(ctx, others)
	if err != nil || r.GetClusterId() == 0 {
		return nil
	}
	id := s.o.self().ID
	m := members.Find(r, id)
	switch {
	case members.Gone(r, id):
		return fmt.Errorf("PD node %d was removed from cluster %d, or never belonged to it: start "+
			"with --join to become a new node of it", id, r.GetClusterId())
	case m.GetDirectoryId() != 0:
		return fmt.Errorf("PD node %d of cluster %d has had another directory than %s, which is "+
			"empty: bring the old one back, or remove the node (ridge pd remove %d) and start "+
			"with --join", id, r.GetClusterId(), s.o.Dir, id)
	}
	return nil
}

// checkIdentity refuses a directory that is not what this start is meant for.
func (s *Server) checkIdentity(ctx context.Context, id *members.Identity, log bool) error {
	self := s.o.self()
	switch {
	case id.Removed:
		return members.RemovedError(id, s.o.Dir)
	case id.Started && !log:
		return fmt.Errorf("%s belongs to PD node %d, but its Raft log is gone: bring it back, or "+
			"remove the node (ridge pd remove %d) and join with an empty directory",
			s.o.Dir, id.MemberID, id.MemberID)
	case s.o.MemberID != 0 && id.MemberID != 0 && s.o.MemberID != id.MemberID:
		return fmt.Errorf("%s belongs to PD node %d, not to %d", s.o.Dir, id.MemberID, s.o.MemberID)
	case self.RaftAddress != id.RaftAddress:
		return fmt.Errorf("%s belongs to a PD node with the Raft address %s, not %s: a node keeps "+
			"its own; for another one join a new node and remove this", s.o.Dir, id.RaftAddress,
			self.RaftAddress)
	case len(s.o.Join) > 0 && !id.Joined:
		return fmt.Errorf("%s belongs to PD node %d, which began cluster %d and did not join it: "+
			"start it without --join, or join another cluster with an empty directory",
			s.o.Dir, id.MemberID, id.ClusterID)
	case len(s.o.Join) == 0 && id.MemberID == 0:
		return fmt.Errorf("%s has begun to join a cluster and knows none yet: start it with --join",
			s.o.Dir)
	}
	if len(s.o.Join) == 0 || id.ClusterID == 0 || s.o.Peers == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, askOthers)
	defer cancel()
	r, err := s.o.Peers.Members(ctx, s.o.Join)
	if err == nil && r.GetClusterId() != 0 && r.GetClusterId() != id.ClusterID {
		return fmt.Errorf("%s belongs to PD node %d of cluster %d, --join names cluster %d: correct "+
			"it, or join with an empty directory", s.o.Dir, id.MemberID, id.ClusterID, r.GetClusterId())
	}
	return nil
}

// join asks for an id until it has one, is refused, or ctx ends. The directory
// id was kept before, so whoever asks again gets the same.
func (s *Server) join(ctx context.Context, id *members.Identity) error {
	request := &pdpb.JoinMemberRequest{
		DirectoryId: id.DirectoryID, GrpcAddress: s.o.self().GRPCAddress, RaftAddress: id.RaftAddress,
	}
	for {
		r, err := s.o.Peers.Join(ctx, s.o.Join, request)
		if err == nil {
			return s.admitted(id, r)
		}
		if ctx.Err() != nil || errors.Is(err, ErrJoinRefused) {
			return fmt.Errorf("join: %w", err)
		}
		s.o.Logger.Warn("no PD has admitted this node yet", "err", err)
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(askAgain):
		}
	}
}

func (s *Server) admitted(id *members.Identity, r *pdpb.JoinMemberResponse) error {
	if r.GetMemberId() == 0 || r.GetDeploymentId() == 0 || r.GetClusterId() == 0 {
		return errors.New("join: the answer names no node and no cluster: is it a newer version?")
	}
	id.MemberID, id.ClusterID = r.GetMemberId(), r.GetClusterId()
	id.DeploymentID, id.GRPCAddress = r.GetDeploymentId(), s.o.self().GRPCAddress
	for _, m := range r.GetMembers() {
		if m.GetMemberId() != id.MemberID {
			id.Seeds = append(id.Seeds, m.GetGrpcAddress())
		}
	}
	if err := id.Save(s.o.Dir); err != nil {
		return err
	}
	s.o.Logger.Info("this PD node was admitted", "member", id.MemberID, "cluster", id.ClusterID)
	for _, w := range r.GetWarnings() {
		s.o.Logger.Warn("PD nodes", "warning", w)
	}
	return nil
}

// open starts this node's member of the group. A node that joined has kept its
// identity before; one that begins the group keeps it as soon as Raft has taken
// the directory for what it says.
func (s *Server) open(id *members.Identity) (*meta.Meta, error) {
	s.o.MemberID = id.MemberID
	o := meta.Options{
		Dir: s.o.Dir, MemberID: id.MemberID, Members: maps.Clone(id.Members),
		RaftAddress: id.RaftAddress, DeploymentID: id.DeploymentID,
		ListenAddress: s.o.RaftListenAddress, Tick: s.o.Tick, Logger: s.o.Logger,
	}
	if s.o.TLS != nil {
		o.TLS = &meta.TLSFiles{CA: s.o.TLS.CA, Cert: s.o.TLS.Cert, Key: s.o.TLS.Key}
	}
	m, err := meta.Open(o)
	if err != nil {
		return nil, err
	}
	if !id.Started {
		id.Started = true
		if err := id.Save(s.o.Dir); err != nil {
			m.Close()
			return nil, err
		}
	}
	return m, nil
}

// founders are all the nodes that the group began with, whatever this start was
// told: an id that is not listed would be given again. The gRPC address of one
// that it was not told of is empty until that node tells it.
func (s *Server) founders(id *members.Identity) []*pdpb.Member {
	told := map[string]string{}
	for _, m := range s.o.Members {
		told[m.RaftAddress] = m.GRPCAddress
	}
	var out []*pdpb.Member
	for _, n := range slices.Sorted(maps.Keys(id.Members)) {
		a := id.Members[n]
		out = append(out, &pdpb.Member{MemberId: n, GrpcAddress: told[a], RaftAddress: a})
	}
	return out
}
