package meta

import (
	"bytes"
	"errors"
	"math"
	"testing"
	"time"

	sm "github.com/lni/dragonboat/v4/statemachine"
	"google.golang.org/protobuf/proto"
	"pgregory.net/rapid"

	metapb "github.com/ridgekv/ridge/proto/ridge/meta/v1"
	pdpb "github.com/ridgekv/ridge/proto/ridge/pd/v1"
	"github.com/ridgekv/ridge/proto/ts"
)

const (
	none     = pdpb.PDErrorReason_PD_ERROR_REASON_UNSPECIFIED
	argument = pdpb.PDErrorReason_PD_ERROR_REASON_INVALID_ARGUMENT
	notFound = pdpb.PDErrorReason_PD_ERROR_REASON_NOT_FOUND
	stale    = pdpb.PDErrorReason_PD_ERROR_REASON_STALE_EPOCH
	gone     = pdpb.PDErrorReason_PD_ERROR_REASON_STORE_GONE
	inUse    = pdpb.PDErrorReason_PD_ERROR_REASON_ADDRESS_IN_USE
	tooOld   = pdpb.PDErrorReason_PD_ERROR_REASON_TOO_OLD
)

func store(id uint64, name string) *metapb.Store {
	return &metapb.Store{StoreId: id, GrpcAddress: name + ":1", RaftAddress: name + ":2"}
}

func admit(s *metapb.Store, silent ...uint64) *pdpb.Command {
	return &pdpb.Command{Command: &pdpb.Command_AdmitStore{
		AdmitStore: &pdpb.AdmitStore{Store: s, SilentStoreIds: silent},
	}}
}

func activate(id uint64) *pdpb.Command {
	return &pdpb.Command{Command: &pdpb.Command_ActivateStore{
		ActivateStore: &pdpb.ActivateStore{StoreId: id},
	}}
}

func setState(id uint64, to metapb.StoreState) *pdpb.Command {
	return &pdpb.Command{Command: &pdpb.Command_PutStoreState{
		PutStoreState: &pdpb.PutStoreState{StoreId: id, State: to},
	}}
}

func allocate(n uint32) *pdpb.Command {
	return &pdpb.Command{Command: &pdpb.Command_AllocateIds{
		AllocateIds: &pdpb.AllocateIDs{Count: n},
	}}
}

func putRanges(dropped []uint64, rs ...*metapb.Range) *pdpb.Command {
	return &pdpb.Command{Command: &pdpb.Command_PutRanges{
		PutRanges: &pdpb.PutRanges{Ranges: rs, DroppedRangeIds: dropped},
	}}
}

func take(owner, nonce, expected uint64, wall ts.Timestamp) *pdpb.Command {
	return &pdpb.Command{Command: &pdpb.Command_TakeTso{TakeTso: &pdpb.TakeTSO{
		Owner: owner, Nonce: nonce, ExpectedEpoch: expected, Wall: uint64(wall),
		Window: uint64(ts.Timestamp(0).Add(3 * time.Second)),
	}}}
}

func extend(owner, nonce, epoch, bound uint64) *pdpb.Command {
	return &pdpb.Command{Command: &pdpb.Command_ExtendTso{ExtendTso: &pdpb.ExtendTSO{
		Owner: owner, Nonce: nonce, Epoch: epoch, Bound: bound,
	}}}
}

func raise(gc, txn, now uint64) *pdpb.Command {
	return &pdpb.Command{Command: &pdpb.Command_RaiseSafePoint{
		RaiseSafePoint: &pdpb.RaiseSafePoint{Gc: gc, Txn: txn, NowUnixMs: now},
	}}
}

func hold(id string, at, expires uint64) *pdpb.Command {
	return &pdpb.Command{Command: &pdpb.Command_PutHold{
		PutHold: &pdpb.PutHold{HoldId: id, Ts: at, ExpiresAtUnixMs: expires},
	}}
}

func drop(id string) *pdpb.Command {
	return &pdpb.Command{Command: &pdpb.Command_DropHold{DropHold: &pdpb.DropHold{HoldId: id}}}
}

