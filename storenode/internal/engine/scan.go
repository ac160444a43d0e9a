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

// A scan reads chunk after chunk and closes its iterator before it yields, so
// that a slow consumer holds no memtable. Chunks grow to these sizes.
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
		if o.Context == nil {
			o.Context = context.Background()
		}
		release, err := v.e.pins.hold(v.seq)
		if err != nil {
			yield(KeyRow{}, err)
			return
		}
		defer release()
		left := o.Limit
		for i := range o.Slices {
			s := o.Slices[i]
			if o.Reverse {
				s = o.Slices[len(o.Slices)-1-i]
			}
			span := s.Span.Intersect(o.Span)
			if !span.Valid() {
				continue
			}
			sc := newScanner(v, o, boundsOf(kindData, s.Extent, span))
			if !sc.yieldAll(&left, yield) {
				return
			}
		}
	}
}

// scanner reads one slice.
type scanner struct {
	v View
	o ScanOptions
	b bounds
	// pos is where the next chunk begins: the first key of it forward, the
	// key above it in reverse.
	pos  []byte
	ends bool

	chunkRows int
	rows      []KeyRow
	sizeBytes int
	deadline  time.Time
	items     int
	block     []byte
}

func newScanner(v View, o ScanOptions, b bounds) *scanner {
	s := &scanner{v: v, o: o, b: b, pos: b.lo, chunkRows: firstChunkRows}
	if o.Reverse {
		s.pos = b.hi
	}
	return s
}

// yieldAll reads the slice to its end. It returns false when the scan is over.
func (s *scanner) yieldAll(left *int, yield func(KeyRow, error) bool) bool {
	for !s.ends {
		if s.o.Limit > 0 {
			s.chunkRows = min(*left, maxChunkRows)
		}
		if err := s.readChunk(); err != nil {
			yield(KeyRow{}, err)
			return false
		}
		for _, r := range s.rows {
			if !yield(r, nil) {
				return false
			}
			if *left--; *left == 0 {
				return false
			}
		}
		s.chunkRows = min(s.chunkRows*4, maxChunkRows)
	}
	return true
}

// readChunk fills rows and closes the iterator again.
func (s *scanner) readChunk() error {
	if err := s.v.e.enter(); err != nil {
		return err
	}
	defer s.v.e.leave()
	if err := s.o.Context.Err(); err != nil {
		return fmt.Errorf("engine: scan: %w", err)
	}
	s.rows, s.sizeBytes, s.items = make([]KeyRow, 0, s.chunkRows), 0, 0
	s.block = nil
	s.deadline = time.Now().Add(chunkTime)
	it := s.v.txn.NewIterator(badger.IteratorOptions{
		Prefix: s.b.prefix, Reverse: s.o.Reverse, AllVersions: s.o.At != 0,
	})
	defer it.Close()
	it.Seek(s.pos)
	var err error
	switch {
	case s.o.At == 0:
		err = s.newest(it)
	case s.o.Reverse:
		err = s.reverseAt(it)
	default:
		err = s.forwardAt(it)
	}
	if err != nil {
		return fmt.Errorf("engine: scan: %w", err)
	}
	return nil
}

// newest takes the items of a plain iterator, which skips deleted ones.
func (s *scanner) newest(it *badger.Iterator) error {
	for ; it.Valid(); it.Next() {
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

// forwardAt picks of each key the newest version at or below At. The
// versions come newest first.
func (s *scanner) forwardAt(it *badger.Iterator) error {
	var key []byte // The key that is decided.
	passed := 0
	for it.Valid() {
		item := it.Item()
		if over, _ := s.outside(item.Key()); over {
			break
		}
		if bytes.Equal(item.Key(), key) {
			if passed++; passed < skipVersions {
				it.Next()
			} else {
				it.Seek(keys.Next(key))
			}
			continue
		}
		row, erased, err := itemRow(item)
		if err != nil {
			return err
		}
		if erased || row.CommitTS <= s.o.At {
			key, passed = append(key[:0], item.Key()...), 0
			if !erased && !row.Deleted {
				s.take(key, row)
			}
			if full, err := s.full(); full || err != nil {
				s.resumeAfter(key)
				return err
			}
		}
		it.Next()
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
	for ; it.Valid(); it.Next() {
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
	if len(s.rows) >= s.chunkRows || s.sizeBytes >= chunkSizeBytes {
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

// take copies a row into the chunk.
func (s *scanner) take(rawKey []byte, row Row) {
	key := s.copy(rawKey[extentSizeBytes:])
	if s.o.KeysOnly {
		row.Value = nil
	} else {
		row.Value = s.copy(row.Value)
	}
	s.sizeBytes += len(key) + len(row.Value)
	s.rows = append(s.rows, KeyRow{Key: key, Row: row})
}

// copy puts b into a block that the rows of a chunk share.
func (s *scanner) copy(b []byte) []byte {
	if len(b) > cap(s.block)-len(s.block) {
		blockBytes := min(16<<10, max(512, s.chunkRows*128))
		if len(b) > blockBytes/4 {
			return append(make([]byte, 0, len(b)), b...)
		}
		s.block = make([]byte, 0, blockBytes)
	}
	from := len(s.block)
	s.block = append(s.block, b...)
	return s.block[from:len(s.block):len(s.block)]
}
