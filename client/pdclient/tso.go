package pdclient

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"google.golang.org/grpc"

	"github.com/ridgekv/ridge/client/internal/retry"
	"github.com/ridgekv/ridge/proto/errs"
	pdpb "github.com/ridgekv/ridge/proto/ridge/pd/v1"
	"github.com/ridgekv/ridge/proto/ts"
)

const (
	// maxTimestamps bounds the timestamps of one request.
	maxTimestamps = 1 << 16
	// maxTimestampRequests bounds the requests in flight on the stream. While
	// they are out, callers gather for the next one.
	maxTimestampRequests = 16
	// maxTimestampCallers bounds the callers that wait.
	maxTimestampCallers = 1 << 16
)

// errNotMonotone is a PD that hands out a timestamp twice. It must never
// happen; the answer is thrown away and another PD is asked.
var errNotMonotone = errors.New("pd: timestamps: an answer is not above an earlier one")

// oracle shares one stream of timestamp requests between all callers. A caller
// joins the next request, so its timestamp is made after it asked.
type oracle struct {
	c *Client
	// bell rings when a caller waits (capacity 1).
	bell chan struct{}
	// last is the highest timestamp given; only the receiver touches it.
	last ts.Timestamp

	mu struct {
		sync.Mutex
		waiting []*timestampCall
		// lastErr is why the stream broke last, for callers that give up.
		lastErr error
		closed  bool
	}
}

// timestampCall is a caller that waits for n timestamps. done has capacity 1,
// so that nobody waits for a caller that left.
type timestampCall struct {
	n    uint32
	done chan timestampResult
	left bool // guarded by oracle.mu
}

type timestampResult struct {
	first ts.Timestamp
	err   error
}

func newOracle(c *Client) *oracle {
	return &oracle{c: c, bell: make(chan struct{}, 1)}
}

// Timestamp returns a timestamp above every one that any caller of the cluster
// was given before this call began.
func (c *Client) Timestamp(ctx context.Context) (ts.Timestamp, error) {
	return c.Timestamps(ctx, 1)
}

// Timestamps returns the first of n consecutive timestamps. Within one client
// later answers are above earlier ones.
func (c *Client) Timestamps(ctx context.Context, n uint32) (ts.Timestamp, error) {
	if n == 0 || n > maxTimestamps {
		return 0, errs.InvalidArgument{
			Field: "n", Reason: fmt.Sprintf("%d is not in 1..%d", n, maxTimestamps),
		}
	}
	began := time.Now()
	ctx, cancel := c.bound(ctx)
	defer cancel()
	w := &timestampCall{n: n, done: make(chan timestampResult, 1)}
	if err := c.oracle.enqueue(w); err != nil {
		return 0, err
	}
	var r timestampResult
	select {
	case r = <-w.done:
	case <-ctx.Done():
		r.err = c.oracle.leave(ctx, w, began)
	}
	c.metrics.done("timestamps", began, r.err)
	return r.first, r.err
}

func (o *oracle) enqueue(w *timestampCall) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.mu.closed {
		return ErrClosed
	}
	if len(o.mu.waiting) >= maxTimestampCallers {
		return errs.Busy{Reason: "callers waiting for timestamps", RetryAfter: 10 * time.Millisecond}
	}
	o.mu.waiting = append(o.mu.waiting, w)
	o.ring()
	return nil
}

// leave gives up waiting and says why it took so long.
func (o *oracle) leave(ctx context.Context, w *timestampCall, began time.Time) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	w.left = true
	if o.mu.lastErr == nil {
		return fmt.Errorf("pd: timestamps: %w", ctx.Err())
	}
	spent := time.Since(began).Round(time.Millisecond)
	return fmt.Errorf("pd: timestamps: %w; %v spent: waiting for pd; last: %w",
		ctx.Err(), spent, o.mu.lastErr)
}

func (o *oracle) ring() {
	select {
	case o.bell <- struct{}{}:
	default:
	}
}

// run keeps a stream open while somebody waits. It ends with ctx.
func (o *oracle) run(ctx context.Context) {
	defer o.close()
	log := retry.NewLog(o.c.metrics.retried)
	for {
		select {
		case <-ctx.Done():
			return
		case <-o.bell:
		}
		addr, progress, err := o.session(ctx)
		if ctx.Err() != nil {
			return
		}
		if progress {
			log = retry.NewLog(o.c.metrics.retried)
		}
		cause, hint, again := o.c.next(addr, err)
		if !again && !errors.Is(err, errNotMonotone) {
			o.failAll(err)
			continue
		}
		o.noteErr(err)
		// The wait's own verdict does not matter: callers have deadlines.
		_ = log.Wait(ctx, cause, hint, err)
		o.ring() // callers may wait already
	}
}

