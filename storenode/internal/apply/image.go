package apply

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/cespare/xxhash/v2"
	sm "github.com/lni/dragonboat/v4/statemachine"
	"golang.org/x/time/rate"
	"google.golang.org/protobuf/proto"

	"github.com/ridgekv/ridge/proto/keys"
	logpb "github.com/ridgekv/ridge/proto/ridge/log/v1"
	"github.com/ridgekv/ridge/storenode/internal/engine"
)

// A range image is one format byte, then an ImageHeader and ImageChunks, each
// preceded by its length. The last chunk says so and carries the checksum and
// the number of all rows.
const (
	imageFormat = 1
	// chunkSizeBytes is where the sender ends a chunk.
	chunkSizeBytes = 256 << 10
	// frameSizeMax bounds what a receiver allocates for one message. A chunk
	// is at most chunkSizeBytes and one row.
	frameSizeMax = 4 << 20
)

// errImage marks an image that cannot be used.
var errImage = errors.New("apply: bad image")

// imageWriter writes an image.
type imageWriter struct {
	w       io.Writer
	limiter *rate.Limiter
	stop    <-chan struct{}

	chunk     logpb.ImageChunk
	chunkSize int
	sum       *xxhash.Digest
	rows      uint64
	sizeBytes uint64
	buf       []byte
}

func newImageWriter(w io.Writer, l *rate.Limiter, stop <-chan struct{}) *imageWriter {
	return &imageWriter{w: w, limiter: l, stop: stop, sum: xxhash.New()}
}

// header begins the image.
func (i *imageWriter) header(h *logpb.ImageHeader) error {
	if _, err := i.w.Write([]byte{imageFormat}); err != nil {
		return err
	}
	return i.frame(h)
}

// row adds a row. It keeps the row's memory until the chunk is written.
func (i *imageWriter) row(r engine.VersionRow) error {
	row := &logpb.ImageRow{
		Kind: r.Kind, Key: r.Key, Row: r.EncodedRow, DeleteMark: r.DeleteMark,
	}
	sumRow(i.sum, row)
	i.rows++
	i.chunk.Rows = append(i.chunk.Rows, row)
	i.chunkSize += len(row.Key) + len(row.Row)
	if i.chunkSize < chunkSizeBytes {
		return nil
	}
	return i.flush()
}

// end writes what is left, with the checksum.
func (i *imageWriter) end() error {
	i.chunk.Last, i.chunk.Checksum, i.chunk.RowCount = true, i.sum.Sum64(), i.rows
	return i.flush()
}

func (i *imageWriter) flush() error {
	err := i.frame(&i.chunk)
	i.chunk.Rows, i.chunkSize = i.chunk.Rows[:0], 0
	return err
}

func (i *imageWriter) frame(m proto.Message) error {
	i.buf = binary.AppendUvarint(i.buf[:0], uint64(proto.Size(m)))
	var err error
	if i.buf, err = (proto.MarshalOptions{UseCachedSize: true}).MarshalAppend(i.buf, m); err != nil {
		return err
	}
	if err := throttle(i.limiter, len(i.buf), i.stop); err != nil {
		return err
	}
	i.sizeBytes += uint64(len(i.buf))
	_, err = i.w.Write(i.buf)
	return err
}

// throttle waits until l lets n bytes pass, or for stop.
func throttle(l *rate.Limiter, n int, stop <-chan struct{}) error {
	for l != nil && n > 0 && l.Limit() != rate.Inf {
		part := min(n, max(l.Burst(), 1))
		n -= part
		delay := l.ReserveN(time.Now(), part).Delay()
		if delay == 0 {
			continue
		}
		timer := time.NewTimer(delay)
		select {
		case <-timer.C:
		case <-stop:
			timer.Stop()
			return sm.ErrSnapshotStopped
		}
	}
	if stopped(stop) {
		return sm.ErrSnapshotStopped
	}
	return nil
}

func stopped(stop <-chan struct{}) bool {
	select {
	case <-stop:
		return true
	default:
		return false
	}
}

// imageReader reads an image. All its errors are errImage.
type imageReader struct {
	r    *bufio.Reader
	sum  *xxhash.Digest
	rows uint64
	done bool
}

func newImageReader(r io.Reader) *imageReader {
	return &imageReader{r: bufio.NewReaderSize(r, 64<<10), sum: xxhash.New()}
}

// header reads the header and checks that it is about this range.
func (i *imageReader) header(rangeID uint64) (*logpb.ImageHeader, error) {
	format, err := i.r.ReadByte()
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errImage, err)
	}
	h := &logpb.ImageHeader{}
	if format != imageFormat {
		return nil, fmt.Errorf("%w: format %d", errImage, format)
	}
	if err := i.frame(h); err != nil {
		return nil, err
	}
	span := keys.FromProto(h.GetState().GetSpan())
	switch {
	case h.GetFormat() != imageFormat:
		return nil, fmt.Errorf("%w: header format %d", errImage, h.GetFormat())
	case h.GetState().GetRangeId() != rangeID:
		return nil, fmt.Errorf("%w: of range %d", errImage, h.GetState().GetRangeId())
	case !span.Valid() || h.GetAppliedIndex() == 0:
		return nil, fmt.Errorf("%w: span %s at index %d", errImage, span, h.GetAppliedIndex())
	}
	return h, nil
}

// next reads a chunk; nil after the last. The last one is checked before it is
// returned.
func (i *imageReader) next() (*logpb.ImageChunk, error) {
	if i.done {
		return nil, nil
	}
	c := &logpb.ImageChunk{}
	if err := i.frame(c); err != nil {
		return nil, err
	}
	for _, row := range c.GetRows() {
		sumRow(i.sum, row)
	}
	i.rows += uint64(len(c.GetRows()))
	if i.done = c.GetLast(); !i.done {
		return c, nil
	}
	if c.GetRowCount() != i.rows || c.GetChecksum() != i.sum.Sum64() {
		return nil, fmt.Errorf("%w: %d rows with sum %x, want %d with %x",
			errImage, i.rows, i.sum.Sum64(), c.GetRowCount(), c.GetChecksum())
	}
	return c, nil
}

func (i *imageReader) frame(m proto.Message) error {
	n, err := binary.ReadUvarint(i.r)
	if err != nil {
		return fmt.Errorf("%w: %w", errImage, err)
	}
	if n > frameSizeMax {
		return fmt.Errorf("%w: message of %d bytes", errImage, n)
	}
	b := make([]byte, n)
	if _, err := io.ReadFull(i.r, b); err != nil {
		return fmt.Errorf("%w: %w", errImage, err)
	}
	if err := proto.Unmarshal(b, m); err != nil {
		return fmt.Errorf("%w: %w", errImage, err)
	}
	return nil
}

// sumRow adds a row to the checksum of an image.
func sumRow(d *xxhash.Digest, r *logpb.ImageRow) {
	var head [1 + 1 + 4 + 4]byte
	head[0] = byte(r.GetKind())
	if r.GetDeleteMark() {
		head[1] = 1
	}
	binary.BigEndian.PutUint32(head[2:], uint32(len(r.GetKey())))
	binary.BigEndian.PutUint32(head[6:], uint32(len(r.GetRow())))
	// A digest never fails to write.
	_, _ = d.Write(head[:])
	_, _ = d.Write(r.GetKey())
	_, _ = d.Write(r.GetRow())
}
