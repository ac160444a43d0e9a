package command

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/ridgekv/ridge/client"
	"github.com/ridgekv/ridge/proto/keys"
	"github.com/ridgekv/ridge/proto/ts"
)

// checkKey refuses a key before anything is dialled.
func checkKey(key []byte) error {
	if len(key) == 0 {
		return errors.New("the key is empty: keys have 1 to 4,096 bytes")
	}
	if len(key) > keys.MaxKeySizeBytes {
		return fmt.Errorf("the key has %d bytes: at most %d", len(key), keys.MaxKeySizeBytes)
	}
	return nil
}

func checkValue(value []byte) error {
	if len(value) > keys.MaxValueSizeBytes {
		return fmt.Errorf("the value has %d bytes: at most %d", len(value), keys.MaxValueSizeBytes)
	}
	return nil
}

// with opens the client, runs body within the timeout and closes.
func (c *connection) with(
	cmd *cobra.Command, body func(ctx context.Context, kv *client.Client) error,
) error {
	kv, err := c.client(cmd.Context())
	if err != nil {
		return err
	}
	defer kv.Close()
	ctx, cancel := context.WithTimeout(cmd.Context(), c.timeout())
	defer cancel()
	return body(ctx, kv)
}

func newGet() *cobra.Command {
	var c connection
	var a arguments
	cmd := &cobra.Command{
		Use: "get KEY", Short: "Print the value of a key; exit code 1 if there is none",
		Args: cobra.ExactArgs(1),
	}
	a.addFlags(cmd)
	stale := cmd.Flags().Duration("stale", 0, "accept an answer this old, from any replica")
	return c.add(cmd, func(cmd *cobra.Command, args []string) error {
		in, err := a.decode(args...)
		if err != nil {
			return err
		}
		if err := checkKey(in[0]); err != nil {
			return err
		}
		var options []client.Option
		if *stale > 0 {
			options = append(options, client.WithConsistency(client.Stale(*stale)))
		}
		return c.with(cmd, func(ctx context.Context, kv *client.Client) error {
			row, found, err := kv.Get(ctx, in[0], options...)
			if err != nil {
				return err
			}
			if !found {
				return errors.New("key not found")
			}
			row.Key = in[0]
			if c.json() {
				return c.object(cmd.OutOrStdout(), rowObject(row, false))
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "%s\n", row.Value)
			return err
		})
	})
}

func newPut() *cobra.Command {
	var c connection
	var a arguments
	cmd := &cobra.Command{Use: "put KEY VALUE", Short: "Write a key", Args: cobra.ExactArgs(2)}
	a.addFlags(cmd)
	ttl := cmd.Flags().Duration("ttl", 0, "life of the row; 0 is for ever")
	return c.add(cmd, func(cmd *cobra.Command, args []string) error {
		in, err := a.decode(args...)
		if err != nil {
			return err
		}
		if err := errors.Join(checkKey(in[0]), checkValue(in[1])); err != nil {
			return err
		}
		return c.with(cmd, func(ctx context.Context, kv *client.Client) error {
			at, err := kv.Put(ctx, in[0], in[1], ttlOption(*ttl)...)
			return c.written(cmd, at, err)
		})
	})
}

func newDelete() *cobra.Command {
	var c connection
	var a arguments
	cmd := &cobra.Command{
		Use: "delete KEY", Short: "Remove a key, whether it exists or not", Args: cobra.ExactArgs(1),
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
		return c.with(cmd, func(ctx context.Context, kv *client.Client) error {
			at, err := kv.Delete(ctx, in[0])
			return c.written(cmd, at, err)
		})
	})
}

// written answers a write.
func (c *connection) written(cmd *cobra.Command, at ts.Timestamp, err error) error {
	if err != nil {
		return err
	}
	if c.json() {
		return c.object(cmd.OutOrStdout(), map[string]any{"commit_ts": uint64(at)})
	}
	_, err = fmt.Fprintln(cmd.OutOrStdout(), "ok")
	return err
}

func newCAS() *cobra.Command {
	var c connection
	var a arguments
	var absent, remove bool
	cmd := &cobra.Command{
		Use:   "cas KEY OLD NEW",
		Short: "Write NEW if the value is OLD; exit code 1 if it is not",
		Long: "Write NEW if the value of KEY is OLD; exit code 1 if it is not.\n\n" +
			"With --absent: `cas KEY NEW` writes if there is no such key.\n" +
			"With --delete: `cas KEY OLD` removes the key if its value is OLD.",
		Args: func(cmd *cobra.Command, args []string) error {
			want := 3
			if absent {
				want--
			}
			if remove {
				want--
			}
			return cobra.ExactArgs(want)(cmd, args)
		},
	}
	a.addFlags(cmd)
	cmd.Flags().BoolVar(&absent, "absent", false, "expect that the key does not exist")
	cmd.Flags().BoolVar(&remove, "delete", false, "remove the key instead of writing")
	ttl := cmd.Flags().Duration("ttl", 0, "life of the row; 0 is for ever")
	return c.add(cmd, func(cmd *cobra.Command, args []string) error {
		if absent && remove {
			return usagef("--absent and --delete exclude each other")
		}
		in, err := a.decode(args...)
		if err != nil {
			return err
		}
		swap := client.Swap{Key: in[0], ExpectAbsent: absent, Delete: remove}
		if !absent {
			swap.Expected = in[1]
		}
		if !remove {
			swap.Value = in[len(in)-1]
		}
		if err := errors.Join(checkKey(swap.Key), checkValue(swap.Value)); err != nil {
			return err
		}
		return c.with(cmd, func(ctx context.Context, kv *client.Client) error {
			r, err := kv.CompareAndSwap(ctx, swap, ttlOption(*ttl)...)
			if err != nil {
				return err
			}
			return c.swapped(cmd, swap.Key, r)
		})
	})
}

// swapped answers a CompareAndSwap.
func (c *connection) swapped(cmd *cobra.Command, key []byte, r client.SwapResult) error {
	if c.json() {
		object := map[string]any{"swapped": r.Swapped}
		if r.Swapped {
			object["commit_ts"] = uint64(r.CommitTS)
		} else {
			object["found"] = r.Found
		}
		if !r.Swapped && r.Found {
			r.Current.Key = key
			object["current"] = rowObject(r.Current, false)
		}
		if err := c.object(cmd.OutOrStdout(), object); err != nil {
			return err
		}
	}
	switch {
	case r.Swapped && !c.json():
		_, err := fmt.Fprintln(cmd.OutOrStdout(), "ok")
		return err
	case r.Swapped:
		return nil
	case c.json():
		return silentError{errors.New("not swapped")}
	case r.Found:
		return fmt.Errorf("not swapped: the value is %s", plain(r.Current.Value))
	}
	return errors.New("not swapped: the key does not exist")
}

func ttlOption(ttl time.Duration) []client.Option {
	if ttl == 0 {
		return nil
	}
	return []client.Option{client.WithTTL(ttl)}
}

// rowObject is a row in JSON.
func rowObject(r client.Row, keysOnly bool) map[string]any {
	object := map[string]any{"commit_ts": uint64(r.CommitTS)}
	putBytes(object, "key", r.Key)
	if !keysOnly {
		putBytes(object, "value", r.Value)
	}
	if r.ExpiresAt != 0 {
		object["expires_at_unix_ms"] = r.ExpiresAt.Physical()
	}
	return object
}
