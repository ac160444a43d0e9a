package members

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"github.com/ridgekv/ridge/pd/internal/meta"
	pdpb "github.com/ridgekv/ridge/proto/ridge/pd/v1"
)

const (
	// attendEvery is how often a node looks at its own membership.
	attendEvery = 200 * time.Millisecond
	// leaderless is how long a node hears of no leader before it asks the others if
	// it is one of them, and how long it waits between two questions.
	leaderless = 2 * time.Second
	// askTimeout bounds such a question.
	askTimeout = time.Second
)

// ErrRemoved means that this node is a member no more, for ever.
var ErrRemoved = errors.New("this PD node was removed from its cluster")

// Peers reaches other PD nodes by their gRPC addresses. The composition root
// has it: PD itself dials nobody.
type Peers interface {
	// Join asks the leader behind the addresses to admit a new node.
	Join(
		ctx context.Context, addresses []string, r *pdpb.JoinMemberRequest,
	) (*pdpb.JoinMemberResponse, error)
	// Members asks any of the addresses who the nodes are.
	Members(ctx context.Context, addresses []string) (*pdpb.MembersResponse, error)
}

// Attendance is what a node does about its own membership while it runs.
type Attendance struct {
	Meta     *meta.Meta
	Identity *Identity
	Dir      string
	// GRPCAddress is where this node is reached now; it may be a new one.
	GRPCAddress string
	// Peers may be nil: then a node that was removed while it was away does not
	// learn that.
	Peers Peers
	Log   *slog.Logger

	heard, asked time.Time
	told         bool
}

// Run tells the group about this node, and returns when it is a member no more
// or ctx ends.
func (a *Attendance) Run(ctx context.Context) error {
	ticker := time.NewTicker(attendEvery)
	defer ticker.Stop()
	a.heard = time.Now()
	for {
		if err := a.look(ctx); err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-ticker.C:
		}
	}
}

func (a *Attendance) look(ctx context.Context) error {
	if a.Meta.Expelled() {
		return a.removed()
	}
	if a.Meta.Leader() != 0 {
		a.heard = time.Now()
		return a.tell(ctx)
	}
	if a.Peers == nil || time.Since(a.heard) < leaderless || time.Since(a.asked) < leaderless {
		return nil
	}
	a.asked = time.Now()
	if a.strangerToOthers(ctx) {
		return a.removed()
	}
	return nil
}

// strangerToOthers asks the others, and believes them when they say that this
// member was removed: ids are given once, and a member is listed from the moment
// it has one until Raft has removed it.
func (a *Attendance) strangerToOthers(ctx context.Context) bool {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	list, _ := a.Meta.Members()
	var addresses []string
	for _, m := range list {
		if m.GetMemberId() != a.Meta.MemberID() {
			addresses = append(addresses, m.GetGrpcAddress())
		}
	}
	addresses = append(addresses, a.Identity.Seeds...)
	addresses = slices.DeleteFunc(addresses, func(a string) bool { return a == "" })
	if len(addresses) == 0 {
		return false
	}
	r, err := a.Peers.Members(ctx, addresses)
	cluster := max(a.Identity.ClusterID, a.Meta.ClusterID())
	return err == nil && cluster != 0 && cluster == r.GetClusterId() && Gone(r, a.Meta.MemberID())
}

// Gone reports whether an answer says that id is a member no more.
func Gone(r *pdpb.MembersResponse, id uint64) bool {
	return id <= r.GetLastMemberId() && Find(r, id) == nil
}

// Find returns a member by its id; nil if it is not listed.
func Find(r *pdpb.MembersResponse, id uint64) *pdpb.Member {
	for _, m := range r.GetMembers() {
		if m.GetMemberId() == id {
			return m
		}
	}
	return nil
}

// removed notes for ever that the directory is of no use.
func (a *Attendance) removed() error {
	a.Identity.Removed = true
	return errors.Join(RemovedError(a.Identity, a.Dir), a.Identity.Save(a.Dir))
}

// RemovedError tells what is to be done with the directory of a removed node.
func RemovedError(i *Identity, dir string) error {
	return fmt.Errorf("%w: it was PD node %d of cluster %d; to join as a new node, empty %s "+
		"and start with --join", ErrRemoved, i.MemberID, i.ClusterID, dir)
}

// tell brings what the group and the directory know of each other up to date. It
// does nothing once both know all.
func (a *Attendance) tell(ctx context.Context) error {
	if a.told {
		return nil
	}
	self := a.Meta.Member(a.Meta.MemberID())
	if self == nil {
		return nil // not named yet
	}
	i := a.Identity
	if self.GetDirectoryId() != i.DirectoryID || self.GetGrpcAddress() != a.GRPCAddress {
		return a.introduce(ctx)
	}
	if i.ClusterID == 0 || i.GRPCAddress != a.GRPCAddress {
		i.ClusterID, i.GRPCAddress = a.Meta.ClusterID(), a.GRPCAddress
		if err := i.Save(a.Dir); err != nil {
			return err
		}
	}
	if i.Joined && !i.Settled {
		if self.GetJoining() || a.Meta.Settle(ctx) != nil {
			return nil
		}
		i.Settled = true
		if err := i.Save(a.Dir); err != nil {
			return err
		}
		a.Log.Info("this PD node has joined", "member", i.MemberID)
	}
	a.told = true
	return nil
}

// introduce tells the group the directory and the address of this node.
func (a *Attendance) introduce(ctx context.Context) error {
	r, err := a.Meta.Propose(ctx, &pdpb.Command{Command: &pdpb.Command_PutMember{
		PutMember: &pdpb.PutMember{
			MemberId: a.Meta.MemberID(), DirectoryId: a.Identity.DirectoryID,
			GrpcAddress: a.GRPCAddress,
		},
	}})
	switch {
	case err != nil:
		return nil // asked again
	case r.GetReason() == pdpb.PDErrorReason_PD_ERROR_REASON_REFUSED:
		return fmt.Errorf("%s: %s is not the one it has had: a copy, or a new one after a loss. "+
			"Start the right one, or remove PD node %d and join with an empty directory",
			r.GetMessage(), a.Dir, a.Meta.MemberID())
	case r.GetReason() == pdpb.PDErrorReason_PD_ERROR_REASON_ADDRESS_IN_USE:
		return errors.New(r.GetMessage())
	}
	return nil
}
