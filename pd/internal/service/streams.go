package service

import (
	"context"
	"errors"
	"io"
	"sync"
	"time"

	"google.golang.org/grpc"

	"github.com/ridgekv/ridge/pd/internal/tso"
	pdpb "github.com/ridgekv/ridge/proto/ridge/pd/v1"
)

// streams are the heartbeat streams of the stores, newest per store.
type streams struct {
	mu struct {
		sync.Mutex
		byStore map[uint64]chan []*pdpb.Order
	}
}

func (t *streams) init() { t.mu.byStore = map[uint64]chan []*pdpb.Order{} }

// open replaces the stream of a store.
func (t *streams) open(storeID uint64) chan []*pdpb.Order {
	t.mu.Lock()
	defer t.mu.Unlock()
	ch := make(chan []*pdpb.Order, 4)
	t.mu.byStore[storeID] = ch
	return ch
}

func (t *streams) close(storeID uint64, ch chan []*pdpb.Order) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.mu.byStore[storeID] == ch {
		delete(t.mu.byStore, storeID)
	}
}

// send offers orders to a store. They are dropped when it has no stream or does
// not keep up: orders are repeated until they show.
func (t *streams) send(storeID uint64, orders []*pdpb.Order) {
	t.mu.Lock()
	defer t.mu.Unlock()
	select {
	case t.mu.byStore[storeID] <- orders: // a nil channel is never ready
	default:
	}
}

// SendOrders offers orders to the stores that shall carry them out.
func (l *Leading) SendOrders(orders map[uint64][]*pdpb.Order) {
	for store, list := range orders {
		l.streams.send(store, list)
	}
}

// RangeHeartbeat takes reports and sends orders. When this node stops leading
// it says so, and the store ends the stream.
func (s *Service) RangeHeartbeat(
	stream grpc.BidiStreamingServer[pdpb.RangeHeartbeatRequest, pdpb.RangeHeartbeatResponse],
) error {
	req, err := stream.Recv()
	if err != nil {
		return err
	}
	storeID := req.GetStoreId()
	m, l, err := s.lead(req.GetHeader())
	if err == nil {
		_, err = s.registered(m, l, storeID)
	}
	if err == nil {
		err = l.runs.check(storeID, req.GetRun(), time.Now())
	}
	if err != nil {
		return stream.Send(&pdpb.RangeHeartbeatResponse{Error: s.pdError(err)})
	}
	orders := l.streams.open(storeID)
	defer l.streams.close(storeID, orders)
	ctx, cancel := context.WithCancel(stream.Context())
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	wg.Go(func() { s.sendOrders(ctx, l, stream, orders) })
	for {
		if list := l.Ingest(storeID, req, time.Now()); len(list) > 0 {
			select {
			case orders <- list:
			default: // it is found again with the next report
			}
		}
		if req, err = stream.Recv(); err != nil {
			if errors.Is(err, io.EOF) {
				return nil
			}
			return err
		}
	}
}

func (s *Service) sendOrders(
	ctx context.Context, l *Leading,
	stream grpc.BidiStreamingServer[pdpb.RangeHeartbeatRequest, pdpb.RangeHeartbeatResponse],
	orders <-chan []*pdpb.Order,
) {
	for {
		out := &pdpb.RangeHeartbeatResponse{}
		select {
		case <-ctx.Done():
			return
		case <-l.Done:
			out.Error = s.pdError(s.notLeader())
		case out.Orders = <-orders:
		}
		if stream.Send(out) != nil || out.Error != nil {
			return // the receiving side hears of a broken stream
		}
	}
}

// Ingest takes in one message of a store. It returns the replicas there that are
// to be destroyed, as orders.
func (l *Leading) Ingest(
	storeID uint64, req *pdpb.RangeHeartbeatRequest, now time.Time,
) []*pdpb.Order {
	for _, f := range req.GetFailures() {
		l.Operators.Refused(f)
	}
	for _, r := range req.GetRanges() {
		if r.GetLeader().GetStoreId() == storeID {
			l.Topology.Report(r, now)
		}
	}
	l.Topology.HeardReplicas(storeID, req.GetReplicas(), req.GetComplete(), now)
	return l.condemn(storeID, req.GetReplicas(), req.GetComplete(), now)
}

// Timestamps hands out timestamps. Requests are taken as they come and answered
// in order, so that many share one confirmation.
func (s *Service) Timestamps(
	stream grpc.BidiStreamingServer[pdpb.TimestampsRequest, pdpb.TimestampsResponse],
) error {
	ctx, cancel := context.WithCancel(stream.Context())
	pending := make(chan *tso.Pending, 64)
	failed := make(chan error, 1)
	var wg sync.WaitGroup
	wg.Go(func() {
		defer close(pending)
		failed <- s.takeTimestamps(ctx, stream, pending)
	})
	err := s.tellTimestamps(ctx, stream, pending)
	cancel()
	if err == nil {
		err = <-failed
	}
	if err == nil || errors.Is(err, io.EOF) {
		return nil
	}
	return stream.Send(&pdpb.TimestampsResponse{Error: s.pdError(err)})
}

func (s *Service) takeTimestamps(
	ctx context.Context,
	stream grpc.BidiStreamingServer[pdpb.TimestampsRequest, pdpb.TimestampsResponse],
	pending chan<- *tso.Pending,
) error {
	for {
		req, err := stream.Recv()
		if err != nil {
			return err
		}
		_, l, err := s.lead(req.GetHeader())
		if err != nil {
			return err
		}
		if n := req.GetCount(); n == 0 || n > tso.MaxCount {
			return invalid("count %d is not within 1 and %d", n, tso.MaxCount)
		}
		p, err := l.Oracle.Begin(ctx, req.GetCount())
		if err != nil {
			return err
		}
		select {
		case pending <- p:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (s *Service) tellTimestamps(
	ctx context.Context,
	stream grpc.BidiStreamingServer[pdpb.TimestampsRequest, pdpb.TimestampsResponse],
	pending <-chan *tso.Pending,
) error {
	for p := range pending {
		if err := p.Wait(ctx); err != nil {
			return err
		}
		out := &pdpb.TimestampsResponse{First: uint64(p.First), Count: p.Count}
		if err := stream.Send(out); err != nil {
			return err
		}
	}
	return nil
}
