// Package client is the smart client of Ridge: it knows which store leads
// which range, sends each request there, and follows splits, moves and
// failovers.
//
// Every error is one of three kinds. After most errors nothing was written.
// errs.UnknownOutcome means that a write may or may not have happened; the
// client never sends such a write again, and neither should a caller who
// cannot bear it twice. IsUnknown tells the two apart.
package client

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/ridgekv/ridge/client/internal/route"
	"github.com/ridgekv/ridge/client/internal/stream"
	"github.com/ridgekv/ridge/client/pdclient"
	"github.com/ridgekv/ridge/proto/errs"
	metapb "github.com/ridgekv/ridge/proto/ridge/meta/v1"
	pdpb "github.com/ridgekv/ridge/proto/ridge/pd/v1"
	"github.com/ridgekv/ridge/proto/ts"
)

// ErrClosed is returned by every call after Close.
var ErrClosed = errors.New("client: closed")

// IsUnknown reports whether err leaves open if a write happened.
func IsUnknown(err error) bool {
	_, ok := errors.AsType[errs.UnknownOutcome](err)
	return ok
}

// Row is a key with the value a read saw.
type Row struct {
	Key, Value []byte
	// CommitTS is when the value was written.
	CommitTS ts.Timestamp
	// ExpiresAt is when the row goes away by itself; 0 means never.
	ExpiresAt ts.Timestamp
}

// Mutation is one write of a batch.
type Mutation struct {
	Key []byte
	// Delete removes the key; Value and TTL are ignored.
	Delete bool
	Value  []byte
	// TTL is the life of the row from its commit; 0 means for ever.
	TTL time.Duration
}

// Swap is a conditional write of one key.
type Swap struct {
	Key []byte
	// ExpectAbsent asks that the key does not exist; Expected is ignored.
	ExpectAbsent bool
	Expected     []byte
	// Delete removes the key instead of writing Value.
	Delete bool
	Value  []byte
}

// SwapResult tells what a CompareAndSwap did.
type SwapResult struct {
	Swapped bool
	// CommitTS is set when Swapped.
	CommitTS ts.Timestamp
	// Found and Current tell what was there when not Swapped.
	Found   bool
	Current Row
}

// BulkResult tells how far a BulkWrite got.
type BulkResult struct {
	// Applied counts the mutations known to be applied.
	Applied int
	// CommitTS is the highest commit timestamp.
	CommitTS ts.Timestamp
	// Pending are the positions of the mutations known not to be applied, in
	// order. Writing them again continues the bulk.
	Pending []int
	// Unknown are the positions of the mutations whose fate is unknown.
	Unknown []int
}

// DeleteRangeResult tells how far a DeleteRange got.
type DeleteRangeResult struct {
	Deleted  uint64
	CommitTS ts.Timestamp
	// ResumeKey is where to go on after an error or a limit; empty when done.
	ResumeKey []byte
}

// Page is a part of a scan.
type Page struct {
	Rows []Row
	// More tells that the span is not exhausted. A scan of the rest begins at
	// ResumeKey: inclusive for forward scans, the exclusive upper bound for
	// reverse scans.
	More      bool
	ResumeKey []byte
	// SnapshotTS is the timestamp the page was read at; 0 when the scan lay in
	// one range and read its newest state.
	SnapshotTS ts.Timestamp
}

// Session remembers the highest timestamp that its calls have seen and sends
// it along, so that later calls are ordered after it. It is safe for
// concurrent use.
type Session struct{ token atomic.Uint64 }

// NewSession returns a session that has seen t.
func NewSession(t ts.Timestamp) *Session {
	s := &Session{}
	s.saw(uint64(t))
	return s
}

// Token is the highest timestamp seen.
func (s *Session) Token() ts.Timestamp { return ts.Timestamp(s.token.Load()) }

func (s *Session) saw(t uint64) {
	for {
		old := s.token.Load()
		if t <= old || s.token.CompareAndSwap(old, t) {
			return
		}
	}
}

// Client is the smart client. It is safe for concurrent use; one is enough for
// a process.
type Client struct {
	o       Options
	pd      *pdclient.Client
	ownPD   bool
	routes  *route.Locator
	streams *stream.Pool
	health  health
	line    line
	session Session
	metrics *metrics
	closed  atomic.Bool
}

