package engine

import (
	"encoding/binary"
	"fmt"
	"hash/maphash"
	"math"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/dgraph-io/badger/v4"
	"github.com/dgraph-io/badger/v4/skl"
)

// A commit is closed when it has grown to this, so that those who wait for it
// do not wait long. A single set may be larger.
const (
	commitSizeBytes = 4 << 20
	commitOps       = 8192
)

// opOverheadBytes is what Badger counts per entry beyond key and value.
const opOverheadBytes = 12

// reservedOps are left free in each commit for x|seq and x|extent.
const reservedOps = 4

// deleteMarkExpiry makes an entry a delete mark: Badger takes it for expired
// and reclaims it, but the key iterator still shows it.
const deleteMarkExpiry = 1

// committer gathers the write sets of all callers and commits them one after
// the other. While one commit is under way the next is built.
type committer struct {
	e    *Engine
	bell chan struct{}
	// busySince is when the commit under way began, in Unix nanoseconds; 0
	// when there is none.
	busySince atomic.Int64
	// committedBytes is what was taken into commits since the start.
	committedBytes atomic.Uint64

	mu struct {
		sync.Mutex
		// queue is bounded by the number of callers, as each one waits.
		queue  []*request
		closed bool
	}

	// Below: only the committer's goroutine.
	backlog  []item
	building *commit
	underWay *commit
	done     chan error
	lastSeq  Seq
	seed     maphash.Seed
	hashes   []uint64
}

// request is one call of Commit.
type request struct {
	sets []*WriteSet
	done chan error
}

// item is one set on its way; the last of a request carries it.
type item struct {
	set *WriteSet
	// pos is the first op not yet in a commit (image rows only).
	pos int
	req *request
}

// commit is one seq in the making.
type commit struct {
	txn       *badger.Txn
	keys      map[uint64]struct{}
	ops       int
	sizeBytes int
	// parts are all that it writes, for the row cache.
	parts []part
	// finished are the items of which this commit holds the last op.
	finished []item
	extent   Extent
	sealed   bool
	started  time.Time
}

// part is the ops [from, to) of a set.
type part struct {
	set      *WriteSet
	from, to int
}

// wrote notes ops of a set that were put into the commit.
func (to *commit) wrote(s *WriteSet, from, end int) {
	if n := len(to.parts); n > 0 && to.parts[n-1].set == s && to.parts[n-1].to == from {
		to.parts[n-1].to = end
		return
	}
	to.parts = append(to.parts, part{s, from, end})
}

func newCommitter(e *Engine, lastSeq Seq) *committer {
	return &committer{
		e: e, bell: make(chan struct{}, 1), done: make(chan error, 1),
		lastSeq: lastSeq, seed: maphash.MakeSeed(),
	}
}

// Commit commits the sets in order and returns when all are visible. Sets of
// several callers share a commit until a data key comes again. Any error
// means that the process must stop.
func (e *Engine) Commit(sets ...*WriteSet) error {
	req := &request{done: make(chan error, 1)}
	for _, s := range sets {
		// An empty set may still carry an extent that was handed out.
		if s == nil || s.Empty() && s.maxExtent == 0 {
			continue
		}
		if err := e.fits(s); err != nil {
			return err
		}
		req.sets = append(req.sets, s)
	}
	if len(req.sets) == 0 {
		return e.failure()
	}
	c := e.committer
	c.mu.Lock()
	if c.mu.closed {
		c.mu.Unlock()
		return ErrClosed
	}
	c.mu.queue = append(c.mu.queue, req)
	c.mu.Unlock()
	ring(c.bell)
	return <-req.done
}

// fits refuses a set that no commit can hold.
func (e *Engine) fits(s *WriteSet) error {
	ops, size := len(s.ops), len(s.arena)+len(s.ops)*opOverheadBytes
	if s.imageRows == ops {
		return nil // Divisible.
	}
	if ops > e.maxOps || size > e.maxSizeBytes {
		return fmt.Errorf("engine: write set of %d entries, %d bytes: the limits are %d, %d",
			ops, size, e.maxOps, e.maxSizeBytes)
	}
	return nil
}

