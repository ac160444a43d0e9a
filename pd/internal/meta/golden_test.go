package meta

import (
	"encoding/hex"
	"flag"
	"fmt"
	"os"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	metapb "github.com/ridgekv/ridge/proto/ridge/meta/v1"
	pdpb "github.com/ridgekv/ridge/proto/ridge/pd/v1"
)

var update = flag.Bool("update", false, "rewrite testdata/golden.txt")

// golden is one command of each kind, in an order that makes a state with
// something in every field.
func golden() []*pdpb.Command {
	config := &pdpb.ClusterConfig{
		Replicas: 3, SplitSizeBytes: 96 << 20, StoreHeartbeatMs: 1000, RetentionMs: 600_000,
	}
	labelled := store(0, "b")
	labelled.Labels = map[string]string{"rack": "r1", "zone": "z1", "disk": "ssd"}
	return []*pdpb.Command{
		{Command: &pdpb.Command_InitCluster{
			InitCluster: &pdpb.InitCluster{ClusterId: 4711, Config: config},
		}},
		take(1, 11, 0, 1_000_000<<18),
		extend(1, 11, 1, 1_004_000<<18),
		admit(store(0, "a")),
		admit(labelled, 7, 8),
		activate(1),
		setState(2, metapb.StoreState_STORE_STATE_LEAVING),
		allocate(4),
		putRanges([]uint64{99}, describe(1, 7, 2, "", "m", 1, 2), describe(2, 5, 2, "m", "", 1)),
		raise(100, 200, 1000),
		hold("backup", 300, 5000),
		hold("other", 400, 5000),
		drop("other"),
		{Command: &pdpb.Command_PutConfig{PutConfig: &pdpb.PutConfig{Config: config}}},
		{Command: &pdpb.Command_ProbeClock{
			ProbeClock: &pdpb.ProbeClock{MemberId: 1, Nonce: 5},
		}},
		{Command: &pdpb.Command_AnswerClock{
			AnswerClock: &pdpb.AnswerClock{MemberId: 2, Nonce: 5, WallUnixMs: 1000},
		}},
		putRule(&pdpb.PlacementRule{
			Id: "no disks", Span: &metapb.Span{Start: []byte("a"), End: []byte("m")}, Voters: 1,
			Constraints: []*pdpb.LabelConstraint{{
				Key: "disk", Op: pdpb.LabelConstraint_OP_NOT_IN, Values: []string{"hdd", "nvme"},
			}},
			LeaderPreference: []*pdpb.LabelConstraint{{
				Key: "zone", Op: pdpb.LabelConstraint_OP_IN, Values: []string{"z1"},
			}},
		}),
		putRule(rule("gone", "m", "n", 0)),
		{Command: &pdpb.Command_DropRule{DropRule: &pdpb.DropRule{Id: "gone"}}},
		putSettings(0, map[string]string{"replicas": "5", "retention": "1h"}),
		putSettings(1, map[string]string{"split_size": "64MB"}, "retention"),
		{Command: &pdpb.Command_PutPause{PutPause: &pdpb.PutPause{
			Pause: &pdpb.Pause{UntilUnixMs: 9000, All: true},
		}}},
		journal(1, &pdpb.Decision{
			UnixMs: 5000, Kind: pdpb.DecisionKind_DECISION_KIND_BEGAN, OperatorId: 1<<32 + 1,
			RangeIds: []uint64{7}, RangeCount: 1, StoreIds: []uint64{3, 4}, MemberId: 1,
			What: "add learner@4, promote @4, remove @3", Why: "repair: store 3 down 5m0s",
		}, &pdpb.Decision{
			UnixMs: 6000, Kind: pdpb.DecisionKind_DECISION_KIND_REFUSED,
			RangeIds: []uint64{8, 9}, RangeCount: 20, MemberId: 1,
			Why: "no other store can take a replica", Remedy: "add a store",
		}),
		seed(1, 2, 5), seed(9),
		admitPD(77, "n"), admitPD(78, "o"), admitPD(77, "n"),
		putPD(&pdpb.PutMember{MemberId: 6, Voter: true}),
		putPD(&pdpb.PutMember{MemberId: 1, DirectoryId: 70, GrpcAddress: "pd1:7"}),
		dropPD(7), dropPD(5),
	}
}

// TestGolden: what was written by an older binary is read for ever, and the
// same commands give the same bytes on every member.
func TestGolden(t *testing.T) {
	var out strings.Builder
	s := newState()
	for i, c := range golden() {
		body, err := EncodeCommand(c)
		if err != nil {
			t.Fatal(err)
		}
		back, err := DecodeCommand(body)
		if err != nil || !proto.Equal(back, c) {
			t.Fatalf("command %d: %v, %v", i, back, err)
		}
		fmt.Fprintf(&out, "command %x\n", body)
		fmt.Fprintf(&out, "result %x\n", encodeResult(s.apply(c)))
	}
	s.appliedIndex = uint64(len(golden()))
	fmt.Fprintf(&out, "state %x\n", EncodeState(s.proto()))
	const path = "testdata/golden.txt"
	if *update {
		if err := os.WriteFile(path, []byte(out.String()), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if out.String() != string(want) {
		t.Fatalf("the format changed: members of different versions would diverge.\nhave\n%s\nwant\n%s",
			&out, want)
	}
	// The result of an older member must stay readable too.
	for line := range strings.Lines(string(want)) {
		if hexed, ok := strings.CutPrefix(strings.TrimSpace(line), "result "); ok {
			body, err := hex.DecodeString(hexed)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := decodeResult(body); err != nil {
				t.Fatal(err)
			}
		}
	}
}

func FuzzDecode(f *testing.F) {
	for _, c := range golden() {
		body, err := EncodeCommand(c)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(body)
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		c, err := DecodeCommand(body)
		if err != nil {
			return
		}
		s := newState()
		s.apply(c)
		s.apply(c)
		if _, err := DecodeState(EncodeState(s.proto())); err != nil {
			t.Fatal(err)
		}
	})
}
