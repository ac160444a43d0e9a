package service

import (
	"runtime"
	"sync"
	"sync/atomic"

	"google.golang.org/protobuf/proto"

	"github.com/ridgekv/ridge/proto/errs"
	kvpb "github.com/ridgekv/ridge/proto/ridge/kv/v1"
	"github.com/ridgekv/ridge/proto/wire"
	"github.com/ridgekv/ridge/storenode/internal/evaluate"
)

// maxMessageBytes is where a message of answers is cut. One answer may be
// larger; it then travels alone.
const maxMessageBytes = 1 << 20

// Stream implements KVService: one reader, one writer that packs every waiting
// answer into one message. Requests are never forwarded.
func (s *Service) Stream(stream kvpb.KVService_StreamServer) error {
	core, err := s.enter()
	if err != nil {
		return stream.Send(&kvpb.StreamResponse{Error: errs.ToProto(err)})
	}
	defer s.leave()
	return s.attend(stream.Context(), func(owes *debt) error {
		return s.converse(core, stream, owes)
	})
}

func (s *Service) converse(core *Core, stream kvpb.KVService_StreamServer, owes *debt) error {
	owes.begin()
	first := &wire.Requests{StreamRequest: &kvpb.StreamRequest{}}
	if err := stream.RecvMsg(first); err != nil {
		return nil // The caller left without a word.
	}
	if err := checkHello(core, first.GetHello()); err != nil {
		return stream.Send(&kvpb.StreamResponse{Error: errs.ToProto(err)})
	}
	owes.end()
	s.metrics.streams.Inc()
	defer s.metrics.streams.Dec()

	c := &conversation{
		s: s, core: core, owes: owes, bell: make(chan struct{}, 1), room: make(chan struct{}, 1),
	}
	ended := make(chan struct{})
	s.readers.Go(func() {
		defer close(ended)
		c.read(stream, first)
	})
	return c.write(stream, ended)
}

// conversation is one open stream.
type conversation struct {
	s    *Service
	core *Core
	owes *debt
	// seats and bytes count the requests whose answers are not yet written.
	seats, bytes atomic.Int64
	// bell is rung when there is something to write, room when seats came free.
	bell, room chan struct{}

	mu struct {
		sync.Mutex
		// waiting holds finished answers. It is bounded by the seats.
		waiting []answer
		// deaf is set when nobody will write answers any more.
		deaf bool
	}
}

// message is the memory of the requests that came in one message: they share
// it, so it is there until the last of their answers, which may share it too,
// is written.
type message struct {
	bytes int64
	left  atomic.Int64
}

// charge takes room for a message.
func (c *conversation) charge(m *wire.Requests) *message {
	size := m.SizeBytes
	if size == 0 {
		size = proto.Size(m.StreamRequest)
	}
	n := int64(len(m.GetRequests()))
	from := &message{}
	if n > 0 {
		from.bytes = int64(size) + n*requestBytes
		from.left.Store(n)
		c.release(-from.bytes)
	}
	return from
}

// leave says that n requests are done with. It returns the room that is free.
func (m *message) leave(n int) int64 {
	if m.left.Add(-int64(n)) == 0 {
		return m.bytes
	}
	return 0
}

func (c *conversation) release(bytes int64) {
	c.bytes.Add(-bytes)
	c.s.bytes.Add(-bytes)
}

// answer is a finished answer, the room that it takes up, and the message of
// its request.
type answer struct {
	response *kvpb.Response
	bytes    int64
	from     *message
}

// read takes requests in until the stream ends, m first. When refusals pile up
// because the caller reads no answers, it stops reading too.
func (c *conversation) read(stream kvpb.KVService_StreamServer, m *wire.Requests) {
	for {
		from := c.charge(m)
		c.s.metrics.requests.Add(float64(len(m.GetRequests())))
		seats := make([]seat, len(m.GetRequests()))
		admitted := make([]evaluate.Submission, 0, len(m.GetRequests()))
		for i, r := range m.GetRequests() {
			for c.seats.Load() >= 2*int64(c.s.o.StreamSeats) {
				// Seats come free when what was admitted is answered.
				c.submit(admitted)
				admitted = admitted[len(admitted):]
				select {
				case <-c.room:
				case <-stream.Context().Done():
					c.release(from.leave(len(seats) - i))
					return
				}
			}
			seats[i].c, seats[i].id, seats[i].from = c, r.GetId(), from
			if c.admit(r, &seats[i]) {
				admitted = append(admitted, evaluate.Submission{Request: r, To: &seats[i]})
			}
		}
		c.submit(admitted)
		if err := stream.RecvMsg(m); err != nil {
			return
		}
	}
}

