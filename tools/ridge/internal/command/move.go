package command

import (
	"context"
	"fmt"
	"strconv"

	"github.com/spf13/cobra"

	"github.com/ridgekv/ridge/client/pdclient"
)

// number reads the id of a noun.
func number(noun, text string) (uint64, error) {
	n, err := strconv.ParseUint(text, 10, 64)
	if err != nil || n == 0 {
		article := "a"
		if noun == "operator" {
			article = "an"
		}
		return 0, usagef("%q is not %s %s id", text, article, noun)
	}
	return n, nil
}

func newRangeMove() *cobra.Command {
	var c connection
	var from, to string
	var force bool
	cmd := &cobra.Command{
		Use:   "move RANGE --from STORE --to STORE",
		Short: "Move a replica from one store to another",
		Long: `Move a replica from one store to another: a learner is added, catches up, becomes a
voter, and the old replica goes. The command returns as soon as the move has begun;
"ridge operator list" shows it.`,
		Args: cobra.ExactArgs(1),
	}
	cmd.Flags().StringVar(&from, "from", "", "store that gives the replica (required)")
	cmd.Flags().StringVar(&to, "to", "", "store that gets it (required)")
	cmd.Flags().BoolVar(&force, "force", false,
		"also into a failure domain that holds a replica already")
	return c.add(cmd, func(cmd *cobra.Command, args []string) error {
		var ids [3]uint64
		for i, text := range []string{args[0], from, to} {
			var err error
			if ids[i], err = number([]string{"range", "store", "store"}[i], text); err != nil {
				return err
			}
		}
		return c.withPD(cmd, func(ctx context.Context, pd *pdclient.Client) error {
			r, err := pd.MoveReplica(ctx, ids[0], ids[1], ids[2], force)
			if err != nil {
				return err
			}
			return c.began(cmd, "began", r.GetOperator())
		})
	})
}

func newRangeTransferLeader() *cobra.Command {
	var c connection
	cmd := &cobra.Command{
		Use: "transfer-leader RANGE STORE", Short: "Let the voter on a store lead the range",
		Args: cobra.ExactArgs(2),
	}
	return c.add(cmd, func(cmd *cobra.Command, args []string) error {
		rangeID, err := number("range", args[0])
		if err != nil {
			return err
		}
		storeID, err := number("store", args[1])
		if err != nil {
			return err
		}
		return c.withPD(cmd, func(ctx context.Context, pd *pdclient.Client) error {
			r, err := pd.MoveLeader(ctx, rangeID, storeID)
			if err != nil {
				return err
			}
			if r.GetOperator() != nil {
				return c.began(cmd, "began", r.GetOperator())
			}
			if c.json() {
				return c.object(cmd.OutOrStdout(), map[string]any{
					"range_id": rangeID, "leader_store_id": storeID,
				})
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "store %d leads range %d already\n", storeID, rangeID)
			return err
		})
	})
}
