package evaluate

import (
	"testing"
	"time"

	"github.com/ridgekv/ridge/proto/errs"
	kvpb "github.com/ridgekv/ridge/proto/ridge/kv/v1"
	"github.com/ridgekv/ridge/proto/wire"
	"github.com/ridgekv/ridge/storenode/internal/apply"
)

func (s *testStore) header() *kvpb.Header { return &kvpb.Header{RangeId: rangeOne} }

func (s *testStore) send(req *kvpb.Request) <-chan *kvpb.Response {
	out := make(chan *kvpb.Response, 2) // a second answer would be seen
	s.ev.Submit(req, func(r *kvpb.Response) {
		if scan := r.GetScan(); scan != nil {
			scan.Rows, _ = wire.ScanRows(scan)
		}
		out <- r
	})
	return out
}

func (s *testStore) sendPut(key, value string, ttl time.Duration) <-chan *kvpb.Response {
	return s.send(&kvpb.Request{Body: &kvpb.Request_Put{Put: &kvpb.PutRequest{
		Header: s.header(), Key: []byte(key), Value: []byte(value),
		TtlMs: uint64(ttl.Milliseconds()),
	}}})
}

func (s *testStore) put(key, value string) (uint64, error) {
	r := (<-s.sendPut(key, value, 0)).GetPut()
	return r.GetCommitTs(), errs.FromProto(r.GetError())
}

func (s *testStore) del(key string) (uint64, error) {
	r := (<-s.send(&kvpb.Request{Body: &kvpb.Request_Delete{Delete: &kvpb.DeleteRequest{
		Header: s.header(), Key: []byte(key),
	}}})).GetDelete()
	return r.GetCommitTs(), errs.FromProto(r.GetError())
}

func (s *testStore) sendSwap(key, old, value string) <-chan *kvpb.Response {
	return s.send(&kvpb.Request{Body: &kvpb.Request_CompareAndSwap{
		CompareAndSwap: &kvpb.CompareAndSwapRequest{
			Header: s.header(), Key: []byte(key), ExpectedAbsent: old == "",
			Expected: []byte(old), Value: []byte(value),
		},
	}})
}

func (s *testStore) swap(key, old, value string) (*kvpb.CompareAndSwapResponse, error) {
	r := (<-s.sendSwap(key, old, value)).GetCompareAndSwap()
	return r, errs.FromProto(r.GetError())
}

func (s *testStore) sendGet(key string, c *kvpb.Consistency) <-chan *kvpb.Response {
	return s.send(&kvpb.Request{Body: &kvpb.Request_Get{Get: &kvpb.GetRequest{
		Header: s.header(), Key: []byte(key), Consistency: c,
	}}})
}

// get returns the value of key, "" when there is none.
func (s *testStore) get(key string) (string, error) {
	r := (<-s.sendGet(key, nil)).GetGet()
	return string(r.GetRow().GetValue()), errs.FromProto(r.GetError())
}

func snapshotAt(at uint64) *kvpb.Consistency {
	return &kvpb.Consistency{
		Level: kvpb.ConsistencyLevel_CONSISTENCY_LEVEL_SNAPSHOT, SnapshotTs: at,
	}
}

func (s *testStore) getAt(key string, at uint64) (string, error) {
	r := (<-s.sendGet(key, snapshotAt(at))).GetGet()
	return string(r.GetRow().GetValue()), errs.FromProto(r.GetError())
}

func (s *testStore) mustPut(key, value string) uint64 {
	s.c.t.Helper()
	at, err := s.put(key, value)
	if err != nil {
		s.c.t.Fatalf("put %s: %v", key, err)
	}
	return at
}

func (s *testStore) mustGet(key, want string) {
	s.c.t.Helper()
	got, err := s.get(key)
	if err != nil || got != want {
		s.c.t.Fatalf("get %s: %q, %v; want %q", key, got, err, want)
	}
}

// eventually waits for a state, which is all that a test may wait for.
func eventually(t testing.TB, what string, cond func() bool) {
	t.Helper()
	ticker := time.NewTicker(time.Millisecond)
	defer ticker.Stop()
	for deadline := time.Now().Add(10 * time.Second); !cond(); <-ticker.C {
		if time.Now().After(deadline) {
			t.Fatalf("never: %s", what)
		}
	}
}

// logged returns the numbered entries of a kind in the log of a range.
func (c *cluster) logged(rangeID uint64, kind apply.Kind) []apply.Entry {
	c.mu.Lock()
	defer c.mu.Unlock()
	var out []apply.Entry
	for _, cmd := range c.logs[rangeID].entries {
		if e, err := apply.Decode(cmd); err == nil && e.Kind == kind {
			out = append(out, e)
		}
	}
	return out
}

// holds waits until a store holds the lease of range 1.
func (s *testStore) holds() {
	s.c.t.Helper()
	eventually(s.c.t, "the lease is held", func() bool { return s.ev.Leaseholder(rangeOne) })
}
