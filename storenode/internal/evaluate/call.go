package evaluate

import (
	"errors"
	"sync/atomic"
	"time"

	"github.com/ridgekv/ridge/proto/errs"
	"github.com/ridgekv/ridge/proto/keys"
	kvpb "github.com/ridgekv/ridge/proto/ridge/kv/v1"
	"github.com/ridgekv/ridge/proto/ts"
)

// call is one request on its way through this room.
type call struct {
	kind     Kind
	req      *kvpb.Request
	header   *kvpb.Header
	token    ts.Timestamp
	deadline time.Time
	// keys are all keys it names; span, when hasSpan, the span it names.
	keys    [][]byte
	one     [1][]byte // backs keys of single-key requests
	span    keys.Span
	hasSpan bool
	// consistency is set for reads.
	consistency *kvpb.Consistency
	// sizeBytes is what it takes of a queue.
	sizeBytes int
	// queued: it stands in the worker's queue.
	queued bool
	// op is its place in a round, when it is a linearizable read.
	op readOp
	// bulk is the progress of a BulkWrite, sweep the rows of a sweep.
	bulk  bulkProgress
	sweep []sweepRow

	// to takes the answer; nil: nobody waits for it.
	to Responder
	// reads is the worker that counts it among its pending reads.
	reads    *worker
	answered atomic.Bool
}

// Responder takes the answer to a request. Answer is called once, from any
// goroutine, and must not block.
type Responder interface{ Answer(*kvpb.Response) }

// respondFunc is a function as a Responder.
type respondFunc func(*kvpb.Response)

// Answer implements Responder.
func (f respondFunc) Answer(r *kvpb.Response) { f(r) }

// newCall takes a request apart. The kind is KindUnknown when there is no body
// this version knows.
func newCall(req *kvpb.Request, to Responder) *call {
	c := new(call)
	c.take(req, to)
	return c
}

// take is newCall for a call that exists.
func (c *call) take(req *kvpb.Request, to Responder) {
	c.req, c.to = req, to
	switch b := req.GetBody().(type) {
	case *kvpb.Request_Get:
		c.kind, c.header = KindGet, b.Get.GetHeader()
		c.consistency = b.Get.GetConsistency()
		c.takeKey(b.Get.GetKey())
	case *kvpb.Request_BatchGet:
		c.kind, c.header = KindBatchGet, b.BatchGet.GetHeader()
		c.keys, c.consistency = b.BatchGet.GetKeys(), b.BatchGet.GetConsistency()
	case *kvpb.Request_Scan:
		c.kind, c.header, c.hasSpan = KindScan, b.Scan.GetHeader(), true
		c.span = keys.Span{Start: b.Scan.GetStart(), End: b.Scan.GetEnd()}
		c.consistency = b.Scan.GetConsistency()
	case *kvpb.Request_Put:
		c.kind, c.header = KindPut, b.Put.GetHeader()
		c.takeKey(b.Put.GetKey())
		c.sizeBytes = len(b.Put.GetKey()) + len(b.Put.GetValue())
	case *kvpb.Request_Delete:
		c.kind, c.header = KindDelete, b.Delete.GetHeader()
		c.takeKey(b.Delete.GetKey())
		c.sizeBytes = len(b.Delete.GetKey())
	case *kvpb.Request_CompareAndSwap:
		c.kind, c.header = KindCompareAndSwap, b.CompareAndSwap.GetHeader()
		c.takeKey(b.CompareAndSwap.GetKey())
		c.sizeBytes = len(c.keys[0]) + len(b.CompareAndSwap.GetValue()) +
			len(b.CompareAndSwap.GetExpected())
	case *kvpb.Request_BatchWrite:
		c.kind, c.header = KindBatchWrite, b.BatchWrite.GetHeader()
		c.takeMutations(b.BatchWrite.GetMutations())
	case *kvpb.Request_BulkWrite:
		c.kind, c.header = KindBulkWrite, b.BulkWrite.GetHeader()
		c.takeMutations(b.BulkWrite.GetMutations())
	case *kvpb.Request_DeleteRange:
		c.kind, c.header, c.hasSpan = KindDeleteRange, b.DeleteRange.GetHeader(), true
		c.span = keys.Span{Start: b.DeleteRange.GetStart(), End: b.DeleteRange.GetEnd()}
		c.sizeBytes = len(c.span.Start) + len(c.span.End)
	}
	c.token = ts.Timestamp(c.header.GetToken())
}

func (c *call) takeKey(key []byte) {
	c.one[0] = key
	c.keys = c.one[:]
}

func (c *call) takeMutations(ms []*kvpb.Mutation) {
	c.keys = make([][]byte, len(ms))
	for i, m := range ms {
		c.keys[i] = m.GetKey()
		c.sizeBytes += len(m.GetKey()) + len(m.GetValue()) + 16
	}
}

