package service

import (
	"context"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/ridgekv/ridge/proto/errs"
	"github.com/ridgekv/ridge/proto/keys"
	kvpb "github.com/ridgekv/ridge/proto/ridge/kv/v1"
	"github.com/ridgekv/ridge/proto/wire"
	"github.com/ridgekv/ridge/storenode/internal/evaluate"
)

// headerOf returns the header of request, making an empty one where there is
// none. It is nil only when the body is missing.
func headerOf(request *kvpb.Request) *kvpb.Header {
	var h **kvpb.Header
	switch b := request.GetBody().(type) {
	case *kvpb.Request_Get:
		h = field(&b.Get, func(m *kvpb.GetRequest) **kvpb.Header { return &m.Header })
	case *kvpb.Request_Put:
		h = field(&b.Put, func(m *kvpb.PutRequest) **kvpb.Header { return &m.Header })
	case *kvpb.Request_Delete:
		h = field(&b.Delete, func(m *kvpb.DeleteRequest) **kvpb.Header { return &m.Header })
	case *kvpb.Request_CompareAndSwap:
		h = field(&b.CompareAndSwap,
			func(m *kvpb.CompareAndSwapRequest) **kvpb.Header { return &m.Header })
	case *kvpb.Request_BatchGet:
		h = field(&b.BatchGet, func(m *kvpb.BatchGetRequest) **kvpb.Header { return &m.Header })
	case *kvpb.Request_BatchWrite:
		h = field(&b.BatchWrite,
			func(m *kvpb.BatchWriteRequest) **kvpb.Header { return &m.Header })
	case *kvpb.Request_BulkWrite:
		h = field(&b.BulkWrite, func(m *kvpb.BulkWriteRequest) **kvpb.Header { return &m.Header })
	case *kvpb.Request_DeleteRange:
		h = field(&b.DeleteRange,
			func(m *kvpb.DeleteRangeRequest) **kvpb.Header { return &m.Header })
	case *kvpb.Request_Scan:
		h = field(&b.Scan, func(m *kvpb.ScanRequest) **kvpb.Header { return &m.Header })
	default:
		return nil
	}
	if *h == nil {
		*h = &kvpb.Header{}
	}
	return *h
}

// field makes *m if it is nil, which a hostile caller can send, and returns its
// header.
func field[M any](m **M, header func(*M) **kvpb.Header) **kvpb.Header {
	if *m == nil {
		*m = new(M)
	}
	return header(*m)
}

func consistencyOf(request *kvpb.Request) *kvpb.Consistency {
	switch b := request.GetBody().(type) {
	case *kvpb.Request_Get:
		return b.Get.GetConsistency()
	case *kvpb.Request_BatchGet:
		return b.BatchGet.GetConsistency()
	case *kvpb.Request_Scan:
		return b.Scan.GetConsistency()
	}
	return nil
}

// writes reports whether request may change data.
func writes(request *kvpb.Request) bool {
	switch request.GetBody().(type) {
	case *kvpb.Request_Put, *kvpb.Request_Delete, *kvpb.Request_CompareAndSwap,
		*kvpb.Request_BatchWrite, *kvpb.Request_BulkWrite, *kvpb.Request_DeleteRange:
		return true
	}
	return false
}

// eachKey calls f with every single key of request until it fails.
func eachKey(request *kvpb.Request, f func(key []byte) error) error {
	switch b := request.GetBody().(type) {
	case *kvpb.Request_Get:
		return f(b.Get.GetKey())
	case *kvpb.Request_Put:
		return f(b.Put.GetKey())
	case *kvpb.Request_Delete:
		return f(b.Delete.GetKey())
	case *kvpb.Request_CompareAndSwap:
		return f(b.CompareAndSwap.GetKey())
	case *kvpb.Request_BatchGet:
		for _, key := range b.BatchGet.GetKeys() {
			if err := f(key); err != nil {
				return err
			}
		}
	case *kvpb.Request_BatchWrite:
		return eachMutation(b.BatchWrite.GetMutations(), f)
	case *kvpb.Request_BulkWrite:
		return eachMutation(b.BulkWrite.GetMutations(), f)
	}
	return nil
}

func eachMutation(ms []*kvpb.Mutation, f func(key []byte) error) error {
	for _, m := range ms {
		if err := f(m.GetKey()); err != nil {
			return err
		}
	}
	return nil
}

