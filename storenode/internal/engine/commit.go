package engine

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"hash/maphash"
	"slices"
	"sync"
	"sync/atomic"
	"time"

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

// maxStoredKeyBytes is the longest key that Badger's Txn takes. Its memtable keeps
// lengths in 16 bits and looks at none.
const maxStoredKeyBytes = 65000

// keptClaims is how many keys a commit may have for its table of them to be
// used again.
const keptClaims = 1024

// reservedOps are left free in each commit for x|seq and x|extent.
const reservedOps = 4

// deleteMarkExpiry makes an entry a delete mark: Badger takes it for expired
// and reclaims it, but the key iterator still shows it.
const deleteMarkExpiry = 1

// committer gathers the write sets of all callers and commits them one after
// the other: those that come while one is under way share the next.
type committer struct {
	e      *Engine
	bell   chan struct{}
	badger *badgerWriter
	// busySince is when the commit under way began, in Unix nanoseconds; 0
	// when there is none.
	busySince atomic.Int64
	// requests are those that were answered, to be used again.
	requests sync.Pool
	// committedBytes is what was taken into commits since the start.
	committedBytes atomic.Uint64

	mu struct {
		sync.Mutex
		// queue is bounded by the number of callers, as each one waits.
		queue  []*request
		closed bool
	}

	// Below: only the committer's goroutine.
	backlog []item
	// building is the commit that grows, or nil; its memory is kept for the next.
	building *commit
	kept     commit
	lastSeq  Seq
	seed     maphash.Seed
	hashes   []uint64
	// claimed are the hashes of the data keys in building.
	claimed map[uint64]struct{}
	// writes are the ops of the commit under way, in order of key.
	writes []write
	// seqKey and seqValue are the record that ends a commit.
	seqKey, seqValue []byte
}

