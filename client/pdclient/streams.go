package pdclient

import (
	"context"
	"iter"

	"google.golang.org/grpc"

	"github.com/ridgekv/ridge/client/internal/retry"
	"github.com/ridgekv/ridge/proto/keys"
	pdpb "github.com/ridgekv/ridge/proto/ridge/pd/v1"
)

// RangeHeartbeat opens a stream to the present leader, waiting for one as long
// as ctx allows. The stream lives until Recv fails, Close or the end of ctx.
// When it ends, open the next one and send a complete report: the leader may
// be a new one that knows nothing.
func (c *Client) RangeHeartbeat(ctx context.Context) (*RangeHeartbeats, error) {
	ctx, cancel := context.WithCancel(ctx)
	log := retry.NewLog(c.metrics.retried)
	for {
		addr, err := c.leader(ctx, log)
		if err == nil {
			var client node
			if client, err = c.members.at(addr); err == nil {
				var stream grpc.BidiStreamingClient[
					pdpb.RangeHeartbeatRequest, pdpb.RangeHeartbeatResponse]
				if stream, err = client.RangeHeartbeat(ctx); err == nil {
					return &RangeHeartbeats{c: c, addr: addr, stream: stream, cancel: cancel}, nil
				}
				err = c.unreachable(ctx, "range heartbeat", addr, err)
			}
		}
		cause, hint, again := c.next(addr, err)
		if again {
			err = log.Wait(ctx, cause, hint, err)
		}
		if err != nil {
			cancel()
			return nil, err
		}
	}
}

// leader finds a node that says it leads. Opening a stream alone does not
// tell: only its first answer would.
func (c *Client) leader(ctx context.Context, log *retry.Log) (string, error) {
	for {
		addr, client, err := c.members.pick()
		if err != nil {
			return "", err
		}
		r, err := try(ctx, client, c.o.TryTimeout, pdpb.PDServiceClient.GetSafePoint,
			&pdpb.GetSafePointRequest{Header: c.header()})
		if err == nil {
			err = c.judge("find leader", addr, toLeader, r.GetError())
			if HasReason(err, pdpb.PDErrorReason_PD_ERROR_REASON_NOT_BOOTSTRAPPED) {
				err = nil // only a leader says so
			}
		} else {
			err = c.unreachable(ctx, "find leader", addr, err)
		}
		if err == nil {
			return addr, nil
		}
		cause, hint, again := c.next(addr, err)
		if again {
			err = log.Wait(ctx, cause, hint, err)
		}
		if err != nil {
			return "", err
		}
	}
}

// RangeHeartbeats is a stream of reports to PD and orders from it. One
// goroutine may send while another receives.
type RangeHeartbeats struct {
	c      *Client
	addr   string
	stream grpc.BidiStreamingClient[pdpb.RangeHeartbeatRequest, pdpb.RangeHeartbeatResponse]
	cancel context.CancelFunc
}

// Send sends one report. The header is filled in. An error means that the
// stream has ended; Recv tells why.
func (s *RangeHeartbeats) Send(r *pdpb.RangeHeartbeatRequest) error {
	r.Header = s.c.header()
	if err := s.stream.Send(r); err != nil {
		return s.c.unanswered("range heartbeat", s.addr, err)
	}
	return nil
}

// Recv waits for the next orders. After an error the stream is over.
func (s *RangeHeartbeats) Recv() (*pdpb.RangeHeartbeatResponse, error) {
	r, err := s.stream.Recv()
	if err != nil {
		s.cancel()
		return nil, s.c.unanswered("range heartbeat", s.addr, err)
	}
	if err := s.c.judge("range heartbeat", s.addr, toLeader, r.GetError()); err != nil {
		s.cancel()
		return nil, err
	}
	return r, nil
}

// Close ends the stream and releases what it holds. It is idempotent.
func (s *RangeHeartbeats) Close() { s.cancel() }

// WatchRoutes yields the present routes of span and then every change. A
// broken stream is opened again, at the new leader if it moved; PD then sends
// the present state anew, up to a message with Synced. It ends with ctx, with
// an error that cannot be cured, or when the caller stops.
func (c *Client) WatchRoutes(
	ctx context.Context, span keys.Span,
) iter.Seq2[*pdpb.WatchRoutesResponse, error] {
	return func(yield func(*pdpb.WatchRoutesResponse, error) bool) {
		log := retry.NewLog(c.metrics.retried)
		for {
			progress, goOn, err := c.watch(ctx, span, yield)
			if !goOn {
				return
			}
			if progress {
				log = retry.NewLog(c.metrics.retried)
			}
			cause, hint, again := c.next("", err)
			if again {
				err = log.Wait(ctx, cause, hint, err)
			}
			if err != nil {
				yield(nil, err)
				return
			}
		}
	}
}

// watch runs one stream until it breaks. goOn is false when the caller has
// stopped.
func (c *Client) watch(
	ctx context.Context, span keys.Span, yield func(*pdpb.WatchRoutesResponse, error) bool,
) (progress, goOn bool, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	addr, client, err := c.members.pick()
	if err != nil {
		return false, true, err
	}
	stream, err := client.WatchRoutes(ctx,
		&pdpb.WatchRoutesRequest{Header: c.header(), Span: span.Proto()})
	for err == nil {
		var r *pdpb.WatchRoutesResponse
		if r, err = stream.Recv(); err != nil {
			break
		}
		if err := c.judge("watch routes", addr, toLeader, r.GetError()); err != nil {
			return progress, true, err
		}
		progress = true
		if !yield(r, nil) {
			return true, false, nil
		}
	}
	return progress, true, c.unreachable(ctx, "watch routes", addr, err)
}
