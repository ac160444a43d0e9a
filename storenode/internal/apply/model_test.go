package apply

import (
	"bytes"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"

	sm "github.com/lni/dragonboat/v4/statemachine"
	"google.golang.org/protobuf/proto"

	"github.com/ridgekv/ridge/proto/keys"
	logpb "github.com/ridgekv/ridge/proto/ridge/log/v1"
	"github.com/ridgekv/ridge/proto/ts"
	"github.com/ridgekv/ridge/storenode/internal/catalog"
)

// modelRange is what a range must be after some entry of its log: the rules of
// the design once more, in maps, without an engine, batches or crashes.
type modelRange struct {
	state   *logpb.RangeState // the replicated part
	applied catalog.Applied
	rows    map[string][]modelRow // oldest first
}

type modelRow struct {
	at      ts.Timestamp
	value   string
	expires ts.Timestamp
	deleted bool
}

func (m *modelRange) clone() *modelRange {
	rows := make(map[string][]modelRow, len(m.rows))
	for k, v := range m.rows {
		rows[k] = slices.Clip(v) // appending to it copies it
	}
	return &modelRange{proto.CloneOf(m.state), m.applied, rows}
}

// modelOp is an entry before it is encoded.
type modelOp struct {
	index   uint64
	header  Header
	at      ts.Timestamp
	effects []Effect
	message proto.Message
}

func (o modelOp) entry() sm.Entry {
	if o.header.Kind == KindWrite {
		return sm.Entry{Index: o.index, Cmd: EncodeWrite(o.header, o.at, o.effects)}
	}
	return sm.Entry{Index: o.index, Cmd: EncodeMessage(o.header, o.message)}
}

// apply moves m past o and returns the result code and the child it made.
func (m *modelRange) apply(o modelOp) (code uint64, child *modelRange) {
	m.applied.Index = o.index
	h := o.header
	if h.Kind == KindAcquireLease {
		return m.acquire(o.message.(*logpb.AcquireLease)), nil
	}
	switch {
	case h.Tenure != m.state.GetLease().GetTenure() || h.Tenure == 0:
		return ResultWrongTenure, nil
	case h.Number <= m.applied.Number:
		return ResultDuplicate, nil
	case h.Number > m.applied.Number+1:
		return ResultGap, nil
	}
	wrongEpoch := h.SpanEpoch != m.state.SpanEpoch
	if h.Kind == KindWrite {
		return m.write(o, wrongEpoch), nil
	}
	m.applied.Number = h.Number
	switch p := o.message.(type) {
	case *logpb.RaiseReadBound:
		m.state.ReadBound = max(m.state.ReadBound, p.ReadBound)
	case *logpb.SetTxnSafePoint:
		m.state.TxnSafePoint = max(m.state.TxnSafePoint, p.Ts)
	case *logpb.Split:
		if wrongEpoch {
			return ResultEpochMismatch, nil
		}
		return m.split(p)
	}
	return ResultApplied, nil
}

func (m *modelRange) acquire(p *logpb.AcquireLease) uint64 {
	tenure := m.state.GetLease().GetTenure()
	if p.ExpectedTenure != tenure {
		return ResultRefused
	}
	if tenure > 0 {
		m.state.Previous = &logpb.Tenure{Tenure: tenure, LastNumber: m.applied.Number}
	}
	m.state.Lease = &logpb.Lease{
		Tenure: tenure + 1, HolderReplicaId: p.HolderReplicaId,
		HolderStoreId: p.HolderStoreId, Nonce: p.Nonce,
	}
	m.applied.Number = 0
	return ResultApplied
}

func (m *modelRange) write(o modelOp, wrongEpoch bool) uint64 {
	if wrongEpoch {
		return ResultEpochMismatch
	}
	if o.at <= m.applied.MaxCommitTS {
		return ResultRefused
	}
	span := keys.FromProto(m.state.Span)
	for _, e := range o.effects {
		if !span.Contains(e.Key) {
			return ResultRefused
		}
	}
	m.applied.Number, m.applied.MaxCommitTS = o.header.Number, o.at
	last := map[string]Effect{}
	for _, e := range o.effects {
		last[string(e.Key)] = e
	}
	for k, e := range last {
		row := modelRow{at: o.at, deleted: e.Delete}
		if !e.Delete {
			row.value, row.expires = string(e.Value), e.ExpiresAt
			m.state.HasTtl = m.state.HasTtl || e.ExpiresAt != 0
		}
		m.rows[k] = append(m.rows[k], row)
	}
	return ResultApplied
}

func (m *modelRange) split(p *logpb.Split) (uint64, *modelRange) {
	span := keys.FromProto(m.state.Span)
	if !span.Contains(p.SplitKey) || bytes.Equal(span.Start, p.SplitKey) ||
		p.ExpectedConfig != 5 || p.ChildRangeId == m.state.LastChildRangeId {
		return ResultRefused, nil
	}
	left, right := span.SplitAt(p.SplitKey)
	child := &modelRange{
		state:   proto.CloneOf(m.state),
		applied: catalog.Applied{Index: catalog.BirthIndex, MaxCommitTS: m.applied.MaxCommitTS},
		rows:    map[string][]modelRow{},
	}
	m.state.Span, m.state.LastChildRangeId = left.Proto(), p.ChildRangeId
	m.state.SpanEpoch++
	child.state.RangeId, child.state.Span, child.state.SpanEpoch = p.ChildRangeId, right.Proto(), m.state.SpanEpoch
	child.state.Lease, child.state.Previous, child.state.LastChildRangeId = nil, nil, 0
	child.state.ReadBound = p.MaxReadTs
	for k, v := range m.rows {
		if right.Contains([]byte(k)) {
			child.rows[k] = v
			delete(m.rows, k)
		}
	}
	return ResultApplied, child
}

