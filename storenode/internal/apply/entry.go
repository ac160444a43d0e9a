package apply

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"iter"
	"slices"

	"google.golang.org/protobuf/proto"

	"github.com/ridgekv/ridge/proto/keys"
	logpb "github.com/ridgekv/ridge/proto/ridge/log/v1"
	"github.com/ridgekv/ridge/proto/ts"
)

// entryFormat is the first byte of every entry.
const entryFormat = 1

// Version is the newest cluster version whose entries this binary can apply.
const Version uint32 = 1

// Kind says what an entry does. Values are part of the format.
type Kind uint8

// The kinds. Freeze and Absorb are reserved for merge: a replica that meets
// them stops, as it does for a kind it has never heard of.
const (
	KindWrite           Kind = 1
	KindAcquireLease    Kind = 2
	KindRaiseReadBound  Kind = 3
	KindSplit           Kind = 4
	KindChecksum        Kind = 5
	KindSetTxnSafePoint Kind = 6
	KindFreeze          Kind = 7
	KindAbsorb          Kind = 8
)

// String names k for people.
func (k Kind) String() string {
	switch k {
	case KindWrite:
		return "write"
	case KindAcquireLease:
		return "acquire-lease"
	case KindRaiseReadBound:
		return "raise-read-bound"
	case KindSplit:
		return "split"
	case KindChecksum:
		return "checksum"
	case KindSetTxnSafePoint:
		return "set-txn-safe-point"
	case KindFreeze:
		return "freeze"
	case KindAbsorb:
		return "absorb"
	}
	return fmt.Sprintf("kind-%d", uint8(k))
}

// Numbered reports whether entries of this kind carry a tenure and a number.
// AcquireLease does not: its guard is the tenure it expects.
func (k Kind) Numbered() bool { return k != KindAcquireLease }

// ChecksSpanEpoch reports whether apply refuses entries of this kind that were
// evaluated at another span epoch.
func (k Kind) ChecksSpanEpoch() bool { return k == KindWrite || k == KindSplit }

// Header is what every entry begins with.
type Header struct {
	Kind Kind
	// Tenure and Number place a numbered entry; both are 0 in the others.
	Tenure, Number uint64
	// SpanEpoch is the span epoch the entry was evaluated at.
	SpanEpoch uint64
	// MinVersion is the oldest cluster version that can apply the entry.
	MinVersion uint32
}

// Effect is one key of a Write: a row to put, or a delete.
type Effect struct {
	Key, Value []byte
	// Delete leaves a delete mark. Value and ExpiresAt are then ignored.
	Delete bool
	// ExpiresAt is 0 for rows that never expire.
	ExpiresAt ts.Timestamp
}

// The ways in which an entry can be unreadable. A replica that meets one stops
// until its next start, so that a newer binary can go on from there.
var (
	ErrUnknownFormat  = errors.New("apply: unknown entry format")
	ErrUnknownKind    = errors.New("apply: unknown entry kind")
	ErrUnknownVersion = errors.New("apply: entry needs a newer version")
	ErrMalformed      = errors.New("apply: malformed entry")
)

// Entry is a decoded entry. It shares the memory it was decoded from.
type Entry struct {
	Header
	// CommitTS is the timestamp of all effects of a Write.
	CommitTS ts.Timestamp
	// Message is the payload of every kind but Write.
	Message proto.Message
	// HasExpiry reports whether some effect of a Write expires.
	HasExpiry bool

	count   int
	effects []byte // checked by Decode
}

const (
	effectDelete  = 1 << 0
	effectExpires = 1 << 1
	effectFlags   = effectDelete | effectExpires
)

// EncodeWrite encodes a Write. It orders the effects by key and keeps the last
// one of each key, because all of them share one commit_ts; the slice given is
// not changed. It panics when the entry breaks the limits of the format (see
// keys.MaxEntryKeys), which the evaluator must have kept.
func EncodeWrite(h Header, commitTS ts.Timestamp, effects []Effect) []byte {
	if h.Kind != KindWrite {
		panic(fmt.Sprintf("apply: EncodeWrite of a %s", h.Kind))
	}
	effects = canonical(effects)
	size := headerSizeMax + 8 + binary.MaxVarintLen64
	for i := range effects {
		size += EffectSizeBytes(effects[i])
	}
	out := appendHeader(make([]byte, 0, size), h)
	out = binary.BigEndian.AppendUint64(out, uint64(commitTS))
	out = binary.AppendUvarint(out, uint64(len(effects)))
	for _, e := range effects {
		out = appendEffect(out, e)
	}
	if len(effects) > keys.MaxEntryKeys || len(out) > keys.MaxEntrySizeBytes {
		panic(fmt.Sprintf("apply: entry of %d keys, %d bytes", len(effects), len(out)))
	}
	return out
}

