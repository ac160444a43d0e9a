package errs

import (
	"context"
	"errors"
	"time"

	kvpb "github.com/ridgekv/ridge/proto/ridge/kv/v1"
)

const (
	retry   = kvpb.ErrorClass_ERROR_CLASS_RETRY
	reroute = kvpb.ErrorClass_ERROR_CLASS_REROUTE
	fail    = kvpb.ErrorClass_ERROR_CLASS_FAIL
	unknown = kvpb.ErrorClass_ERROR_CLASS_UNKNOWN
)

// ToProto turns err into its wire form; nil stays nil. An error that is not of
// this package, nor a context's, is reported as Unavailable{"server"} and not
// applied: a writer that cannot rule out an effect must return UnknownOutcome
// itself.
func ToProto(err error) *kvpb.Error {
	if err == nil {
		return nil
	}
	p := &kvpb.Error{Message: err.Error(), Applied: kvpb.Applied_APPLIED_NO}
	_, open := errors.AsType[UnknownOutcome](err) // a joined error must not hide it
	if (open || !setRouting(p, err)) && !setRefusal(p, err) {
		part := "server"
		if errors.Is(err, context.DeadlineExceeded) || errors.Is(err, context.Canceled) {
			part = "deadline"
		}
		p.Class, p.BackoffMs = retry, 100
		p.Detail = &kvpb.Error_Unavailable{Unavailable: &kvpb.Unavailable{Part: part}}
	}
	return p
}

// setRouting fills p for errors that a better route or a later try cures.
func setRouting(p *kvpb.Error, err error) bool {
	if e, ok := errors.AsType[NotLeader](err); ok {
		p.Class, p.BackoffMs = reroute, 10
		p.Detail = &kvpb.Error_NotLeader{NotLeader: &kvpb.NotLeader{RangeId: e.RangeID, Leader: e.Leader}}
	} else if e, ok := errors.AsType[EpochMismatch](err); ok {
		p.Class = reroute
		p.Detail = &kvpb.Error_EpochMismatch{EpochMismatch: &kvpb.EpochMismatch{RangeId: e.RangeID, Current: e.Current}}
	} else if e, ok := errors.AsType[RangeNotFound](err); ok {
		p.Class = reroute
		p.Detail = &kvpb.Error_RangeNotFound{RangeNotFound: &kvpb.RangeNotFound{RangeId: e.RangeID}}
	} else if e, ok := errors.AsType[KeyNotInRange](err); ok {
		p.Class = reroute
		p.Detail = &kvpb.Error_KeyNotInRange{KeyNotInRange: &kvpb.KeyNotInRange{Key: e.Key, Range: e.Range}}
	} else if e, ok := errors.AsType[StoreMismatch](err); ok {
		p.Class = reroute
		p.Detail = &kvpb.Error_StoreMismatch{StoreMismatch: &kvpb.StoreMismatch{Want: e.Want, Have: e.Have}}
	} else if e, ok := errors.AsType[Busy](err); ok {
		p.Class, p.BackoffMs = retry, uint32(max(e.RetryAfter, time.Millisecond).Milliseconds())
		p.Detail = &kvpb.Error_Busy{Busy: &kvpb.Busy{Reason: e.Reason}}
	} else if e, ok := errors.AsType[Unavailable](err); ok {
		p.Class, p.BackoffMs = retry, 100
		p.Detail = &kvpb.Error_Unavailable{Unavailable: &kvpb.Unavailable{Part: e.Part}}
	} else if e, ok := errors.AsType[Locked](err); ok {
		p.Class, p.BackoffMs = retry, 5
		p.Detail = &kvpb.Error_Locked{Locked: &kvpb.Locked{Key: e.Key, Primary: e.Primary, StartTs: e.StartTS}}
	} else {
		return false
	}
	return true
}

