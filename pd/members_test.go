package pd

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/proto"

	"github.com/ridgekv/ridge/pd/internal/members"
	kvpb "github.com/ridgekv/ridge/proto/ridge/kv/v1"
	pdpb "github.com/ridgekv/ridge/proto/ridge/pd/v1"
)

// peers reaches PD nodes as the composition root does, without its patience.
type peers struct{}

func onNode[R any](
	ctx context.Context, addresses []string,
	do func(context.Context, *grpc.ClientConn) (R, error),
) (out R, err error) {
	err = errors.New("no address")
	for _, a := range addresses {
		var conn *grpc.ClientConn
		conn, err = grpc.NewClient("passthrough:///"+a,
			grpc.WithTransportCredentials(insecure.NewCredentials()))
		if err != nil {
			return out, err
		}
		out, err = do(ctx, conn)
		_ = conn.Close()
		if err == nil {
			return out, nil
		}
	}
	return out, err
}

// Join implements Peers.
func (peers) Join(
	ctx context.Context, addresses []string, r *pdpb.JoinMemberRequest,
) (*pdpb.JoinMemberResponse, error) {
	return onNode(ctx, addresses,
		func(ctx context.Context, c *grpc.ClientConn) (*pdpb.JoinMemberResponse, error) {
			out, err := pdpb.NewPDAdminServiceClient(c).JoinMember(ctx, r)
			if err != nil || out.GetError() == nil {
				return out, err
			}
			err = asError(out.GetError())
			if out.GetError().GetReason() != notLeader {
				err = fmt.Errorf("%w: %w", ErrJoinRefused, err)
			}
			return nil, err
		})
}

// Members implements Peers.
func (peers) Members(ctx context.Context, addresses []string) (*pdpb.MembersResponse, error) {
	return onNode(ctx, addresses,
		func(ctx context.Context, c *grpc.ClientConn) (*pdpb.MembersResponse, error) {
			return pdpb.NewPDServiceClient(c).Members(ctx, &pdpb.MembersRequest{})
		})
}

// add makes a node that joins the others; it is not started.
func (c *cluster) add() int {
	c.t.Helper()
	a := freeAddresses(c.t, 2)
	o := Options{
		Dir: c.t.TempDir(), Peers: peers{}, Members: []Member{{RaftAddress: a[0], GRPCAddress: a[1]}},
	}
	for _, n := range c.nodes {
		o.Join = append(o.Join, n.o.self().GRPCAddress)
	}
	quick(&o)
	c.nodes = append(c.nodes, &node{o: o})
	return len(c.nodes) - 1
}

// joined waits until a node has its vote and returns its id.
func (c *cluster) joined(i int) uint64 {
	c.t.Helper()
	eventually(c.t, "the vote of a new PD", func() error {
		if !c.nodes[i].server.Ready() {
			return errors.New("not ready")
		}
		return nil
	})
	return c.nodes[i].server.MemberID()
}

// remove asks as a client does: again, as long as the answer says so.
func (c *cluster) remove(id uint64) (r *pdpb.RemoveMemberResponse, err error) {
	c.t.Helper()
	eventually(c.t, "an answer to a removal", func() error {
		r, err = c.admin().RemoveMember(testContext(c.t), &pdpb.RemoveMemberRequest{MemberId: id})
		if err != nil {
			return err
		}
		err = asError(r.GetError())
		if r.GetError().GetClass() != kvpb.ErrorClass_ERROR_CLASS_FAIL {
			return err
		}
		return nil
	})
	return r, err
}

// ended waits until a node has ended by itself, and returns why.
func (c *cluster) ended(i int) error {
	c.t.Helper()
	n := c.nodes[i]
	err := <-n.ended
	n.ended <- nil
	c.kill(i)
	return err
}

func wantRefusal(t *testing.T, err error, words ...string) {
	t.Helper()
	for _, w := range words {
		if err == nil || !strings.Contains(err.Error(), w) {
			t.Errorf("got %v, want %q", err, w)
		}
	}
}

func usePeers(o *Options) { o.Peers = peers{} }

