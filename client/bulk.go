package client

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/ridgekv/ridge/client/internal/retry"
	"github.com/ridgekv/ridge/proto/errs"
	"github.com/ridgekv/ridge/proto/keys"
	kvpb "github.com/ridgekv/ridge/proto/ridge/kv/v1"
	"github.com/ridgekv/ridge/proto/ts"
)

const (
	// maxBulkMutations and maxBulkBytes bound one request of a bulk. They are
	// small against a log entry, so that a bulk does not hold up other writers.
	maxBulkMutations = 1000
	maxBulkBytes     = 1 << 20
)

// BulkWrite applies the mutations range by range, in parallel. It is not
// atomic; mutations of one key keep their order. After an error the result
// tells what is applied, what is not, and what is unknown, so that a caller
// can go on with BulkResult.Pending.
func (c *Client) BulkWrite(
	ctx context.Context, mutations []Mutation, opts ...Option,
) (result BulkResult, err error) {
	began := time.Now()
	defer func() { c.metrics.done("bulk write", began, err) }()
	ctx, cancel := c.bound(ctx)
	defer cancel()
	b := bulk{c: c, mutations: mutations, fate: make([]fate, len(mutations))}
	b.s, err = c.apply(opts, 0)
	for i := 0; err == nil && i < len(mutations); i++ {
		err = mutations[i].check()
	}
	if err == nil {
		err = b.run(ctx)
	}
	if err != nil {
		err = fmt.Errorf("client: bulk write of %d mutations: %w", len(mutations), err)
	}
	return b.result(), err
}

type fate byte

const (
	pending fate = iota
	applied
	unknown
)

// bulk is one BulkWrite. Each position of mutations belongs to one goroutine
// at a time, which alone touches its fate.
type bulk struct {
	c         *Client
	s         settings
	mutations []Mutation
	fate      []fate

	mu struct {
		sync.Mutex
		commit ts.Timestamp
	}
}

// run makes passes over what is pending until nothing is: a pass leaves behind
// what fell into ranges that changed.
func (b *bulk) run(ctx context.Context) error {
	log := retry.NewLog(b.c.metrics.retried)
	for {
		groups, err := b.c.groups(ctx, log, len(b.mutations),
			func(i int) []byte { return b.mutations[i].Key },
			func(i int) bool { return b.fate[i] != pending })
		if err != nil || len(groups) == 0 {
			return err
		}
		err = b.c.parallel(len(groups), func(i int) error {
			l := log
			if len(groups) > 1 {
				l = log.Fork()
			}
			return b.write(ctx, l, groups[i])
		})
		if err != nil {
			return err
		}
	}
}

// write applies the members of one range, request after request, which keeps
// the order of mutations of one key.
func (b *bulk) write(ctx context.Context, log *retry.Log, g group) error {
	for len(g.members) > 0 {
		n, size := 0, 0
		for n < len(g.members) && n < maxBulkMutations && (n == 0 || size < maxBulkBytes) {
			size += b.mutations[g.members[n]].size()
			n++
		}
		left, err := b.send(ctx, log, g, g.members[:n])
		if errors.Is(err, errMoved) {
			return nil
		}
		if err != nil {
			if IsUnknown(err) {
				b.mark(left, unknown)
			}
			return err
		}
		g.members = g.members[n:]
	}
	return nil
}

// send applies one chunk; left is what is not known to be applied. A store may
// answer with an error after a part: that part is not sent again.
func (b *bulk) send(
	ctx context.Context, log *retry.Log, g group, chunk []int,
) (left []int, err error) {
	left = chunk
	take := func(resp *kvpb.Response) {
		r := resp.GetBulkWrite()
		n := min(int(r.GetAppliedCount()), len(left))
		b.mark(left[:n], applied)
		left = left[n:]
		b.mu.Lock()
		b.mu.commit = max(b.mu.commit, ts.Timestamp(r.GetCommitTs()))
		b.mu.Unlock()
	}
	for len(left) > 0 {
		before := len(left)
		resp, err := b.c.toRange(ctx, log, g.rt, request{
			key: b.mutations[left[0]].Key, session: b.s.session, write: true, partly: take,
			build: func(h *kvpb.Header) *kvpb.Request { return b.request(h, left) },
		})
		if err != nil {
			return left, err
		}
		take(resp)
		if len(left) == before {
			return left, errs.Unavailable{Part: "progress of the bulk write"}
		}
	}
	return nil, nil
}

