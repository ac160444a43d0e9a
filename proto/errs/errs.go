// Package errs holds the errors that cross the wire: one type per cause, each
// teaching its caller what to do, and the one table that turns them into
// messages and back.
package errs

import (
	"fmt"
	"time"

	"github.com/ridgekv/ridge/proto/keys"
	kvpb "github.com/ridgekv/ridge/proto/ridge/kv/v1"
	metapb "github.com/ridgekv/ridge/proto/ridge/meta/v1"
)

// NotLeader: the replica asked does not hold the lease. Leader may be nil.
type NotLeader struct {
	RangeID uint64
	Leader  *metapb.Leader
}

func (e NotLeader) Error() string {
	if e.Leader.GetStoreId() == 0 {
		return fmt.Sprintf("range %d: not the leaseholder, leader unknown", e.RangeID)
	}
	return fmt.Sprintf("range %d: not the leaseholder, try store %d", e.RangeID, e.Leader.GetStoreId())
}

// EpochMismatch: the span of the range has changed since the caller looked.
type EpochMismatch struct {
	RangeID uint64
	// Current lists what the store knows to cover the old span now.
	Current []*metapb.Range
}

func (e EpochMismatch) Error() string {
	return fmt.Sprintf("range %d: its span has changed, look the route up again", e.RangeID)
}

// RangeNotFound: the store has no replica of the range.
type RangeNotFound struct{ RangeID uint64 }

func (e RangeNotFound) Error() string {
	return fmt.Sprintf("range %d: no replica on this store", e.RangeID)
}

// KeyNotInRange: the key lies outside the range's span.
type KeyNotInRange struct {
	Key   []byte
	Range *metapb.Range
}

func (e KeyNotInRange) Error() string {
	return fmt.Sprintf("key %s is not in range %d %s", keys.Format(e.Key),
		e.Range.GetRangeId(), keys.FromProto(e.Range.GetSpan()))
}

// StoreMismatch: the request was meant for another store.
type StoreMismatch struct{ Want, Have uint64 }

func (e StoreMismatch) Error() string {
	return fmt.Sprintf("request is for store %d, this is store %d", e.Want, e.Have)
}

// ClusterMismatch: the request was meant for another cluster.
type ClusterMismatch struct{ Want, Have uint64 }

func (e ClusterMismatch) Error() string {
	return fmt.Sprintf("request is for cluster %d, this is cluster %d", e.Want, e.Have)
}

// Busy: a bounded queue is full or a limit is reached. Nothing was done.
type Busy struct {
	Reason     string
	RetryAfter time.Duration
}

func (e Busy) Error() string { return "busy: " + e.Reason }

// DiskFull: growing writes are refused until space is freed on the store.
// Deletes are still allowed.
type DiskFull struct{ StoreID uint64 }

func (e DiskFull) Error() string {
	return fmt.Sprintf("the disk of store %d is full: delete data, add a store "+
		"or raise storage.capacity", e.StoreID)
}

// TooLarge: a key, value or batch is over its limit.
type TooLarge struct {
	What             string
	SizeBytes, Limit uint64
}

func (e TooLarge) Error() string {
	return fmt.Sprintf("%s too large: %d, the limit is %d", e.What, e.SizeBytes, e.Limit)
}

// InvalidArgument: the request can never succeed as it is.
type InvalidArgument struct{ Field, Reason string }

func (e InvalidArgument) Error() string { return fmt.Sprintf("invalid %s: %s", e.Field, e.Reason) }

// Conflict: a condition or a transaction lost against another write.
type Conflict struct {
	Key      []byte
	CommitTS uint64
}

func (e Conflict) Error() string {
	return fmt.Sprintf("conflict on key %s (written at %d)", keys.Format(e.Key), e.CommitTS)
}

// Locked: a transaction holds a lock on the key.
type Locked struct {
	Key, Primary []byte
	StartTS      uint64
}

func (e Locked) Error() string {
	return fmt.Sprintf("key %s is locked by transaction %d", keys.Format(e.Key), e.StartTS)
}

// TooOld: the timestamp lies below the history that is kept.
type TooOld struct {
	Requested, Floor uint64
	// ResumeKey is where an interrupted scan would go on.
	ResumeKey []byte
}

func (e TooOld) Error() string {
	return fmt.Sprintf("timestamp %d is older than the history kept (from %d)", e.Requested, e.Floor)
}

// Unavailable: a part of the cluster that is needed does not answer. Nothing
// was done.
type Unavailable struct{ Part string }

func (e Unavailable) Error() string { return e.Part + " is unavailable" }

// UnknownOutcome: the write may or may not be applied. Never resend it.
type UnknownOutcome struct{ RangeID uint64 }

func (e UnknownOutcome) Error() string {
	return fmt.Sprintf("range %d: the outcome of the write is unknown", e.RangeID)
}

// Class says what a caller should do with err. Errors that are not of this
// package fail.
func Class(err error) kvpb.ErrorClass {
	if p := ToProto(err); p != nil {
		return p.GetClass()
	}
	return kvpb.ErrorClass_ERROR_CLASS_UNSPECIFIED
}