func putSettings(version uint64, set map[string]string, unset ...string) *pdpb.Command {
	return &pdpb.Command{Command: &pdpb.Command_PutSettings{PutSettings: &pdpb.PutSettings{
		ExpectedVersion: version, Set: set, Unset: unset,
	}}}
}

func journal(batch uint64, decisions ...*pdpb.Decision) *pdpb.Command {
	return &pdpb.Command{Command: &pdpb.Command_AppendJournal{
		AppendJournal: &pdpb.AppendJournal{Writer: 9, Batch: batch, Decisions: decisions},
	}}
}

// must applies c and checks the reason of its refusal.
func must(t *testing.T, s *state, c *pdpb.Command, want pdpb.PDErrorReason) *pdpb.CommandResult {
	t.Helper()
	r := s.apply(c)
	if r.GetReason() != want {
		t.Fatalf("%v: reason %v (%s), want %v", c, r.GetReason(), r.GetMessage(), want)
	}
	return r
}

func TestClusterIsNamedOnce(t *testing.T) {
	s := newState()
	for i, id := range []uint64{77, 78, 79} {
		r := must(t, s, &pdpb.Command{Command: &pdpb.Command_InitCluster{InitCluster: &pdpb.InitCluster{
			ClusterId: id, Config: &pdpb.ClusterConfig{Replicas: uint32(i + 1)},
		}}}, none)
		if r.GetFirstId() != 77 || s.config.GetReplicas() != 1 {
			t.Fatalf("named %d, config %v after %d", r.GetFirstId(), s.config, id)
		}
	}
}

func TestAllocationNeverRepeats(t *testing.T) {
	s := newState()
	next := uint64(2) // 1 is the first range and its first replica
	for _, n := range []uint32{1, 3, 65536, 2} {
		if r := must(t, s, allocate(n), none); r.GetFirstId() != next {
			t.Fatalf("first of %d is %d, want %d", n, r.GetFirstId(), next)
		}
		next += uint64(n)
	}
	for _, n := range []uint32{0, 65537, math.MaxUint32} {
		must(t, s, allocate(n), argument)
	}
	if s.nextID != next {
		t.Fatalf("a refused allocation used ids up: next is %d, want %d", s.nextID, next)
	}
}

func TestBootstrapIsFinal(t *testing.T) {
	s := newState()
	first := must(t, s, admit(store(0, "a")), none)
	if first.GetStore().GetStoreId() != 1 || first.GetFirstRange().GetRangeId() != 1 {
		t.Fatalf("the first store got %v", first)
	}
	other := must(t, s, admit(store(0, "b")), none)
	if other.GetStore().GetStoreId() != 2 || other.GetFirstRange() != nil {
		t.Fatalf("the second store got %v", other)
	}
	again := must(t, s, admit(store(0, "a")), none) // its answer was lost
	if !proto.Equal(again, first) {
		t.Fatalf("repetition got %v, the first time %v", again, first)
	}
	must(t, s, activate(1), none)
	known := must(t, s, admit(store(1, "a")), none)
	if !proto.Equal(known.GetFirstRange(), first.GetFirstRange()) {
		t.Fatalf("a restart before the birth got %v", known)
	}
	must(t, s, putRanges(nil, first.GetFirstRange()), none)
	if born := must(t, s, admit(store(1, "a")), none); born.GetFirstRange() != nil {
		t.Fatalf("the range is born and shall be borne again: %v", born)
	}
}

