package stream

import (
	"context"
	"fmt"
	"sync"
	"time"

	kvpb "github.com/ridgekv/ridge/proto/ridge/kv/v1"
	"github.com/ridgekv/ridge/proto/wire"
)

// state is where a request is on its way.
type state uint8

const (
	queued state = iota // nothing of it has left
	sent                // given to the transport
)

// Call is one request in wire form, with room for its answer. It carries one
// request at a time and may then be used again: nobody but its caller holds it
// before Send and after.
type Call struct {
	// Request is the request without its id (package wire). Send reads it until
	// it returns.
	Request []byte
	// Response is the answer when Send has returned nil. It is overwritten by
	// the next one.
	Response []byte
	// Deadline is when Send gives up; zero means never. It costs less than a
	// context with a deadline.
	Deadline time.Time

	// done has capacity 1 and gets one word for each request that was queued.
	done chan *Error

	// The rest belongs to the mux, under its mutex.
	id    uint64
	state state
}

// maxKeptBytes is the largest buffer that a Call keeps for its next request.
const maxKeptBytes = 64 << 10

var calls = sync.Pool{New: func() any { return &Call{done: make(chan *Error, 1)} }}

// NewCall returns a Call. Release gives it back.
func NewCall() *Call {
	c := calls.Get().(*Call)
	c.Request, c.Response, c.Deadline = c.Request[:0], c.Response[:0], time.Time{}
	return c
}

// Release ends the use of a Call.
func (c *Call) Release() {
	if cap(c.Request) > maxKeptBytes {
		c.Request = nil
	}
	if cap(c.Response) > maxKeptBytes {
		c.Response = nil
	}
	calls.Put(c)
}

// Do sends req to the store at addr and waits for the answer. The id of req is
// not used. Every failure is an *Error.
func (p *Pool) Do(
	ctx context.Context, store uint64, addr string, req *kvpb.Request,
) (*kvpb.Response, error) {
	c := NewCall()
	defer c.Release()
	var err error
	if c.Request, err = wire.AppendRequest(c.Request, req); err != nil {
		return nil, &Error{Err: err}
	}
	if err := p.Send(ctx, store, addr, c); err != nil {
		return nil, err
	}
	resp := &kvpb.Response{}
	if err := wire.DecodeResponse(c.Response, resp); err != nil {
		return nil, &Error{Sent: true, Err: fmt.Errorf("stream: decode an answer: %w", err)}
	}
	return resp, nil
}

// Send sends a request to the store at addr and waits for the answer, as long
// as ctx and the deadline of c allow. Every failure is an *Error.
func (p *Pool) Send(ctx context.Context, store uint64, addr string, c *Call) error {
	if err := ctx.Err(); err != nil {
		return &Error{Err: err}
	}
	m, err := p.mux(store, addr)
	if err != nil {
		return &Error{Err: err}
	}
	return m.do(ctx, c)
}
