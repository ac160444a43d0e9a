package client

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"iter"
	"time"

	"github.com/ridgekv/ridge/client/internal/retry"
	"github.com/ridgekv/ridge/client/internal/route"
	"github.com/ridgekv/ridge/proto/errs"
	"github.com/ridgekv/ridge/proto/keys"
	kvpb "github.com/ridgekv/ridge/proto/ridge/kv/v1"
	"github.com/ridgekv/ridge/proto/ts"
)

// Scan yields the rows of span in ascending order. The whole scan is one
// snapshot, unless it is Stale. It ends with the span, the limit, or after it
// yielded an error; an errs.TooOld carries the key at which another scan could
// go on. ctx bounds the scan as a whole, Options.Timeout each page.
func (c *Client) Scan(ctx context.Context, span keys.Span, opts ...Option) iter.Seq2[Row, error] {
	return rowsOf(c.ScanPages(ctx, span, false, opts...))
}

// ReverseScan yields the rows of span in descending order. See Scan.
func (c *Client) ReverseScan(
	ctx context.Context, span keys.Span, opts ...Option,
) iter.Seq2[Row, error] {
	return rowsOf(c.ScanPages(ctx, span, true, opts...))
}

func rowsOf(pages iter.Seq2[Page, error]) iter.Seq2[Row, error] {
	return func(yield func(Row, error) bool) {
		for p, err := range pages {
			if err != nil {
				yield(Row{}, err)
				return
			}
			for _, r := range p.Rows {
				if !yield(r, nil) {
					return
				}
			}
		}
	}
}

// ScanPages is Scan, or ReverseScan, page by page. Pages may be empty. The last
// page has More set when the limit ended the scan before its span.
func (c *Client) ScanPages(
	ctx context.Context, span keys.Span, reverse bool, opts ...Option,
) iter.Seq2[Page, error] {
	return func(yield func(Page, error) bool) {
		s, err := c.apply(opts, bitConsistency|bitLimit|bitKeysOnly|bitPrefix|bitPageBytes)
		if err != nil {
			yield(Page{}, fmt.Errorf("client: scan: %w", err))
			return
		}
		if len(s.prefix) > 0 {
			span = span.Intersect(keys.Prefix(s.prefix))
		}
		if !span.Valid() || s.given&bitLimit != 0 && s.limit == 0 {
			return
		}
		sc := scan{c: c, s: s, left: span, reverse: reverse}
		for !sc.done {
			began := time.Now()
			page, err := sc.page(ctx)
			c.metrics.done("scan page", began, err)
			if err != nil {
				yield(Page{}, fmt.Errorf("client: scan %s: %w", span, err))
				return
			}
			if !yield(page, nil) {
				return
			}
		}
	}
}

// scan is one scan under way. left is what has not been yielded yet.
type scan struct {
	c       *Client
	s       settings
	left    keys.Span
	reverse bool
	yielded uint64
	done    bool
}

// page reads the next page.
func (sc *scan) page(ctx context.Context) (Page, error) {
	ctx, cancel := sc.c.bound(ctx)
	defer cancel()
	log := retry.NewLog(sc.c.metrics.retried)
	for {
		rt, err := sc.c.locate(ctx, log, sc.edge())
		if err != nil {
			return Page{}, err
		}
		part := rt.Span.Intersect(sc.left)
		if err := sc.choose(ctx, part); err != nil {
			return Page{}, err
		}
		resp, err := sc.ask(ctx, log, rt, part)
		if errors.Is(err, errMoved) {
			continue
		}
		if err != nil {
			return Page{}, sc.resumable(err)
		}
		page, again, err := sc.take(resp, part)
		if !again {
			return page, err
		}
		if err := sc.pin(ctx); err != nil {
			return Page{}, err
		}
	}
}

// edge is a key in the range that comes next.
func (sc *scan) edge() []byte {
	if !sc.reverse {
		return sc.left.Start
	}
	return before(sc.left.End)
}

// before returns the greatest key below end that is not longer than a key may
// be; empty end means the greatest key of all.
func before(end []byte) []byte {
	if n := len(end); n > 0 && end[n-1] == 0 {
		return bytes.Clone(end[:n-1])
	}
	k := bytes.Clone(end)
	if n := len(k); n > 0 {
		k[n-1]--
	}
	for len(k) < keys.MaxKeySizeBytes {
		k = append(k, 0xff)
	}
	return k
}

// choose takes a timestamp for a linearizable scan over several ranges. A scan
// that may be answered by one page needs none.
func (sc *scan) choose(ctx context.Context, part keys.Span) error {
	if sc.s.consistency.level != linearizable || part.Equal(sc.left) {
		return nil
	}
	return sc.pin(ctx)
}