// setRefusal fills p for errors that are final.
func setRefusal(p *kvpb.Error, err error) bool {
	p.Class = fail
	if e, ok := errors.AsType[UnknownOutcome](err); ok {
		p.Class, p.Applied = unknown, kvpb.Applied_APPLIED_UNKNOWN
		p.Detail = &kvpb.Error_UnknownOutcome{UnknownOutcome: &kvpb.UnknownOutcome{RangeId: e.RangeID}}
	} else if e, ok := errors.AsType[ClusterMismatch](err); ok {
		p.Detail = &kvpb.Error_ClusterMismatch{ClusterMismatch: &kvpb.ClusterMismatch{Want: e.Want, Have: e.Have}}
	} else if e, ok := errors.AsType[DiskFull](err); ok {
		p.Detail = &kvpb.Error_DiskFull{DiskFull: &kvpb.DiskFull{StoreId: e.StoreID}}
	} else if e, ok := errors.AsType[TooLarge](err); ok {
		p.Detail = &kvpb.Error_TooLarge{TooLarge: &kvpb.TooLarge{What: e.What, SizeBytes: e.SizeBytes, LimitBytes: e.Limit}}
	} else if e, ok := errors.AsType[InvalidArgument](err); ok {
		p.Detail = &kvpb.Error_InvalidArgument{InvalidArgument: &kvpb.InvalidArgument{Field: e.Field, Reason: e.Reason}}
	} else if e, ok := errors.AsType[Conflict](err); ok {
		p.Detail = &kvpb.Error_Conflict{Conflict: &kvpb.Conflict{Key: e.Key, CommitTs: e.CommitTS}}
	} else if e, ok := errors.AsType[TooOld](err); ok {
		p.Detail = &kvpb.Error_TooOld{TooOld: &kvpb.TooOld{RequestedTs: e.Requested, FloorTs: e.Floor, ResumeKey: e.ResumeKey}}
	} else {
		return false
	}
	return true
}

// FromProto turns a wire error back into its type; nil stays nil. A detail of
// a newer server that is not known here becomes Unavailable or UnknownOutcome
// by its applied field, so that an unknown write is never resent.
func FromProto(p *kvpb.Error) error {
	if p == nil {
		return nil
	}
	backoff := time.Duration(p.GetBackoffMs()) * time.Millisecond
	switch d := p.GetDetail().(type) {
	case *kvpb.Error_NotLeader:
		return NotLeader{RangeID: d.NotLeader.GetRangeId(), Leader: d.NotLeader.GetLeader()}
	case *kvpb.Error_EpochMismatch:
		return EpochMismatch{RangeID: d.EpochMismatch.GetRangeId(), Current: d.EpochMismatch.GetCurrent()}
	case *kvpb.Error_RangeNotFound:
		return RangeNotFound{RangeID: d.RangeNotFound.GetRangeId()}
	case *kvpb.Error_KeyNotInRange:
		return KeyNotInRange{Key: d.KeyNotInRange.GetKey(), Range: d.KeyNotInRange.GetRange()}
	case *kvpb.Error_StoreMismatch:
		return StoreMismatch{Want: d.StoreMismatch.GetWant(), Have: d.StoreMismatch.GetHave()}
	case *kvpb.Error_ClusterMismatch:
		return ClusterMismatch{Want: d.ClusterMismatch.GetWant(), Have: d.ClusterMismatch.GetHave()}
	case *kvpb.Error_Busy:
		return Busy{Reason: d.Busy.GetReason(), RetryAfter: backoff}
	case *kvpb.Error_DiskFull:
		return DiskFull{StoreID: d.DiskFull.GetStoreId()}
	case *kvpb.Error_TooLarge:
		return TooLarge{What: d.TooLarge.GetWhat(), SizeBytes: d.TooLarge.GetSizeBytes(), Limit: d.TooLarge.GetLimitBytes()}
	case *kvpb.Error_InvalidArgument:
		return InvalidArgument{Field: d.InvalidArgument.GetField(), Reason: d.InvalidArgument.GetReason()}
	case *kvpb.Error_Conflict:
		return Conflict{Key: d.Conflict.GetKey(), CommitTS: d.Conflict.GetCommitTs()}
	case *kvpb.Error_Locked:
		return Locked{Key: d.Locked.GetKey(), Primary: d.Locked.GetPrimary(), StartTS: d.Locked.GetStartTs()}
	case *kvpb.Error_TooOld:
		return TooOld{Requested: d.TooOld.GetRequestedTs(), Floor: d.TooOld.GetFloorTs(), ResumeKey: d.TooOld.GetResumeKey()}
	case *kvpb.Error_UnknownOutcome:
		return UnknownOutcome{RangeID: d.UnknownOutcome.GetRangeId()}
	case *kvpb.Error_Unavailable:
		return Unavailable{Part: d.Unavailable.GetPart()}
	}
	if p.GetApplied() == kvpb.Applied_APPLIED_NO {
		return Unavailable{Part: p.GetMessage()}
	}
	return UnknownOutcome{}
}
