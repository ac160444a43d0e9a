// Command ridge is the one binary: placement driver, store, development
// cluster and admin tool.
package main

import (
	"os"

	"github.com/ridgekv/ridge/tools/ridge/internal/command"
)

func main() { os.Exit(command.Main(os.Args[1:], os.Stdin, os.Stdout, os.Stderr)) }
