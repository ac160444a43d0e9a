package evaluate

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ridgekv/ridge/proto/errs"
	kvpb "github.com/ridgekv/ridge/proto/ridge/kv/v1"
	logpb "github.com/ridgekv/ridge/proto/ridge/log/v1"
	"github.com/ridgekv/ridge/proto/ts"
	"github.com/ridgekv/ridge/storenode/internal/apply"
)

func (s *testStore) scan(start, end string, c *kvpb.Consistency) (*kvpb.ScanResponse, error) {
	r := (<-s.send(&kvpb.Request{Body: &kvpb.Request_Scan{Scan: &kvpb.ScanRequest{
		Header: s.header(), Start: []byte(start), End: []byte(end), Consistency: c,
	}}})).GetScan()
	return r, errs.FromProto(r.GetError())
}

func rowsString(rows []*kvpb.Row) string {
	var b strings.Builder
	for _, r := range rows {
		fmt.Fprintf(&b, "%s=%s@%d ", r.GetKey(), r.GetValue(), r.GetCommitTs())
	}
	return b.String()
}

// The property: two reads at one T are equal for ever, whatever is written, and
// whoever leads, in between.
func TestSnapshotsAreRepeatable(t *testing.T) {
	c := newCluster(t, 2)
	c.lead(rangeOne, 1)
	c.stores[0].holds()
	c.faultyLog(5)
	var wg sync.WaitGroup
	stop := make(chan struct{})
	for i := range 4 {
		wg.Go(func() {
			rnd := rand.New(rand.NewPCG(1, uint64(i)))
			for n := 0; ; n++ {
				select {
				case <-stop:
					return
				default:
				}
				s, key := c.stores[rnd.IntN(2)], fmt.Sprintf("k%d", rnd.IntN(8))
				switch rnd.IntN(4) {
				case 0:
					_, _ = s.del(key)
				case 1:
					_, _ = s.swap(key, "", fmt.Sprint(n))
				default:
					_, _ = s.put(key, fmt.Sprint(n))
				}
			}
		})
	}
	history := map[uint64]string{}
	leader := uint64(1)
	for round := range 60 {
		s := c.stores[leader-1]
		at, _ := c.oracle.fresh()
		got, err := s.scan("", "", snapshotAt(uint64(at)))
		if err == nil {
			history[uint64(at)] = rowsString(got.GetRows())
		}
		if round%20 == 19 {
			leader = 3 - leader
			c.lead(rangeOne, leader)
			c.stores[leader-1].holds()
		}
	}
	close(stop)
	wg.Wait()
	if len(history) < 40 {
		t.Fatalf("only %d snapshots were answered", len(history))
	}
	for at, want := range history {
		for _, s := range c.stores[leader-1 : leader] {
			got, err := s.scan("", "", snapshotAt(at))
			if err != nil {
				t.Fatal(err)
			}
			if rows := rowsString(got.GetRows()); rows != want {
				t.Fatalf("at %d first\n%s\nthen\n%s", at, want, rows)
			}
		}
	}
}

// H2: a snapshot at or above the commit_ts of an entry in flight waits for it.
func TestSnapshotWaitsForWhatIsInFlight(t *testing.T) {
	c := newCluster(t, 1)
	c.lead(rangeOne, 1)
	s := c.stores[0]
	s.mustPut("k", "0")
	at, _ := c.oracle.fresh()
	if v, err := s.getAt("k", uint64(at)); err != nil || v != "0" {
		t.Fatal(v, err)
	}
	c.lag(s, true)
	put := s.sendPut("k", "1", 0)
	eventually(t, "in flight", func() bool {
		return len(c.logged(rangeOne, apply.KindWrite)) == 2
	})
	written := c.logged(rangeOne, apply.KindWrite)[1].CommitTS
	for c.clockOf(1).Seen() <= written {
		_, _ = c.clockOf(1).Fresh(context.Background())
	}
	later := s.sendGet("k", snapshotAt(uint64(c.clockOf(1).Seen())))
	select {
	case r := <-later:
		t.Fatalf("answered %v", r)
	case <-time.After(30 * time.Millisecond):
	}
	c.lag(s, false)
	if r := (<-later).GetGet(); string(r.GetRow().GetValue()) != "1" {
		t.Fatal(r)
	}
	if r := (<-put).GetPut(); r.GetError() != nil {
		t.Fatal(r)
	}
	if v, err := s.getAt("k", uint64(at)); err != nil || v != "0" {
		t.Fatal(v, err)
	}
	if v, err := s.getAt("k", uint64(written)-1); err != nil || v != "0" {
		t.Fatal(v, err)
	}
}

