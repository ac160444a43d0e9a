package engine

import (
	"bytes"
	"context"
	"fmt"
	"iter"
	"slices"
	"time"

	"github.com/dgraph-io/badger/v4"

	"github.com/ridgekv/ridge/proto/keys"
	"github.com/ridgekv/ridge/proto/ts"
)

// ScanOptions say what Scan reads.
type ScanOptions struct {
	// Context ends the scan. Nil: it cannot be ended from outside.
	Context context.Context
	// Slices to read, in order of their spans and disjoint.
	Slices []Slice
	// Span limits the keys within the slices.
	Span keys.Span
	// Reverse yields the keys in descending order.
	Reverse bool
	// KeysOnly leaves Row.Value empty.
	KeysOnly bool
	// At is the timestamp to read at; 0 reads the newest versions.
	At ts.Timestamp
	// Limit ends the scan after so many rows, and spares reading ahead.
	// 0: no limit.
	Limit int
}

// KeyRow is a row with its key. Its memory is its own.
type KeyRow struct {
	Key []byte
	Row Row
}

// A scan reads chunk after chunk and closes its iterator between them, so that a
// slow consumer, which gets copies meanwhile, holds no memtable. Chunks grow to
// these sizes.
const (
	firstChunkRows = 64
	maxChunkRows   = 1024
	chunkSizeBytes = 1 << 20
	// chunkTime ends a chunk that finds little, and checkItems is how many
	// items pass between two looks at the clock and the context.
	chunkTime  = 10 * time.Second
	checkItems = 256
	// skipVersions are passed one by one before a seek is cheaper.
	skipVersions = 16
)

// Scan yields the rows in the order of their keys. Deleted ones are skipped.
// After an error it ends.
func (v View) Scan(o ScanOptions) iter.Seq2[KeyRow, error] {
	return func(yield func(KeyRow, error) bool) {
		var c chunk
		err := v.scan(o, c.begin, c.add, func() bool {
			for _, r := range c.rows {
				if !yield(r, nil) {
					return false
				}
			}
			return true
		})
		if err != nil {
			yield(KeyRow{}, err)
		}
	}
}

// Visit calls each with the rows that Scan would yield until it returns false.
// Key and value are good until each returns: nothing is copied, so each runs while
// an iterator is open. It must not wait for anything.
func (v View) Visit(o ScanOptions, each func(key []byte, row Row) bool) error {
	return v.scan(o, func(int) {}, each, func() bool { return true })
}

// scan reads chunk after chunk: it calls begin with the rows that a chunk may
// have, take with each row, and settle when the iterator is closed again. Both of
// the latter return false to end the scan.
func (v View) scan(
	o ScanOptions, begin func(rows int), take func(key []byte, row Row) bool, settle func() bool,
) error {
	if o.Context == nil {
		o.Context = context.Background()
	}
	release, err := v.e.pins.hold(v.seq)
	if err != nil {
		return err
	}
	defer release()
	left := o.Limit
	for i := range o.Slices {
		x := o.Slices[i]
		if o.Reverse {
			x = o.Slices[len(o.Slices)-1-i]
		}
		span := x.Span.Intersect(o.Span)
		if !span.Valid() {
			continue
		}
		s := newScanner(v, o, boundsOf(kindData, x.Extent, span))
		s.row = take
		for chunkRows := firstChunkRows; !s.ends; chunkRows *= 4 {
			s.chunkRows = min(chunkRows, maxChunkRows)
			if o.Limit > 0 {
				s.chunkRows = min(left, maxChunkRows)
			}
			begin(s.chunkRows)
			if err := s.readChunk(); err != nil {
				return err
			}
			left -= s.taken
			if !settle() || s.over || o.Limit > 0 && left == 0 {
				return nil
			}
		}
	}
	return nil
}

// chunk holds copies of rows.
type chunk struct {
	max   int
	rows  []KeyRow
	block []byte
}

func (c *chunk) begin(rows int) {
	c.max, c.rows, c.block = rows, make([]KeyRow, 0, rows), nil
}

func (c *chunk) add(key []byte, row Row) bool {
	row.Value = c.copy(row.Value)
	c.rows = append(c.rows, KeyRow{Key: c.copy(key), Row: row})
	return true
}

// copy puts b into a block that the rows of a chunk share.
func (c *chunk) copy(b []byte) []byte {
	if b == nil {
		return nil
	}
	if len(b) > cap(c.block)-len(c.block) {
		blockBytes := min(16<<10, max(512, c.max*128))
		if len(b) > blockBytes/4 {
			return append(make([]byte, 0, len(b)), b...)
		}
		c.block = make([]byte, 0, blockBytes)
	}
	from := len(c.block)
	c.block = append(c.block, b...)
	return c.block[from:len(c.block):len(c.block)]
}

