package logstore

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// disk is one directory, as the log needs it. Tests put one in its place that
// loses power, or whose syncs fail.
type disk interface {
	// List returns the names of all files.
	List() ([]string, error)
	// Open opens a file for reading and writing, or creates it.
	Open(name string, create bool) (file, error)
	Remove(name string) error
	// Sync makes created and removed names outlive a power failure.
	Sync() error
}

// file is one segment on a disk.
type file interface {
	io.ReaderAt
	io.WriterAt
	io.Closer
	// Sync makes what was written outlive a power failure.
	Sync() error
	// Truncate sets the size.
	Truncate(size int64) error
	// Allocate reserves blocks up to size, which read as zeros.
	Allocate(size int64) error
	Size() (int64, error)
}

// directory is the real disk.
type directory string

func (d directory) List() ([]string, error) {
	entries, err := os.ReadDir(string(d))
	if err != nil {
		return nil, err
	}
	names := make([]string, len(entries))
	for i, e := range entries {
		names[i] = e.Name()
	}
	return names, nil
}

func (d directory) Open(name string, create bool) (file, error) {
	flags := os.O_RDWR
	if create {
		flags |= os.O_CREATE | os.O_EXCL
	}
	f, err := os.OpenFile(filepath.Join(string(d), name), flags, 0o640)
	if err != nil {
		return nil, err
	}
	return osFile{f}, nil
}

func (d directory) Remove(name string) error {
	return os.Remove(filepath.Join(string(d), name))
}

func (d directory) Sync() error {
	f, err := os.Open(string(d))
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

// readOnly is a directory that is only looked at.
type readOnly struct{ directory }

func (d readOnly) Open(name string, _ bool) (file, error) {
	f, err := os.Open(filepath.Join(string(d.directory), name))
	if err != nil {
		return nil, err
	}
	return osFile{f}, nil
}

type osFile struct{ *os.File }

// Sync is fdatasync: times of access and change may be lost, sizes are not.
func (f osFile) Sync() error {
	for {
		err := unix.Fdatasync(int(f.Fd()))
		if !errors.Is(err, unix.EINTR) {
			return os.NewSyscallError("fdatasync", err)
		}
	}
}

// Allocate saves the journal a change of size and blocks with every sync. It
// is a help, not a promise: not every file system can.
func (f osFile) Allocate(size int64) error {
	for {
		err := unix.Fallocate(int(f.Fd()), 0, 0, size)
		switch {
		case errors.Is(err, unix.EINTR):
		case errors.Is(err, unix.EOPNOTSUPP), errors.Is(err, unix.ENOSYS):
			return nil
		default:
			return os.NewSyscallError("fallocate", err)
		}
	}
}

func (f osFile) Size() (int64, error) {
	info, err := f.Stat()
	if err != nil {
		return 0, err
	}
	return info.Size(), nil
}

// newDirectory makes dir and the name of it durable.
func newDirectory(dir string) (directory, error) {
	if err := os.MkdirAll(dir, 0o750); err != nil {
		return "", fmt.Errorf("logstore: %w", err)
	}
	if err := directory(filepath.Dir(dir)).Sync(); err != nil {
		return "", fmt.Errorf("logstore: %w", err)
	}
	return directory(dir), nil
}