func (c *cluster) clockOf(store int) *testClock { return c.stores[store-1].clock }

func TestSnapshotOfTheFutureIsRefused(t *testing.T) {
	c := newCluster(t, 1)
	c.lead(rangeOne, 1)
	s := c.stores[0]
	s.mustPut("k", "0")
	for _, at := range []uint64{uint64(ts.Max), uint64(s.clock.Seen().Add(time.Minute))} {
		if _, err := s.getAt("k", at); !errors.As(err, new(errs.InvalidArgument)) {
			t.Fatal(err)
		}
	}
	if _, err := s.getAt("k", 0); !errors.As(err, new(errs.InvalidArgument)) {
		t.Fatal(err)
	}
	c.oracle.setAway(true)
	_, err := s.getAt("k", uint64(s.clock.Seen().Add(time.Minute)))
	if e, ok := errors.AsType[errs.Unavailable](err); !ok || e.Part != "pd" {
		t.Fatal(err)
	}
}

// A new leaseholder commits above all that the old one has promised.
func TestReadBoundOutlivesTheHolder(t *testing.T) {
	c := newCluster(t, 2)
	c.lead(rangeOne, 1)
	a, b := c.stores[0], c.stores[1]
	a.mustPut("k", "0")
	at, _ := c.oracle.fresh()
	if v, err := a.getAt("k", uint64(at)); err != nil || v != "0" {
		t.Fatal(v, err)
	}
	c.oracle.setAway(true) // the new holder must wait a step of real time
	c.cutOff(a)
	c.lead(rangeOne, 2)
	written := b.mustPut("k", "1")
	if written <= uint64(a.catalog.Replicas()[0].State().ReadBound()) {
		t.Fatalf("committed at %d", written)
	}
	c.oracle.setAway(false)
	if v, err := b.getAt("k", uint64(at)); err != nil || v != "0" {
		t.Fatal(v, err)
	}
}

func TestSnapshotBelowTheFloorIsTooOld(t *testing.T) {
	c := newCluster(t, 1)
	c.lead(rangeOne, 1)
	s := c.stores[0]
	at := s.mustPut("k", "0")
	rep := s.catalog.Replicas()[0]
	if err := s.catalog.Edit(rangeOne, 1, func(pb *logpb.RangeState) bool {
		pb.HistoryFloor = at
		return true
	}); err != nil {
		t.Fatal(err)
	}
	if got := rep.State().HistoryFloor(); uint64(got) != at {
		t.Fatal(got)
	}
	got, err := s.scan("a", "", snapshotAt(at-1))
	if e, ok := errors.AsType[errs.TooOld](err); !ok || string(e.ResumeKey) != "a" {
		t.Fatal(got, err)
	}
	if v, err := s.getAt("k", at); err != nil || v != "0" {
		t.Fatal(v, err)
	}
}

func TestTTL(t *testing.T) {
	c := newCluster(t, 2)
	c.lead(rangeOne, 1)
	a, b := c.stores[0], c.stores[1]
	r := (<-a.sendPut("k", "v", time.Minute)).GetPut()
	if r.GetError() != nil {
		t.Fatal(r)
	}
	a.mustGet("k", "v")
	alive := uint64(c.freshEverywhere())
	if v, err := a.getAt("k", alive); err != nil || v != "v" {
		t.Fatal(v, err)
	}
	c.oracle.advance(2 * time.Minute)
	a.mustGet("k", "v") // no clock, only timestamps: the store has not heard
	c.freshEverywhere()
	a.mustGet("k", "")
	if v, err := a.getAt("k", alive); err != nil || v != "v" {
		t.Fatal("the past must not change:", v, err)
	}
	if got, err := a.scan("", "", nil); err != nil || len(got.GetRows()) != 0 {
		t.Fatal(got, err)
	}
	// Once it was called expired nobody may see it again, not even a holder
	// whose clock is behind.
	c.oracle.setAway(true)
	b.clock.mu.Lock()
	b.clock.seen = ts.Timestamp(alive)
	b.clock.mu.Unlock()
	c.cutOff(a)
	c.lead(rangeOne, 2)
	b.mustGet("k", "")
	if r, err := b.swap("k", "v", "w"); err != nil || r.GetSwapped() || r.GetFound() {
		t.Fatal(r, err)
	}
	if r, err := b.swap("k", "", "w"); err != nil || !r.GetSwapped() {
		t.Fatal(r, err)
	}
	b.mustGet("k", "w")
}

