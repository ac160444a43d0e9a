package client

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"iter"
	"time"

	"github.com/ridgekv/ridge/client/internal/retry"
	"github.com/ridgekv/ridge/client/internal/stream"
	"github.com/ridgekv/ridge/proto/errs"
	"github.com/ridgekv/ridge/proto/keys"
	kvpb "github.com/ridgekv/ridge/proto/ridge/kv/v1"
	"github.com/ridgekv/ridge/proto/ts"
	"github.com/ridgekv/ridge/proto/wire"
)

// Scan yields the rows of span in ascending order. The whole scan is one
// snapshot, unless it is Stale. It ends with the span, the limit, or after it
// yielded an error; an errs.TooOld carries the key at which another scan could
// go on. ctx bounds the scan as a whole, Options.Timeout each page. The rows of a
// page share pieces of memory of at most 64 KiB: whoever keeps a few of many should
// clone them.
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
			page, err := sc.page(ctx, began)
			c.metrics.page(began, err)
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

// page reads the next page. Its first try goes the direct way, as that of a Get
// does.
func (sc *scan) page(ctx context.Context, began time.Time) (Page, error) {
	deadline, bounded := ctx.Deadline()
	if !bounded {
		deadline = began.Add(sc.c.o.Timeout)
	}
	a, part, first := sc.direct(ctx, began, deadline)
	if first != nil && first.err == nil {
		page, again, err := sc.take(a, part)
		if !again {
			return page, err
		}
		first = nil
	}
	if !bounded {
		var cancel context.CancelFunc
		ctx, cancel = context.WithDeadline(ctx, deadline)
		defer cancel()
	}
	return sc.tour(ctx, retry.NewLogSince(began, sc.c.metrics.retried), part, first, a != nil)
}

// tour reads the next page from whatever range holds it now. first, if set, is a
// try for part that did not succeed; pin asks to take a timestamp before.
func (sc *scan) tour(
	ctx context.Context, log *retry.Log, part keys.Span, first *firstTry, pin bool,
) (Page, error) {
	for {
		if pin {
			if err := sc.pin(ctx); err != nil {
				return Page{}, err
			}
		}
		var resp *kvpb.Response
		var err error
		if first != nil {
			resp, err = sc.goOn(ctx, log, part, first)
			first = nil
		} else {
			rt, lost := sc.c.locate(ctx, log, sc.edge())
			if lost != nil {
				return Page{}, lost
			}
			part = rt.Span.Intersect(sc.left)
			if err := sc.choose(ctx, part); err != nil {
				return Page{}, err
			}
			resp, err = sc.c.toRange(ctx, log, rt, sc.request(part))
		}
		if pin = false; errors.Is(err, errMoved) {
			continue
		}
		if err != nil {
			return Page{}, sc.resumable(err)
		}
		page, again, err := sc.take(scanAnswerOf(resp.GetScan()), part)
		if !again {
			return page, err
		}
		pin = true
	}
}

// goOn is toRange after a first try.
func (sc *scan) goOn(
	ctx context.Context, log *retry.Log, part keys.Span, first *firstTry,
) (*kvpb.Response, error) {
	t := tour{
		c: sc.c, log: log, rt: first.rt, q: sc.request(part), try: sc.c.o.TryTimeout,
		asked: []uint64{first.store}, began: log.Began(),
	}
	return t.goOn(ctx, first)
}

// scanAnswer is a page as a store gave it.
type scanAnswer struct {
	wire.ScanAnswer
	rows []Row
}

func scanAnswerOf(r *kvpb.ScanResponse) *scanAnswer {
	a := &scanAnswer{
		ScanAnswer: wire.ScanAnswer{
			More: r.GetMore(), ResumeKey: r.GetResumeKey(),
			SnapshotTS: r.GetSnapshotTs(), Token: r.GetToken(),
		},
		rows: make([]Row, len(r.GetRows())),
	}
	for i, row := range r.GetRows() {
		a.rows[i] = toRow(row)
	}
	return a
}

// decode reads an answer in its usual form, without an object for each row.
func (a *scanAnswer) decode(b []byte) bool {
	return a.Decode(b, func(of int, row wire.ScanRow) {
		if a.rows == nil {
			a.rows = make([]Row, 0, of)
		}
		a.rows = append(a.rows, Row{
			Key: row.Key, Value: row.Value,
			CommitTS: ts.Timestamp(row.CommitTS), ExpiresAt: ts.Timestamp(row.ExpiresAt),
		})
	})
}

