package retry

import (
	"strconv"
	"time"

	"github.com/ridgekv/ridge/proto/errs"
	kvpb "github.com/ridgekv/ridge/proto/ridge/kv/v1"
)

// Move is what follows an error.
type Move int

const (
	// Stop: the error is final.
	Stop Move = iota
	// Again: the same replica after the wait.
	Again
	// Next: another replica of the range.
	Next
	// Follow: the replica that the error names, else Next.
	Follow
	// Relocate: the span of the range has changed; look the keys up again.
	Relocate
)

// Decision is a move, why, and how long the server asks to wait.
type Decision struct {
	Move  Move
	Cause Cause
	Hint  time.Duration
}

// Decide maps an error that store answered for a request to range to the next
// move. err is as FromWire made it, not wrapped. Errors it does not know stop,
// as does every unknown outcome.
func Decide(err error, rangeID, storeID uint64) Decision {
	rng := "range " + strconv.FormatUint(rangeID, 10)
	store := "store " + strconv.FormatUint(storeID, 10)
	switch e := err.(type) {
	case errs.NotLeader:
		return Decision{Move: Follow, Cause: Cause{NotLeader, rng}}
	case errs.EpochMismatch, errs.KeyNotInRange:
		return Decision{Move: Relocate, Cause: Cause{Moved, rng}}
	case errs.RangeNotFound:
		return Decision{Move: Next, Cause: Cause{NoRange, rng}}
	case errs.StoreMismatch:
		return Decision{Move: Next, Cause: Cause{Dialing, store}}
	case errs.Busy:
		return Decision{Move: Again, Cause: Cause{Busy, store}, Hint: e.RetryAfter}
	case errs.Unavailable:
		// The leader may sit on the wrong side of a partition: ask around.
		return Decision{Move: Next, Cause: Cause{Unavailable, e.Part + " for " + rng}}
	case errs.Locked:
		return Decision{Move: Again, Cause: Cause{Locked, rng}}
	}
	return Decision{Move: Stop}
}

// FromWire turns the error of a response into its type. For a write it trusts
// the applied field more than the detail: what may have happened is unknown.
func FromWire(p *kvpb.Error, rangeID uint64, write bool) error {
	if p == nil {
		return nil
	}
	unknown := p.GetApplied() == kvpb.Applied_APPLIED_UNKNOWN ||
		p.GetClass() == kvpb.ErrorClass_ERROR_CLASS_UNKNOWN
	if write && unknown {
		return errs.UnknownOutcome{RangeID: rangeID}
	}
	err := errs.FromProto(p)
	if _, ok := err.(errs.UnknownOutcome); ok && !write {
		return errs.Unavailable{Part: p.GetMessage()}
	}
	return err
}
