package logstore

import "testing"

// aheadDisk counts the batches that reach beyond what was written, and sees
// zeros that are written over something.
type aheadDisk struct {
	disk
	t               *testing.T
	batches, beyond int
}

type aheadFile struct {
	file
	d       *aheadDisk
	end     int64 // of what is no zeros ahead
	written int64
}

func (d *aheadDisk) Open(name string, create bool) (file, error) {
	f, err := d.disk.Open(name, create)
	return &aheadFile{file: f, d: d}, err
}

func (f *aheadFile) WriteAt(b []byte, off int64) (int, error) {
	end := off + int64(len(b))
	if &b[0] == &zeros[0] {
		if off != f.end {
			f.d.t.Errorf("zeros at %d, the log ends at %d", off, f.end)
		}
	} else {
		f.d.batches++
		if f.end = max(f.end, end); end > f.written {
			f.d.beyond++
		}
	}
	if size, err := f.Size(); err != nil || end > size && off > 0 {
		f.d.t.Errorf("a write up to %d of %d reserved bytes: %v", end, size, err)
	}
	f.written = max(f.written, end)
	return f.file.WriteAt(b, off)
}

// TestWriteAhead: nearly all small batches overwrite, none is overwritten, and
// large ones pay for no zeros.
func TestWriteAhead(t *testing.T) {
	d := &aheadDisk{disk: newSimDisk(), t: t}
	s, err := open(Options{SegmentBytes: 2 << 20, Workers: 4}, d)
	must(t, err)
	first := uint64(1)
	for range 1000 {
		save(t, s, 1, first, 5, 1, 700)
		first += 5
	}
	if d.batches < 1000 || d.beyond > 30 {
		t.Errorf("%d of %d batches were written where nothing was", d.beyond, d.batches)
	}
	must(t, s.Close())
	s, err = open(Options{SegmentBytes: 2 << 20, Workers: 4}, d.disk)
	must(t, err)
	if got := read(t, s, 1, 1, first); len(got) != int(first-1) {
		t.Errorf("%d entries, want %d", len(got), first-1)
	}
	before := s.head.written
	save(t, s, 1, first, 4, 1, aheadBatchBytes)
	if s.head.written != s.head.end && s.head.written != before {
		t.Errorf("zeros up to %d behind a large batch that ends at %d", s.head.written, s.head.end)
	}
	must(t, s.Close())
}