// batch is one request in flight and the callers that share it.
type batch struct {
	callers []*timestampCall
	count   uint32
}

// session runs one stream until it breaks. Callers without an answer go back
// to the queue: asking for timestamps twice harms nobody.
func (o *oracle) session(ctx context.Context) (addr string, progress bool, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	addr, client, err := o.c.members.pick()
	if err != nil {
		return addr, false, err
	}
	// A dead address must not hold the stream's opening longer than a try.
	watchdog := time.AfterFunc(o.c.o.TryTimeout, cancel)
	stream, err := client.Timestamps(ctx)
	watchdog.Stop()
	if err != nil {
		return addr, false, o.c.unanswered("timestamps", addr, err)
	}
	inFlight := make(chan batch, maxTimestampRequests)
	received := make(chan error, 1)
	var wg sync.WaitGroup
	wg.Go(func() {
		var err error
		progress, err = o.receive(stream, addr, cancel, inFlight)
		cancel()
		received <- err
	})
	o.ring() // somebody waits, or this session would not be
	o.send(ctx, stream, inFlight)
	close(inFlight)
	wg.Wait()
	return addr, progress, <-received
}

type timestampStream = grpc.BidiStreamingClient[pdpb.TimestampsRequest, pdpb.TimestampsResponse]

// send turns whoever waits into requests until the stream ends.
func (o *oracle) send(ctx context.Context, stream timestampStream, inFlight chan<- batch) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-o.bell:
		}
		for {
			b := o.take()
			if b.count == 0 {
				break
			}
			select {
			case inFlight <- b:
			case <-ctx.Done():
				o.putBack(b)
				return
			}
			// On an error the receiver learns why and puts the batch back.
			_ = stream.Send(&pdpb.TimestampsRequest{Header: o.c.header(), Count: b.count})
		}
	}
}

// receive hands answers to the callers, in order. cancel is called when the PD
// is silent for a try's time.
func (o *oracle) receive(
	stream timestampStream, addr string, cancel func(), inFlight <-chan batch,
) (progress bool, err error) {
	for b := range inFlight {
		if err == nil {
			watchdog := time.AfterFunc(o.c.o.TryTimeout, cancel)
			err = o.answer(stream, addr, b)
			watchdog.Stop()
			progress = progress || err == nil
		}
		if err != nil {
			cancel()
			o.putBack(b)
		}
	}
	return progress, err
}

// answer receives the answer to b and shares it out.
func (o *oracle) answer(stream timestampStream, addr string, b batch) error {
	r, err := stream.Recv()
	if err != nil {
		return o.c.unanswered("timestamps", addr, err)
	}
	if err := o.c.judge("timestamps", addr, toLeader, r.GetError()); err != nil {
		return err
	}
	first := ts.Timestamp(r.GetFirst())
	if r.GetCount() < b.count || first <= o.last {
		o.c.members.failed(addr)
		return errNotMonotone
	}
	o.last = first + ts.Timestamp(b.count) - 1
	o.c.metrics.timestampBatch(len(b.callers))
	for _, w := range b.callers {
		w.done <- timestampResult{first: first}
		first += ts.Timestamp(w.n)
	}
	return nil
}

// take gathers everybody who waits, up to the size of a request.
func (o *oracle) take() batch {
	o.mu.Lock()
	defer o.mu.Unlock()
	var b batch
	for i, w := range o.mu.waiting {
		if w.left {
			continue
		}
		if b.count+w.n > maxTimestamps {
			o.mu.waiting = o.mu.waiting[i:]
			return b
		}
		b.count += w.n
		b.callers = append(b.callers, w)
	}
	o.mu.waiting = nil
	return b
}

func (o *oracle) putBack(b batch) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.mu.waiting = append(b.callers, o.mu.waiting...)
	o.ring()
}

func (o *oracle) noteErr(err error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.mu.lastErr = err
}

func (o *oracle) failAll(err error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, w := range o.mu.waiting {
		w.done <- timestampResult{err: err}
	}
	o.mu.waiting = nil
}

func (o *oracle) close() {
	o.mu.Lock()
	o.mu.closed = true
	o.mu.Unlock()
	o.failAll(ErrClosed)
}
