package storenode_test

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"

	kvpb "github.com/ridgekv/ridge/proto/ridge/kv/v1"
	storepb "github.com/ridgekv/ridge/proto/ridge/store/v1"
	"github.com/ridgekv/ridge/proto/wire"
	"github.com/ridgekv/ridge/storenode"
)

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m,
		// Badger's cache library and Dragonboat's registries keep these for the
		// life of the process.
		goleak.IgnoreTopFunction("github.com/golang/glog.(*fileSink).flushDaemon"),
		goleak.IgnoreTopFunction("go.opencensus.io/stats/view.(*worker).start"),
	)
}

// eventually waits until ok holds.
func eventually(t *testing.T, timeout time.Duration, what string, ok func() bool) {
	t.Helper()
	deadline := time.NewTimer(timeout)
	defer deadline.Stop()
	ticker := time.NewTicker(20 * time.Millisecond)
	defer ticker.Stop()
	for !ok() {
		select {
		case <-ticker.C:
		case <-deadline.C:
			t.Fatalf("not within %v: %s", timeout, what)
		}
	}
}

// freePort returns an address nobody listens on at the moment, below the ports
// that outgoing connections are given.
func freePort(t *testing.T) string {
	t.Helper()
	for range 1000 {
		l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", 10_000+rand.IntN(20_000)))
		if err == nil {
			defer l.Close()
			return l.Addr().String()
		}
	}
	t.Fatal("no free port")
	return ""
}

func logger(t *testing.T) *slog.Logger {
	if os.Getenv("RIDGE_TEST_LOG") == "" {
		return slog.New(slog.DiscardHandler)
	}
	h := slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelInfo})
	return slog.New(h).With("test", t.Name())
}

// listen serves what register adds, at address.
func listen(
	t *testing.T, address string, config *tls.Config, register func(grpc.ServiceRegistrar),
) (stop func()) {
	t.Helper()
	var l net.Listener
	eventually(t, 5*time.Second, "listen on "+address, func() bool {
		var err error
		l, err = net.Listen("tcp", address)
		return err == nil
	})
	options := []grpc.ServerOption{
		grpc.MaxRecvMsgSize(16 << 20), grpc.ForceServerCodecV2(wire.Codec{}),
	}
	if config != nil {
		options = append(options, grpc.Creds(credentials.NewTLS(config)))
	}
	server := grpc.NewServer(options...)
	register(server)
	var wg sync.WaitGroup
	wg.Go(func() { _ = server.Serve(l) })
	return sync.OnceFunc(func() {
		server.Stop()
		wg.Wait()
	})
}

// testStore is a store in this process.
type testStore struct {
	t       *testing.T
	options storenode.Options
	server  *storenode.Server
	conn    *grpc.ClientConn
	stop    func() error
	// failed gets the error of a store that ended by itself.
	failed chan error
}

// storeOptions are options for a small and quick store.
func storeOptions(t *testing.T, dir string, pd ...string) storenode.Options {
	return storenode.Options{
		Dir: dir, PD: pd, GRPCAddress: freePort(t), RaftListenAddress: freePort(t),
		MemoryBytes: 256 << 20, Tick: 50 * time.Millisecond,
		RangeHeartbeatInterval: time.Second, HeartbeatInterval: 200 * time.Millisecond,
		DrainTimeout: 3 * time.Second, ExecShards: 2, LogShards: 1,
		Engine: storenode.EngineOptions{FlushInterval: 100 * time.Millisecond},
		Logger: logger(t),
	}
}

// startStore runs a store until the test ends or stop is called.
func startStore(t *testing.T, o storenode.Options) *testStore {
	t.Helper()
	return startStoreTLS(t, o, nil)
}

