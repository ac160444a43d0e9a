package engine

// GarbageSlice is one entry of the garbage list.
type GarbageSlice struct {
	Slice Slice
	// Receiving: a range image is being written into it.
	Receiving bool
}

type garbageChange struct {
	slice     Slice
	receiving bool
	remove    bool
}
