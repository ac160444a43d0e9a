package command

import (
	"context"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/ridgekv/ridge/client/pdclient"
	pdpb "github.com/ridgekv/ridge/proto/ridge/pd/v1"
)

func newConfig() *cobra.Command {
	cmd := &cobra.Command{
		Use: "config", Short: "Look at PD's settings and change them while it runs",
		RunE: needSubcommand,
	}
	cmd.AddCommand(newConfigGet(), newConfigSet(), newConfigUnset())
	return cmd
}

func newConfigGet() *cobra.Command {
	var c connection
	cmd := &cobra.Command{
		Use: "get [KEY]", Short: "Show PD's settings, or one of them",
		Args: cobra.MaximumNArgs(1),
	}
	return c.add(cmd, func(cmd *cobra.Command, args []string) error {
		return c.withPD(cmd, func(ctx context.Context, pd *pdclient.Client) error {
			r, err := pd.ListSettings(ctx)
			if err != nil {
				return err
			}
			if len(args) == 0 {
				return c.settings(cmd, r.GetSettings())
			}
			for _, s := range r.GetSettings() {
				if s.GetKey() != args[0] {
					continue
				}
				if c.json() {
					return c.object(cmd.OutOrStdout(), settingObject(s))
				}
				_, err := fmt.Fprintln(cmd.OutOrStdout(), s.GetValue())
				return err
			}
			return fmt.Errorf("no setting is called %q; `ridge config get` lists all", args[0])
		})
	})
}

func newConfigSet() *cobra.Command {
	var c connection
	cmd := &cobra.Command{
		Use: "set KEY VALUE [KEY VALUE]...", Short: "Change settings, all that are named or none",
		Long: `Change settings of PD, all that are named or none. They count at once, on every PD
node, and go on counting after restarts. The journal tells who looks later.`,
		Example: "  ridge config set replicas 5\n  ridge config set store_down_after 30m retention 1h",
		Args:    cobra.MinimumNArgs(2),
	}
	return c.add(cmd, func(cmd *cobra.Command, args []string) error {
		if len(args)%2 != 0 {
			return usagef("%s has no value", args[len(args)-1])
		}
		set := map[string]string{}
		for i := 0; i < len(args); i += 2 {
			if _, twice := set[args[i]]; twice {
				return usagef("%s is given twice", args[i])
			}
			set[args[i]] = args[i+1]
		}
		return c.withPD(cmd, func(ctx context.Context, pd *pdclient.Client) error {
			r, err := pd.SetSettings(ctx, set)
			if err != nil {
				return err
			}
			return c.settings(cmd, r.GetSettings())
		})
	})
}

func newConfigUnset() *cobra.Command {
	var c connection
	cmd := &cobra.Command{
		Use: "unset KEY...", Short: "Let what the PD nodes are started with count again",
		Args: cobra.MinimumNArgs(1),
	}
	return c.add(cmd, func(cmd *cobra.Command, args []string) error {
		return c.withPD(cmd, func(ctx context.Context, pd *pdclient.Client) error {
			r, err := pd.SetSettings(ctx, nil, args...)
			if err != nil {
				return err
			}
			return c.settings(cmd, r.GetSettings())
		})
	})
}

func (c *connection) settings(cmd *cobra.Command, settings []*pdpb.Setting) error {
	if c.json() {
		objects := []map[string]any{}
		for _, s := range settings {
			objects = append(objects, settingObject(s))
		}
		return c.object(cmd.OutOrStdout(), map[string]any{"settings": objects})
	}
	var rows [][]string
	for _, s := range settings {
		origin := "as started"
		if s.GetSet() {
			origin = "set (started with " + s.GetGiven() + ")"
		}
		rows = append(rows, []string{s.GetKey(), s.GetValue(), origin, s.GetHelp()})
	}
	return c.table(cmd.OutOrStdout(), strings.Fields("KEY VALUE ORIGIN MEANING"), rows)
}

func settingObject(s *pdpb.Setting) map[string]any {
	return map[string]any{
		"key": s.GetKey(), "value": s.GetValue(), "given": s.GetGiven(), "set": s.GetSet(),
		"help": s.GetHelp(),
	}
}
