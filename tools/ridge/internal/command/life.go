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
	metapb "github.com/ridgekv/ridge/proto/ridge/meta/v1"
	pdpb "github.com/ridgekv/ridge/proto/ridge/pd/v1"
)

// storeCommand is a command about one store.
func storeCommand(
	c *connection, cmd *cobra.Command,
	body func(ctx context.Context, pd *pdclient.Client, id uint64) error,
) *cobra.Command {
	cmd.Args = cobra.ExactArgs(1)
	return c.add(cmd, func(cmd *cobra.Command, args []string) error {
		n, err := number("store", args[0])
		if err != nil {
			return err
		}
		pd, err := c.pd(cmd.Context())
		if err != nil {
			return err
		}
		defer pd.Close()
		return body(cmd.Context(), pd, n)
	})
}

func newStoreDrain() *cobra.Command {
	var c connection
	var w waiting
	cmd := &cobra.Command{
		Use: "drain STORE", Short: "Let a store give its leaders away, for a restart",
		Long: `Let a store give its leaders away and get none, so that a restart is not felt. Its
replicas stay. "ridge store resume" ends it.`,
	}
	w.addFlags(cmd)
	return storeCommand(&c, cmd, func(ctx context.Context, pd *pdclient.Client, n uint64) error {
		if _, err := pd.DrainStore(ctx, n); err != nil {
			return err
		}
		return c.follow(ctx, cmd, pd, n, w, func(d *pdpb.DescribeStoreResponse) bool {
			return d.GetLeaders() == 0 && d.GetStore().GetStats().GetLeaderCount() == 0
		})
	})
}

func newStoreResume() *cobra.Command {
	var c connection
	cmd := &cobra.Command{
		Use: "resume STORE", Aliases: []string{"undrain"},
		Short: "Call a store back that drains or leaves",
	}
	return storeCommand(&c, cmd, func(ctx context.Context, pd *pdclient.Client, n uint64) error {
		if _, err := pd.ResumeStore(ctx, n); err != nil {
			return err
		}
		return c.follow(ctx, cmd, pd, n, waiting{}, nil)
	})
}

func newStoreDecommission() *cobra.Command {
	var c connection
	var w waiting
	var cancel bool
	cmd := &cobra.Command{
		Use: "decommission STORE", Short: "Move all replicas of a store away, after which it is gone",
		Long: `Move all replicas of a store away. When it holds nothing more it is gone for ever: its
process ends and its id never comes back. It goes on after restarts of anything;
--cancel calls the store back, and what has moved stays where it is.`,
	}
	w.addFlags(cmd)
	cmd.Flags().BoolVar(&cancel, "cancel", false, "call the store back")
	return storeCommand(&c, cmd, func(ctx context.Context, pd *pdclient.Client, n uint64) error {
		if cancel {
			if _, err := pd.ResumeStore(ctx, n); err != nil {
				return err
			}
			return c.follow(ctx, cmd, pd, n, waiting{}, nil)
		}
		if _, err := pd.DecommissionStore(ctx, n); err != nil {
			return err
		}
		return c.follow(ctx, cmd, pd, n, w, func(d *pdpb.DescribeStoreResponse) bool {
			return d.GetStore().GetStore().GetState() == metapb.StoreState_STORE_STATE_GONE
		})
	})
}

func newStoreForget() *cobra.Command {
	var c connection
	var yes bool
	cmd := &cobra.Command{
		Use: "forget STORE --yes", Short: "Declare a lost store gone, for ever",
		Long: `Declare a store gone whose data is lost, without waiting for store_down_after. Its
replicas are replaced at once and its id never comes back. Refused while it is heard,
and while a range would be without a quorum for ever.`,
	}
	cmd.Flags().BoolVar(&yes, "yes", false, "do it: this cannot be taken back")
	return storeCommand(&c, cmd, func(ctx context.Context, pd *pdclient.Client, n uint64) error {
		if !yes {
			return usagef("a store that is gone never comes back: say --yes")
		}
		if _, err := pd.ForgetStore(ctx, n); err != nil {
			return err
		}
		return c.follow(ctx, cmd, pd, n, waiting{}, nil)
	})
}

func newStoreSafeToRestart() *cobra.Command {
	var c connection
	cmd := &cobra.Command{
		Use: "safe-to-restart STORE", Short: "Exit 0 if every range keeps its quorum without the store",
		Long: `Exit with 0 if every range keeps its quorum while the store restarts, else with 1 and
the ranges that would lose it. Replicas that lag behind are not counted on. Made for
hooks of systemd and Kubernetes.`,
	}
	return storeCommand(&c, cmd, func(ctx context.Context, pd *pdclient.Client, n uint64) error {
		ctx, cancel := context.WithTimeout(ctx, c.timeout())
		defer cancel()
		r, err := pd.WhatIf(ctx, true, n)
		if err != nil {
			return err
		}
		out := cmd.OutOrStdout()
		if c.json() {
			err = c.object(out, map[string]any{
				"store_id": n, "safe": r.GetSafe(), "lost_range_ids": ids(r.GetLostRangeIds()),
				"lost": r.GetLost(), "weakened": r.GetWeakened(), "led": r.GetLed(),
				"blockers": blockerObjects(r.GetBlockers()),
			})
		} else if r.GetSafe() {
			_, err = fmt.Fprintf(out, "safe: all %d ranges keep their quorum without store %d, "+
				"which leads %d of them\n", r.GetRanges(), n, r.GetLed())
		} else {
			fmt.Fprintf(out, "not safe: %d of %d ranges would lose their quorum without store %d\n",
				r.GetLost(), r.GetRanges(), n)
			err = c.blockers(cmd, r.GetBlockers())
		}
		if err == nil && !r.GetSafe() {
			err = silentError{errors.New("not safe")}
		}
		return err
	})
}

