package command

import (
	"bufio"
	"context"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"github.com/dustin/go-humanize"
	"github.com/spf13/cobra"

	"github.com/ridgekv/ridge/client"
	"github.com/ridgekv/ridge/proto/errs"
	"github.com/ridgekv/ridge/proto/keys"
	"github.com/ridgekv/ridge/proto/ts"
)

// holdTTL is how long the hold of a dump outlives it, so that an interrupted
// one can be resumed.
const holdTTL = 15 * time.Minute

func newDump() *cobra.Command {
	var c connection
	var b bounds
	d := dumper{}
	cmd := &cobra.Command{
		Use:   "dump FILE|-",
		Short: "Write all rows to a JSON Lines file",
		Long: `Write all rows, as they were at one moment, to a JSON Lines file or the standard
output, in the form that load reads.

A hold at PD keeps the history of that moment while the dump runs. With
--resume FILE the progress is kept in FILE, and the same command goes on where
the last one stopped, at the same moment, within 15 minutes.`,
		Args: cobra.ExactArgs(1),
	}
	b.addFlags(cmd)
	cmd.Flags().StringVar(&d.resume, "resume", "", "file that keeps the progress")
	return c.add(cmd, func(cmd *cobra.Command, args []string) error {
		span, err := b.span()
		if err != nil {
			return err
		}
		if d.resume != "" && args[0] == "-" {
			return usagef("--resume needs a file to go on with, not the standard output")
		}
		kv, err := c.client(cmd.Context())
		if err != nil {
			return err
		}
		defer kv.Close()
		d.kv, d.name = kv, absolute(args[0])
		d.bar = newBar(cmd.ErrOrStderr(), -1, "dumping")
		began := time.Now()
		err = d.run(cmd.Context(), cmd.OutOrStdout(), span)
		d.bar.finish()
		if err != nil {
			return err
		}
		took := time.Since(began)
		fmt.Fprintf(cmd.ErrOrStderr(), "dumped %s rows, %s in %s (%s rows/s) as of %s\n",
			humanize.Comma(d.at.Rows), humanize.IBytes(uint64(d.at.Offset)),
			took.Round(time.Millisecond),
			humanize.Comma(int64(float64(d.at.Rows)/max(took.Seconds(), 1e-3))),
			ts.Timestamp(d.at.SnapshotTS).Time().Format(time.RFC3339))
		return nil
	})
}

type dumper struct {
	kv           *client.Client
	name, resume string
	bar          *bar
	at           dumpState
	saved        time.Time
}

// dumpState is the resume file of dump.
type dumpState struct {
	Target     string `json:"target"`
	Start      string `json:"start_b64"`
	End        string `json:"end_b64"`
	HoldID     string `json:"hold_id"`
	SnapshotTS uint64 `json:"snapshot_ts"`
	// Next is where to go on, in base64; Offset how long the file is then.
	Next   string `json:"next_b64"`
	Offset int64  `json:"offset"`
	Rows   int64  `json:"rows"`
}

func (d *dumper) run(ctx context.Context, stdout io.Writer, span keys.Span) (err error) {
	resumed, err := d.start(ctx, span)
	if err != nil {
		return err
	}
	defer func() {
		if err == nil || d.resume == "" { // nobody comes back for this moment
			d.release(ctx)
		}
	}()
	next, err := base64.StdEncoding.DecodeString(d.at.Next)
	if err != nil {
		return fmt.Errorf("--resume %s: %w", d.resume, err)
	}
	span.Start = next
	out, closeOut, err := d.open(stdout)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel(nil)
	wg.Go(func() { d.renew(ctx, cancel) })
	// The progress file goes last: what cannot be flushed is not there.
	if err := errors.Join(d.copy(ctx, out, span), closeOut()); err != nil {
		if cause := context.Cause(ctx); cause != nil {
			err = errors.Join(cause, err)
		}
		if _, old := errors.AsType[errs.TooOld](err); old && resumed {
			err = fmt.Errorf("the history of the interrupted dump is gone: remove %s and start anew: %w",
				d.resume, err)
		}
		return err
	}
	if d.resume == "" {
		return nil
	}
	return os.Remove(d.resume)
}

// release gives the history of the dump free. Without PD the hold expires by
// itself.
func (d *dumper) release(ctx context.Context) {
	ctx, done := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
	defer done()
	_ = d.kv.PD().ReleaseHold(ctx, d.at.HoldID)
}

