package command

import (
	"context"
	"fmt"
	"strconv"
	"strings"

	"github.com/dustin/go-humanize"
	"github.com/spf13/cobra"

	"github.com/ridgekv/ridge/client/pdclient"
	pdpb "github.com/ridgekv/ridge/proto/ridge/pd/v1"
)

func newPlan() *cobra.Command {
	cmd := &cobra.Command{
		Use: "plan", Short: "Show what PD would do, without doing it", RunE: needSubcommand,
		Long: `Show what PD would do. The planners that place replicas are run on a picture of this
cluster until they want nothing more; nothing is changed. With --apply exactly the
moves that are shown are then carried out, under the limits; as soon as something is
not as the plan found it, no more of them begin.`,
	}
	cmd.AddCommand(
		newPlanOf("drain STORE", "What draining a store would move", func(n uint64) *pdpb.PlanSubject {
			return &pdpb.PlanSubject{Subject: &pdpb.PlanSubject_DrainStoreId{DrainStoreId: n}}
		}),
		newPlanOf("decommission STORE", "What decommissioning a store would move",
			func(n uint64) *pdpb.PlanSubject {
				return &pdpb.PlanSubject{
					Subject: &pdpb.PlanSubject_DecommissionStoreId{DecommissionStoreId: n},
				}
			}),
		newPlanOf("balance", "What balancing would move", func(uint64) *pdpb.PlanSubject {
			return &pdpb.PlanSubject{Subject: &pdpb.PlanSubject_Balance{Balance: true}}
		}),
		newPlanRule(), newPlanStatus(), newPlanStop(),
	)
	return cmd
}

func newPlanOf(use, short string, subject func(n uint64) *pdpb.PlanSubject) *cobra.Command {
	var c connection
	cmd := &cobra.Command{Use: use, Short: short, Args: cobra.NoArgs}
	if strings.Contains(use, " ") {
		cmd.Args = cobra.ExactArgs(1)
	}
	limit := cmd.Flags().Int("limit", 20, "how many moves the table shows; JSON has all")
	apply := cmd.Flags().Bool("apply", false, "carry the plan out, showing progress")
	return c.add(cmd, func(cmd *cobra.Command, args []string) error {
		n := uint64(0)
		if len(args) > 0 {
			var err error
			if n, err = number("store", args[0]); err != nil {
				return err
			}
		}
		return c.makePlan(cmd, subject(n), *limit, *apply)
	})
}

func planObject(p *pdpb.Plan) map[string]any {
	moves, stores := []map[string]any{}, []map[string]any{}
	for _, m := range p.GetMoves() {
		move := map[string]any{
			"range_id": m.GetRangeId(), "steps": m.GetSteps(), "reason": m.GetReason(),
			"bytes": m.GetBytes(), "margin": m.GetMargin(),
		}
		if m.GetRangeId() == 0 {
			putBytes(move, "start", m.GetStart())
		}
		moves = append(moves, move)
	}
	for _, s := range p.GetStores() {
		stores = append(stores, map[string]any{
			"store_id": s.GetStoreId(), "state": enumText(s.GetState(), "STORE_STATE_"),
			"replicas": s.GetReplicas(), "replicas_after": s.GetReplicasAfter(),
			"leaders": s.GetLeaders(), "leaders_after": s.GetLeadersAfter(),
			"bytes": s.GetBytes(), "bytes_after": s.GetBytesAfter(),
			"available_bytes": s.GetAvailableBytes(),
		})
	}
	return map[string]any{
		"plan_id": p.GetPlanId(), "what": p.GetWhat(), "moves": moves, "stores": stores,
		"replica_moves": p.GetReplicaMoves(), "leader_moves": p.GetLeaderMoves(),
		"bytes": p.GetBytes(), "estimate_ms": p.GetEstimateMs(), "complete": p.GetComplete(),
		"lowest_margin": p.GetLowestMargin(), "lowest_range_id": p.GetLowestRangeId(),
		"margin_before": p.GetMarginBefore(), "splits": p.GetSplits(),
		"blockers": blockerObjects(p.GetBlockers()),
	}
}