// write is one op on its way to Badger. order is its place in the commit.
type write struct {
	set   *WriteSet
	op    op
	order int
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
	ops       int
	sizeBytes int
	// parts are all that it writes, in order.
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

func newCommitter(e *Engine, lastSeq Seq) (*committer, error) {
	w, err := newBadgerWriter(e.db)
	return &committer{
		e: e, bell: make(chan struct{}, 1), badger: w,
		lastSeq: lastSeq, seed: maphash.MakeSeed(), claimed: make(map[uint64]struct{}),
		seqKey: storeKey(storeSeq),
	}, err
}

// Commit commits the sets in order and returns when all are visible. Sets of
// several callers share a commit until a data key comes again. Any error
// means that the process must stop.
func (e *Engine) Commit(sets ...*WriteSet) error {
	c := e.committer
	req, ok := c.requests.Get().(*request)
	if !ok {
		req = &request{done: make(chan error, 1)}
	}
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
	c.mu.Lock()
	if c.mu.closed {
		c.mu.Unlock()
		return ErrClosed
	}
	c.mu.queue = append(c.mu.queue, req)
	c.mu.Unlock()
	ring(c.bell)
	select {
	case err := <-req.done:
		// Whoever answers lets go of it.
		clear(req.sets)
		req.sets = req.sets[:0]
		c.requests.Put(req)
		return err
	case <-e.broken: // The committer may be held up in Badger for good.
		return e.failure()
	}
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
		switch {
		case c.building != nil:
			c.commit(c.building)
			c.building = nil
		case closed:
			return
		default:
			<-c.bell
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
			c.kept = commit{parts: c.kept.parts[:0], finished: c.kept.finished[:0]}
			c.building = &c.kept
			if len(c.claimed) > keptClaims {
				c.claimed = make(map[uint64]struct{}) // To clear it costs as it once grew.
			}
			clear(c.claimed)
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
	if !c.hasRoom(to, rest) || !c.claim(s, rest) {
		return false
	}
	c.put(to, s, it.pos, len(s.ops))
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
		if !c.hasRoom(to, one) || !c.claim(s, one) {
			return false
		}
		c.put(to, s, it.pos, it.pos+1)
	}
	return true
}

func (c *committer) hasRoom(to *commit, ops []op) bool {
	if to.ops == 0 || len(ops) == 0 {
		return true
	}
	return to.ops+len(ops) <= min(commitOps, c.e.maxOps) &&
		to.sizeBytes+sizeOf(ops) <= min(commitSizeBytes, c.e.maxSizeBytes)
}

func sizeOf(ops []op) int {
	n := len(ops) * opOverheadBytes
	for _, o := range ops {
		n += int(o.keyLen + o.valueLen)
	}
	return n
}

// claim notes the data keys of ops as written by the commit that is built. It returns
// false, and notes nothing, when one of them is already: a key gets one
// version per commit. Equal hashes of different keys do no harm.
func (c *committer) claim(s *WriteSet, ops []op) bool {
	c.hashes = c.hashes[:0]
	for _, o := range ops {
		if !o.data() {
			continue
		}
		h := maphash.Bytes(c.seed, s.key(o))
		if _, taken := c.claimed[h]; taken {
			return false
		}
		c.hashes = append(c.hashes, h)
	}
	for _, h := range c.hashes {
		c.claimed[h] = struct{}{}
	}
	return true
}

// put takes the ops [from, to) of a set into the commit.
func (c *committer) put(to *commit, s *WriteSet, from, end int) {
	ops := s.ops[from:end]
	to.wrote(s, from, end)
	to.ops += len(ops)
	size := sizeOf(ops)
	to.sizeBytes += size
	c.committedBytes.Add(uint64(size))
	to.extent = max(to.extent, s.maxExtent)
}

// commit gives Badger what was built, under the next seq, publishes it and
// answers those who wait for it.
func (c *committer) commit(next *commit) {
	if err := c.e.failure(); err != nil {
		next.answer(err)
		return
	}
	next.started = time.Now()
	c.busySince.Store(next.started.UnixNano())
	seq := c.lastSeq + 1
	err := c.write(seq, next)
	c.busySince.Store(0)
	if err != nil {
		c.e.fail(fmt.Errorf("engine: commit %d: %w", seq, err))
		next.answer(c.e.failure())
		return
	}
	c.lastSeq = seq
	c.e.extents.persisted(next.extent)
	for _, it := range next.finished {
		c.e.garbage.change(it.set.garbage, time.Now())
	}
	c.e.rows.commit(seq, next.parts) // Before visible moves: C1.
	c.e.publish(seq)
	c.e.gc.sample(seq, time.Now(), milestoneInterval)
	c.e.metrics.committed(next)
	next.answer(nil)
}

// write is the commit as one request to Badger, in order of key, each key
// once: the last write of a key wins.
func (c *committer) write(seq Seq, next *commit) error {
	if next.ops > c.e.maxOps || next.sizeBytes > c.e.maxSizeBytes {
		return fmt.Errorf("%d entries, %d bytes: the limits are %d, %d",
			next.ops, next.sizeBytes, c.e.maxOps, c.e.maxSizeBytes)
	}
	keySizeBytes, longest := reservedOps*64, uint32(0)
	for _, p := range next.parts {
		for _, o := range p.set.ops[p.from:p.to] {
			c.writes = append(c.writes, write{p.set, o, len(c.writes)})
			keySizeBytes += int(o.keyLen)
			longest = max(longest, o.keyLen)
		}
	}
	if longest > maxStoredKeyBytes {
		return fmt.Errorf("a key of %d bytes: the limit is %d", longest, maxStoredKeyBytes)
	}
	slices.SortFunc(c.writes, func(a, b write) int {
		if d := bytes.Compare(a.set.key(a.op), b.set.key(b.op)); d != 0 {
			return d
		}
		return a.order - b.order
	})
	b := c.badger
	b.begin(len(c.writes)+reservedOps, keySizeBytes)
	for i, w := range c.writes {
		key := w.set.key(w.op)
		if i+1 < len(c.writes) && bytes.Equal(key, c.writes[i+1].set.key(c.writes[i+1].op)) {
			continue
		}
		switch w.op.kind {
		case opErase, opRecordDelete:
			b.add(seq, key, nil, 0, metaTxn|metaDelete)
		case opMark, opImageMark:
			b.add(seq, key, w.set.value(w.op), deleteMarkExpiry, metaTxn)
		default:
			b.add(seq, key, w.set.value(w.op), 0, metaTxn)
		}
	}
	clear(c.writes)
	c.writes = c.writes[:0]
	if x, ok := c.e.extents.toPersist(next.extent); ok {
		b.add(seq, storeKey(storeExtent), binary.BigEndian.AppendUint32(nil, uint32(x)), 0,
			metaTxn)
		next.extent = x
	}
	// Last: assertPrefix takes a commit with it for whole.
	c.seqValue = binary.BigEndian.AppendUint64(c.seqValue[:0], uint64(seq))
	b.add(seq, c.seqKey, c.seqValue, 0, metaTxn)
	return b.commit(seq)
}

func (ended *commit) answer(err error) {
	for _, it := range ended.finished {
		if it.req != nil {
			it.req.done <- err
		}
	}
	clear(ended.finished)
	clear(ended.parts)
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
