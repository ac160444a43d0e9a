package client

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/ridgekv/ridge/client/internal/retry"
	"github.com/ridgekv/ridge/client/internal/route"
	"github.com/ridgekv/ridge/client/internal/stream"
	"github.com/ridgekv/ridge/proto/errs"
	"github.com/ridgekv/ridge/proto/keys"
	kvpb "github.com/ridgekv/ridge/proto/ridge/kv/v1"
	metapb "github.com/ridgekv/ridge/proto/ridge/meta/v1"
)

// errMoved tells that a route is no longer right: the keys must be looked up
// again. It never leaves the package.
var errMoved = errors.New("client: the range has changed")

// minDown is the least time for which a store that could not be reached is left
// out, even when another store says that it leads. It is twice what the attempt
// took, if that is longer: a host that is gone costs a dial timeout each time.
const minDown = 100 * time.Millisecond

// health remembers which stores could not be reached lately, for all calls. The
// number of stores bounds it.
type health struct {
	sync.Mutex
	until map[uint64]time.Time
	// marked is the length of until: nearly always 0, and then nobody locks.
	marked atomic.Int32
}

func (h *health) down(store uint64, attempt time.Duration) {
	h.Lock()
	defer h.Unlock()
	if h.until == nil {
		h.until = map[uint64]time.Time{}
	}
	h.until[store] = time.Now().Add(max(minDown, 2*attempt))
	h.marked.Store(int32(len(h.until)))
}

func (h *health) up(store uint64) {
	if h.marked.Load() == 0 {
		return
	}
	h.Lock()
	defer h.Unlock()
	delete(h.until, store)
	h.marked.Store(int32(len(h.until)))
}

func (h *health) isDown(store uint64) bool {
	if h.marked.Load() == 0 {
		return false
	}
	h.Lock()
	defer h.Unlock()
	until, ok := h.until[store]
	return ok && time.Now().Before(until)
}

// request is what is sent to one range.
type request struct {
	// key lies in the range.
	key []byte
	// write: what was sent once is never sent again.
	write bool
	// anywhere: every replica may answer.
	anywhere bool
	session  *Session
	// build makes the message for one try.
	build func(*kvpb.Header) *kvpb.Request
	// partly, if set, is told of answers that carry an error, before the next
	// try is built: part of the request may be done.
	partly func(*kvpb.Response)
}

// single sends q to whatever range holds its key, following splits. first, if
// set, is a try that was made already and did not succeed.
func (c *Client) single(
	ctx context.Context, log *retry.Log, q request, first *firstTry,
) (*kvpb.Response, error) {
	for {
		var resp *kvpb.Response
		var err error
		if first != nil {
			t := tour{
				c: c, log: log, rt: first.rt, q: q, try: c.o.TryTimeout,
				asked: []uint64{first.store}, began: log.Began(),
			}
			resp, err = t.goOn(ctx, first)
			first = nil
		} else {
			rt, lost := c.locate(ctx, log, q.key)
			if lost != nil {
				return nil, lost
			}
			resp, err = c.toRange(ctx, log, rt, q)
		}
		if !errors.Is(err, errMoved) {
			return resp, err
		}
	}
}

// locate looks key up and books the time to PD. Right after a split it may have
// to wait until PD knows the half that no store has told of.
func (c *Client) locate(ctx context.Context, log *retry.Log, key []byte) (*route.Route, error) {
	if rt := c.routes.Find(key); rt != nil {
		return rt, nil
	}
	rt, err := c.routes.Locate(ctx, key)
	for errors.Is(err, route.ErrGap) {
		cause := retry.Cause{Kind: retry.NoRange, Where: "the range of " + keys.Format(key)}
		if err := log.Wait(ctx, cause, 0, err); err != nil {
			return nil, err
		}
		rt, err = c.routes.Locate(ctx, key)
	}
	if err == nil && c.pd.ClusterID() == 0 {
		// Stores refuse those who do not know whom they speak to.
		_, err = c.pd.Members(ctx)
	}
	log.Spend(retry.Cause{Kind: retry.PD, Where: "pd"})
	if err != nil {
		return nil, log.Final(ctx, fmt.Errorf("look up the route: %w", err))
	}
	return rt, nil
}

