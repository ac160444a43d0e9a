package logstore

import (
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"strconv"
	"strings"
	"sync"
)

// A segment is a header and batches, each at a multiple of 8:
//
//	header: magic(8) version(4) id(4) salt(8) sequence(8) previous(8) 0(4) crc32c(4)
//	batch:  crc32c(4) size(4) sequence(8) payload(size)
//
// The checksum of a batch covers the segment's salt, the rest of its head and
// its payload, so nothing that somebody wrote into a value looks like a batch.
const (
	headerBytes    = 48
	batchHeadBytes = 16
	batchAlign     = 8
	formatVersion  = 1
	magic          = "RIDGELOG"
	// allocateBytes is how much of a segment is reserved at a time, at most.
	allocateBytes = 8 << 20
	// aheadBytes of zeros are written behind a batch that reaches where nothing
	// was written yet, unless it is larger than aheadBatchBytes.
	aheadBytes      = 256 << 10
	aheadBatchBytes = 64 << 10
	// maxPayloadBytes bounds a batch; more is given only to a single request.
	maxPayloadBytes = 64 << 20
)

// segment is one file of the log.
type segment struct {
	id   uint32
	file file
	salt uint64
	// sequence is that of the first batch, previous the length of the segment
	// before this one.
	sequence uint64
	previous int64
	// end is where the next batch begins; everything before it is synced. It
	// and allocated belong to who leads a write, and to mu for everyone else.
	end, allocated int64
	// written is how far anything was written, zeros included: at least end.
	written int64
	// live is how many bytes of records are still needed. Guarded by Store.mu.
	live int64
	// use is held by readers of the file, so that it is closed after them. It
	// is taken for reading only under Store.mu, while the segment is in the
	// index.
	use sync.RWMutex
}

func segmentName(id uint32) string { return fmt.Sprintf("%010d.log", id) }

// segmentID is 0 for a name that is not that of a segment.
func segmentID(name string) uint32 {
	digits, ok := strings.CutSuffix(name, ".log")
	if !ok || len(digits) != 10 {
		return 0
	}
	id, err := strconv.ParseUint(digits, 10, 32)
	if err != nil {
		return 0
	}
	return uint32(id)
}

// createSegment makes a segment that outlives a power failure.
func createSegment(d disk, id uint32, sequence uint64, previous int64) (*segment, error) {
	f, err := d.Open(segmentName(id), true)
	if err != nil {
		return nil, fmt.Errorf("logstore: create %s: %w", segmentName(id), err)
	}
	s := &segment{
		id: id, file: f, salt: salt(), sequence: sequence, previous: previous, end: headerBytes,
	}
	_, err = f.WriteAt(s.header(), 0)
	if err = errors.Join(err, f.Sync(), d.Sync()); err != nil {
		return nil, errors.Join(fmt.Errorf("logstore: create %s: %w", segmentName(id), err), f.Close())
	}
	return s, nil
}

func salt() uint64 {
	var b [8]byte
	_, _ = rand.Read(b[:]) // never fails
	return binary.LittleEndian.Uint64(b[:])
}

func (s *segment) header() []byte {
	b := make([]byte, 0, headerBytes)
	b = append(b, magic...)
	b = binary.LittleEndian.AppendUint32(b, formatVersion)
	b = binary.LittleEndian.AppendUint32(b, s.id)
	b = binary.LittleEndian.AppendUint64(b, s.salt)
	b = binary.LittleEndian.AppendUint64(b, s.sequence)
	b = binary.LittleEndian.AppendUint64(b, uint64(s.previous))
	b = binary.LittleEndian.AppendUint32(b, 0)
	return binary.LittleEndian.AppendUint32(b, crc32.Checksum(b, castagnoli))
}

