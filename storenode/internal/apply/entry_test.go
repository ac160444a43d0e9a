package apply

import (
	"bytes"
	"encoding/hex"
	"errors"
	"slices"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/ridgekv/ridge/proto/keys"
	logpb "github.com/ridgekv/ridge/proto/ridge/log/v1"
	metapb "github.com/ridgekv/ridge/proto/ridge/meta/v1"
	"github.com/ridgekv/ridge/proto/ts"
)

var writeHeader = Header{
	Kind: KindWrite, Tenure: 7, Number: 300, SpanEpoch: 2, MinVersion: 1,
}

// goldenEntries are the bytes of format 1. They may never change: logs hold
// them.
var goldenEntries = []struct {
	name  string
	bytes string
	make  func() []byte
}{
	{
		"write",
		"010107ac0202010000000001020304" + "03" +
			"00" + "0161" + "0131" +
			"02" + "0162" + "00000000000000ff" + "00" +
			"01" + "0163",
		func() []byte {
			return EncodeWrite(writeHeader, 0x01020304, []Effect{
				{Key: []byte("c"), Delete: true, Value: []byte("ignored")},
				{Key: []byte("a"), Value: []byte("0")},
				{Key: []byte("b"), ExpiresAt: 0xff},
				{Key: []byte("a"), Value: []byte("1")},
			})
		},
	},
	{
		"empty write", "010107ac0202010000000000000009" + "00",
		func() []byte { return EncodeWrite(writeHeader, 9, nil) },
	},
	{
		"acquire-lease", "010200000001" + "0803100218092004",
		func() []byte {
			return EncodeMessage(Header{Kind: KindAcquireLease, MinVersion: 1}, &logpb.AcquireLease{
				HolderReplicaId: 3, HolderStoreId: 2, Nonce: 9, ExpectedTenure: 4,
			})
		},
	},
	{
		"raise-read-bound", "010301020301" + "0805",
		func() []byte {
			return EncodeMessage(Header{KindRaiseReadBound, 1, 2, 3, 1},
				&logpb.RaiseReadBound{ReadBound: 5})
		},
	},
	{
		"split", "010401020301" + "0a016d" + "1009" + "1a06080b10011801" + "2008" + "2806",
		func() []byte {
			return EncodeMessage(Header{KindSplit, 1, 2, 3, 1}, &logpb.Split{
				SplitKey: []byte("m"), ChildRangeId: 9,
				ChildReplicas: []*metapb.Replica{
					{ReplicaId: 11, StoreId: 1, Role: metapb.Role_ROLE_VOTER},
				},
				ExpectedConfig: 8, MaxReadTs: 6,
			})
		},
	},
	{
		"checksum", "010501020301" + "0807",
		func() []byte {
			return EncodeMessage(Header{KindChecksum, 1, 2, 3, 1}, &logpb.Checksum{CheckId: 7})
		},
	},
	{
		"set-txn-safe-point", "010601020301" + "0807",
		func() []byte {
			return EncodeMessage(Header{KindSetTxnSafePoint, 1, 2, 3, 1},
				&logpb.SetTxnSafePoint{Ts: 7})
		},
	},
}

func TestEntryGolden(t *testing.T) {
	for _, g := range goldenEntries {
		t.Run(g.name, func(t *testing.T) {
			got := g.make()
			if hex.EncodeToString(got) != g.bytes {
				t.Errorf("encoded %x\nwant    %s", got, g.bytes)
			}
			if _, err := Decode(got); err != nil {
				t.Errorf("decode: %v", err)
			}
		})
	}
}

