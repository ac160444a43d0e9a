// Package command is what a user can type: it turns arguments and
// configuration into options, and answers into text.
package command

import (
	"fmt"
	"io"
)

// Version is set by the linker.
var Version = "unknown"

// Main runs one command line and returns the exit code: 0 success, 1 failure
// or key not found, 2 usage.
func Main(args []string, in io.Reader, out, errOut io.Writer) int {
	fmt.Fprintln(errOut, "ridge: not built yet")
	return 1
}