// commitLimits are what Badger takes in one transaction.
func commitLimits(memTableSizeBytes int64) (ops, sizeBytes int) {
	size := memTableSizeBytes * 15 / 100
	return int(size/int64(skl.MaxNodeSize)) - reservedOps, int(size) - reservedOps*64
}

// run is the committer's goroutine. It ends when the queue is closed and
// empty.
func (c *committer) run() {
	for {
		closed := c.pull()
		if c.e.failure() != nil {
			c.refuseAll()
		}
		c.build()
		if c.underWay == nil && c.building != nil {
			c.dispatch()
			continue
		}
		if closed && c.underWay == nil {
			return
		}
		select {
		case <-c.bell:
		case err := <-c.done:
			c.finish(err)
		}
	}
}

func (c *committer) pull() (closed bool) {
	c.mu.Lock()
	queue := c.mu.queue
	c.mu.queue = nil
	closed = c.mu.closed
	c.mu.Unlock()
	for _, r := range queue {
		for i, s := range r.sets {
			it := item{set: s}
			if i == len(r.sets)-1 {
				it.req = r
			}
			c.backlog = append(c.backlog, it)
		}
	}
	return closed
}

// build moves sets from the backlog into the next commit, until it is sealed.
func (c *committer) build() {
	n := 0
	for n < len(c.backlog) {
		if c.building == nil {
			c.building = &commit{
				txn:  c.e.db.NewTransactionAt(math.MaxUint64, true),
				keys: make(map[uint64]struct{}, 64),
			}
		}
		if c.building.sealed || !c.add(c.building, &c.backlog[n]) {
			c.building.sealed = true
			break
		}
		n++
	}
	c.backlog = slices.Delete(c.backlog, 0, n)
}

// add puts an item into a commit. It returns false when the item, or the rest
// of it, belongs into the next one.
func (c *committer) add(to *commit, it *item) bool {
	s := it.set
	c.e.gc.note(s.maxTS)
	if s.imageRows > 0 {
		if it.pos == 0 {
			imagesFirst(s)
		}
		if !c.addImageRows(to, it) {
			return false
		}
	}
	rest := s.ops[it.pos:]
	if !to.hasRoom(rest) || !c.claim(to, s, rest) {
		return false
	}
	c.put(to, s, rest)
	to.wrote(s, it.pos, len(s.ops))
	to.finished = append(to.finished, *it)
	return true
}

// imagesFirst moves the rows of an image before everything else.
func imagesFirst(s *WriteSet) {
	slices.SortStableFunc(s.ops, func(a, b op) int {
		return boolToInt(b.image()) - boolToInt(a.image())
	})
}

func boolToInt(b bool) int {
	if b {
		return 1
	}
	return 0
}

func (o op) image() bool { return o.kind == opImage || o.kind == opImageMark }
func (o op) data() bool  { return o.kind <= opImageMark }

// addImageRows adds rows one by one until a key repeats or the commit is full.
func (c *committer) addImageRows(to *commit, it *item) bool {
	s := it.set
	for ; it.pos < len(s.ops) && s.ops[it.pos].image(); it.pos++ {
		one := s.ops[it.pos : it.pos+1]
		if !to.hasRoom(one) || !c.claim(to, s, one) {
			return false
		}
		c.put(to, s, one)
		to.wrote(s, it.pos, it.pos+1)
	}
	return true
}

func (to *commit) hasRoom(ops []op) bool {
	if to.ops == 0 || len(ops) == 0 {
		return true
	}
	return to.ops+len(ops) <= commitOps && to.sizeBytes+sizeOf(ops) <= commitSizeBytes
}

func sizeOf(ops []op) int {
	n := len(ops) * opOverheadBytes
	for _, o := range ops {
		n += int(o.keyLen + o.valueLen)
	}
	return n
}