// direct asks the store that is thought to lead for part of the scan, once. It
// returns no try when there is nobody to ask without further thought.
func (sc *scan) direct(
	ctx context.Context, began, deadline time.Time,
) (a *scanAnswer, part keys.Span, t *firstTry) {
	c := sc.c
	rt := c.routes.Find(sc.edge())
	if rt == nil || rt.Leader == 0 || c.health.isDown(rt.Leader) {
		return nil, part, nil
	}
	addr := c.routes.Known(rt.Leader)
	part = rt.Span.Intersect(sc.left)
	level := sc.s.consistency.level
	if addr == "" || level == stale || level == linearizable && !part.Equal(sc.left) {
		return nil, part, nil
	}
	t = &firstTry{rt: rt, store: rt.Leader}
	call := stream.NewCall()
	defer call.Release()
	call.Deadline = deadline
	if try := began.Add(c.o.TryTimeout); try.Before(deadline) {
		call.Deadline = try
	}
	h := wire.Header{
		RangeID: rt.RangeID, SpanEpoch: rt.Epoch, Token: uint64(sc.s.session.Token()),
		Forwarded: c.o.Forwarded, TimeoutMillis: patience(call.Deadline.Sub(began)),
	}
	call.Request = wire.AppendScan(call.Request, &h, sc.message(part))
	if t.err = c.streams.Send(ctx, t.store, addr, call); t.err != nil {
		return nil, part, t
	}
	c.health.up(t.store)
	a = &scanAnswer{}
	if !a.decode(call.Response) {
		var resp kvpb.Response
		if err := wire.DecodeResponse(call.Response, &resp); err != nil {
			t.err = &stream.Error{Sent: true, Err: err}
			return nil, part, t
		}
		if t.err = retry.FromWire(errorOf(&resp), rt.RangeID, false); t.err != nil {
			return nil, part, t
		}
		a = scanAnswerOf(resp.GetScan())
	}
	sc.s.session.saw(a.Token)
	return a, part, t
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

// request asks the range of part for it.
func (sc *scan) request(part keys.Span) request {
	return request{
		key: sc.edge(), session: sc.s.session, anywhere: sc.s.consistency.level == stale,
		build: func(h *kvpb.Header) *kvpb.Request {
			m := sc.message(part)
			m.Header = h
			return &kvpb.Request{Body: &kvpb.Request_Scan{Scan: m}}
		},
	}
}

// message is a request for part, without its header.
func (sc *scan) message(part keys.Span) *kvpb.ScanRequest {
	m := &kvpb.ScanRequest{
		Start: part.Start, End: part.End, Reverse: sc.reverse,
		KeysOnly: sc.s.keysOnly, PageBytes: sc.s.pageBytes,
	}
	if sc.s.limit > 0 {
		m.Limit = sc.s.limit - sc.yielded
	}
	if sc.s.consistency.level != linearizable {
		m.Consistency = sc.s.consistency.proto()
	}
	return m
}

// take moves the scan behind the page. again asks to read it once more at a
// timestamp: it was read at the newest state of the range, it is not the last,
// and the store did not say as of when.
func (sc *scan) take(a *scanAnswer, part keys.Span) (page Page, again bool, err error) {
	rows := a.rows
	full := sc.s.limit > 0 && sc.yielded+uint64(len(rows)) >= sc.s.limit
	if full {
		rows = rows[:sc.s.limit-sc.yielded]
	}
	rest := sc.rest(a, part)
	if full && len(rows) > 0 && (len(rows) < len(a.rows) || a.More) {
		rest = sc.behind(rows[len(rows)-1].Key)
	}
	page.More = rest.Valid()
	if page.More && (!sc.left.ContainsSpan(rest) || sc.left.Equal(rest)) {
		return page, false, errs.Unavailable{Part: "progress of the scan"}
	}
	page.SnapshotTS = ts.Timestamp(a.SnapshotTS)
	if page.More && !full && sc.s.consistency.level == linearizable {
		if page.SnapshotTS == 0 {
			return Page{}, true, nil
		}
		sc.s.consistency = Snapshot(page.SnapshotTS)
	}
	if sc.s.consistency.level == snapshot {
		page.SnapshotTS = sc.s.consistency.at
	}
	page.Rows = rows
	page.ResumeKey = sc.resumeKey(rest, page.More)
	sc.yielded += uint64(len(rows))
	sc.left, sc.done = rest, full || !page.More
	return page, false, nil
}

// rest is what is left of the scan after the answer a for part; it is not
// Valid when nothing is.
func (sc *scan) rest(a *scanAnswer, part keys.Span) keys.Span {
	nothing := keys.Span{Start: []byte{1}, End: []byte{0}}
	switch {
	case a.More && sc.reverse:
		return keys.Span{Start: sc.left.Start, End: a.ResumeKey}
	case a.More:
		return keys.Span{Start: a.ResumeKey, End: sc.left.End}
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
