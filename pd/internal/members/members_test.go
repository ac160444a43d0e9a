package members

import (
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"go.uber.org/goleak"

	pdpb "github.com/ridgekv/ridge/proto/ridge/pd/v1"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func set(ids []uint64) map[uint64]bool {
	out := map[uint64]bool{}
	for _, id := range ids {
		out[id] = true
	}
	return out
}

// TestJudgements: no change is allowed that leaves a group whose majority does
// not answer, and every refusal names what would help.
func TestJudgements(t *testing.T) {
	type ids = []uint64
	for _, c := range []struct {
		voters, alive ids
		remove, add   uint64
		refused       string
	}{
		{ids{1}, ids{1}, 1, 0, "join another first"},
		{ids{1, 2}, ids{1, 2}, 1, 0, ""},
		{ids{1, 2}, ids{1}, 1, 0, "start PD node 2"},
		{ids{1, 2, 3}, ids{1, 2}, 3, 0, ""},
		{ids{1, 2, 3}, ids{1, 2}, 2, 0, "2 PD nodes of which 1 answer"},
		{ids{1, 2, 3, 4}, ids{1, 2, 3}, 4, 0, ""},
		{ids{1, 2, 3, 4}, ids{1, 2, 3}, 1, 0, ""},
		{ids{1, 2, 3, 4, 5}, ids{1, 2, 3}, 1, 0, "start PD node 4, 5"},
		{ids{1, 2, 3, 4, 5}, ids{1, 2, 3}, 5, 0, ""},
		{ids{1}, ids{1, 2}, 0, 2, ""},
		{ids{1}, ids{1}, 0, 2, "not caught up or does not run"},
		{ids{1, 2, 3}, ids{1, 2, 4}, 0, 4, ""},
		{ids{1, 2, 3, 4, 5}, ids{1, 2, 3, 6}, 0, 6, ""},
		{ids{1, 2, 3}, ids{1, 4}, 0, 4, "only 2 would answer"},
	} {
		var err error
		if c.add != 0 {
			err = judgePromotion(c.voters, set(c.alive), c.add)
		} else {
			err = judgeRemoval(c.voters, set(c.alive), c.remove)
		}
		text := ""
		if err != nil {
			text = err.Error()
		}
		if (err == nil) != (c.refused == "") || !strings.Contains(text, c.refused) {
			t.Errorf("%+v: %v", c, err)
		}
	}
	for n, want := range []int{0, 0, 1, 0, 1, 0, 1, 0} {
		if got := Warnings(n); len(got) != want {
			t.Errorf("%d nodes: %v", n, got)
		}
	}
}

// TestJudgeAddress: who cannot be dialled, or cannot dial the others, stays out.
func TestJudgeAddress(t *testing.T) {
	at := func(addresses ...string) (list []*pdpb.Member) {
		for i, a := range addresses {
			list = append(list, &pdpb.Member{MemberId: uint64(i + 1), RaftAddress: a})
		}
		return list
	}
	for _, c := range []struct {
		list    []*pdpb.Member
		address string
		ok      bool
	}{
		{at("a:1", "b:1"), "c:1", true},
		{at("127.0.0.1:1"), "localhost:2", true},
		{at("a:1"), "0.0.0.0:1", false},
		{at("a:1"), ":1", false},
		{at("a:1"), "[::]:1", false},
		{at("a:1", "0.0.0.0:1"), "c:1", false},
		{at("127.0.0.1:1"), "10.0.0.1:1", false},
		{at("localhost:1"), "c:1", false},
	} {
		if err := judgeAddress(c.list, c.address); (err == nil) != c.ok {
			t.Errorf("%v, %s: %v", c.list, c.address, err)
		}
	}
}

// TestGone: only an id that was given and is not listed is gone.
func TestGone(t *testing.T) {
	r := &pdpb.MembersResponse{
		LastMemberId: 4, Members: []*pdpb.Member{{MemberId: 1}, {MemberId: 4, Joining: true}},
	}
	for id, want := range []bool{0: true, 1: false, 2: true, 3: true, 4: false, 5: false} {
		if id > 0 && Gone(r, uint64(id)) != want {
			t.Errorf("%d: gone is %v", id, !want)
		}
	}
	if Gone(&pdpb.MembersResponse{}, 1) {
		t.Error("a group that was not named yet knows nobody, and nobody is gone")
	}
}

// TestIdentity: what is kept comes back, half a file does not pass for one, and a
// newer format is refused.
func TestIdentity(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "pd")
	if id, err := Load(dir); id != nil || err != nil {
		t.Fatalf("%v, %v", id, err)
	}
	want := &Identity{
		DirectoryID: NewDirectoryID(), ClusterID: 1<<63 - 1, MemberID: 3, DeploymentID: 1<<64 - 1,
		GRPCAddress: "a:1", RaftAddress: "a:2", Members: map[uint64]string{3: "a:2"},
		Seeds: []string{"b:1"}, Started: true,
	}
	if err := want.Save(dir); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, identityFile)
	if err := os.WriteFile(path+".new", []byte("{"), 0o600); err != nil { // a crash in Save
		t.Fatal(err)
	}
	got, err := Load(dir)
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Fatalf("%+v, %v", got, err)
	}
	for _, text := range []string{"", "{", `{"format":2,"directory_id":1}`, `{"format":1}`} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if id, err := Load(dir); err == nil {
			t.Errorf("%q became %+v", text, id)
		}
	}
}

func TestHasLog(t *testing.T) {
	dir := t.TempDir()
	look := func(want bool) {
		t.Helper()
		if got, err := HasLog(dir); got != want || err != nil {
			t.Errorf("%v, %v", got, err)
		}
	}
	look(false)
	if err := os.WriteFile(filepath.Join(dir, "PROCESS"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(dir, "lost+found"), 0o750); err != nil {
		t.Fatal(err)
	}
	look(false)
	if err := os.Mkdir(filepath.Join(dir, "host"), 0o750); err != nil {
		t.Fatal(err)
	}
	look(true)
	if got, err := HasLog(filepath.Join(dir, "none")); got || err != nil {
		t.Errorf("%v, %v", got, err)
	}
}