// pin makes the rest of a linearizable scan a snapshot. Nothing has been
// yielded yet.
func (sc *scan) pin(ctx context.Context) error {
	at, err := sc.c.freshTimestamp(ctx, sc.s.session)
	if err != nil {
		return err
	}
	sc.s.consistency = Snapshot(at)
	return nil
}

func (sc *scan) ask(
	ctx context.Context, log *retry.Log, rt *route.Route, part keys.Span,
) (*kvpb.ScanResponse, error) {
	limit := uint64(0)
	if sc.s.limit > 0 {
		limit = sc.s.limit - sc.yielded
	}
	resp, err := sc.c.toRange(ctx, log, rt, request{
		key: sc.edge(), session: sc.s.session, anywhere: sc.s.consistency.level == stale,
		build: func(h *kvpb.Header) *kvpb.Request {
			return &kvpb.Request{Body: &kvpb.Request_Scan{Scan: &kvpb.ScanRequest{
				Header: h, Start: part.Start, End: part.End, Limit: limit, Reverse: sc.reverse,
				KeysOnly: sc.s.keysOnly, PageBytes: sc.s.pageBytes,
				Consistency: sc.s.consistency.proto(),
			}}}
		},
	})
	return resp.GetScan(), err
}

// take moves the scan behind the page. again asks to read it once more at a
// timestamp: it was read at the newest state of the range, it is not the last,
// and the store did not say as of when.
func (sc *scan) take(r *kvpb.ScanResponse, part keys.Span) (page Page, again bool, err error) {
	rows := r.GetRows()
	full := sc.s.limit > 0 && sc.yielded+uint64(len(rows)) >= sc.s.limit
	if full {
		rows = rows[:sc.s.limit-sc.yielded]
	}
	rest := sc.rest(r, part)
	if full && len(rows) > 0 && (len(rows) < len(r.GetRows()) || r.GetMore()) {
		rest = sc.behind(rows[len(rows)-1].GetKey())
	}
	page.More = rest.Valid()
	if page.More && (!sc.left.ContainsSpan(rest) || sc.left.Equal(rest)) {
		return page, false, errs.Unavailable{Part: "progress of the scan"}
	}
	page.SnapshotTS = ts.Timestamp(r.GetSnapshotTs())
	if page.More && !full && sc.s.consistency.level == linearizable {
		if page.SnapshotTS == 0 {
			return Page{}, true, nil
		}
		sc.s.consistency = Snapshot(page.SnapshotTS)
	}
	if sc.s.consistency.level == snapshot {
		page.SnapshotTS = sc.s.consistency.at
	}
	page.Rows = make([]Row, len(rows))
	for i, row := range rows {
		page.Rows[i] = toRow(row)
	}
	page.ResumeKey = sc.resumeKey(rest, page.More)
	sc.yielded += uint64(len(rows))
	sc.left, sc.done = rest, full || !page.More
	return page, false, nil
}

// rest is what is left of the scan after the answer r for part; it is not
// Valid when nothing is.
func (sc *scan) rest(r *kvpb.ScanResponse, part keys.Span) keys.Span {
	nothing := keys.Span{Start: []byte{1}, End: []byte{0}}
	switch {
	case r.GetMore() && sc.reverse:
		return keys.Span{Start: sc.left.Start, End: r.GetResumeKey()}
	case r.GetMore():
		return keys.Span{Start: r.GetResumeKey(), End: sc.left.End}
	case sc.reverse && len(part.Start) > 0:
		return keys.Span{Start: sc.left.Start, End: part.Start}
	case !sc.reverse && len(part.End) > 0:
		return keys.Span{Start: part.End, End: sc.left.End}
	}
	return nothing
}

// behind is what is left after the row of key was yielded.
func (sc *scan) behind(key []byte) keys.Span {
	if sc.reverse {
		return keys.Span{Start: sc.left.Start, End: key}
	}
	return keys.Span{Start: keys.Next(key), End: sc.left.End}
}

func (sc *scan) resumeKey(rest keys.Span, more bool) []byte {
	switch {
	case !more:
		return nil
	case sc.reverse:
		return rest.End
	default:
		return rest.Start
	}
}

// resumable adds to a TooOld where the scan stands.
func (sc *scan) resumable(err error) error {
	e, ok := errors.AsType[errs.TooOld](err)
	if !ok {
		return err
	}
	if len(e.ResumeKey) == 0 {
		e.ResumeKey = sc.resumeKey(sc.left, true)
	}
	return e
}
