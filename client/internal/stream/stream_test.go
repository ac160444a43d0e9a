package stream_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"
	"google.golang.org/grpc"

	"github.com/ridgekv/ridge/client/internal/clustertest"
	"github.com/ridgekv/ridge/client/internal/stream"
	"github.com/ridgekv/ridge/proto/errs"
	kvpb "github.com/ridgekv/ridge/proto/ridge/kv/v1"
	"github.com/ridgekv/ridge/proto/wire"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func pool(t *testing.T, o stream.Options) *stream.Pool {
	t.Helper()
	if o.ClusterID == nil {
		o.ClusterID = func() uint64 { return clustertest.ClusterID }
	}
	p := stream.NewPool(o)
	t.Cleanup(func() { _ = p.Close() })
	return p
}

func putRequest(key, value string) *kvpb.Request {
	return &kvpb.Request{Body: &kvpb.Request_Put{Put: &kvpb.PutRequest{
		Header: &kvpb.Header{RangeId: 1, SpanEpoch: 1}, Key: []byte(key), Value: []byte(value),
	}}}
}

func getRequest(key string) *kvpb.Request {
	return &kvpb.Request{Body: &kvpb.Request_Get{Get: &kvpb.GetRequest{
		Header: &kvpb.Header{RangeId: 1, SpanEpoch: 1}, Key: []byte(key),
	}}}
}

func sentOf(t *testing.T, err error) bool {
	t.Helper()
	e, ok := errors.AsType[*stream.Error](err)
	if !ok {
		t.Fatalf("got %v", err)
	}
	return e.Sent
}

func TestManyCallersShareAStream(t *testing.T) {
	cluster := clustertest.New(t, 1, 1)
	s := cluster.Store(1)
	p := pool(t, stream.Options{})
	const callers, calls = 64, 50
	var wg sync.WaitGroup
	for i := range callers {
		wg.Go(func() {
			for j := range calls {
				key := fmt.Sprintf("%d/%d", i, j)
				if _, err := p.Do(t.Context(), 1, s.Address(), putRequest(key, key)); err != nil {
					t.Error(err)
					return
				}
				r, err := p.Do(t.Context(), 1, s.Address(), getRequest(key))
				if err != nil || string(r.GetGet().GetRow().GetValue()) != key {
					t.Errorf("%s: got %v, %v", key, r, err)
				}
			}
		})
	}
	wg.Wait()
	messages, streams := s.Messages()
	if streams != 1 {
		t.Errorf("%d streams", streams)
	}
	if messages >= 2*callers*calls {
		t.Errorf("%d messages for %d requests: they are not gathered", messages, 2*callers*calls)
	}
}

