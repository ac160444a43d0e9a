package evaluate

import (
	"testing"
	"time"

	"github.com/ridgekv/ridge/proto/errs"
	kvpb "github.com/ridgekv/ridge/proto/ridge/kv/v1"
	"github.com/ridgekv/ridge/proto/ts"
)

// ownWorker replaces the evaluator of a store by one worker without a
// goroutine, which the test steps, and lets it take the lease.
func (s *testStore) ownWorker() *worker {
	s.c.t.Helper()
	rep, _ := s.catalog.Replica(rangeOne)
	w := newWorker(newEvaluator(s.ev.deps, fastTiming()), rep)
	w.ev.pool.close() // what is submitted runs at once
	eventually(s.c.t, "the lease", func() bool {
		w.step(time.Now())
		return w.tenure() != 0 && w.tenure() == rep.State().Tenure()
	})
	return w
}

// A deposed leaseholder whose worker has not yet looked must not judge a TTL by
// its own clock: its successor may have said "expired" already.
func TestDeposedWorkerJudgesNoTTL(t *testing.T) {
	c := newCluster(t, 2)
	a, b := c.stores[0], c.stores[1]
	c.lead(rangeOne, 1)
	a.holds()
	if err := errs.FromProto((<-a.sendPut("k", "v", time.Hour)).GetPut().GetError()); err != nil {
		t.Fatal(err)
	}
	a.kill()
	defer a.start()
	w := a.ownWorker()
	registered := false
	w.register(&call{deadline: time.Now().Add(time.Minute)}, 0, func(_ ts.Timestamp, err error) {
		registered = err == nil
	})
	eventually(t, "a bound ahead of the clock", func() bool {
		w.step(time.Now())
		return registered
	})

	c.oracle.advance(2 * time.Hour)
	c.lead(rangeOne, 2)
	b.holds()
	b.mustGet("k", "")
	rep, _ := a.catalog.Replica(rangeOne)
	other, _ := b.catalog.Replica(rangeOne)
	eventually(t, "the deposed replica applies", func() bool {
		return rep.Applied().Index >= other.Applied().Index
	})
	// A read that passed the door and its ReadIndex before the worker woke up.
	var got *kvpb.Response
	req := &kvpb.Request{Body: &kvpb.Request_Get{Get: &kvpb.GetRequest{
		Header: a.header(), Key: []byte("k"),
	}}}
	read := newCall(req, respondFunc(func(r *kvpb.Response) { got = r }))
	read.deadline = time.Now().Add(time.Minute)
	w.read(read, readPlan{freshened: true})
	if got.GetGet().GetFound() {
		t.Fatal("alive again after it had expired")
	}
	w.step(time.Now())
	if err := errs.FromProto(got.GetGet().GetError()); err == nil {
		t.Fatalf("answered %v, want NotLeader", got)
	}
}