// TestGroupIsReplaced: one node becomes three, the founder goes while it leads,
// and a node that was away learns that it was removed. Ids are never given
// again, timestamps grow, and what was known stays known.
func TestGroupIsReplaced(t *testing.T) {
	c := startCluster(t, 1, usePeers)
	first := register(t, c.client(), 0, "a").GetFirstRange()
	var last uint64
	stamp := func() {
		t.Helper()
		eventually(t, "a timestamp", func() error {
			s, err := c.client().Timestamps(testContext(t))
			if err == nil {
				err = s.Send(&pdpb.TimestampsRequest{Count: 1})
			}
			if err != nil {
				return err
			}
			r, err := s.Recv()
			if err == nil {
				err = asError(r.GetError())
			}
			if err == nil && r.GetFirst() <= last {
				t.Fatalf("%d after %d", r.GetFirst(), last)
			}
			last = max(last, r.GetFirst())
			return errors.Join(err, s.CloseSend())
		})
	}
	stamp()
	_, err := c.remove(1)
	wantRefusal(t, err, "only one that votes", "join another")
	for want := range uint64(2) {
		i := c.add()
		c.start(i)
		if id := c.joined(i); id != want+2 {
			t.Fatalf("the node got id %d", id)
		}
	}
	stamp()
	_, err = c.remove(9)
	wantRefusal(t, err, "no PD node 9", "1, 2, 3")
	r, err := c.remove(1) // it leads
	if err != nil || len(r.GetMembers()) != 2 || len(r.GetWarnings()) != 1 {
		t.Fatalf("%v, %v", r, err)
	}
	wantRefusal(t, c.ended(0), ErrRemoved.Error())
	stamp()
	if _, err := c.remove(1); err != nil {
		t.Errorf("removed again: %v", err)
	}
	at := c.leader()
	_, err = c.remove(c.nodes[3-at].server.MemberID())
	if err != nil {
		t.Fatal(err)
	}
	wantRefusal(t, c.ended(3-at), "removed")
	stamp()
	i := c.add()
	c.start(i)
	if id := c.joined(i); id != 4 {
		t.Errorf("the node got id %d", id)
	}
	if again := register(t, c.client(), 1, "a").GetFirstRange(); again.GetRangeId() != first.GetRangeId() {
		t.Errorf("first range %v, it was %v", again, first)
	}
	for _, j := range []int{0, 3 - at} { // what is left of a removed node never starts
		server, err := New(c.nodes[j].o)
		if err != nil {
			t.Fatal(err)
		}
		wantRefusal(t, server.Run(testContext(t)), "removed", "empty")
	}
}

// TestRemovedWhileAway: a node that is down is not counted on, can be removed,
// and stops when it comes back and hears it. The silent are told apart from the
// living before anything is removed.
func TestRemovedWhileAway(t *testing.T) {
	c := startCluster(t, 3, usePeers)
	at := c.leader()
	away, other := (at+1)%3, (at+2)%3
	c.kill(away)
	_, err := c.remove(uint64(other + 1))
	wantRefusal(t, err, "of which 1 answer", fmt.Sprintf("start PD node %d", away+1))
	if _, err := c.remove(uint64(away + 1)); err != nil {
		t.Fatal(err)
	}
	c.start(away)
	wantRefusal(t, c.ended(away), ErrRemoved.Error())
}

// TestEmptiedFounder: a founder whose directory was lost does not vote again.
func TestEmptiedFounder(t *testing.T) {
	c := startCluster(t, 3, usePeers)
	c.leader()
	eventually(t, "all directories to be known", func() error {
		r, err := c.client().Members(testContext(t), &pdpb.MembersRequest{})
		for _, m := range r.GetMembers() {
			if m.GetDirectoryId() == 0 {
				err = errors.New("not yet")
			}
		}
		return err
	})
	c.kill(1)
	o := c.nodes[1].o
	o.Dir = t.TempDir()
	server, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	wantRefusal(t, server.Run(testContext(t)), "has had another directory", "ridge pd remove 2")
}

// TestJoinIsRefused: what cannot join says why, and changes nothing.
func TestJoinIsRefused(t *testing.T) {
	c, d := startCluster(t, 1, usePeers), startCluster(t, 1, usePeers)
	c.leader()
	d.leader()
	run := func(change func(*Options)) error {
		i := c.add()
		o := c.nodes[i].o
		c.nodes = c.nodes[:i]
		change(&o)
		server, err := New(o)
		if err != nil {
			return err
		}
		return server.Run(testContext(t))
	}
	wantRefusal(t, run(func(o *Options) {
		o.Members[0].RaftAddress = c.nodes[0].o.self().RaftAddress
	}), "PD node 1 is registered", "ridge pd remove 1")
	wantRefusal(t, run(func(o *Options) { o.Members[0].GRPCAddress = o.Members[0].RaftAddress }),
		"given twice")
	wantRefusal(t, run(func(o *Options) { o.MemberID = 4 }), "gets its id")
	wantRefusal(t, run(func(o *Options) { o.Join = []string{"nonsense"} }), "not host:port")
	i := c.add()
	c.start(i)
	id := c.joined(i)
	c.kill(i)
	joined := c.nodes[i].o
	back := func(o Options) error {
		server, err := New(o)
		if err != nil {
			return err
		}
		return server.Run(testContext(t))
	}
	o := joined
	o.Join = []string{d.nodes[0].o.self().GRPCAddress}
	wantRefusal(t, back(o), fmt.Sprintf("belongs to PD node %d of cluster", id), "--join names cluster")
	o = joined
	o.Members = []Member{{GRPCAddress: o.Members[0].GRPCAddress, RaftAddress: freeAddresses(t, 1)[0]}}
	wantRefusal(t, back(o), "keeps its own")
	c.start(i)
	c.joined(i)
	d.kill(0)
	o = joined
	o.Dir = d.nodes[0].o.Dir
	o.Members = d.nodes[0].o.Members
	wantRefusal(t, back(o), "did not join it", "without --join")
}

