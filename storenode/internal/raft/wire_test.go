package raft

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"reflect"
	"testing"
	"time"

	"github.com/lni/dragonboat/v4/config"
	"github.com/lni/dragonboat/v4/raftio"
	pb "github.com/lni/dragonboat/v4/raftpb"
)

// countedConn counts the writes.
type countedConn struct {
	net.Conn
	writes int
}

func (c *countedConn) Write(b []byte) (int, error) {
	c.writes++
	return c.Conn.Write(b)
}

// TestWire: Dragonboat reads what a wire sends, whatever its size, and a small
// batch is one write.
func TestWire(t *testing.T) {
	for _, secured := range []bool{false, true} {
		listener, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		address := listener.Addr().String()
		_ = listener.Close()
		cfg := config.NodeHostConfig{RaftAddress: address, ListenAddress: address}
		if secured {
			files := testCertificates(t)
			cfg.MutualTLS, cfg.CAFile, cfg.CertFile, cfg.KeyFile = true, files.CA, files.Cert, files.Key
		}
		got := make(chan pb.MessageBatch, 1)
		reader := newReceiver(cfg, newTCPTransport(cfg, func(b pb.MessageBatch) { got <- b },
			func(pb.Chunk) bool { return true }))
		if err := reader.Start(); err != nil {
			t.Fatal(err)
		}
		conn, err := dialWire(context.Background(), &cfg, address)
		if err != nil {
			t.Fatal(err)
		}
		testWire(t, conn, got)
		if !secured {
			conn.Close()
		} // The other is closed by the reader.
		if err := reader.Close(); err != nil {
			t.Fatal(err)
		}
		conn.Close()
		if c, err := net.Dial("tcp", address); err == nil {
			_ = c.Close()
			t.Error("it still listens")
		}
	}
}

// TestReadAhead: what came together is read at once, whatever it is asked for in, and a
// deadline holds for a read that has to wait, and for no other.
func TestReadAhead(t *testing.T) {
	here, there := net.Pipe()
	defer here.Close()
	defer there.Close()
	counted := &countedReads{Conn: here}
	c := newAheadConn(counted)
	sent := make(chan error, 1)
	go func() { _, err := there.Write(bytes.Repeat([]byte{7}, 100)); sent <- err }()
	for _, n := range []int{2, 18, 80} {
		if err := c.SetReadDeadline(time.Now().Add(time.Minute)); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(c, make([]byte, n)); err != nil {
			t.Fatal(err)
		}
	}
	if err := <-sent; err != nil || counted.reads != 1 || counted.deadlines != 1 {
		t.Errorf("%v, %d reads, %d deadlines", err, counted.reads, counted.deadlines)
	}
	for range 2 {
		if err := c.SetReadDeadline(time.Now()); err != nil {
			t.Fatal(err)
		}
		if _, err := c.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Error(err)
		}
	}
	// After that it goes on: Dragonboat asks again for a message that is not there yet.
	go func() { _, err := there.Write([]byte{8}); sent <- err }()
	if err := c.SetReadDeadline(time.Now().Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 9)
	if n, err := c.Read(b); n != 1 || b[0] != 8 || err != nil {
		t.Error(b[:n], err)
	}
	if err := <-sent; err != nil {
		t.Error(err)
	}
}

// countedReads counts reads and their deadlines.
type countedReads struct {
	net.Conn
	reads, deadlines int
}

func (c *countedReads) Read(b []byte) (int, error) {
	c.reads++
	return c.Conn.Read(b)
}

func (c *countedReads) SetReadDeadline(at time.Time) error {
	c.deadlines++
	return c.Conn.SetReadDeadline(at)
}

// TestListenAddresses: an address that is one is taken as it is, a name stands for all
// that it is resolved to.
func TestListenAddresses(t *testing.T) {
	for address, want := range map[string]string{
		"127.0.0.1:7": "[127.0.0.1:7]", "0.0.0.0:7": "[0.0.0.0:7]", "localhost:7": "[127.0.0.1:7]",
	} {
		if got, err := listenAddresses(address); err != nil || fmt.Sprint(got) != want {
			t.Errorf("%s is %v: %v", address, got, err)
		}
	}
	if got, err := listenAddresses("nowhere"); err == nil {
		t.Error(got)
	}
}

func testWire(t *testing.T, conn raftio.IConnection, got <-chan pb.MessageBatch) {
	counted := &countedConn{Conn: conn.(*wire).conn}
	conn.(*wire).conn = counted
	for _, size := range []int{1, 0, 100, 5000, 70_000, wireWriteBytes, 3*wireWriteBytes + 7, 20} {
		batch := pb.MessageBatch{
			Requests: []pb.Message{{
				Type: pb.Replicate, ShardID: 3, From: 1, To: 2, Term: 4,
				Entries: []pb.Entry{{Term: 4, Index: 9, Cmd: bytes.Repeat([]byte{byte(size)}, size)}},
			}, {Type: pb.Heartbeat, ShardID: 5, From: 1, To: 2}},
			DeploymentId: 77, SourceAddress: "s1", BinVer: raftio.TransportBinVersion,
		}
		counted.writes = 0
		if err := conn.SendMessageBatch(batch); err != nil {
			t.Fatal(err)
		}
		back := <-got
		if len(back.Requests) != 2 || !bytes.Equal(back.Requests[0].Entries[0].Cmd, batch.Requests[0].Entries[0].Cmd) {
			t.Fatalf("%d bytes: another batch came", size)
		}
		batch.Requests[0].Entries, back.Requests[0].Entries = nil, nil
		if !reflect.DeepEqual(batch, back) {
			t.Fatalf("sent %+v, came %+v", batch, back)
		}
		if size < wireWriteBytes && counted.writes != 1 {
			t.Errorf("%d bytes took %d writes", size, counted.writes)
		}
	}
}
