package service

import (
	"context"
	"errors"
	"strconv"

	"google.golang.org/grpc/metadata"

	"github.com/ridgekv/ridge/client/storeclient"
	"github.com/ridgekv/ridge/proto/errs"
	"github.com/ridgekv/ridge/proto/keys"
	kvpb "github.com/ridgekv/ridge/proto/ridge/kv/v1"
	metapb "github.com/ridgekv/ridge/proto/ridge/meta/v1"
	"github.com/ridgekv/ridge/storenode/internal/evaluate"
)

// identity is whom a caller means; zero fields are not checked.
type identity struct{ clusterID, storeID uint64 }

// The ladder refuses in a fixed order, so that the first error names the true
// cause: cluster, store, argument, range, epoch, span, leader, load. Load comes
// last and is the caller's (seats and bytes of a stream).

// checkIdentity is the first two rungs.
func checkIdentity(core *Core, want identity) error {
	if want.clusterID != 0 && want.clusterID != core.ClusterID {
		return errs.ClusterMismatch{Want: want.clusterID, Have: core.ClusterID}
	}
	if want.storeID != 0 && want.storeID != core.StoreID {
		return errs.StoreMismatch{Want: want.storeID, Have: core.StoreID}
	}
	return nil
}

// checkHello is checkIdentity for a stream, where nothing may be left out.
func checkHello(core *Core, h *kvpb.Hello) error {
	if h == nil {
		return errs.InvalidArgument{Field: "hello", Reason: "the first message must carry it"}
	}
	if h.GetClusterId() != core.ClusterID {
		return errs.ClusterMismatch{Want: h.GetClusterId(), Have: core.ClusterID}
	}
	if h.GetStoreId() != core.StoreID {
		return errs.StoreMismatch{Want: h.GetStoreId(), Have: core.StoreID}
	}
	if h.GetApiVersion() != APIVersion {
		return errs.InvalidArgument{Field: "hello.api_version", Reason: "this store speaks 1"}
	}
	return nil
}

// identityOf reads whom a unary call means from its metadata.
func identityOf(ctx context.Context) (identity, error) {
	md, ok := metadata.FromIncomingContext(ctx)
	if !ok {
		return identity{}, nil
	}
	var id identity
	for _, f := range []struct {
		key string
		to  *uint64
	}{{storeclient.ClusterIDKey, &id.clusterID}, {storeclient.StoreIDKey, &id.storeID}} {
		values := md.Get(f.key)
		if len(values) == 0 {
			continue
		}
		n, err := strconv.ParseUint(values[0], 10, 64)
		if err != nil {
			return identity{}, errs.InvalidArgument{Field: f.key, Reason: "not a decimal number"}
		}
		*f.to = n
	}
	return id, nil
}

// checkRange climbs the rungs from range to leader for a request that names
// its range. The evaluator checks the same again when the request's turn comes.
func checkRange(ranges Ranges, request *kvpb.Request, h *kvpb.Header) error {
	id := h.GetRangeId()
	r, ok := ranges.Range(id)
	if !ok {
		return errs.RangeNotFound{RangeID: id}
	}
	if err := evaluate.CheckHeader(kindOf(request), h, r.State); err != nil {
		if _, ok := errors.AsType[errs.EpochMismatch](err); ok {
			return errs.EpochMismatch{RangeID: id, Current: current(ranges, request, id)}
		}
		return err
	}
	if err := checkSpan(ranges, r, request); err != nil {
		return err
	}
	if !r.Led && !anyReplica(request) {
		return errs.NotLeader{RangeID: id, Leader: r.Leader}
	}
	return nil
}

// current lists what covers the request here now: the range that was named, and
// the one that holds the first key, if that is another.
func current(ranges Ranges, request *kvpb.Request, rangeID uint64) []*metapb.Range {
	out := []*metapb.Range{ranges.Describe(rangeID)}
	if r, ok := ranges.Lookup(firstKey(request)); ok && r.State.RangeID() != rangeID {
		out = append(out, ranges.Describe(r.State.RangeID()))
	}
	return out
}

