package command

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"github.com/ridgekv/ridge/client/pdclient"
	"github.com/ridgekv/ridge/pd"
	kvpb "github.com/ridgekv/ridge/proto/ridge/kv/v1"
	pdpb "github.com/ridgekv/ridge/proto/ridge/pd/v1"
)

// pdPeers is how a PD node reaches others: PD itself dials nobody.
type pdPeers struct{ tls *tls.Config }

// open returns a client of the PD nodes at addresses.
func (p pdPeers) open(ctx context.Context, addresses []string) (*pdclient.Client, error) {
	return pdclient.Open(ctx, pdclient.Options{Addresses: addresses, TLS: p.tls})
}

// Join implements pd.Peers.
func (p pdPeers) Join(
	ctx context.Context, addresses []string, r *pdpb.JoinMemberRequest,
) (*pdpb.JoinMemberResponse, error) {
	c, err := p.open(ctx, addresses)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	answer, err := c.JoinMember(ctx, r)
	if e, ok := errors.AsType[pdclient.Error](err); ok && e.Class == kvpb.ErrorClass_ERROR_CLASS_FAIL {
		err = fmt.Errorf("%w: %w", pd.ErrJoinRefused, err)
	}
	return answer, err
}

// Members implements pd.Peers. It asks all at once: hosts that are gone must not
// use up the time of those that know. The newest list counts.
func (p pdPeers) Members(ctx context.Context, addresses []string) (*pdpb.MembersResponse, error) {
	answers, faults := make([]*pdpb.MembersResponse, len(addresses)), make([]error, len(addresses))
	var wg sync.WaitGroup
	for i, a := range addresses {
		wg.Go(func() { answers[i], faults[i] = p.membersAt(ctx, a) })
	}
	wg.Wait()
	var newest *pdpb.MembersResponse
	for i, r := range answers {
		if faults[i] == nil && (newest == nil || r.GetRevision() > newest.GetRevision()) {
			newest = r
		}
	}
	if newest == nil {
		return nil, errors.Join(append(faults, errors.New("no PD node has answered"))...)
	}
	return newest, nil
}

// membersAt asks one node until it answers or ctx ends.
func (p pdPeers) membersAt(ctx context.Context, address string) (*pdpb.MembersResponse, error) {
	c, err := p.open(ctx, []string{address})
	if err != nil {
		return nil, err
	}
	defer c.Close()
	return c.Members(ctx)
}

// pdNode is a PD node and what it says of itself.
type pdNode struct {
	member *pdpb.Member
	// status is nil when the node does not answer.
	status *pdpb.StatusResponse
	leads  bool
}

func (n pdNode) role() string {
	switch {
	case n.member.GetJoining():
		return "joining"
	case n.leads:
		return "leader"
	}
	return "voter"
}

func newPDList() *cobra.Command {
	var c connection
	cmd := &cobra.Command{
		Use: "list", Aliases: []string{"ls"}, Short: "List the PD nodes of the cluster",
		Args: cobra.NoArgs,
	}
	return c.add(cmd, func(cmd *cobra.Command, _ []string) error {
		return c.withPD(cmd, func(ctx context.Context, pd *pdclient.Client) error {
			r, err := pd.Members(ctx)
			if err != nil {
				return err
			}
			nodes := askPDs(ctx, pd, r)
			if c.json() {
				return c.object(cmd.OutOrStdout(), map[string]any{"members": pdObjects(nodes)})
			}
			var rows [][]string
			for _, n := range nodes {
				answers, version := "no", ""
				if n.status != nil {
					answers, version = "yes", n.status.GetVersion()
				}
				rows = append(rows, []string{
					id(n.member.GetMemberId()), n.role(), answers, n.member.GetGrpcAddress(),
					n.member.GetRaftAddress(), version,
				})
			}
			return c.table(cmd.OutOrStdout(), strings.Fields("PD ROLE ANSWERS GRPC RAFT VERSION"), rows)
		})
	})
}

// askPDs asks every node for its status, all at once.
func askPDs(ctx context.Context, pd *pdclient.Client, r *pdpb.MembersResponse) []pdNode {
	nodes := make([]pdNode, len(r.GetMembers()))
	var wg sync.WaitGroup
	for i, m := range r.GetMembers() {
		wg.Go(func() {
			one, cancel := context.WithTimeout(ctx, 2*time.Second)
			defer cancel()
			status, err := pd.StatusOf(one, m.GetGrpcAddress())
			if err != nil || status.GetMemberId() != m.GetMemberId() {
				status = nil
			}
			nodes[i] = pdNode{member: m, status: status, leads: m.GetMemberId() == r.GetLeaderId()}
		})
	}
	wg.Wait()
	return nodes
}

func pdObjects(nodes []pdNode) []map[string]any {
	out := []map[string]any{}
	for _, n := range nodes {
		out = append(out, map[string]any{
			"member_id": n.member.GetMemberId(), "grpc_address": n.member.GetGrpcAddress(),
			"raft_address": n.member.GetRaftAddress(), "role": n.role(), "answers": n.status != nil,
			"version": n.status.GetVersion(),
		})
	}
	return out
}

func newPDRemove() *cobra.Command {
	var c connection
	cmd := &cobra.Command{
		Use: "remove PD", Short: "Take a PD node out of the cluster, for ever",
		Long: `Take a PD node out of the cluster, for ever. Its process ends and its directory is of
no use any more. Refused while those left would have no majority that answers, so a
node that is dead goes first and its replacement joins afterwards:

  ridge pd remove 2
  ridge pd --join a:7400,c:7400 --dir ... --listen ... --raft-listen ...`,
		Args: cobra.ExactArgs(1),
	}
	return c.add(cmd, func(cmd *cobra.Command, args []string) error {
		n, err := number("PD", args[0])
		if err != nil {
			return err
		}
		return c.withPD(cmd, func(ctx context.Context, pd *pdclient.Client) error {
			r, err := pd.RemoveMember(ctx, n)
			if err != nil {
				return err
			}
			out := cmd.OutOrStdout()
			if c.json() {
				members := []map[string]any{}
				for _, m := range r.GetMembers() {
					members = append(members, map[string]any{
						"member_id": m.GetMemberId(), "grpc_address": m.GetGrpcAddress(),
						"raft_address": m.GetRaftAddress(), "joining": m.GetJoining(),
					})
				}
				warnings := append([]string{}, r.GetWarnings()...)
				return c.object(out, map[string]any{
					"removed": n, "members": members, "warnings": warnings,
				})
			}
			fmt.Fprintf(out, "PD node %d is removed; %d left\n", n, len(r.GetMembers()))
			for _, w := range r.GetWarnings() {
				fmt.Fprintf(cmd.ErrOrStderr(), "warning: %s\n", w)
			}
			return nil
		})
	})
}
