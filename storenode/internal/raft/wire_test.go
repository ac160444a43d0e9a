package raft

import (
	"bytes"
	"context"
	"net"
	"reflect"
	"testing"

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
		reader := newTCPTransport(cfg, func(b pb.MessageBatch) { got <- b },
			func(pb.Chunk) bool { return true })
		if err := reader.Start(); err != nil {
			t.Fatal(err)
		}
		conn, err := dialWire(context.Background(), &cfg, address)
		if err != nil {
			t.Fatal(err)
		}
		testWire(t, conn, got)
		conn.Close()
		if err := reader.Close(); err != nil {
			t.Fatal(err)
		}
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
