// Package service is the door of a store: it checks who is meant, hands
// requests to the leaseholder's room or to the gateway, and carries the answers
// back.
package service

import (
	"context"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"

	"github.com/ridgekv/ridge/proto/errs"
	kvpb "github.com/ridgekv/ridge/proto/ridge/kv/v1"
	metapb "github.com/ridgekv/ridge/proto/ridge/meta/v1"
	storepb "github.com/ridgekv/ridge/proto/ridge/store/v1"
	"github.com/ridgekv/ridge/storenode/internal/catalog"
	"github.com/ridgekv/ridge/storenode/internal/evaluate"
)

// APIVersion is what a stream's Hello must name.
const APIVersion = 1

// Evaluator turns requests into answers where this store holds the lease.
// It never blocks and answers each request exactly once.
type Evaluator interface {
	Submit(request *kvpb.Request, respond func(*kvpb.Response))
	// SubmitAll is Submit for requests that came together.
	SubmitAll(all []evaluate.Submission)
}

// Ranges tells what the door must know of the replicas of this store.
type Ranges interface {
	// Range finds a replica by the id of its range.
	Range(rangeID uint64) (Range, bool)
	// Lookup finds the replica whose span holds key.
	Lookup(key []byte) (Range, bool)
	// Describe is the descriptor of a local range.
	Describe(rangeID uint64) *metapb.Range
}

// Range is what the door knows of one local replica.
type Range struct {
	State *catalog.State
	// Leader is a hint; nil when nobody else is known to lead.
	Leader *metapb.Leader
	// Led: this replica leads its group or holds the lease.
	Led bool
}

// Gateway answers for keys of other stores. Its requests are marked and are
// never forwarded a second time.
type Gateway interface {
	Do(ctx context.Context, request *kvpb.Request) *kvpb.Response
	Scan(ctx context.Context, r *kvpb.ScanRequest, send func(*kvpb.ScanResponse) error) error
}

// Options are what the door needs from the start.
type Options struct {
	Logger     *slog.Logger
	Registerer prometheus.Registerer
	// StreamSeats bounds the requests outstanding on one stream, StreamBytes
	// their size. Above, requests are refused with Busy. Defaults 8,192 and
	// 64 MiB.
	StreamSeats int
	StreamBytes int64
	// InFlightBytes bounds the requests of all streams and calls together.
	// Default 256 MiB.
	InFlightBytes int64

	debtTimeout time.Duration // shorter in tests
}

// Core is the booted store behind the door.
type Core struct {
	ClusterID, StoreID uint64
	Evaluator          Evaluator
	Ranges             Ranges
	Gateway            Gateway
	// Store answers StoreService, except for pings.
	Store storepb.StoreServiceServer
	// Pong answers one ping.
	Pong func(*storepb.PingRequest) *storepb.PingResponse
}

// Service is KVService and StoreService of one store. Until Open every call is
// refused as Unavailable; from Drain on those of KVService are, from Close on
// all.
type Service struct {
	kvpb.UnimplementedKVServiceServer

	o       Options
	metrics *metrics
	core    atomic.Pointer[Core]
	bytes   atomic.Int64
	// draining is closed when streams must end.
	draining chan struct{}
	// readers are the goroutines that speak on streams; they end when the
	// handler of their stream has returned.
	readers sync.WaitGroup

	mu struct {
		sync.Mutex
		calls  int
		closed bool
		// idle is closed when closed is set and calls is 0.
		idle chan struct{}
		// shut ends StoreService; storeCalls are its calls under way.
		shut       bool
		storeCalls sync.WaitGroup
	}
}

// New returns a door that is still shut.
func New(o Options) *Service {
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.StreamSeats == 0 {
		o.StreamSeats = 8192
	}
	if o.StreamBytes == 0 {
		o.StreamBytes = 64 << 20
	}
	if o.InFlightBytes == 0 {
		o.InFlightBytes = 256 << 20
	}
	if o.debtTimeout == 0 {
		o.debtTimeout = debtTimeout
	}
	s := &Service{o: o, metrics: newMetrics(o.Registerer), draining: make(chan struct{})}
	s.mu.idle = make(chan struct{})
	return s
}

// Register adds both services to r.
func (s *Service) Register(r grpc.ServiceRegistrar) {
	kvpb.RegisterKVServiceServer(r, s)
	storepb.RegisterStoreServiceServer(r, storeDoor{s: s})
}

// Open lets requests in.
func (s *Service) Open(core *Core) { s.core.Store(core) }

// Drain refuses what comes from now on, ends the streams, and waits for what is
// in flight, as long as ctx allows. It may be called once.
func (s *Service) Drain(ctx context.Context) error {
	s.mu.Lock()
	s.mu.closed = true
	if s.mu.calls == 0 {
		close(s.mu.idle)
	}
	s.mu.Unlock()
	close(s.draining)
	select {
	case <-s.mu.idle:
		s.readers.Wait()
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Close ends StoreService too and waits for its calls. What the Core was made of
// is not used after it, except by requests that Drain did not wait for.
func (s *Service) Close() {
	s.mu.Lock()
	s.mu.shut = true
	s.mu.Unlock()
	s.core.Store(nil)
	s.mu.storeCalls.Wait()
}

// enterStore admits one call of StoreService.
func (s *Service) enterStore() (core *Core, leave func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	core = s.core.Load()
	if core == nil || s.mu.shut {
		return nil, nil
	}
	s.mu.storeCalls.Add(1)
	return core, s.mu.storeCalls.Done
}

// enter admits one call, or one stream, to the open door.
func (s *Service) enter() (*Core, error) {
	core := s.core.Load()
	s.mu.Lock()
	defer s.mu.Unlock()
	if core == nil || s.mu.closed {
		return nil, errs.Unavailable{Part: "store"}
	}
	s.mu.calls++
	return core, nil
}

func (s *Service) leave() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.mu.calls--
	if s.mu.closed && s.mu.calls == 0 {
		close(s.mu.idle)
	}
}

// taking refuses requests of open streams once the store drains.
func (s *Service) taking() error {
	select {
	case <-s.draining:
		return errs.Unavailable{Part: "store"}
	default:
		return nil
	}
}

// reserve takes room for a request of n bytes in the budget of the store.
func (s *Service) reserve(n int64) bool {
	if s.bytes.Add(n) > s.o.InFlightBytes {
		s.bytes.Add(-n)
		return false
	}
	return true
}

func (s *Service) release(n int64) { s.bytes.Add(-n) }
