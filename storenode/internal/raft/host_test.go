package raft

import (
	"errors"
	"fmt"
	"testing"
	"time"

	metapb "github.com/ridgekv/ridge/proto/ridge/meta/v1"
	"github.com/ridgekv/ridge/storenode/internal/apply"
)

func TestOptionsReportEveryFault(t *testing.T) {
	err := Options{ElectionTicks: 4, HeartbeatTicks: 2}.Validate()
	for _, want := range []string{
		"directory", "cluster id", "store id", "listen", "resolve",
		"election ticks",
	} {
		if err == nil || !containsText(err.Error(), want) {
			t.Errorf("%q is missing from: %v", want, err)
		}
	}
}

// TestFirstRange: birth, proposals, reads, restart.
func TestFirstRange(t *testing.T) {
	c := startTestCluster(t, 1, nil)
	s := c.stores[1]
	s.put(t, 1, "a", "1")
	must(t, s.readIndex(t, 1))
	must(t, s.host.BearFirst(testContext(t), firstRange(1)))
	if got := s.state(t, 1).PB(); !got.GetLogWritten() {
		t.Error("the record does not say that the log was written")
	}
	members, config, ok := s.host.Membership(1)
	if !ok || config != 5 || len(members) != 1 || members[0].GetStoreId() != 1 {
		t.Errorf("members %v at %d", members, config)
	}
	before := s.applied(t, 1)
	s.restart(t)
	if got := s.applied(t, 1); got != before {
		t.Errorf("applied %+v after the restart, was %+v", got, before)
	}
	s.awaitLeader(t, 1, 1)
	s.acquire(t, 1)
	s.put(t, 1, "b", "2")
	if v, ok := s.get(t, 1, "a"); !ok || v != "1" {
		t.Errorf("a is %q, %v", v, ok)
	}
}

func TestOutcomes(t *testing.T) {
	c := startTestCluster(t, 1, nil)
	s := c.stores[1]
	if o := s.propose(t, 99, []byte{1}); !errors.Is(o.Err, ErrNotProposed) ||
		!errors.Is(o.Err, ErrNotFound) {
		t.Errorf("a range that is not here: %v", o.Err)
	}
	if err := s.readIndex(t, 99); err == nil {
		t.Error("a read of a range that is not here was confirmed")
	}
	entry := s.entry(t, 1, "a", "1")
	must(t, applied(s.propose(t, 1, entry)))
	if o := s.propose(t, 1, entry); o.Err != nil || o.Code != apply.ResultDuplicate {
		t.Errorf("a repetition: %+v", o)
	}
	// Calls after the end are answered, from another goroutine.
	h := s.host
	s.stop(t)
	done := make(chan error, 2)
	h.Propose(1, entry, time.Second, func(o Outcome) { done <- o.Err })
	h.ReadIndex(1, time.Second, func(err error) { done <- err })
	for range 2 {
		if err := <-done; !errors.Is(err, ErrClosed) {
			t.Errorf("after the end: %v", err)
		}
	}
	if _, known := h.ConfigIndex(1); known {
		t.Error("the config index is known after the end")
	}
}

// TestGrow: one voter becomes three, fenced by the config index.
func TestGrow(t *testing.T) {
	c := startTestCluster(t, 3, nil)
	lead := c.stores[1]
	ctx := testContext(t)
	old := lead.config(t, 1)
	lead.put(t, 1, "a", "1")
	c.grow(t, 1, 2, 2)
	if err := lead.host.AddLearner(ctx, 1, 3, 3, old); !errors.Is(err, ErrConfigMoved) {
		t.Errorf("a change at an old config index: %v", err)
	}
	// The change that was made is not an error when it is asked for again.
	must(t, lead.host.Promote(ctx, 1, 2, 2, old))
	c.grow(t, 1, 3, 3)
	for _, s := range c.stores {
		eventually(t, "members everywhere", func() error {
			m, _, _ := s.host.Membership(1)
			if len(m) != 3 {
				return fmt.Errorf("store %d sees %v", s.id, m)
			}
			return nil
		})
		eventually(t, "role recorded", func() error {
			if role := s.state(t, 1).Role(); role != metapb.Role_ROLE_VOTER {
				return fmt.Errorf("store %d says %s", s.id, role)
			}
			return nil
		})
		must(t, s.readIndex(t, 1))
		if v, _ := s.get(t, 1, "a"); v != "1" {
			t.Errorf("store %d has %q", s.id, v)
		}
	}
	if o := c.stores[2].propose(t, 1, []byte{1}); !errors.Is(o.Err, ErrNotLeader) {
		t.Errorf("a proposal to a follower: %v", o.Err)
	}
	must(t, lead.host.TransferLeader(ctx, 1, 3))
	c.stores[3].awaitLeader(t, 1, 3)
	c.stores[3].acquire(t, 1)
	c.stores[3].put(t, 1, "b", "2")
	for _, s := range c.stores {
		s.restart(t)
	}
	c.leader(t, 1).acquire(t, 1)
}

// TestRemove: a removed replica removes itself from its store, and the store
// can hold the range again under a new id only.
func TestRemove(t *testing.T) {
	c := startTestCluster(t, 3, nil)
	c.grow(t, 1, 2, 2)
	c.grow(t, 1, 3, 3)
	lead, gone, ctx := c.stores[1], c.stores[3], testContext(t)
	lead.put(t, 1, "a", "1")
	must(t, lead.host.RemoveReplica(ctx, 1, 3, lead.config(t, 1)))
	eventually(t, "removed", func() error {
		// The leader need not tell a replica that is no member any more; then
		// PD does.
		return gone.host.DestroyReplica(ctx, 1, 3)
	})
	if _, ok := gone.catalog.Replica(1); ok || !gone.catalog.Tombstoned(1, 3) {
		t.Error("the replica is still there, or left no tombstone")
	}
	if len(gone.engine.Garbage()) == 0 {
		t.Error("its data has no owner")
	}
	if gone.host.nh.HasNodeInfo(1, 3) {
		t.Error("its log is still there")
	}
	if err := gone.host.CreateLearner(ctx, 1, 3); err == nil {
		t.Error("the id was used again")
	}
	must(t, gone.host.DestroyReplica(ctx, 1, 3))
	c.grow(t, 1, 33, 3)
	if v, _ := gone.get(t, 1, "a"); v != "1" {
		t.Errorf("after coming back it has %q", v)
	}
	gone.restart(t)
	eventually(t, "back after a restart", func() error { return gone.host.CaughtUp(ctx, 1) })
}

func containsText(s, part string) bool {
	for i := range len(s) - len(part) + 1 {
		if s[i:i+len(part)] == part {
			return true
		}
	}
	return false
}
