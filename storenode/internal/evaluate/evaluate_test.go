package evaluate

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/ridgekv/ridge/proto/errs"
	kvpb "github.com/ridgekv/ridge/proto/ridge/kv/v1"
	"github.com/ridgekv/ridge/storenode/internal/apply"
)

func TestPutGetDelete(t *testing.T) {
	c := newCluster(t, 1)
	c.lead(rangeOne, 1)
	s := c.stores[0]
	first := s.mustPut("a", "1")
	s.mustGet("a", "1")
	second, err := s.del("a")
	if err != nil || second <= first {
		t.Fatalf("deleted at %d after %d: %v", second, first, err)
	}
	s.mustGet("a", "")
	// What was answered is counted a moment later.
	eventually(t, "two writes and two reads counted", func() bool {
		n := s.ev.Stats(rangeOne)
		return n.WriteOps == 2 && n.ReadOps == 2
	})
}

// While two entries are in flight the rest gathers in one.
func TestWritesArePipelinedAndGathered(t *testing.T) {
	c := newCluster(t, 1)
	c.lead(rangeOne, 1)
	s := c.stores[0]
	s.mustPut("first", "x")
	c.lag(s, true)
	numbers := func() map[uint64]bool {
		out := map[uint64]bool{}
		for _, e := range c.logged(rangeOne, apply.KindWrite) {
			out[e.Number] = true
		}
		return out
	}
	var answers []<-chan *kvpb.Response
	for i := range 200 {
		answers = append(answers, s.sendPut(fmt.Sprintf("k%03d", i), "v", 0))
		if i < maxInFlight {
			eventually(t, "in flight", func() bool { return len(numbers()) == i+2 })
		}
	}
	c.lag(s, false)
	stamps := map[uint64]int{}
	for _, a := range answers {
		r := (<-a).GetPut()
		if err := errs.FromProto(r.GetError()); err != nil {
			t.Fatal(err)
		}
		stamps[r.GetCommitTs()]++
	}
	if n := len(numbers()) - 1; n != 3 || len(stamps) != n {
		t.Fatalf("200 writes took %d entries and %d timestamps", n, len(stamps))
	}
}

// What one proposal of several loses is proposed again, in order and byte for
// byte, and no caller hears of it.
func TestGapIsProposedAgain(t *testing.T) {
	for name, lost := range map[string]action{
		"not proposed": refuse, "lost": swallow, "answer lost": deafen, "twice": duplicate,
	} {
		t.Run(name, func(t *testing.T) {
			c := newCluster(t, 1)
			c.lead(rangeOne, 1)
			s := c.stores[0]
			s.mustPut("a", "0")
			tries := 0
			c.setScript(func(_, _ uint64, e apply.Entry) action {
				if e.Kind == apply.KindWrite && e.Number == 2 {
					if tries++; tries == 1 {
						return lost
					}
				}
				return deliver
			})
			one, two := s.sendPut("a", "1", 0), s.sendPut("b", "2", 0)
			for _, a := range []<-chan *kvpb.Response{one, two} {
				if err := errs.FromProto((<-a).GetPut().GetError()); err != nil {
					t.Fatal(err)
				}
			}
			s.mustGet("a", "1")
			s.mustGet("b", "2")
			if n := s.catalog.Replicas()[0].State().Tenure(); n != 1 {
				t.Fatalf("tenure %d: the lease was acquired anew", n)
			}
		})
	}
}

// What got no answer is not lost while the same leader leads in the same term: a
// disk that is behind would have to write it twice.
func TestUnansweredIsNotProposedAgain(t *testing.T) {
	c := newCluster(t, 1)
	c.lead(rangeOne, 1)
	s := c.stores[0]
	s.mustPut("a", "0")
	proposed := map[uint64]int{}
	c.setScript(func(_, _ uint64, e apply.Entry) action {
		proposed[e.Number]++
		return deliver
	})
	c.lag(s, true)
	one, two := s.sendPut("a", "1", 0), s.sendPut("b", "2", 0)
	began := time.Now()
	eventually(t, "both proposals end without an answer, more than once", func() bool {
		return time.Since(began) > 4*fastTiming().propose
	})
	c.lag(s, false)
	for _, a := range []<-chan *kvpb.Response{one, two} {
		if err := errs.FromProto((<-a).GetPut().GetError()); err != nil {
			t.Fatal(err)
		}
	}
	s.mustGet("b", "2")
	c.mu.Lock()
	defer c.mu.Unlock()
	for number, n := range proposed {
		if n != 1 {
			t.Errorf("number %d was proposed %d times", number, n)
		}
	}
}

