package command

import (
	"context"
	"encoding/base64"
	"os"
	"time"

	"github.com/spf13/cobra"

	"github.com/ridgekv/ridge/client"
	"github.com/ridgekv/ridge/client/pdclient"
	"github.com/ridgekv/ridge/tools/ridge/internal/config"
	"github.com/ridgekv/ridge/tools/ridge/internal/serve"
)

// connection is what the commands that speak to a cluster have in common.
type connection struct {
	output
	values config.Values
}

// add gives cmd the flags of a connection and runs body with it.
func (c *connection) add(
	cmd *cobra.Command, body func(cmd *cobra.Command, args []string) error,
) *cobra.Command {
	schema := config.Client()
	schema.AddFlags(cmd.Flags())
	c.addFlags(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if err := c.check(); err != nil {
			return err
		}
		v, err := schema.Load(cmd.Flags(), os.Environ())
		if err != nil {
			return err
		}
		c.values = v
		return body(cmd, args)
	}
	return cmd
}

func (c *connection) timeout() time.Duration { return c.values.Duration("timeout") }

// client opens the smart client.
func (c *connection) client(ctx context.Context) (*client.Client, error) {
	files := tlsFiles(c.values)
	tlsConfig, err := files.Client()
	if err != nil {
		return nil, usageError{err}
	}
	ctx, cancel := context.WithTimeout(ctx, c.timeout())
	defer cancel()
	return client.Open(ctx, client.Options{
		PD: c.values.Strings("pd"), TLS: tlsConfig, Timeout: c.timeout(),
	})
}

// pd opens a client of the placement driver.
func (c *connection) pd(ctx context.Context) (*pdclient.Client, error) {
	files := tlsFiles(c.values)
	tlsConfig, err := files.Client()
	if err != nil {
		return nil, usageError{err}
	}
	return pdclient.Open(ctx, pdclient.Options{
		Addresses: c.values.Strings("pd"), TLS: tlsConfig, Timeout: c.timeout(),
	})
}

func tlsFiles(v config.Values) serve.Files {
	return serve.Files{
		CA: v.String("tls.ca"), Cert: v.String("tls.cert"), Key: v.String("tls.key"),
	}
}

// arguments decodes keys and values given on the command line.
type arguments struct{ b64 bool }

func (a *arguments) addFlags(cmd *cobra.Command) {
	cmd.Flags().BoolVar(&a.b64, "b64", false, "keys and values are given in base64")
}

func (a *arguments) decode(args ...string) ([][]byte, error) {
	out := make([][]byte, len(args))
	for i, s := range args {
		out[i] = []byte(s)
		if !a.b64 {
			continue
		}
		b, err := base64.StdEncoding.DecodeString(s)
		if err != nil {
			return nil, usagef("--b64: %q: %w", s, err)
		}
		out[i] = b
	}
	return out, nil
}
