package raft

import (
	"bufio"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"reflect"
	"sync"
	"time"

	"github.com/lni/dragonboat/v4/config"
	"github.com/lni/dragonboat/v4/raftio"
)

const (
	// receiveBufferBytes are read from a connection at once. What a message has beyond
	// them is read to where it belongs.
	receiveBufferBytes = 32 << 10
	// handshakeTime is how long a store may take to show its certificate.
	handshakeTime = 3 * time.Second
	// acceptPause follows an error of accept, such as too many open files.
	acceptPause = 50 * time.Millisecond
)

// receiver is Dragonboat's transport with a listener of ours. Dragonboat's code reads
// the connections, and asks for magic, header and payload of a message one after the
// other, each with a deadline; what it is given to read from has taken all that had
// come when it was asked for the first.
type receiver struct {
	raftio.ITransport
	cfg config.NodeHostConfig
	// work are the goroutines that accept and read.
	work   sync.WaitGroup
	closed chan struct{}

	mu struct {
		sync.Mutex
		// open are the listeners and connections, which Close closes; nil after that.
		open map[io.Closer]struct{}
	}
}

func newReceiver(cfg config.NodeHostConfig, t raftio.ITransport) *receiver {
	r := &receiver{ITransport: t, cfg: cfg, closed: make(chan struct{})}
	r.mu.open = make(map[io.Closer]struct{})
	return r
}

// Start listens instead of Dragonboat's transport.
func (r *receiver) Start() error {
	if name := reflect.TypeOf(r.ITransport).String(); name != "*transport.TCP" {
		return fmt.Errorf("raft: Dragonboat's transport is a %s", name)
	}
	secure, err := r.cfg.GetServerTLSConfig()
	if err != nil {
		return fmt.Errorf("raft: listen: %w", err)
	}
	addresses, err := listenAddresses(r.cfg.GetListenAddress())
	if err != nil {
		return fmt.Errorf("raft: listen: %w", err)
	}
	for _, address := range addresses {
		listener, err := net.Listen("tcp4", address)
		if err != nil {
			return fmt.Errorf("raft: listen: %w", err) // Close is called now.
		}
		r.hold(listener)
		r.work.Go(func() { r.accept(listener, secure) })
	}
	return nil
}

// listenAddresses are all that a name stands for, as Dragonboat listens on.
func listenAddresses(address string) ([]string, error) {
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return nil, err
	}
	if net.ParseIP(host) != nil {
		return []string{address}, nil
	}
	ips, err := net.DefaultResolver.LookupIP(context.Background(), "ip4", host)
	var out []string
	for _, ip := range ips {
		out = append(out, net.JoinHostPort(ip.String(), port))
	}
	return out, err
}

// Close implements raftio.ITransport. When it returns nothing is handed on.
func (r *receiver) Close() error {
	r.mu.Lock()
	open := r.mu.open
	r.mu.open = nil
	r.mu.Unlock()
	if open != nil {
		close(r.closed)
	}
	for c := range open {
		_ = c.Close()
	}
	r.work.Wait()
	return r.ITransport.Close()
}

// hold notes what Close must close; after it, it is closed at once.
func (r *receiver) hold(c io.Closer) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.mu.open == nil {
		_ = c.Close()
		return
	}
	r.mu.open[c] = struct{}{}
}

func (r *receiver) letGo(c io.Closer) {
	r.mu.Lock()
	delete(r.mu.open, c)
	r.mu.Unlock()
	_ = c.Close()
}

func (r *receiver) accept(listener net.Listener, secure *tls.Config) {
	for {
		conn, err := listener.Accept()
		if err == nil {
			r.hold(conn)
			r.work.Go(func() { r.serve(conn, secure) })
			continue
		}
		select {
		case <-r.closed:
			return
		case <-time.After(acceptPause):
		}
	}
}

func (r *receiver) serve(conn net.Conn, secure *tls.Config) {
	defer r.letGo(conn)
	if tcp, ok := conn.(*net.TCPConn); ok {
		// As Dragonboat does: nobody waits for what was not yet sent.
		if tcp.SetLinger(0) != nil {
			return
		}
	}
	if secure != nil {
		encrypted := tls.Server(conn, secure)
		ctx, cancel := context.WithTimeout(context.Background(), handshakeTime)
		err := encrypted.HandshakeContext(ctx)
		cancel()
		if err != nil {
			return
		}
		conn = encrypted
	}
	serveConn(reflect.ValueOf(r.ITransport).UnsafePointer(), newAheadConn(conn))
}

// aheadConn reads ahead. A deadline is set when a read waits for the network, and
// not when what is asked for is there.
type aheadConn struct {
	net.Conn
	buf *bufio.Reader
}

func newAheadConn(conn net.Conn) *aheadConn {
	late := &lateDeadline{Conn: conn}
	return &aheadConn{Conn: late, buf: bufio.NewReaderSize(late, receiveBufferBytes)}
}

// Read implements net.Conn.
func (c *aheadConn) Read(b []byte) (int, error) { return c.buf.Read(b) }

// lateDeadline keeps the deadline of reads until the next one.
type lateDeadline struct {
	net.Conn
	at  time.Time
	due bool
}

// SetReadDeadline implements net.Conn.
func (c *lateDeadline) SetReadDeadline(at time.Time) error {
	c.at, c.due = at, true
	return nil
}

// Read implements net.Conn.
func (c *lateDeadline) Read(b []byte) (int, error) {
	if c.due {
		if err := c.Conn.SetReadDeadline(c.at); err != nil {
			return 0, err
		}
		c.due = false
	}
	return c.Conn.Read(b)
}
