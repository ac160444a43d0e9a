package enginetest

import (
	"context"
	"encoding/binary"
	"fmt"
	"hash/fnv"
	"iter"
	"maps"
	"slices"
	"sort"
	"strings"
	"sync"

	logpb "github.com/ridgekv/ridge/proto/ridge/log/v1"

	"github.com/ridgekv/ridge/proto/keys"
	"github.com/ridgekv/ridge/proto/ts"
	"github.com/ridgekv/ridge/storenode/internal/engine"
)

// Model is the engine in memory, written to be obviously right. It gives
// every write set, and every row of an image, a seq of its own.
type Model struct {
	mu      sync.Mutex
	seq     engine.Seq
	rows    map[modelKey][]modelVersion // oldest first
	records map[string][]byte
	extent  engine.Extent
}

type modelKey struct {
	kind   logpb.ImageKind
	extent engine.Extent
	key    string
}

type modelVersion struct {
	seq     engine.Seq
	encoded []byte
	row     engine.Row
	erased  bool
}

// NewModel returns an empty model.
func NewModel() *Model {
	return &Model{
		rows: map[modelKey][]modelVersion{}, records: map[string][]byte{}, extent: 15,
	}
}

// Commit implements Engine.
func (m *Model) Commit(sets ...*engine.WriteSet) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, w := range sets {
		if w == nil || w.Empty() {
			continue
		}
		var rest []engine.Op
		for op := range w.Ops {
			if op.Image {
				m.seq++
				m.applyLocked(op)
			} else {
				rest = append(rest, op)
			}
		}
		m.seq++
		for _, op := range rest {
			m.applyLocked(op)
		}
	}
	return nil
}

func (m *Model) applyLocked(op engine.Op) {
	if op.Record {
		if op.Delete {
			delete(m.records, string(op.Key))
		} else {
			m.records[string(op.Key)] = slices.Clone(op.Value)
		}
		return
	}
	k := modelKey{op.Kind, op.Extent, string(op.Key)}
	v := modelVersion{seq: m.seq, encoded: slices.Clone(op.Value), erased: op.Delete}
	if !op.Delete {
		v.row = decode(op.Value)
	}
	list := m.rows[k]
	if n := len(list); n > 0 && list[n-1].seq == m.seq {
		list = list[:n-1] // Twice in one set: the last one wins.
	}
	m.rows[k] = append(list, v)
}

// decode reads the encoding of a row, independently of the engine.
func decode(b []byte) engine.Row {
	r := engine.Row{CommitTS: ts.Timestamp(binary.BigEndian.Uint64(b[1:9]))}
	flags := b[9]
	b = b[10:]
	if flags&1 != 0 {
		r.ExpiresAt = ts.Timestamp(binary.BigEndian.Uint64(b))
		b = b[8:]
	}
	r.Deleted = flags&2 != 0
	r.Value = slices.Clone(b)
	return r
}

// NewExtent implements Engine.
func (m *Model) NewExtent(*engine.WriteSet) engine.Extent {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.extent++
	return m.extent
}

// View implements Engine.
func (m *Model) View() View {
	m.mu.Lock()
	defer m.mu.Unlock()
	return modelView{m, m.seq}
}

// Pin implements Engine.
func (m *Model) Pin() (View, func()) { return m.View(), func() {} }

// Applied implements Engine.
func (m *Model) Applied() map[uint64][]byte { return m.rangeRecords("a") }

// States implements Engine.
func (m *Model) States() map[uint64][]byte { return m.rangeRecords("m") }

func (m *Model) rangeRecords(kind string) map[uint64][]byte {
	out := map[uint64][]byte{}
	for k, v := range m.withPrefix(kind) {
		out[binary.BigEndian.Uint64([]byte(k[1:]))] = v
	}
	return out
}

func (m *Model) withPrefix(prefix string) map[string][]byte {
	m.mu.Lock()
	defer m.mu.Unlock()
	out := map[string][]byte{}
	for k, v := range m.records {
		if strings.HasPrefix(k, prefix) {
			out[k] = v
		}
	}
	return out
}

// Store implements Engine.
func (m *Model) Store(name string) ([]byte, bool, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	v, ok := m.records["x"+name]
	return v, ok, nil
}

// StoreRecords implements Engine.
func (m *Model) StoreRecords(prefix string) (map[string][]byte, error) {
	out := map[string][]byte{}
	for k, v := range m.withPrefix("x" + prefix) {
		out[k[1:]] = v
	}
	return out, nil
}

// Flush implements Engine.
func (m *Model) Flush(context.Context) error { return nil }

// Close implements Engine.
func (m *Model) Close() error { return nil }

// Checksum implements Engine.
func (m *Model) Checksum(
	_ context.Context, v View, list []engine.Slice, span keys.Span,
) (sum, rows, sizeBytes uint64, err error) {
	h := fnv.New64a()
	for r := range v.Scan(engine.ScanOptions{Slices: list, Span: span}) {
		fmt.Fprintf(h, "%q %d %d %q;", r.Key, r.Row.CommitTS, r.Row.ExpiresAt, r.Row.Value)
		rows++
		sizeBytes += uint64(len(r.Key) + len(r.Row.Value))
	}
	return h.Sum64(), rows, sizeBytes, nil
}

