package clustertest

import (
	"context"
	"sync"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/ridgekv/ridge/proto/errs"
	"github.com/ridgekv/ridge/proto/keys"
	kvpb "github.com/ridgekv/ridge/proto/ridge/kv/v1"
	metapb "github.com/ridgekv/ridge/proto/ridge/meta/v1"
)

// Script is what a hook lets a store do with a request.
type Script struct {
	// Answer, if set, is sent instead of evaluating.
	Answer *kvpb.Error
	// AppliedCount goes with the Answer to a BulkWrite: that many leading
	// mutations are said to be applied.
	AppliedCount uint64
	// BreakBefore ends the stream without evaluating, BreakAfter after it.
	BreakBefore, BreakAfter bool
	// Drop evaluates and never answers; DropBefore does not evaluate either.
	Drop, DropBefore bool
	// Hold, if set, is waited for before anything else.
	Hold <-chan struct{}
}

// Store is one scripted store.
type Store struct {
	kvpb.UnimplementedKVServiceServer
	ID      uint64
	c       *Cluster
	server  *server
	readers sync.WaitGroup

	mu struct {
		sync.Mutex
		hook     func(*kvpb.Request) *Script
		refusal  error
		frozen   chan struct{}
		arrivals map[string]int
		tokens   []uint64
		headers  []*kvpb.Header
		messages int
		streams  int
	}
}

// Address is where the store listens.
func (s *Store) Address() string { return s.server.addr }

// Kill closes every connection of the store, as kill -9 would.
func (s *Store) Kill() {
	s.server.kill()
	s.readers.Wait()
}

// Start serves again after Kill.
func (s *Store) Start() { s.server.start(s.register) }

// Hook lets f decide about every request; a nil Script evaluates as usual. nil
// ends it.
func (s *Store) Hook(f func(*kvpb.Request) *Script) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.mu.hook = f
}

// RefuseStreams answers every new stream with err, as a store does that is not
// ready or drains; nil ends it.
func (s *Store) RefuseStreams(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.mu.refusal = err
}

// Freeze lets the store answer nothing, as SIGSTOP would, until Thaw.
func (s *Store) Freeze() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.mu.frozen = make(chan struct{})
}

// Thaw ends Freeze.
func (s *Store) Thaw() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.mu.frozen != nil {
		close(s.mu.frozen)
		s.mu.frozen = nil
	}
}

// Arrivals is how many requests of the kind ("put", "get", "scan") came in.
func (s *Store) Arrivals(kind string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.mu.arrivals[kind]
}

// Messages is how many stream messages with requests came in, Streams how many
// streams were opened.
func (s *Store) Messages() (messages, streams int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.mu.messages, s.mu.streams
}

// LastHeader is the header of the newest request; nil without one.
func (s *Store) LastHeader() *kvpb.Header {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.mu.headers) == 0 {
		return nil
	}
	return s.mu.headers[len(s.mu.headers)-1]
}

func (s *Store) register(r grpc.ServiceRegistrar) { kvpb.RegisterKVServiceServer(r, s) }

// Stream implements KVService.
func (s *Store) Stream(
	stream grpc.BidiStreamingServer[kvpb.StreamRequest, kvpb.StreamResponse],
) error {
	first, err := stream.Recv()
	if err != nil {
		return nil
	}
	if err := s.greet(first.GetHello()); err != nil {
		return stream.Send(&kvpb.StreamResponse{Error: errs.ToProto(err)})
	}
	s.mu.Lock()
	s.mu.streams++
	s.mu.Unlock()
	ctx, cancel := context.WithCancel(stream.Context())
	defer cancel()
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	var sendMu sync.Mutex
	requests := make(chan *kvpb.StreamRequest)
	// It ends when this handler has returned, so the handler cannot wait for it.
	s.readers.Go(func() {
		defer cancel()
		for {
			r, err := stream.Recv()
			if err != nil {
				return
			}
			select {
			case requests <- r:
			case <-ctx.Done():
				return
			}
		}
	})
	for r := first; ; {
		if len(r.Requests) > 0 {
			s.mu.Lock()
			s.mu.messages++
			s.mu.Unlock()
		}
		for _, req := range r.Requests {
			s.arrived(req)
			wg.Go(func() {
				resp, goOn := s.handle(ctx, req)
				if resp != nil {
					sendMu.Lock()
					_ = stream.Send(&kvpb.StreamResponse{Responses: []*kvpb.Response{resp}})
					sendMu.Unlock()
				}
				if !goOn {
					cancel()
				}
			})
		}
		select {
		case r = <-requests:
		case <-ctx.Done():
			return status.Error(codes.Unavailable, "the stream was broken")
		}
	}
}

