package command

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/ridgekv/ridge/client/pdclient"
	pdpb "github.com/ridgekv/ridge/proto/ridge/pd/v1"
)

func newOperator() *cobra.Command {
	cmd := &cobra.Command{
		Use: "operator", Short: "Look at the changes in flight and cancel them", RunE: needSubcommand,
	}
	cmd.AddCommand(newOperatorList(), newOperatorCancel())
	return cmd
}

func newOperatorList() *cobra.Command {
	var c connection
	cmd := &cobra.Command{
		Use: "list", Aliases: []string{"ls"}, Args: cobra.NoArgs,
		Short: "List the changes in flight, and why others are not made",
	}
	return c.add(cmd, func(cmd *cobra.Command, _ []string) error {
		return c.withPD(cmd, func(ctx context.Context, pd *pdclient.Client) error {
			r, err := pd.ListOperators(ctx)
			if err != nil {
				return err
			}
			if c.json() {
				return c.object(cmd.OutOrStdout(), map[string]any{
					"operators": operatorObjects(r.GetOperators()),
					"verdicts":  verdictObjects(r.GetVerdicts()), "waiting": r.GetWaiting(),
				})
			}
			return c.operators(cmd, r)
		})
	})
}

func (c *connection) operators(cmd *cobra.Command, r *pdpb.ListOperatorsResponse) error {
	out := cmd.OutOrStdout()
	if r.GetWaiting() != "" {
		fmt.Fprintf(out, "nothing is planned: %s\n\n", r.GetWaiting())
	}
	if err := c.table(out, strings.Fields("OPERATOR RANGE STEP AGE STEPS WHY"),
		operatorRows(r.GetOperators())); err != nil || len(r.GetVerdicts()) == 0 {
		return err
	}
	fmt.Fprintln(out)
	var rows [][]string
	for _, v := range r.GetVerdicts() {
		rows = append(rows, []string{id(v.GetRangeId()), v.GetReason()})
	}
	return c.table(out, []string{"RANGE", "NOT CHANGED BECAUSE"}, rows)
}

func operatorRows(operators []*pdpb.OperatorInfo) [][]string {
	var rows [][]string
	for _, o := range operators {
		rows = append(rows, []string{
			id(o.GetOperatorId()), id(o.GetRangeId()),
			fmt.Sprintf("%d/%d", min(int(o.GetCurrent())+1, len(o.GetSteps())), len(o.GetSteps())),
			millis(o.GetAgeMs()), strings.Join(o.GetSteps(), ", "), o.GetReason(),
		})
	}
	return rows
}

// millis renders a time that nobody needs exactly.
func millis(ms uint64) string {
	d := time.Duration(ms) * time.Millisecond
	if d >= 10*time.Second {
		return d.Round(time.Second).String()
	}
	return d.Round(100 * time.Millisecond).String()
}

func operatorObjects(operators []*pdpb.OperatorInfo) []map[string]any {
	out := []map[string]any{}
	for _, o := range operators {
		out = append(out, operatorObject(o))
	}
	return out
}

func operatorObject(o *pdpb.OperatorInfo) map[string]any {
	return map[string]any{
		"operator_id": o.GetOperatorId(), "range_id": o.GetRangeId(), "reason": o.GetReason(),
		"steps": o.GetSteps(), "current": o.GetCurrent(), "age_ms": o.GetAgeMs(),
	}
}

func verdictObjects(verdicts []*pdpb.Verdict) []map[string]any {
	out := []map[string]any{}
	for _, v := range verdicts {
		out = append(out, map[string]any{"range_id": v.GetRangeId(), "reason": v.GetReason()})
	}
	return out
}

// began answers with an operator that was begun or cancelled by hand.
func (c *connection) began(cmd *cobra.Command, verb string, o *pdpb.OperatorInfo) error {
	if c.json() {
		return c.object(cmd.OutOrStdout(), operatorObject(o))
	}
	_, err := fmt.Fprintf(cmd.OutOrStdout(), "%s operator %d: range %d: %s\n", verb,
		o.GetOperatorId(), o.GetRangeId(), strings.Join(o.GetSteps(), ", "))
	return err
}

