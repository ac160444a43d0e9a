//go:build amd64 || arm64

package engine

// prefetch asks the processor for the two cache lines from p on, and does not
// wait for them. It may point anywhere.
//
//go:noescape
func prefetch(p *byte)
