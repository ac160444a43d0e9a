package raft

import (
	"context"
	"sync"
	"time"

	"github.com/lni/dragonboat/v4/raftio"
	pb "github.com/lni/dragonboat/v4/raftpb"
)

// redialAfter is the pause between two attempts to dial a store.
const redialAfter = 50 * time.Millisecond

// line is a connection to a store that outlives its sockets. Dragonboat gives a
// connection up at the first error and refuses to dial again for 0.25 to 1.5 s,
// so a store that restarts would come back too late to make a quorum when
// another one stops. A line never fails: it drops what it cannot send, which
// Raft bears, and dials again as long as somebody wants to send.
type line struct {
	dial func() (raftio.IConnection, error)
	// dials are the attempts under way, which the door waits for.
	dials *sync.WaitGroup
	// forget takes the line out of the door's list.
	forget func()
	// leaving sees every message before it leaves.
	leaving func([]pb.Message)

	mu struct {
		sync.Mutex
		// conn is nil while the line is down.
		conn    raftio.IConnection
		dialing bool
		closed  bool
		// notBefore is when the next attempt may begin.
		notBefore time.Time
	}
}

// SendMessageBatch implements raftio.IConnection. It never fails.
func (l *line) SendMessageBatch(batch pb.MessageBatch) error {
	l.mu.Lock()
	conn := l.mu.conn
	if conn == nil {
		l.dialLocked()
	}
	l.mu.Unlock()
	if conn == nil {
		return nil
	}
	l.leaving(batch.Requests)
	if err := conn.SendMessageBatch(batch); err != nil {
		l.drop(conn)
	}
	return nil
}

// Close implements raftio.IConnection.
func (l *line) Close() {
	l.mu.Lock()
	conn := l.mu.conn
	l.mu.conn, l.mu.closed = nil, true
	l.mu.Unlock()
	if conn != nil {
		conn.Close()
	}
	l.forget()
}

// renew gives up the present socket, which may be dead without knowing it, and
// dials at once.
func (l *line) renew() {
	l.mu.Lock()
	conn := l.mu.conn
	l.mu.conn, l.mu.notBefore = nil, time.Time{}
	l.dialLocked()
	l.mu.Unlock()
	if conn != nil {
		conn.Close()
	}
}

// drop gives up a socket that failed.
func (l *line) drop(conn raftio.IConnection) {
	l.mu.Lock()
	if l.mu.conn == conn {
		l.mu.conn = nil
		l.dialLocked()
	}
	l.mu.Unlock()
	conn.Close()
}

// dialLocked begins an attempt unless one is under way or was just made.
func (l *line) dialLocked() {
	if l.mu.closed || l.mu.dialing || time.Now().Before(l.mu.notBefore) {
		return
	}
	l.mu.dialing = true
	l.dials.Go(func() {
		conn, err := l.dial()
		l.mu.Lock()
		l.mu.dialing, l.mu.notBefore = false, time.Now().Add(redialAfter)
		late := err == nil && l.mu.closed
		if err == nil && !late {
			l.mu.conn = conn
		}
		l.mu.Unlock()
		if late {
			conn.Close()
		}
	})
}

// GetConnection returns a line to the store behind the target. The first
// attempt to dial is waited for, so that the first messages are not lost.
func (d *door) GetConnection(ctx context.Context, t string) (raftio.IConnection, error) {
	if _, err := d.address(t); err != nil {
		return nil, err
	}
	d.mu.RLock()
	cfg := d.mu.cfg
	d.mu.RUnlock()
	l := &line{dials: &d.dials, leaving: d.leaving, dial: func() (raftio.IConnection, error) {
		address, err := d.address(t)
		if err != nil {
			return nil, err
		}
		return dialWire(ctx, &cfg, address)
	}}
	l.forget = func() { d.hang(t, l, false) }
	if conn, err := l.dial(); err == nil {
		l.mu.conn = conn
	}
	d.hang(t, l, true)
	return l, nil
}

// hang puts a line into the list of its store, or takes it out.
func (d *door) hang(t string, l *line, in bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.mu.lines == nil {
		d.mu.lines = make(map[string]map[*line]struct{})
	}
	if d.mu.lines[t] == nil {
		d.mu.lines[t] = make(map[*line]struct{})
	}
	if in {
		d.mu.lines[t][l] = struct{}{}
	} else if delete(d.mu.lines[t], l); len(d.mu.lines[t]) == 0 {
		delete(d.mu.lines, t)
	}
}

// renew gives up every socket to a store and dials at once: the store is new,
// or was silent.
func (d *door) renew(storeID uint64) {
	d.mu.RLock()
	var lines []*line
	for l := range d.mu.lines[target(storeID)] {
		lines = append(lines, l)
	}
	d.mu.RUnlock()
	for _, l := range lines {
		l.renew()
	}
}