// scanner reads one slice.
type scanner struct {
	v View
	o ScanOptions
	b bounds
	// row takes the rows; it returns false to end the scan, and then over is set.
	row  func(key []byte, row Row) bool
	over bool
	// pos is where the next chunk begins: the first key of it forward, the
	// key above it in reverse.
	pos  []byte
	ends bool

	chunkRows int
	// taken, sizeBytes and items count what the chunk has, and passed.
	taken, sizeBytes, items int
	deadline                time.Time
	// now is when the chunk began, in seconds, as Badger tells expired entries.
	now uint64
}

func newScanner(v View, o ScanOptions, b bounds) *scanner {
	s := &scanner{v: v, o: o, b: b, pos: b.lo}
	if o.Reverse {
		s.pos = b.hi
	}
	return s
}

// readChunk hands on the rows of a chunk and closes the iterator again.
func (s *scanner) readChunk() error {
	if err := s.v.e.enter(); err != nil {
		return err
	}
	defer s.v.e.leave()
	if err := s.o.Context.Err(); err != nil {
		return fmt.Errorf("engine: scan: %w", err)
	}
	s.taken, s.sizeBytes, s.items = 0, 0, 0
	now := time.Now()
	s.deadline, s.now = now.Add(chunkTime), uint64(now.Unix())
	it := s.v.txn.NewIterator(badger.IteratorOptions{
		Prefix: s.b.prefix, Reverse: s.o.Reverse, AllVersions: s.o.At != 0,
	})
	defer it.Close()
	var err error
	switch {
	case !s.o.Reverse:
		err = s.forward(merged(it))
	case s.o.At == 0:
		err = s.reverseNewest(it)
	default:
		err = s.reverseAt(it)
	}
	if err != nil {
		return fmt.Errorf("engine: scan: %w", err)
	}
	return nil
}

// reverseNewest takes the items of a plain iterator, which skips deleted ones.
func (s *scanner) reverseNewest(it *badger.Iterator) error {
	for it.Seek(s.pos); it.Valid(); it.Next() {
		item := it.Item()
		if over, skip := s.outside(item.Key()); over {
			break
		} else if skip {
			continue
		}
		row, erased, err := itemRow(item)
		if err != nil {
			return err
		}
		if erased || row.Deleted {
			return fmt.Errorf("%w: a plain iterator gave a deleted row", errCorruptRow)
		}
		s.take(item.Key(), row)
		if full, err := s.full(); full || err != nil {
			s.resumeAfter(item.Key())
			return err
		}
	}
	s.ends = true
	return nil
}

// reverseAt picks of each key the newest version at or below At. The keys
// come in descending order, the versions of a key oldest first.
func (s *scanner) reverseAt(it *badger.Iterator) error {
	var key []byte
	var found Row
	have := false
	settle := func() {
		if have {
			s.take(key, found)
		}
		have = false
	}
	for it.Seek(s.pos); it.Valid(); it.Next() {
		item := it.Item()
		over, skip := s.outside(item.Key())
		if over {
			break
		} else if skip {
			continue
		}
		if !bytes.Equal(item.Key(), key) {
			settle()
			if key != nil {
				if full, err := s.full(); full || err != nil {
					s.resumeAfter(key)
					return err
				}
			}
			key = append(key[:0], item.Key()...)
		}
		row, erased, err := itemRow(item)
		switch {
		case err != nil:
			return err
		case erased:
			have = false
		case row.CommitTS <= s.o.At:
			have = !row.Deleted
			row.Value = append(found.Value[:0], row.Value...)
			found = row
		}
	}
	settle()
	s.ends = true
	return nil
}

// outside reports that the slice is over, or that the key lies before its
// beginning (in reverse, a seek may land on the bound itself).
func (s *scanner) outside(key []byte) (over, skip bool) {
	if s.o.Reverse {
		return bytes.Compare(key, s.b.lo) < 0, bytes.Compare(key, s.pos) >= 0
	}
	return bytes.Compare(key, s.b.hi) >= 0, false
}

// resumeAfter lets the next chunk begin behind key.
func (s *scanner) resumeAfter(key []byte) {
	if s.o.Reverse {
		s.pos = slices.Clone(key)
		return
	}
	s.pos = keys.Next(key)
}

// full reports that the chunk should end here.
func (s *scanner) full() (bool, error) {
	if s.over || s.taken >= s.chunkRows || s.sizeBytes >= chunkSizeBytes {
		return true, nil
	}
	if s.items++; s.items%checkItems != 0 {
		return false, nil
	}
	if err := s.o.Context.Err(); err != nil {
		return false, err
	}
	return time.Now().After(s.deadline), nil
}

// take hands a row on.
func (s *scanner) take(rawKey []byte, row Row) {
	key := rawKey[extentSizeBytes:]
	if s.o.KeysOnly {
		row.Value = nil
	}
	s.taken++
	s.sizeBytes += len(key) + len(row.Value)
	s.over = !s.row(key, row)
}
