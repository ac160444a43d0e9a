package logstore

import (
	"slices"
	"testing"

	"github.com/lni/dragonboat/v4/raftpb"
)

// TestEarly: Early hears of the updates that bring no term, vote or image, before
// anything is synced, and only when there is something to wait for.
func TestEarly(t *testing.T) {
	var s *Store
	var heard []uint64
	syncs := uint64(0)
	s, err := open(Options{Workers: 1, Early: func(u *raftpb.Update) {
		if n := s.Stats().Syncs; n != syncs {
			t.Errorf("%d syncs when Early was called, want %d", n, syncs)
		}
		heard = append(heard, u.ShardID)
	}}, newSimDisk())
	must(t, err)
	state := func(term, vote, commit uint64) raftpb.State {
		return raftpb.State{Term: term, Vote: vote, Commit: commit}
	}
	entry := func(index uint64) []raftpb.Entry {
		return []raftpb.Entry{{Index: index, Term: 2, Cmd: []byte("x")}}
	}
	image := raftpb.Snapshot{ShardID: 3, Index: 9, Term: 2}
	for _, step := range []struct {
		name    string
		updates []raftpb.Update
		want    []uint64
	}{
		{"terms and votes", []raftpb.Update{
			{ShardID: 1, State: state(2, 1, 0), EntriesToSave: entry(1)},
			{ShardID: 2, State: state(2, 1, 0)},
			{ShardID: 3, State: state(2, 1, 0)},
		}, nil},
		{"entries beside nothing", []raftpb.Update{
			{ShardID: 1, State: state(2, 1, 1), EntriesToSave: entry(2)},
			{ShardID: 2, State: state(2, 1, 0)},
			{ShardID: 3},
		}, []uint64{1, 2, 3}},
		{"a vote taken, an image, a commit index", []raftpb.Update{
			{ShardID: 1, State: state(3, 0, 1)},
			{ShardID: 3, Snapshot: image},
			{ShardID: 2, State: state(2, 1, 1)},
		}, []uint64{2}},
		{"a vote beside entries", []raftpb.Update{
			{ShardID: 1, State: state(3, 2, 1), EntriesToSave: entry(3)},
		}, nil},
		{"nothing to wait for", []raftpb.Update{
			{ShardID: 1, State: state(3, 2, 3)}, {ShardID: 2, State: state(2, 1, 1)},
		}, nil},
	} {
		heard, syncs = nil, s.Stats().Syncs
		for i := range step.updates {
			step.updates[i].ReplicaID = 1
		}
		must(t, s.SaveRaftState(step.updates, 1))
		if !slices.Equal(heard, step.want) {
			t.Errorf("%s: heard %v, want %v", step.name, heard, step.want)
		}
	}
	must(t, s.Close())
}

// TestEarlyMayTakeMessages: what Early takes out of an update is out of it for the
// caller too, who sends the rest.
func TestEarlyMayTakeMessages(t *testing.T) {
	s, err := open(Options{Workers: 1, Early: func(u *raftpb.Update) {
		u.Messages = u.Messages[1:]
	}}, newSimDisk())
	must(t, err)
	save := func(index uint64) []raftpb.Update {
		updates := []raftpb.Update{{
			ShardID: 1, ReplicaID: 1, State: raftpb.State{Term: 1, Vote: 1},
			EntriesToSave: []raftpb.Entry{{Index: index, Term: 1}},
			Messages:      []raftpb.Message{{Type: raftpb.Heartbeat}, {Type: raftpb.ReplicateResp}},
		}}
		must(t, s.SaveRaftState(updates, 1))
		return updates
	}
	if u := save(1); len(u[0].Messages) != 2 {
		t.Errorf("%v left of the update that brought a term", u[0].Messages)
	}
	if u := save(2); len(u[0].Messages) != 1 || u[0].Messages[0].Type != raftpb.ReplicateResp {
		t.Errorf("%v left, want the answer to an entry", u[0].Messages)
	}
	must(t, s.Close())
}
