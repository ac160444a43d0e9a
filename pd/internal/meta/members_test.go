package meta

import (
	"context"
	"fmt"
	"log/slog"
	"testing"
	"time"

	"github.com/lni/dragonboat/v4"

	pdpb "github.com/ridgekv/ridge/proto/ridge/pd/v1"
)

func seed(ids ...uint64) *pdpb.Command {
	c := &pdpb.SeedMembers{}
	for _, id := range ids {
		c.Members = append(c.Members, &pdpb.Member{
			MemberId: id, GrpcAddress: fmt.Sprintf("pd%d:1", id), RaftAddress: fmt.Sprintf("pd%d:2", id),
		})
	}
	return &pdpb.Command{Command: &pdpb.Command_SeedMembers{SeedMembers: c}}
}

func admitPD(directory uint64, name string) *pdpb.Command {
	return &pdpb.Command{Command: &pdpb.Command_AdmitMember{AdmitMember: &pdpb.AdmitMember{
		DirectoryId: directory, GrpcAddress: name + ":1", RaftAddress: name + ":2",
	}}}
}

func putPD(c *pdpb.PutMember) *pdpb.Command {
	return &pdpb.Command{Command: &pdpb.Command_PutMember{PutMember: c}}
}

func dropPD(id uint64) *pdpb.Command {
	return &pdpb.Command{Command: &pdpb.Command_DropMember{
		DropMember: &pdpb.DropMember{MemberId: id},
	}}
}

// TestMemberIDs: an id is given once, to one directory, whatever is removed; a
// directory that asks again gets its own.
func TestMemberIDs(t *testing.T) {
	s := newState()
	for i, c := range []struct {
		command *pdpb.Command
		want    string
	}{
		{admitPD(70, "a"), "UNAVAILABLE"},
		{seed(1, 3), "0"},
		{seed(8), "0"},
		{admitPD(70, "a"), "4"},
		{admitPD(70, "a"), "4"},
		{admitPD(70, "b"), "REFUSED"},
		{admitPD(71, "a"), "ADDRESS_IN_USE"},
		{admitPD(71, "pd1"), "ADDRESS_IN_USE"},
		{admitPD(0, "b"), "INVALID_ARGUMENT"},
		{admitPD(71, "b"), "5"},
		{dropPD(5), "0"},
		{dropPD(5), "0"},
		{admitPD(71, "b"), "6"},
		{putPD(&pdpb.PutMember{MemberId: 5, Voter: true}), "MEMBER_GONE"},
		{putPD(&pdpb.PutMember{MemberId: 9}), "NOT_FOUND"},
		{putPD(&pdpb.PutMember{MemberId: 1, DirectoryId: 11}), "1"},
		{putPD(&pdpb.PutMember{MemberId: 1, DirectoryId: 12}), "REFUSED"},
		{putPD(&pdpb.PutMember{MemberId: 1, GrpcAddress: "b:1"}), "ADDRESS_IN_USE"},
		{putPD(&pdpb.PutMember{MemberId: 1, GrpcAddress: "c:1"}), "1"},
		{admitPD(80, "e"), "7"},
		{admitPD(81, "f"), "8"},
		{admitPD(82, "g"), "9"},
		{admitPD(83, "h"), "REFUSED"},
	} {
		r := s.apply(c.command)
		got := fmt.Sprint(r.GetMember().GetMemberId())
		if r.GetReason() != 0 {
			got = r.GetReason().String()[len("PD_ERROR_REASON_"):]
		}
		if got != c.want {
			t.Errorf("%d: %v: got %s %q, want %s", i, c.command, got, r.GetMessage(), c.want)
		}
		again := stateFromProto(s.proto())
		if fmt.Sprint(again.proto()) != fmt.Sprint(s.proto()) {
			t.Fatalf("%d: a snapshot changes the state", i)
		}
	}
	if s.members[4].GetJoining() != true || s.members[1].GetGrpcAddress() != "c:1" {
		t.Errorf("members %v", s.memberList())
	}
}

func joiner(t *testing.T, m *Meta, id uint64, dir, address string) *Meta {
	t.Helper()
	j, err := Open(Options{
		Dir: dir, MemberID: id, RaftAddress: address, DeploymentID: m.DeploymentID(),
		ListenAddress: address, Tick: 10 * time.Millisecond, Logger: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(j.Close)
	return j
}

// TestJoinByImage: a member that joins a group whose log is cut is sent the
// state; it votes once promoted, also after restarts; and once it is removed
// it has no leader, and its id never comes back.
func TestJoinByImage(t *testing.T) {
	m := open(t, t.TempDir(), freeAddress(t))
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	for range 20 {
		if _, err := m.Propose(t.Context(), allocate(1)); err != nil {
			t.Fatal(err)
		}
	}
	cut, cancel := context.WithTimeout(t.Context(), callTimeout)
	defer cancel()
	_, err := m.host.SyncRequestSnapshot(cut, shardID, dragonboat.SnapshotOption{
		OverrideCompactionOverhead: true, CompactionOverhead: 1,
	})
	must(err)
	eventually(t, func() bool {
		log, err := m.host.GetLogReader(shardID)
		if err != nil {
			return false
		}
		first, _ := log.GetRange()
		return first > 10
	})
	dir, address := t.TempDir(), freeAddress(t)
	config := func() uint64 {
		ms, err := m.Membership(t.Context())
		must(err)
		return ms.Config
	}
	j := joiner(t, m, 2, dir, address)
	must(m.AddLearner(t.Context(), 2, address, config()))
	if err := m.Promote(t.Context(), 2, address, 1); err == nil {
		t.Fatal("promoted at an old config-change index")
	}
	eventually(t, func() bool {
		r, err := j.ReadTSO(t.Context())
		return err == nil && r != nil
	})
	must(m.Promote(t.Context(), 2, address, config()))
	for i := range 2 {
		if i == 1 {
			must(j.Settle(t.Context()))
		}
		j.Close()
		j = joiner(t, m, 2, dir, address)
		r, err := j.Propose(t.Context(), allocate(1))
		if err != nil || r.GetFirstId() < 20 {
			t.Fatalf("%v, %v", r, err)
		}
	}
	must(m.Transfer(2))
	eventually(t, func() bool { return j.Leader() == 2 })
	eventually(t, func() bool { return m.Transfer(1) == nil && m.Leader() == 1 })
	must(m.Remove(t.Context(), 2, config()))
	// The last that it hears may be its removal, or what was before it: then it has
	// no leader and asks the others (pd/internal/members).
	eventually(t, func() bool { return j.Expelled() || j.Leader() == 0 })
	if ms, err := m.Membership(t.Context()); err != nil || len(ms.Voters)+len(ms.Learners) != 1 {
		t.Fatalf("members %+v, %v, want one", ms, err)
	}
	if m.Expelled() {
		t.Fatal("the wrong one is expelled")
	}
	if err := m.AddLearner(t.Context(), 2, address, config()); err == nil {
		t.Fatal("an id that was removed came back")
	}
	if _, err := m.Propose(t.Context(), allocate(1)); err != nil {
		t.Fatal(err)
	}
}