func (s *Store) greet(h *kvpb.Hello) error {
	if h.GetClusterId() != ClusterID {
		return errs.ClusterMismatch{Want: h.GetClusterId(), Have: ClusterID}
	}
	if h.GetStoreId() != s.ID {
		return errs.StoreMismatch{Want: h.GetStoreId(), Have: s.ID}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.mu.refusal
}

func (s *Store) arrived(req *kvpb.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.mu.arrivals == nil {
		s.mu.arrivals = map[string]int{}
	}
	s.mu.arrivals[Kind(req)]++
	s.mu.headers = append(s.mu.headers, HeaderOf(req))
}

// handle obeys the hook and evaluates. goOn is false when the stream shall
// break.
func (s *Store) handle(ctx context.Context, req *kvpb.Request) (resp *kvpb.Response, goOn bool) {
	s.mu.Lock()
	frozen, hook := s.mu.frozen, s.mu.hook
	s.mu.Unlock()
	if frozen != nil && !await(ctx, frozen) {
		return nil, true
	}
	var script *Script
	if hook != nil {
		script = hook(req)
	}
	if script == nil {
		return s.evaluate(req), true
	}
	if script.Hold != nil && !await(ctx, script.Hold) {
		return nil, true
	}
	switch {
	case script.Answer != nil:
		resp := failed(req, script.Answer)
		if b := resp.GetBulkWrite(); b != nil {
			b.AppliedCount = script.AppliedCount
		}
		return resp, true
	case script.BreakBefore:
		return nil, false
	case script.DropBefore:
		return nil, true
	}
	resp = s.evaluate(req)
	if script.BreakAfter || script.Drop {
		return nil, !script.BreakAfter
	}
	return resp, true
}

func await(ctx context.Context, c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	case <-ctx.Done():
		return false
	}
}

// evaluate is the guard ladder of a store, then the shared map.
func (s *Store) evaluate(req *kvpb.Request) *kvpb.Response {
	s.c.mu.Lock()
	defer s.c.mu.Unlock()
	h := HeaderOf(req)
	g := s.c.mu.ranges[h.GetRangeId()]
	if g == nil || !s.holds(g.rng) {
		return failed(req, errs.ToProto(errs.RangeNotFound{RangeID: h.GetRangeId()}))
	}
	if g.leader != s.ID {
		return failed(req, errs.ToProto(errs.NotLeader{RangeID: g.rng.RangeId, Leader: leaderOf(g)}))
	}
	if h.GetSpanEpoch() != g.rng.Epoch.Span {
		return failed(req, errs.ToProto(errs.EpochMismatch{
			RangeID: g.rng.RangeId, Current: s.currentLocked(),
		}))
	}
	span := keys.FromProto(g.rng.Span)
	for _, k := range keysOf(req) {
		if !span.Contains(k) {
			return failed(req, errs.ToProto(errs.KeyNotInRange{Key: k, Range: g.rng}))
		}
	}
	resp := s.c.applyLocked(req, g)
	resp.Id = req.Id
	return resp
}

func (s *Store) holds(r *metapb.Range) bool {
	for _, rep := range r.Replicas {
		if rep.StoreId == s.ID {
			return true
		}
	}
	return false
}

// currentLocked is what this store knows of all its ranges.
func (s *Store) currentLocked() []*metapb.Range {
	var out []*metapb.Range
	for _, g := range s.c.mu.ranges {
		if s.holds(g.rng) {
			out = append(out, g.rng)
		}
	}
	return out
}

// HeaderOf is the header of whatever req asks.
func HeaderOf(req *kvpb.Request) *kvpb.Header {
	if m := body(req); m != nil {
		f := m.Descriptor().Fields().ByName("header")
		h, _ := m.Get(f).Message().Interface().(*kvpb.Header)
		return h
	}
	return nil
}

// Kind names what req asks: "get", "put", ...
func Kind(req *kvpb.Request) string {
	r := req.ProtoReflect()
	f := r.WhichOneof(r.Descriptor().Oneofs().ByName("body"))
	if f == nil {
		return ""
	}
	return string(f.Name())
}

func body(req *kvpb.Request) protoreflect.Message {
	r := req.ProtoReflect()
	f := r.WhichOneof(r.Descriptor().Oneofs().ByName("body"))
	if f == nil {
		return nil
	}
	return r.Get(f).Message()
}

// failed answers req with err, as the kind of response that was asked for.
func failed(req *kvpb.Request, err *kvpb.Error) *kvpb.Response {
	resp := &kvpb.Response{Id: req.Id}
	r := resp.ProtoReflect()
	f := r.Descriptor().Fields().ByName(protoreflect.Name(Kind(req)))
	m := r.NewField(f)
	e := m.Message().Descriptor().Fields().ByName("error")
	m.Message().Set(e, protoreflect.ValueOfMessage(err.ProtoReflect()))
	r.Set(f, m)
	return resp
}