// A leader deposed in between may have lost it, also when it leads again.
func TestUnansweredOfAnotherTermIsProposedAgain(t *testing.T) {
	c := newCluster(t, 1)
	c.lead(rangeOne, 1)
	s := c.stores[0]
	s.mustPut("a", "0")
	tries := 0
	c.setScript(func(_, _ uint64, e apply.Entry) action {
		if e.Kind == apply.KindWrite {
			if tries++; tries == 1 {
				return swallow
			}
		}
		return deliver
	})
	put := s.sendPut("a", "1", 0)
	eventually(t, "it is proposed", func() bool {
		c.mu.Lock()
		defer c.mu.Unlock()
		return tries == 1
	})
	c.lead(rangeOne, 1) // the next term
	if err := errs.FromProto((<-put).GetPut().GetError()); err != nil {
		t.Fatal(err)
	}
	s.mustGet("a", "1")
	if n := s.catalog.Replicas()[0].State().Tenure(); n != 1 {
		t.Fatalf("tenure %d: the lease was acquired anew", n)
	}
}

// When proposing again does not help, a new tenure settles every number. What
// was never applied is evaluated again.
func TestStuckEntriesAreSettledByANewTenure(t *testing.T) {
	c := newCluster(t, 1)
	c.lead(rangeOne, 1)
	s := c.stores[0]
	s.mustPut("a", "0")
	c.setScript(func(_, _ uint64, e apply.Entry) action {
		if e.Kind == apply.KindWrite && e.Tenure == 1 {
			return limbo
		}
		return deliver
	})
	swap := s.sendSwap("a", "0", "1")
	put := s.sendPut("b", "2", 0)
	if r := (<-swap).GetCompareAndSwap(); r.GetError() != nil || !r.GetSwapped() {
		t.Fatalf("swap: %v", r)
	}
	if r := (<-put).GetPut(); r.GetError() != nil {
		t.Fatalf("put: %v", r)
	}
	s.mustPut("a", "3")
	c.releaseLimbo(rangeOne, nil) // entries of tenure 1 come late
	s.mustGet("a", "3")
	s.mustGet("b", "2")
	if n := s.catalog.Replicas()[0].State().Tenure(); n < 2 {
		t.Fatalf("tenure %d", n)
	}
}

// A delayed AcquireLease must not take the lease back.
func TestLateAcquireIsHarmless(t *testing.T) {
	c := newCluster(t, 2)
	a, b := c.stores[0], c.stores[1]
	acquires := 0
	c.setScript(func(store, _ uint64, e apply.Entry) action {
		if e.Kind == apply.KindAcquireLease && store == 1 {
			if acquires++; acquires <= 2 {
				return limbo
			}
		}
		return deliver
	})
	c.lead(rangeOne, 1)
	a.mustPut("k", "1")
	c.lead(rangeOne, 2)
	b.mustPut("k", "2")
	c.releaseLimbo(rangeOne, nil)
	b.mustPut("k", "3")
	b.mustGet("k", "3")
	if l := b.catalog.Replicas()[0].State().Lease(); l.GetHolderStoreId() != 2 {
		t.Fatalf("lease %v", l)
	}
}

// A1: the holder dies between proposing and applying, comes back, and must not
// give the number away again.
func TestCrashBetweenProposeAndApply(t *testing.T) {
	c := newCluster(t, 1)
	c.lead(rangeOne, 1)
	s := c.stores[0]
	s.mustPut("z", "0")
	c.setScript(func(_, _ uint64, e apply.Entry) action {
		if e.Kind == apply.KindWrite {
			return limbo
		}
		return deliver
	})
	lost := s.sendPut("k", "x", 0)
	eventually(t, "x is proposed", func() bool {
		c.mu.Lock()
		defer c.mu.Unlock()
		return len(c.logs[rangeOne].inLimbo) > 0
	})
	s.kill()
	if _, ok := errors.AsType[errs.UnknownOutcome](
		errs.FromProto((<-lost).GetPut().GetError())); !ok {
		t.Fatal("the outcome of x should be unknown")
	}
	c.setScript(nil)
	c.releaseLimbo(rangeOne, nil) // x is agreed on after all, before the new lease
	s.start()
	s.mustPut("k", "y")
	s.mustGet("k", "y")
	versions := c.logged(rangeOne, apply.KindWrite)
	if last := versions[len(versions)-1]; last.Tenure != 2 || last.Number != 1 {
		t.Fatalf("y is entry %d of tenure %d", last.Number, last.Tenure)
	}
}

