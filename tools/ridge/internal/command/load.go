package command

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/dustin/go-humanize"
	"github.com/spf13/cobra"

	"github.com/ridgekv/ridge/client"
	"github.com/ridgekv/ridge/proto/errs"
	kvpb "github.com/ridgekv/ridge/proto/ridge/kv/v1"
)

const (
	// A chunk is one BulkWrite. It fits into a log entry even if all of it
	// falls into one range.
	chunkRows      = 2000
	chunkSizeBytes = 2 << 20
)

func newLoad() *cobra.Command {
	var c connection
	l := loader{}
	cmd := &cobra.Command{
		Use:   "load FILE|-",
		Short: "Write the rows of a JSON Lines file",
		Long: `Write the rows of a JSON Lines file, or of the standard input.

Each line is {"key": "k", "value": "v"}; bytes that are no text are given in
base64 as key_b64 and value_b64. Rows are written in batches. When a batch's
outcome is unknown its rows are written again: that gives the same rows.

With --resume FILE the progress is kept in FILE, and the same command goes on
where the last one stopped.`,
		Args: cobra.ExactArgs(1),
	}
	cmd.Flags().StringVar(&l.resume, "resume", "", "file that keeps the progress")
	cmd.Flags().IntVar(&l.parallel, "parallel", 4, "batches in flight")
	cmd.Flags().DurationVar(&l.patience, "retry-for", time.Minute,
		"how long a batch is tried again while the cluster is not available")
	cmd.Flags().BoolVar(&l.failOnUnknown, "fail-on-unknown", false,
		"stop when the outcome of a batch is unknown")
	return c.add(cmd, func(cmd *cobra.Command, args []string) error {
		if l.parallel < 1 || l.parallel > 256 {
			return usagef("--parallel: %d is not between 1 and 256", l.parallel)
		}
		in, size, err := openInput(cmd, args[0])
		if err != nil {
			return err
		}
		defer in.Close()
		kv, err := c.client(cmd.Context())
		if err != nil {
			return err
		}
		defer kv.Close()
		l.kv, l.source = kv, absolute(args[0])
		l.bar = newBar(cmd.ErrOrStderr(), size, "loading")
		began := time.Now()
		err = l.run(cmd.Context(), in)
		l.bar.finish()
		took := time.Since(began)
		if c.json() {
			err = errors.Join(err, c.object(cmd.OutOrStdout(), map[string]any{
				"rows": l.rows, "bytes": l.bytes, "seconds": took.Seconds(),
			}))
		} else {
			fmt.Fprintf(cmd.ErrOrStderr(), "loaded %s rows, %s in %s (%s rows/s)\n",
				humanize.Comma(l.rows), humanize.IBytes(uint64(l.bytes)), took.Round(time.Millisecond),
				humanize.Comma(int64(float64(l.rows)/max(took.Seconds(), 1e-3))))
		}
		return err
	})
}

func openInput(cmd *cobra.Command, name string) (io.ReadCloser, int64, error) {
	if name == "-" {
		return io.NopCloser(cmd.InOrStdin()), -1, nil
	}
	f, err := os.Open(name)
	if err != nil {
		return nil, 0, err
	}
	info, err := f.Stat()
	if err == nil && info.IsDir() {
		err = fmt.Errorf("%s is a directory", name)
	}
	if err != nil {
		_ = f.Close()
		return nil, 0, err
	}
	return f, info.Size(), nil
}

func absolute(name string) string {
	if abs, err := filepath.Abs(name); err == nil && name != "-" {
		return abs
	}
	return name
}

// bulkWriter is what load needs of a client.
type bulkWriter interface {
	BulkWrite(
		ctx context.Context, mutations []client.Mutation, opts ...client.Option,
	) (client.BulkResult, error)
}

// loader writes lines in chunks, several at a time, and knows up to which line
// everything is written.
type loader struct {
	kv             bulkWriter
	source, resume string
	parallel       int
	patience       time.Duration
	failOnUnknown  bool
	bar            *bar

	rows, bytes int64
	saved       time.Time
}

// progress is the resume file of load.
type progress struct {
	Source string `json:"source"`
	// Offset and Line tell up to where everything is written.
	Offset int64 `json:"offset"`
	Line   int64 `json:"line"`
}

// chunk is a batch under way. Its keys are its own until it is done: a later
// row of the same key waits, so that the last line wins.
type chunk struct {
	mutations []client.Mutation
	bytes     int64
	end       progress
	done      chan error
}

