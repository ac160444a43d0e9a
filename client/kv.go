package client

import (
	"context"
	"fmt"
	"time"

	"github.com/ridgekv/ridge/client/internal/retry"
	"github.com/ridgekv/ridge/proto/errs"
	"github.com/ridgekv/ridge/proto/keys"
	kvpb "github.com/ridgekv/ridge/proto/ridge/kv/v1"
	"github.com/ridgekv/ridge/proto/ts"
)

// Get returns the row of key and whether there is one.
func (c *Client) Get(ctx context.Context, key []byte, opts ...Option) (Row, bool, error) {
	a, err := c.plain(ctx, plainCall{op: opGet, key: key}, opts)
	if err != nil || !a.Found {
		return Row{}, false, err
	}
	return Row{
		Key: key, Value: a.Value,
		CommitTS: ts.Timestamp(a.CommitTS), ExpiresAt: ts.Timestamp(a.ExpiresAt),
	}, true, nil
}

// Put writes value under key and returns the commit timestamp.
func (c *Client) Put(ctx context.Context, key, value []byte, opts ...Option) (ts.Timestamp, error) {
	a, err := c.plain(ctx, plainCall{op: opPut, key: key, value: value}, opts)
	return ts.Timestamp(a.CommitTS), err
}

// Delete removes key, whether it exists or not, and returns the commit
// timestamp.
func (c *Client) Delete(ctx context.Context, key []byte, opts ...Option) (ts.Timestamp, error) {
	a, err := c.plain(ctx, plainCall{op: opDelete, key: key}, opts)
	return ts.Timestamp(a.CommitTS), err
}

// CompareAndSwap writes when the key is what v expects. A swap that finds
// something else is no error: the result tells what was there.
func (c *Client) CompareAndSwap(ctx context.Context, v Swap, opts ...Option) (SwapResult, error) {
	var resp *kvpb.CompareAndSwapResponse
	err := c.keyed(ctx, "compare and swap", v.Key, opts, bitTTL, func(s settings) (request, error) {
		q := request{write: true}
		q.build = func(h *kvpb.Header) *kvpb.Request {
			return &kvpb.Request{Body: &kvpb.Request_CompareAndSwap{
				CompareAndSwap: &kvpb.CompareAndSwapRequest{
					Header: h, Key: v.Key, ExpectedAbsent: v.ExpectAbsent, Expected: v.Expected,
					Delete: v.Delete, Value: v.Value, TtlMs: millis(s.ttl),
				},
			}}
		}
		return q, checkValue(v.Value)
	}, func(r *kvpb.Response) { resp = r.GetCompareAndSwap() })
	if err != nil {
		return SwapResult{}, err
	}
	out := SwapResult{
		Swapped: resp.GetSwapped(), CommitTS: ts.Timestamp(resp.GetCommitTs()),
		Found: resp.GetFound(), Current: toRow(resp.GetCurrent()),
	}
	if out.Found {
		out.Current.Key = v.Key
	}
	return out, nil
}

// keyed is for the calls on one key that are not plain: options, checks, deadline, the way
// to the range, and the words of the error.
func (c *Client) keyed(
	ctx context.Context, op string, key []byte, opts []Option, allowed optionBit,
	prepare func(settings) (request, error), take func(*kvpb.Response),
) (err error) {
	began := time.Now()
	defer func() { c.metrics.done(op, began, err) }()
	ctx, cancel := c.bound(ctx)
	defer cancel()
	s, err := c.apply(opts, allowed)
	if err == nil {
		err = checkKey(key)
	}
	if err == nil {
		var q request
		if q, err = prepare(s); err == nil {
			q.key, q.session = key, s.session
			var resp *kvpb.Response
			log := retry.NewLogSince(began, c.metrics.retried)
			if resp, err = c.single(ctx, log, q, nil); err == nil {
				take(resp)
				return nil
			}
		}
	}
	return fmt.Errorf("client: %s %s: %w", op, keys.Format(key), err)
}

func checkKey(key []byte) error {
	if len(key) == 0 {
		return errs.InvalidArgument{Field: "key", Reason: "it is empty"}
	}
	if len(key) > keys.MaxKeySizeBytes {
		return errs.TooLarge{
			What: "key", SizeBytes: uint64(len(key)), Limit: keys.MaxKeySizeBytes,
		}
	}
	return nil
}

func checkValue(value []byte) error {
	if len(value) > keys.MaxValueSizeBytes {
		return errs.TooLarge{
			What: "value", SizeBytes: uint64(len(value)), Limit: keys.MaxValueSizeBytes,
		}
	}
	return nil
}

func toRow(r *kvpb.Row) Row {
	return Row{
		Key: r.GetKey(), Value: r.GetValue(),
		CommitTS: ts.Timestamp(r.GetCommitTs()), ExpiresAt: ts.Timestamp(r.GetExpiresAt()),
	}
}

func millis(d time.Duration) uint64 { return uint64(d.Milliseconds()) }