// world is the logs of all ranges that a random history makes, and what every
// range must be after every entry.
type world struct {
	logs  map[uint64][]modelOp
	codes map[uint64]map[uint64]uint64 // range, index: result
	past  map[uint64]map[uint64]*modelRange
	// bornAt is the index of the split in the log of the parent.
	bornAt map[uint64]struct{ parent, index uint64 }
}

// newWorld makes a history of about n entries.
func newWorld(rng *rand.Rand, n int) *world {
	w := &world{
		logs: map[uint64][]modelOp{}, codes: map[uint64]map[uint64]uint64{},
		past:   map[uint64]map[uint64]*modelRange{},
		bornAt: map[uint64]struct{ parent, index uint64 }{},
	}
	live := map[uint64]*modelRange{}
	add := func(m *modelRange) {
		id := m.state.RangeId
		live[id], w.codes[id] = m, map[uint64]uint64{}
		w.past[id] = map[uint64]*modelRange{m.applied.Index: m.clone()}
	}
	first := (&modelRange{
		state:   &logpb.RangeState{RangeId: testRangeID, Span: keys.All().Proto(), SpanEpoch: 1},
		applied: catalog.Applied{Index: catalog.BirthIndex},
	}).clone()
	add(first)
	clock := ts.Timestamp(100)
	for range n {
		ids := slices.Sorted(maps.Keys(live))
		m := live[ids[rng.IntN(len(ids))]]
		id := m.state.RangeId
		clock += ts.Timestamp(rng.IntN(4))
		op := randomOp(rng, m, clock, uint64(len(live))+1)
		w.logs[id] = append(w.logs[id], op)
		code, child := m.apply(op)
		w.codes[id][op.index], w.past[id][op.index] = code, m.clone()
		if child != nil {
			w.bornAt[child.state.RangeId] = struct{ parent, index uint64 }{id, op.index}
			add(child)
		}
	}
	return w
}

// randomOp makes an entry that is mostly good for m and sometimes late, early,
// repeated, of another tenure or another span epoch.
func randomOp(rng *rand.Rand, m *modelRange, clock ts.Timestamp, nextChild uint64) modelOp {
	tenure := m.state.GetLease().GetTenure()
	o := modelOp{index: m.applied.Index + 1 + uint64(rng.IntN(8)/7), header: Header{
		Kind: KindWrite, Tenure: tenure, Number: m.applied.Number + 1,
		SpanEpoch: m.state.SpanEpoch, MinVersion: 1,
	}}
	if tenure == 0 && rng.IntN(4) > 0 || rng.IntN(25) == 0 {
		o.header = Header{Kind: KindAcquireLease, MinVersion: 1}
		o.message = &logpb.AcquireLease{
			HolderReplicaId: 1 + rng.Uint64N(3), HolderStoreId: 1 + rng.Uint64N(3),
			Nonce: rng.Uint64N(9), ExpectedTenure: tenure - min(tenure, rng.Uint64N(5)/4),
		}
		return o
	}
	switch rng.IntN(20) {
	case 0:
		o.header.Number += uint64(rng.IntN(2))
	case 1:
		o.header.Number -= min(o.header.Number, uint64(rng.IntN(3)))
	case 2:
		o.header.Tenure += uint64(rng.IntN(2))
	case 3:
		o.header.SpanEpoch -= min(o.header.SpanEpoch, uint64(rng.IntN(2)))
	}
	switch rng.IntN(20) {
	case 0:
		o.header.Kind = KindRaiseReadBound
		o.message = &logpb.RaiseReadBound{ReadBound: uint64(clock) - 20 + rng.Uint64N(60)}
	case 1:
		o.header.Kind = KindSetTxnSafePoint
		o.message = &logpb.SetTxnSafePoint{Ts: uint64(clock) - 20 + rng.Uint64N(60)}
	case 2:
		o.header.Kind = KindChecksum
		o.message = &logpb.Checksum{CheckId: rng.Uint64()}
	case 3:
		o.header.Kind = KindSplit
		p := splitMessage(randomKey(rng, nil), nextChild)
		p.MaxReadTs = uint64(clock)
		if rng.IntN(8) == 0 {
			p.ExpectedConfig++
		}
		if rng.IntN(8) == 0 && m.state.LastChildRangeId != 0 {
			p.ChildRangeId = m.state.LastChildRangeId
		}
		o.message = p
	default:
		o.at, o.effects = m.applied.MaxCommitTS+ts.Timestamp(rng.IntN(12)), randomEffects(rng, m)
	}
	return o
}

func randomEffects(rng *rand.Rand, m *modelRange) []Effect {
	var out []Effect
	var span *keys.Span
	if rng.IntN(30) > 0 { // mostly inside
		s := keys.FromProto(m.state.Span)
		span = &s
	}
	for range rng.IntN(6) {
		e := Effect{Key: []byte(randomKey(rng, span))}
		switch rng.IntN(5) {
		case 0:
			e.Delete = true
		case 1:
			e.ExpiresAt = ts.Timestamp(1 + rng.Uint64N(1000))
			fallthrough
		default:
			e.Value = []byte(strings.Repeat(fmt.Sprint(rng.IntN(10)), rng.IntN(100)))
		}
		out = append(out, e)
	}
	return out
}

// randomKey is one of 60 keys, inside span where that has any.
func randomKey(rng *rand.Rand, span *keys.Span) string {
	var key string
	for range 200 {
		key = fmt.Sprintf("k%02d", rng.IntN(60))
		if span == nil || span.Contains([]byte(key)) {
			break
		}
	}
	return key
}