// toRange sends q to the replicas of rt until one answers it. errMoved means
// that rt is not the range of the key any more and nothing was done.
func (c *Client) toRange(
	ctx context.Context, log *retry.Log, rt *route.Route, q request,
) (*kvpb.Response, error) {
	t := tour{c: c, log: log, rt: rt, q: q, try: c.o.TryTimeout}
	return t.run(ctx)
}

// run asks one store after the other.
func (t *tour) run(ctx context.Context) (*kvpb.Response, error) {
	for {
		store := t.next()
		if store == 0 {
			return nil, t.noReplicas(ctx)
		}
		if err := t.standInLine(ctx, store); err != nil {
			return nil, err
		}
		resp, err := t.attempt(ctx, store)
		if err == nil {
			t.log.Spend(retry.Cause{Kind: retry.Working, Where: storeName(store)})
			if !t.q.anywhere {
				t.c.routes.Led(t.rt, store)
			}
			t.q.session.saw(tokenOf(resp))
			if t.q.write {
				t.c.line.next(store)
			}
			return resp, nil
		}
		if err = t.after(ctx, store, err); err != nil {
			return nil, err
		}
	}
}

// tour is the way of one request through the replicas of a range. A round asks
// each of them at most once; between rounds it waits.
type tour struct {
	c   *Client
	log *retry.Log
	rt  *route.Route
	q   request
	// try is how long a read waits for one store; it doubles, because a read
	// may be long instead of lost.
	try time.Duration
	// asked are the stores asked in this round.
	asked []uint64
	// began is when the try under way began.
	began time.Time
	// refusal is how long the last Busy took to come back. stood: it has stood in
	// line.
	refusal time.Duration
	stood   bool
	// hints is how many were followed since the last wait.
	hints int
	// first is what the first store of this round said: it is the likeliest to
	// lead, so the wait after the round is booked to it.
	first    retry.Decision
	firstErr error
}

// next picks the store to ask: the leader, else one not asked in this round.
// Stores that are down are left out, unless all are. 0 means that the route
// names no store.
func (t *tour) next() uint64 {
	stores := t.rt.Stores(t.q.anywhere)
	if t.q.anywhere {
		rand.Shuffle(len(stores), func(i, j int) { stores[i], stores[j] = stores[j], stores[i] })
	}
	store, ok := t.unasked(stores)
	if !ok && len(stores) > 0 {
		store = stores[0]
	}
	t.asked = append(t.asked, store)
	return store
}

// unasked returns the first of stores that can still be asked in this round.
func (t *tour) unasked(stores []uint64) (uint64, bool) {
	for _, s := range stores {
		if !slices.Contains(t.asked, s) && !t.c.health.isDown(s) {
			return s, true
		}
	}
	return 0, false
}

// attempt asks one store once.
func (t *tour) attempt(ctx context.Context, store uint64) (*kvpb.Response, error) {
	t.began = time.Now()
	addr, err := t.address(ctx, store)
	if err != nil {
		return nil, transportError{cause: retry.Dialing, err: err}
	}
	whole := ctx
	if !t.q.write {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, t.try)
		defer cancel()
	}
	resp, err := t.c.streams.Do(ctx, store, addr, t.q.build(t.header(ctx)))
	if err == nil {
		t.c.health.up(store)
		err = retry.FromWire(errorOf(resp), t.rt.RangeID, t.q.write)
		if err != nil && t.q.partly != nil {
			t.q.partly(resp)
		}
		return resp, err
	}
	failure, _ := errors.AsType[*stream.Error](err)
	return nil, t.unanswered(whole, store, failure, whole.Err() == nil && ctx.Err() != nil)
}

