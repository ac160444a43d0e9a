package meta

import (
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	metapb "github.com/ridgekv/ridge/proto/ridge/meta/v1"
	pdpb "github.com/ridgekv/ridge/proto/ridge/pd/v1"
)

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m,
		// Dragonboat's Pebble keeps it for the process.
		goleak.IgnoreTopFunction(
			"github.com/cockroachdb/pebble/vfs.(*diskHealthCheckingFS).startTickerLocked.func1"))
}

// freeAddress is a loopback address nothing listens on, below the ports that
// outgoing connections get.
func freeAddress(t *testing.T) string {
	t.Helper()
	for range 100 {
		address := fmt.Sprintf("127.0.0.1:%d", 10_000+rand.IntN(20_000))
		if l, err := net.Listen("tcp", address); err == nil {
			_ = l.Close()
			return address
		}
	}
	t.Fatal("no free port")
	return ""
}

// open starts a group of one.
func open(t *testing.T, dir, address string) *Meta {
	t.Helper()
	m, err := Open(Options{
		Dir: dir, MemberID: 1, Members: map[uint64]string{1: address}, ListenAddress: address,
		Tick: 10 * time.Millisecond, Logger: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(m.Close)
	eventually(t, func() bool { return m.Leader() == 1 })
	return m
}

func eventually(t *testing.T, check func() bool) {
	t.Helper()
	for began := time.Now(); !check(); time.Sleep(2 * time.Millisecond) {
		if time.Since(began) > 20*time.Second {
			t.Fatal("not within 20s")
		}
	}
}

// TestBootstrapRace: of many stores that register at once exactly one bears the
// first range, no id is given twice, and a restart remembers all of it.
func TestBootstrapRace(t *testing.T) {
	dir, address := t.TempDir(), freeAddress(t)
	m := open(t, dir, address)
	var mu sync.Mutex
	var wg sync.WaitGroup
	ids, bearers := map[uint64]bool{}, map[uint64]bool{}
	for i := range 12 {
		wg.Go(func() {
			r, err := m.Propose(t.Context(), admit(store(0, fmt.Sprint("s", i%6))))
			if err != nil {
				t.Error(err)
				return
			}
			mu.Lock()
			defer mu.Unlock()
			ids[r.GetStore().GetStoreId()] = true
			if r.GetFirstRange() != nil {
				bearers[r.GetStore().GetStoreId()] = true
			}
		})
	}
	wg.Wait()
	first, born := m.FirstRange()
	if len(ids) != 6 || len(bearers) != 1 || born || !bearers[first.GetReplicas()[0].GetStoreId()] {
		t.Fatalf("stores %v, bearers %v, first range %v", ids, bearers, first)
	}
	if rec, ok := m.Store(6); !ok || rec.GetActivated() {
		t.Fatalf("store 6 is %v", rec)
	}
	m.Close()
	m.Close()
	again := open(t, dir, address)
	if n := len(again.Stores()); n != 6 {
		t.Fatalf("%d stores after a restart", n)
	}
	r, err := again.Propose(t.Context(), admit(store(0, "late")))
	if err != nil || r.GetStore().GetStoreId() != 7 || r.GetFirstRange() != nil {
		t.Fatalf("after a restart %v, %v", r, err)
	}
}

func TestProposeRefuses(t *testing.T) {
	m := open(t, t.TempDir(), freeAddress(t))
	if _, err := m.Propose(t.Context(), admit(&metapb.Store{Version: "\xff"})); err == nil {
		t.Fatal("a string that is no text was proposed")
	}
	m.Close()
	if _, err := m.Propose(t.Context(), allocate(1)); !errors.Is(err, ErrUnavailable) {
		t.Fatalf("after Close: %v", err)
	}
	if _, err := m.ReadTSO(t.Context()); !errors.Is(err, ErrUnavailable) {
		t.Fatalf("after Close: %v", err)
	}
}

// TestClockAnswers: an answer counts for the probe that asked only.
func TestClockAnswers(t *testing.T) {
	m := open(t, t.TempDir(), freeAddress(t))
	wake := make(chan struct{}, 1)
	ahead, err := m.ProbeClocks(t.Context(), 5, 0, wake,
		func(answers map[uint64]time.Duration) bool { return len(answers) > 0 })
	if err != nil || len(ahead) != 0 {
		t.Fatalf("%v, %v", ahead, err)
	}
	late := uint64(time.Now().Add(2 * time.Hour).UnixMilli())
	for nonce, member := range map[uint64]uint64{4: 2, 5: 3} {
		_, err := m.Propose(t.Context(), &pdpb.Command{Command: &pdpb.Command_AnswerClock{
			AnswerClock: &pdpb.AnswerClock{MemberId: member, Nonce: nonce, WallUnixMs: late},
		}})
		if err != nil {
			t.Fatal(err)
		}
	}
	got := m.clockAnswers()
	if len(got) != 1 || got[3] < time.Hour {
		t.Fatalf("answers %v", got)
	}
}

// TestDirectoryOfAnotherMember: a directory that is not this member's is
// refused, in words that tell why, and stays what it was.
func TestDirectoryOfAnotherMember(t *testing.T) {
	dir, address, other := t.TempDir(), freeAddress(t), freeAddress(t)
	m := open(t, dir, address)
	id := m.ClusterID()
	m.Close()
	for want, members := range map[string]map[uint64]string{
		"another member of PD": {1: address, 2: other, 3: freeAddress(t)},
		"another Raft address": {1: other},
	} {
		_, err := Open(Options{
			Dir: dir, MemberID: 1, Members: members, ListenAddress: members[1],
			Tick: 10 * time.Millisecond, Logger: slog.New(slog.DiscardHandler),
		})
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %q", err, want)
		}
	}
	if m = open(t, dir, address); m.ClusterID() != id {
		t.Errorf("cluster %d, it was %d", m.ClusterID(), id)
	}
}