func TestDecodeWrite(t *testing.T) {
	b := EncodeWrite(writeHeader, 77, []Effect{
		{Key: []byte("b"), Value: []byte("2"), ExpiresAt: 9}, {Key: []byte("a"), Delete: true},
	})
	e, err := Decode(b)
	if err != nil {
		t.Fatal(err)
	}
	if e.Header != writeHeader || e.CommitTS != 77 || e.Len() != 2 || !e.HasExpiry {
		t.Errorf("decoded %+v", e)
	}
	got := slices.Collect(e.Effects())
	if !got[0].Delete || string(got[0].Key) != "a" || string(got[1].Value) != "2" ||
		got[1].ExpiresAt != 9 {
		t.Errorf("effects %+v", got)
	}
	// Without copying: the entry's memory is the effects' memory.
	b[len(b)-1] = 'X'
	if string(got[1].Value) != "X" {
		t.Error("the value was copied")
	}
	if cap(got[0].Key) != len(got[0].Key) {
		t.Error("appending to a key would write into the entry")
	}
	if n := testing.AllocsPerRun(100, func() {
		e, _ := Decode(b)
		for f := range e.Effects() {
			_ = f
		}
	}); n > 0 {
		t.Errorf("decoding allocates %v times", n)
	}
}

func TestEncodeWriteKeepsItsArgument(t *testing.T) {
	in := []Effect{{Key: []byte("b")}, {Key: []byte("a")}, {Key: []byte("b"), Delete: true}}
	EncodeWrite(writeHeader, 1, in)
	if string(in[0].Key) != "b" || string(in[1].Key) != "a" || !in[2].Delete {
		t.Errorf("changed to %v", in)
	}
}

func TestEntryLimits(t *testing.T) {
	full := make([]Effect, keys.MaxEntryKeys)
	size := EntryOverheadBytes
	for i := range full {
		full[i] = Effect{Key: []byte{1, byte(i >> 8), byte(i)}, Value: make([]byte, 300)}
		size += EffectSizeBytes(full[i])
	}
	b := EncodeWrite(writeHeader, 1, full)
	if len(b) > size {
		t.Errorf("%d bytes, estimated at most %d", len(b), size)
	}
	if e, err := Decode(b); err != nil || e.Len() != keys.MaxEntryKeys {
		t.Errorf("decode: %v", err)
	}
	for name, effects := range map[string][]Effect{
		"keys":  append(full, Effect{Key: []byte{2}}),
		"bytes": slices.Repeat([]Effect{{Key: []byte{1}, Value: make([]byte, 1<<20)}}, 5),
	} {
		for i := range effects {
			effects[i].Key = []byte{byte(i >> 8), byte(i)}
		}
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("too many %s were encoded", name)
				}
			}()
			EncodeWrite(writeHeader, 1, effects)
		}()
	}
}

func TestDecodeRefuses(t *testing.T) {
	good := EncodeWrite(writeHeader, 1, []Effect{{Key: []byte("a"), Value: []byte("1")}})
	head := good[:len(good)-6] // up to the number of effects
	cases := []struct {
		name string
		in   []byte
		want error
	}{
		{"nothing", nil, ErrUnknownFormat},
		{"another format", append([]byte{2}, good[1:]...), ErrUnknownFormat},
		{"half a header", good[:3], ErrMalformed},
		{"kind 0", []byte{1, 0, 1, 1, 1, 1}, ErrUnknownKind},
		{"freeze", []byte{1, byte(KindFreeze), 1, 1, 1, 1}, ErrUnknownKind},
		{"kind 300", []byte{1, 0xac, 2, 1, 1, 1, 1}, ErrUnknownKind},
		{"newer version", []byte{1, 1, 1, 1, 1, byte(Version) + 1}, ErrUnknownVersion},
		{"cut short", good[:len(good)-1], ErrMalformed},
		{"something behind", append(bytes.Clone(good), 0), ErrMalformed},
		{"empty key", append(bytes.Clone(head), 1, 0, 0, 0), ErrMalformed},
		{"unknown flag", append(bytes.Clone(head), 1, 4, 1, 'a', 0), ErrMalformed},
		{"delete that expires", append(bytes.Clone(head), 1, 3, 1, 'a'), ErrMalformed},
		{"order", append(bytes.Clone(head), 2, 1, 1, 'b', 1, 1, 'a'), ErrMalformed},
		{"twice", append(bytes.Clone(head), 2, 1, 1, 'a', 1, 1, 'a'), ErrMalformed},
		{"too many", append(bytes.Clone(head), 0xff, 0xff, 0x7f), ErrMalformed},
		{"no message", []byte{1, byte(KindSplit), 1, 1, 1, 1, 0xff}, ErrMalformed},
	}
	for _, c := range cases {
		if _, err := Decode(c.in); !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", c.name, err, c.want)
		}
	}
}