func TestAddresses(t *testing.T) {
	base := func(t *testing.T) *state {
		s := newState()
		for _, name := range []string{"a", "b", "c"} {
			r := must(t, s, admit(store(0, name)), none)
			must(t, s, activate(r.GetStore().GetStoreId()), none)
		}
		must(t, s, setState(3, metapb.StoreState_STORE_STATE_GONE), none)
		return s
	}
	half := &metapb.Store{GrpcAddress: "a:1", RaftAddress: "x:2"}
	for _, c := range []struct {
		name string
		in   *pdpb.Command
		want pdpb.PDErrorReason
		id   uint64
	}{
		{"a known store at its address", admit(store(1, "a")), none, 1},
		{"a known store that moved", admit(store(1, "z")), none, 1},
		{"a known store at the address of a live one", admit(store(1, "b")), inUse, 0},
		{"a known store at the address of a silent one", admit(store(1, "b"), 2), none, 1},
		{"an emptied directory", admit(store(0, "a")), inUse, 0},
		{"an emptied directory of a silent store", admit(store(0, "a"), 1), inUse, 0},
		{"half an address is an address", admit(half), inUse, 0},
		{"the address of a store that is gone", admit(store(0, "c")), none, 4},
		{"a store that is gone", admit(store(3, "c")), gone, 0},
		{"a store of another cluster", admit(store(9, "z")), notFound, 0},
		{"no address", admit(&metapb.Store{GrpcAddress: "z:1"}), argument, 0},
		{"nothing", admit(nil), argument, 0},
		{"a new store", admit(store(0, "z")), none, 4},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := base(t)
			before := EncodeState(s.proto())
			r := must(t, s, c.in, c.want)
			if r.GetStore().GetStoreId() != c.id {
				t.Fatalf("store %d, want %d", r.GetStore().GetStoreId(), c.id)
			}
			if c.want != none && !bytes.Equal(before, EncodeState(s.proto())) {
				t.Fatal("a refusal changed the state")
			}
		})
	}
}

func TestStoreStates(t *testing.T) {
	s := newState()
	must(t, s, admit(store(0, "a")), none)
	must(t, s, setState(2, metapb.StoreState_STORE_STATE_UP), notFound)
	must(t, s, activate(2), notFound)
	for _, to := range []metapb.StoreState{
		metapb.StoreState_STORE_STATE_DRAINING, metapb.StoreState_STORE_STATE_LEAVING,
		metapb.StoreState_STORE_STATE_UP,
	} {
		if r := must(t, s, setState(1, to), none); r.GetStore().GetState() != to {
			t.Fatalf("state is %v, want %v", r.GetStore().GetState(), to)
		}
		// A restart does not undo an administrator's word.
		if r := must(t, s, admit(store(1, "a")), none); r.GetStore().GetState() != to {
			t.Fatalf("state is %v after a restart, want %v", r.GetStore().GetState(), to)
		}
	}
	for _, to := range []metapb.StoreState{
		metapb.StoreState_STORE_STATE_UNSPECIFIED, metapb.StoreState_STORE_STATE_DOWN, 99,
	} {
		must(t, s, setState(1, to), argument)
	}
	must(t, s, setState(1, metapb.StoreState_STORE_STATE_GONE), none)
	must(t, s, setState(1, metapb.StoreState_STORE_STATE_GONE), none)
	must(t, s, setState(1, metapb.StoreState_STORE_STATE_UP), gone)
	if r := must(t, s, admit(store(0, "a")), none); r.GetStore().GetStoreId() != 2 {
		t.Fatalf("the id of a store that is gone was given again: %v", r)
	}
}