// While the transport is busy with one message the next ones gather.
func TestBatchesGrowUnderLoad(t *testing.T) {
	cluster := clustertest.New(t, 1, 1)
	s := cluster.Store(1)
	p := pool(t, stream.Options{})
	big := strings.Repeat("x", 256<<10)
	var wg sync.WaitGroup
	for i := range 400 {
		wg.Go(func() {
			value := "small"
			if i%8 == 0 {
				value = big
			}
			if _, err := p.Do(t.Context(), 1, s.Address(), putRequest(fmt.Sprint(i), value)); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if messages, _ := s.Messages(); messages > 200 {
		t.Errorf("%d messages for 400 requests", messages)
	}
}

func TestRefusedConnectionsAreNotSent(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := l.Addr().String()
	p := pool(t, stream.Options{DialTimeout: 100 * time.Millisecond})
	// A listener that never answers, and then none at all.
	for _, name := range []string{"mute", "closed"} {
		began := time.Now()
		_, err := p.Do(t.Context(), 1, addr, putRequest("k", "v"))
		if sentOf(t, err) {
			t.Errorf("%s: got %v", name, err)
		}
		if d := time.Since(began); d > 2*time.Second {
			t.Errorf("%s: it took %v", name, d)
		}
		_ = l.Close()
	}
}

func TestWrongStoreAndCluster(t *testing.T) {
	cluster := clustertest.New(t, 1, 2)
	p := pool(t, stream.Options{})
	_, err := p.Do(t.Context(), 2, cluster.Store(1).Address(), putRequest("k", "v"))
	if _, ok := errors.AsType[errs.StoreMismatch](err); !ok || sentOf(t, err) {
		t.Errorf("got %v", err)
	}
	// The right address of the same store gets a new connection.
	if _, err := p.Do(t.Context(), 2, cluster.Store(2).Address(), getRequest("k")); err != nil {
		t.Error(err)
	}
	q := pool(t, stream.Options{ClusterID: func() uint64 { return 1 }})
	_, err = q.Do(t.Context(), 1, cluster.Store(1).Address(), putRequest("k", "v"))
	if _, ok := errors.AsType[errs.ClusterMismatch](err); !ok || sentOf(t, err) {
		t.Errorf("got %v", err)
	}
	if n := cluster.Store(1).Arrivals("put"); n != 0 {
		t.Errorf("%d puts arrived", n)
	}
}

func TestABrokenStreamFailsWhoWaitsAndIsReplaced(t *testing.T) {
	cluster := clustertest.New(t, 1, 1)
	s := cluster.Store(1)
	p := pool(t, stream.Options{})
	s.Hook(func(req *kvpb.Request) *clustertest.Script {
		switch string(req.GetPut().GetKey()) {
		case "break":
			return &clustertest.Script{BreakBefore: true}
		case "wait":
			return &clustertest.Script{DropBefore: true}
		}
		return nil
	})
	var wg sync.WaitGroup
	for range 10 {
		wg.Go(func() {
			if _, err := p.Do(t.Context(), 1, s.Address(), putRequest("wait", "v")); !sentOf(t, err) {
				t.Errorf("got %v", err)
			}
		})
	}
	clustertest.Eventually(t, func() bool { return s.Arrivals("put") == 10 })
	if _, err := p.Do(t.Context(), 1, s.Address(), putRequest("break", "v")); !sentOf(t, err) {
		t.Errorf("got %v", err)
	}
	wg.Wait()
	if _, err := p.Do(t.Context(), 1, s.Address(), putRequest("k", "v")); err != nil {
		t.Error(err)
	}
	if _, streams := s.Messages(); streams != 2 {
		t.Errorf("%d streams", streams)
	}
}

func TestCallersMayLeave(t *testing.T) {
	cluster := clustertest.New(t, 1, 1)
	s := cluster.Store(1)
	p := pool(t, stream.Options{})
	release := make(chan struct{})
	s.Hook(func(*kvpb.Request) *clustertest.Script { return &clustertest.Script{Hold: release} })
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := p.Do(ctx, 1, s.Address(), putRequest("k", "v")); sentOf(t, err) {
		t.Errorf("got %v", err)
	}
	ctx, cancel = context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		_, err := p.Do(ctx, 1, s.Address(), putRequest("k", "v"))
		done <- err
	}()
	clustertest.Eventually(t, func() bool { return s.Arrivals("put") == 1 })
	cancel()
	if err := <-done; !sentOf(t, err) || !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	close(release) // the late answer finds nobody
	if _, err := p.Do(t.Context(), 1, s.Address(), getRequest("k")); err != nil {
		t.Error(err)
	}
}

// One timer serves the deadlines of all calls, whatever their order.
func TestDeadlines(t *testing.T) {
	cluster := clustertest.New(t, 1, 1)
	s := cluster.Store(1)
	p := pool(t, stream.Options{})
	release := make(chan struct{})
	s.Hook(func(*kvpb.Request) *clustertest.Script { return &clustertest.Script{Hold: release} })
	var wg sync.WaitGroup
	for i := range 20 {
		wg.Go(func() {
			c := stream.NewCall()
			defer c.Release()
			c.Request = wire.AppendPut(c.Request, &wire.Header{RangeID: 1}, []byte{1}, nil, 0)
			began := time.Now()
			patience := time.Duration(20-i) * 10 * time.Millisecond
			c.Deadline = began.Add(patience)
			err := p.Send(context.Background(), 1, s.Address(), c)
			if !errors.Is(err, context.DeadlineExceeded) || !sentOf(t, err) {
				t.Errorf("got %v", err)
			}
			if d := time.Since(began); d < patience {
				t.Errorf("it gave up after %v, not %v", d, patience)
			}
		})
	}
	wg.Wait()
	close(release) // the late answers find nobody
	for range 20 {
		if _, err := p.Do(t.Context(), 1, s.Address(), getRequest("k")); err != nil {
			t.Error(err)
		}
	}
}

// mute is a store that says hello, answers the first request when it is told,
// and reads nothing else.
type mute struct {
	kvpb.UnimplementedKVServiceServer
	got     chan struct{}
	release chan struct{}
}

func (s *mute) Stream(stream kvpb.KVService_StreamServer) error {
	var first *kvpb.StreamRequest
	for range 2 { // Hello, and the first request
		var err error
		if first, err = stream.Recv(); err != nil {
			return err
		}
	}
	close(s.got)
	<-s.release
	if err := stream.Send(&kvpb.StreamResponse{Responses: []*kvpb.Response{{
		Id: first.GetRequests()[0].GetId(), Body: &kvpb.Response_Get{Get: &kvpb.GetResponse{}},
	}}}); err != nil {
		return err
	}
	<-stream.Context().Done()
	return nil
}

// A store that has stopped reading holds up no caller beyond its deadline, even
// one that finds nobody else waiting.
func TestAStoreThatDoesNotRead(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &mute{got: make(chan struct{}), release: make(chan struct{})}
	server := grpc.NewServer()
	kvpb.RegisterKVServiceServer(server, s)
	var serving sync.WaitGroup
	serving.Go(func() { _ = server.Serve(l) })
	t.Cleanup(func() { server.Stop(); serving.Wait() })
	p := pool(t, stream.Options{SilentAfter: time.Hour})
	addr := l.Addr().String()
	first := make(chan error, 1)
	go func() {
		_, err := p.Do(context.Background(), 1, addr, getRequest("k"))
		first <- err
	}()
	<-s.got
	// More than the store takes in unread: the rest stays in the transport.
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	_, err = p.Do(ctx, 1, addr, putRequest("k", strings.Repeat("v", 1<<20)))
	if !errors.Is(err, context.DeadlineExceeded) || !sentOf(t, err) {
		t.Fatalf("got %v", err)
	}
	close(s.release)
	if err := <-first; err != nil {
		t.Fatal(err)
	}
	last := make(chan error, 1)
	go func() {
		c := stream.NewCall()
		defer c.Release()
		c.Request = wire.AppendPut(c.Request, &wire.Header{RangeID: 1}, []byte{1}, nil, 0)
		c.Deadline = time.Now().Add(50 * time.Millisecond)
		last <- p.Send(context.Background(), 1, addr, c)
	}()
	select {
	case err := <-last:
		if !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("got %v", err)
		}
	case <-time.After(5 * time.Second):
		t.Error("it still waits, 5s after its deadline")
		_ = p.Close()
		<-last
	}
}

func TestASilentStoreGetsNothingButProbes(t *testing.T) {
	cluster := clustertest.New(t, 1, 1)
	s := cluster.Store(1)
	p := pool(t, stream.Options{SilentAfter: 50 * time.Millisecond})
	if _, err := p.Do(t.Context(), 1, s.Address(), getRequest("k")); err != nil {
		t.Fatal(err)
	}
	s.Freeze()
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if _, err := p.Do(ctx, 1, s.Address(), putRequest("k", "v")); !sentOf(t, err) {
		t.Fatalf("got %v", err)
	}
	for range 20 {
		_, err := p.Do(t.Context(), 1, s.Address(), putRequest("k", "v"))
		if sentOf(t, err) || !errors.Is(err, stream.ErrSilent) {
			t.Fatalf("got %v", err)
		}
	}
	if !p.Silent(1) {
		t.Error("it does not count as silent")
	}
	s.Thaw()
	clustertest.Eventually(t, func() bool { return !p.Silent(1) })
	if _, err := p.Do(t.Context(), 1, s.Address(), putRequest("k", "v")); err != nil {
		t.Fatal(err)
	}
	if n := s.Arrivals("put"); n != 2 {
		t.Errorf("%d puts arrived", n)
	}
}

func TestInFlightIsBounded(t *testing.T) {
	cluster := clustertest.New(t, 1, 1)
	s := cluster.Store(1)
	p := pool(t, stream.Options{MaxInFlight: 5})
	release := make(chan struct{})
	s.Hook(func(*kvpb.Request) *clustertest.Script { return &clustertest.Script{Hold: release} })
	var wg sync.WaitGroup
	for range 5 {
		wg.Go(func() {
			if _, err := p.Do(t.Context(), 1, s.Address(), getRequest("k")); err != nil {
				t.Error(err)
			}
		})
	}
	clustertest.Eventually(t, func() bool { return s.Arrivals("get") == 5 })
	_, err := p.Do(t.Context(), 1, s.Address(), getRequest("k"))
	if !errors.Is(err, stream.ErrFull) || sentOf(t, err) {
		t.Errorf("got %v", err)
	}
	close(release)
	wg.Wait()
}

func TestCloseFailsWhoWaits(t *testing.T) {
	cluster := clustertest.New(t, 1, 1)
	s := cluster.Store(1)
	p := pool(t, stream.Options{})
	s.Hook(func(*kvpb.Request) *clustertest.Script { return &clustertest.Script{Drop: true} })
	done := make(chan error, 1)
	go func() {
		_, err := p.Do(t.Context(), 1, s.Address(), putRequest("k", "v"))
		done <- err
	}()
	clustertest.Eventually(t, func() bool { return s.Arrivals("put") == 1 })
	if err := p.Close(); err != nil {
		t.Fatal(err)
	}
	if err := <-done; !sentOf(t, err) {
		t.Errorf("got %v", err)
	}
	_, err := p.Do(t.Context(), 1, s.Address(), putRequest("k", "v"))
	if !errors.Is(err, stream.ErrClosed) || sentOf(t, err) {
		t.Errorf("got %v", err)
	}
	if p.Close() != nil {
		t.Error("Close is not idempotent")
	}
}

// Callers come, leave and change their buffers while streams break: every
// request arrives at most once, and what was not sent has not arrived. Run it
// with -race: the buffers belong to the caller once Do has returned.
func TestChurn(t *testing.T) {
	cluster := clustertest.New(t, 1, 1)
	s := cluster.Store(1)
	p := pool(t, stream.Options{})
	var mu sync.Mutex
	arrived := map[string]int{}
	s.Hook(func(req *kvpb.Request) *clustertest.Script {
		mu.Lock()
		defer mu.Unlock()
		arrived[string(req.GetPut().GetKey())]++
		switch n := rand.IntN(200); {
		case n == 0:
			return &clustertest.Script{BreakBefore: true}
		case n < 10:
			return &clustertest.Script{Drop: true}
		}
		return nil
	})
	var wg sync.WaitGroup
	var notSent, unsure, acked atomic.Int64
	for i := range 16 {
		wg.Go(func() {
			for j := range 100 {
				key := fmt.Appendf(nil, "%d/%d", i, j)
				name := string(key)
				ctx, cancel := context.WithTimeout(t.Context(), time.Duration(rand.IntN(20))*time.Millisecond)
				req := putRequest("", "v")
				req.GetPut().Key = key
				_, err := p.Do(ctx, 1, s.Address(), req)
				cancel()
				for k := range key {
					key[k] = '!'
				}
				mu.Lock()
				n := arrived[name]
				mu.Unlock()
				switch {
				case err == nil:
					acked.Add(1)
				case sentOf(t, err):
					unsure.Add(1)
				default:
					notSent.Add(1)
					if n != 0 {
						t.Errorf("%s arrived, but is said not to be sent: %v", name, err)
					}
				}
			}
		})
	}
	wg.Wait()
	mu.Lock()
	defer mu.Unlock()
	for key, n := range arrived {
		if n != 1 || strings.Contains(key, "!") {
			t.Errorf("%q arrived %d times", key, n)
		}
	}
	t.Logf("%d acknowledged, %d unknown, %d not sent", acked.Load(), unsure.Load(), notSent.Load())
}
