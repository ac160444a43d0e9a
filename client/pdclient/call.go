package pdclient

import (
	"context"
	"errors"
	"fmt"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/ridgekv/ridge/client/internal/retry"
	kvpb "github.com/ridgekv/ridge/proto/ridge/kv/v1"
	pdpb "github.com/ridgekv/ridge/proto/ridge/pd/v1"
)

// answer is what every response of PD has.
type answer interface{ GetError() *pdpb.PDError }

// method is an RPC of a generated client, as a method expression. S is one of
// the services that a node speaks.
type method[S any, Req any, Resp answer] func(
	S, context.Context, Req, ...grpc.CallOption) (Resp, error)

// target says which node a call may go to.
type target int

const (
	toLeader target = iota
	toAny
)

// call sends r until a PD answers it, the error is final or ctx ends. Every
// call of PD may be sent twice: ids that got lost are never used, and the
// others name what they want.
func call[S any, Req any, Resp answer](
	ctx context.Context, c *Client, op string, to target, tryTimeout time.Duration,
	do method[S, Req, Resp], r Req,
) (Resp, error) {
	var none Resp
	began := time.Now()
	ctx, cancel := c.bound(ctx)
	defer cancel()
	log := retry.NewLog(c.metrics.retried)
	for {
		pick := c.members.pick
		if to == toAny {
			pick = c.members.pickAny
		}
		addr, client, err := pick()
		if err != nil {
			return none, err
		}
		resp, err := try(ctx, client, tryTimeout, do, r)
		if err == nil {
			err = c.judge(op, addr, to, resp.GetError())
		} else {
			err = c.unreachable(ctx, op, addr, err)
		}
		if err == nil {
			c.metrics.done(op, began, nil)
			return resp, nil
		}
		cause, hint, again := c.next(addr, err)
		if again {
			err = log.Wait(ctx, cause, hint, err)
		}
		if err != nil {
			c.metrics.done(op, began, err)
			return none, err
		}
	}
}

func try[S any, Req any, Resp answer](
	ctx context.Context, client node, timeout time.Duration,
	do method[S, Req, Resp], r Req,
) (Resp, error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	return do(any(client).(S), ctx, r)
}

// bound gives ctx the default deadline if it has none.
func (c *Client) bound(ctx context.Context) (context.Context, context.CancelFunc) {
	if _, ok := ctx.Deadline(); ok {
		return ctx, func() {}
	}
	return context.WithTimeout(ctx, c.o.Timeout)
}

// judge takes what the answer of addr says about leadership, and turns its
// error into ours.
func (c *Client) judge(op, addr string, to target, p *pdpb.PDError) error {
	if p == nil {
		if to == toLeader {
			c.members.leads(addr)
		}
		return nil
	}
	e := fromProto(op, p)
	switch {
	case e.Reason == pdpb.PDErrorReason_PD_ERROR_REASON_NOT_LEADER:
		c.members.redirected(addr, e.LeaderAddress)
	case e.Class == kvpb.ErrorClass_ERROR_CLASS_RETRY:
		// It may have lost its quorum: the others get a turn.
		c.members.failed(addr)
	}
	return e
}

// unreachable turns the error of a transport into ours. ctx is the caller's: a
// PD is not to blame for a caller that left.
func (c *Client) unreachable(ctx context.Context, op, addr string, err error) error {
	if errors.Is(ctx.Err(), context.Canceled) && !c.closed.Load() {
		return transportError{op: op, addr: addr, err: err}
	}
	return c.unanswered(op, addr, err)
}

// unanswered is unreachable where the PD is to blame in any case.
func (c *Client) unanswered(op, addr string, err error) error {
	if c.closed.Load() {
		return ErrClosed
	}
	c.members.failed(addr)
	return transportError{op: op, addr: addr, err: err}
}

// next decides what follows err.
func (c *Client) next(addr string, err error) (retry.Cause, time.Duration, bool) {
	if e, ok := errors.AsType[Error](err); ok {
		switch {
		case e.Reason == pdpb.PDErrorReason_PD_ERROR_REASON_NOT_LEADER:
			return retry.Cause{Kind: retry.PD, Where: "a pd leader"}, e.Backoff, true
		case e.Class == kvpb.ErrorClass_ERROR_CLASS_RETRY,
			e.Class == kvpb.ErrorClass_ERROR_CLASS_REROUTE:
			return retry.Cause{Kind: retry.PD, Where: "pd " + addr}, e.Backoff, true
		}
		return retry.Cause{}, 0, false
	}
	if e, ok := errors.AsType[transportError](err); ok && !e.final() {
		return retry.Cause{Kind: retry.Dialing, Where: "pd " + addr}, 0, true
	}
	return retry.Cause{}, 0, false
}

// transportError is a call that got no answer.
type transportError struct {
	op, addr string
	err      error
}

func (e transportError) Error() string {
	return fmt.Sprintf("pd: %s: %s does not answer: %s", e.op, e.addr, status.Convert(e.err).Message())
}

func (e transportError) Unwrap() error { return e.err }

// final tells errors that no other PD can cure.
func (e transportError) final() bool {
	switch status.Code(e.err) {
	case codes.Unimplemented, codes.InvalidArgument, codes.PermissionDenied, codes.Unauthenticated:
		return true
	}
	return false
}

// fromProto turns a wire error into ours. A reason of a newer PD that came
// without a class is final.
func fromProto(op string, p *pdpb.PDError) Error {
	e := Error{
		Op: op, Reason: p.GetReason(), Message: p.GetMessage(),
		LeaderAddress: p.GetLeaderAddress(), Class: p.GetClass(),
		Backoff: time.Duration(p.GetBackoffMs()) * time.Millisecond,
	}
	if e.Class == kvpb.ErrorClass_ERROR_CLASS_UNSPECIFIED {
		switch e.Reason {
		case pdpb.PDErrorReason_PD_ERROR_REASON_NOT_LEADER:
			e.Class = kvpb.ErrorClass_ERROR_CLASS_REROUTE
		case pdpb.PDErrorReason_PD_ERROR_REASON_UNAVAILABLE:
			e.Class = kvpb.ErrorClass_ERROR_CLASS_RETRY
		default:
			e.Class = kvpb.ErrorClass_ERROR_CLASS_FAIL
		}
	}
	return e
}
