package engine

import (
	"context"
	"encoding/binary"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/ridgekv/ridge/proto/errs"
	"github.com/ridgekv/ridge/proto/ts"
)

// collectedHistory decides which old versions may be dropped.
//
// PD's safe point and the reads that are registered give the floor. A ring
// that remembers how far commit timestamps had come at some seqs turns the
// floor into a seq, and that is what Badger is told.
type collectedHistory struct {
	// highest is the highest commit timestamp in any commit so far. It runs
	// ahead of visible, never behind.
	highest atomic.Uint64

	mu struct {
		sync.Mutex
		started   bool
		safePoint ts.Timestamp
		// floor is where history begins for readers. It is raised here first,
		// then made durable, and only then versions are dropped.
		floor ts.Timestamp
		// durable is the floor that would survive a power loss.
		durable ts.Timestamp
		// reads counts the registered reads by timestamp. Invariant: none is
		// below floor.
		reads map[ts.Timestamp]int
		ring  []milestone
	}
}

// milestone: all commits up to seq have timestamps up to highest.
type milestone struct {
	seq     Seq
	highest ts.Timestamp
	at      time.Time
}

const (
	// milestoneInterval and maxMilestones bound the ring; when it is full,
	// every second one goes.
	milestoneInterval = time.Second
	maxMilestones     = 4096
)

// note is called before the commit that holds t gets its seq.
func (h *collectedHistory) note(t ts.Timestamp) {
	for {
		old := h.highest.Load()
		if uint64(t) <= old || h.highest.CompareAndSwap(old, uint64(t)) {
			return
		}
	}
}

// sample adds a milestone for a seq that is visible, when the last one is at
// least so old.
func (h *collectedHistory) sample(seq Seq, now time.Time, age time.Duration) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if !h.mu.started {
		return
	}
	n := len(h.mu.ring)
	if n > 0 && (seq <= h.mu.ring[n-1].seq || now.Sub(h.mu.ring[n-1].at) < age) {
		return
	}
	h.addLocked(milestone{seq: seq, highest: ts.Timestamp(h.highest.Load()), at: now})
}

func (h *collectedHistory) addLocked(m milestone) {
	if len(h.mu.ring) >= maxMilestones {
		kept := h.mu.ring[:0]
		for i := 0; i < len(h.mu.ring); i += 2 {
			kept = append(kept, h.mu.ring[i])
		}
		h.mu.ring = kept
	}
	h.mu.ring = append(h.mu.ring, m)
}

// StartGC allows old versions to be dropped. maxCommitTS is the highest
// commit timestamp in any range at the start of the process.
func (e *Engine) StartGC(maxCommitTS ts.Timestamp) {
	seq := e.Visible()
	e.gc.note(maxCommitTS)
	e.gc.mu.Lock()
	defer e.gc.mu.Unlock()
	if e.gc.mu.started {
		return
	}
	e.gc.mu.started = true
	e.gc.addLocked(milestone{
		seq: seq, highest: ts.Timestamp(e.gc.highest.Load()), at: time.Now(),
	})
}

// SetSafePoint tells PD's GC safe point. It never goes back.
func (e *Engine) SetSafePoint(t ts.Timestamp) {
	e.gc.mu.Lock()
	defer e.gc.mu.Unlock()
	e.gc.mu.safePoint = max(e.gc.mu.safePoint, t)
}

// Floor is the timestamp from which on history is complete.
func (e *Engine) Floor() ts.Timestamp {
	e.gc.mu.Lock()
	defer e.gc.mu.Unlock()
	return e.gc.mu.floor
}

// RegisterRead keeps the history at t until release is called. It fails with
// errs.TooOld when t lies below the floor.
func (e *Engine) RegisterRead(t ts.Timestamp) (release func(), err error) {
	h := &e.gc
	h.mu.Lock()
	defer h.mu.Unlock()
	if t < h.mu.floor {
		return nil, errs.TooOld{Requested: uint64(t), Floor: uint64(h.mu.floor)}
	}
	return h.registerLocked(t), nil
}

