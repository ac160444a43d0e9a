package tso

import (
	"context"
	"errors"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	pdpb "github.com/ridgekv/ridge/proto/ridge/pd/v1"
	"github.com/ridgekv/ridge/proto/ts"
)

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m,
		// Dragonboat's Pebble keeps it for the process.
		goleak.IgnoreTopFunction(
			"github.com/cockroachdb/pebble/vfs.(*diskHealthCheckingFS).startTickerLocked.func1"))
}

// fakeLog is the group's state machine, dumb and in one place, with a delay
// before and after whatever is done.
type fakeLog struct {
	mu     sync.Mutex
	record *pdpb.TSORecord
	delay  time.Duration
	cut    bool // nothing gets through
	reads  int
}

var errCut = errors.New("no quorum")

func (l *fakeLog) wait(ctx context.Context) error {
	t := time.NewTimer(l.delay)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
		return nil
	}
}

func (l *fakeLog) Propose(ctx context.Context, c *pdpb.Command) (*pdpb.CommandResult, error) {
	if err := l.wait(ctx); err != nil {
		return nil, err
	}
	r, err := l.apply(c)
	if waited := l.wait(ctx); waited != nil {
		return nil, waited // applied, and nobody knows
	}
	return r, err
}

func (l *fakeLog) apply(c *pdpb.Command) (*pdpb.CommandResult, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	refused := &pdpb.CommandResult{
		Reason: pdpb.PDErrorReason_PD_ERROR_REASON_STALE_EPOCH, Tso: l.record,
	}
	have := l.record
	switch e := c.GetExtendTso(); {
	case l.cut:
		return nil, errCut
	case e != nil && (e.GetOwner() != have.GetOwner() || e.GetEpoch() != have.GetEpoch() ||
		e.GetNonce() != have.GetNonce()):
		return refused, nil
	case e != nil:
		l.record = &pdpb.TSORecord{
			Owner: have.GetOwner(), Epoch: have.GetEpoch(), Nonce: have.GetNonce(),
			Bound: max(have.GetBound(), e.GetBound()),
		}
	case c.GetTakeTso().GetExpectedEpoch() != have.GetEpoch():
		return refused, nil
	default:
		n := c.GetTakeTso()
		start := max(n.GetWall(), uint64(ts.Timestamp(have.GetBound()).Add(time.Second)))
		l.record = &pdpb.TSORecord{
			Owner: n.GetOwner(), Epoch: have.GetEpoch() + 1, Nonce: n.GetNonce(),
			Bound: start + n.GetWindow(),
		}
	}
	return &pdpb.CommandResult{Tso: l.record}, nil
}

func (l *fakeLog) ReadTSO(ctx context.Context) (*pdpb.TSORecord, error) {
	if err := l.wait(ctx); err != nil {
		return nil, err
	}
	l.mu.Lock()
	r, cut := l.record, l.cut
	l.reads++
	l.mu.Unlock()
	if err := l.wait(ctx); err != nil {
		return nil, err
	}
	if cut {
		return nil, errCut
	}
	return r, nil
}

func (l *fakeLog) set(cut bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.cut = cut
}

// told is the largest timestamp anybody was ever told.
type told struct {
	sync.Mutex
	last  ts.Timestamp
	count int
}

// ask takes n timestamps and checks the law: they lie above everything that
// had been told before the call.
func (h *told) ask(ctx context.Context, t *testing.T, o *Oracle, n uint32) error {
	h.Lock()
	before := h.last
	h.Unlock()
	first, err := o.Timestamps(ctx, n)
	if err != nil {
		return err
	}
	h.Lock()
	defer h.Unlock()
	if first <= before {
		t.Errorf("told %d after %d had been told", first, before)
	}
	h.last = max(h.last, first+ts.Timestamp(n-1))
	h.count++
	return nil
}

// run starts the loops of o until the returned function is called.
func run(t *testing.T, o *Oracle) (stop func() error) {
	ctx, cancel := context.WithCancel(t.Context())
	errc := make(chan error, 1)
	var wg sync.WaitGroup
	wg.Go(func() { errc <- o.Run(ctx) })
	return func() error {
		cancel()
		wg.Wait()
		return <-errc
	}
}

// TestMonotonicOverTakeovers: runs take over from each other while callers go
// on asking all of them, and the wall clocks disagree.
func TestMonotonicOverTakeovers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := &fakeLog{delay: time.Millisecond}
		var h told
		var runs []*Oracle
		var stops []func() error
		var wg sync.WaitGroup
		walls := []time.Duration{0, -time.Hour, 2 * time.Second, -24 * time.Hour, 0, time.Minute}
		for i, off := range walls {
			o := New(l, uint64(1+i%3))
			if err := o.TakeOver(t.Context(), uint64(i), time.Now().Add(off)); err != nil {
				t.Fatal(err)
			}
			runs, stops = append(runs, o), append(stops, run(t, o))
			for _, o := range runs { // the deposed are asked too
				for range 4 {
					wg.Go(func() {
						for range 50 {
							if h.ask(t.Context(), t, o, 3) != nil {
								return
							}
						}
					})
				}
			}
			time.Sleep(20 * time.Millisecond)
		}
		wg.Wait()
		for i, stop := range stops {
			want := ErrNotOwner
			if i == len(stops)-1 {
				want = context.Canceled
			}
			if err := stop(); !errors.Is(err, want) {
				t.Errorf("run %d ended with %v, want %v", i, err, want)
			}
		}
		if h.count < 200 {
			t.Errorf("only %d answers", h.count)
		}
		if l.reads > h.count {
			t.Errorf("%d readings for %d answers: nothing was shared", l.reads, h.count)
		}
	})
}