// grows reports whether the call may add bytes to the disk; deletes may be
// written even when it is full.
func (c *call) grows() bool {
	switch b := c.req.GetBody().(type) {
	case *kvpb.Request_Put:
		return true
	case *kvpb.Request_CompareAndSwap:
		return !b.CompareAndSwap.GetDelete()
	case *kvpb.Request_BatchWrite:
		return anyPut(b.BatchWrite.GetMutations())
	case *kvpb.Request_BulkWrite:
		return anyPut(b.BulkWrite.GetMutations())
	}
	return false
}

// judgesTTL reports whether what the write does, or answers, depends on whether
// a row has expired.
func (c *call) judgesTTL() bool {
	return c.kind == KindCompareAndSwap || c.kind == KindDeleteRange
}

func anyPut(ms []*kvpb.Mutation) bool {
	for _, m := range ms {
		if !m.GetDelete() {
			return true
		}
	}
	return false
}

// snapshot reports whether it is a snapshot read, stale whether it may be
// answered with something old.
func (c *call) snapshot() bool {
	return c.consistency.GetLevel() == kvpb.ConsistencyLevel_CONSISTENCY_LEVEL_SNAPSHOT
}

func (c *call) stale() bool {
	return c.consistency.GetLevel() == kvpb.ConsistencyLevel_CONSISTENCY_LEVEL_STALE
}

// at is the timestamp of a snapshot read.
func (c *call) at() ts.Timestamp { return ts.Timestamp(c.consistency.GetSnapshotTs()) }

// answer responds, unless somebody did before.
func (c *call) answer(r *kvpb.Response) {
	if c.answered.Swap(true) {
		return
	}
	if c.reads != nil {
		c.reads.pending.Add(-1)
	}
	if c.to != nil {
		r.Id = c.req.GetId()
		c.to.Answer(r)
	}
}

// fail responds with an error of the kind of the call.
func (c *call) fail(err error) { c.answer(c.failure(err)) }

// expired reports whether the caller no longer waits.
func (c *call) expired(now time.Time) bool { return now.After(c.deadline) }

// failure is the response to c that carries err in the place where the caller
// looks for it.
func (c *call) failure(err error) *kvpb.Response {
	e := errs.ToProto(err)
	r := &kvpb.Response{}
	switch c.kind {
	case KindGet:
		r.Body = &kvpb.Response_Get{Get: &kvpb.GetResponse{Error: e}}
	case KindBatchGet:
		r.Body = &kvpb.Response_BatchGet{BatchGet: &kvpb.BatchGetResponse{Error: e}}
	case KindScan:
		r.Body = &kvpb.Response_Scan{Scan: &kvpb.ScanResponse{Error: e}}
	case KindPut:
		r.Body = &kvpb.Response_Put{Put: &kvpb.PutResponse{Error: e}}
	case KindDelete:
		r.Body = &kvpb.Response_Delete{Delete: &kvpb.DeleteResponse{Error: e}}
	case KindCompareAndSwap:
		r.Body = &kvpb.Response_CompareAndSwap{
			CompareAndSwap: &kvpb.CompareAndSwapResponse{Error: e},
		}
	case KindBatchWrite:
		r.Body = &kvpb.Response_BatchWrite{BatchWrite: &kvpb.BatchWriteResponse{Error: e}}
	case KindBulkWrite:
		r.Body = &kvpb.Response_BulkWrite{BulkWrite: &kvpb.BulkWriteResponse{
			Error: e, AppliedCount: uint64(c.bulk.applied), CommitTs: uint64(c.bulk.commitTS),
		}}
	case KindDeleteRange:
		r.Body = &kvpb.Response_DeleteRange{DeleteRange: &kvpb.DeleteRangeResponse{Error: e}}
	default:
		r.Body = &kvpb.Response_Error{Error: e}
	}
	return r
}

// errDeadline is the answer to a request whose time ran out before anything
// was done.
var errDeadline = errs.Unavailable{Part: "leaseholder (deadline passed)"}

// errReader is the answer to a read whose time ran out before a reader came.
var errReader = errs.Unavailable{Part: "reader (deadline passed)"}

// errQuorum is the answer to a read that no quorum confirmed in time.
var errQuorum = errs.Unavailable{Part: "quorum"}

// errStopping is the answer when the store stops.
var errStopping = errs.Unavailable{Part: "store (stopping)"}

// storeFault turns what the engine says into something for the caller.
func storeFault(err error) error {
	if _, ok := errors.AsType[errs.TooOld](err); ok {
		return err
	}
	if _, ok := errors.AsType[errs.TooLarge](err); ok {
		return err
	}
	return errs.Unavailable{Part: "engine"}
}