// EffectSizeBytes is the most that e adds to an entry. The evaluator sums it
// up to keep an entry below keys.MaxEntrySizeBytes, with EntryOverheadBytes.
func EffectSizeBytes(e Effect) int {
	const fixed = 1 + 2 + 8 + 3 // flags, key length, expiry, value length
	if e.Delete {
		return fixed + len(e.Key)
	}
	return fixed + len(e.Key) + len(e.Value)
}

const headerSizeMax = 1 + 2 + 3*binary.MaxVarintLen64 + binary.MaxVarintLen32

// EntryOverheadBytes is the most that an entry adds to its effects.
const EntryOverheadBytes = headerSizeMax + 8 + binary.MaxVarintLen64

// EncodeMessage encodes an entry of any other kind.
func EncodeMessage(h Header, m proto.Message) []byte {
	if want := newMessage(h.Kind); want == nil ||
		want.ProtoReflect().Type() != m.ProtoReflect().Type() {
		panic(fmt.Sprintf("apply: %s does not carry a %T", h.Kind, m))
	}
	out := appendHeader(make([]byte, 0, headerSizeMax+proto.Size(m)), h)
	out, err := proto.MarshalOptions{Deterministic: true}.MarshalAppend(out, m)
	if err != nil {
		panic(fmt.Sprintf("apply: encode %s: %v", h.Kind, err))
	}
	return out
}

// Decode reads an entry and checks all of it. The result shares b: keys and
// values are not copied.
func Decode(b []byte) (Entry, error) {
	var e Entry
	if len(b) == 0 || b[0] != entryFormat {
		return e, ErrUnknownFormat
	}
	d := decoder{b: b[1:]}
	kind := d.uvarint()
	e.Tenure, e.Number, e.SpanEpoch = d.uvarint(), d.uvarint(), d.uvarint()
	version := d.uvarint()
	switch {
	case d.failed || version > 1<<32-1:
		return e, fmt.Errorf("%w: header", ErrMalformed)
	case kind > 255:
		return e, fmt.Errorf("%w: %d", ErrUnknownKind, kind)
	}
	e.Kind, e.MinVersion = Kind(kind), uint32(version)
	if e.MinVersion > Version {
		return e, fmt.Errorf("%w: %d, this is %d", ErrUnknownVersion, e.MinVersion, Version)
	}
	if e.Kind == KindWrite {
		err := e.decodeWrite(d)
		return e, err
	}
	if e.Message = newMessage(e.Kind); e.Message == nil {
		return e, fmt.Errorf("%w: %s", ErrUnknownKind, e.Kind)
	}
	if err := proto.Unmarshal(d.b, e.Message); err != nil {
		return e, fmt.Errorf("%w: %s: %w", ErrMalformed, e.Kind, err)
	}
	return e, nil
}

// Len is the number of effects of a Write.
func (e *Entry) Len() int { return e.count }

// Effects yields the effects of a Write in ascending order of key. Keys and
// values share the memory of the entry.
func (e *Entry) Effects() iter.Seq[Effect] {
	return func(yield func(Effect) bool) {
		d := decoder{b: e.effects}
		for range e.count {
			if !yield(d.effect()) {
				return
			}
		}
	}
}

func (e *Entry) decodeWrite(d decoder) error {
	e.CommitTS = ts.Timestamp(d.fixed64())
	n := d.uvarint()
	if d.failed || n > keys.MaxEntryKeys {
		return fmt.Errorf("%w: %d effects", ErrMalformed, n)
	}
	e.count, e.effects = int(n), d.b
	var last []byte
	for i := range e.count {
		f := d.effect()
		switch {
		case d.failed:
			return fmt.Errorf("%w: effect %d", ErrMalformed, i)
		case len(f.Key) == 0 || len(f.Key) > keys.MaxKeySizeBytes:
			return fmt.Errorf("%w: effect %d has a key of %d bytes", ErrMalformed, i, len(f.Key))
		case len(f.Value) > keys.MaxValueSizeBytes:
			return fmt.Errorf("%w: effect %d has a value of %d bytes", ErrMalformed, i, len(f.Value))
		case i > 0 && bytes.Compare(last, f.Key) >= 0:
			return fmt.Errorf("%w: effect %d is out of order", ErrMalformed, i)
		}
		last = f.Key
		e.HasExpiry = e.HasExpiry || f.ExpiresAt != 0
	}
	if len(d.b) != 0 {
		return fmt.Errorf("%w: %d bytes left over", ErrMalformed, len(d.b))
	}
	return nil
}

