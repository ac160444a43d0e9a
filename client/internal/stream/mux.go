package stream

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/ridgekv/ridge/client/internal/dial"
	"github.com/ridgekv/ridge/proto/errs"
	kvpb "github.com/ridgekv/ridge/proto/ridge/kv/v1"
)

const (
	// apiVersion is the version of KVService.Stream that this client speaks.
	apiVersion = 1
	// maxMessageRequests and maxMessageBytes bound one message, so that a burst
	// becomes several messages that a store can work on while the next arrives.
	maxMessageRequests = 256
	maxMessageBytes    = 1 << 20
	// giveUpAfter is when a silent stream is broken off. It is longer than a
	// write waits, so that a store that was only slow can still answer.
	giveUpAfter = 15 * time.Second
)

// state is where a request is on its way.
type state int

const (
	queued state = iota // nothing of it has left
	sent                // given to the transport
)

// waiter is a caller that waits for an answer. done has capacity 1, so that
// nobody waits for a caller that left.
type waiter struct {
	req   *kvpb.Request
	state state
	done  chan result
}

type result struct {
	resp *kvpb.Response
	err  *Error
}

// mux is one stream to one store, shared by all callers. It lives until it
// breaks; the pool then opens the next.
type mux struct {
	store uint64
	conn  *grpc.ClientConn
	o     Options
	// bell rings when a request waits (capacity 1).
	bell chan struct{}
	// encoding is held while requests are turned into bytes: a caller that got
	// no answer waits for it, because the keys and values are its own again.
	encoding sync.Mutex

	mu struct {
		sync.Mutex
		nextID  uint64
		queue   []*waiter          // in order of arrival, all of state queued
		waiting map[uint64]*waiter // every request without an answer
		// unansweredSince is when the first request was sent after which nothing
		// has been received; zero: there is none.
		unansweredSince time.Time
		probing         bool
		cancel          func() // breaks the stream; set while it runs
		end             *Error // set when the stream is broken
	}
}

func newMux(store uint64, conn *grpc.ClientConn, o Options) *mux {
	m := &mux{store: store, conn: conn, o: o, bell: make(chan struct{}, 1)}
	m.mu.waiting = map[uint64]*waiter{}
	return m
}

// do sends req and waits.
func (m *mux) do(ctx context.Context, req *kvpb.Request) (*kvpb.Response, error) {
	w := &waiter{req: req, done: make(chan result, 1)}
	if err := m.enqueue(w); err != nil {
		return nil, err
	}
	var r result
	select {
	case r = <-w.done:
	case <-ctx.Done():
		r = m.leave(w, ctx.Err())
	}
	if r.err != nil {
		m.encoding.Lock()
		//lint:ignore SA2001 it only waits until nothing is being encoded
		m.encoding.Unlock()
		return nil, r.err
	}
	return r.resp, nil
}

func (m *mux) enqueue(w *waiter) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	switch {
	case m.mu.end != nil:
		return &Error{Err: m.mu.end.Err}
	case m.silentLocked():
		m.probeLocked()
		return &Error{Err: ErrSilent}
	case len(m.mu.waiting) >= m.o.MaxInFlight:
		return &Error{Err: ErrFull}
	}
	m.addLocked(w)
	return nil
}

func (m *mux) addLocked(w *waiter) {
	m.mu.nextID++
	w.req.Id = m.mu.nextID
	m.mu.waiting[w.req.Id] = w
	m.mu.queue = append(m.mu.queue, w)
	if len(m.mu.queue) == 1 {
		select {
		case m.bell <- struct{}{}:
		default:
		}
	}
}

// leave takes w out when its caller gives up. A request still queued is
// certain not to be sent.
func (m *mux) leave(w *waiter, cause error) result {
	m.mu.Lock()
	defer m.mu.Unlock()
	select {
	case r := <-w.done:
		return r
	default:
	}
	delete(m.mu.waiting, w.req.Id)
	if w.state == queued {
		for i, q := range m.mu.queue {
			if q == w {
				m.mu.queue = append(m.mu.queue[:i:i], m.mu.queue[i+1:]...)
				break
			}
		}
	}
	return result{err: &Error{Sent: w.state == sent, Err: cause}}
}

func (m *mux) silent() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.silentLocked()
}

func (m *mux) silentLocked() bool {
	since := m.mu.unansweredSince
	return !since.IsZero() && time.Since(since) > m.o.SilentAfter
}

// probeLocked asks for a range that cannot exist: any answer shows that the
// store is alive, and nobody waits for it.
func (m *mux) probeLocked() {
	if time.Since(m.mu.unansweredSince) > giveUpAfter && m.mu.cancel != nil {
		m.mu.cancel()
		return
	}
	if m.mu.probing {
		return
	}
	m.mu.probing = true
	m.addLocked(&waiter{done: make(chan result, 1), req: &kvpb.Request{
		Body: &kvpb.Request_Get{Get: &kvpb.GetRequest{
			Header: &kvpb.Header{TimeoutMs: 1000, Forwarded: true}, Key: []byte{0},
		}},
	}})
}

func (m *mux) broken() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.mu.end != nil
}

