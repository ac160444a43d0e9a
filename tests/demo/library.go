package main

import (
	"bytes"
	"context"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/ridgekv/ridge/client"
	"github.com/ridgekv/ridge/proto/errs"
	"github.com/ridgekv/ridge/proto/keys"
	kvpb "github.com/ridgekv/ridge/proto/ridge/kv/v1"
)

// row is a line of the library: its key is path:line.
type row struct{ key, value string }

// readLibrary reads every line of every Go file of the standard library (the
// commands of the distribution are not of it), in the order of the keys.
func readLibrary(ctx context.Context, root string) ([]row, error) {
	if root == "" {
		out, err := exec.CommandContext(ctx, "go", "env", "GOROOT").Output()
		if err != nil {
			return nil, fmt.Errorf("go env GOROOT: %w", err)
		}
		root = filepath.Join(strings.TrimSpace(string(out)), "src")
	}
	var rows []row
	err := filepath.WalkDir(root, func(path string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(root, path)
		if err != nil {
			return err
		}
		if e.IsDir() && rel == "cmd" {
			return fs.SkipDir
		}
		if !e.Type().IsRegular() || !strings.HasSuffix(path, ".go") {
			return nil
		}
		text, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		rows = appendLines(rows, filepath.ToSlash(rel), text)
		return nil
	})
	slices.SortFunc(rows, func(a, b row) int { return strings.Compare(a.key, b.key) })
	return rows, err
}

func appendLines(rows []row, path string, text []byte) []row {
	text = bytes.TrimSuffix(text, []byte("\n"))
	n := 0
	for line := range strings.SplitSeq(string(text), "\n") {
		n++
		rows = append(rows, row{fmt.Sprintf("%s:%d", path, n), line[:min(len(line), maxPart)]})
		// A few generated lines are longer than a value may be. They go on in
		// rows of their own, path:line+1 and so on.
		for part := 1; len(line) > part*maxPart; part++ {
			rows = append(rows, row{
				fmt.Sprintf("%s:%d+%d", path, n, part),
				line[part*maxPart : min(len(line), (part+1)*maxPart)],
			})
		}
	}
	return rows
}

// maxPart is how much of a line one row holds.
const maxPart = keys.MaxValueSizeBytes

func sizeOf(rows []row) uint64 {
	n := 0
	for _, r := range rows {
		n += len(r.key) + len(r.value)
	}
	return uint64(n)
}

// loader writes rows in batches, several at a time, and writes again what was
// refused or of unknown outcome: it is the only writer and the values are the
// same, so nobody can tell.
type loader struct {
	kv       *client.Client
	rows     []row
	parallel int
	// half is closed when half of the rows are written.
	half chan struct{}

	next, done       atomic.Int64
	pending, unknown atomic.Int64
	longest          atomic.Int64
}

const batchRows = 1000

func (l *loader) run(ctx context.Context) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var wg sync.WaitGroup
	var once sync.Once
	for range l.parallel {
		wg.Go(func() {
			for {
				to := int(l.next.Add(batchRows))
				from := to - batchRows
				if from >= len(l.rows) || ctx.Err() != nil {
					return
				}
				batch := l.rows[from:min(to, len(l.rows))]
				if err := l.write(ctx, batch); err != nil {
					cancel(err)
					return
				}
				if l.done.Add(int64(len(batch))) >= int64(len(l.rows)/2) {
					once.Do(func() { close(l.half) })
				}
			}
		})
	}
	wg.Wait()
	return context.Cause(ctx)
}

func (l *loader) write(ctx context.Context, batch []row) error {
	rest := make([]client.Mutation, 0, len(batch))
	for _, r := range batch {
		rest = append(rest, client.Mutation{Key: []byte(r.key), Value: []byte(r.value)})
	}
	began := time.Now()
	for {
		r, err := l.kv.BulkWrite(ctx, rest)
		if err == nil {
			break
		}
		l.pending.Add(int64(len(r.Pending)))
		l.unknown.Add(int64(len(r.Unknown)))
		again := make([]client.Mutation, 0, len(r.Pending)+len(r.Unknown))
		for _, i := range append(r.Unknown, r.Pending...) {
			again = append(again, rest[i])
		}
		hopeless := errs.Class(err) == kvpb.ErrorClass_ERROR_CLASS_FAIL
		if len(again) == 0 || hopeless || ctx.Err() != nil || time.Since(began) > 2*time.Minute {
			return fmt.Errorf("load: %w", err)
		}
		rest = again
	}
	took := int64(time.Since(began))
	for old := l.longest.Load(); took > old && !l.longest.CompareAndSwap(old, took); {
		old = l.longest.Load()
	}
	return nil
}
