package logstore

import (
	"cmp"
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
	buf, last, err := s.load(ids)
	if err != nil {
		return err
	}
	for _, r := range s.index.replicas {
		r.state = r.logged
	}
	s.head = s.index.segments[len(ids)-1]
	return s.settle(buf, last)
}

// load reads segments into the index. It returns the content of the last one
// and where its last whole batch begins.
func (s *Store) load(ids []uint32) (buf []byte, last int, err error) {
	segments := make([]*segment, len(ids))
	for i, id := range ids {
		if segments[i], err = s.openSegment(id); err != nil {
			return nil, 0, err
		}
		s.index.segments = append(s.index.segments, segments[i])
	}
	s.sequence = segments[0].sequence
	for i, seg := range segments {
		length := int64(-1)
		if i+1 < len(segments) {
			length = segments[i+1].previous
		}
		if buf, last, err = s.readSegment(seg, length, buf); err != nil {
			return nil, 0, err
		}
	}
	if err := s.index.check(); err != nil {
		return nil, 0, fmt.Errorf("%w: %w", ErrCorrupt, err)
	}
	return buf, last, nil
}

// Owner is a replica that a log belongs to.
type Owner struct{ RangeID, ReplicaID uint64 }

// List returns the replicas of which a log holds anything, and leaves the
// directory as it is. No store may be running on it.
func List(dir string) ([]Owner, error) {
	s := &Store{disk: readOnly{directory(dir)}, index: newIndex()}
	ids, err := s.listSegments()
	if err != nil {
		return nil, err
	}
	unborn, err := s.unborn(ids)
	if err != nil {
		return nil, err
	}
	if unborn {
		ids = ids[:len(ids)-1]
	}
	if len(ids) == 0 {
		return nil, nil
	}
	_, _, err = s.load(ids)
	if err := errors.Join(err, s.closeFiles()); err != nil {
		return nil, err
	}
	var all []Owner
	for of := range s.index.replicas {
		all = append(all, Owner{RangeID: of.ShardID, ReplicaID: of.ReplicaID})
	}
	slices.SortFunc(all, func(a, b Owner) int {
		return cmp.Or(cmp.Compare(a.RangeID, b.RangeID), cmp.Compare(a.ReplicaID, b.ReplicaID))
	})
	return all, nil
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

// dropUnborn removes the newest segment if it is unborn.
func (s *Store) dropUnborn(ids []uint32) ([]uint32, error) {
	unborn, err := s.unborn(ids)
	if err != nil || !unborn {
		return ids, err
	}
	name := segmentName(ids[len(ids)-1])
	if err := errors.Join(s.disk.Remove(name), s.disk.Sync()); err != nil {
		return nil, fmt.Errorf("logstore: remove %s: %w", name, err)
	}
	return ids[:len(ids)-1], nil
}

// unborn reports whether the power failed while the newest segment was created:
// its header, which is synced before anything else is written, is not whole and
// nothing follows.
func (s *Store) unborn(ids []uint32) (bool, error) {
	if len(ids) == 0 {
		return false, nil
	}
	id := ids[len(ids)-1]
	name := segmentName(id)
	f, err := s.disk.Open(name, false)
	if err != nil {
		return false, fmt.Errorf("logstore: %w", err)
	}
	data, err := readAll(f, nil)
	if err = errors.Join(err, f.Close()); err != nil {
		return false, fmt.Errorf("logstore: read %s: %w", name, err)
	}
	if (&segment{id: id}).parseHeader(data) == nil {
		return false, nil
	}
	for _, b := range data[min(len(data), headerBytes):] {
		if b != 0 {
			return false, nil // openSegment says what is wrong with it
		}
	}
	return len(data) < headerBytes || data[0] == 0 || string(data[:8]) == magic, nil
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
// batch was written, because that is only done after a sync. It returns the
// content of the segment, and where the last whole batch begins.
func (s *Store) readSegment(
	seg *segment, length int64, buf []byte,
) (data []byte, last int, err error) {
	name := segmentName(seg.id)
	data, err = readAll(seg.file, buf)
	if err != nil {
		return nil, 0, fmt.Errorf("logstore: read %s: %w", name, err)
	}
	if seg.sequence != s.sequence {
		return nil, 0, fmt.Errorf("%w: %s begins with batch %d instead of %d", ErrCorrupt, name,
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
			return nil, 0, fmt.Errorf("%w: %s at %d: %w", ErrCorrupt, name, off, err)
		}
		last, off = off, next
		s.sequence++
	}
	seg.end = int64(off)
	if length >= 0 && seg.end != length {
		return nil, 0, fmt.Errorf("%w: %s cannot be read at %d, it ends at %d", ErrCorrupt, name, off,
			length)
	}
	if length < 0 {
		if at, found := seg.laterBatch(data, off, s.sequence); found {
			return nil, 0, fmt.Errorf("%w: %s cannot be read at %d, but what was written later, at %d, "+
				"can", ErrCorrupt, name, off, at)
		}
	}
	return data, last, nil
}

// settle makes what was found durable, before anybody acts on it, and removes
// what follows, so that it cannot be taken for a part of a later batch. The
// process before may have been killed between a write and its sync; or the sync
// has failed, after which the kernel may take for clean what the disk has never
// seen. Only the last batch can be such, or the header of a segment without
// one, and the name of that segment: so they are written and synced again.
func (s *Store) settle(data []byte, last int) error {
	f := s.head.file
	err := f.Truncate(s.head.end)
	if err == nil {
		// The padding may be missing; Truncate has brought it back.
		_, err = f.WriteAt(data[last:min(s.head.end, int64(len(data)))], int64(last))
	}
	if err = errors.Join(err, f.Sync(), s.disk.Sync()); err != nil {
		return fmt.Errorf("logstore: settle %s: %w", segmentName(s.head.id), err)
	}
	return nil
}
