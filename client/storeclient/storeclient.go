// Package storeclient keeps one connection per store address for the callers
// that speak to a store by name: other stores, and the admin tool.
package storeclient

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"strconv"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/ridgekv/ridge/client/internal/dial"
	kvpb "github.com/ridgekv/ridge/proto/ridge/kv/v1"
	storepb "github.com/ridgekv/ridge/proto/ridge/store/v1"
)

// Metadata keys of unary calls and of the streams of StoreService.
const (
	// ClusterIDKey carries the cluster id in decimal.
	ClusterIDKey = "ridge-cluster-id"
	// StoreIDKey carries the id of the store that is meant, in decimal.
	StoreIDKey = "ridge-store-id"
)

// ErrClosed is returned by every call after Close.
var ErrClosed = errors.New("storeclient: the pool is closed")

// Options configure a Pool.
type Options struct {
	// TLS is the client side of every connection. Default nil: plain text.
	TLS *tls.Config
	// DialTimeout bounds one attempt to connect. Default 500ms.
	DialTimeout time.Duration
	// ClusterID, if set, is asked at every call; an id other than 0 is sent as
	// metadata, so that a store of another cluster refuses.
	ClusterID func() uint64
}

// Pool holds a connection per store address. It is safe for concurrent use.
// Connections are made at the first call and kept until Forget or Close; the
// number of stores bounds them.
type Pool struct {
	o  Options
	mu struct {
		sync.Mutex
		conns  map[string]*grpc.ClientConn
		closed bool
	}
}

// New returns an empty pool. It connects to nothing.
func New(o Options) *Pool {
	p := &Pool{o: o}
	p.mu.conns = map[string]*grpc.ClientConn{}
	return p
}

// Store returns the StoreService at addr. It does not fail: a bad address
// fails at the first call.
func (p *Pool) Store(addr string) storepb.StoreServiceClient {
	return storepb.NewStoreServiceClient(lazy{p, addr})
}

// KV returns the KVService at addr.
func (p *Pool) KV(addr string) kvpb.KVServiceClient {
	return kvpb.NewKVServiceClient(lazy{p, addr})
}

// Forget closes the connection to addr, if there is one; calls under way on it
// fail. Use it when a store has left or moved.
func (p *Pool) Forget(addr string) {
	p.mu.Lock()
	conn := p.mu.conns[addr]
	delete(p.mu.conns, addr)
	p.mu.Unlock()
	if conn != nil {
		_ = conn.Close()
	}
}

// Close closes every connection. Calls under way fail. It is idempotent.
func (p *Pool) Close() error {
	p.mu.Lock()
	conns := p.mu.conns
	p.mu.conns, p.mu.closed = nil, true
	p.mu.Unlock()
	var errs []error
	for _, conn := range conns {
		errs = append(errs, conn.Close())
	}
	return errors.Join(errs...)
}

// WithStoreID returns ctx with the id of the store that is meant, for calls
// that must not be answered by another store behind a reused address.
func WithStoreID(ctx context.Context, storeID uint64) context.Context {
	return metadata.AppendToOutgoingContext(ctx, StoreIDKey, strconv.FormatUint(storeID, 10))
}

func (p *Pool) conn(addr string) (*grpc.ClientConn, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.mu.closed {
		return nil, ErrClosed
	}
	if conn := p.mu.conns[addr]; conn != nil {
		return conn, nil
	}
	conn, err := dial.New(addr, dial.Options{TLS: p.o.TLS, Timeout: p.o.DialTimeout})
	if err != nil {
		return nil, fmt.Errorf("storeclient: %w", err)
	}
	p.mu.conns[addr] = conn
	return conn, nil
}

// lazy is a connection that is looked up at each call, so that a client made
// before Forget keeps working after it.
type lazy struct {
	p    *Pool
	addr string
}

func (l lazy) Invoke(ctx context.Context, method string, in, out any, o ...grpc.CallOption) error {
	conn, err := l.p.conn(l.addr)
	if err != nil {
		return status.Error(codes.Unavailable, err.Error())
	}
	return conn.Invoke(l.outgoing(ctx), method, in, out, o...)
}

func (l lazy) NewStream(
	ctx context.Context, d *grpc.StreamDesc, method string, o ...grpc.CallOption,
) (grpc.ClientStream, error) {
	conn, err := l.p.conn(l.addr)
	if err != nil {
		return nil, status.Error(codes.Unavailable, err.Error())
	}
	return conn.NewStream(l.outgoing(ctx), d, method, o...)
}

func (l lazy) outgoing(ctx context.Context) context.Context {
	if l.p.o.ClusterID == nil {
		return ctx
	}
	if id := l.p.o.ClusterID(); id != 0 {
		ctx = metadata.AppendToOutgoingContext(ctx, ClusterIDKey, strconv.FormatUint(id, 10))
	}
	return ctx
}
