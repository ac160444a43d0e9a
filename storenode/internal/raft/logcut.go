package raft

import (
	"context"
	"sync"
	"time"

	"github.com/lni/dragonboat/v4"

	"github.com/ridgekv/ridge/storenode/internal/catalog"
)

const (
	// cutTimeout bounds one log snapshot: mostly the flush in it.
	cutTimeout = time.Minute
	// cutsAtOnce is how many log snapshots are under way at most.
	cutsAtOnce = 4
	// keepAll is a compaction overhead that no log reaches.
	keepAll = 1 << 62
)

// logCut is what is known of a replica's log snapshots. A log snapshot is a
// record without data: "the engine holds all up to here". The log is cut not
// at it but at the one before, so that a replica which lags a little is still
// sent entries and not an image.
type logCut struct {
	mu sync.Mutex
	// last is the index of the newest log snapshot.
	last uint64
	// bytes is the replica's WrittenBytes at the last one.
	bytes uint64
	at    time.Time
	// alarmed is set once an unborn child has held the log for long.
	alarmed bool
	held    time.Time
	// busy is held while one is under way; stopped forbids further ones.
	busy    sync.Mutex
	stopped bool
}

func (c *logCut) begin(index, bytes uint64) {
	c.last, c.bytes, c.at = index, bytes, time.Now()
}

// stop waits for a log snapshot under way and forbids further ones.
func (c *logCut) stop() {
	c.busy.Lock()
	defer c.busy.Unlock()
	c.stopped = true
}

// due reports whether the log has grown enough.
func (c *logCut) due(o Options, applied, bytes uint64, now time.Time) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if applied <= c.last {
		return false
	}
	return bytes-c.bytes >= o.LogSnapshotBytes || applied-c.last >= o.LogSnapshotEntries ||
		now.Sub(c.at) >= o.LogSnapshotAge
}

// holds notes that an unborn child forbids a cut. It reports true once, when
// that has lasted for longer than after.
func (c *logCut) holds(now time.Time, after time.Duration) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.held.IsZero() {
		c.held = now
	}
	if c.alarmed || now.Sub(c.held) < after {
		return false
	}
	c.alarmed = true
	return true
}

func (c *logCut) released() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.held, c.alarmed = time.Time{}, false
}

// option cuts the log at the log snapshot before the one asked for now.
func (c *logCut) option() dragonboat.SnapshotOption {
	c.mu.Lock()
	defer c.mu.Unlock()
	o := dragonboat.SnapshotOption{OverrideCompactionOverhead: true}
	if c.last > catalog.BirthIndex {
		o.CompactionIndex = c.last
	} else {
		o.CompactionOverhead = keepAll
	}
	return o
}

func (c *logCut) done(index, bytes uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.last, c.bytes, c.at = index, bytes, time.Now()
}

// cutLogs asks for log snapshots: the store decides when, because Dragonboat's
// automatic ones cannot be held back for an unborn child.
func (h *Host) cutLogs(ctx context.Context) error {
	ticker := time.NewTicker(h.opts.LogSnapshotInterval)
	defer ticker.Stop()
	slots := make(chan struct{}, cutsAtOnce)
	var wg sync.WaitGroup
	defer wg.Wait()
	for {
		select {
		case <-ctx.Done():
			return nil
		case now := <-ticker.C:
			for _, cr := range h.catalog.Replicas() {
				r, ok := h.dueForCut(cr, now)
				if !ok {
					continue
				}
				select {
				case slots <- struct{}{}:
				case <-ctx.Done():
					return nil
				}
				wg.Go(func() {
					defer func() { <-slots }()
					h.cutLog(r, cr)
				})
			}
		}
	}
}

// dueForCut finds the running replica of cr if its log should be cut now.
func (h *Host) dueForCut(cr *catalog.Replica, now time.Time) (*replica, bool) {
	s, applied := cr.Both()
	r, ok := h.replica(s.RangeID())
	// A halted or poisoned replica lags behind what Raft takes for applied; a
	// joining one has nothing to cut.
	if !ok || !s.Serving() || r.replicaID != s.ReplicaID() {
		return nil, false
	}
	if unborn := s.Unborn(); len(unborn) > 0 {
		if r.cut.holds(now, h.opts.BirthAlarmAfter) {
			h.log.Warn("child is not born, the parent's log grows", "range", s.RangeID(),
				"child", unborn[0].GetRangeId(), "split_index", unborn[0].GetSplitIndex())
		}
		return nil, false
	}
	r.cut.released()
	return r, r.cut.due(h.opts, applied.Index, cr.WrittenBytes(), now)
}

// cutLog takes one log snapshot and waits for it. A split that is applied
// between the look at its children and the record leaves a record past the
// split. The entries stay (the cut lies a record further back) and are served
// until this store restarts; only a restart before the birth would turn a
// member that lags behind the split into one that needs an image.
func (h *Host) cutLog(r *replica, cr *catalog.Replica) {
	r.cut.busy.Lock()
	defer r.cut.busy.Unlock()
	if r.cut.stopped || !cr.State().Serving() || len(cr.State().Unborn()) > 0 {
		return
	}
	bytes := cr.WrittenBytes()
	rs, err := h.request(func() (*dragonboat.RequestState, error) {
		return h.nh.RequestSnapshot(r.rangeID, r.cut.option(), cutTimeout)
	})
	if err != nil {
		h.metrics.cuts.inc("refused")
		return
	}
	res, ok := await(rs, cutTimeout)
	switch {
	case ok && res.Completed():
		h.metrics.cuts.inc("taken")
		r.cut.done(res.SnapshotIndex(), bytes)
		h.log.Debug("log snapshot", "range", r.rangeID, "index", res.SnapshotIndex())
	case ok && res.Rejected(): // there is one at this index
		h.metrics.cuts.inc("refused")
		r.cut.done(cr.Applied().Index, bytes)
	default:
		h.metrics.cuts.inc("failed")
	}
}

// stopCuttingLogs waits for all log snapshots under way: from here on none
// can record an index of a replica that has stopped deciding.
func (h *Host) stopCuttingLogs() {
	h.replicas.Range(func(_, v any) bool {
		v.(*replica).cut.stop()
		return true
	})
}
