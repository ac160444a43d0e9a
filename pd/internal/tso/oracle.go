// Package tso hands out timestamps.
//
// Law P2: two timestamps given by any PD, ever, differ, and the later call gets
// the larger one. A timestamp is taken below the committed bound first, then
// the record is read through the log, and only a record that still names this
// run lets the timestamp out.
package tso

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/ridgekv/ridge/pd/internal/meta"
	pdpb "github.com/ridgekv/ridge/proto/ridge/pd/v1"
	"github.com/ridgekv/ridge/proto/ts"
)

const (
	// Window is how far the committed bound is kept ahead. A new owner begins
	// above it, so it is also how far time jumps at a change of owner.
	Window = 3 * time.Second
	// MaxCount bounds one request.
	MaxCount = 1 << 18

	confirmTimeout = 2 * time.Second
	extendTimeout  = time.Second
	retryPause     = 20 * time.Millisecond
)

// ErrNotOwner means that another run hands out timestamps now.
var ErrNotOwner = errors.New("tso: another PD has taken over")

// Log is PD's group.
type Log interface {
	Propose(ctx context.Context, c *pdpb.Command) (*pdpb.CommandResult, error)
	// ReadTSO sees whatever was committed before it was called.
	ReadTSO(ctx context.Context) (*pdpb.TSORecord, error)
}

var _ Log = (*meta.Meta)(nil)

// Oracle is one run of ownership. It is made anew for each.
type Oracle struct {
	log   Log
	owner uint64
	nonce uint64

	confirm chan struct{} // a round wants to begin
	extend  chan struct{} // the bound is near

	mu struct {
		sync.Mutex
		// epoch is 0 until TakeOver succeeded.
		epoch uint64
		// bound is committed: nothing at or above it is given.
		bound ts.Timestamp
		last  ts.Timestamp
		// base is the timestamp of the instant since. Time goes on from there by
		// the monotonic clock alone; jumps of the wall clock are not seen.
		base  ts.Timestamp
		since time.Time
		// next is the round that timestamps taken now will wait for.
		next *round
		// extended is closed and replaced whenever bound grew.
		extended chan struct{}
		lost     bool
	}
}

// round is one reading of the record, shared by all who wait.
type round struct {
	done chan struct{}
	err  error
}

// New prepares a run for owner. It gives no timestamps before TakeOver.
func New(log Log, owner uint64) *Oracle {
	var b [8]byte
	_, _ = rand.Read(b[:]) // never fails
	o := &Oracle{
		log: log, owner: owner, nonce: binary.LittleEndian.Uint64(b[:]) | 1,
		confirm: make(chan struct{}, 1), extend: make(chan struct{}, 1),
	}
	o.mu.extended = make(chan struct{})
	return o
}

// Epoch is the epoch of this run, 0 before TakeOver.
func (o *Oracle) Epoch() uint64 {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.mu.epoch
}

// Bound is the committed bound.
func (o *Oracle) Bound() ts.Timestamp {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.mu.bound
}

// TakeOver writes the record if its epoch still is expected. wall is the wall
// clock now: the first timestamp is above it and above whatever was given or
// used before.
func (o *Oracle) TakeOver(ctx context.Context, expected uint64, wall time.Time) error {
	window := ts.Timestamp(0).Add(Window)
	r, err := o.log.Propose(ctx, &pdpb.Command{Command: &pdpb.Command_TakeTso{
		TakeTso: &pdpb.TakeTSO{
			Owner: o.owner, Nonce: o.nonce, ExpectedEpoch: expected,
			Wall: uint64(ts.FromTime(wall)), Window: uint64(window),
		},
	}})
	if err != nil {
		return fmt.Errorf("tso: take over: %w", err)
	}
	// A refusal may be the answer to a repetition: the nonce tells.
	record := r.GetTso()
	if record.GetOwner() != o.owner || record.GetNonce() != o.nonce {
		return fmt.Errorf("tso: take over: %w", ErrNotOwner)
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	o.mu.epoch, o.mu.bound = record.GetEpoch(), ts.Timestamp(record.GetBound())
	o.mu.base, o.mu.since = o.mu.bound-window, wall
	o.mu.last = o.mu.base
	return nil
}

// Run keeps the bound ahead and confirms rounds until ctx ends or another run
// took over (ErrNotOwner).
func (o *Oracle) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	errc := make(chan error, 2)
	var wg sync.WaitGroup
	wg.Go(func() { errc <- o.extendLoop(ctx) })
	wg.Go(func() { errc <- o.confirmLoop(ctx) })
	err := <-errc
	cancel()
	wg.Wait()
	o.mu.Lock()
	o.mu.lost = true
	next := o.mu.next
	o.mu.next = nil
	close(o.mu.extended) // whoever waits for room learns that there will be none
	o.mu.extended = make(chan struct{})
	o.mu.Unlock()
	if next != nil {
		next.err = ErrNotOwner
		close(next.done)
	}
	return err
}

// Pending are timestamps that are taken but not confirmed.
type Pending struct {
	// First of Count consecutive timestamps. Not to be told before Wait.
	First ts.Timestamp
	Count uint32
	round *round
}