// unanswered is what a try comes to that got no answer. timeout tells that the
// try had less time than the call.
func (t *tour) unanswered(
	ctx context.Context, store uint64, failure *stream.Error, timeout bool,
) error {
	if t.q.write && failure.Sent {
		return unknownOutcome(ctx, t.rt.RangeID, failure.Err)
	}
	cause := retry.Dialing
	switch {
	case errors.Is(failure.Err, stream.ErrClosed):
		return ErrClosed
	case errors.Is(failure.Err, stream.ErrFull):
		return errs.Busy{Reason: "requests in flight to " + storeName(store)}
	case timeout:
		t.try *= 2
		cause = retry.Silent
	case errors.Is(failure.Err, stream.ErrSilent):
		cause = retry.Silent
	case failure.Sent:
		cause = retry.Broken
	}
	return transportError{cause: cause, err: failure.Err}
}

// address finds out where store listens. While PD is away there may be other
// stores whose address is known, so it does not wait for long.
func (t *tour) address(ctx context.Context, store uint64) (string, error) {
	if addr := t.c.routes.Known(store); addr != "" {
		return addr, nil
	}
	ctx, cancel := context.WithTimeout(ctx, t.c.o.DialTimeout)
	defer cancel()
	return t.c.routes.Address(ctx, store)
}

// unknownOutcome is a write that nobody answered. No typed error but its own
// may be found in it, or its class would be in doubt.
func unknownOutcome(ctx context.Context, rangeID uint64, cause error) error {
	unknown := errs.UnknownOutcome{RangeID: rangeID}
	if ctx.Err() != nil {
		return fmt.Errorf("%w (%w)", unknown, ctx.Err())
	}
	return fmt.Errorf("%w (%v)", unknown, cause)
}

// header addresses one try.
func (t *tour) header(ctx context.Context) *kvpb.Header {
	h := &kvpb.Header{
		RangeId: t.rt.RangeID, SpanEpoch: t.rt.Epoch,
		Token: uint64(t.q.session.Token()), Forwarded: t.c.o.Forwarded,
	}
	if deadline, ok := ctx.Deadline(); ok {
		left := time.Until(deadline)
		if t.q.write { // The store does not see how long requests are on their way now.
			left -= t.refusal
		}
		h.TimeoutMs = patience(left)
	}
	return h
}

// transportError is a try that got no answer and had no effect.
type transportError struct {
	cause retry.Kind
	err   error
}

func (e transportError) Error() string { return e.err.Error() }

func (e transportError) Unwrap() error { return e.err }

// after draws the conclusions from the error of one try. It returns nil when
// there may be another, after the wait that is due.
func (t *tour) after(ctx context.Context, store uint64, err error) error {
	if e, ok := err.(transportError); ok && ctx.Err() != nil && errors.Is(e.err, ctx.Err()) {
		// The caller has left before it was sent: that says nothing of the store.
		return t.log.Wait(ctx, retry.Cause{Kind: e.cause, Where: storeName(store)}, 0, err)
	}
	d := t.judge(store, err)
	switch {
	case d.Move == retry.Stop:
		return t.log.Final(ctx, err)
	case ctx.Err() != nil:
		return t.log.Wait(ctx, d.Cause, 0, err)
	case d.Move == retry.Relocate:
		return t.relocate(ctx, d, err)
	case d.Move == retry.Again:
		t.asked = nil
		return t.hold(ctx, store, d, err)
	}
	if t.firstErr == nil {
		t.first, t.firstErr = d, err
	}
	t.c.routes.Nudge(ctx, t.rt)
	if moved := t.reload(); moved {
		t.log.Spend(d.Cause)
		return errMoved
	}
	if d.Move == retry.Follow && t.follow(store) {
		t.log.Spend(d.Cause)
		return nil
	}
	if _, more := t.unasked(t.rt.Stores(t.q.anywhere)); more {
		t.log.Spend(d.Cause)
		return nil
	}
	d, err = t.first, t.firstErr
	t.asked, t.hints, t.firstErr = nil, 0, nil
	if err := t.log.Wait(ctx, d.Cause, d.Hint, err); err != nil {
		return err
	}
	if t.reload() {
		return errMoved
	}
	return nil
}

