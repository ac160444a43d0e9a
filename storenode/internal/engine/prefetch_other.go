//go:build !amd64 && !arm64

package engine

// prefetch does nothing where the engine does not know the instruction.
func prefetch(*byte) {}
