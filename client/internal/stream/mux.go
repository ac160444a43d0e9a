package stream

import (
	"context"
	"errors"
	"fmt"
	"io"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/status"

	"github.com/ridgekv/ridge/client/internal/dial"
	"github.com/ridgekv/ridge/proto/errs"
	kvpb "github.com/ridgekv/ridge/proto/ridge/kv/v1"
	"github.com/ridgekv/ridge/proto/wire"
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
	// slotBits is how much of an id names the place in the table of calls; the
	// rest makes it unique, so that a late answer finds nobody.
	slotBits = 20
	maxSlots = 1 << slotBits
)

// mux is one stream to one store, shared by all callers. It lives until it
// breaks; the pool then opens the next.
type mux struct {
	store uint64
	conn  *grpc.ClientConn
	o     Options
	// bell rings when a request waits (capacity 1).
	bell chan struct{}
	// sending is held by whoever gives messages to the transport.
	sending sync.Mutex
	// over is set when the stream is broken; mu.end then says why.
	over atomic.Bool

	mu struct {
		sync.Mutex
		// stream is set while requests can be sent.
		stream kvStream
		queue  []*Call // in order of arrival, all of state queued
		// slots holds every call without an answer at the low bits of its id;
		// free are the empty places, count how many are taken.
		slots []*Call
		free  []uint32
		count int
		next  uint64
		// strays were sent, have no answer, and their callers have left: perhaps
		// the transport still holds them.
		strays int
		// timer fires at due, the earliest deadline that it knows of.
		timer *time.Timer
		due   time.Time
		// unansweredSince is when the first request was sent after which nothing
		// has been received; zero: there is none.
		unansweredSince time.Time
		probing         bool
		cancel          func() // breaks the stream; set while it runs
		end             *Error // set when the stream is broken
	}
}

func newMux(store uint64, conn *grpc.ClientConn, o Options) *mux {
	return &mux{store: store, conn: conn, o: o, bell: make(chan struct{}, 1)}
}

// do sends the request of c and waits.
func (m *mux) do(ctx context.Context, c *Call) error {
	alone, err := m.enqueue(c)
	if err != nil {
		return err
	}
	if alone {
		m.sendAlone()
	}
	var failure *Error
	if ctx.Done() == nil {
		failure = <-c.done
	} else {
		select {
		case failure = <-c.done:
		case <-ctx.Done():
			failure = m.leave(c, ctx.Err())
		}
	}
	if failure != nil {
		return failure
	}
	return nil
}

// enqueue lets c wait to be sent. alone tells that nobody else is on the way,
// so that the caller may send by itself and will not be held up.
func (m *mux) enqueue(c *Call) (alone bool, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	switch {
	case m.mu.end != nil:
		return false, &Error{Err: m.mu.end.Err}
	case m.silentLocked():
		m.probeLocked()
		return false, &Error{Err: ErrSilent}
	case m.mu.count >= m.o.MaxInFlight:
		return false, &Error{Err: ErrFull}
	}
	m.addLocked(c)
	if !c.Deadline.IsZero() && (m.mu.due.IsZero() || c.Deadline.Before(m.mu.due)) {
		m.wakeAtLocked(c.Deadline)
	}
	if m.mu.count == 1 && m.mu.strays == 0 && m.mu.stream != nil &&
		m.mu.unansweredSince.IsZero() {
		return true, nil // The store has read everything, so the transport is empty.
	}
	if len(m.mu.queue) == 1 {
		m.ring()
	}
	return false, nil
}

func (m *mux) ring() {
	select {
	case m.bell <- struct{}{}:
	default:
	}
}

func (m *mux) addLocked(c *Call) {
	var slot uint32
	if n := len(m.mu.free); n > 0 {
		slot = m.mu.free[n-1]
		m.mu.free = m.mu.free[:n-1]
		m.mu.slots[slot] = c
	} else {
		slot = uint32(len(m.mu.slots))
		m.mu.slots = append(m.mu.slots, c)
	}
	m.mu.next++
	m.mu.count++
	c.id = m.mu.next<<slotBits | uint64(slot)
	c.state = queued
	m.mu.queue = append(m.mu.queue, c)
}

