// Package apply turns committed log entries into commits of the engine.
//
// Law 1: an entry is physical and applying is deterministic. Applying reads no
// user data, no clock and no randomness, so the same entries leave the same
// replicated state on every replica. Every entry given to Update moves the
// applied index, refused or not. The one exception is a halted replica, which
// writes nothing at all until its next start.
package apply