// A3: what writes nothing is confirmed like a read.
func TestPartitionedHolderAnswersNothing(t *testing.T) {
	c := newCluster(t, 3)
	a, b := c.stores[0], c.stores[1]
	c.lead(rangeOne, 1)
	a.mustPut("k", "1")
	c.cutOff(a)
	c.lead(rangeOne, 2)
	b.mustPut("k", "2")
	failing := a.sendSwap("k", "nothing like it", "3")
	read := a.sendGet("k", nil)
	write := a.sendPut("k", "4", 0)
	select {
	case r := <-failing:
		t.Fatalf("a partitioned holder answered %v", r)
	case r := <-read:
		t.Fatalf("a partitioned holder answered %v", r)
	case r := <-write:
		t.Fatalf("a partitioned holder answered %v", r)
	case <-time.After(300 * time.Millisecond):
	}
	c.heal(a)
	for _, ch := range []<-chan *kvpb.Response{failing, read, write} {
		r := <-ch
		if ch == read && string(r.GetGet().GetRow().GetValue()) == "2" {
			continue // Its next round came through to the new leader, who holds this value.
		}
		err := errors.Join(errs.FromProto(r.GetCompareAndSwap().GetError()),
			errs.FromProto(r.GetGet().GetError()), errs.FromProto(r.GetPut().GetError()))
		if e, ok := errors.AsType[errs.NotLeader](err); !ok || e.Leader.GetStoreId() != 2 {
			t.Fatalf("answered %v", r)
		}
	}
	b.mustGet("k", "2")
}

// A condition is judged against what is in flight, and answered only when that
// is applied.
func TestConditionsSeeWhatIsInFlight(t *testing.T) {
	c := newCluster(t, 1)
	c.lead(rangeOne, 1)
	s := c.stores[0]
	s.mustPut("k", "0")
	c.lag(s, true)
	put := s.sendPut("k", "1", 0)
	eventually(t, "in flight", func() bool {
		return len(c.logged(rangeOne, apply.KindWrite)) == 2
	})
	good, bad := s.sendSwap("k", "1", "2"), s.sendSwap("k", "1", "3")
	select {
	case r := <-bad:
		t.Fatalf("answered before what it saw is applied: %v", r)
	case <-time.After(50 * time.Millisecond):
	}
	c.lag(s, false)
	if r := (<-put).GetPut(); r.GetError() != nil {
		t.Fatal(r)
	}
	if r := (<-good).GetCompareAndSwap(); !r.GetSwapped() {
		t.Fatal(r)
	}
	r := (<-bad).GetCompareAndSwap()
	if r.GetError() != nil || r.GetSwapped() || string(r.GetCurrent().GetValue()) != "2" {
		t.Fatal(r)
	}
	s.mustGet("k", "2")
}

// A3 (ii): a condition that failed because of an entry that is then dropped.
func TestConditionOnADroppedEntryIsNotAnswered(t *testing.T) {
	c := newCluster(t, 2)
	a, b := c.stores[0], c.stores[1]
	c.lead(rangeOne, 1)
	a.mustPut("k", "0")
	c.setScript(func(store, _ uint64, e apply.Entry) action {
		if store == 1 && e.Kind == apply.KindWrite {
			return swallow
		}
		return deliver
	})
	put := a.sendPut("k", "9", 0)
	bad := a.sendSwap("k", "0", "1")
	eventually(t, "evaluated", func() bool {
		v, _ := a.ev.workers.Load(rangeOne)
		w := v.(*worker)
		w.mu.Lock()
		defer w.mu.Unlock()
		return w.mu.assigned >= 2 && len(w.mu.queue) == 0
	})
	c.lead(rangeOne, 2)
	b.mustGet("k", "0")
	b.mustPut("other", "x")
	for _, ch := range []<-chan *kvpb.Response{put, bad} {
		r := <-ch
		err := errors.Join(errs.FromProto(r.GetCompareAndSwap().GetError()),
			errs.FromProto(r.GetPut().GetError()))
		if _, ok := errors.AsType[errs.NotLeader](err); !ok {
			t.Fatalf("answered %v", r)
		}
	}
}

func TestDeadlineInFlightIsUnknown(t *testing.T) {
	c := newCluster(t, 1)
	c.lead(rangeOne, 1)
	s := c.stores[0]
	s.mustPut("k", "0")
	c.lag(s, true)
	r := <-s.send(&kvpb.Request{Body: &kvpb.Request_Put{Put: &kvpb.PutRequest{
		Header: &kvpb.Header{RangeId: rangeOne, TimeoutMs: 30}, Key: []byte("k"),
	}}})
	if _, ok := errors.AsType[errs.UnknownOutcome](errs.FromProto(r.GetPut().GetError())); !ok {
		t.Fatalf("answered %v", r)
	}
	c.lag(s, false)
	s.mustGet("k", "") // it was applied after all
}

