// Package gateway answers for keys of other stores, through the smart client.
// It is the only room of a store that uses it.
//
// Law: what the gateway sends is marked as forwarded, and what carries the mark
// never comes here. So a request takes at most one detour.
package gateway

import (
	"context"
	"crypto/tls"
	"fmt"
	"log/slog"
	"time"

	"github.com/ridgekv/ridge/client"
	"github.com/ridgekv/ridge/client/pdclient"
	"github.com/ridgekv/ridge/proto/errs"
	"github.com/ridgekv/ridge/proto/keys"
	kvpb "github.com/ridgekv/ridge/proto/ridge/kv/v1"
	"github.com/ridgekv/ridge/proto/ts"
)

// maxBatchGetBytes bounds the answer of a BatchGet, as a store bounds its own.
const maxBatchGetBytes = 4 << 20

// Options say how the gateway reaches the cluster.
type Options struct {
	// PD is the store's own client of PD; Close leaves it open. Required.
	PD *pdclient.Client
	// TLS is the client side of connections to other stores. Default: none.
	TLS *tls.Config
	// Logger receives one line per change of state. Default: discarded.
	Logger *slog.Logger
}

// Gateway turns requests into calls of the smart client and its answers back.
type Gateway struct{ client *client.Client }

// Open returns a gateway. It connects to nothing before the first request.
func Open(ctx context.Context, o Options) (*Gateway, error) {
	c, err := client.Open(ctx, client.Options{
		PDClient: o.PD, Lazy: true, TLS: o.TLS, Forwarded: true, Logger: o.Logger,
		MaxBatchGetBytes: maxBatchGetBytes,
	})
	if err != nil {
		return nil, fmt.Errorf("gateway: %w", err)
	}
	return &Gateway{client: c}, nil
}

// Close ends all calls under way.
func (g *Gateway) Close() error { return g.client.Close() }

// Do answers one request. Scans answer with their first page.
func (g *Gateway) Do(ctx context.Context, request *kvpb.Request) *kvpb.Response {
	out := &kvpb.Response{Id: request.GetId()}
	switch b := request.GetBody().(type) {
	case *kvpb.Request_Get:
		out.Body = &kvpb.Response_Get{Get: g.get(ctx, b.Get)}
	case *kvpb.Request_Put:
		out.Body = &kvpb.Response_Put{Put: g.put(ctx, b.Put)}
	case *kvpb.Request_Delete:
		out.Body = &kvpb.Response_Delete{Delete: g.delete(ctx, b.Delete)}
	case *kvpb.Request_CompareAndSwap:
		out.Body = &kvpb.Response_CompareAndSwap{CompareAndSwap: g.swap(ctx, b.CompareAndSwap)}
	case *kvpb.Request_BatchGet:
		out.Body = &kvpb.Response_BatchGet{BatchGet: g.batchGet(ctx, b.BatchGet)}
	case *kvpb.Request_BatchWrite:
		out.Body = &kvpb.Response_BatchWrite{BatchWrite: g.batchWrite(ctx, b.BatchWrite)}
	case *kvpb.Request_BulkWrite:
		out.Body = &kvpb.Response_BulkWrite{BulkWrite: g.bulkWrite(ctx, b.BulkWrite)}
	case *kvpb.Request_DeleteRange:
		out.Body = &kvpb.Response_DeleteRange{DeleteRange: g.deleteRange(ctx, b.DeleteRange)}
	default:
		err := errs.InvalidArgument{Field: "body", Reason: "cannot be forwarded"}
		out.Body = &kvpb.Response_Error{Error: errs.ToProto(err)}
	}
	return out
}

func (g *Gateway) get(ctx context.Context, r *kvpb.GetRequest) *kvpb.GetResponse {
	session := sessionOf(r.GetHeader())
	opts, err := readOptions(session, r.GetConsistency())
	if err != nil {
		return &kvpb.GetResponse{Error: errs.ToProto(err)}
	}
	row, found, err := g.client.Get(ctx, r.GetKey(), opts...)
	out := &kvpb.GetResponse{
		Error: errs.ToProto(err), Found: found, Token: uint64(session.Token()),
	}
	if found {
		out.Row = rowProto(row)
	}
	return out
}