// hold waits before the same store is asked again.
//
// A write is not sent again when hardly more time is left than the last refusal took
// to come back: nor would its answer be there in time, and it would end unknown
// instead of refused. What is left beyond that the store is told (header), and it
// judges whether the write will be decided in it: it knows what writes take. The
// first try of a call is always made, so a call with little time fails for this only
// where it has been refused.
func (t *tour) hold(ctx context.Context, store uint64, d retry.Decision, err error) error {
	t.refusal = time.Since(t.began)
	busy, ok := err.(errs.Busy)
	// A store that has no room names no time: the least that its answer can hold.
	full := ok && busy.RetryAfter <= time.Millisecond
	if full && t.q.write && t.c.streams.InFlight(store) > 0 {
		err = t.wait(ctx, store, d.Cause, err)
	} else {
		err = t.log.Wait(ctx, d.Cause, d.Hint, err)
	}
	if err != nil {
		return err
	}
	if deadline, ok := ctx.Deadline(); ok && t.q.write &&
		time.Until(deadline) < t.refusal+t.refusal/4 {
		return t.log.Final(ctx, nil)
	}
	return nil
}

// standInLine lets those go first who wait for room at store already.
func (t *tour) standInLine(ctx context.Context, store uint64) error {
	if !t.q.write || t.stood || !t.c.line.waits(store) ||
		t.c.streams.InFlight(store) == 0 || t.c.streams.Silent(store) {
		return nil
	}
	cause := retry.Cause{Kind: retry.Busy, Where: storeName(store)}
	return t.wait(ctx, store, cause, errs.Busy{Reason: "others wait for " + storeName(store)})
}

// wait waits in line.
func (t *tour) wait(ctx context.Context, store uint64, cause retry.Cause, err error) error {
	t.stood = true
	p := t.c.line.join(store, t.log.Began())
	defer t.c.line.leave(store, p)
	for t.c.streams.InFlight(store) > 0 {
		if over := t.log.WaitFor(ctx, p.turn, cause, lineTimeout, err); over != nil {
			return over
		}
		if !t.c.line.stay(store, p) {
			break
		}
	}
	return nil
}

// judge maps the error of a try to a move and tells the cache.
func (t *tour) judge(store uint64, err error) retry.Decision {
	if e, ok := err.(transportError); ok {
		return t.judgeTransport(store, e)
	}
	d := retry.Decide(err, t.rt.RangeID, store)
	switch e := err.(type) {
	case errs.NotLeader:
		if e.Leader.GetStoreId() == 0 || e.Leader.GetStoreId() == store {
			t.c.routes.DropLeader(t.rt, store)
		} else {
			t.c.routes.SetLeader(t.rt, store, e.Leader)
		}
	case errs.EpochMismatch:
		for _, r := range e.Current {
			t.c.routes.Learn(r, &metapb.Leader{StoreId: store})
		}
	case errs.KeyNotInRange:
		t.c.routes.Learn(e.Range, nil)
	case errs.RangeNotFound:
		t.c.routes.DropLeader(t.rt, store)
	}
	return d
}

// judgeTransport handles tries without an answer.
func (t *tour) judgeTransport(store uint64, e transportError) retry.Decision {
	if _, ok := errors.AsType[errs.ClusterMismatch](e.err); ok {
		return retry.Decision{Move: retry.Stop}
	}
	if _, ok := errors.AsType[errs.StoreMismatch](e.err); ok {
		t.c.routes.ForgetAddress(store)
	}
	switch {
	case e.cause == retry.Dialing:
		t.c.health.down(store, time.Since(t.began))
	case e.cause == retry.Broken || t.c.streams.Silent(store):
		t.c.health.down(store, 0)
	}
	t.c.line.disband(store)
	t.c.routes.DropLeader(t.rt, store)
	return retry.Decision{Move: retry.Next, Cause: retry.Cause{
		Kind: e.cause, Where: storeName(store),
	}}
}