func TestDeadlineInTheQueueIsNotApplied(t *testing.T) {
	c := newCluster(t, 1)
	s := c.stores[0] // nobody leads
	r := <-s.send(&kvpb.Request{Body: &kvpb.Request_Put{Put: &kvpb.PutRequest{
		Header: &kvpb.Header{RangeId: rangeOne, TimeoutMs: 30}, Key: []byte("k"),
	}}})
	if e := r.GetPut().GetError(); e.GetApplied() != kvpb.Applied_APPLIED_NO {
		t.Fatalf("answered %v", r)
	}
}

func TestFullQueuesAreBusy(t *testing.T) {
	c := newCluster(t, 1)
	s := c.stores[0]
	s.kill()
	s.limits = Limits{QueuedWrites: 4, PendingReads: 2}
	s.start()
	busy := 0
	for range 10 { // nobody leads: they queue
		select {
		case r := <-s.sendPut("k", "v", 0):
			if _, ok := errors.AsType[errs.Busy](errs.FromProto(r.GetPut().GetError())); !ok {
				t.Fatalf("answered %v", r)
			}
			busy++
		default:
		}
		select {
		case r := <-s.sendGet("k", nil):
			if _, ok := errors.AsType[errs.Busy](errs.FromProto(r.GetGet().GetError())); !ok {
				t.Fatalf("answered %v", r)
			}
			busy++
		default:
		}
	}
	if busy != 6+8 {
		t.Fatalf("%d were busy", busy)
	}
}

func TestNotLeaderNamesTheLeader(t *testing.T) {
	c := newCluster(t, 2)
	c.lead(rangeOne, 2)
	_, err := c.stores[0].put("k", "v")
	if e, ok := errors.AsType[errs.NotLeader](err); !ok || e.Leader.GetStoreId() != 2 {
		t.Fatal(err)
	}
	if _, err = c.stores[0].get("k"); !errors.As(err, new(errs.NotLeader)) {
		t.Fatal(err)
	}
}

// Writes that wait while the lease is on its way are answered, not refused.
func TestWritesWaitForTheLease(t *testing.T) {
	c := newCluster(t, 1)
	s := c.stores[0]
	put := s.sendPut("k", "v", 0)
	read := s.sendGet("k", nil)
	c.lead(rangeOne, 1)
	if r := (<-put).GetPut(); r.GetError() != nil {
		t.Fatal(r)
	}
	if r := (<-read).GetGet(); r.GetError() != nil {
		t.Fatal(r)
	}
}

func TestFullDiskRefusesGrowth(t *testing.T) {
	c := newCluster(t, 1)
	c.lead(rangeOne, 1)
	s := c.stores[0]
	s.mustPut("k", "v")
	s.kill()
	s.full = true
	s.start()
	if _, err := s.put("k", "w"); !errors.As(err, new(errs.DiskFull)) {
		t.Fatal(err)
	}
	if _, err := s.swap("k", "v", "w"); !errors.As(err, new(errs.DiskFull)) {
		t.Fatal(err)
	}
	if _, err := s.del("k"); err != nil {
		t.Fatal(err)
	}
}

func TestTokens(t *testing.T) {
	c := newCluster(t, 1)
	c.lead(rangeOne, 1)
	s := c.stores[0]
	s.mustPut("k", "0")
	put := func(token uint64) (uint64, error) {
		r := (<-s.send(&kvpb.Request{Body: &kvpb.Request_Put{Put: &kvpb.PutRequest{
			Header: &kvpb.Header{RangeId: rangeOne, Token: token}, Key: []byte("k"),
		}}})).GetPut()
		return r.GetCommitTs(), errs.FromProto(r.GetError())
	}
	near := uint64(s.clock.Seen().Add(500 * time.Millisecond))
	if at, err := put(near); err != nil || at <= near {
		t.Fatalf("committed at %d with token %d: %v", at, near, err)
	}
	far := uint64(s.clock.Seen().Add(time.Hour))
	if _, err := put(far); !errors.As(err, new(errs.InvalidArgument)) {
		t.Fatal(err)
	}
	c.oracle.setAway(true)
	_, err := put(far)
	if e, ok := errors.AsType[errs.Unavailable](err); !ok || e.Part != "pd" {
		t.Fatal(err)
	}
	if _, err := put(uint64(s.clock.Seen())); err != nil {
		t.Fatalf("a plain write needs no PD: %v", err)
	}
	c.oracle.setAway(false)
	c.oracle.advance(2 * time.Hour)
	if at, err := put(far); err != nil || at <= far {
		t.Fatalf("committed at %d with token %d: %v", at, far, err)
	}
}