func (g *Gateway) put(ctx context.Context, r *kvpb.PutRequest) *kvpb.PutResponse {
	opts := []client.Option{client.WithSession(sessionOf(r.GetHeader()))}
	if r.GetTtlMs() != 0 {
		opts = append(opts, client.WithTTL(millis(r.GetTtlMs())))
	}
	at, err := g.client.Put(ctx, r.GetKey(), r.GetValue(), opts...)
	return &kvpb.PutResponse{Error: errs.ToProto(err), CommitTs: uint64(at)}
}

func (g *Gateway) delete(ctx context.Context, r *kvpb.DeleteRequest) *kvpb.DeleteResponse {
	at, err := g.client.Delete(ctx, r.GetKey(), client.WithSession(sessionOf(r.GetHeader())))
	return &kvpb.DeleteResponse{Error: errs.ToProto(err), CommitTs: uint64(at)}
}

func (g *Gateway) swap(
	ctx context.Context, r *kvpb.CompareAndSwapRequest,
) *kvpb.CompareAndSwapResponse {
	session := sessionOf(r.GetHeader())
	opts := []client.Option{client.WithSession(session)}
	if r.GetTtlMs() != 0 {
		opts = append(opts, client.WithTTL(millis(r.GetTtlMs())))
	}
	res, err := g.client.CompareAndSwap(ctx, client.Swap{
		Key: r.GetKey(), ExpectAbsent: r.GetExpectedAbsent(), Expected: r.GetExpected(),
		Delete: r.GetDelete(), Value: r.GetValue(),
	}, opts...)
	out := &kvpb.CompareAndSwapResponse{
		Error: errs.ToProto(err), Swapped: res.Swapped, CommitTs: uint64(res.CommitTS),
		Found: res.Found, Token: uint64(session.Token()),
	}
	if res.Found {
		out.Current = rowProto(res.Current)
	}
	return out
}

func (g *Gateway) batchGet(ctx context.Context, r *kvpb.BatchGetRequest) *kvpb.BatchGetResponse {
	session := sessionOf(r.GetHeader())
	opts, err := readOptions(session, r.GetConsistency())
	if err != nil {
		return &kvpb.BatchGetResponse{Error: errs.ToProto(err)}
	}
	rows, err := g.client.BatchGet(ctx, r.GetKeys(), opts...)
	return &kvpb.BatchGetResponse{
		Error: errs.ToProto(err), Rows: rowProtos(rows), Token: uint64(session.Token()),
	}
}

func (g *Gateway) batchWrite(
	ctx context.Context, r *kvpb.BatchWriteRequest,
) *kvpb.BatchWriteResponse {
	at, err := g.client.BatchWrite(ctx, mutations(r.GetMutations()),
		client.WithSession(sessionOf(r.GetHeader())))
	return &kvpb.BatchWriteResponse{Error: errs.ToProto(err), CommitTs: uint64(at)}
}

func (g *Gateway) bulkWrite(
	ctx context.Context, r *kvpb.BulkWriteRequest,
) *kvpb.BulkWriteResponse {
	res, err := g.client.BulkWrite(ctx, mutations(r.GetMutations()),
		client.WithSession(sessionOf(r.GetHeader())))
	leading := len(r.GetMutations())
	for _, open := range [][]int{res.Pending, res.Unknown} {
		for _, position := range open {
			leading = min(leading, position)
		}
	}
	if err != nil && len(res.Pending) == 0 && len(res.Unknown) == 0 {
		leading = 0
	}
	return &kvpb.BulkWriteResponse{
		Error: errs.ToProto(err), AppliedCount: uint64(leading), CommitTs: uint64(res.CommitTS),
	}
}

