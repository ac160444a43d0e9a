// Package evaluate is the leaseholder's side: requests become physical,
// numbered log entries, and reads are answered at each consistency level.
//
// # Who evaluates
//
// Each range has one worker, and its goroutine evaluates writes one after the
// other: the worker is the latch. It evaluates under a tenure, which it holds
// when an AcquireLease with its own nonce is applied here. The nonce is drawn
// anew for every worker, so no lease of an earlier run, of an earlier replica or
// of an earlier worker is ever taken for its own. Leadership is only the hint to
// try; the entry is refused if the tenure has moved.
//
// Invariants of a tenure:
//
//	N1  Entries are numbered 1, 2, … by this worker alone, and every proposal of
//	    a number is the same bytes. Apply takes n+1 only after n, so an entry is
//	    applied only on top of all it was evaluated upon.
//	N2  The overlay holds exactly the effects of the numbers that are not known
//	    to be applied. Evaluation asks the overlay first and takes the engine's
//	    view second; a number leaves the overlay after it is visible. So an
//	    evaluation sees the state after the last number given away.
//	N3  A client hears "applied" only from apply: the number is at or below the
//	    applied one while the tenure is in force, or at or below the last number
//	    that the state keeps of the tenure before. "Not applied" is said only of
//	    numbers above that last one. All else is UnknownOutcome.
//	N4  Lost proposals are proposed again from the oldest lost one on, in order,
//	    once all of them have come back. One that got no answer is lost only when
//	    the replica here has not led since in the same term: else it is in the
//	    log, however long that takes. If that does not help the lease is
//	    acquired anew, which settles every number; what was not applied is then
//	    evaluated again, as if it had just come.
//
// A write that writes nothing (a failed condition) is a read: it is answered
// when the numbers it was evaluated upon are applied, a ReadIndex begun after it
// arrived has passed, and the lease in the state is still the same. Then no
// other holder had written by the time of the ReadIndex, and the answer was true
// right after the last of those numbers.
//
// # Timestamps
//
//	T1  commit_ts > last_write_ts, max_read_ts, the token and the oracle's last
//	    value, all as of the moment the number is given away, under one mutex.
//	    A batch gets both with its first write. A conditional write is judged at
//	    a candidate and judged again if a read came between.
//	T2  register(T) raises max_read_ts to T and notes the last number given away,
//	    the open batch included, under the same mutex. What is committed later
//	    lies above T; what was given a timestamp at or below T has a number at or
//	    below the one noted, and the read waits for that.
//	T3  register also waits until a read_bound at or above T is applied under a
//	    tenure of this worker. A later holder begins with max_read_ts =
//	    read_bound. So when register is through, nothing at or below T will ever
//	    change, and a snapshot read needs no ReadIndex.
//	    A worker that has not yet seen a foreign tenure in the state promises
//	    nothing: the other holder may have read the oracle later than it has.
//	T4  A split is proposed with an empty pipeline and the exact max_read_ts, and
//	    no read is registered until it is decided: the child starts there.
//
// When a worker acquires the lease from itself, its max_read_ts in memory is
// complete and need not rise to read_bound, and it need not wait for the oracle
// either. Any other new holder waits until the oracle has passed read_bound or
// one step of real time is over; this is for transactions, which shall see every
// plain write that was acknowledged before they began. It is not needed for T1.
//
// TTL is judged by timestamps. A snapshot read judges by T, a write by its
// commit_ts. A linearizable read judges by the newest timestamp of the range: it
// may say "alive" when the state it read names its own tenure, since whoever said
// "expired" before raised max_read_ts, or read_bound for a later holder; it says
// "expired" only of a registered timestamp (T2, T3), so that neither a write in
// flight nor a later holder can find the row alive at an older one. A failed
// condition that depends on an expired row raises the bound in the same way.
//
// # Reads
//
// A linearizable read joins the next ReadIndex round of its range; at most two
// are under way. The reads of one message of a stream share a round, which
// begins when all of them have joined; a read joins before its round
// begins, which is all that the ReadIndex needs; package raft confirms those of all
// ranges that are led here together. When the round is over, all
// its point reads take one state, check epoch and span against it, read one
// view, and look whether the state is still the same value: what holds for one
// of them holds for all, as state and view were taken after the round that all
// had joined. The goroutine that hears of the end of the round answers the first
// of them itself, readers the rest. What is out of the ordinary (an error, a row
// with a TTL, a state that has moved) is read once more by itself. A linearizable
// read does not need the lease, only a row with a TTL does. A stale read is
// answered by any replica whose newest applied commit is young enough, since all
// it lacks lies above; otherwise it asks the quorum too.
//
// # Samples
//
// Of the keys that requests name one of 64 is kept for a while, so that a range
// that bears too much can be divided where its load is halved. It is a hint, and
// the lock that guards it is only tried: whoever does not get it drops the sample.
//
// # Waiting
//
// Every queue has a bound and answers Busy: the writes of a range by count and
// bytes, its reads by count. Nothing waits longer than its deadline by more than
// a tick, or a ReadIndex round. A write whose caller would have left before it is
// answered, as things stand, is refused, at the door and when its turn to be
// proposed has come: until then that is certain.
package evaluate
