package command

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/dustin/go-humanize"
	"github.com/spf13/cobra"

	"github.com/ridgekv/ridge/client/pdclient"
	pdpb "github.com/ridgekv/ridge/proto/ridge/pd/v1"
)

// makePlan shows a plan, and carries it out if it shall.
func (c *connection) makePlan(
	cmd *cobra.Command, subject *pdpb.PlanSubject, limit int, apply bool,
) error {
	pd, err := c.pd(cmd.Context())
	if err != nil {
		return err
	}
	defer pd.Close()
	ctx, cancel := context.WithTimeout(cmd.Context(), c.timeout())
	defer cancel()
	r, err := pd.MakePlan(ctx, subject)
	if err != nil {
		return err
	}
	if c.json() {
		err = c.object(cmd.OutOrStdout(), planObject(r.GetPlan()))
	} else {
		err = c.plan(cmd, r.GetPlan(), limit)
	}
	if err != nil || !apply {
		return err
	}
	begun, err := pd.ApplyPlan(ctx, r.GetPlan().GetPlanId())
	if err != nil {
		return err
	}
	if !c.json() {
		fmt.Fprintln(cmd.OutOrStdout())
	}
	return c.followPlan(cmd, pd, begun.GetProgress())
}

// followPlan shows a plan until it is over.
func (c *connection) followPlan(
	cmd *cobra.Command, pd *pdclient.Client, p *pdpb.PlanProgress,
) error {
	ctx := cmd.Context()
	ticker := time.NewTicker(200 * time.Millisecond)
	defer ticker.Stop()
	last := ""
	for {
		if line := planLine(p); line != last {
			last = line
			if err := c.planProgress(cmd, p); err != nil {
				return err
			}
		}
		switch p.GetState() {
		case pdpb.PlanState_PLAN_STATE_DONE:
			return nil
		case pdpb.PlanState_PLAN_STATE_ABORTED:
			return abortedPlan(p)
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("plan %s goes on: see `ridge plan status`, or `ridge plan stop`",
				p.GetPlanId())
		case <-ticker.C:
		}
		one, cancel := context.WithTimeout(ctx, c.timeout())
		r, err := pd.GetPlanProgress(one, p.GetPlanId())
		cancel()
		switch e, refused := errors.AsType[pdclient.Error](err); {
		case refused && e.Reason == pdpb.PDErrorReason_PD_ERROR_REASON_NOT_FOUND:
			return fmt.Errorf("plan %s is over, since PD's leader has changed: %d of %d moves were done "+
				"when last heard of, and those under way may have ended half way: make it anew",
				p.GetPlanId(), p.GetDone(), p.GetMoves())
		case err != nil && ctx.Err() == nil:
			return fmt.Errorf("plan %s may go on: %w", p.GetPlanId(), err)
		case err == nil:
			p = r.GetProgress()
		}
	}
}

func abortedPlan(p *pdpb.PlanProgress) error {
	return fmt.Errorf("plan %s is given up: %s; %d of %d moves were done, %d under way end by "+
		"themselves, %d were not begun", p.GetPlanId(), strings.Join(p.GetChanged(), "; "), p.GetDone(),
		p.GetMoves(), p.GetUnderWay(), p.GetMoves()-p.GetDone()-p.GetUnderWay())
}

func planLine(p *pdpb.PlanProgress) string {
	line := fmt.Sprintf("plan %s is %s: %s: %d of %d moves done, %d under way, %s of %s",
		p.GetPlanId(), enumText(p.GetState(), "PLAN_STATE_"), p.GetWhat(), p.GetDone(), p.GetMoves(),
		p.GetUnderWay(), humanize.IBytes(p.GetBytesDone()), humanize.IBytes(p.GetBytes()))
	if p.GetWaiting() != "" && p.GetUnderWay() == 0 {
		line += "; waits: " + p.GetWaiting()
	}
	return line
}

func (c *connection) planProgress(cmd *cobra.Command, p *pdpb.PlanProgress) error {
	if !c.json() {
		_, err := fmt.Fprintln(cmd.OutOrStdout(), planLine(p))
		return err
	}
	changed := p.GetChanged()
	if changed == nil {
		changed = []string{}
	}
	return c.object(cmd.OutOrStdout(), map[string]any{
		"plan_id": p.GetPlanId(), "what": p.GetWhat(),
		"state": enumText(p.GetState(), "PLAN_STATE_"), "moves": p.GetMoves(), "done": p.GetDone(),
		"under_way": p.GetUnderWay(), "bytes": p.GetBytes(), "bytes_done": p.GetBytesDone(),
		"elapsed_ms": p.GetElapsedMs(), "changed": changed, "waiting": p.GetWaiting(),
	})
}

func newPlanStatus() *cobra.Command {
	var c connection
	cmd := &cobra.Command{
		Use: "status", Short: "Show how far the plan is that was applied last", Args: cobra.NoArgs,
	}
	return c.add(cmd, func(cmd *cobra.Command, _ []string) error {
		return c.withPD(cmd, func(ctx context.Context, pd *pdclient.Client) error {
			r, err := pd.GetPlanProgress(ctx, "")
			if err != nil {
				return err
			}
			if err := c.planProgress(cmd, r.GetProgress()); err != nil || c.json() {
				return err
			}
			for _, why := range r.GetProgress().GetChanged() {
				fmt.Fprintln(cmd.OutOrStdout(), "  "+why)
			}
			return nil
		})
	})
}

func newPlanStop() *cobra.Command {
	var c connection
	cmd := &cobra.Command{
		Use: "stop", Short: "Begin no more moves of the plan that is being applied", Args: cobra.NoArgs,
		Long: `Begin no more moves of the plan that is being applied. Those under way end by
themselves, and what was moved stays where it is.`,
	}
	return c.add(cmd, func(cmd *cobra.Command, _ []string) error {
		return c.withPD(cmd, func(ctx context.Context, pd *pdclient.Client) error {
			r, err := pd.StopPlan(ctx, "")
			if err != nil {
				return err
			}
			for p := r.GetProgress(); ; {
				if p.GetState() != pdpb.PlanState_PLAN_STATE_RUNNING {
					return c.planProgress(cmd, p)
				}
				select {
				case <-ctx.Done():
					return ctx.Err()
				case <-time.After(50 * time.Millisecond):
				}
				next, err := pd.GetPlanProgress(ctx, p.GetPlanId())
				if err != nil {
					return err
				}
				p = next.GetProgress()
			}
		})
	})
}

func newRangeScatter() *cobra.Command {
	var c connection
	var b bounds
	cmd := &cobra.Command{
		Use: "scatter", Short: "Spread the replicas and leaders of a span evenly over the stores",
		Long: `Spread the replicas and the leaders of the ranges that lie within a span evenly over
the stores: before a bulk load, or when one table is hot. Rules and failure domains
hold; ranges that reach beyond the span stay as they are. Without --prefix, --from
and --to it is all ranges.`,
		Args: cobra.NoArgs,
	}
	b.addFlags(cmd)
	dry := cmd.Flags().Bool("dry-run", false, "show the moves and change nothing")
	limit := cmd.Flags().Int("limit", 20, "how many moves the table shows; JSON has all")
	return c.add(cmd, func(cmd *cobra.Command, _ []string) error {
		span, err := b.span()
		if err != nil {
			return err
		}
		return c.makePlan(cmd, &pdpb.PlanSubject{
			Subject: &pdpb.PlanSubject_Scatter{Scatter: span.Proto()},
		}, *limit, !*dry)
	})
}
