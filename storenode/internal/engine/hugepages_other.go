//go:build !linux

package engine

// useHugePages does nothing where the engine does not know how to ask.
func useHugePages([]byte) {}
