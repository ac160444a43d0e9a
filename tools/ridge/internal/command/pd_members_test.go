package command

import (
	"context"
	"net"
	"testing"
	"time"

	"google.golang.org/grpc"

	pdpb "github.com/ridgekv/ridge/proto/ridge/pd/v1"
)

// listing is a PD node that knows one list.
type listing struct {
	pdpb.UnimplementedPDServiceServer
	list *pdpb.MembersResponse
}

func (l listing) Members(
	context.Context, *pdpb.MembersRequest,
) (*pdpb.MembersResponse, error) {
	return l.list, nil
}

// TestPeersAskAll: nodes that are silent do not keep the others from being heard, and
// of several lists the newest counts.
func TestPeersAskAll(t *testing.T) {
	listen := func() net.Listener {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = l.Close() })
		return l
	}
	var addresses []string
	for range 3 { // nobody accepts
		addresses = append(addresses, listen().Addr().String())
	}
	for _, revision := range []uint64{0, 7, 5} {
		l, g := listen(), grpc.NewServer()
		pdpb.RegisterPDServiceServer(g, listing{list: &pdpb.MembersResponse{Revision: revision}})
		served := make(chan struct{})
		go func() { _ = g.Serve(l); close(served) }()
		t.Cleanup(func() { g.Stop(); <-served })
		addresses = append(addresses, l.Addr().String())
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	r, err := pdPeers{}.Members(ctx, addresses)
	if err != nil || r.GetRevision() != 7 {
		t.Errorf("%v, %v", r, err)
	}
}