// Wait returns nil once the timestamps may be told.
func (p *Pending) Wait(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-p.round.done:
		return p.round.err
	}
}

// Timestamps returns the first of n consecutive timestamps.
func (o *Oracle) Timestamps(ctx context.Context, n uint32) (ts.Timestamp, error) {
	p, err := o.Begin(ctx, n)
	if err != nil {
		return 0, err
	}
	return p.First, p.Wait(ctx)
}

// Now returns one timestamp.
func (o *Oracle) Now(ctx context.Context) (ts.Timestamp, error) { return o.Timestamps(ctx, 1) }

// Begin takes n timestamps, waiting while the bound is too near, and joins the
// next round.
func (o *Oracle) Begin(ctx context.Context, n uint32) (*Pending, error) {
	if n == 0 || n > MaxCount {
		return nil, fmt.Errorf("tso: count %d is not within 1 and %d", n, MaxCount)
	}
	for {
		p, extended, err := o.take(n)
		if err != nil || p != nil {
			return p, err
		}
		ring(o.extend)
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-extended:
		}
	}
}

// take returns nil and what to wait for when the bound is too near.
func (o *Oracle) take(n uint32) (*Pending, <-chan struct{}, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.mu.lost || o.mu.epoch == 0 {
		return nil, nil, ErrNotOwner
	}
	first := max(o.mu.last+1, o.nowLocked())
	last := first + ts.Timestamp(n-1)
	if last >= o.mu.bound {
		return nil, o.mu.extended, nil
	}
	o.mu.last = last
	if o.mu.next == nil {
		o.mu.next = &round{done: make(chan struct{})}
		ring(o.confirm)
	}
	return &Pending{First: first, Count: n, round: o.mu.next}, nil, nil
}

func (o *Oracle) nowLocked() ts.Timestamp { return o.mu.base.Add(time.Since(o.mu.since)) }

func ring(bell chan struct{}) {
	select {
	case bell <- struct{}{}:
	default:
	}
}

// confirmLoop reads the record once per round. A round takes in whoever came
// while the one before was under way.
func (o *Oracle) confirmLoop(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-o.confirm:
		}
		o.mu.Lock()
		cur := o.mu.next
		o.mu.next = nil
		o.mu.Unlock()
		if cur == nil {
			continue
		}
		cur.err = o.check(ctx)
		close(cur.done)
		if errors.Is(cur.err, ErrNotOwner) {
			return cur.err
		}
	}
}

// check reads the record through the log and compares it with this run.
func (o *Oracle) check(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, confirmTimeout)
	defer cancel()
	record, err := o.log.ReadTSO(ctx)
	if err != nil {
		return fmt.Errorf("tso: confirm: %w", err)
	}
	if record.GetOwner() != o.owner || record.GetNonce() != o.nonce ||
		record.GetEpoch() != o.Epoch() {
		return ErrNotOwner
	}
	return nil
}

// Confirm returns nil if this run still owned the record after the call began:
// whoever acts on it acts as PD's leader.
func (o *Oracle) Confirm(ctx context.Context) error {
	p, err := o.Begin(ctx, 1)
	if err != nil {
		return err
	}
	return p.Wait(ctx)
}

func (o *Oracle) extendLoop(ctx context.Context) error {
	timer := time.NewTimer(Window / 4)
	defer timer.Stop()
	for {
		if err := o.extendOnce(ctx); err != nil {
			return err
		}
		timer.Reset(Window / 4)
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-timer.C:
		case <-o.extend:
		}
	}
}

// extendOnce raises the bound when less than half of the window is left. It
// fails only when the run is over.
func (o *Oracle) extendOnce(ctx context.Context) error {
	o.mu.Lock()
	reached := max(o.mu.last, o.nowLocked())
	epoch, bound := o.mu.epoch, o.mu.bound
	o.mu.Unlock()
	if reached.Add(Window/2) < bound {
		return nil
	}
	callCtx, cancel := context.WithTimeout(ctx, extendTimeout)
	defer cancel()
	r, err := o.log.Propose(callCtx, &pdpb.Command{Command: &pdpb.Command_ExtendTso{
		ExtendTso: &pdpb.ExtendTSO{
			Owner: o.owner, Epoch: epoch, Nonce: o.nonce, Bound: uint64(reached.Add(Window)),
		},
	}})
	if err != nil {
		return o.pause(ctx) // the outcome is unknown: ask again
	}
	if r.GetReason() != pdpb.PDErrorReason_PD_ERROR_REASON_UNSPECIFIED {
		return ErrNotOwner
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	if bound := ts.Timestamp(r.GetTso().GetBound()); bound > o.mu.bound {
		o.mu.bound = bound
		close(o.mu.extended)
		o.mu.extended = make(chan struct{})
	}
	return nil
}

// pause keeps a group that refuses at once from being asked without rest.
func (o *Oracle) pause(ctx context.Context) error {
	timer := time.NewTimer(retryPause)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-timer.C:
		ring(o.extend)
		return nil
	}
}
