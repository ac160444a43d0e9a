// Package system starts the clusters that are compared, three members each and
// every member a process of its own on loopback, and speaks to them. Law: all
// systems get the same calls in the same form, each over its own Go client with
// the settings that suit it best; what those are is written where they are set.
package system

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/ridgekv/ridge/tests/harness"
)

// System is a cluster under test.
type System interface {
	// Start starts the processes in a directory that exists and is empty, and
	// waits until they serve.
	Start(ctx context.Context, dir string) error
	// Open connects as a fresh client program would.
	Open(ctx context.Context) (Conn, error)
	// Processes are all that Start has started.
	Processes() []*harness.Process
	// Close ends every process.
	Close() error
}

// Conn is a client program's connections to a system.
type Conn interface {
	// Caller is what the n-th of many concurrent callers uses.
	Caller(n int) Caller
	// Load writes rows in whatever batches the system likes best.
	Load(ctx context.Context, rows []Row) error
	Close() error
}

// Caller does one thing at a time. Keys and values are not kept.
type Caller interface {
	// Get is linearizable where the system can do that. A key that is missing
	// is an error: the workloads read only what was loaded.
	Get(ctx context.Context, key string) ([]byte, error)
	Put(ctx context.Context, key string, value []byte) error
	// Scan returns the first limit rows from start on, and none from end on.
	Scan(ctx context.Context, start, end string, limit int) ([]Row, error)
}

// Batcher is a caller that can do many things in one call, not atomically.
type Batcher interface {
	// GetMany returns how many of the keys exist.
	GetMany(ctx context.Context, keys []string) (found int, err error)
	PutMany(ctx context.Context, rows []Row) error
}

// Row is a key with its value.
type Row struct {
	Key   string
	Value []byte
}

// ErrUnsupported is what a call gives that a system does not have.
var ErrUnsupported = errors.New("the system has no such call")

var errMissing = errors.New("a key that was loaded is missing")

// Suspend stops every process where it stands. Memory, caches and files stay as
// they are, so a system comes back as warm as it went, which a restart would
// not give. Its members lose their leaders meanwhile: see Resume.
func Suspend(s System) {
	for _, p := range s.Processes() {
		p.Pause()
	}
}

// Resume continues every process, connects, and waits until the system has
// found its leaders again: steady is how long every one of the probes, a Put and
// a Get of a row each, must have gone well before anything is measured.
func Resume(ctx context.Context, s System, probes []Row, steady time.Duration) (Conn, error) {
	for _, p := range s.Processes() {
		p.Resume()
	}
	var conn Conn
	err := harness.Eventually(ctx, time.Minute, "the system serves",
		func(ctx context.Context) (err error) {
			if conn == nil {
				if conn, err = open(ctx, s); err != nil {
					conn = nil
					return err
				}
			}
			for began := time.Now(); time.Since(began) < steady; {
				if err := probe(ctx, conn, probes); err != nil {
					return err
				}
				harness.Rest(ctx, 50*time.Millisecond)
			}
			return nil
		})
	if err != nil && conn != nil {
		return nil, errors.Join(err, conn.Close())
	}
	return conn, err
}

// tryTimeout is how long one try to reach a system that was just continued may
// take. Its first answers may never come.
const tryTimeout = 5 * time.Second

func open(ctx context.Context, s System) (Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, tryTimeout)
	defer cancel()
	return s.Open(ctx)
}

func probe(ctx context.Context, conn Conn, probes []Row) error {
	ctx, cancel := context.WithTimeout(ctx, tryTimeout)
	defer cancel()
	faults := make([]error, len(probes))
	var wg sync.WaitGroup
	for i, row := range probes {
		wg.Go(func() {
			faults[i] = conn.Caller(i).Put(ctx, row.Key, row.Value)
			if faults[i] == nil {
				_, faults[i] = conn.Caller(i).Get(ctx, row.Key)
			}
		})
	}
	wg.Wait()
	return errors.Join(faults...)
}

// members are three processes of a program that is not Ridge.
type members struct{ processes []*harness.Process }

func (m *members) Processes() []*harness.Process { return m.processes }

func (m *members) Close() error {
	for _, p := range m.processes {
		p.Resume()
		p.Kill()
	}
	return nil
}

// start starts one member; its data lies in dir/name.
func (m *members) start(name, dir, binary string, args ...string) error {
	data := filepath.Join(dir, name)
	if err := os.MkdirAll(data, 0o755); err != nil {
		return err
	}
	p := harness.NewProcess(binary, name, dir, "", append(args, "--name", name, "--dir", data)...)
	m.processes = append(m.processes, p)
	return p.Start()
}

// check reports members that have ended, with their last words.
func (m *members) check() error {
	for _, p := range m.processes {
		if !p.Running() {
			text := p.Output()
			return fmt.Errorf("%s has ended: %s", p.Name, text[max(0, len(text)-2000):])
		}
	}
	return nil
}

// addresses returns n loopback addresses that nothing listens on.
func addresses(n int) ([]string, error) {
	var out []string
	for range n {
		a, err := harness.FreeAddress()
		if err != nil {
			return nil, err
		}
		out = append(out, a)
	}
	return out, nil
}

// inParallel gives load the rows in batches, callers at a time.
func inParallel(
	ctx context.Context, rows []Row, batch, callers int,
	load func(ctx context.Context, caller int, rows []Row) error,
) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	work := make(chan []Row)
	var wg sync.WaitGroup
	for i := range callers {
		wg.Go(func() {
			for part := range work {
				if err := load(ctx, i, part); err != nil {
					cancel(err)
				}
			}
		})
	}
	for part := range slices.Chunk(rows, batch) {
		select {
		case work <- part:
			continue
		case <-ctx.Done():
		}
		break
	}
	close(work)
	wg.Wait()
	return context.Cause(ctx)
}