// start reads the resume file or begins a new dump: hold first, read second.
func (d *dumper) start(ctx context.Context, span keys.Span) (resumed bool, err error) {
	fresh := dumpState{
		Target: d.name,
		Start:  base64.StdEncoding.EncodeToString(span.Start),
		End:    base64.StdEncoding.EncodeToString(span.End),
	}
	if d.resume != "" {
		if err := readState(d.resume, &d.at); err != nil {
			return false, err
		}
	}
	if d.at.SnapshotTS != 0 {
		if d.at.Target != fresh.Target || d.at.Start != fresh.Start || d.at.End != fresh.End {
			return false, fmt.Errorf("--resume %s belongs to another dump", d.resume)
		}
		return true, d.hold(ctx)
	}
	at, err := d.kv.Timestamp(ctx)
	if err != nil {
		return false, err
	}
	fresh.SnapshotTS, fresh.HoldID, fresh.Next = uint64(at), "dump-"+rand.Text(), fresh.Start
	d.at = fresh
	if err := d.hold(ctx); err != nil {
		return false, err
	}
	return false, d.save(true)
}

func (d *dumper) hold(ctx context.Context) error {
	floor, err := d.kv.PD().SetHold(ctx, d.at.HoldID, ts.Timestamp(d.at.SnapshotTS), holdTTL)
	if err != nil {
		return fmt.Errorf("hold the history: %w", err)
	}
	if uint64(floor) > d.at.SnapshotTS {
		return errs.TooOld{Requested: d.at.SnapshotTS, Floor: uint64(floor)}
	}
	return nil
}

// renew keeps the hold alive. A dump whose hold is lost is ended.
func (d *dumper) renew(ctx context.Context, cancel context.CancelCauseFunc) {
	ticker := time.NewTicker(holdTTL / 30)
	defer ticker.Stop()
	for renewed := time.Now(); ; {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		if err := d.hold(ctx); err == nil {
			renewed = time.Now()
		} else if time.Since(renewed) > holdTTL {
			cancel(fmt.Errorf("the hold could not be renewed: %w", err))
			return
		}
	}
}

// open returns where rows go; a resumed file is cut to what is known good.
func (d *dumper) open(stdout io.Writer) (*bufio.Writer, func() error, error) {
	if d.name == "-" {
		w := bufio.NewWriterSize(stdout, 1<<20)
		return w, w.Flush, nil
	}
	f, err := os.OpenFile(d.name, os.O_RDWR|os.O_CREATE, 0o644)
	if err != nil {
		return nil, nil, err
	}
	info, err := f.Stat()
	if err == nil && info.Mode().IsRegular() {
		if info.Size() < d.at.Offset {
			err = fmt.Errorf("%s is shorter than --resume %s says", d.name, d.resume)
		} else {
			err = f.Truncate(d.at.Offset)
		}
		if err == nil {
			_, err = f.Seek(d.at.Offset, io.SeekStart)
		}
	}
	if err != nil {
		_ = f.Close()
		return nil, nil, err
	}
	w := bufio.NewWriterSize(f, 1<<20)
	return w, func() error {
		err := w.Flush()
		if info.Mode().IsRegular() {
			err = errors.Join(err, f.Sync())
		}
		return errors.Join(err, f.Close())
	}, nil
}

// copy writes page after page; the state is saved between pages.
func (d *dumper) copy(ctx context.Context, w *bufio.Writer, span keys.Span) error {
	consistency := client.WithConsistency(client.Snapshot(ts.Timestamp(d.at.SnapshotTS)))
	for page, err := range d.kv.ScanPages(ctx, span, false, consistency) {
		if err != nil {
			return err
		}
		for _, row := range page.Rows {
			line, err := encodeLine(jsonRowOf(row))
			if err != nil {
				return err
			}
			if _, err := w.Write(line); err != nil {
				return err
			}
			d.at.Offset += int64(len(line))
			d.at.Rows++
		}
		d.bar.set(d.at.Offset)
		if !page.More {
			continue
		}
		if err := w.Flush(); err != nil {
			return err
		}
		d.at.Next = base64.StdEncoding.EncodeToString(page.ResumeKey)
		if err := d.save(false); err != nil {
			return err
		}
	}
	return nil
}

func (d *dumper) save(force bool) error {
	if d.resume == "" || (!force && time.Since(d.saved) < time.Second) {
		return nil
	}
	d.saved = time.Now()
	return writeState(d.resume, d.at)
}

// encodeLine is one line of JSON with its end.
func encodeLine(r jsonRow) ([]byte, error) {
	var b bytesBuffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	err := e.Encode(r)
	return b, err
}

type bytesBuffer []byte

func (b *bytesBuffer) Write(p []byte) (int, error) {
	*b = append(*b, p...)
	return len(p), nil
}
