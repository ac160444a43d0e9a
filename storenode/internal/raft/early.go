package raft

import "github.com/lni/dragonboat/v4/raftpb"

// early sends the heartbeats of an update and its answers to heartbeats, and takes
// them out of it. A step worker saves the updates of all its replicas before it
// sends what they say, but for entries, which leave at once. So each read of its
// ranges, and of those that it follows, would wait for the fsync of somebody's
// write. The log calls this before that wait, unless the update brings a new term,
// a vote or an image. Other messages stay: nobody waits for them but writes, and
// together they are fewer batches.
//
// Raft wants durable what a message rests on, no more. A heartbeat, and the answer
// to one, rest on the sender's term and vote, which were durable before this
// update: the worker steps a replica again only when what it saved is. They rest on
// no entry of the update. The answer names none. The commit index in a heartbeat is
// at most what its receiver has acknowledged, and what counted for it was
// acknowledged too, or is the leader's own: an entry of this update, which nobody
// has seen, is not among either. So a leader is confirmed by those only who would
// deny an older one, and no read gets an index below one that was committed before
// it began.
//
// A vote never leaves early, nor a request for one: the rounds of confirm.go rest on
// its term being in the log before.
func (h *Host) early(u *raftpb.Update) {
	kept := u.Messages[:0]
	for _, m := range u.Messages {
		if m.Type != raftpb.Heartbeat && m.Type != raftpb.HeartbeatResp {
			kept = append(kept, m)
			continue
		}
		m.ShardID = u.ShardID
		h.send(m)
		h.metrics.early.inc()
	}
	clear(u.Messages[len(kept):])
	u.Messages = kept
}