// TestSilentJoiner: a node that was admitted and never runs keeps no other from
// joining, has no vote, and can be taken out.
func TestSilentJoiner(t *testing.T) {
	c := startCluster(t, 1, usePeers)
	c.leader()
	a := freeAddresses(t, 2)
	r, err := peers{}.Join(testContext(t), []string{c.nodes[0].o.self().GRPCAddress},
		&pdpb.JoinMemberRequest{DirectoryId: 9, GrpcAddress: a[0], RaftAddress: a[1]})
	if err != nil || r.GetMemberId() != 2 {
		t.Fatalf("%v, %v", r, err)
	}
	i := c.add()
	c.start(i)
	if id := c.joined(i); id != 3 {
		t.Errorf("the node got id %d", id)
	}
	ms, err := c.nodes[0].server.meta.Load().Membership(testContext(t))
	if err != nil || len(ms.Voters) != 2 || len(ms.Learners) != 1 {
		t.Errorf("%+v, %v", ms, err)
	}
	if _, err := c.remove(2); err != nil {
		t.Error(err)
	}
	list, last := c.nodes[0].server.meta.Load().Members()
	if len(list) != 2 || last != 3 {
		t.Errorf("members %v, last id %d", list, last)
	}
}

// TestCrashWhileJoining: a node that dies before it hears its id gets the same
// when it asks again, and has no vote before it runs.
func TestCrashWhileJoining(t *testing.T) {
	c := startCluster(t, 1, usePeers)
	c.leader()
	i := c.add()
	o := c.nodes[i].o
	// It asked, and died before it heard the answer.
	id := &members.Identity{
		DirectoryID: 7, Joined: true, GRPCAddress: o.self().GRPCAddress,
		RaftAddress: o.self().RaftAddress,
	}
	if err := id.Save(o.Dir); err != nil {
		t.Fatal(err)
	}
	ask := &pdpb.JoinMemberRequest{
		DirectoryId: 7, GrpcAddress: id.GRPCAddress, RaftAddress: id.RaftAddress,
	}
	r, err := peers{}.Join(testContext(t), o.Join, ask)
	if err != nil || r.GetMemberId() != 2 || len(r.GetWarnings()) == 0 {
		t.Fatalf("%v, %v", r, err)
	}
	eventually(t, "a learner that does not run", func() error {
		ms, err := c.nodes[0].server.meta.Load().Membership(testContext(t))
		if err == nil && len(ms.Learners) != 1 {
			err = errors.New("none")
		}
		return err
	})
	c.start(i)
	if got := c.joined(i); got != 2 {
		t.Errorf("it got another id: %d", got)
	}
}

// TestAddressWithoutJoin: a node that has joined is started as its directory says,
// without --join, and at another gRPC address: the group hears of that.
func TestAddressWithoutJoin(t *testing.T) {
	c := startCluster(t, 1, usePeers)
	c.leader()
	i := c.add()
	c.start(i)
	id := c.joined(i)
	c.kill(i)
	o := &c.nodes[i].o
	o.Join = nil
	o.Members = []Member{{RaftAddress: o.Members[0].RaftAddress, GRPCAddress: freeAddresses(t, 1)[0]}}
	c.start(i)
	eventually(t, "the new address", func() error {
		r, err := c.nodes[0].client.Members(testContext(t), &pdpb.MembersRequest{})
		if a := members.Find(r, id).GetGrpcAddress(); err == nil && a != o.Members[0].GRPCAddress {
			err = fmt.Errorf("PD node %d is known at %s", id, a)
		}
		return err
	})
}

// TestFoundersAreAll: whoever leads first names all that the group began with, even
// if it was started with less than at its first start.
func TestFoundersAreAll(t *testing.T) {
	s := Server{o: Options{Members: []Member{{ID: 1, RaftAddress: "b:2", GRPCAddress: "b:1"}}}}
	got := s.founders(&members.Identity{
		MemberID: 2, Members: map[uint64]string{1: "a:2", 2: "b:2", 3: "c:2"},
	})
	want := []*pdpb.Member{
		{MemberId: 1, RaftAddress: "a:2"},
		{MemberId: 2, RaftAddress: "b:2", GrpcAddress: "b:1"},
		{MemberId: 3, RaftAddress: "c:2"},
	}
	if !slices.EqualFunc(got, want, func(a, b *pdpb.Member) bool { return proto.Equal(a, b) }) {
		t.Errorf("founders %v", got)
	}
}
