package logstore

import (
	"errors"
	"slices"
	"testing"

	"github.com/lni/dragonboat/v4/raftio"
	"github.com/lni/dragonboat/v4/raftpb"
)

// TestTerms: a term is there before its sync, and nothing of a replica that the log
// does not know, or was told to forget.
func TestTerms(t *testing.T) {
	d := newSimDisk()
	s, err := open(Options{Workers: 1}, d)
	must(t, err)
	of := []raftio.NodeInfo{
		raftio.GetNodeInfo(1, 1), raftio.GetNodeInfo(1, 2), raftio.GetNodeInfo(2, 1),
	}
	want := func(terms ...uint64) {
		t.Helper()
		if got := s.Terms(of); !slices.Equal(got, terms) {
			t.Errorf("terms %v, want %v", got, terms)
		}
	}
	give := func(term uint64) error {
		return s.SaveRaftState([]raftpb.Update{
			{ShardID: 1, ReplicaID: 1, State: raftpb.State{Term: term, Vote: 2}},
		}, 1)
	}
	want(0, 0, 0)
	must(t, give(3))
	want(3, 0, 0)
	must(t, s.ImportSnapshot(raftpb.Snapshot{
		ShardID: 2, Index: 5, Term: 5, Type: raftpb.OnDiskStateMachine,
	}, 1))
	want(3, 0, 5)
	must(t, s.RemoveNodeData(2, 1))
	want(3, 0, 0)
	must(t, s.Close())
	s, err = open(Options{Workers: 1}, d)
	must(t, err)
	want(3, 0, 0)
	d.mu.Lock()
	d.failSync = errors.New("input/output error")
	d.mu.Unlock()
	if err := give(4); err == nil {
		t.Error("a failed sync passed")
	}
	want(4, 0, 0) // A vote in it may leave at any moment, as far as is known here.
	if err := s.Close(); !errors.Is(err, ErrFailed) {
		t.Errorf("closed with %v", err)
	}
}