// removeLocked takes the call with this id out of the table; nil when it has
// left.
func (m *mux) removeLocked(id uint64) *Call {
	slot := id & (maxSlots - 1)
	if slot >= uint64(len(m.mu.slots)) {
		return nil
	}
	c := m.mu.slots[slot]
	if c == nil || c.id != id {
		return nil
	}
	m.mu.slots[slot] = nil
	m.mu.free = append(m.mu.free, uint32(slot))
	m.mu.count--
	return c
}

// leave takes c out when its caller gives up. A request still queued is
// certain not to be sent.
func (m *mux) leave(c *Call, cause error) *Error {
	m.mu.Lock()
	if m.removeLocked(c.id) == nil {
		m.mu.Unlock()
		return <-c.done // the word is said, or will be at once
	}
	defer m.mu.Unlock()
	return m.departedLocked(c, cause)
}

// departedLocked is what the caller of c hears that has been taken out of the
// table without an answer.
func (m *mux) departedLocked(c *Call, cause error) *Error {
	if c.state == queued {
		for i, q := range m.mu.queue {
			if q == c {
				m.mu.queue = append(m.mu.queue[:i:i], m.mu.queue[i+1:]...)
				break
			}
		}
	} else {
		m.mu.strays++
	}
	return &Error{Sent: c.state == sent, Err: cause}
}

// wakeAtLocked makes the timer fire at due.
func (m *mux) wakeAtLocked(due time.Time) {
	m.mu.due = due
	if m.mu.timer == nil {
		m.mu.timer = time.AfterFunc(time.Until(due), m.expire)
		return
	}
	m.mu.timer.Reset(time.Until(due))
}

// expire ends the calls whose deadline has passed. One timer serves all calls:
// it fires when the earliest deadline that it knew of has come.
func (m *mux) expire() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.mu.due = time.Time{}
	now := time.Now()
	var due time.Time
	for _, c := range m.mu.slots {
		switch {
		case c == nil || c.Deadline.IsZero():
		case !c.Deadline.After(now):
			m.removeLocked(c.id)
			c.done <- m.departedLocked(c, context.DeadlineExceeded)
		case due.IsZero() || c.Deadline.Before(due):
			due = c.Deadline
		}
	}
	if !due.IsZero() && m.mu.end == nil {
		m.wakeAtLocked(due)
	}
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
	h := wire.Header{TimeoutMillis: 1000, Forwarded: true}
	m.addLocked(&Call{done: make(chan *Error, 1), Request: wire.AppendGet(nil, &h, []byte{0})})
	m.ring()
}

func (m *mux) broken() bool { return m.over.Load() }

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
	m.mu.Lock()
	m.mu.stream = stream
	m.mu.Unlock()
	var wg sync.WaitGroup
	wg.Go(func() {
		end, none := m.receive(stream)
		m.fail(end, none)
		cancel()
	})
	m.send(ctx)
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
	stream, err := kvpb.NewKVServiceClient(m.conn).Stream(ctx, grpc.ForceCodecV2(wire.Codec{}))
	if err != nil {
		return nil, err
	}
	err = stream.Send(&kvpb.StreamRequest{Hello: &kvpb.Hello{
		ClusterId: m.o.ClusterID(), StoreId: m.store, ApiVersion: apiVersion,
	}})
	if errors.Is(err, io.EOF) {
		err = stream.RecvMsg(&wire.Frame{}) // says why
	}
	return stream, err
}

// send gives whatever waits to the transport, in messages, until ctx ends.
// While a message is on its way others gather; and before each message those
// callers that were just woken get to run, so that they are in it.
func (m *mux) send(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-m.bell:
		}
		runtime.Gosched()
		m.sending.Lock()
		more := true
		for more {
			more = m.sendOne()
		}
		m.sending.Unlock()
	}
}

// sendAlone sends what waits on the caller's own goroutine, once. Whatever
// came meanwhile is the sender's.
func (m *mux) sendAlone() {
	if !m.sending.TryLock() {
		m.ring()
		return
	}
	more := m.sendOne()
	m.sending.Unlock()
	if more {
		m.ring()
	}
}

