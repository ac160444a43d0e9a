package ceiling

import (
	"context"
	"errors"
	"net"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	kvpb "github.com/ridgekv/ridge/proto/ridge/kv/v1"
)

// echoServer answers every get of a stream at once.
type echoServer struct {
	kvpb.UnimplementedKVServiceServer
	value []byte
}

// Stream implements kvpb.KVServiceServer.
func (s echoServer) Stream(
	stream grpc.BidiStreamingServer[kvpb.StreamRequest, kvpb.StreamResponse],
) error {
	for {
		in, err := stream.Recv()
		if err != nil {
			return nil // the client has gone
		}
		out := &kvpb.StreamResponse{Responses: make([]*kvpb.Response, len(in.GetRequests()))}
		for i, r := range in.GetRequests() {
			row := &kvpb.Row{Key: r.GetGet().GetKey(), Value: s.value, CommitTs: 1}
			out.Responses[i] = &kvpb.Response{Id: r.GetId(), Body: &kvpb.Response_Get{
				Get: &kvpb.GetResponse{Found: true, Row: row},
			}}
		}
		if err := stream.Send(out); err != nil {
			return nil
		}
	}
}

// echo keeps messages under way on one stream, each with ops gets.
func echo(ctx context.Context, messages, ops int, d time.Duration) (_ float64, err error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 0, err
	}
	server := grpc.NewServer()
	kvpb.RegisterKVServiceServer(server, echoServer{value: make([]byte, valueBytes)})
	var wg sync.WaitGroup
	wg.Go(func() { _ = server.Serve(l) })
	defer wg.Wait()
	defer server.Stop()
	conn, err := grpc.NewClient(l.Addr().String(),
		grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, conn.Close()) }()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := kvpb.NewKVServiceClient(conn).Stream(ctx)
	if err != nil {
		return 0, err
	}
	for range messages {
		if err := stream.Send(gets(ops)); err != nil {
			return 0, err
		}
	}
	return closedLoop(ctx, 1, d, func(int) step {
		return func() (int, error) {
			in, err := stream.Recv()
			if err != nil {
				return 0, err
			}
			return len(in.GetResponses()), stream.Send(gets(ops))
		}
	})
}

// gets is one message, made anew as a client would.
func gets(n int) *kvpb.StreamRequest {
	m := &kvpb.StreamRequest{Requests: make([]*kvpb.Request, n)}
	for i := range m.Requests {
		m.Requests[i] = &kvpb.Request{Id: uint64(i) + 1, Body: &kvpb.Request_Get{
			Get: &kvpb.GetRequest{
				Header: &kvpb.Header{RangeId: 1, SpanEpoch: 1, Token: 1}, Key: make([]byte, keyBytes),
			},
		}}
	}
	return m
}