func (c *connection) plan(cmd *cobra.Command, p *pdpb.Plan, limit int) error {
	out := cmd.OutOrStdout()
	if len(p.GetMoves()) > 0 {
		var rows [][]string
		for _, m := range p.GetMoves()[:min(max(0, limit), len(p.GetMoves()))] {
			rows = append(rows, []string{
				plannedRange(m), strings.Join(m.GetSteps(), ", "), humanize.IBytes(m.GetBytes()),
				strconv.Itoa(int(m.GetMargin())),
			})
		}
		if err := c.table(out, strings.Fields("RANGE STEPS BYTES MARGIN"), rows); err != nil {
			return err
		}
		if n := len(p.GetMoves()) - len(rows); n > 0 {
			fmt.Fprintf(out, "... and %d more\n", n)
		}
		fmt.Fprintln(out)
	}
	var rows [][]string
	for _, s := range p.GetStores() {
		rows = append(rows, []string{
			id(s.GetStoreId()), enumText(s.GetState(), "STORE_STATE_"),
			fmt.Sprintf("%d → %d", s.GetReplicas(), s.GetReplicasAfter()),
			fmt.Sprintf("%d → %d", s.GetLeaders(), s.GetLeadersAfter()),
			humanize.IBytes(s.GetBytes()) + " → " + humanize.IBytes(s.GetBytesAfter()),
		})
	}
	if err := c.table(out, strings.Fields("STORE STATE REPLICAS LEADERS BYTES"), rows); err != nil {
		return err
	}
	splits := ""
	if p.GetSplits() > 0 {
		splits = fmt.Sprintf("%d splits, ", p.GetSplits())
	}
	fmt.Fprintf(out, "\nplan %s: %s: %s%d replicas move (%s), %d leaders move, about %s\n",
		p.GetPlanId(), p.GetWhat(), splits, p.GetReplicaMoves(), humanize.IBytes(p.GetBytes()),
		p.GetLeaderMoves(), millis(p.GetEstimateMs()))
	if len(p.GetMoves()) > 0 {
		worst := "one that a split makes"
		if p.GetLowestRangeId() != 0 {
			worst = id(p.GetLowestRangeId())
		}
		fmt.Fprintf(out, "voters that the worst range (%s) can lose on the way: %d; now: %d\n",
			worst, p.GetLowestMargin(), p.GetMarginBefore())
	}
	if !p.GetComplete() {
		fmt.Fprintln(out, "that does not reach the goal: see the reasons given")
	}
	for _, b := range p.GetBlockers() {
		fmt.Fprintln(out, "  "+blockerText(b))
	}
	return nil
}

// plannedRange names the range of a move; one that a split makes has no id yet.
func plannedRange(m *pdpb.PlannedMove) string {
	if m.GetRangeId() == 0 {
		return "from " + plain(m.GetStart())
	}
	return id(m.GetRangeId())
}

func newWhatIf() *cobra.Command {
	cmd := &cobra.Command{
		Use: "what-if", Short: "Show what a loss would mean, without losing anything",
		RunE: needSubcommand,
	}
	cmd.AddCommand(newWhatIfDown())
	return cmd
}

func newWhatIfDown() *cobra.Command {
	var c connection
	cmd := &cobra.Command{
		Use: "down STORE[,STORE]...", Short: "What the loss of stores would mean",
		Args: cobra.ExactArgs(1),
	}
	limit := cmd.Flags().Int("limit", 10, "how many moves of the repair the table shows")
	return c.add(cmd, func(cmd *cobra.Command, args []string) error {
		var stores []uint64
		for part := range strings.SplitSeq(args[0], ",") {
			n, err := number("store", strings.TrimSpace(part))
			if err != nil {
				return err
			}
			stores = append(stores, n)
		}
		return c.withPD(cmd, func(ctx context.Context, pd *pdclient.Client) error {
			r, err := pd.WhatIf(ctx, false, stores...)
			if err != nil {
				return err
			}
			if c.json() {
				return c.object(cmd.OutOrStdout(), map[string]any{
					"store_ids": stores, "ranges": r.GetRanges(), "lost": r.GetLost(),
					"lost_range_ids": ids(r.GetLostRangeIds()), "weakened": r.GetWeakened(),
					"led": r.GetLed(), "needed_bytes": r.GetNeededBytes(),
					"free_bytes": r.GetFreeBytes(), "safe": r.GetSafe(),
					"plan": planObject(r.GetPlan()), "blockers": blockerObjects(r.GetBlockers()),
				})
			}
			return c.whatIf(cmd, args[0], r, *limit)
		})
	})
}

func (c *connection) whatIf(
	cmd *cobra.Command, stores string, r *pdpb.WhatIfResponse, limit int,
) error {
	out := cmd.OutOrStdout()
	fmt.Fprintf(out, "without %s: %d of %d ranges lose their quorum, %d lose voters but serve, "+
		"%d need another leader\n", stores, r.GetLost(), r.GetRanges(), r.GetWeakened(), r.GetLed())
	enough := "enough"
	if r.GetFreeBytes() < r.GetNeededBytes() {
		enough = "not enough"
	}
	fmt.Fprintf(out, "repair would copy %s; the other stores have room for %s: %s\n",
		humanize.IBytes(r.GetNeededBytes()), humanize.IBytes(r.GetFreeBytes()), enough)
	for _, b := range r.GetBlockers() {
		fmt.Fprintln(out, "  "+blockerText(b))
	}
	fmt.Fprintln(out)
	return c.plan(cmd, r.GetPlan(), limit)
}
