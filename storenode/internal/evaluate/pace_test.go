package evaluate

import (
	"errors"
	"testing"
	"time"

	"github.com/ridgekv/ridge/proto/errs"
	kvpb "github.com/ridgekv/ridge/proto/ridge/kv/v1"
	"github.com/ridgekv/ridge/storenode/internal/apply"
)

// A range that is behind refuses, as not applied, a write whose caller will have
// left before it could be answered; it takes one whose caller waits; and with
// nothing to do it takes any.
func TestPace(t *testing.T) {
	var p pace
	now := time.Now()
	if err := p.judge(time.Millisecond, now); err != nil {
		t.Errorf("a new range: %v", err)
	}
	for range 50 {
		p.settled(2 * time.Second)
	}
	if err := p.judge(time.Millisecond, now); err != nil {
		t.Errorf("nothing is undecided: %v", err)
	}
	p.undecided([]*flight{{first: now}})
	for patience, refused := range map[time.Duration]bool{
		time.Second: true, 2500 * time.Millisecond: true, 3100 * time.Millisecond: false,
	} {
		err := p.judge(patience, now)
		busy, ok := errors.AsType[errs.Busy](err)
		if ok != refused || ok && (busy.RetryAfter <= 0 || busy.RetryAfter > patience) {
			t.Errorf("%s: %v", patience, err)
		}
	}
	if err := p.judge(5*time.Second, now.Add(6*time.Second)); err == nil {
		t.Error("an entry is undecided for 6 s, and 5 s are said to be enough")
	}
	for range 50 {
		p.settled(10 * time.Millisecond)
	}
	if err := p.judge(time.Millisecond, now); err != nil {
		t.Errorf("fast again: %v", err)
	}
}

// Without a quorum nothing is decided. The first write may end unknown; those that
// come later and would not wait as long are refused.
func TestStuckRangeRefusesWrites(t *testing.T) {
	c := newCluster(t, 1)
	s := c.stores[0]
	c.lead(rangeOne, 1)
	s.mustPut("k", "1")
	c.lag(s, true)
	first := s.sendPut("k", "2", 0)
	put := func() *kvpb.Error {
		r := <-s.send(&kvpb.Request{Body: &kvpb.Request_Put{Put: &kvpb.PutRequest{
			Header: &kvpb.Header{RangeId: rangeOne, TimeoutMs: 100}, Key: []byte("l"),
		}}})
		return r.GetPut().GetError()
	}
	eventually(t, "a definite refusal", func() bool {
		e := put()
		_, busy := errors.AsType[errs.Busy](errs.FromProto(e))
		return busy && e.GetApplied() == kvpb.Applied_APPLIED_NO
	})
	c.lag(s, false)
	<-first
	eventually(t, "writes are taken again", func() bool { return put() == nil })
}

// What entries take is known when a write's turn to be proposed comes: then, at the
// latest, one that would be decided too late is refused, and so not unknown.
func TestLateWriteIsNotProposed(t *testing.T) {
	c := newCluster(t, 1)
	s := c.stores[0]
	c.lead(rangeOne, 1)
	s.mustPut("k", "1")
	highest := uint64(0)
	c.setScript(func(_, _ uint64, e apply.Entry) action {
		if highest = max(highest, e.Number); e.Number > 3 {
			return limbo
		}
		return deliver
	})
	c.lag(s, true)
	for number := range uint64(2) { // both places of the pipeline are taken
		s.sendPut("k", "2", 0)
		eventually(t, "an entry is proposed", func() bool {
			c.mu.Lock()
			defer c.mu.Unlock()
			return highest == number+2
		})
	}
	late := s.send(&kvpb.Request{Body: &kvpb.Request_Put{Put: &kvpb.PutRequest{
		Header: &kvpb.Header{RangeId: rangeOne, TimeoutMs: 600}, Key: []byte("l"),
	}}})
	began := time.Now()
	eventually(t, "most of its time is gone", func() bool {
		return time.Since(began) > 450*time.Millisecond
	})
	c.lag(s, false)
	e := (<-late).GetPut().GetError()
	if e.GetApplied() != kvpb.Applied_APPLIED_NO {
		t.Errorf("a write that comes too late: %v", e)
	}
}