func newOperatorCancel() *cobra.Command {
	var c connection
	cmd := &cobra.Command{
		Use: "cancel OPERATOR", Short: "Cancel a change in flight; what it has done stays",
		Args: cobra.ExactArgs(1),
	}
	return c.add(cmd, func(cmd *cobra.Command, args []string) error {
		n, err := number("operator", args[0])
		if err != nil {
			return err
		}
		return c.withPD(cmd, func(ctx context.Context, pd *pdclient.Client) error {
			r, err := pd.CancelOperator(ctx, n)
			if err != nil {
				return err
			}
			return c.began(cmd, "cancelled", r.GetOperator())
		})
	})
}

func newSchedule() *cobra.Command {
	cmd := &cobra.Command{
		Use: "schedule", Short: "Pause PD's scheduling and resume it", RunE: needSubcommand,
	}
	cmd.AddCommand(newSchedulePause(), newScheduleResume(), newScheduleStatus())
	return cmd
}

func newSchedulePause() *cobra.Command {
	var c connection
	var length time.Duration
	var all bool
	cmd := &cobra.Command{
		Use: "pause --for TIME", Short: "Stop balancing and splitting for a time; repair goes on",
		Long: `Stop balancing and splitting for a time. Repair of ranges that lost replicas and the
emptying of stores go on, unless --all is given. What is in flight ends. The pause
is remembered by all PD nodes and ends by itself.`,
		Args: cobra.NoArgs,
	}
	cmd.Flags().DurationVar(&length, "for", 0, "how long (required; at most 168h)")
	cmd.Flags().BoolVar(&all, "all", false, "pause repair too")
	return c.add(cmd, func(cmd *cobra.Command, _ []string) error {
		if length <= 0 {
			return usagef("--for is needed: how long, as 10m")
		}
		return c.withPD(cmd, func(ctx context.Context, pd *pdclient.Client) error {
			r, err := pd.PauseSchedule(ctx, length, all)
			if err != nil {
				return err
			}
			return c.schedule(cmd, r.GetPause(), "", 0)
		})
	})
}

func newScheduleResume() *cobra.Command {
	var c connection
	cmd := &cobra.Command{Use: "resume", Short: "End a pause", Args: cobra.NoArgs}
	return c.add(cmd, func(cmd *cobra.Command, _ []string) error {
		return c.withPD(cmd, func(ctx context.Context, pd *pdclient.Client) error {
			if _, err := pd.PauseSchedule(ctx, 0, false); err != nil {
				return err
			}
			return c.schedule(cmd, nil, "", 0)
		})
	})
}

func newScheduleStatus() *cobra.Command {
	var c connection
	cmd := &cobra.Command{
		Use: "status", Short: "Show whether scheduling is paused", Args: cobra.NoArgs,
	}
	return c.add(cmd, func(cmd *cobra.Command, _ []string) error {
		return c.withPD(cmd, func(ctx context.Context, pd *pdclient.Client) error {
			r, err := pd.GetSchedule(ctx)
			if err != nil {
				return err
			}
			return c.schedule(cmd, r.GetPause(), r.GetWaiting(), r.GetOperatorCount())
		})
	})
}

func (c *connection) schedule(
	cmd *cobra.Command, p *pdpb.Pause, waiting string, operators uint64,
) error {
	if c.json() {
		return c.object(cmd.OutOrStdout(), map[string]any{
			"paused": p != nil, "until_unix_ms": p.GetUntilUnixMs(), "all": p.GetAll(),
			"waiting": waiting, "operator_count": operators,
		})
	}
	text := "scheduling goes on"
	if p != nil {
		until := time.UnixMilli(int64(p.GetUntilUnixMs()))
		text = "balancing and splitting are paused"
		if p.GetAll() {
			text = "all scheduling is paused, repair too,"
		}
		text += fmt.Sprintf(" until %s (%s)", until.UTC().Format(time.RFC3339),
			time.Until(until).Round(time.Second))
	}
	if waiting != "" && !p.GetAll() {
		text += "; nothing is planned now: " + waiting
	}
	if operators > 0 {
		text += fmt.Sprintf("; %d changes are in flight", operators)
	}
	_, err := fmt.Fprintln(cmd.OutOrStdout(), text)
	return err
}
