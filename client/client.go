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
	"iter"
	"sync/atomic"
	"time"

	"github.com/ridgekv/ridge/client/pdclient"
	"github.com/ridgekv/ridge/proto/errs"
	"github.com/ridgekv/ridge/proto/keys"
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
	// More tells that the scan goes on at ResumeKey: inclusive for forward
	// scans, the exclusive upper bound for reverse scans.
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
	o  Options
	pd *pdclient.Client
}

var errNotBuilt = errors.New("client: not built yet")

// Open returns a client of the cluster behind o.PD.
func Open(ctx context.Context, o Options) (*Client, error) {
	if err := o.Validate(); err != nil {
		return nil, err
	}
	return &Client{o: o.withDefaults(), pd: o.PDClient}, nil
}

// Close ends every stream and connection. Calls under way fail; writes that
// were sent end with errs.UnknownOutcome. It is idempotent.
func (c *Client) Close() error { return nil }

// PD is the client of the placement driver that c uses.
func (c *Client) PD() *pdclient.Client { return c.pd }

// Session is the session of calls that name no other.
func (c *Client) Session() *Session { return nil }

// Timestamp returns a timestamp for Snapshot reads: everything acknowledged
// before this call is at or below it.
func (c *Client) Timestamp(ctx context.Context) (ts.Timestamp, error) { return 0, errNotBuilt }

// Route returns what the client knows of the range that holds key, asking PD
// on a miss. It may be stale; it is for people and tests.
func (c *Client) Route(ctx context.Context, key []byte) (*pdpb.Route, error) {
	return nil, errNotBuilt
}

// Get returns the row of key and whether there is one.
func (c *Client) Get(ctx context.Context, key []byte, opts ...Option) (Row, bool, error) {
	return Row{}, false, errNotBuilt
}

// Put writes value under key and returns the commit timestamp.
func (c *Client) Put(ctx context.Context, key, value []byte, opts ...Option) (ts.Timestamp, error) {
	return 0, errNotBuilt
}

// Delete removes key, whether it exists or not, and returns the commit
// timestamp.
func (c *Client) Delete(ctx context.Context, key []byte, opts ...Option) (ts.Timestamp, error) {
	return 0, errNotBuilt
}

// CompareAndSwap writes when the key is what s expects.
func (c *Client) CompareAndSwap(ctx context.Context, s Swap, opts ...Option) (SwapResult, error) {
	return SwapResult{}, errNotBuilt
}

// BatchGet returns the rows that exist, in the order of keys. Keys of several
// ranges are read at one timestamp.
func (c *Client) BatchGet(ctx context.Context, keys [][]byte, opts ...Option) ([]Row, error) {
	return nil, errNotBuilt
}

// BatchWrite applies all mutations or none. They must fall into one range.
func (c *Client) BatchWrite(
	ctx context.Context, mutations []Mutation, opts ...Option,
) (ts.Timestamp, error) {
	return 0, errNotBuilt
}

// BulkWrite applies the mutations range by range, in parallel. It is not
// atomic; mutations of one key keep their order. After an error the result
// tells what is applied, what is not, and what is unknown.
func (c *Client) BulkWrite(
	ctx context.Context, mutations []Mutation, opts ...Option,
) (BulkResult, error) {
	return BulkResult{}, errNotBuilt
}

// Scan yields the rows of span in ascending order.
func (c *Client) Scan(ctx context.Context, span keys.Span, opts ...Option) iter.Seq2[Row, error] {
	return func(yield func(Row, error) bool) { yield(Row{}, errNotBuilt) }
}

// ReverseScan yields the rows of span in descending order.
func (c *Client) ReverseScan(
	ctx context.Context, span keys.Span, opts ...Option,
) iter.Seq2[Row, error] {
	return func(yield func(Row, error) bool) { yield(Row{}, errNotBuilt) }
}

// ScanPages is Scan, or ReverseScan, page by page.
func (c *Client) ScanPages(
	ctx context.Context, span keys.Span, reverse bool, opts ...Option,
) iter.Seq2[Page, error] {
	return func(yield func(Page, error) bool) { yield(Page{}, errNotBuilt) }
}

// DeleteRange removes every key of span, entry by entry. It is not atomic.
// After an error the result tells where to go on.
func (c *Client) DeleteRange(
	ctx context.Context, span keys.Span, opts ...Option,
) (DeleteRangeResult, error) {
	return DeleteRangeResult{}, errNotBuilt
}
