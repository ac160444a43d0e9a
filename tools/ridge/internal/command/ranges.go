package command

import (
	"bytes"
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/dustin/go-humanize"
	"github.com/spf13/cobra"

	"github.com/ridgekv/ridge/client/pdclient"
	"github.com/ridgekv/ridge/proto/keys"
	metapb "github.com/ridgekv/ridge/proto/ridge/meta/v1"
	pdpb "github.com/ridgekv/ridge/proto/ridge/pd/v1"
)

func newRange() *cobra.Command {
	cmd := &cobra.Command{
		Use: "range", Short: "Look at ranges, split and move them", RunE: needSubcommand,
	}
	cmd.AddCommand(newRangeList(), newRangeShow(), newRangeSplit(), newRangeMove(),
		newRangeTransferLeader(), newRangeScatter())
	return cmd
}

func newRangeList() *cobra.Command {
	var c connection
	var b bounds
	cmd := &cobra.Command{
		Use: "list", Aliases: []string{"ls"}, Short: "List the ranges, in the order of their keys",
		Args: cobra.NoArgs,
	}
	b.addFlags(cmd)
	return c.add(cmd, func(cmd *cobra.Command, _ []string) error {
		span, err := b.span()
		if err != nil {
			return err
		}
		return c.withPD(cmd, func(ctx context.Context, pd *pdclient.Client) error {
			routes, err := allRoutes(ctx, pd, span)
			if err != nil {
				return err
			}
			return c.routes(cmd, routes)
		})
	})
}

// allRoutes asks page by page.
func allRoutes(ctx context.Context, pd *pdclient.Client, span keys.Span) ([]*pdpb.Route, error) {
	var all []*pdpb.Route
	for {
		r, err := pd.ListRoutes(ctx, span, 0)
		if err != nil {
			return nil, err
		}
		all = append(all, r.GetRoutes()...)
		if !r.GetMore() || len(r.GetRoutes()) == 0 {
			return all, nil
		}
		last := r.GetRoutes()[len(r.GetRoutes())-1].GetRange().GetSpan().GetEnd()
		if len(last) == 0 {
			return all, nil
		}
		span.Start = last
	}
}

// routes answers with ranges.
func (c *connection) routes(cmd *cobra.Command, routes []*pdpb.Route) error {
	if c.json() {
		objects := []map[string]any{}
		for _, r := range routes {
			objects = append(objects, routeObject(r))
		}
		return c.object(cmd.OutOrStdout(), map[string]any{"ranges": objects})
	}
	var rows [][]string
	for _, r := range routes {
		g := r.GetRange()
		from, to := spanText(g.GetSpan().GetStart(), g.GetSpan().GetEnd())
		leader := "?"
		if l := r.GetLeader(); l.GetReplicaId() != 0 {
			leader = "store " + id(l.GetStoreId())
		}
		rows = append(rows, []string{
			id(g.GetRangeId()), from, to,
			fmt.Sprintf("%d.%d", g.GetEpoch().GetConfig(), g.GetEpoch().GetSpan()),
			replicasText(g.GetReplicas()), leader, humanize.IBytes(r.GetSizeBytes()),
			humanize.Comma(int64(r.GetKeyCount())),
		})
	}
	return c.table(cmd.OutOrStdout(),
		strings.Fields("RANGE START END EPOCH REPLICAS LEADER SIZE KEYS"), rows)
}

func routeObject(r *pdpb.Route) map[string]any {
	g := r.GetRange()
	span := map[string]any{}
	putBytes(span, "start", g.GetSpan().GetStart())
	putBytes(span, "end", g.GetSpan().GetEnd())
	replicas := []map[string]any{}
	for _, p := range g.GetReplicas() {
		replicas = append(replicas, map[string]any{
			"replica_id": p.GetReplicaId(), "store_id": p.GetStoreId(),
			"role": enumText(p.GetRole(), "ROLE_"),
		})
	}
	return map[string]any{
		"range_id": g.GetRangeId(), "span": span,
		"epoch": map[string]any{
			"config": g.GetEpoch().GetConfig(), "span": g.GetEpoch().GetSpan(),
		},
		"replicas": replicas,
		"leader": map[string]any{
			"replica_id": r.GetLeader().GetReplicaId(), "store_id": r.GetLeader().GetStoreId(),
			"term": r.GetLeader().GetTerm(),
		},
		"size_bytes": r.GetSizeBytes(), "key_count": r.GetKeyCount(),
	}
}