// Open returns a client of the cluster behind o.PD. Unless o.Lazy, it waits
// for a PD to answer, as long as ctx allows and o.Timeout at most.
func Open(ctx context.Context, o Options) (*Client, error) {
	if err := o.Validate(); err != nil {
		return nil, err
	}
	o = o.withDefaults()
	m, err := newMetrics(o.Registerer)
	if err != nil {
		return nil, fmt.Errorf("client: %w", err)
	}
	c := &Client{o: o, pd: o.PDClient, metrics: m}
	if c.pd == nil {
		c.ownPD = true
		c.pd, err = pdclient.Open(ctx, pdclient.Options{
			Addresses: o.PD, TLS: o.TLS, DialTimeout: o.DialTimeout, Timeout: o.Timeout,
			TryTimeout: o.TryTimeout, Logger: o.Logger, Registerer: o.Registerer,
		})
		if err != nil {
			return nil, fmt.Errorf("client: %w", err)
		}
	}
	c.routes = route.NewLocator(c.pd, o.MaxRoutes, o.Timeout)
	c.streams = stream.NewPool(stream.Options{
		TLS: o.TLS, DialTimeout: o.DialTimeout, ClusterID: c.pd.ClusterID,
		SilentAfter: o.TryTimeout, MaxInFlight: o.MaxInFlight,
	})
	if !o.Lazy {
		if _, err := c.pd.Members(ctx); err != nil {
			return nil, errors.Join(fmt.Errorf("client: open: %w", err), c.Close())
		}
	}
	return c, nil
}

// Close ends every stream and connection. Calls under way fail; writes that
// were sent end with errs.UnknownOutcome. It is idempotent.
func (c *Client) Close() error {
	if c.closed.Swap(true) {
		return nil
	}
	err := c.streams.Close()
	if c.ownPD {
		err = errors.Join(err, c.pd.Close())
	}
	return err
}

// PD is the client of the placement driver that c uses.
func (c *Client) PD() *pdclient.Client { return c.pd }

// Session is the session of calls that name no other.
func (c *Client) Session() *Session { return &c.session }

// Timestamp returns a timestamp for Snapshot reads: everything acknowledged
// before this call is at or below it.
func (c *Client) Timestamp(ctx context.Context) (ts.Timestamp, error) {
	ctx, cancel := c.bound(ctx)
	defer cancel()
	at, err := c.freshTimestamp(ctx, &c.session)
	if err != nil {
		return 0, fmt.Errorf("client: timestamp: %w", err)
	}
	c.session.saw(uint64(at))
	return at, nil
}

// maxAhead is how far a token may lie ahead of PD. Stores accept no more either.
const maxAhead = time.Second

// freshTimestamp takes timestamps until one is above what s has seen. A store
// may be a step ahead of PD, for less than the time of a write.
func (c *Client) freshTimestamp(ctx context.Context, s *Session) (ts.Timestamp, error) {
	for {
		at, err := c.pd.Timestamp(ctx)
		if err != nil || at > s.Token() {
			return at, err
		}
		if s.Token() > at.Add(maxAhead) {
			return 0, errs.InvalidArgument{Field: "token", Reason: "lies in the future"}
		}
		t := time.NewTimer(time.Millisecond)
		select {
		case <-t.C:
		case <-ctx.Done():
			t.Stop()
			return 0, ctx.Err()
		}
	}
}

// Route returns what the client knows of the range that holds key, asking PD
// on a miss. It may be stale; it is for people and tests.
func (c *Client) Route(ctx context.Context, key []byte) (*pdpb.Route, error) {
	ctx, cancel := c.bound(ctx)
	defer cancel()
	rt, err := c.routes.Locate(ctx, key)
	if err != nil {
		return nil, fmt.Errorf("client: route: %w", err)
	}
	out := &pdpb.Route{Range: rt.Proto()}
	for _, rep := range rt.Replicas {
		if rep.GetStoreId() == rt.Leader {
			out.Leader = &metapb.Leader{StoreId: rt.Leader, ReplicaId: rep.GetReplicaId()}
		}
	}
	return out, nil
}

// bound gives ctx the default deadline if it has none.
func (c *Client) bound(ctx context.Context) (context.Context, context.CancelFunc) {
	if _, ok := ctx.Deadline(); ok {
		return ctx, func() {}
	}
	return context.WithTimeout(ctx, c.o.Timeout)
}
