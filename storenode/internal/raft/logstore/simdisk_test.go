package logstore

import (
	"errors"
	"io"
	"maps"
	"math/rand/v2"
	"os"
	"slices"
	"sync"
)

var errPower = errors.New("the power is gone")

// simDisk is a disk that loses its power: what was not synced is then there or
// not, sector by sector and name by name.
type simDisk struct {
	mu sync.Mutex
	// names are what a process sees, durable what a sync has promised.
	names, durable map[string]*simFile
	// left is how many operations succeed before the power fails; -1: all.
	left int
	// failSync makes the next sync of a file fail once.
	failSync error
	// forgetful: after a failed sync the kernel takes what was not written for
	// clean. It is read as before, but no later sync writes it.
	forgetful bool
}

type simFile struct {
	disk *simDisk
	data []byte
	// durable is what a sync has promised, pending what came after.
	durable []byte
	pending []simWrite
}

// simWrite is a write, or with nil data a change of size.
type simWrite struct {
	off  int64
	data []byte
}

func newSimDisk() *simDisk {
	return &simDisk{names: map[string]*simFile{}, durable: map[string]*simFile{}, left: -1}
}

// step counts an operation. It needs mu.
func (d *simDisk) step() error {
	if d.left == 0 {
		return errPower
	}
	if d.left > 0 {
		d.left--
	}
	return nil
}

func (d *simDisk) failAfter(n int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.left = n
}

func (d *simDisk) List() ([]string, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.Collect(maps.Keys(d.names)), nil
}

func (d *simDisk) Open(name string, create bool) (file, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	f, ok := d.names[name]
	if ok == create {
		return nil, os.ErrInvalid
	}
	if create {
		if err := d.step(); err != nil {
			return nil, err
		}
		f = &simFile{disk: d}
		d.names[name] = f
	}
	return f, nil
}

func (d *simDisk) Remove(name string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.step(); err != nil {
		return err
	}
	delete(d.names, name)
	return nil
}

func (d *simDisk) Sync() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.step(); err != nil {
		return err
	}
	d.durable = maps.Clone(d.names)
	return nil
}

func (f *simFile) ReadAt(b []byte, off int64) (int, error) {
	f.disk.mu.Lock()
	defer f.disk.mu.Unlock()
	if off >= int64(len(f.data)) {
		return 0, io.EOF
	}
	n := copy(b, f.data[off:])
	if n < len(b) {
		return n, io.EOF
	}
	return n, nil
}

func (f *simFile) WriteAt(b []byte, off int64) (int, error) {
	f.disk.mu.Lock()
	defer f.disk.mu.Unlock()
	w := simWrite{off: off, data: slices.Clone(b)}
	f.pending = append(f.pending, w)
	f.data = w.on(f.data)
	// A write that fails has been done in part.
	return len(b), f.disk.step()
}

func (f *simFile) Truncate(size int64) error { return f.resize(size) }

func (f *simFile) Allocate(size int64) error {
	f.disk.mu.Lock()
	grow := size > int64(len(f.data))
	f.disk.mu.Unlock()
	if !grow {
		return nil
	}
	return f.resize(size)
}

func (f *simFile) resize(size int64) error {
	f.disk.mu.Lock()
	defer f.disk.mu.Unlock()
	if err := f.disk.step(); err != nil {
		return err
	}
	w := simWrite{off: size}
	f.pending = append(f.pending, w)
	f.data = w.on(f.data)
	return nil
}

func (f *simFile) Sync() error {
	f.disk.mu.Lock()
	defer f.disk.mu.Unlock()
	err := f.disk.failSync
	f.disk.failSync = nil
	if err == nil {
		err = f.disk.step()
	}
	if err != nil {
		if f.disk.forgetful {
			f.pending = nil
		}
		return err
	}
	for _, w := range f.pending {
		f.durable = w.on(f.durable)
	}
	f.pending = nil
	return nil
}

func (f *simFile) Close() error { return nil }

func (f *simFile) Size() (int64, error) {
	f.disk.mu.Lock()
	defer f.disk.mu.Unlock()
	return int64(len(f.data)), nil
}

// on does the write to data.
func (w simWrite) on(data []byte) []byte {
	end := w.off + int64(len(w.data))
	if w.data == nil && end < int64(len(data)) {
		return data[:end:end]
	}
	if end > int64(len(data)) {
		data = append(data, make([]byte, end-int64(len(data)))...)
	}
	copy(data[w.off:], w.data)
	return data
}

// crash returns what the next process finds.
func (d *simDisk) crash(r *rand.Rand) *simDisk {
	d.mu.Lock()
	defer d.mu.Unlock()
	after := newSimDisk()
	names := slices.Sorted(maps.Keys(d.names))
	for name := range d.durable {
		if !slices.Contains(names, name) {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	for _, name := range names {
		f, promised := d.durable[name]
		now, there := d.names[name]
		if !promised || !there {
			if r.IntN(2) == 0 {
				continue // created or removed, and either may be so
			}
			if !promised {
				f = now
			}
		}
		data := f.torn(r)
		after.names[name] = &simFile{disk: after, data: data, durable: slices.Clone(data)}
	}
	after.durable = maps.Clone(after.names)
	return after
}

const simSector = 64 // small, so that small batches are torn too

// torn is the content after a crash: each sector of each pending write is
// there or not, and so is each change of size.
func (f *simFile) torn(r *rand.Rand) []byte {
	data := slices.Clone(f.durable)
	for _, w := range f.pending {
		mode := r.IntN(4)
		switch {
		case mode == 0:
		case mode == 1 || w.data == nil:
			data = w.on(data)
		default:
			for at := 0; at < len(w.data); at += simSector {
				if r.IntN(2) == 0 {
					part := w.data[at:min(at+simSector, len(w.data))]
					data = simWrite{off: w.off + int64(at), data: part}.on(data)
				}
			}
		}
	}
	return data
}