func (g *Gateway) deleteRange(
	ctx context.Context, r *kvpb.DeleteRangeRequest,
) *kvpb.DeleteRangeResponse {
	opts := []client.Option{client.WithSession(sessionOf(r.GetHeader()))}
	if r.GetLimit() != 0 {
		opts = append(opts, client.WithLimit(int(r.GetLimit())))
	}
	span := keys.Span{Start: r.GetStart(), End: r.GetEnd()}
	res, err := g.client.DeleteRange(ctx, span, opts...)
	return &kvpb.DeleteRangeResponse{
		Error: errs.ToProto(err), DeletedCount: res.Deleted, ResumeKey: res.ResumeKey,
		CommitTs: uint64(res.CommitTS),
	}
}

// Scan sends every page of a scan. Errors of the scan are sent, errors of send
// are returned.
func (g *Gateway) Scan(
	ctx context.Context, r *kvpb.ScanRequest, send func(*kvpb.ScanResponse) error,
) error {
	session := sessionOf(r.GetHeader())
	opts, err := readOptions(session, r.GetConsistency())
	if err != nil {
		return send(&kvpb.ScanResponse{Error: errs.ToProto(err)})
	}
	if r.GetLimit() != 0 {
		opts = append(opts, client.WithLimit(int(min(r.GetLimit(), 1<<31))))
	}
	if r.GetKeysOnly() {
		opts = append(opts, client.WithKeysOnly())
	}
	if r.GetPageBytes() != 0 {
		opts = append(opts, client.WithPageBytes(int(r.GetPageBytes())))
	}
	span := keys.Span{Start: r.GetStart(), End: r.GetEnd()}
	for page, err := range g.client.ScanPages(ctx, span, r.GetReverse(), opts...) {
		out := &kvpb.ScanResponse{
			Error: errs.ToProto(err), Rows: rowProtos(page.Rows), More: page.More,
			ResumeKey: page.ResumeKey, SnapshotTs: uint64(page.SnapshotTS),
			Token: uint64(session.Token()),
		}
		if err := send(out); err != nil {
			return err
		}
	}
	return nil
}

// sessionOf carries the caller's token through the call.
func sessionOf(h *kvpb.Header) *client.Session {
	return client.NewSession(ts.Timestamp(h.GetToken()))
}

// readOptions translates a consistency level.
func readOptions(s *client.Session, c *kvpb.Consistency) ([]client.Option, error) {
	opts := []client.Option{client.WithSession(s)}
	switch c.GetLevel() {
	case kvpb.ConsistencyLevel_CONSISTENCY_LEVEL_UNSPECIFIED,
		kvpb.ConsistencyLevel_CONSISTENCY_LEVEL_LINEARIZABLE:
		return opts, nil
	case kvpb.ConsistencyLevel_CONSISTENCY_LEVEL_SNAPSHOT:
		at := client.Snapshot(ts.Timestamp(c.GetSnapshotTs()))
		return append(opts, client.WithConsistency(at)), nil
	case kvpb.ConsistencyLevel_CONSISTENCY_LEVEL_STALE:
		stale := client.Stale(millis(uint64(c.GetMaxStalenessMs())))
		return append(opts, client.WithConsistency(stale)), nil
	}
	return nil, errs.InvalidArgument{Field: "consistency.level", Reason: "unknown"}
}

func millis(n uint64) time.Duration {
	const most = uint64(1<<63-1) / uint64(time.Millisecond)
	return time.Duration(min(n, most)) * time.Millisecond
}

func rowProto(r client.Row) *kvpb.Row {
	return &kvpb.Row{
		Key: r.Key, Value: r.Value, CommitTs: uint64(r.CommitTS), ExpiresAt: uint64(r.ExpiresAt),
	}
}

func rowProtos(rows []client.Row) []*kvpb.Row {
	out := make([]*kvpb.Row, 0, len(rows))
	for _, r := range rows {
		out = append(out, rowProto(r))
	}
	return out
}

func mutations(ms []*kvpb.Mutation) []client.Mutation {
	out := make([]client.Mutation, 0, len(ms))
	for _, m := range ms {
		out = append(out, client.Mutation{
			Key: m.GetKey(), Delete: m.GetDelete(), Value: m.GetValue(), TTL: millis(m.GetTtlMs()),
		})
	}
	return out
}