// run opens the stream and works on it until it breaks or ctx ends.
func (m *mux) run(ctx context.Context) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	m.mu.Lock()
	m.mu.cancel = cancel
	m.mu.Unlock()
	stream, err := m.open(ctx, cancel)
	if err != nil {
		text := status.Convert(err).Message()
		if ctx.Err() != nil {
			text = "no connection in time"
		}
		m.fail(&Error{Err: fmt.Errorf("store %d: %s", m.store, text)}, true)
		return
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		end, none := m.receive(stream)
		m.fail(end, none)
		cancel()
	})
	m.send(ctx, stream)
	cancel()
	wg.Wait()
}

type kvStream = grpc.BidiStreamingClient[kvpb.StreamRequest, kvpb.StreamResponse]

// open connects and says hello. It takes no longer than a dial.
func (m *mux) open(ctx context.Context, cancel func()) (kvStream, error) {
	limit := m.o.DialTimeout
	if limit <= 0 {
		limit = dial.DefaultTimeout
	}
	watchdog := time.AfterFunc(limit, cancel)
	defer watchdog.Stop()
	stream, err := kvpb.NewKVServiceClient(m.conn).Stream(ctx)
	if err != nil {
		return nil, err
	}
	err = stream.Send(&kvpb.StreamRequest{Hello: &kvpb.Hello{
		ClusterId: m.o.ClusterID(), StoreId: m.store, ApiVersion: apiVersion,
	}})
	if errors.Is(err, io.EOF) {
		err = stream.RecvMsg(&kvpb.StreamResponse{}) // says why
	}
	return stream, err
}

// send gives whatever waits to the transport, in messages, until ctx ends. A
// lone request leaves at once; while a message is on its way others gather.
func (m *mux) send(ctx context.Context, stream kvStream) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-m.bell:
		}
		for {
			batch, msg, err := m.encode(stream)
			if batch == nil {
				break
			}
			if err == nil {
				err = stream.SendMsg(msg)
			}
			if err != nil {
				// The stream was over before: nothing of this message has left.
				m.unsend(batch)
				return
			}
		}
	}
}

// encode takes what waits and turns it into one message.
func (m *mux) encode(stream kvStream) ([]*kvpb.Request, *grpc.PreparedMsg, error) {
	m.encoding.Lock()
	defer m.encoding.Unlock()
	batch := m.take()
	if batch == nil {
		return nil, nil, nil
	}
	msg := &grpc.PreparedMsg{}
	return batch, msg, msg.Encode(stream, &kvpb.StreamRequest{Requests: batch})
}

// take moves waiting requests from queued to sent and returns them; nil when
// there are none.
func (m *mux) take() []*kvpb.Request {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.mu.end != nil || len(m.mu.queue) == 0 {
		return nil
	}
	n, size := 0, 0
	for n < len(m.mu.queue) && n < maxMessageRequests && size < maxMessageBytes {
		size += proto.Size(m.mu.queue[n].req)
		n++
	}
	batch := make([]*kvpb.Request, n)
	for i, w := range m.mu.queue[:n] {
		w.state = sent
		batch[i] = w.req
	}
	m.mu.queue = m.mu.queue[n:]
	if len(m.mu.queue) == 0 {
		m.mu.queue = nil
	}
	if m.mu.unansweredSince.IsZero() {
		m.mu.unansweredSince = time.Now()
	}
	return batch
}

// unsend marks a message that the transport refused.
func (m *mux) unsend(batch []*kvpb.Request) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, req := range batch {
		if w := m.mu.waiting[req.Id]; w != nil {
			w.state = queued
		}
	}
}

// receive hands answers to callers until the stream ends. none is true when the
// store says that it looked at no request that is still without an answer.
func (m *mux) receive(stream kvStream) (end *Error, none bool) {
	for {
		r, err := stream.Recv()
		if err != nil {
			text := status.Convert(err).Message()
			if errors.Is(err, io.EOF) {
				text = "it ended the stream"
			}
			return &Error{Sent: true, Err: fmt.Errorf("store %d: %s", m.store, text)}, false
		}
		if r.GetError() != nil {
			// A store says so at Hello, or when it has answered everything that
			// it looked at: what has no answer now had no effect.
			none := r.GetError().GetApplied() == kvpb.Applied_APPLIED_NO
			return &Error{Sent: true, Err: errs.FromProto(r.GetError())}, none
		}
		m.deliver(r.GetResponses())
	}
}

func (m *mux) deliver(responses []*kvpb.Response) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.mu.unansweredSince, m.mu.probing = time.Time{}, false
	for _, r := range responses {
		w := m.mu.waiting[r.GetId()]
		if w == nil {
			continue // its caller has left
		}
		delete(m.mu.waiting, r.GetId())
		w.done <- result{resp: r}
	}
	if len(m.mu.waiting) > len(m.mu.queue) {
		// Others are still out: from now on they are the ones to wait for.
		m.mu.unansweredSince = time.Now()
	}
}

// fail ends the stream for everybody who waits. none tells that none of their
// requests was looked at.
func (m *mux) fail(end *Error, none bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.mu.end != nil {
		return
	}
	m.mu.end = end
	for id, w := range m.mu.waiting {
		delete(m.mu.waiting, id)
		w.done <- result{err: &Error{Sent: w.state == sent && !none, Err: end.Err}}
	}
	m.mu.queue = nil
}