// admit climbs the ladder with one request. It is answered when it is refused.
func (c *conversation) admit(request *kvpb.Request, seat *seat) (admitted bool) {
	defer func() {
		if p := recover(); p != nil {
			seat.Answer(c.s.panicked(request, p))
			admitted = false
		}
	}()
	c.seats.Add(1)
	h := headerOf(request)
	err := c.s.taking()
	if err == nil {
		err = checkArguments(request)
	}
	if err == nil {
		err = checkRange(c.core.Ranges, request, h)
	}
	if err == nil {
		err = c.load()
	}
	if err != nil {
		seat.Answer(refusal(request.GetId(), err))
		return false
	}
	return true
}

// submit hands requests on. Whatever happens, each of them is answered once:
// after a panic nobody knows how far it came.
func (c *conversation) submit(admitted []evaluate.Submission) {
	if len(admitted) == 0 {
		return
	}
	defer func() {
		if p := recover(); p != nil {
			for _, s := range admitted {
				s.To.Answer(c.s.panicked(s.Request, p))
			}
		}
	}()
	c.core.Evaluator.SubmitAll(admitted)
}

// load is the last rung.
func (c *conversation) load() error {
	reason := ""
	switch {
	case c.seats.Load() > int64(c.s.o.StreamSeats):
		reason = busyRequests
	case c.bytes.Load() > c.s.o.StreamBytes:
		reason = busyStreamBytes
	case c.s.bytes.Load() > c.s.o.InFlightBytes:
		reason = busyBytes
	default:
		return nil
	}
	c.s.metrics.busy.WithLabelValues(reason).Inc()
	return errs.Busy{Reason: reason}
}

// requestBytes is what a request takes up beside its message.
const requestBytes = 256

// seat is the place of one request until its answer is written.
type seat struct {
	c    *conversation
	id   uint64
	from *message
	done atomic.Bool
}

// Answer is called from any goroutine; only its first call counts.
func (t *seat) Answer(r *kvpb.Response) {
	if t.done.Swap(true) {
		return
	}
	if r == nil {
		r = refusal(t.id, errs.UnknownOutcome{})
	}
	r.Id = t.id
	c := t.c
	a := answer{response: r, bytes: int64(answerSize(r)), from: t.from}
	c.release(-a.bytes)
	c.mu.Lock()
	deaf := c.mu.deaf
	if !deaf {
		c.mu.waiting = append(c.mu.waiting, a)
	}
	c.mu.Unlock()
	if deaf {
		c.free(a)
		return
	}
	select {
	case c.bell <- struct{}{}:
	default:
	}
}

// free gives back what answers took up that are written, or never will be.
func (c *conversation) free(done ...answer) {
	bytes := int64(0)
	for _, a := range done {
		bytes += a.bytes + a.from.leave(1)
	}
	c.release(bytes)
	c.seats.Add(-int64(len(done)))
	select {
	case c.room <- struct{}{}:
	default:
	}
}

// write sends answers until the stream breaks, its reader has ended and
// everything is answered, or the store drains and everything is answered.
func (c *conversation) write(
	stream kvpb.KVService_StreamServer, ended <-chan struct{},
) error {
	defer c.hangUp()
	draining, ctx := c.s.draining, stream.Context()
	last := false
	for {
		if err := c.flush(stream); err != nil {
			return err
		}
		if last && c.seats.Load() == 0 {
			if ctx.Err() != nil || draining != nil {
				return nil
			}
			e := errs.ToProto(errs.Unavailable{Part: "store"})
			c.owes.begin()
			return stream.Send(&kvpb.StreamResponse{Error: e})
		}
		select {
		case <-c.bell:
			// Answers come in bursts: let those who are about to answer do so,
			// and send all in one message.
			runtime.Gosched()
		case <-ended:
			ended, last = nil, true
		case <-draining:
			draining, last = nil, true
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// flush writes what waits, packed.
func (c *conversation) flush(stream kvpb.KVService_StreamServer) error {
	c.mu.Lock()
	waiting := c.mu.waiting
	c.mu.waiting = nil
	c.mu.Unlock()
	for len(waiting) > 0 {
		m := &kvpb.StreamResponse{}
		size, n := 0, 0
		for n < len(waiting) && (n == 0 || size < maxMessageBytes) {
			size += answerSize(waiting[n].response)
			if n > 0 && size > maxMessageBytes {
				break
			}
			m.Responses = append(m.Responses, waiting[n].response)
			n++
		}
		c.owes.begin()
		err := stream.SendMsg(wire.Responses{StreamResponse: m})
		c.owes.end()
		c.free(waiting[:n]...)
		waiting = waiting[n:]
		if err != nil {
			c.free(waiting...)
			return err
		}
		c.s.metrics.packed.Observe(float64(n))
	}
	return nil
}

// hangUp frees what will never be written.
func (c *conversation) hangUp() {
	c.mu.Lock()
	waiting := c.mu.waiting
	c.mu.waiting, c.mu.deaf = nil, true
	c.mu.Unlock()
	c.free(waiting...)
}
