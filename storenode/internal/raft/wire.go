package raft

import (
	"context"
	"crypto/tls"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"net"
	"runtime"
	"slices"
	"time"

	"github.com/lni/dragonboat/v4/config"
	"github.com/lni/dragonboat/v4/raftio"
	pb "github.com/lni/dragonboat/v4/raftpb"
)

// The frame of a message as Dragonboat's transport reads it:
//
//	magic(2) method(2) size(8) header crc32(4) payload crc32(4) payload
//
// The payload has no checksum on an encrypted connection.
const (
	wireHeadBytes = 20
	wireMagic     = 0xAE7D
	wireMethod    = 100
)

const (
	// wireWriteTime is how long the other store may take no wireWriteBytes.
	wireWriteTime  = 5 * time.Second
	wireWriteBytes = 1 << 20
	// wireKeepBytes is the largest buffer that is kept for the next message.
	wireKeepBytes = 1 << 20
	wireKeepAlive = 10 * time.Second
)

// wire is a connection that sends Raft messages. It speaks what Dragonboat's
// own one does, and Dragonboat reads it; but a batch is one write instead of
// three, which is most of what sending it costs, and wakes its reader once.
type wire struct {
	conn      net.Conn
	encrypted bool
	buf       []byte
}

// dialWire connects to the Raft listener of a store.
func dialWire(
	ctx context.Context, cfg *config.NodeHostConfig, address string,
) (raftio.IConnection, error) {
	secure, err := cfg.GetClientTLSConfig(address)
	if err != nil {
		return nil, fmt.Errorf("raft: dial %s: %w", address, err)
	}
	ctx, cancel := context.WithTimeout(ctx, time.Duration(dialTimeoutSecond)*time.Second)
	defer cancel()
	dialer := net.Dialer{KeepAlive: wireKeepAlive}
	conn, err := dialer.DialContext(ctx, "tcp", address)
	if err != nil {
		return nil, fmt.Errorf("raft: dial: %w", err)
	}
	if secure == nil {
		return &wire{conn: conn}, nil
	}
	encrypted := tls.Client(conn, secure)
	if err := encrypted.HandshakeContext(ctx); err != nil {
		_ = conn.Close()
		return nil, fmt.Errorf("raft: dial %s: %w", address, err)
	}
	return &wire{conn: encrypted, encrypted: true}, nil
}

// Close implements raftio.IConnection.
func (w *wire) Close() { _ = w.conn.Close() }

// SendMessageBatch implements raftio.IConnection. After an error the connection
// is of no use.
func (w *wire) SendMessageBatch(batch pb.MessageBatch) error {
	b := slices.Grow(w.buf[:0], wireHeadBytes+batch.SizeUpperLimit())
	n, err := batch.MarshalTo(b[wireHeadBytes:cap(b)])
	if err != nil {
		return fmt.Errorf("raft: encode messages: %w", err)
	}
	b = b[:wireHeadBytes+n]
	w.frame(b)
	if cap(b) <= wireKeepBytes {
		w.buf = b
	}
	for len(b) > 0 {
		part := b[:min(len(b), wireWriteBytes)]
		err := w.conn.SetWriteDeadline(time.Now().Add(wireWriteTime))
		if err == nil {
			_, err = w.conn.Write(part)
		}
		if err != nil {
			return fmt.Errorf("raft: send messages: %w", err)
		}
		b = b[len(part):]
	}
	// What those who can run have to say goes with the next batch, not one by one.
	runtime.Gosched()
	return nil
}

// frame fills in the head of b, whose payload is there.
func (w *wire) frame(b []byte) {
	payload, head := b[wireHeadBytes:], b[2:wireHeadBytes]
	binary.BigEndian.PutUint16(b, wireMagic)
	binary.BigEndian.PutUint16(head, wireMethod)
	binary.BigEndian.PutUint64(head[2:], uint64(len(payload)))
	binary.BigEndian.PutUint32(head[10:], 0)
	sum := uint32(0)
	if !w.encrypted {
		sum = crc32.ChecksumIEEE(payload)
	}
	binary.BigEndian.PutUint32(head[14:], sum)
	binary.BigEndian.PutUint32(head[10:], crc32.ChecksumIEEE(head))
}
