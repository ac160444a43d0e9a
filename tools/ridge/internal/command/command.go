// Package command is what a user can type: it turns arguments and
// configuration into options, and answers into text.
package command

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/ridgekv/ridge/tools/ridge/internal/config"
)

// Version is set by the linker.
var Version = "unknown"

// Exit codes.
const (
	exitSuccess = 0
	exitFailure = 1
	exitUsage   = 2
)

// usageError is a mistake in the command line or the configuration.
type usageError struct{ error }

func (e usageError) Unwrap() error { return e.error }

func usagef(format string, args ...any) error { return usageError{fmt.Errorf(format, args...)} }

// silentError ends a command with code 1 when it has said all there is to say.
type silentError struct{ error }

// Main runs one command line and returns the exit code: 0 success, 1 failure
// or key not found, 2 usage.
func Main(args []string, in io.Reader, out, errOut io.Writer) int {
	// The first signal ends the context; after it the second one kills.
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	context.AfterFunc(ctx, stop)
	return run(ctx, args, in, out, errOut)
}

func run(ctx context.Context, args []string, in io.Reader, out, errOut io.Writer) int {
	began := false
	root := newRoot(&began)
	root.SetArgs(args)
	root.SetIn(in)
	root.SetOut(out)
	root.SetErr(errOut)
	cmd, err := root.ExecuteContextC(ctx)
	if err == nil {
		return exitSuccess
	}
	if _, silent := errors.AsType[silentError](err); silent {
		return exitFailure
	}
	fmt.Fprintf(errOut, "ridge: %v\n", err)
	_, usage := errors.AsType[usageError](err)
	_, faults := errors.AsType[config.Error](err)
	if usage || faults || !began {
		fmt.Fprintf(errOut, "See '%s --help'.\n", cmd.CommandPath())
		return exitUsage
	}
	return exitFailure
}

// newRoot builds the tree of commands. began is set as soon as the command
// line was understood and a command runs.
func newRoot(began *bool) *cobra.Command {
	root := &cobra.Command{
		Use:   "ridge",
		Short: "Ridge is a sharded, replicated, ordered key-value store.",
		Long: "Ridge is a sharded, replicated, ordered key-value store.\n\n" +
			"Start with `ridge dev`, then `ridge put k v` and `ridge get k`.",
		SilenceErrors: true,
		SilenceUsage:  true,
		RunE:          needSubcommand,
		PersistentPreRun: func(*cobra.Command, []string) {
			*began = true
		},
	}
	root.AddCommand(
		newDev(), newPD(), newStore(),
		newGet(), newPut(), newDelete(), newCAS(), newScan(), newLoad(), newDump(),
		newRange(), newOperator(), newSchedule(), newConfig(), newStatus(), newBench(),
		newRule(), newWhy(), newPlan(), newWhatIf(), newVersion(),
	)
	return root
}

// needSubcommand is what a command does that only groups others.
func needSubcommand(cmd *cobra.Command, args []string) error {
	if len(args) > 0 {
		return usagef("unknown command %q for %q", args[0], cmd.CommandPath())
	}
	return usagef("%q needs a subcommand", cmd.CommandPath())
}

func newVersion() *cobra.Command {
	var o output
	cmd := &cobra.Command{
		Use: "version", Short: "Print the version", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := o.check(); err != nil {
				return err
			}
			if o.json() {
				return o.object(cmd.OutOrStdout(), map[string]any{"version": Version})
			}
			_, err := fmt.Fprintf(cmd.OutOrStdout(), "ridge %s\n", Version)
			return err
		},
	}
	o.addFlags(cmd)
	return cmd
}