// waiting is whether a command waits for what it began.
type waiting struct {
	wait  bool
	bound time.Duration
}

func (w *waiting) addFlags(cmd *cobra.Command) {
	cmd.Flags().BoolVar(&w.wait, "wait", false, "wait until it is done, showing progress")
	cmd.Flags().DurationVar(&w.bound, "wait-timeout", 0,
		"give up waiting after this time (default: never)")
}

// follow shows a store, and waits until done if it shall.
func (c *connection) follow(
	ctx context.Context, cmd *cobra.Command, pd *pdclient.Client, id uint64, w waiting,
	done func(*pdpb.DescribeStoreResponse) bool,
) error {
	if w.bound > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, w.bound)
		defer cancel()
	}
	ticker := time.NewTicker(500 * time.Millisecond)
	defer ticker.Stop()
	began, first, last := time.Now(), uint64(0), ""
	for {
		one, cancel := context.WithTimeout(ctx, c.timeout())
		d, err := pd.DescribeStore(one, id)
		cancel()
		if err != nil {
			return err
		}
		if !w.wait || done(d) {
			return c.progress(cmd, d, "")
		}
		if first == 0 {
			first = d.GetBytes()
		}
		if line := progressLine(d) + eta(first, d.GetBytes(), time.Since(began)); line != last {
			last = line
			if err := c.progress(cmd, d, line); err != nil {
				return err
			}
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("store %d is not done yet: %s: it goes on", id, progressLine(d))
		case <-ticker.C:
		}
	}
}

func progressLine(d *pdpb.DescribeStoreResponse) string {
	line := fmt.Sprintf("store %d is %s: %d leaders, %d replicas, %s left, %d moving",
		d.GetStore().GetStore().GetStoreId(),
		enumText(d.GetStore().GetStore().GetState(), "STORE_STATE_"), d.GetLeaders(), d.GetReplicas(),
		humanize.IBytes(d.GetBytes()), d.GetMoving())
	if n := d.GetStore().GetStats().GetGarbageSlices(); d.GetReplicas() == 0 && n > 0 {
		line += fmt.Sprintf(", %d slices of old data", n)
	}
	return line
}

// eta judges by what has moved so far.
func eta(first, left uint64, took time.Duration) string {
	if first <= left || left == 0 {
		return ""
	}
	rest := time.Duration(float64(took) * float64(left) / float64(first-left))
	return ", about " + rest.Round(time.Second).String()
}

// progress answers with a store; line is set while it is still under way.
func (c *connection) progress(
	cmd *cobra.Command, d *pdpb.DescribeStoreResponse, line string,
) error {
	st := d.GetStore().GetStore()
	if c.json() {
		return c.object(cmd.OutOrStdout(), map[string]any{
			"store_id": st.GetStoreId(), "state": enumText(st.GetState(), "STORE_STATE_"),
			"leaders": d.GetLeaders(), "replicas": d.GetReplicas(), "bytes": d.GetBytes(),
			"held": d.GetHeld(), "moving": d.GetMoving(), "done": line == "",
			"blockers": blockerObjects(d.GetBlockers()),
		})
	}
	if line == "" {
		line = progressLine(d)
	}
	fmt.Fprintln(cmd.OutOrStdout(), line)
	for _, b := range d.GetBlockers() {
		fmt.Fprintln(cmd.OutOrStdout(), "  "+blockerText(b))
	}
	return nil
}

func blockerText(b *pdpb.Blocker) string {
	text := b.GetReason()
	if b.GetRangeCount() > 0 {
		text = rangesText(b.GetRangeIds(), b.GetRangeCount()) + ": " + text
	}
	if b.GetRemedy() != "" {
		text += " (" + b.GetRemedy() + ")"
	}
	return text
}

func rangesText(ids []uint64, count uint32) string {
	if count == 1 && len(ids) == 1 {
		return "range " + id(ids[0])
	}
	var parts []string
	for _, n := range ids[:min(len(ids), 5)] {
		parts = append(parts, id(n))
	}
	text := fmt.Sprintf("%d ranges (%s", count, strings.Join(parts, ", "))
	if int(count) > len(parts) {
		text += ", ..."
	}
	return text + ")"
}

func (c *connection) blockers(cmd *cobra.Command, blockers []*pdpb.Blocker) error {
	var rows [][]string
	for _, b := range blockers {
		ranges := ""
		if b.GetRangeCount() > 0 {
			ranges = rangesText(b.GetRangeIds(), b.GetRangeCount())
		}
		rows = append(rows, []string{ranges, b.GetReason(), b.GetRemedy()})
	}
	return c.table(cmd.OutOrStdout(), []string{"RANGES", "WHY", "WHAT WOULD HELP"}, rows)
}

func blockerObjects(blockers []*pdpb.Blocker) []map[string]any {
	out := []map[string]any{}
	for _, b := range blockers {
		out = append(out, map[string]any{
			"reason": b.GetReason(), "range_ids": ids(b.GetRangeIds()),
			"range_count": b.GetRangeCount(), "remedy": b.GetRemedy(),
		})
	}
	return out
}

// ids is never null in JSON.
func ids(list []uint64) []uint64 {
	if list == nil {
		return []uint64{}
	}
	return list
}
