// Package pdclient speaks to the placement driver: it finds the leader among
// several addresses, retries by the class of the error, and shares timestamp
// requests between concurrent callers.
package pdclient

import (
	"context"
	"crypto/tls"
	"errors"
	"iter"
	"log/slog"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/ridgekv/ridge/proto/keys"
	kvpb "github.com/ridgekv/ridge/proto/ridge/kv/v1"
	pdpb "github.com/ridgekv/ridge/proto/ridge/pd/v1"
	"github.com/ridgekv/ridge/proto/ts"
)

// ErrClosed is returned by every call after Close.
var ErrClosed = errors.New("pdclient: the client is closed")

// Options configure a Client.
type Options struct {
	// Addresses are the gRPC addresses of PD nodes. One that answers is enough:
	// the others are learned from it. Required.
	Addresses []string
	// TLS is the client side of every connection. Default nil: plain text.
	TLS *tls.Config
	// DialTimeout bounds one attempt to connect. Default 500ms.
	DialTimeout time.Duration
	// Timeout bounds a call whose context has no deadline. Default 10s.
	Timeout time.Duration
	// ClusterID is the cluster that is meant; others refuse. Default 0: it is
	// learned from the first answer and held to from then on.
	ClusterID uint64
	// Logger gets one line per change of the leader. Default: none.
	Logger *slog.Logger
	// Registerer gets the metrics. Default: none.
	Registerer prometheus.Registerer
}

// Error is a refusal by PD.
type Error struct {
	// Op is the call that was refused.
	Op            string
	Reason        pdpb.PDErrorReason
	Message       string
	LeaderAddress string
	Class         kvpb.ErrorClass
	Backoff       time.Duration
}

func (e Error) Error() string { return "pd: " + e.Op + ": " + e.Message }

// Client speaks to PD. It is safe for concurrent use.
type Client struct{ o Options }

var errNotBuilt = errors.New("pdclient: not built yet")

// Open returns a client. It does not wait for PD: a store starts without it.
// The context bounds nothing after Open has returned.
func Open(ctx context.Context, o Options) (*Client, error) { return &Client{o: o}, nil }

// Close ends every stream and connection. It is idempotent.
func (c *Client) Close() error { return nil }

// ClusterID is the id of the cluster, 0 as long as no PD has answered.
func (c *Client) ClusterID() uint64 { return c.o.ClusterID }

// Members lists the PD nodes. Any node answers.
func (c *Client) Members(ctx context.Context) (*pdpb.MembersResponse, error) {
	return nil, errNotBuilt
}

// Status asks the leader, or any node while there is none.
func (c *Client) Status(ctx context.Context) (*pdpb.StatusResponse, error) {
	return nil, errNotBuilt
}

// StatusOf asks exactly the PD node at address.
func (c *Client) StatusOf(ctx context.Context, address string) (*pdpb.StatusResponse, error) {
	return nil, errNotBuilt
}

// RegisterStore admits a store to the cluster.
func (c *Client) RegisterStore(
	ctx context.Context, r *pdpb.RegisterStoreRequest,
) (*pdpb.RegisterStoreResponse, error) {
	return nil, errNotBuilt
}

// StoreHeartbeat reports a store.
func (c *Client) StoreHeartbeat(
	ctx context.Context, r *pdpb.StoreHeartbeatRequest,
) (*pdpb.StoreHeartbeatResponse, error) {
	return nil, errNotBuilt
}

// RangeHeartbeat opens a stream to the present leader, waiting for one as long
// as ctx allows. The stream lives until Recv fails, Close or the end of ctx.
// When it ends, open the next one and send a complete report: the leader may
// be a new one that knows nothing.
func (c *Client) RangeHeartbeat(ctx context.Context) (*RangeHeartbeats, error) {
	return nil, errNotBuilt
}

// RangeHeartbeats is a stream of reports to PD and orders from it. One
// goroutine may send while another receives.
type RangeHeartbeats struct{}

// Send sends one report. The header is filled in.
func (s *RangeHeartbeats) Send(r *pdpb.RangeHeartbeatRequest) error { return errNotBuilt }

// Recv waits for the next orders.
func (s *RangeHeartbeats) Recv() (*pdpb.RangeHeartbeatResponse, error) { return nil, errNotBuilt }

// Close ends the stream and releases what it holds. It is idempotent.
func (s *RangeHeartbeats) Close() {}

// AllocateIDs returns the first of count consecutive ids, never given before.
func (c *Client) AllocateIDs(ctx context.Context, count uint32) (first uint64, err error) {
	return 0, errNotBuilt
}

// AskSplit reserves the ids of a child range.
func (c *Client) AskSplit(
	ctx context.Context, r *pdpb.AskSplitRequest,
) (*pdpb.AskSplitResponse, error) {
	return nil, errNotBuilt
}

// ReportSplit tells both halves of a split at once.
func (c *Client) ReportSplit(
	ctx context.Context, r *pdpb.ReportSplitRequest,
) (*pdpb.ReportSplitResponse, error) {
	return nil, errNotBuilt
}

// GetRoute returns the range that holds key, and the stores of its replicas.
func (c *Client) GetRoute(ctx context.Context, key []byte) (*pdpb.GetRouteResponse, error) {
	return nil, errNotBuilt
}

// ListRoutes returns one page of the routes of span; limit 0 is PD's choice.
func (c *Client) ListRoutes(
	ctx context.Context, span keys.Span, limit uint32,
) (*pdpb.ListRoutesResponse, error) {
	return nil, errNotBuilt
}

// GetRange returns a range by its id.
func (c *Client) GetRange(ctx context.Context, rangeID uint64) (*pdpb.GetRangeResponse, error) {
	return nil, errNotBuilt
}

// WatchRoutes yields the present routes of span and then every change. A
// broken stream is opened again, at the new leader if it moved; PD then sends
// the present state anew, up to a message with Synced. It ends with ctx, with
// an error that cannot be cured, or when the caller stops.
func (c *Client) WatchRoutes(
	ctx context.Context, span keys.Span,
) iter.Seq2[*pdpb.WatchRoutesResponse, error] {
	return func(yield func(*pdpb.WatchRoutesResponse, error) bool) { yield(nil, errNotBuilt) }
}

// SplitRange asks PD to split the range that holds key at key.
func (c *Client) SplitRange(ctx context.Context, key []byte) (*pdpb.SplitRangeResponse, error) {
	return nil, errNotBuilt
}

// ListStores returns every store PD knows.
func (c *Client) ListStores(ctx context.Context) (*pdpb.ListStoresResponse, error) {
	return nil, errNotBuilt
}

// Timestamp returns a timestamp above every one that any caller of the cluster
// was given before this call began.
func (c *Client) Timestamp(ctx context.Context) (ts.Timestamp, error) {
	return 0, errNotBuilt
}

// Timestamps returns the first of n consecutive timestamps.
func (c *Client) Timestamps(ctx context.Context, n uint32) (ts.Timestamp, error) {
	return 0, errNotBuilt
}

// GetSafePoint returns the safe points and the holds.
func (c *Client) GetSafePoint(ctx context.Context) (*pdpb.GetSafePointResponse, error) {
	return nil, errNotBuilt
}

// SetHold creates or renews a hold that keeps history at or above at. It
// returns PD's GC safe point.
func (c *Client) SetHold(
	ctx context.Context, id string, at ts.Timestamp, ttl time.Duration,
) (ts.Timestamp, error) {
	return 0, errNotBuilt
}

// ReleaseHold drops a hold. Dropping one that does not exist is no error.
func (c *Client) ReleaseHold(ctx context.Context, id string) error { return errNotBuilt }
