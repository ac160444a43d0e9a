package catalog

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"

	"google.golang.org/protobuf/proto"

	"github.com/ridgekv/ridge/proto/keys"
	logpb "github.com/ridgekv/ridge/proto/ridge/log/v1"
	metapb "github.com/ridgekv/ridge/proto/ridge/meta/v1"
	"github.com/ridgekv/ridge/proto/ts"
	"github.com/ridgekv/ridge/storenode/internal/engine"
)

const (
	appliedFormat = 1
	stateFormat   = 1
	appliedSize   = 1 + 3*8
)

// ErrCorrupt is returned for a record that cannot be read.
var ErrCorrupt = errors.New("catalog: corrupt record")

// Applied is the record a|range: how far a replica has applied its log. It is
// written with every commit of the range, so it is small.
type Applied struct {
	// Index is the last applied log index.
	Index uint64
	// Number is the last number taken of the tenure in force.
	Number uint64
	// MaxCommitTS is the highest commit_ts the range has ever written.
	MaxCommitTS ts.Timestamp
}

// EncodeApplied encodes a.
func EncodeApplied(a Applied) []byte {
	out := make([]byte, 1, appliedSize)
	out[0] = appliedFormat
	out = binary.BigEndian.AppendUint64(out, a.Index)
	out = binary.BigEndian.AppendUint64(out, a.Number)
	return binary.BigEndian.AppendUint64(out, uint64(a.MaxCommitTS))
}

// DecodeApplied is the inverse of EncodeApplied.
func DecodeApplied(b []byte) (Applied, error) {
	if len(b) != appliedSize || b[0] != appliedFormat {
		return Applied{}, fmt.Errorf("%w: applied record of %d bytes", ErrCorrupt, len(b))
	}
	return Applied{
		Index:       binary.BigEndian.Uint64(b[1:]),
		Number:      binary.BigEndian.Uint64(b[9:]),
		MaxCommitTS: ts.Timestamp(binary.BigEndian.Uint64(b[17:])),
	}, nil
}

// State is the record m|range: what the range is and what this replica of it
// is. It is immutable: two equal pointers mean that nothing has changed.
type State struct {
	pb     *logpb.RangeState
	span   keys.Span
	slices []engine.Slice
	// halted is why the replica decides nothing until its next start. It is
	// never written.
	halted string
}

// NewState makes a State of pb, which must not be changed any more.
func NewState(pb *logpb.RangeState) *State {
	s := &State{pb: pb, span: keys.FromProto(pb.GetSpan())}
	for _, p := range pb.GetSlices() {
		s.slices = append(s.slices, engine.Slice{
			Extent: engine.Extent(p.GetExtent()),
			Span:   keys.FromProto(p.GetSpan()),
		})
	}
	return s
}

// RangeID names the range.
func (s *State) RangeID() uint64 { return s.pb.GetRangeId() }

// ReplicaID names the replica that this store holds.
func (s *State) ReplicaID() uint64 { return s.pb.GetReplicaId() }

// Span is what the range holds. It means nothing while the replica is joining.
func (s *State) Span() keys.Span { return s.span }

// SpanEpoch grows by one with every split or merge.
func (s *State) SpanEpoch() uint64 { return s.pb.GetSpanEpoch() }

// Lease is the lease in force, nil before the first. It must not be changed.
func (s *State) Lease() *logpb.Lease { return s.pb.GetLease() }

// Tenure is the counter of the lease in force, 0 before the first.
func (s *State) Tenure() uint64 { return s.pb.GetLease().GetTenure() }

// Previous is the tenure before the one in force with its last number: what is
// above that number was never applied. It is nil before the second lease, and
// must not be changed.
func (s *State) Previous() *logpb.Tenure { return s.pb.GetPrevious() }

// ReadBound is the timestamp below which snapshot reads may be answered.
func (s *State) ReadBound() ts.Timestamp { return ts.Timestamp(s.pb.GetReadBound()) }

// TxnSafePoint is the timestamp at or below which prewrites are refused.
func (s *State) TxnSafePoint() ts.Timestamp { return ts.Timestamp(s.pb.GetTxnSafePoint()) }

// HasTTL reports whether the range has ever held a row that expires.
func (s *State) HasTTL() bool { return s.pb.GetHasTtl() }

// HistoryFloor is the timestamp below which this replica may lack versions.
func (s *State) HistoryFloor() ts.Timestamp { return ts.Timestamp(s.pb.GetHistoryFloor()) }

// Slices are the parts of the store's data that this replica owns (Law 2),
// ordered and disjoint. They must not be changed.
func (s *State) Slices() []engine.Slice { return s.slices }

// Role is voter or learner, as last told to the engine. A replica that was
// promoted may still say learner, never the other way.
func (s *State) Role() metapb.Role { return s.pb.GetRole() }