func newMessage(k Kind) proto.Message {
	switch k {
	case KindAcquireLease:
		return &logpb.AcquireLease{}
	case KindRaiseReadBound:
		return &logpb.RaiseReadBound{}
	case KindSplit:
		return &logpb.Split{}
	case KindChecksum:
		return &logpb.Checksum{}
	case KindSetTxnSafePoint:
		return &logpb.SetTxnSafePoint{}
	}
	return nil
}

// canonical returns effects in ascending order of key, the last of each key.
func canonical(effects []Effect) []Effect {
	byKey := func(a, b Effect) int { return bytes.Compare(a.Key, b.Key) }
	ascending := true
	for i := 1; i < len(effects) && ascending; i++ {
		ascending = byKey(effects[i-1], effects[i]) < 0
	}
	if ascending {
		return effects
	}
	sorted := slices.Clone(effects)
	slices.SortStableFunc(sorted, byKey)
	out := sorted[:0]
	for i, e := range sorted {
		if i+1 == len(sorted) || !bytes.Equal(e.Key, sorted[i+1].Key) {
			out = append(out, e)
		}
	}
	return out
}

func appendHeader(out []byte, h Header) []byte {
	out = append(out, entryFormat)
	out = binary.AppendUvarint(out, uint64(h.Kind))
	out = binary.AppendUvarint(out, h.Tenure)
	out = binary.AppendUvarint(out, h.Number)
	out = binary.AppendUvarint(out, h.SpanEpoch)
	return binary.AppendUvarint(out, uint64(h.MinVersion))
}

func appendEffect(out []byte, e Effect) []byte {
	if e.Delete {
		out = append(out, effectDelete)
		out = binary.AppendUvarint(out, uint64(len(e.Key)))
		return append(out, e.Key...)
	}
	var flags byte
	if e.ExpiresAt != 0 {
		flags |= effectExpires
	}
	out = append(out, flags)
	out = binary.AppendUvarint(out, uint64(len(e.Key)))
	out = append(out, e.Key...)
	if e.ExpiresAt != 0 {
		out = binary.BigEndian.AppendUint64(out, uint64(e.ExpiresAt))
	}
	out = binary.AppendUvarint(out, uint64(len(e.Value)))
	return append(out, e.Value...)
}

// decoder reads from the front of b. After a failure it yields zeros.
type decoder struct {
	b      []byte
	failed bool
}

// effect reads one effect. Flags that cannot be together are a failure.
func (d *decoder) effect() Effect {
	flags := d.byte()
	e := Effect{Delete: flags&effectDelete != 0, Key: d.bytes()}
	if flags&^effectFlags != 0 || flags == effectFlags {
		d.failed = true
	}
	if e.Delete {
		return e
	}
	if flags&effectExpires != 0 {
		e.ExpiresAt = ts.Timestamp(d.fixed64())
		d.failed = d.failed || e.ExpiresAt == 0
	}
	e.Value = d.bytes()
	return e
}

func (d *decoder) byte() byte {
	if d.failed || len(d.b) == 0 {
		d.failed = true
		return 0
	}
	out := d.b[0]
	d.b = d.b[1:]
	return out
}

func (d *decoder) uvarint() uint64 {
	if d.failed {
		return 0
	}
	v, n := binary.Uvarint(d.b)
	if n <= 0 {
		d.failed = true
		return 0
	}
	d.b = d.b[n:]
	return v
}

func (d *decoder) fixed64() uint64 {
	if d.failed || len(d.b) < 8 {
		d.failed = true
		return 0
	}
	v := binary.BigEndian.Uint64(d.b)
	d.b = d.b[8:]
	return v
}

func (d *decoder) bytes() []byte {
	n := d.uvarint()
	if d.failed || n > uint64(len(d.b)) {
		d.failed = true
		return nil
	}
	out := d.b[:n:n]
	d.b = d.b[n:]
	return out
}