// TestTakenButDeposed: a timestamp taken before a takeover and confirmed after
// it is not told.
func TestTakenButDeposed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := &fakeLog{}
		old := New(l, 1)
		if err := old.TakeOver(t.Context(), 0, time.Now()); err != nil {
			t.Fatal(err)
		}
		p, err := old.Begin(t.Context(), 1) // its loops do not run yet
		if err != nil {
			t.Fatal(err)
		}
		if err := New(l, 2).TakeOver(t.Context(), 1, time.Now()); err != nil {
			t.Fatal(err)
		}
		stop := run(t, old)
		if err := p.Wait(t.Context()); !errors.Is(err, ErrNotOwner) {
			t.Errorf("told %d: %v", p.First, err)
		}
		if err := stop(); !errors.Is(err, ErrNotOwner) {
			t.Errorf("Run: %v", err)
		}
		if _, err := old.Begin(t.Context(), 1); !errors.Is(err, ErrNotOwner) {
			t.Errorf("Begin of a lost run: %v", err)
		}
	})
}

// TestLateExtension: a run that was deposed learns it from its extension, does
// not raise its bound, and wakes those who wait for room.
func TestLateExtension(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := &fakeLog{}
		old := New(l, 1)
		if err := old.TakeOver(t.Context(), 0, time.Now()); err != nil {
			t.Fatal(err)
		}
		bound := old.Bound()
		l.set(true)
		stop := run(t, old)
		time.Sleep(2 * Window) // its bound is used up
		waits := make(chan error, 1)
		var wg sync.WaitGroup
		wg.Go(func() { waits <- old.Confirm(t.Context()) })
		synctest.Wait()
		select {
		case err := <-waits:
			t.Errorf("a timestamp beyond the bound: %v", err)
		default:
		}
		l.set(false)
		if _, err := l.apply(&pdpb.Command{Command: &pdpb.Command_TakeTso{TakeTso: &pdpb.TakeTSO{
			Owner: 2, Nonce: 9, ExpectedEpoch: 1, Window: 1,
		}}}); err != nil {
			t.Fatal(err)
		}
		if err := <-waits; !errors.Is(err, ErrNotOwner) {
			t.Errorf("who waited for room got %v", err)
		}
		if err := stop(); !errors.Is(err, ErrNotOwner) {
			t.Errorf("Run: %v", err)
		}
		wg.Wait()
		if got := old.Bound(); got != bound {
			t.Errorf("bound went from %d to %d", bound, got)
		}
	})
}

// TestOutage: without a quorum nothing is told; with it all goes on, and time
// has not stood still.
func TestOutage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := &fakeLog{}
		o := New(l, 1)
		if err := o.TakeOver(t.Context(), 0, time.Now()); err != nil {
			t.Fatal(err)
		}
		stop := run(t, o)
		first, err := o.Timestamps(t.Context(), 1)
		if err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		l.set(true)
		for range 20 {
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			if got, err := o.Timestamps(ctx, 1); err == nil {
				t.Errorf("told %d without a quorum", got)
			}
			cancel()
		}
		l.set(false)
		again, err := o.Timestamps(t.Context(), 1)
		if err != nil {
			t.Fatal(err)
		}
		if d := again.Sub(first) - time.Since(began); d.Abs() > 10*time.Millisecond {
			t.Errorf("time and timestamps differ by %s after an outage", d)
		}
		if err := stop(); !errors.Is(err, context.Canceled) {
			t.Errorf("Run: %v", err)
		}
	})
}

func TestCounts(t *testing.T) {
	o := New(&fakeLog{}, 1)
	if _, err := o.Begin(t.Context(), 1); !errors.Is(err, ErrNotOwner) {
		t.Errorf("before TakeOver: %v", err)
	}
	if err := o.TakeOver(t.Context(), 0, time.Now()); err != nil {
		t.Fatal(err)
	}
	for _, n := range []uint32{0, MaxCount + 1, 1<<32 - 1} {
		if _, err := o.Begin(t.Context(), n); err == nil {
			t.Errorf("count %d was taken", n)
		}
	}
	a, err := o.Begin(t.Context(), MaxCount)
	if err != nil {
		t.Fatal(err)
	}
	b, err := o.Begin(t.Context(), 1)
	if err != nil || b.First < a.First+MaxCount {
		t.Errorf("%d after %d timestamps from %d on, %v", b.First, MaxCount, a.First, err)
	}
}

// TestRepeatedTakeOver: the answer of a take-over was lost, and the repetition
// is refused since the record has moved on: to this very run.
func TestRepeatedTakeOver(t *testing.T) {
	l := &fakeLog{}
	o := New(l, 1)
	for range 2 {
		if err := o.TakeOver(t.Context(), 0, time.Now()); err != nil {
			t.Fatal(err)
		}
	}
	if o.Epoch() != 1 {
		t.Fatalf("epoch %d", o.Epoch())
	}
	if err := New(l, 1).TakeOver(t.Context(), 0, time.Now()); !errors.Is(err, ErrNotOwner) {
		t.Fatalf("another run of the same member: %v", err)
	}
}