func startStoreTLS(t *testing.T, o storenode.Options, config *tls.Config) *testStore {
	t.Helper()
	server, err := storenode.New(o)
	if err != nil {
		t.Fatal(err)
	}
	s := &testStore{t: t, options: o, server: server, failed: make(chan error, 1)}
	stopListening := listen(t, o.GRPCAddress, config, server.Register)
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	var wg sync.WaitGroup
	wg.Go(func() {
		err := server.Run(ctx)
		ended <- err
		s.failed <- err
	})
	creds := insecure.NewCredentials()
	if config != nil {
		creds = credentials.NewTLS(config)
	}
	s.conn, err = grpc.NewClient(o.GRPCAddress, grpc.WithTransportCredentials(creds))
	if err != nil {
		t.Fatal(err)
	}
	s.stop = sync.OnceValue(func() error {
		cancel()
		err := <-ended
		wg.Wait()
		_ = s.conn.Close()
		stopListening()
		return err
	})
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("store %d: %v", server.StoreID(), server.Readiness())
		}
		if err := s.stop(); err != nil && !t.Failed() {
			t.Errorf("store: %v", err)
		}
	})
	return s
}

func (s *testStore) waitReady() {
	s.t.Helper()
	eventually(s.t, 30*time.Second, "store ready", func() bool {
		select {
		case err := <-s.failed:
			s.t.Fatalf("the store ended: %v", err)
		default:
		}
		return s.server.Ready()
	})
}

func (s *testStore) store() storepb.StoreServiceClient {
	return storepb.NewStoreServiceClient(s.conn)
}

func (s *testStore) kv() kvpb.KVServiceClient { return kvpb.NewKVServiceClient(s.conn) }

func (s *testStore) put(key, value string) *kvpb.PutResponse {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(s.t.Context(), 10*time.Second)
	defer cancel()
	r, err := s.kv().Put(ctx, &kvpb.PutRequest{Key: []byte(key), Value: []byte(value)})
	if err != nil {
		s.t.Fatal(err)
	}
	return r
}

func (s *testStore) get(key string) *kvpb.GetResponse {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(s.t.Context(), 10*time.Second)
	defer cancel()
	r, err := s.kv().Get(ctx, &kvpb.GetRequest{Key: []byte(key)})
	if err != nil {
		s.t.Fatal(err)
	}
	return r
}

// mustPut puts, again after errors that say nothing was done.
func (s *testStore) mustPut(key, value string) {
	s.t.Helper()
	var last *kvpb.PutResponse
	eventually(s.t, 20*time.Second, "put "+key, func() bool {
		last = s.put(key, value)
		if e := last.GetError(); e != nil && e.GetApplied() != kvpb.Applied_APPLIED_NO {
			s.t.Fatalf("put %s: %v", key, e)
		}
		return last.GetError() == nil
	})
}

func (s *testStore) mustGet(key, want string) {
	s.t.Helper()
	var last *kvpb.GetResponse
	eventually(s.t, 20*time.Second, "get "+key, func() bool {
		last = s.get(key)
		return last.GetError() == nil
	})
	if !last.GetFound() || string(last.GetRow().GetValue()) != want {
		s.t.Fatalf("get %s: %v, want %q", key, last, strings.ToValidUTF8(want, "?"))
	}
}

// replica is what the store says of its replica of a range.
func (s *testStore) replica(t *testing.T, rangeID uint64) (*storepb.ReplicaStatus, bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	list, err := s.store().ListReplicas(ctx, &storepb.ListReplicasRequest{RangeId: rangeID})
	if err != nil || len(list.GetReplicas()) != 1 {
		return nil, false
	}
	return list.GetReplicas()[0], true
}

// scan reads everything through the store.
func (s *testStore) scan(t *testing.T, reverse bool) []*kvpb.Row {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	stream, err := s.kv().Scan(ctx, &kvpb.ScanRequest{Reverse: reverse, PageBytes: 200})
	if err != nil {
		t.Fatal(err)
	}
	var rows []*kvpb.Row
	for {
		m, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return rows
		}
		if err != nil || m.GetError() != nil {
			t.Fatalf("scan: %v, %v", m, err)
		}
		rows = append(rows, m.GetRows()...)
	}
}