// errorOf returns the error an answer carries, nil if it succeeded.
func errorOf(response *kvpb.Response) *kvpb.Error {
	switch b := response.GetBody().(type) {
	case *kvpb.Response_Get:
		return b.Get.GetError()
	case *kvpb.Response_Put:
		return b.Put.GetError()
	case *kvpb.Response_Delete:
		return b.Delete.GetError()
	case *kvpb.Response_CompareAndSwap:
		return b.CompareAndSwap.GetError()
	case *kvpb.Response_BatchGet:
		return b.BatchGet.GetError()
	case *kvpb.Response_BatchWrite:
		return b.BatchWrite.GetError()
	case *kvpb.Response_BulkWrite:
		return b.BulkWrite.GetError()
	case *kvpb.Response_DeleteRange:
		return b.DeleteRange.GetError()
	case *kvpb.Response_Scan:
		return b.Scan.GetError()
	case *kvpb.Response_Error:
		return b.Error
	}
	return errs.ToProto(errs.UnknownOutcome{})
}

// refusal is the answer to request id that only carries err.
func refusal(id uint64, err error) *kvpb.Response {
	return &kvpb.Response{Id: id, Body: &kvpb.Response_Error{Error: errs.ToProto(err)}}
}

// sizeOf estimates how much memory request holds, with whatever a caller put into
// it that this version does not know.
func sizeOf(request *kvpb.Request) int64 { return requestBytes + int64(proto.Size(request)) }

// answerSize estimates how large response is on the wire.
func answerSize(response *kvpb.Response) int {
	const fixed = 64
	switch b := response.GetBody().(type) {
	case *kvpb.Response_Put, *kvpb.Response_Delete, *kvpb.Response_BatchWrite:
		return fixed
	case *kvpb.Response_Get:
		return fixed + len(b.Get.GetRow().GetKey()) + len(b.Get.GetRow().GetValue())
	}
	return fixed + wire.ResponseSize(response)
}

// spanOf is the span a request asks for, if it asks for one.
func spanOf(request *kvpb.Request) (keys.Span, bool) {
	switch b := request.GetBody().(type) {
	case *kvpb.Request_Scan:
		return keys.Span{Start: b.Scan.GetStart(), End: b.Scan.GetEnd()}, true
	case *kvpb.Request_DeleteRange:
		return keys.Span{Start: b.DeleteRange.GetStart(), End: b.DeleteRange.GetEnd()}, true
	}
	return keys.Span{}, false
}

// firstKey is the first key a request names, or where its span begins.
func firstKey(request *kvpb.Request) (first []byte) {
	if span, ok := spanOf(request); ok {
		return span.Start
	}
	_ = eachKey(request, func(key []byte) error {
		if first == nil {
			first = key
		}
		return nil
	})
	return first
}

// place finds the local range that holds all of request, if this store leads
// it or may answer without leading.
func place(ranges Ranges, request *kvpb.Request) (Range, bool) {
	r, ok := ranges.Lookup(firstKey(request))
	if !ok || !r.Led && !anyReplica(request) {
		return Range{}, false
	}
	if whole, ok := spanOf(request); ok {
		return r, r.State.Span().ContainsSpan(whole)
	}
	return r, checkSpan(ranges, r, request) == nil
}

// kindOf names the request as the evaluator's epoch table does.
func kindOf(request *kvpb.Request) evaluate.Kind {
	switch request.GetBody().(type) {
	case *kvpb.Request_Get:
		return evaluate.KindGet
	case *kvpb.Request_Put:
		return evaluate.KindPut
	case *kvpb.Request_Delete:
		return evaluate.KindDelete
	case *kvpb.Request_CompareAndSwap:
		return evaluate.KindCompareAndSwap
	case *kvpb.Request_BatchGet:
		return evaluate.KindBatchGet
	case *kvpb.Request_BatchWrite:
		return evaluate.KindBatchWrite
	case *kvpb.Request_BulkWrite:
		return evaluate.KindBulkWrite
	case *kvpb.Request_DeleteRange:
		return evaluate.KindDeleteRange
	case *kvpb.Request_Scan:
		return evaluate.KindScan
	}
	return evaluate.KindUnknown
}

const (
	// defaultTimeout bounds a call that names no bound, maxTimeout any call.
	defaultTimeout = 10 * time.Second
	maxTimeout     = time.Minute
)

// patience cuts ctx to what the caller's header allows, and tells the header
// what is left.
func patience(ctx context.Context, h *kvpb.Header) (context.Context, context.CancelFunc) {
	d := defaultTimeout
	if ms := h.GetTimeoutMs(); ms != 0 {
		d = min(time.Duration(ms)*time.Millisecond, maxTimeout)
	}
	if deadline, ok := ctx.Deadline(); ok {
		d = min(d, time.Until(deadline))
	}
	h.TimeoutMs = uint32(max(d.Milliseconds(), 1))
	return context.WithTimeout(ctx, d)
}