// holdFloor registers a read at the floor as it is.
func (h *collectedHistory) holdFloor() (floor ts.Timestamp, release func()) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.mu.floor, h.registerLocked(h.mu.floor)
}

func (h *collectedHistory) registerLocked(t ts.Timestamp) (release func()) {
	h.mu.reads[t]++
	return sync.OnceFunc(func() {
		h.mu.Lock()
		defer h.mu.Unlock()
		if h.mu.reads[t]--; h.mu.reads[t] == 0 {
			delete(h.mu.reads, t)
		}
	})
}

// raiseFloor moves the floor up to the safe point and the oldest read. It
// returns the floor when it is not yet durable.
func (h *collectedHistory) raiseFloor() (floor ts.Timestamp, dirty bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	to := h.mu.safePoint
	for t := range h.mu.reads {
		to = min(to, t)
	}
	h.mu.floor = max(h.mu.floor, to)
	return h.mu.floor, h.mu.floor > h.mu.durable
}

// discardable is the newest seq whose commits all lie at or below the
// durable floor, and that was visible before.
func (h *collectedHistory) discardable(before time.Time) (Seq, bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if !h.mu.started {
		return 0, false
	}
	i, _ := slices.BinarySearchFunc(h.mu.ring, h.mu.durable, func(m milestone, t ts.Timestamp) int {
		if m.highest <= t && !m.at.After(before) {
			return -1
		}
		return 1
	})
	if i == 0 {
		return 0, false
	}
	h.mu.ring = slices.Delete(h.mu.ring, 0, i-1)
	return h.mu.ring[0].seq, true
}

func (e *Engine) runGC(ctx context.Context) error {
	return every(ctx, e.opt.GCInterval, e.collectHistory)
}

// collectHistory raises the floor, makes it durable, and then lets Badger
// drop what no read may ask for any more.
func (e *Engine) collectHistory(ctx context.Context) error {
	now := time.Now()
	seq := e.Visible()
	e.gc.sample(seq, now, 0)
	if floor, dirty := e.gc.raiseFloor(); dirty {
		var w WriteSet
		w.record(opRecord, storeKey(storeFloor), binary.BigEndian.AppendUint64(nil, uint64(floor)))
		if err := e.Commit(&w); err != nil {
			return err
		}
		if err := e.Flush(ctx); err != nil {
			return err
		}
		e.gc.mu.Lock()
		e.gc.mu.durable = floor
		e.gc.mu.Unlock()
	}
	to, ok := e.gc.discardable(now.Add(-e.opt.gcDistance))
	if !ok || !e.bottomPopulated() {
		return nil
	}
	e.pins.advance(to, func(seq Seq) {
		e.db.SetDiscardTs(uint64(seq))
		e.metrics.discard.Set(float64(seq))
	})
	return nil
}

// bottomPopulated: on an empty bottom level a compaction inside L0 may drop a
// delete mark and leave the row that it covers.
func (e *Engine) bottomPopulated() bool {
	if e.enter() != nil {
		return false
	}
	defer e.leave()
	levels := e.db.Levels()
	return levels[len(levels)-1].NumTables > 0
}

func (e *Engine) loadFloor(v View) error {
	e.gc.mu.reads = make(map[ts.Timestamp]int)
	b, ok, err := v.record(storeKey(storeFloor))
	if err != nil || !ok {
		return err
	}
	if len(b) != 8 {
		return fmt.Errorf("engine: floor record of %d bytes", len(b))
	}
	floor := ts.Timestamp(binary.BigEndian.Uint64(b))
	// Not durable: after a kill only the kernel may hold it. The first round
	// writes it once more and flushes.
	e.gc.mu.floor, e.gc.mu.safePoint = floor, floor
	return nil
}
