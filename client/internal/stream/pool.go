// Package stream carries requests to stores: one bidirectional stream per
// store, on which many callers share messages. Law: a request is handed to the
// transport at most once, and its caller learns whether it was.
package stream

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"maps"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"

	"github.com/ridgekv/ridge/client/internal/dial"
)

var (
	// ErrClosed is the cause of every failure after Close.
	ErrClosed = errors.New("stream: closed")
	// ErrSilent is a store that has not answered anything for a while: nothing
	// new is sent to it until it answers a probe.
	ErrSilent = errors.New("stream: the store does not answer")
	// ErrFull is a store with too many requests in flight.
	ErrFull = errors.New("stream: too many requests wait for the store")
)

// Error is a request that got no answer.
type Error struct {
	// Sent tells that the request was given to the transport: the store may
	// have it. A request that was not sent certainly had no effect.
	Sent bool
	// Err is the cause.
	Err error
}

func (e *Error) Error() string { return e.Err.Error() }

func (e *Error) Unwrap() error { return e.Err }

// Options configure a Pool.
type Options struct {
	TLS         *tls.Config
	DialTimeout time.Duration
	// ClusterID is asked when a stream opens.
	ClusterID func() uint64
	// SilentAfter is how long a store may leave requests unanswered, with no
	// answer to any other, before it counts as silent. Default 1s.
	SilentAfter time.Duration
	// MaxInFlight bounds the requests that wait on one store. Default 8192.
	MaxInFlight int
}

// Pool holds a stream per store. It is safe for concurrent use.
type Pool struct {
	o Options
	// start runs a stream until it breaks or stop is called; Close waits for wg.
	start func(*mux)
	stop  context.CancelFunc
	wg    sync.WaitGroup

	// links is what callers look at; it is replaced, never changed.
	links atomic.Pointer[map[uint64]*link]
	mu    struct {
		sync.Mutex // held to replace links
		closed     bool
	}
}

// link is a store: its connection and the stream that is open on it. It never
// changes.
type link struct {
	addr string
	conn *grpc.ClientConn
	mux  *mux
}

// NewPool returns an empty pool. The caller owns it and must Close it.
func NewPool(o Options) *Pool {
	if o.SilentAfter == 0 {
		o.SilentAfter = time.Second
	}
	if o.MaxInFlight == 0 {
		o.MaxInFlight = 8192
	}
	o.MaxInFlight = min(o.MaxInFlight, maxSlots-1) // one is for a probe
	p := &Pool{o: o}
	ctx, stop := context.WithCancel(context.Background())
	p.stop = stop
	p.start = func(m *mux) { p.wg.Go(func() { m.run(ctx) }) }
	p.links.Store(&map[uint64]*link{})
	return p
}

// Silent reports whether the store is not answering.
func (p *Pool) Silent(store uint64) bool {
	l := (*p.links.Load())[store]
	return l != nil && l.mux.silent()
}

// InFlight is how many requests the store has not answered.
func (p *Pool) InFlight(store uint64) int {
	l := (*p.links.Load())[store]
	if l == nil {
		return 0
	}
	l.mux.mu.Lock()
	defer l.mux.mu.Unlock()
	return l.mux.mu.count
}

// Close ends every stream and waits for them. It is idempotent.
func (p *Pool) Close() error {
	p.mu.Lock()
	links := *p.links.Load()
	p.links.Store(&map[uint64]*link{})
	p.mu.closed = true
	p.mu.Unlock()
	p.stop()
	var faults []error
	for _, l := range links {
		faults = append(faults, l.conn.Close())
	}
	p.wg.Wait()
	return errors.Join(faults...)
}

// mux returns the open stream of the store, opening one if there is none. A
// store that has moved gets a new connection.
func (p *Pool) mux(store uint64, addr string) (*mux, error) {
	if l := (*p.links.Load())[store]; l != nil && l.addr == addr && !l.mux.broken() {
		return l.mux, nil
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.mu.closed {
		return nil, ErrClosed
	}
	links := *p.links.Load()
	l := links[store]
	if l != nil && l.addr == addr && !l.mux.broken() {
		return l.mux, nil // somebody else was faster
	}
	if l != nil && l.addr != addr {
		// Requests under way on the old connection fail as with any break.
		_ = l.conn.Close()
		l = nil
	}
	next := &link{addr: addr}
	if l != nil {
		next.conn = l.conn
	} else {
		conn, err := dial.New(addr, dial.Options{
			TLS: p.o.TLS, Timeout: p.o.DialTimeout, UserAgent: "ridge-client",
		})
		if err != nil {
			return nil, fmt.Errorf("stream: %w", err)
		}
		next.conn = conn
	}
	next.mux = newMux(store, next.conn, p.o)
	links = maps.Clone(links)
	links[store] = next
	p.links.Store(&links)
	p.start(next.mux)
	return next.mux, nil
}