// sendOne sends one message of what waits. It reports whether there may be
// more. sending is held.
func (m *mux) sendOne() (more bool) {
	stream, batch, frame, more := m.take()
	if batch == nil {
		return false
	}
	if err := stream.SendMsg(&frame); err != nil {
		// The stream was over before: nothing of this message has left.
		m.unsend(batch)
		return false
	}
	return more
}

// take moves waiting requests from queued to sent and makes one message of
// them; nil when there are none. The message is a copy: from then on a caller
// may leave and use its memory.
func (m *mux) take() (stream kvStream, ids []uint64, frame wire.Frame, more bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.mu.end != nil || m.mu.stream == nil || len(m.mu.queue) == 0 {
		return nil, nil, frame, false
	}
	n, size := 0, 0
	for n < len(m.mu.queue) && n < maxMessageRequests && size < maxMessageBytes {
		size += wire.RequestSize(len(m.mu.queue[n].Request))
		n++
	}
	ids = make([]uint64, n)
	message := wire.NewBuilder(size)
	for i, c := range m.mu.queue[:n] {
		c.state = sent
		ids[i] = c.id
		message.Add(c.id, c.Request)
	}
	m.mu.queue = m.mu.queue[:copy(m.mu.queue, m.mu.queue[n:])]
	if m.mu.unansweredSince.IsZero() {
		m.mu.unansweredSince = time.Now()
	}
	return m.mu.stream, ids, message.Frame(), len(m.mu.queue) > 0
}

// unsend marks a message that the transport refused.
func (m *mux) unsend(ids []uint64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, id := range ids {
		if slot := id & (maxSlots - 1); slot < uint64(len(m.mu.slots)) {
			if c := m.mu.slots[slot]; c != nil && c.id == id {
				c.state = queued
			}
		}
	}
}

// receive hands answers to callers until the stream ends. none is true when the
// store says that it looked at no request that is still without an answer.
func (m *mux) receive(stream kvStream) (end *Error, none bool) {
	var frame wire.Frame
	defer frame.Free()
	var ready []*Call
	for {
		if err := stream.RecvMsg(&frame); err != nil {
			text := status.Convert(err).Message()
			if errors.Is(err, io.EOF) {
				text = "it ended the stream"
			}
			return &Error{Sent: true, Err: fmt.Errorf("store %d: %s", m.store, text)}, false
		}
		var e *kvpb.Error
		var err error
		ready, e, err = m.deliver(frame.Bytes(), ready[:0])
		for _, c := range ready {
			c.done <- nil
		}
		clear(ready)
		if err != nil {
			return &Error{Sent: true, Err: fmt.Errorf("store %d: %w", m.store, err)}, false
		}
		if e != nil {
			// A store says so at Hello, or when it has answered everything that
			// it looked at: what has no answer now had no effect.
			none := e.GetApplied() == kvpb.Applied_APPLIED_NO
			return &Error{Sent: true, Err: errs.FromProto(e)}, none
		}
	}
}

// deliver copies the answers in a message to the calls they belong to, which it
// appends to ready: each of them must be told, once.
func (m *mux) deliver(b []byte, ready []*Call) ([]*Call, *kvpb.Error, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	e, err := wire.EachResponse(b, func(id uint64, response []byte) {
		if c := m.removeLocked(id); c != nil {
			c.Response = append(c.Response[:0], response...)
			ready = append(ready, c)
		} else if m.mu.strays > 0 { // Its caller has left.
			m.mu.strays--
		}
	})
	if e != nil || err != nil {
		return ready, e, err
	}
	m.mu.unansweredSince, m.mu.probing = time.Time{}, false
	if m.mu.count > len(m.mu.queue) {
		// Others are still out: from now on they are the ones to wait for.
		m.mu.unansweredSince = time.Now()
	}
	return ready, nil, nil
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
	m.over.Store(true)
	for _, c := range m.mu.slots {
		if c != nil {
			c.done <- &Error{Sent: c.state == sent && !none, Err: end.Err}
		}
	}
	m.mu.slots, m.mu.free, m.mu.queue, m.mu.count = nil, nil, nil, 0
	if m.mu.timer != nil {
		m.mu.timer.Stop()
	}
}