// Status is the life of the replica.
func (s *State) Status() logpb.ReplicaState { return s.pb.GetState() }

// Unborn lists the children whose birth this replica has not seen. While there
// are any the log must not be compacted to or past their split index, the
// members must not change, and the leaseholder must not propose another split.
// It must not be changed.
func (s *State) Unborn() []*logpb.UnbornChild { return s.pb.GetUnborn() }

// Halted tells why the replica decides nothing until its next start. It is
// empty for all others. A halted replica lags behind the index that Raft
// believes it has applied, so nobody may read it or take a log snapshot of it.
func (s *State) Halted() string { return s.halted }

// LastChildRangeID is the child of the newest split, 0 before the first.
func (s *State) LastChildRangeID() uint64 { return s.pb.GetLastChildRangeId() }

// Serving reports whether the replica may be read and evaluated upon.
func (s *State) Serving() bool {
	return s.halted == "" && s.Status() == logpb.ReplicaState_REPLICA_STATE_NORMAL
}

// PB is a copy of the record.
func (s *State) PB() *logpb.RangeState { return proto.CloneOf(s.pb) }

// With is a copy of s changed by edit. It stays halted.
func (s *State) With(edit func(*logpb.RangeState)) *State {
	pb := s.PB()
	edit(pb)
	out := NewState(pb)
	out.halted = s.halted
	return out
}

// WithHalted is a copy of s that is halted for a reason; "" ends it.
func (s *State) WithHalted(reason string) *State {
	out := *s
	out.halted = reason
	return &out
}

// Replicated is the part of the record that is equal on all replicas at one
// applied index, as a copy. The history floor is not: it comes with the image
// a replica was made of.
func (s *State) Replicated() *logpb.RangeState {
	return &logpb.RangeState{
		RangeId:      s.pb.GetRangeId(),
		Span:         proto.CloneOf(s.pb.GetSpan()),
		SpanEpoch:    s.pb.GetSpanEpoch(),
		Lease:        proto.CloneOf(s.pb.GetLease()),
		Previous:     proto.CloneOf(s.pb.GetPrevious()),
		ReadBound:    s.pb.GetReadBound(),
		TxnSafePoint: s.pb.GetTxnSafePoint(),
		HasTtl:       s.pb.GetHasTtl(),
		MergeInto:    s.pb.GetMergeInto(),

		LastChildRangeId: s.pb.GetLastChildRangeId(),
	}
}

// EncodeState encodes s.
func EncodeState(s *State) []byte {
	out, err := proto.MarshalOptions{Deterministic: true}.MarshalAppend([]byte{stateFormat}, s.pb)
	if err != nil {
		panic(fmt.Sprintf("catalog: encode state of range %d: %v", s.RangeID(), err))
	}
	return out
}

// DecodeState is the inverse of EncodeState. It checks what must hold of every
// record, so that a corrupt one is not taken for a replica.
func DecodeState(b []byte) (*State, error) {
	if len(b) == 0 || b[0] != stateFormat {
		return nil, fmt.Errorf("%w: range state of %d bytes", ErrCorrupt, len(b))
	}
	pb := &logpb.RangeState{}
	if err := proto.Unmarshal(b[1:], pb); err != nil {
		return nil, fmt.Errorf("%w: range state: %w", ErrCorrupt, err)
	}
	s := NewState(pb)
	if err := s.check(); err != nil {
		return nil, fmt.Errorf("%w: state of range %d: %w", ErrCorrupt, pb.GetRangeId(), err)
	}
	return s, nil
}

// check reports what is wrong with s: a replica that holds data owns slices
// that make up exactly its span.
func (s *State) check() error {
	switch {
	case s.RangeID() == 0 || s.ReplicaID() == 0:
		return errors.New("no range id or replica id")
	case s.Status() == logpb.ReplicaState_REPLICA_STATE_UNSPECIFIED:
		return errors.New("no state")
	case s.Role() == metapb.Role_ROLE_UNSPECIFIED:
		return errors.New("no role")
	case !s.span.Valid():
		return fmt.Errorf("span %s is empty", s.span)
	}
	if len(s.slices) == 0 {
		if s.Status() == logpb.ReplicaState_REPLICA_STATE_NORMAL {
			return errors.New("no slices")
		}
		return nil
	}
	next := s.span.Start
	for i, x := range s.slices {
		last := i == len(s.slices)-1
		switch {
		case !x.Span.Valid() || !bytes.Equal(x.Span.Start, next):
			return fmt.Errorf("slice %d is %s, want it to begin at %s", i, x.Span, keys.Format(next))
		case len(x.Span.End) == 0 && !last:
			return fmt.Errorf("slice %d has no end", i)
		}
		next = x.Span.End
	}
	if !bytes.Equal(next, s.span.End) {
		return fmt.Errorf("slices end at %s, span is %s", keys.Format(next), s.span)
	}
	return nil
}