// claim notes the data keys of ops as written by this commit. It returns
// false, and notes nothing, when one of them is already: a key gets one
// version per commit. Equal hashes of different keys do no harm.
func (c *committer) claim(to *commit, s *WriteSet, ops []op) bool {
	c.hashes = c.hashes[:0]
	for _, o := range ops {
		if !o.data() {
			continue
		}
		h := maphash.Bytes(c.seed, s.key(o))
		if _, taken := to.keys[h]; taken {
			return false
		}
		c.hashes = append(c.hashes, h)
	}
	for _, h := range c.hashes {
		to.keys[h] = struct{}{}
	}
	return true
}

// put adds ops to the transaction. Its errors cannot happen (fits, hasRoom)
// and are fatal.
func (c *committer) put(to *commit, s *WriteSet, ops []op) {
	entries := make([]badger.Entry, len(ops))
	for i, o := range ops {
		var err error
		switch o.kind {
		case opErase, opRecordDelete:
			err = to.txn.Delete(s.key(o))
		default:
			en := &entries[i]
			en.Key, en.Value = s.key(o), s.value(o)
			if o.kind == opMark || o.kind == opImageMark {
				en.ExpiresAt = deleteMarkExpiry
			}
			err = to.txn.SetEntry(en)
		}
		if err != nil {
			c.e.fail(fmt.Errorf("engine: build commit: %w", err))
			return
		}
	}
	to.ops += len(ops)
	to.sizeBytes += sizeOf(ops)
	c.committedBytes.Add(uint64(sizeOf(ops)))
	to.extent = max(to.extent, s.maxExtent)
}

// dispatch hands the commit that was built to Badger, with the next seq.
func (c *committer) dispatch() {
	next := c.building
	c.building = nil
	if err := c.e.failure(); err != nil {
		next.answer(err)
		return
	}
	seq := c.lastSeq + 1
	err := next.txn.Set(storeKey(storeSeq), binary.BigEndian.AppendUint64(nil, uint64(seq)))
	if x, ok := c.e.extents.toPersist(next.extent); ok && err == nil {
		err = next.txn.Set(storeKey(storeExtent), binary.BigEndian.AppendUint32(nil, uint32(x)))
		next.extent = x
	}
	if err != nil {
		c.e.fail(fmt.Errorf("engine: build commit %d: %w", seq, err))
		next.answer(c.e.failure())
		return
	}
	c.lastSeq, c.underWay = seq, next
	next.started = time.Now()
	c.busySince.Store(next.started.UnixNano())
	// An error known at once comes through the callback as well.
	_ = next.txn.CommitAt(uint64(seq), func(err error) { c.done <- err })
}

// finish publishes the commit under way and answers those who wait for it.
func (c *committer) finish(err error) {
	ended := c.underWay
	c.underWay = nil
	c.busySince.Store(0)
	if err != nil {
		c.e.fail(fmt.Errorf("engine: commit %d: %w", c.lastSeq, err))
		ended.answer(c.e.failure())
		return
	}
	c.e.extents.persisted(ended.extent)
	for _, it := range ended.finished {
		c.e.garbage.change(it.set.garbage, time.Now())
	}
	c.e.rows.commit(c.lastSeq, ended.parts) // Before visible moves: C1.
	c.e.publish(c.lastSeq)
	c.e.gc.sample(c.lastSeq, time.Now(), milestoneInterval)
	c.e.metrics.committed(ended)
	ended.answer(nil)
}

func (ended *commit) answer(err error) {
	for _, it := range ended.finished {
		if it.req != nil {
			it.req.done <- err
		}
	}
	ended.finished = nil
}

// refuseAll answers everything that waits, after a failure.
func (c *committer) refuseAll() {
	err := c.e.failure()
	if c.building != nil {
		c.building.answer(err)
		c.building = nil
	}
	for _, it := range c.backlog {
		if it.req != nil {
			it.req.done <- err
		}
	}
	c.backlog = nil
}

func (c *committer) close() {
	c.mu.Lock()
	c.mu.closed = true
	c.mu.Unlock()
	ring(c.bell)
}

func ring(bell chan struct{}) {
	select {
	case bell <- struct{}{}:
	default:
	}
}
