package logstore

import (
	"errors"
	"fmt"
	"io"
	"slices"
)

// recover reads all segments, oldest first, and makes the newest the head.
func (s *Store) recover() error {
	ids, err := s.listSegments()
	if err != nil {
		return err
	}
	if ids, err = s.dropUnborn(ids); err != nil {
		return err
	}
	if len(ids) == 0 {
		return s.begin()
	}
	segments := make([]*segment, len(ids))
	for i, id := range ids {
		if segments[i], err = s.openSegment(id); err != nil {
			return err
		}
		s.index.segments = append(s.index.segments, segments[i])
	}
	s.sequence = segments[0].sequence
	var buf []byte
	for i, seg := range segments {
		length := int64(-1)
		if i+1 < len(segments) {
			length = segments[i+1].previous
		}
		if buf, err = s.readSegment(seg, length, buf); err != nil {
			return err
		}
	}
	if err := s.index.check(); err != nil {
		return fmt.Errorf("%w: %w", ErrCorrupt, err)
	}
	for _, r := range s.index.replicas {
		r.state = r.logged
	}
	s.head = segments[len(segments)-1]
	return s.cutTail()
}

func (s *Store) begin() error {
	seg, err := createSegment(s.disk, 1, 1, 0)
	if err != nil {
		return err
	}
	s.head, s.sequence = seg, 1
	s.index.segments = []*segment{seg}
	return nil
}

// listSegments returns the ids in order. A hole among them is a lost file.
func (s *Store) listSegments() ([]uint32, error) {
	names, err := s.disk.List()
	if err != nil {
		return nil, fmt.Errorf("logstore: %w", err)
	}
	var ids []uint32
	for _, name := range names {
		if id := segmentID(name); id > 0 {
			ids = append(ids, id)
		}
	}
	slices.Sort(ids)
	for i := 1; i < len(ids); i++ {
		if ids[i] != ids[i-1]+1 {
			return nil, fmt.Errorf("%w: %s is missing between %s and %s", ErrCorrupt,
				segmentName(ids[i-1]+1), segmentName(ids[i-1]), segmentName(ids[i]))
		}
	}
	return ids, nil
}

// dropUnborn removes the newest segment if the power failed while it was
// created: its header, which is synced before anything else is written, is not
// whole and nothing follows.
func (s *Store) dropUnborn(ids []uint32) ([]uint32, error) {
	if len(ids) == 0 {
		return nil, nil
	}
	id := ids[len(ids)-1]
	name := segmentName(id)
	f, err := s.disk.Open(name, false)
	if err != nil {
		return nil, fmt.Errorf("logstore: %w", err)
	}
	data, err := readAll(f, nil)
	if err = errors.Join(err, f.Close()); err != nil {
		return nil, fmt.Errorf("logstore: read %s: %w", name, err)
	}
	if (&segment{id: id}).parseHeader(data) == nil {
		return ids, nil
	}
	for _, b := range data[min(len(data), headerBytes):] {
		if b != 0 {
			return ids, nil // openSegment says what is wrong with it
		}
	}
	if len(data) >= headerBytes && data[0] != 0 && string(data[:8]) != magic {
		return ids, nil
	}
	if err := errors.Join(s.disk.Remove(name), s.disk.Sync()); err != nil {
		return nil, fmt.Errorf("logstore: remove %s: %w", name, err)
	}
	return ids[:len(ids)-1], nil
}

func (s *Store) openSegment(id uint32) (*segment, error) {
	f, err := s.disk.Open(segmentName(id), false)
	if err != nil {
		return nil, fmt.Errorf("logstore: %w", err)
	}
	seg := &segment{id: id, file: f}
	header := make([]byte, headerBytes)
	n, err := f.ReadAt(header, 0)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, errors.Join(fmt.Errorf("logstore: read %s: %w", segmentName(id), err), f.Close())
	}
	if err := seg.parseHeader(header[:n]); err != nil {
		return nil, errors.Join(fmt.Errorf("%w: %s: %w", ErrCorrupt, segmentName(id), err), f.Close())
	}
	return seg, nil
}

func readAll(f file, buf []byte) ([]byte, error) {
	size, err := f.Size()
	if err != nil {
		return nil, err
	}
	buf = slices.Grow(buf[:0], int(size))[:size]
	n, err := f.ReadAt(buf, 0)
	if errors.Is(err, io.EOF) {
		err = nil
	}
	return buf[:n], err
}

// readSegment applies the batches of a segment. Its length is known when
// another one follows, else -1: then it ends with the last whole batch, and
// what follows is a write that was never acknowledged, provided that no later
// batch was written, because that is only done after a sync.
func (s *Store) readSegment(seg *segment, length int64, buf []byte) ([]byte, error) {
	name := segmentName(seg.id)
	data, err := readAll(seg.file, buf)
	if err != nil {
		return nil, fmt.Errorf("logstore: read %s: %w", name, err)
	}
	if seg.sequence != s.sequence {
		return nil, fmt.Errorf("%w: %s begins with batch %d instead of %d", ErrCorrupt, name,
			seg.sequence, s.sequence)
	}
	off := headerBytes
	for int64(off) != length {
		payload, next, ok := seg.batchAt(data, off, s.sequence)
		if !ok {
			break
		}
		base := uint32(off) + batchHeadBytes
		err := decode(payload, func(r record) error {
			s.index.apply(r, place{segment: seg.id, off: base + r.off, size: r.size})
			return nil
		})
		if err != nil {
			return nil, fmt.Errorf("%w: %s at %d: %w", ErrCorrupt, name, off, err)
		}
		off = next
		s.sequence++
	}
	seg.end = int64(off)
	if length >= 0 && seg.end != length {
		return nil, fmt.Errorf("%w: %s cannot be read at %d, it ends at %d", ErrCorrupt, name, off,
			length)
	}
	if length < 0 {
		if at, found := seg.laterBatch(data, off, s.sequence); found {
			return nil, fmt.Errorf("%w: %s cannot be read at %d, but what was written later, at %d, "+
				"can", ErrCorrupt, name, off, at)
		}
	}
	return data, nil
}

// cutTail removes what follows the last whole batch, so that it cannot be
// taken for a part of a later one.
func (s *Store) cutTail() error {
	size, err := s.head.file.Size()
	if err == nil && size != s.head.end {
		err = errors.Join(s.head.file.Truncate(s.head.end), s.head.file.Sync())
	}
	if err != nil {
		return fmt.Errorf("logstore: cut %s: %w", segmentName(s.head.id), err)
	}
	return nil
}
