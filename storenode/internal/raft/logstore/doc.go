// Package logstore is the Raft log of a store: one append-only log for all of
// its replicas, and one fsync for all that is written meanwhile.
//
// Law: what was acknowledged is there after any crash, or the log refuses to
// open; what was never written never appears.
//
// # The log
//
// The log is a row of segment files with consecutive ids. A segment holds
// batches; a batch is one write, one fsync, one checksum and one sequence
// number, and contains the records of every caller who came while the batch
// before it was synced. The first of those callers writes for all of them. A
// batch is written only after the one before it was synced, so there is never
// more than one batch that a crash can tear, and it is the last one.
//
// The index, in memory, says which entries each replica holds and where. It is
// changed when a batch has become durable, by the same code that rebuilds it
// when the log is read at the start.
//
// # Why a crash loses nothing
//
// A caller returns after the fsync of its batch, or of none. At the start,
// every segment but the last must be whole up to the length that its successor
// names in its header, which was synced before the successor was used. In the
// last one the first batch that is not whole is cut off, unless a whole batch
// of a later sequence follows: then the first was acknowledged and has been
// damaged since, and the log is refused, as it is for a hole between segments,
// between the entries of a replica, or below its commit index. What cannot be
// told from a torn write is damage to the very last batch of a log that was
// not closed; Close ends with a batch of its own for that reason. Checksums
// are seeded with a random number of the segment, so neither an old file nor
// the value of a user can pose as a batch.
//
// A process that ends while the machine goes on leaves a batch that can be read
// and may not be on the disk. Raft acts on what it finds, so before anything
// else the last batch is written and synced again, and the directory is synced.
//
// A failed write or fsync leaves the log in a state nobody knows. The store
// then accepts nothing any more, and never tries the same again.
//
// # What is not synced
//
// A commit index is written with the next batch, whatever that is for: Raft
// may forget it, because it is known again from the next leader, and a batch
// that holds a later entry of the range holds it too. A term or a vote never
// waits. The same goes for trims: entries that come back do no harm.
//
// Records of one replica are written by several callers: its step worker, and
// whoever saves a log snapshot. Each record says one thing and replaces only
// that, so their order in a batch does not matter.
//
// Messages that rest on a term and a vote which were durable before need not wait
// for the entries of their update: Early lets them leave. The caller runs it,
// before the wait, and not for an update with a new term, vote or image.
//
// # Space
//
// Segments are freed oldest first, so the log is always one piece, and a record
// that cancels others is never gone before what it cancels. What is alive in
// the oldest segment is written again at the head, synced, and only then is
// the file removed. What is moved is laid out first in its batch and looked at
// under the lock, as everything before that batch has left it, so a moved run
// cannot undo an entry written after it. This is done when nothing in the
// oldest segment is alive, or when the segments hold more than twice what is
// alive and two segments more. So the log occupies at most
//
//	2 x alive + 3 segments
//
// and moving writes at most about as many bytes as callers do.
//
// Blocks are reserved ahead, and zeros are written ahead of small batches: to
// sync a write over blocks that were written before costs the file system no
// journal, half the time and half the work. Zeros are what reserved blocks read
// as anyway, so the start cannot tell whether they are there.
//
// # Cost
//
// One goroutine per store, which sleeps until a segment is full or a log was
// trimmed; nothing per replica but its entry in the index, and 20 bytes for
// each run of entries, which is what one update of a replica has saved.
package logstore
