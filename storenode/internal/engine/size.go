package engine

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"

	"github.com/cespare/xxhash/v2"
	"github.com/dgraph-io/badger/v4"

	"github.com/ridgekv/ridge/proto/keys"
)

// Measure is the size of slices.
type Measure struct {
	// SizeBytes is that of the newest keys and values, Keys their number.
	SizeBytes, Keys uint64
	// Middle is the key that halves the size; nil when nothing can be split.
	Middle []byte
}

// Measure reads the slices, which must be in order, and sizes them up.
func (e *Engine) Measure(ctx context.Context, slices []Slice) (Measure, error) {
	v, release := e.Pin()
	defer release()
	var m measurer
	for _, s := range slices {
		b := boundsOf(kindData, s.Extent, s.Span)
		for pos := b.lo; pos != nil; {
			if err := ctx.Err(); err != nil {
				return Measure{}, err
			}
			var err error
			if pos, err = m.read(v, b, pos); err != nil {
				return Measure{}, fmt.Errorf("engine: measure: %w", err)
			}
		}
	}
	return m.result(), nil
}

// maxSamples bounds a measurer; when it is full, every second sample goes.
const maxSamples = 1024

// measureChunk is how many rows are read with one iterator.
const measureChunk = 20_000

// measurer adds rows up and samples keys at even distances in bytes.
type measurer struct {
	sizeBytes, keys uint64
	samples         []sizeSample
	stepBytes       uint64
}

// sizeSample: so many bytes lie before key.
type sizeSample struct {
	key    []byte
	before uint64
}

// read goes on from pos; it returns nil at the end of the bounds.
func (m *measurer) read(v View, b bounds, pos []byte) (next []byte, err error) {
	if err := v.e.enter(); err != nil {
		return nil, err
	}
	defer v.e.leave()
	it := v.txn.NewIterator(badger.IteratorOptions{Prefix: b.prefix})
	defer it.Close()
	n := 0
	for it.Seek(pos); it.Valid(); it.Next() {
		item := it.Item()
		if bytes.Compare(item.Key(), b.hi) >= 0 {
			return nil, nil
		}
		key := item.Key()[extentSizeBytes:]
		m.add(key, uint64(len(key))+uint64(item.ValueSize()))
		if n++; n == measureChunk {
			return keys.Next(item.Key()), nil
		}
	}
	return nil, nil
}

func (m *measurer) add(key []byte, sizeBytes uint64) {
	// The first key cannot be a middle: nothing would be left of it.
	due := len(m.samples) == 0 ||
		m.sizeBytes >= m.samples[len(m.samples)-1].before+m.stepBytes
	if m.keys > 0 && due {
		m.samples = append(m.samples, sizeSample{key: bytes.Clone(key), before: m.sizeBytes})
	}
	if len(m.samples) >= maxSamples {
		kept := m.samples[:0]
		for i := 0; i < len(m.samples); i += 2 {
			kept = append(kept, m.samples[i])
		}
		m.samples = kept
		m.stepBytes = max(2*m.stepBytes, m.sizeBytes/maxSamples)
	}
	m.sizeBytes += sizeBytes
	m.keys++
}

func (m *measurer) result() Measure {
	out := Measure{SizeBytes: m.sizeBytes, Keys: m.keys}
	best := uint64(0)
	for _, s := range m.samples {
		if smaller := min(s.before, m.sizeBytes-s.before); smaller > best {
			best, out.Middle = smaller, s.key
		}
	}
	return out
}

// Checksum digests the rows visible at v: key, commit_ts, flags, expiry and
// value. Replicas in the same state have the same sum, whatever their slices.
func (e *Engine) Checksum(
	ctx context.Context, v View, slices []Slice, span keys.Span,
) (sum, rows, sizeBytes uint64, err error) {
	digest := xxhash.New()
	var head []byte
	for r, err := range v.Scan(ScanOptions{Context: ctx, Slices: slices, Span: span}) {
		if err != nil {
			return 0, 0, 0, err
		}
		head = binary.AppendUvarint(head[:0], uint64(len(r.Key)))
		head = append(head, r.Key...)
		head = binary.BigEndian.AppendUint64(head, uint64(r.Row.CommitTS))
		head = binary.BigEndian.AppendUint64(head, uint64(r.Row.ExpiresAt))
		head = binary.AppendUvarint(head, uint64(len(r.Row.Value)))
		_, _ = digest.Write(head)
		_, _ = digest.Write(r.Row.Value)
		rows++
		sizeBytes += uint64(len(r.Key)) + uint64(len(r.Row.Value))
	}
	return digest.Sum64(), rows, sizeBytes, nil
}
