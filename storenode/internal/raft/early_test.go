package raft

import (
	"slices"
	"testing"

	"github.com/lni/dragonboat/v4/raftpb"
)

// TestEarly: heartbeats and the answers to them leave once and in order, and all
// else stays in the update.
func TestEarly(t *testing.T) {
	types := []raftpb.MessageType{
		raftpb.Replicate, raftpb.HeartbeatResp, raftpb.ReplicateResp, raftpb.Heartbeat,
		raftpb.RequestVoteResp, raftpb.ReadIndexResp, raftpb.InstallSnapshot, raftpb.Ping,
	}
	beats := []raftpb.MessageType{raftpb.HeartbeatResp, raftpb.Heartbeat}
	var sent, kept []raftpb.MessageType
	h := &Host{metrics: newMetrics(nil, nil), send: func(m raftpb.Message) {
		if m.ShardID != 7 || m.To != 2 {
			t.Errorf("a message of range 7 to replica 2 was sent as %v", m)
		}
		sent = append(sent, m.Type)
	}}
	u := &raftpb.Update{ShardID: 7}
	for _, typ := range types {
		u.Messages = append(u.Messages, raftpb.Message{Type: typ, To: 2})
	}
	h.early(u)
	for _, m := range u.Messages {
		kept = append(kept, m.Type)
	}
	if !slices.Equal(sent, beats) {
		t.Errorf("sent %v early, want %v", sent, beats)
	}
	others := slices.DeleteFunc(types, func(typ raftpb.MessageType) bool {
		return slices.Contains(beats, typ)
	})
	if !slices.Equal(kept, others) {
		t.Errorf("%v stay in the update, want %v", kept, others)
	}
}
