package raft

import (
	"errors"
	"sync"
	"testing"

	"github.com/lni/dragonboat/v4/raftpb"
)

func TestTarget(t *testing.T) {
	for _, id := range []uint64{1, 7, 1 << 63} {
		if got, ok := parseTarget(target(id)); !ok || got != id {
			t.Errorf("target of %d is %q, parsed as %d", id, target(id), got)
		}
	}
	for _, bad := range []string{"", "s", "7", "s07", "s-1", "127.0.0.1:9", "s1 "} {
		if _, ok := parseTarget(bad); ok {
			t.Errorf("%q taken for a target", bad)
		}
	}
}

func TestDoorResolvesWhenItDials(t *testing.T) {
	address := ""
	d := &door{resolve: func(storeID uint64) (string, bool) { return address, storeID == 2 }}
	for _, unknown := range []string{"s2", "s3"} {
		if _, err := d.address(unknown); !errors.Is(err, errUnresolved) {
			t.Errorf("%s: %v, want unresolved", unknown, err)
		}
	}
	address = "127.0.0.1:7"
	if got, err := d.address("s2"); err != nil || got != address {
		t.Errorf("s2 is at %q: %v", got, err)
	}
	if !d.Validate("s2") || !d.Validate("127.0.0.1:7") || d.Validate("nowhere") {
		t.Error("addresses judged wrongly")
	}
}

// TestFence: a message injected into a closed NodeHost is a nil dereference,
// so none may get through.
func TestFence(t *testing.T) {
	c := newTestCluster(t, 1)
	h := c.stores[1].openOnly(t)
	tick := []raftpb.Message{{Type: raftpb.LocalTick, ShardID: 1, To: 1, From: 1}}
	if !h.door.inject(tick) {
		t.Fatal("the fence is down before Close")
	}
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for h.door.inject(tick) {
			}
		})
	}
	if err := h.Close(); err != nil {
		t.Fatal(err)
	}
	wg.Wait()
	if h.door.inject(tick) {
		t.Fatal("the fence is up after Close")
	}
	if err := h.Close(); err != nil {
		t.Fatal("closing twice:", err)
	}
}
