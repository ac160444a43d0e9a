package command

import (
	"bufio"
	"context"
	"fmt"
	"iter"

	"github.com/spf13/cobra"

	"github.com/ridgekv/ridge/client"
	"github.com/ridgekv/ridge/proto/keys"
)

// bounds are the flags that choose a span.
type bounds struct {
	arguments
	prefix, from, to string
}

func (b *bounds) addFlags(cmd *cobra.Command) {
	b.arguments.addFlags(cmd)
	cmd.Flags().StringVar(&b.prefix, "prefix", "", "only keys that begin with this")
	cmd.Flags().StringVar(&b.from, "from", "", "first key, inclusive")
	cmd.Flags().StringVar(&b.to, "to", "", "last key, exclusive")
}

func (b *bounds) span() (keys.Span, error) {
	in, err := b.decode(b.prefix, b.from, b.to)
	if err != nil {
		return keys.Span{}, err
	}
	if b.prefix != "" && b.from+b.to != "" {
		return keys.Span{}, usagef("--prefix excludes --from and --to")
	}
	if b.prefix != "" {
		return keys.Prefix(in[0]), nil
	}
	span := keys.Span{Start: in[1], End: in[2]}
	if !span.Valid() {
		return span, usagef("--from %s is not below --to %s", plain(in[1]), plain(in[2]))
	}
	return span, nil
}

func newScan() *cobra.Command {
	var c connection
	var b bounds
	var limit int
	var reverse, keysOnly bool
	cmd := &cobra.Command{
		Use:   "scan",
		Short: "Print rows in the order of their keys, one a line",
		Long: "Print rows in the order of their keys, one a line: key, tab, value.\n\n" +
			"What is not printable is quoted. With -o json each line is an object as `load` reads it.",
		Args: cobra.NoArgs,
	}
	b.addFlags(cmd)
	cmd.Flags().IntVar(&limit, "limit", 0, "at most this many rows; 0 is all")
	cmd.Flags().BoolVar(&reverse, "reverse", false, "from the last key to the first")
	cmd.Flags().BoolVar(&keysOnly, "keys-only", false, "leave the values out")
	return c.add(cmd, func(cmd *cobra.Command, _ []string) error {
		span, err := b.span()
		if err != nil {
			return err
		}
		if limit < 0 {
			return usagef("--limit: %d is negative", limit)
		}
		kv, err := c.client(cmd.Context())
		if err != nil {
			return err
		}
		defer kv.Close()
		return c.print(cmd, scan(cmd.Context(), kv, span, reverse, limit, keysOnly), keysOnly)
	})
}

func scan(
	ctx context.Context, kv *client.Client, span keys.Span, reverse bool, limit int, keysOnly bool,
) iter.Seq2[client.Row, error] {
	var options []client.Option
	if limit > 0 {
		options = append(options, client.WithLimit(limit))
	}
	if keysOnly {
		options = append(options, client.WithKeysOnly())
	}
	if reverse {
		return kv.ReverseScan(ctx, span, options...)
	}
	return kv.Scan(ctx, span, options...)
}

func (c *connection) print(
	cmd *cobra.Command, rows iter.Seq2[client.Row, error], keysOnly bool,
) error {
	w := bufio.NewWriter(cmd.OutOrStdout())
	for row, err := range rows {
		if err == nil {
			switch {
			case c.json():
				err = c.object(w, rowObject(row, keysOnly))
			case keysOnly:
				_, err = fmt.Fprintln(w, plain(row.Key))
			default:
				_, err = fmt.Fprintf(w, "%s\t%s\n", plain(row.Key), plain(row.Value))
			}
		}
		if err != nil {
			_ = w.Flush()
			return err
		}
	}
	return w.Flush()
}
