package client

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/ridgekv/ridge/client/internal/retry"
	"github.com/ridgekv/ridge/client/internal/route"
	"github.com/ridgekv/ridge/client/internal/stream"
	"github.com/ridgekv/ridge/proto/keys"
	kvpb "github.com/ridgekv/ridge/proto/ridge/kv/v1"
	"github.com/ridgekv/ridge/proto/wire"
)

// op is a call that goes the direct way.
type op uint8

const (
	opGet op = iota
	opPut
	opDelete
	ops
)

// String names o as metrics and errors do.
func (o op) String() string { return [ops]string{"get", "put", "delete"}[o] }

func (o op) allowed() optionBit { return [ops]optionBit{bitConsistency, bitTTL, 0}[o] }

// plainCall is a Get, Put or Delete: what nearly all calls are. Its first try
// goes the direct way, with no message, context or log of its own.
type plainCall struct {
	op         op
	key, value []byte
	s          settings
	// began is when it was called, deadline when it must end.
	began, deadline time.Time
}

func (c *Client) plain(
	ctx context.Context, q plainCall, opts []Option,
) (a wire.Answer, err error) {
	q.began = time.Now()
	if q.s, err = c.apply(opts, q.op.allowed()); err == nil {
		err = checkKey(q.key)
	}
	if err == nil {
		err = checkValue(q.value)
	}
	if err == nil {
		a, err = c.send(ctx, &q)
	}
	c.metrics.plain(q.op, q.began, err)
	if err != nil {
		err = fmt.Errorf("client: %s %s: %w", q.op, keys.Format(q.key), err)
	}
	return a, err
}

// send tries the direct way, and goes on from there on tour.
func (c *Client) send(ctx context.Context, q *plainCall) (wire.Answer, error) {
	var bounded bool
	if q.deadline, bounded = ctx.Deadline(); !bounded {
		q.deadline = q.began.Add(c.o.Timeout)
	}
	a, first := c.direct(ctx, q)
	if first != nil && first.err == nil {
		return a, nil
	}
	if !bounded {
		var cancel context.CancelFunc
		ctx, cancel = context.WithDeadline(ctx, q.deadline)
		defer cancel()
	}
	resp, err := c.single(ctx, retry.NewLogSince(q.began, c.metrics.retried), q.request(), first)
	if err != nil {
		return wire.Answer{}, err
	}
	return answerOf(resp), nil
}

// firstTry is how the direct way went. err is an *stream.Error, or what the
// store said.
type firstTry struct {
	rt    *route.Route
	store uint64
	err   error
}

// direct asks the store that is thought to lead, once. It returns nil when there
// is nobody to ask without further thought.
func (c *Client) direct(ctx context.Context, q *plainCall) (a wire.Answer, t *firstTry) {
	if q.s.consistency.level != linearizable {
		return a, nil
	}
	rt := c.routes.Find(q.key)
	if rt == nil || rt.Leader == 0 || c.health.isDown(rt.Leader) {
		return a, nil
	}
	addr := c.routes.Known(rt.Leader)
	if addr == "" || q.op != opGet && c.line.waits(rt.Leader) {
		return a, nil
	}
	t = &firstTry{rt: rt, store: rt.Leader}
	call := stream.NewCall()
	defer call.Release()
	call.Deadline = q.deadline
	if q.op == opGet {
		if try := q.began.Add(c.o.TryTimeout); try.Before(q.deadline) {
			call.Deadline = try
		}
	}
	h := wire.Header{
		RangeID: rt.RangeID, SpanEpoch: rt.Epoch, Token: uint64(q.s.session.Token()),
		Forwarded: c.o.Forwarded, TimeoutMillis: patience(call.Deadline.Sub(q.began)),
	}
	call.Request = q.append(call.Request, &h)
	if t.err = c.streams.Send(ctx, t.store, addr, call); t.err != nil {
		return a, t
	}
	c.health.up(t.store)
	if !a.Decode(call.Response) {
		var resp kvpb.Response
		if err := proto.Unmarshal(call.Response, &resp); err != nil {
			t.err = &stream.Error{Sent: true, Err: err}
			return a, t
		}
		t.err = retry.FromWire(errorOf(&resp), rt.RangeID, q.op != opGet)
		if t.err != nil {
			return a, t
		}
		a = answerOf(&resp)
	}
	if q.op != opGet {
		c.line.next(t.store)
	}
	a.Value = bytes.Clone(a.Value) // call will be used again
	q.s.session.saw(max(a.CommitTS, a.Token))
	return a, t
}

// patience is what a store is told of the time that is left: it gives up a
// little before the caller, so that its last word still arrives.
func patience(left time.Duration) uint32 {
	left -= min(left/10, 100*time.Millisecond)
	return uint32(max(left.Milliseconds(), 1))
}

// append encodes q.
func (q *plainCall) append(b []byte, h *wire.Header) []byte {
	switch q.op {
	case opGet:
		return wire.AppendGet(b, h, q.key)
	case opPut:
		return wire.AppendPut(b, h, q.key, q.value, millis(q.s.ttl))
	}
	return wire.AppendDelete(b, h, q.key)
}

// request is q for a tour.
func (q *plainCall) request() request {
	r := request{key: q.key, session: q.s.session, write: q.op != opGet}
	switch q.op {
	case opGet:
		r.anywhere = q.s.consistency.level == stale
		r.build = func(h *kvpb.Header) *kvpb.Request {
			return &kvpb.Request{Body: &kvpb.Request_Get{Get: &kvpb.GetRequest{
				Header: h, Key: q.key, Consistency: q.s.consistency.proto(),
			}}}
		}
	case opPut:
		r.build = func(h *kvpb.Header) *kvpb.Request {
			return &kvpb.Request{Body: &kvpb.Request_Put{Put: &kvpb.PutRequest{
				Header: h, Key: q.key, Value: q.value, TtlMs: millis(q.s.ttl),
			}}}
		}
	case opDelete:
		r.build = func(h *kvpb.Header) *kvpb.Request {
			return &kvpb.Request{Body: &kvpb.Request_Delete{
				Delete: &kvpb.DeleteRequest{Header: h, Key: q.key},
			}}
		}
	}
	return r
}

// answerOf is resp in short.
func answerOf(resp *kvpb.Response) wire.Answer {
	switch b := resp.GetBody().(type) {
	case *kvpb.Response_Get:
		row := b.Get.GetRow()
		return wire.Answer{
			Found: b.Get.GetFound(), Token: b.Get.GetToken(), Value: row.GetValue(),
			CommitTS: row.GetCommitTs(), ExpiresAt: row.GetExpiresAt(),
		}
	case *kvpb.Response_Put:
		return wire.Answer{CommitTS: b.Put.GetCommitTs()}
	case *kvpb.Response_Delete:
		return wire.Answer{CommitTS: b.Delete.GetCommitTs()}
	}
	return wire.Answer{}
}

// goOn continues a tour after the direct way. ctx is bounded by the deadline of
// the call.
func (t *tour) goOn(ctx context.Context, first *firstTry) (*kvpb.Response, error) {
	err := first.err
	if failure, ok := errors.AsType[*stream.Error](err); ok {
		timeout := errors.Is(failure.Err, context.DeadlineExceeded)
		err = t.unanswered(ctx, first.store, failure, timeout && ctx.Err() == nil)
	}
	if err := t.after(ctx, first.store, err); err != nil {
		return nil, err
	}
	return t.run(ctx)
}
