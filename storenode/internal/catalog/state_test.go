package catalog

import (
	"encoding/hex"
	"errors"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/ridgekv/ridge/proto/keys"
	logpb "github.com/ridgekv/ridge/proto/ridge/log/v1"
	metapb "github.com/ridgekv/ridge/proto/ridge/meta/v1"
)

func span(start, end string) keys.Span {
	return keys.Span{Start: []byte(start), End: []byte(end)}
}

func slice(extent uint32, start, end string) *logpb.Slice {
	return &logpb.Slice{Extent: extent, Span: span(start, end).Proto()}
}

// record is a sound record of a range.
func record(rangeID uint64, start, end string, epoch uint64) *logpb.RangeState {
	return &logpb.RangeState{
		RangeId: rangeID, Span: span(start, end).Proto(), SpanEpoch: epoch,
		ReplicaId: rangeID * 10, Role: metapb.Role_ROLE_VOTER,
		State:  logpb.ReplicaState_REPLICA_STATE_NORMAL,
		Slices: []*logpb.Slice{slice(1, start, end)},
	}
}

func TestAppliedCodec(t *testing.T) {
	a := Applied{Index: 0x0102, Number: 3, MaxCommitTS: 1 << 60}
	b := EncodeApplied(a)
	const golden = "01" + "0000000000000102" + "0000000000000003" + "1000000000000000"
	if hex.EncodeToString(b) != golden {
		t.Errorf("encoded %x, want %s", b, golden)
	}
	if len(b) > 40 {
		t.Errorf("%d bytes: the record is written with every commit", len(b))
	}
	if got, err := DecodeApplied(b); err != nil || got != a {
		t.Errorf("decoded %+v, %v", got, err)
	}
	for _, bad := range [][]byte{nil, {1}, b[:24], append(b, 0), append([]byte{2}, b[1:]...)} {
		if _, err := DecodeApplied(bad); !errors.Is(err, ErrCorrupt) {
			t.Errorf("%x: %v", bad, err)
		}
	}
}

func TestStateCodec(t *testing.T) {
	pb := record(7, "a", "m", 3)
	pb.Lease = &logpb.Lease{Tenure: 2, HolderReplicaId: 70, HolderStoreId: 1, Nonce: 5}
	pb.Previous = &logpb.Tenure{Tenure: 1, LastNumber: 9}
	pb.Unborn = []*logpb.UnbornChild{{RangeId: 8, SplitIndex: 100}}
	pb.Slices = []*logpb.Slice{slice(1, "a", "f"), slice(9, "f", "m")}
	s := NewState(pb)
	b := EncodeState(s)
	got, err := DecodeState(b)
	if err != nil {
		t.Fatal(err)
	}
	if !proto.Equal(got.PB(), pb) {
		t.Errorf("decoded %v", got.PB())
	}
	if len(got.Slices()) != 2 || got.Slices()[1].Extent != 9 || got.Tenure() != 2 ||
		!got.Span().Equal(span("a", "m")) || !got.Serving() || len(got.Unborn()) != 1 {
		t.Errorf("accessors of %v", got.PB())
	}
	halted := s.WithHalted("why")
	if halted.Serving() || halted.Halted() != "why" || s.Halted() != "" {
		t.Error("halted is not a property of the copy")
	}
	if again := halted.With(func(pb *logpb.RangeState) { pb.ReadBound = 1 }); again.Halted() != "why" {
		t.Error("a change ends the halt")
	}
	if again, _ := DecodeState(EncodeState(halted)); again.Halted() != "" {
		t.Error("the halt was written")
	}
	local := s.Replicated()
	if local.ReplicaId != 0 || local.Slices != nil || local.Unborn != nil || local.State != 0 {
		t.Errorf("replicated part holds local fields: %v", local)
	}
}

// TestStateGolden: bytes of format 1, which data directories hold.
func TestStateGolden(t *testing.T) {
	pb := record(7, "a", "m", 3)
	pb.HasTtl = true
	const golden = "01" + "0807" + "12060a0161120" + "16d" + "1803" + "4001" +
		"a00146" + "a80101" + "b00102" + "ba010a0801" + "12060a0161120" + "16d"
	if got := hex.EncodeToString(EncodeState(NewState(pb))); got != golden {
		t.Errorf("encoded %s\nwant    %s", got, golden)
	}
}

func TestDecodeStateRefuses(t *testing.T) {
	for name, spoil := range map[string]func(*logpb.RangeState){
		"range id":      func(pb *logpb.RangeState) { pb.RangeId = 0 },
		"replica id":    func(pb *logpb.RangeState) { pb.ReplicaId = 0 },
		"state":         func(pb *logpb.RangeState) { pb.State = 0 },
		"role":          func(pb *logpb.RangeState) { pb.Role = 0 },
		"empty span":    func(pb *logpb.RangeState) { pb.Span = span("m", "a").Proto() },
		"no slices":     func(pb *logpb.RangeState) { pb.Slices = nil },
		"short slices":  func(pb *logpb.RangeState) { pb.Slices[0].Span.End = []byte("c") },
		"long slices":   func(pb *logpb.RangeState) { pb.Slices[0].Span.End = nil },
		"late slices":   func(pb *logpb.RangeState) { pb.Slices[0].Span.Start = []byte("b") },
		"hole":          func(pb *logpb.RangeState) { pb.Slices = append(pb.Slices, slice(1, "n", "m")) },
		"endless slice": func(pb *logpb.RangeState) { pb.Slices = []*logpb.Slice{slice(1, "a", ""), slice(1, "", "m")} },
	} {
		pb := record(7, "a", "m", 3)
		spoil(pb)
		if _, err := DecodeState(EncodeState(NewState(pb))); !errors.Is(err, ErrCorrupt) {
			t.Errorf("%s: %v", name, err)
		}
	}
	joining := &logpb.RangeState{
		RangeId: 7, ReplicaId: 9, Role: metapb.Role_ROLE_LEARNER,
		State: logpb.ReplicaState_REPLICA_STATE_JOINING,
	}
	if _, err := DecodeState(EncodeState(NewState(joining))); err != nil {
		t.Errorf("a joining replica has no slices: %v", err)
	}
}

func FuzzDecodeState(f *testing.F) {
	f.Add(EncodeState(NewState(record(7, "a", "m", 3))))
	f.Add(EncodeState(NewState(record(1, "", "", 1))))
	f.Fuzz(func(t *testing.T, b []byte) {
		s, err := DecodeState(b)
		if err != nil {
			return
		}
		again, err := DecodeState(EncodeState(s))
		if err != nil || !proto.Equal(again.PB(), s.PB()) {
			t.Fatalf("round trip of %v: %v", s.PB(), err)
		}
	})
}

func FuzzDecodeApplied(f *testing.F) {
	f.Add(EncodeApplied(Applied{Index: 1, Number: 2, MaxCommitTS: 3}))
	f.Fuzz(func(t *testing.T, b []byte) {
		a, err := DecodeApplied(b)
		if err == nil && string(EncodeApplied(a)) != string(b) {
			t.Fatalf("round trip of %x", b)
		}
	})
}