func (b *bulk) request(h *kvpb.Header, members []int) *kvpb.Request {
	wire := protoMutations(len(members), func(i int) *Mutation { return &b.mutations[members[i]] })
	return &kvpb.Request{Body: &kvpb.Request_BulkWrite{
		BulkWrite: &kvpb.BulkWriteRequest{Header: h, Mutations: wire},
	}}
}

func (b *bulk) mark(members []int, f fate) {
	for _, m := range members {
		b.fate[m] = f
	}
}

func (b *bulk) result() BulkResult {
	var r BulkResult
	for i, f := range b.fate {
		switch f {
		case applied:
			r.Applied++
		case unknown:
			r.Unknown = append(r.Unknown, i)
		case pending:
			r.Pending = append(r.Pending, i)
		}
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	r.CommitTS = b.mu.commit
	return r
}

// DeleteRange removes every key of span, entry by entry and range by range, in
// order. It is not atomic. After an error, or at the limit, the result tells
// where to go on. Its deadline holds for each step, not for the whole.
func (c *Client) DeleteRange(
	ctx context.Context, span keys.Span, opts ...Option,
) (result DeleteRangeResult, err error) {
	began := time.Now()
	defer func() { c.metrics.done("delete range", began, err) }()
	s, err := c.apply(opts, bitLimit)
	if err == nil && !span.Valid() {
		err = errs.InvalidArgument{Field: "span", Reason: "it holds no key"}
	}
	result.ResumeKey = span.Start
	for more := true; err == nil && more; {
		more, err = c.deleteStep(ctx, s, span, &result)
		more = more && (s.limit == 0 || result.Deleted < s.limit)
	}
	if err != nil {
		return result, fmt.Errorf("client: delete range %s: %w", span, err)
	}
	return result, nil
}

// deleteStep removes one entry's worth of keys from the range that holds the
// resume key.
func (c *Client) deleteStep(
	ctx context.Context, s settings, span keys.Span, result *DeleteRangeResult,
) (more bool, err error) {
	ctx, cancel := c.bound(ctx)
	defer cancel()
	log := retry.NewLog(c.metrics.retried)
	for {
		rt, err := c.locate(ctx, log, result.ResumeKey)
		if err != nil {
			return false, err
		}
		part := rt.Span.Intersect(keys.Span{Start: result.ResumeKey, End: span.End})
		limit := uint32(0)
		if s.limit > 0 {
			limit = uint32(min(s.limit-result.Deleted, 1<<31))
		}
		resp, err := c.toRange(ctx, log, rt, request{
			key: part.Start, session: s.session, write: true,
			build: func(h *kvpb.Header) *kvpb.Request {
				return &kvpb.Request{Body: &kvpb.Request_DeleteRange{
					DeleteRange: &kvpb.DeleteRangeRequest{
						Header: h, Start: part.Start, End: part.End, Limit: limit,
					},
				}}
			},
		})
		if errors.Is(err, errMoved) {
			continue
		}
		if err != nil {
			return false, err
		}
		return result.took(resp.GetDeleteRange(), part, span)
	}
}

// took adds one answer for part to the result and reports whether some of span
// is left.
func (d *DeleteRangeResult) took(
	r *kvpb.DeleteRangeResponse, part, span keys.Span,
) (more bool, err error) {
	d.Deleted += r.GetDeletedCount()
	d.CommitTS = max(d.CommitTS, ts.Timestamp(r.GetCommitTs()))
	switch resume := r.GetResumeKey(); {
	case len(resume) == 0:
		more = keys.CompareEnds(part.End, span.End) < 0
		d.ResumeKey = part.End
	case r.GetDeletedCount() == 0 && bytes.Equal(resume, d.ResumeKey):
		return false, errs.Unavailable{Part: "progress of the deletion"}
	default:
		more, d.ResumeKey = true, resume
	}
	if !more {
		d.ResumeKey = nil
	}
	return more, nil
}
