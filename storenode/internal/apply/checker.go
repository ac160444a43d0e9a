package apply

import (
	"context"
	"errors"
	"log/slog"
	"sync"

	"github.com/ridgekv/ridge/storenode/internal/catalog"
	"github.com/ridgekv/ridge/storenode/internal/engine"
)

// checkerQueue bounds the checksums that wait, each of which holds a pin. What
// comes when it is full is not computed.
const checkerQueue = 16

// ErrCheckerClosed is returned by Await after Run has ended.
var ErrCheckerClosed = errors.New("apply: the checker has stopped")

// Check is the checksum of a range at one applied index. All replicas must
// have the same Sum at the same Index.
type Check struct {
	RangeID, ReplicaID uint64
	Index, CheckID     uint64
	SpanEpoch          uint64
	Sum                uint64
	Keys, SizeBytes    uint64
}

// Checker computes the checksums that Checksum entries ask for, one after the
// other, each at the view that was pinned when its entry was applied.
type Checker struct {
	engine *engine.Engine
	log    *slog.Logger
	queue  chan checkJob
	mu     struct {
		sync.Mutex
		closed bool
		// last is the newest result of each range that was ever checked.
		last map[uint64]Check
		// changed is closed and replaced with every result.
		changed chan struct{}
	}
}

type checkJob struct {
	check   Check
	state   *catalog.State
	view    engine.View
	release func()
}

// NewChecker returns a Checker. It computes nothing before Run.
func NewChecker(e *engine.Engine, l *slog.Logger) *Checker {
	if l == nil {
		l = slog.New(slog.DiscardHandler)
	}
	c := &Checker{engine: e, log: l, queue: make(chan checkJob, checkerQueue)}
	c.mu.last = make(map[uint64]Check)
	c.mu.changed = make(chan struct{})
	return c
}

// Run computes until ctx ends.
func (c *Checker) Run(ctx context.Context) error {
	defer c.close()
	for {
		select {
		case <-ctx.Done():
			return nil
		case job := <-c.queue:
			c.compute(ctx, job)
		}
	}
}

// Last is the newest result of a range.
func (c *Checker) Last(rangeID uint64) (Check, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	out, ok := c.mu.last[rangeID]
	return out, ok
}

// Await waits for a result of the range at minIndex or later.
func (c *Checker) Await(ctx context.Context, rangeID, minIndex uint64) (Check, error) {
	for {
		c.mu.Lock()
		out, ok := c.mu.last[rangeID]
		changed, closed := c.mu.changed, c.mu.closed
		c.mu.Unlock()
		switch {
		case ok && out.Index >= minIndex:
			return out, nil
		case closed:
			return Check{}, ErrCheckerClosed
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return Check{}, context.Cause(ctx)
		}
	}
}

// offer takes a job, or releases its pin.
func (c *Checker) offer(job checkJob) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.mu.closed {
		select {
		case c.queue <- job:
			return
		default:
		}
	}
	c.log.Warn("checksum not computed", "range", job.check.RangeID, "index", job.check.Index)
	job.release()
}

func (c *Checker) compute(ctx context.Context, job checkJob) {
	defer job.release()
	out := job.check
	var err error
	out.Sum, out.Keys, out.SizeBytes, err = c.engine.Checksum(
		ctx, job.view, job.state.Slices(), job.state.Span())
	if err != nil {
		c.log.Error("checksum failed", "range", out.RangeID, "index", out.Index, "error", err)
		return
	}
	c.log.Info("checksum", "range", out.RangeID, "replica", out.ReplicaID,
		"index", out.Index, "sum", out.Sum, "keys", out.Keys)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.mu.last[out.RangeID] = out
	close(c.mu.changed)
	c.mu.changed = make(chan struct{})
}

// close releases what waits; nothing is taken any more.
func (c *Checker) close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.mu.closed = true
	for {
		select {
		case job := <-c.queue:
			job.release()
		default:
			close(c.mu.changed)
			c.mu.changed = make(chan struct{})
			return
		}
	}
}

// checksum pins the state exactly as of the Checksum entry: what came before it
// is committed first, what comes after it later.
func (b *batch) checksum(id uint64) error {
	if b.m.deps.Checker == nil {
		return nil
	}
	if err := b.commit(); err != nil {
		return err
	}
	view, release := b.m.deps.Engine.Pin()
	b.m.deps.Checker.offer(checkJob{
		check: Check{
			RangeID: b.m.rangeID, ReplicaID: b.m.replicaID,
			Index: b.applied.Index, CheckID: id, SpanEpoch: b.state.SpanEpoch(),
		},
		state: b.state, view: view, release: release,
	})
	return nil
}