// follow reports whether the cache now names a leader worth asking at once.
func (t *tour) follow(from uint64) bool {
	l := t.rt.Leader
	if l == 0 || l == from || t.c.health.isDown(l) || t.hints >= 3 {
		return false
	}
	t.hints++
	t.asked = slices.DeleteFunc(t.asked, func(s uint64) bool { return s == l })
	return true
}

// reload takes what the cache knows now; it reports whether the span changed.
func (t *tour) reload() bool {
	now := t.c.routes.Find(t.q.key)
	if now == nil || now.RangeID != t.rt.RangeID || now.Epoch != t.rt.Epoch {
		return true
	}
	t.rt = now
	return false
}

// noReplicas waits for a route that says who has the range.
func (t *tour) noReplicas(ctx context.Context) error {
	t.c.routes.Nudge(ctx, t.rt)
	cause := retry.Cause{Kind: retry.NoRange, Where: "range " + strconv.FormatUint(t.rt.RangeID, 10)}
	if err := t.log.Wait(ctx, cause, 0, errs.RangeNotFound{RangeID: t.rt.RangeID}); err != nil {
		return err
	}
	return errMoved
}

// relocate ends the tour of a range that has changed, or waits when nobody
// knows better yet.
func (t *tour) relocate(ctx context.Context, d retry.Decision, err error) error {
	if !t.reload() {
		// The store is behind, or we are and it does not know the new ranges.
		t.c.routes.Nudge(ctx, t.rt)
		t.asked = nil
	}
	if err := t.log.Wait(ctx, d.Cause, d.Hint, err); err != nil {
		return err
	}
	return errMoved
}

func storeName(id uint64) string { return "store " + strconv.FormatUint(id, 10) }

// errorOf is the error of whatever kind of response resp is.
func errorOf(resp *kvpb.Response) *kvpb.Error {
	switch b := resp.GetBody().(type) {
	case *kvpb.Response_Get:
		return b.Get.GetError()
	case *kvpb.Response_Put:
		return b.Put.GetError()
	case *kvpb.Response_Delete:
		return b.Delete.GetError()
	case *kvpb.Response_CompareAndSwap:
		return b.CompareAndSwap.GetError()
	case *kvpb.Response_BatchGet:
		return b.BatchGet.GetError()
	case *kvpb.Response_BatchWrite:
		return b.BatchWrite.GetError()
	case *kvpb.Response_BulkWrite:
		return b.BulkWrite.GetError()
	case *kvpb.Response_DeleteRange:
		return b.DeleteRange.GetError()
	case *kvpb.Response_Scan:
		return b.Scan.GetError()
	case *kvpb.Response_Error:
		return b.Error
	}
	// Of a write nobody can say what such an answer means.
	return &kvpb.Error{
		Class: kvpb.ErrorClass_ERROR_CLASS_UNKNOWN, Applied: kvpb.Applied_APPLIED_UNKNOWN,
		Message: "an answer of a known kind",
	}
}

// tokenOf is the highest timestamp that resp depends on.
func tokenOf(resp *kvpb.Response) uint64 {
	switch b := resp.GetBody().(type) {
	case *kvpb.Response_Get:
		return max(b.Get.GetToken(), b.Get.GetRow().GetCommitTs())
	case *kvpb.Response_Put:
		return b.Put.GetCommitTs()
	case *kvpb.Response_Delete:
		return b.Delete.GetCommitTs()
	case *kvpb.Response_CompareAndSwap:
		return max(b.CompareAndSwap.GetToken(), b.CompareAndSwap.GetCommitTs())
	case *kvpb.Response_BatchGet:
		return b.BatchGet.GetToken()
	case *kvpb.Response_BatchWrite:
		return b.BatchWrite.GetCommitTs()
	case *kvpb.Response_BulkWrite:
		return b.BulkWrite.GetCommitTs()
	case *kvpb.Response_DeleteRange:
		return b.DeleteRange.GetCommitTs()
	case *kvpb.Response_Scan:
		return b.Scan.GetToken()
	}
	return 0
}