// TestKinds is the table of what is checked of which entry.
func TestKinds(t *testing.T) {
	for _, c := range []struct {
		kind            Kind
		name            string
		numbered, epoch bool
		payload         proto.Message
	}{
		{KindWrite, "write", true, true, nil},
		{KindAcquireLease, "acquire-lease", false, false, &logpb.AcquireLease{}},
		{KindRaiseReadBound, "raise-read-bound", true, false, &logpb.RaiseReadBound{}},
		{KindSplit, "split", true, true, &logpb.Split{}},
		{KindChecksum, "checksum", true, false, &logpb.Checksum{}},
		{KindSetTxnSafePoint, "set-txn-safe-point", true, false, &logpb.SetTxnSafePoint{}},
	} {
		if c.kind.String() != c.name || c.kind.Numbered() != c.numbered ||
			c.kind.ChecksSpanEpoch() != c.epoch {
			t.Errorf("%d: %s numbered=%v epoch=%v", c.kind, c.kind,
				c.kind.Numbered(), c.kind.ChecksSpanEpoch())
		}
		if got := newMessage(c.kind); (got == nil) != (c.payload == nil) {
			t.Errorf("%s carries %T", c.kind, got)
		}
	}
}

func FuzzDecode(f *testing.F) {
	for _, g := range goldenEntries {
		f.Add(g.make())
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		e, err := Decode(b)
		if err != nil {
			return
		}
		if e.Kind != KindWrite {
			again, err := Decode(EncodeMessage(e.Header, e.Message))
			if err != nil || !proto.Equal(again.Message, e.Message) {
				t.Fatalf("round trip of %v: %v", e.Message, err)
			}
			return
		}
		effects := slices.Collect(e.Effects())
		again, err := Decode(EncodeWrite(e.Header, e.CommitTS, effects))
		if err != nil || again.Header != e.Header || again.CommitTS != e.CommitTS ||
			again.HasExpiry != e.HasExpiry {
			t.Fatalf("round trip of %+v: %+v, %v", e, again, err)
		}
		if !slices.EqualFunc(effects, slices.Collect(again.Effects()), sameEffect) {
			t.Fatalf("round trip of %v", effects)
		}
	})
}

// FuzzEncodeWrite builds effects from bytes: whatever the evaluator hands in,
// the entry holds the last effect of each key, in order.
func FuzzEncodeWrite(f *testing.F) {
	f.Add([]byte("a1b2a3c"), uint64(5))
	f.Fuzz(func(t *testing.T, raw []byte, at uint64) {
		var in []Effect
		last := map[string]Effect{}
		for i := 0; i+1 < len(raw) && i < 2000; i += 2 {
			e := Effect{Key: raw[i : i+1], Value: raw[i : i+2]}
			if raw[i+1]%3 == 0 {
				e = Effect{Key: raw[i : i+1], Delete: true}
			}
			if raw[i+1]%5 == 1 {
				e.ExpiresAt = ts.Timestamp(raw[i+1])
			}
			if e.Delete {
				e.ExpiresAt = 0
			}
			in, last[string(e.Key)] = append(in, e), e
		}
		e, err := Decode(EncodeWrite(writeHeader, ts.Timestamp(at), in))
		if err != nil || e.Len() != len(last) {
			t.Fatalf("%d of %d effects: %v", e.Len(), len(last), err)
		}
		for got := range e.Effects() {
			if !sameEffect(got, last[string(got.Key)]) {
				t.Fatalf("%v, want %v", got, last[string(got.Key)])
			}
		}
	})
}

func sameEffect(a, b Effect) bool {
	return bytes.Equal(a.Key, b.Key) && bytes.Equal(a.Value, b.Value) &&
		a.Delete == b.Delete && a.ExpiresAt == b.ExpiresAt
}