func TestTSORecord(t *testing.T) {
	const wall = ts.Timestamp(1_000_000 << ts.LogicalBits)
	s := newState()
	first := must(t, s, take(1, 11, 0, wall), none).GetTso()
	if want := wall.Add(3 * time.Second); first.GetBound() != uint64(want) || first.GetEpoch() != 1 {
		t.Fatalf("took over as %v, want bound %d", first, want)
	}
	must(t, s, take(2, 22, 0, wall), stale) // lost the race
	must(t, s, take(2, 22, 7, wall), stale)
	must(t, s, extend(1, 11, 1, first.GetBound()+5), none)
	if s.tso.GetBound() != first.GetBound()+5 {
		t.Fatalf("bound is %d", s.tso.GetBound())
	}
	must(t, s, extend(1, 11, 1, first.GetBound()), none)
	if s.tso.GetBound() != first.GetBound()+5 {
		t.Fatal("the bound was lowered")
	}
	must(t, s, extend(1, 11, 1, math.MaxUint64), none)
	if got := ts.Timestamp(s.tso.GetBound()).Sub(ts.Timestamp(first.GetBound())); got > 2*time.Minute {
		t.Fatalf("one extension reached %s ahead", got)
	}
	bound := s.tso.GetBound()
	// A clock that stands behind does not matter: the bound and a gap do.
	second := must(t, s, take(2, 22, 1, 0), none).GetTso()
	start := ts.Timestamp(second.GetBound()).Add(-3 * time.Second)
	if start != ts.Timestamp(bound).Add(time.Second) {
		t.Fatalf("the second owner begins at %d, the bound was %d", start, bound)
	}
	for name, c := range map[string]*pdpb.Command{
		"old owner":         extend(1, 11, 1, bound+99),
		"old epoch":         extend(2, 22, 1, bound+99),
		"other run":         extend(2, 23, 2, bound+99),
		"owner of old race": extend(1, 22, 2, bound+99),
	} {
		if r := must(t, s, c, stale); !proto.Equal(r.GetTso(), second) {
			t.Fatalf("%s: told %v, want %v", name, r.GetTso(), second)
		}
	}
	for _, window := range []uint64{0, uint64(ts.Timestamp(0).Add(2 * time.Minute)), math.MaxUint64} {
		c := take(3, 33, 2, 0)
		c.GetTakeTso().Window = window
		must(t, s, c, argument)
	}
}

func TestSafePoints(t *testing.T) {
	s := newState()
	check := func(gc, txn uint64) {
		t.Helper()
		if s.gcSafePoint != gc || s.txnSafePoint != txn {
			t.Fatalf("gc %d txn %d, want %d %d", s.gcSafePoint, s.txnSafePoint, gc, txn)
		}
	}
	must(t, s, raise(10, 20, 0), none)
	check(10, 20)
	must(t, s, raise(90, 30, 0), none)
	check(30, 30)
	must(t, s, hold("backup", 29, 1000), tooOld)
	must(t, s, hold("backup", 50, 1000), none)
	must(t, s, raise(70, 80, 999), none)
	check(50, 50)
	must(t, s, hold("backup", 50, 2000), none) // renewed
	must(t, s, raise(70, 80, 1001), none)
	check(50, 50)
	must(t, s, raise(70, 80, 2000), none) // expired
	check(70, 80)
	must(t, s, raise(1, 1, 0), none)
	check(70, 80)
	must(t, s, hold("x", 80, 9000), none)
	must(t, s, drop("x"), none)
	must(t, s, drop("x"), none)
	must(t, s, raise(99, 99, 0), none)
	check(99, 99)
}

// TestSafePointLaw: whatever is asked, gc <= txn <= every hold that was not
// expired, and neither point goes back.
func TestSafePointLaw(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s, now := newState(), uint64(0)
		n := rapid.Uint64Range(0, 40)
		for range rapid.IntRange(1, 60).Draw(t, "steps") {
			gc, txn := s.gcSafePoint, s.txnSafePoint
			now += rapid.Uint64Range(0, 3).Draw(t, "pass")
			name := rapid.SampledFrom([]string{"a", "b", "c"}).Draw(t, "hold")
			switch rapid.IntRange(0, 2).Draw(t, "what") {
			case 0:
				s.apply(raise(n.Draw(t, "gc"), n.Draw(t, "txn"), now))
			case 1:
				s.apply(hold(name, n.Draw(t, "ts"), now+n.Draw(t, "ttl")))
			case 2:
				s.apply(drop(name))
			}
			if s.gcSafePoint < gc || s.txnSafePoint < txn || s.gcSafePoint > s.txnSafePoint {
				t.Fatalf("gc %d→%d txn %d→%d", gc, s.gcSafePoint, txn, s.txnSafePoint)
			}
			for id, h := range s.holds {
				if h.GetTs() < s.txnSafePoint {
					t.Fatalf("hold %s at %d lies below txn %d", id, h.GetTs(), s.txnSafePoint)
				}
			}
		}
	})
}