// freshEverywhere lets all stores hear of the oracle.
func (c *cluster) freshEverywhere() ts.Timestamp {
	var last ts.Timestamp
	for _, s := range c.stores {
		last, _ = s.clock.Fresh(context.Background())
	}
	return last
}

// A condition that fails because a row is expired is an answer "expired" too.
func TestFailedConditionOnAnExpiredRowIsDurable(t *testing.T) {
	c := newCluster(t, 2)
	c.lead(rangeOne, 1)
	a, b := c.stores[0], c.stores[1]
	if r := (<-a.sendPut("k", "v", time.Minute)).GetPut(); r.GetError() != nil {
		t.Fatal(r)
	}
	before := c.freshEverywhere()
	c.oracle.advance(2 * time.Minute)
	c.freshEverywhere()
	if r, err := a.swap("k", "v", "w"); err != nil || r.GetSwapped() || r.GetFound() {
		t.Fatal(r, err)
	}
	c.oracle.setAway(true)
	b.clock.mu.Lock()
	b.clock.seen = before
	b.clock.mu.Unlock()
	c.cutOff(a)
	c.lead(rangeOne, 2)
	b.mustGet("k", "")
}

func TestSweepDeletesExpiredRows(t *testing.T) {
	c := newCluster(t, 1)
	s := c.stores[0]
	s.kill()
	s.limits.SweepInterval = 5 * time.Millisecond
	s.start()
	c.lead(rangeOne, 1)
	for i := range 700 {
		if i%2 == 0 {
			s.sendPut(fmt.Sprintf("k%03d", i), "v", time.Minute)
		} else {
			s.sendPut(fmt.Sprintf("k%03d", i), "v", 0)
		}
	}
	s.mustPut("last", "x")
	c.oracle.advance(2 * time.Minute)
	c.freshEverywhere()
	eventually(t, "only what never expires is stored", func() bool {
		st, n := s.catalog.Replicas()[0].State(), 0
		m, err := s.engine.Measure(t.Context(), st.Slices())
		if n = int(m.Keys); err != nil {
			t.Fatal(err)
		}
		return n == 351
	})
}

func TestStaleReads(t *testing.T) {
	c := newCluster(t, 2)
	c.lead(rangeOne, 1)
	a, b := c.stores[0], c.stores[1]
	stale := func(d time.Duration) *kvpb.Consistency {
		return &kvpb.Consistency{
			Level:          kvpb.ConsistencyLevel_CONSISTENCY_LEVEL_STALE,
			MaxStalenessMs: uint32(d.Milliseconds()),
		}
	}
	a.mustPut("k", "0")
	eventually(t, "the follower has it", func() bool {
		return b.catalog.Replicas()[0].Applied().MaxCommitTS > 0
	})
	get := func(d time.Duration) (string, error) {
		r := (<-b.sendGet("k", stale(d))).GetGet()
		return string(r.GetRow().GetValue()), errs.FromProto(r.GetError())
	}
	c.freshEverywhere()
	c.lag(b, true)
	a.mustPut("k", "1")
	if v, err := get(time.Hour); err != nil || v != "0" {
		t.Fatal("an old answer is good enough:", v, err)
	}
	fresh := make(chan string, 1)
	go func() { v, _ := get(0); fresh <- v }()
	select {
	case v := <-fresh:
		t.Fatalf("answered %q", v)
	case <-time.After(30 * time.Millisecond):
	}
	c.lag(b, false)
	if v := <-fresh; v != "1" {
		t.Fatalf("answered %q", v)
	}
}