// parseHeader reads what header wrote.
func (s *segment) parseHeader(b []byte) error {
	if len(b) < headerBytes {
		return errors.New("it is shorter than its header")
	}
	b = b[:headerBytes]
	sum := binary.LittleEndian.Uint32(b[headerBytes-4:])
	switch {
	case string(b[:8]) != magic || sum != crc32.Checksum(b[:headerBytes-4], castagnoli):
		return errors.New("its header is damaged")
	case binary.LittleEndian.Uint32(b[8:]) != formatVersion:
		return fmt.Errorf("it has format %d, this binary knows %d",
			binary.LittleEndian.Uint32(b[8:]), formatVersion)
	case binary.LittleEndian.Uint32(b[12:]) != s.id:
		return fmt.Errorf("it is segment %d", binary.LittleEndian.Uint32(b[12:]))
	}
	s.salt = binary.LittleEndian.Uint64(b[16:])
	s.sequence = binary.LittleEndian.Uint64(b[24:])
	s.previous = int64(binary.LittleEndian.Uint64(b[32:]))
	return nil
}

// checksum of a batch, whose own first four bytes do not count.
func (s *segment) checksum(batch []byte) uint32 {
	var salt [8]byte
	binary.LittleEndian.PutUint64(salt[:], s.salt)
	return crc32.Update(crc32.Checksum(salt[:], castagnoli), castagnoli, batch[4:])
}

// seal fills in the head of a batch, which has room for it, and pads it.
func (s *segment) seal(batch []byte, sequence uint64) []byte {
	binary.LittleEndian.PutUint32(batch[4:], uint32(len(batch)-batchHeadBytes))
	binary.LittleEndian.PutUint64(batch[8:], sequence)
	binary.LittleEndian.PutUint32(batch, s.checksum(batch))
	for len(batch)%batchAlign != 0 {
		batch = append(batch, 0)
	}
	return batch
}

// batchAt returns the payload of the batch at off, and where the next begins;
// ok is false if there is no whole batch of that sequence.
func (s *segment) batchAt(
	data []byte, off int, sequence uint64,
) (payload []byte, next int, ok bool) {
	if off+batchHeadBytes > len(data) {
		return nil, 0, false
	}
	b := data[off:]
	size := int(binary.LittleEndian.Uint32(b[4:]))
	if binary.LittleEndian.Uint64(b[8:]) != sequence || size > len(b)-batchHeadBytes {
		return nil, 0, false
	}
	b = b[:batchHeadBytes+size]
	if binary.LittleEndian.Uint32(b) != s.checksum(b) {
		return nil, 0, false
	}
	next = (off + len(b) + batchAlign - 1) / batchAlign * batchAlign
	return b[batchHeadBytes:], next, true
}

// laterBatch finds a whole batch after off that was written after sequence.
func (s *segment) laterBatch(data []byte, off int, sequence uint64) (at int, found bool) {
	for at = off + batchAlign; at+batchHeadBytes <= len(data); at += batchAlign {
		q := binary.LittleEndian.Uint64(data[at+8:])
		if q <= sequence || q-sequence > uint64(len(data)) {
			continue
		}
		if _, _, ok := s.batchAt(data, at, q); ok {
			return at, true
		}
	}
	return 0, false
}

// reserve makes room for a batch that ends at end, a step at a time.
func (s *segment) reserve(end, step int64) error {
	if end <= s.allocated {
		return nil
	}
	size := (end + step - 1) / step * step
	if err := s.file.Allocate(size); err != nil {
		return err
	}
	s.allocated = size
	return nil
}

// writeAhead writes zeros behind a small batch that ends at end, in room that
// was reserved, so that the next batches overwrite. It is the file system that
// gains: blocks that are reserved and were never written read as zeros by a note
// in its journal, and a sync must change the note and write the journal first.
// Large batches share that among many entries. What is there reads as before,
// and the zeros are synced with the batch, or not: nobody relies on them.
func (s *segment) writeAhead(batchBytes, end int64) error {
	if end <= s.written {
		return nil
	}
	s.written = end
	ahead := min(int64(len(zeros)), s.allocated-end)
	if batchBytes > aheadBatchBytes || ahead <= 0 {
		return nil
	}
	if _, err := s.file.WriteAt(zeros[:ahead], end); err != nil {
		return err
	}
	s.written = end + ahead
	return nil
}

var zeros [aheadBytes]byte
