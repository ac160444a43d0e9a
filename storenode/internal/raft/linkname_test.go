package raft

import (
	"testing"

	"github.com/lni/dragonboat/v4/raftpb"
)

// TestSoftSettings shows that each linked name is Dragonboat's own variable:
// it held Dragonboat's default before it was set.
func TestSoftSettings(t *testing.T) {
	want := map[string]uint64{
		"SyncTaskInterval":             180000,
		"IncomingProposalQueueLength":  2048,
		"IncomingReadIndexQueueLength": 4096,
		"ReceiveQueueLength":           1024,
		"PendingProposalShards":        16,
		"InMemEntrySliceSize":          512,
		"MinEntrySliceFreeSize":        96,
		"SendQueueLength":              2048,
		"GetConnectedTimeoutSecond":    5,
		"InMemGCTimeout":               100,
		"NodeReloadMillisecond":        200,
	}
	for name, value := range want {
		if softDefaults[name] != value {
			t.Errorf("%s was %d before it was set, want Dragonboat's %d", name,
				softDefaults[name], value)
		}
	}
	if len(softDefaults) != len(want) {
		t.Errorf("%d settings, want %d", len(softDefaults), len(want))
	}
	if 2*maxElectionTicks > int(receiveQueueLen) {
		t.Errorf("a burst of %d ticks does not fit a queue of %d", 2*maxElectionTicks,
			receiveQueueLen)
	}
}

func TestCapturedLog(t *testing.T) {
	h := newTestCluster(t, 1).stores[1].openOnly(t)
	defer h.Close()
	if h.logDB == nil || h.logDB.Name() != LogKindRidge {
		t.Fatalf("captured log: %v, want one called %s", h.logDB, LogKindRidge)
	}
	if h.nh.HasNodeInfo(7, 1) {
		t.Fatal("a log of a replica that never was")
	}
	err := h.logDB.ImportSnapshot(raftpb.Snapshot{
		ShardID: 7, Index: 5, Term: 5, OnDiskIndex: 5, Dummy: true,
		Type: raftpb.OnDiskStateMachine, Membership: membership(voters(1), 5),
	}, 1)
	if err != nil {
		t.Fatal(err)
	}
	if !h.nh.HasNodeInfo(7, 1) {
		t.Fatal("NodeHost does not see what was written into the captured log")
	}
	s, err := h.logDB.GetSnapshot(7, 1)
	if err != nil || s.Index != 5 || s.Term != 5 || s.Membership.Addresses[1] != "s1" {
		t.Fatalf("snapshot record %v: %v", s, err)
	}
	rs, err := h.logDB.ReadRaftState(7, 1, s.Index)
	if err != nil || rs.EntryCount != 0 || rs.State.Commit != 5 {
		t.Fatalf("log state %+v: %v", rs, err)
	}
}