// anyReplica reports whether a replica that does not lead may answer.
func anyReplica(request *kvpb.Request) bool {
	return consistencyOf(request).GetLevel() == kvpb.ConsistencyLevel_CONSISTENCY_LEVEL_STALE
}

// checkSpan refuses keys outside the range, and spans that begin elsewhere.
func checkSpan(ranges Ranges, r Range, request *kvpb.Request) error {
	span := r.State.Span()
	outside := func(key []byte) error {
		return errs.KeyNotInRange{Key: key, Range: ranges.Describe(r.State.RangeID())}
	}
	if asked, ok := spanOf(request); ok {
		if !span.Overlaps(asked) {
			return outside(asked.Start)
		}
		return nil
	}
	return eachKey(request, func(key []byte) error {
		if !span.Contains(key) {
			return outside(key)
		}
		return nil
	})
}

// checkArguments refuses what can never succeed, whatever the range.
func checkArguments(request *kvpb.Request) error {
	switch b := request.GetBody().(type) {
	case nil:
		return errs.InvalidArgument{Field: "body", Reason: "missing or unknown"}
	case *kvpb.Request_Scan, *kvpb.Request_DeleteRange:
		span, _ := spanOf(request)
		return checkBounds(span)
	case *kvpb.Request_Put:
		if err := checkValue(b.Put.GetValue()); err != nil {
			return err
		}
	case *kvpb.Request_CompareAndSwap:
		if err := checkValue(b.CompareAndSwap.GetValue()); err != nil {
			return err
		}
	case *kvpb.Request_BatchGet:
		if err := checkCount(len(b.BatchGet.GetKeys())); err != nil {
			return err
		}
	case *kvpb.Request_BatchWrite:
		if err := checkMutations(b.BatchWrite.GetMutations()); err != nil {
			return err
		}
	case *kvpb.Request_BulkWrite:
		// The evaluator and the gateway cut a bulk into entries.
		if len(b.BulkWrite.GetMutations()) == 0 {
			return errs.InvalidArgument{Field: "mutations", Reason: "none"}
		}
	}
	return eachKey(request, checkKey)
}

func checkKey(key []byte) error {
	if len(key) == 0 {
		return errs.InvalidArgument{Field: "key", Reason: "empty"}
	}
	if len(key) > keys.MaxKeySizeBytes {
		return errs.TooLarge{What: "key", SizeBytes: uint64(len(key)), Limit: keys.MaxKeySizeBytes}
	}
	return nil
}

func checkValue(value []byte) error {
	if len(value) > keys.MaxValueSizeBytes {
		return errs.TooLarge{
			What: "value", SizeBytes: uint64(len(value)), Limit: keys.MaxValueSizeBytes,
		}
	}
	return nil
}

// checkBounds accepts any span that holds a key; its ends may be longer than a
// key, as keys.Next makes them.
func checkBounds(span keys.Span) error {
	if !span.Valid() {
		return errs.InvalidArgument{Field: "end", Reason: "not above start"}
	}
	for _, b := range [][]byte{span.Start, span.End} {
		if len(b) > keys.MaxKeySizeBytes+1 {
			return errs.TooLarge{
				What: "bound", SizeBytes: uint64(len(b)), Limit: keys.MaxKeySizeBytes + 1,
			}
		}
	}
	return nil
}

func checkCount(n int) error {
	if n == 0 {
		return errs.InvalidArgument{Field: "keys", Reason: "none"}
	}
	if n > keys.MaxEntryKeys {
		return errs.TooLarge{What: "batch keys", SizeBytes: uint64(n), Limit: keys.MaxEntryKeys}
	}
	return nil
}

func checkMutations(ms []*kvpb.Mutation) error {
	if err := checkCount(len(ms)); err != nil {
		return err
	}
	size := 0
	for _, m := range ms {
		if err := checkValue(m.GetValue()); err != nil {
			return err
		}
		size += len(m.GetKey()) + len(m.GetValue())
	}
	if size > keys.MaxEntrySizeBytes {
		return errs.TooLarge{
			What: "batch", SizeBytes: uint64(size), Limit: keys.MaxEntrySizeBytes,
		}
	}
	return nil
}
