// Package lint is the architecture of Ridge as a failing test.
//
// It reads the root module from outside (`go list` and the sources), so it is
// a module of its own: the tools it pins never become dependencies of Ridge.
// `make lint` runs it with -count=1, because `go test` cannot see what `go
// list` reads and would cache a stale verdict.
package lint
