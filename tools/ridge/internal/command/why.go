package command

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/ridgekv/ridge/client/pdclient"
	pdpb "github.com/ridgekv/ridge/proto/ridge/pd/v1"
)

func newWhy() *cobra.Command {
	cmd := &cobra.Command{
		Use: "why", Short: "Explain what PD did and why it does nothing else", RunE: needSubcommand,
	}
	cmd.AddCommand(newWhyRange(), newWhyStore(), newWhyBalance())
	return cmd
}

func newWhyRange() *cobra.Command {
	var a arguments
	cmd := &cobra.Command{
		Use: "range ID|KEY", Short: "Explain a range, named by its id or by a key it holds",
		Args: cobra.ExactArgs(1),
	}
	a.addFlags(cmd)
	byKey := cmd.Flags().Bool("key", false, "the argument is a key although it looks like an id")
	return why(cmd, func(args []string) (*pdpb.ExplainRequest, error) {
		n, err := strconv.ParseUint(args[0], 10, 64)
		if err == nil && !*byKey && !a.b64 {
			return &pdpb.ExplainRequest{Subject: &pdpb.ExplainRequest_RangeId{RangeId: n}}, nil
		}
		in, err := a.decode(args...)
		if err != nil {
			return nil, err
		}
		return &pdpb.ExplainRequest{Subject: &pdpb.ExplainRequest_Key{Key: in[0]}}, nil
	})
}

func newWhyStore() *cobra.Command {
	cmd := &cobra.Command{
		Use: "store ID", Short: "Explain a store", Args: cobra.ExactArgs(1),
	}
	return why(cmd, func(args []string) (*pdpb.ExplainRequest, error) {
		n, err := number("store", args[0])
		return &pdpb.ExplainRequest{Subject: &pdpb.ExplainRequest_StoreId{StoreId: n}}, err
	})
}

func newWhyBalance() *cobra.Command {
	cmd := &cobra.Command{
		Use: "balance", Short: "Explain why replicas and leaders lie as they do", Args: cobra.NoArgs,
	}
	return why(cmd, func([]string) (*pdpb.ExplainRequest, error) {
		return &pdpb.ExplainRequest{Subject: &pdpb.ExplainRequest_Balance{Balance: true}}, nil
	})
}

func why(
	cmd *cobra.Command, ask func(args []string) (*pdpb.ExplainRequest, error),
) *cobra.Command {
	var c connection
	limit := cmd.Flags().Uint32("limit", 20, "how many decisions are shown")
	return c.add(cmd, func(cmd *cobra.Command, args []string) error {
		req, err := ask(args)
		if err != nil {
			return err
		}
		req.Limit = *limit
		return c.withPD(cmd, func(ctx context.Context, pd *pdclient.Client) error {
			r, err := pd.Explain(ctx, req)
			if err != nil {
				return err
			}
			if c.json() {
				return c.object(cmd.OutOrStdout(), explainObject(r))
			}
			return c.explanation(cmd, r)
		})
	})
}

func explainObject(r *pdpb.ExplainResponse) map[string]any {
	decisions := []map[string]any{}
	for _, d := range r.GetDecisions() {
		decisions = append(decisions, map[string]any{
			"seq": d.GetSeq(), "unix_ms": d.GetUnixMs(),
			"kind":        enumText(d.GetKind(), "DECISION_KIND_"),
			"operator_id": d.GetOperatorId(), "range_ids": ids(d.GetRangeIds()),
			"range_count": d.GetRangeCount(), "store_ids": ids(d.GetStoreIds()),
			"what": d.GetWhat(), "why": d.GetWhy(), "remedy": d.GetRemedy(),
			"member_id": d.GetMemberId(),
		})
	}
	findings := r.GetFindings()
	if findings == nil {
		findings = []string{}
	}
	out := map[string]any{
		"findings": findings, "stores": storeObjects(r.GetStores()),
		"operators": operatorObjects(r.GetOperators()), "blockers": blockerObjects(r.GetBlockers()),
		"decisions": decisions, "waiting": r.GetWaiting(), "paused": r.GetPause() != nil,
	}
	if r.GetRoute() != nil {
		out["range"] = routeObject(r.GetRoute())
	}
	return out
}

func (c *connection) explanation(cmd *cobra.Command, r *pdpb.ExplainResponse) error {
	out := cmd.OutOrStdout()
	if r.GetRoute() != nil {
		if err := c.routes(cmd, []*pdpb.Route{r.GetRoute()}); err != nil {
			return err
		}
		fmt.Fprintln(out)
	} else if err := c.table(out, strings.Fields("STORE STATE RANGES LEADERS"),
		shortStores(r.GetStores())); err != nil {
		return err
	}
	for _, line := range r.GetFindings() {
		fmt.Fprintln(out, line)
	}
	if r.GetWaiting() != "" {
		fmt.Fprintln(out, "nothing is planned: "+r.GetWaiting())
	}
	fmt.Fprintln(out, "\nin flight:")
	for _, o := range r.GetOperators() {
		fmt.Fprintf(out, "  range %d, step %d of %d, for %s: %s   # %s\n", o.GetRangeId(),
			o.GetCurrent()+1, len(o.GetSteps()), millis(o.GetAgeMs()), strings.Join(o.GetSteps(), ", "),
			o.GetReason())
	}
	if len(r.GetOperators()) == 0 {
		fmt.Fprintln(out, "  nothing")
	}
	fmt.Fprintln(out, "\nnot done, and why:")
	for _, b := range r.GetBlockers() {
		fmt.Fprintln(out, "  "+blockerText(b))
	}
	if len(r.GetBlockers()) == 0 {
		fmt.Fprintln(out, "  nothing is wanted")
	}
	fmt.Fprintln(out, "\nlast decisions:")
	return c.table(out, strings.Fields("TIME PD KIND RANGES WHAT WHY"), decisionRows(r.GetDecisions()))
}

func shortStores(stores []*pdpb.StoreInfo) [][]string {
	var rows [][]string
	for _, s := range stores {
		rows = append(rows, []string{
			id(s.GetStore().GetStoreId()), enumText(s.GetStore().GetState(), "STORE_STATE_"),
			id(s.GetStats().GetRangeCount()), id(s.GetStats().GetLeaderCount()),
		})
	}
	return rows
}

func decisionRows(decisions []*pdpb.Decision) [][]string {
	var rows [][]string
	for _, d := range decisions {
		ranges := ""
		if d.GetRangeCount() > 0 {
			ranges = rangesText(d.GetRangeIds(), d.GetRangeCount())
		}
		why := d.GetWhy()
		if d.GetRemedy() != "" {
			why += " (" + d.GetRemedy() + ")"
		}
		rows = append(rows, []string{
			time.UnixMilli(int64(d.GetUnixMs())).UTC().Format("15:04:05.000"), id(d.GetMemberId()),
			enumText(d.GetKind(), "DECISION_KIND_"), ranges, d.GetWhat(), why,
		})
	}
	return rows
}