func (l *loader) run(ctx context.Context, in io.Reader) error {
	at, err := l.start(in)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	lines := newLineReader(in)
	lines.line, lines.offset = at.Line, at.Offset

	var flight []*chunk
	busy := map[string]bool{}
	settle := func() error { // the oldest chunk of the flight
		first := flight[0]
		flight = flight[1:]
		if err := <-first.done; err != nil {
			return err
		}
		for _, m := range first.mutations {
			delete(busy, string(m.Key))
		}
		l.rows += int64(len(first.mutations))
		l.bytes += first.bytes
		at = first.end
		l.bar.set(at.Offset)
		return l.save(at, false)
	}
	var readErr, writeErr error
	for readErr == nil && writeErr == nil {
		var next *chunk
		next, readErr = l.read(lines)
		if len(next.mutations) == 0 {
			continue
		}
		for len(flight) > 0 && (len(flight) >= l.parallel || collides(next, busy)) && writeErr == nil {
			writeErr = settle()
		}
		if writeErr != nil {
			break
		}
		for _, m := range next.mutations {
			busy[string(m.Key)] = true
		}
		flight = append(flight, next)
		wg.Go(func() { next.done <- l.write(ctx, next.mutations) })
	}
	for len(flight) > 0 && writeErr == nil {
		writeErr = settle()
	}
	if errors.Is(readErr, io.EOF) {
		readErr = nil
	}
	if writeErr != nil {
		writeErr = fmt.Errorf("after line %d: %w", at.Line, writeErr)
	}
	err = errors.Join(writeErr, readErr)
	if err != nil && l.resume == "" {
		err = fmt.Errorf("%w\nthe rows up to line %d are loaded; loading a row twice is harmless",
			err, at.Line)
	}
	return errors.Join(err, l.save(at, true))
}

func collides(c *chunk, busy map[string]bool) bool {
	for _, m := range c.mutations {
		if busy[string(m.Key)] {
			return true
		}
	}
	return false
}

// start reads the resume file and moves in to where it points.
func (l *loader) start(in io.Reader) (progress, error) {
	at := progress{Source: l.source}
	if l.resume == "" {
		return at, nil
	}
	if err := readState(l.resume, &at); err != nil {
		return at, err
	}
	if at.Source != l.source {
		return at, fmt.Errorf("--resume %s belongs to %s, not to %s", l.resume, at.Source, l.source)
	}
	if at.Offset == 0 {
		return at, nil
	}
	if n, err := io.CopyN(io.Discard, in, at.Offset); err != nil {
		return at, fmt.Errorf("--resume %s points to byte %d, but %s ends at %d: it is another file",
			l.resume, at.Offset, l.source, n)
	}
	l.bar.set(at.Offset)
	return at, nil
}

// save writes the resume file, at most once a second unless it is the last.
func (l *loader) save(at progress, last bool) error {
	if l.resume == "" || (!last && time.Since(l.saved) < time.Second) {
		return nil
	}
	l.saved = time.Now()
	return writeState(l.resume, at)
}

// read gathers the next chunk. With an error it returns the complete rows
// before it.
func (l *loader) read(lines *lineReader) (*chunk, error) {
	c := &chunk{done: make(chan error, 1)}
	mark := func() { c.end = progress{Source: l.source, Offset: lines.offset, Line: lines.line} }
	mark()
	for len(c.mutations) < chunkRows && c.bytes < chunkSizeBytes {
		line, err := lines.next()
		if err != nil {
			return c, err
		}
		if len(line) == 0 {
			mark()
			continue
		}
		key, value, expiresAt, err := parseRow(line)
		if err != nil {
			return c, fmt.Errorf("line %d: %w", lines.line, err)
		}
		mark()
		m := client.Mutation{Key: key, Value: value}
		if expiresAt != 0 {
			m.TTL = time.Until(time.UnixMilli(int64(expiresAt)))
			if m.TTL <= 0 {
				continue // it is gone already
			}
		}
		c.mutations = append(c.mutations, m)
		c.bytes += int64(len(key) + len(value))
	}
	return c, nil
}

// write brings one chunk into the cluster, trying again what was not applied.
func (l *loader) write(ctx context.Context, rest []client.Mutation) error {
	backoff, progressed := 50*time.Millisecond, time.Now()
	for {
		r, err := l.kv.BulkWrite(ctx, rest)
		if err == nil {
			return nil
		}
		if len(r.Unknown) > 0 && l.failOnUnknown {
			return fmt.Errorf("the outcome of %d rows is unknown: %w", len(r.Unknown), err)
		}
		again := make([]client.Mutation, 0, len(r.Pending)+len(r.Unknown))
		for _, i := range append(r.Unknown, r.Pending...) {
			again = append(again, rest[i])
		}
		if len(again) == 0 {
			return err
		}
		if r.Applied > 0 {
			backoff, progressed = 50*time.Millisecond, time.Now()
		}
		rest = again
		if time.Since(progressed) > l.patience || !worthRetrying(err) {
			return err
		}
		timer := time.NewTimer(backoff)
		select {
		case <-ctx.Done():
			timer.Stop()
			return errors.Join(ctx.Err(), err)
		case <-timer.C:
		}
		backoff = min(2*backoff, time.Second)
	}
}

// worthRetrying is false for what can never succeed.
func worthRetrying(err error) bool {
	if _, full := errors.AsType[errs.DiskFull](err); full {
		return false
	}
	return errs.Class(err) != kvpb.ErrorClass_ERROR_CLASS_FAIL && !errors.Is(err, client.ErrClosed)
}