func describe(id, config, span uint64, start, end string, stores ...uint64) *metapb.Range {
	r := &metapb.Range{
		RangeId: id, Epoch: &metapb.Epoch{Config: config, Span: span},
		Span: &metapb.Span{Start: []byte(start), End: []byte(end)},
	}
	for _, st := range stores {
		r.Replicas = append(r.Replicas, &metapb.Replica{
			ReplicaId: 100 + st, StoreId: st, Role: metapb.Role_ROLE_VOTER,
		})
	}
	return r
}

func TestRangeHalvesAreJudgedApart(t *testing.T) {
	s := newState()
	must(t, s, admit(store(0, "a")), none)
	must(t, s, putRanges(nil, nil, &metapb.Range{}, describe(7, 10, 2, "a", "m", 1, 2)), none)
	// Newer members with an older span, and the other way round.
	must(t, s, putRanges(nil, describe(7, 12, 1, "a", "z", 1, 2, 3)), none)
	must(t, s, putRanges(nil, describe(7, 11, 3, "a", "c", 1)), none)
	if want := describe(7, 12, 3, "a", "c", 1, 2, 3); !proto.Equal(s.ranges[7], want) {
		t.Fatalf("have %v, want %v", s.ranges[7], want)
	}
	if s.ranges[0] != nil || s.firstRangeBorn {
		t.Fatal("a range without an id was remembered")
	}
	must(t, s, putRanges([]uint64{7, 99}), none)
	if s.ranges[7] != nil {
		t.Fatal("the range was not dropped")
	}
}

func TestUnknownCommandStops(t *testing.T) {
	m := newMachine()
	for name, body := range map[string][]byte{
		"empty": nil, "newer format": {9, 1}, "no command": {commandFormat},
		"newer command": {commandFormat, 0xfa, 0x06, 0}, "torn": {commandFormat, 0x0a, 9},
	} {
		if _, err := m.Update([]sm.Entry{{Index: 1, Cmd: body}}); err == nil {
			t.Errorf("%s: applied", name)
		}
	}
	if r := newState().apply(&pdpb.Command{}); r.GetReason() != argument {
		t.Errorf("no command: %v", r)
	}
	if _, err := DecodeState([]byte{stateFormat + 1}); !errors.Is(err, errUnknown) {
		t.Errorf("newer snapshot: %v", err)
	}
	bad := admit(&metapb.Store{GrpcAddress: "\xff"})
	if _, err := EncodeCommand(bad); err == nil {
		t.Error("a string that is no text was encoded")
	}
}

// TestSnapshotRoundTrip: a state read back from a snapshot is the same state,
// and goes on in the same way.
func TestSnapshotRoundTrip(t *testing.T) {
	m := newMachine()
	for i, c := range golden() {
		body, err := EncodeCommand(c)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := m.Update([]sm.Entry{{Index: uint64(i + 1), Cmd: body}}); err != nil {
			t.Fatal(err)
		}
	}
	prepared, err := m.PrepareSnapshot()
	if err != nil {
		t.Fatal(err)
	}
	var image bytes.Buffer
	if err := m.SaveSnapshot(prepared, &image, nil, nil); err != nil {
		t.Fatal(err)
	}
	back := newMachine()
	if err := back.RecoverFromSnapshot(bytes.NewReader(image.Bytes()), nil, nil); err != nil {
		t.Fatal(err)
	}
	for _, c := range []*pdpb.Command{allocate(5), admit(store(0, "new")), raise(400, 400, 1e6)} {
		a, b := m.mu.state.apply(c), back.mu.state.apply(c)
		if !proto.Equal(a, b) {
			t.Fatalf("%v: %v, from the snapshot %v", c, a, b)
		}
	}
	if a, b := m.mu.state.proto(), back.mu.state.proto(); !proto.Equal(a, b) {
		t.Fatalf("have %v\nwant %v", b, a)
	}
	if err := back.RecoverFromSnapshot(bytes.NewReader([]byte{stateFormat, 0xff}), nil, nil); err == nil {
		t.Fatal("a torn snapshot was read")
	}
}