// Measure implements Engine.
func (m *Model) Measure(_ context.Context, list []engine.Slice) (engine.Measure, error) {
	var out engine.Measure
	var all []engine.KeyRow
	for r := range m.View().Scan(engine.ScanOptions{Slices: list}) {
		all = append(all, r)
		out.Keys++
		out.SizeBytes += uint64(len(r.Key) + len(r.Row.Value) + 10)
	}
	if len(all) > 1 {
		out.Middle = all[len(all)/2].Key
	}
	return out, nil
}

type modelView struct {
	m   *Model
	seq engine.Seq
}

// Seq implements View.
func (v modelView) Seq() engine.Seq { return v.seq }

// versions returns what v sees of a key, newest first.
func (v modelView) versions(k modelKey) []modelVersion {
	var out []modelVersion
	list := v.m.rows[k]
	for i := len(list) - 1; i >= 0; i-- {
		if list[i].seq > v.seq {
			continue
		}
		if list[i].erased {
			break
		}
		out = append(out, list[i])
	}
	return out
}

func (v modelView) at(k modelKey, t ts.Timestamp) (engine.Row, bool) {
	for _, version := range v.versions(k) {
		if version.row.CommitTS <= t {
			return version.row, true
		}
	}
	return engine.Row{}, false
}

// Get implements View.
func (v modelView) Get(x engine.Extent, key []byte) (engine.Row, bool, error) {
	return v.GetAt(x, key, ts.Max)
}

// GetAt implements View.
func (v modelView) GetAt(x engine.Extent, key []byte, t ts.Timestamp) (engine.Row, bool, error) {
	v.m.mu.Lock()
	defer v.m.mu.Unlock()
	r, ok := v.at(modelKey{logpb.ImageKind_IMAGE_KIND_DATA, x, string(key)}, t)
	if !ok || r.Deleted {
		return engine.Row{}, false, nil
	}
	return r, true, nil
}

// Newest implements View.
func (v modelView) Newest(x engine.Extent, key []byte) (engine.Row, bool, error) {
	v.m.mu.Lock()
	defer v.m.mu.Unlock()
	r, ok := v.at(modelKey{logpb.ImageKind_IMAGE_KIND_DATA, x, string(key)}, ts.Max)
	return r, ok, nil
}

// sortedKeys of one kind in one slice.
func (v modelView) sortedKeys(kind logpb.ImageKind, s engine.Slice) []modelKey {
	list := slices.Collect(maps.Keys(v.m.rows))
	list = slices.DeleteFunc(list, func(k modelKey) bool {
		return k.kind != kind || k.extent != s.Extent || !s.Span.Contains([]byte(k.key))
	})
	sort.Slice(list, func(i, j int) bool { return list[i].key < list[j].key })
	return list
}

// Scan implements View.
func (v modelView) Scan(o engine.ScanOptions) iter.Seq2[engine.KeyRow, error] {
	v.m.mu.Lock()
	defer v.m.mu.Unlock()
	t := o.At
	if t == 0 {
		t = ts.Max
	}
	var out []engine.KeyRow
	for _, s := range o.Slices {
		for _, k := range v.sortedKeys(logpb.ImageKind_IMAGE_KIND_DATA, s) {
			r, ok := v.at(k, t)
			if !ok || r.Deleted || !o.Span.Contains([]byte(k.key)) {
				continue
			}
			if o.KeysOnly {
				r.Value = nil
			}
			out = append(out, engine.KeyRow{Key: []byte(k.key), Row: r})
		}
	}
	if o.Reverse {
		slices.Reverse(out)
	}
	if o.Limit > 0 && len(out) > o.Limit {
		out = out[:o.Limit]
	}
	return func(yield func(engine.KeyRow, error) bool) {
		for _, r := range out {
			if !yield(r, nil) {
				return
			}
		}
	}
}

// Versions implements View.
func (v modelView) Versions(s engine.Slice) iter.Seq2[engine.VersionRow, error] {
	v.m.mu.Lock()
	defer v.m.mu.Unlock()
	var out []engine.VersionRow
	for kind := logpb.ImageKind_IMAGE_KIND_DATA; kind <= logpb.ImageKind_IMAGE_KIND_TXN; kind++ {
		for _, k := range v.sortedKeys(kind, s) {
			list := v.versions(k)
			slices.Reverse(list)
			for _, version := range list {
				out = append(out, engine.VersionRow{
					Kind: kind, Key: []byte(k.key),
					EncodedRow: version.encoded, DeleteMark: version.row.Deleted,
				})
			}
		}
	}
	return func(yield func(engine.VersionRow, error) bool) {
		for _, r := range out {
			if !yield(r, nil) {
				return
			}
		}
	}
}