// replicasText writes voters as 1,2,3 and a learner as 4?.
func replicasText(replicas []*metapb.Replica) string {
	sorted := slices.Clone(replicas)
	slices.SortFunc(sorted, func(a, b *metapb.Replica) int {
		return int(a.GetStoreId()) - int(b.GetStoreId())
	})
	var out []string
	for _, p := range sorted {
		text := id(p.GetStoreId())
		if p.GetRole() == metapb.Role_ROLE_LEARNER {
			text += "?"
		}
		out = append(out, text)
	}
	return strings.Join(out, ",")
}

func newRangeShow() *cobra.Command {
	var c connection
	cmd := &cobra.Command{
		Use: "show RANGE_ID", Short: "Show one range and its replicas", Args: cobra.ExactArgs(1),
	}
	return c.add(cmd, func(cmd *cobra.Command, args []string) error {
		rangeID, err := strconv.ParseUint(args[0], 10, 64)
		if err != nil {
			return usagef("%q is not a range id", args[0])
		}
		return c.withPD(cmd, func(ctx context.Context, pd *pdclient.Client) error {
			r, err := pd.GetRange(ctx, rangeID)
			if err != nil {
				return err
			}
			return c.rangeDetails(cmd, r)
		})
	})
}

func (c *connection) rangeDetails(cmd *cobra.Command, r *pdpb.GetRangeResponse) error {
	health := map[uint64]string{}
	for _, h := range r.GetHealth() {
		switch {
		case h.GetPoisoned():
			health[h.GetReplicaId()] = "poisoned"
		case h.GetMissing():
			health[h.GetReplicaId()] = "missing"
		case h.GetLagging():
			health[h.GetReplicaId()] = "lagging"
		default:
			health[h.GetReplicaId()] = "healthy"
		}
	}
	if c.json() {
		object := routeObject(r.GetRoute())
		for _, p := range object["replicas"].([]map[string]any) {
			if h := health[p["replica_id"].(uint64)]; h != "" {
				p["health"] = h
			}
		}
		return c.object(cmd.OutOrStdout(), object)
	}
	if err := c.routes(cmd, []*pdpb.Route{r.GetRoute()}); err != nil {
		return err
	}
	var rows [][]string
	for _, p := range r.GetRoute().GetRange().GetReplicas() {
		role := enumText(p.GetRole(), "ROLE_")
		if p.GetReplicaId() == r.GetRoute().GetLeader().GetReplicaId() {
			role += ", leader"
		}
		rows = append(rows, []string{
			id(p.GetReplicaId()), id(p.GetStoreId()), role, health[p.GetReplicaId()],
		})
	}
	fmt.Fprintln(cmd.OutOrStdout())
	return c.table(cmd.OutOrStdout(), strings.Fields("REPLICA STORE ROLE HEALTH"), rows)
}

func newRangeSplit() *cobra.Command {
	var c connection
	var a arguments
	cmd := &cobra.Command{
		Use: "split KEY", Short: "Split the range that holds KEY, so that a range begins there",
		Args: cobra.ExactArgs(1),
	}
	a.addFlags(cmd)
	return c.add(cmd, func(cmd *cobra.Command, args []string) error {
		in, err := a.decode(args...)
		if err != nil {
			return err
		}
		if err := checkKey(in[0]); err != nil {
			return err
		}
		return c.withPD(cmd, func(ctx context.Context, pd *pdclient.Client) error {
			asked, err := pd.SplitRange(ctx, in[0])
			if err != nil {
				return err
			}
			right, err := awaitRangeAt(ctx, pd, in[0])
			if err != nil {
				return fmt.Errorf("range %d is not split yet: %w", asked.GetRange().GetRangeId(), err)
			}
			routes := []*pdpb.Route{right}
			if left, err := pd.GetRange(ctx, asked.GetRange().GetRangeId()); err == nil &&
				left.GetRoute().GetRange().GetRangeId() != right.GetRange().GetRangeId() {
				routes = []*pdpb.Route{left.GetRoute(), right}
			}
			return c.routes(cmd, routes)
		})
	})
}

// awaitRangeAt waits until a range begins at key.
func awaitRangeAt(ctx context.Context, pd *pdclient.Client, key []byte) (*pdpb.Route, error) {
	ticker := time.NewTicker(20 * time.Millisecond)
	defer ticker.Stop()
	for {
		r, err := pd.GetRoute(ctx, key)
		if err != nil {
			return nil, err
		}
		if bytes.Equal(r.GetRoute().GetRange().GetSpan().GetStart(), key) {
			return r.GetRoute(), nil
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-ticker.C:
		}
	}
}
