package pd

import (
	"context"
	"errors"
	"fmt"
	"net"
	"testing"
	"time"

	"github.com/lni/dragonboat/v4/logger"
	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	pdpb "github.com/ridgekv/ridge/proto/ridge/pd/v1"
)

func TestMain(m *testing.M) {
	for _, name := range []string{
		"raft", "rsm", "transport", "dragonboat", "logdb", "config", "raftpb", "settings",
		"grpc", "tests", "utils", "order", "registry",
	} {
		logger.GetLogger(name).SetLevel(logger.ERROR)
	}
	goleak.VerifyTestMain(m)
}

// cluster is a PD group in this process, each node behind a gRPC server of its
// own on loopback.
type cluster struct {
	t     *testing.T
	nodes []*node
}

type node struct {
	o      Options
	server *Server
	stop   func()
	// ended holds what Run returned.
	ended  chan error
	conn   *grpc.ClientConn
	client pdpb.PDServiceClient
	admin  pdpb.PDAdminServiceClient
}

// quick are options under which things happen within a test's patience.
func quick(o *Options) {
	o.Tick = 20 * time.Millisecond
	o.StoreHeartbeat = 100 * time.Millisecond
	o.StoreDownAfter = 2 * time.Second
	o.ScheduleAfter = 5 * time.Second
}

// startCluster starts n nodes; change may alter their options.
func startCluster(t *testing.T, n int, change func(*Options)) *cluster {
	t.Helper()
	c := &cluster{t: t}
	var members []Member
	addresses := freeAddresses(t, 2*n)
	for i := range n {
		members = append(members, Member{
			ID: uint64(i + 1), RaftAddress: addresses[2*i], GRPCAddress: addresses[2*i+1],
		})
	}
	for i := range n {
		o := Options{Dir: t.TempDir(), MemberID: uint64(i + 1), Members: members}
		quick(&o)
		if change != nil {
			change(&o)
		}
		c.nodes = append(c.nodes, &node{o: o})
		c.start(i)
	}
	t.Cleanup(func() {
		for i := range c.nodes {
			c.kill(i)
		}
	})
	return c
}

func freeAddresses(t *testing.T, n int) []string {
	t.Helper()
	var out []string
	for range n {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		out = append(out, l.Addr().String())
	}
	return out
}

func (c *cluster) start(i int) {
	c.t.Helper()
	n := c.nodes[i]
	server, err := New(n.o)
	if err != nil {
		c.t.Fatal(err)
	}
	l, err := net.Listen("tcp", n.o.self().GRPCAddress)
	if err != nil {
		c.t.Fatal(err)
	}
	g := grpc.NewServer()
	server.Register(g)
	ctx, cancel := context.WithCancel(context.Background())
	ended, served := make(chan error, 1), make(chan struct{})
	go func() { ended <- server.Run(ctx) }()
	go func() { _ = g.Serve(l); close(served) }()
	conn, err := grpc.NewClient("passthrough:///"+n.o.self().GRPCAddress,
		grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		c.t.Fatal(err)
	}
	n.server, n.conn, n.client = server, conn, pdpb.NewPDServiceClient(conn)
	n.admin, n.ended = pdpb.NewPDAdminServiceClient(conn), ended
	n.stop = func() {
		_ = conn.Close()
		g.Stop()
		<-served
		cancel()
		if err := <-ended; err != nil {
			c.t.Errorf("member %d: %v", n.o.MemberID, err)
		}
	}
}

// kill stops a node as far as the others can see; start brings it back.
func (c *cluster) kill(i int) {
	if stop := c.nodes[i].stop; stop != nil {
		c.nodes[i].stop = nil
		stop()
	}
}

// leader waits for a node that leads.
func (c *cluster) leader() int {
	c.t.Helper()
	at := -1
	eventually(c.t, "a PD leader", func() error {
		for i, n := range c.nodes {
			if n.stop != nil && n.server.leads() {
				at = i
				return nil
			}
		}
		return errors.New("none")
	})
	return at
}

func (c *cluster) client() pdpb.PDServiceClient { return c.nodes[c.leader()].client }

func (c *cluster) admin() pdpb.PDAdminServiceClient { return c.nodes[c.leader()].admin }

func eventually(t *testing.T, what string, f func() error) {
	t.Helper()
	deadline := time.Now().Add(20 * time.Second)
	for {
		err := f()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("waited in vain for %s: %v", what, err)
		}
		time.Sleep(2 * time.Millisecond) // the one place where tests wait
	}
}

// asError turns a refusal into an error.
func asError(e *pdpb.PDError) error {
	if e == nil {
		return nil
	}
	return fmt.Errorf("%s: %s", e.GetReason(), e.GetMessage())
}

func testContext(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	t.Cleanup(cancel)
	return ctx
}

// leads reports whether the node answers as PD's leader.
func (s *Server) leads() bool {
	r, err := s.service.AllocateIds(context.Background(), &pdpb.AllocateIdsRequest{Count: 1})
	return err == nil && r.GetError() == nil
}
