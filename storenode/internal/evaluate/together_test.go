package evaluate

import (
	"fmt"
	"testing"

	"github.com/ridgekv/ridge/proto/errs"
	kvpb "github.com/ridgekv/ridge/proto/ridge/kv/v1"
)

// Requests that come together share entries and rounds, whatever the order in
// which their answers come.
func TestTogether(t *testing.T) {
	c := newCluster(t, 1)
	c.lead(rangeOne, 1)
	s := c.stores[0]
	if _, err := s.put("warm", "up"); err != nil {
		t.Fatal(err)
	}
	replica, _ := s.catalog.Replica(rangeOne)
	const n = 32
	answers := make(chan *kvpb.Response, 3*n)
	before := replica.Applied().Index
	var all []Submission
	for i := range n {
		key := fmt.Appendf(nil, "k%02d", i)
		all = append(all, Submission{
			To: respondFunc(func(r *kvpb.Response) { answers <- r }),
			Request: &kvpb.Request{Id: uint64(i), Body: &kvpb.Request_Put{
				Put: &kvpb.PutRequest{Header: s.header(), Key: key, Value: key},
			}},
		}, Submission{
			To: respondFunc(func(r *kvpb.Response) { answers <- r }),
			Request: &kvpb.Request{Id: uint64(n + i), Body: &kvpb.Request_CompareAndSwap{
				// The overlay shows the put before it.
				CompareAndSwap: &kvpb.CompareAndSwapRequest{
					Header: s.header(), Key: key, Expected: key, Value: []byte("new"),
				},
			}},
		}, Submission{
			To: respondFunc(func(r *kvpb.Response) { answers <- r }),
			Request: &kvpb.Request{Id: uint64(2*n + i), Body: &kvpb.Request_Get{
				Get: &kvpb.GetRequest{Header: s.header(), Key: []byte("warm")},
			}},
		})
	}
	s.ev.SubmitAll(all)
	seen := map[uint64]bool{}
	for range 3 * n {
		r := <-answers
		if seen[r.GetId()] {
			t.Errorf("request %d was answered twice", r.GetId())
		}
		seen[r.GetId()] = true
		swap := r.GetCompareAndSwap()
		switch e := errs.FromProto(failureOf(r)); {
		case e != nil:
			t.Errorf("request %d: %v", r.GetId(), e)
		case swap != nil && !swap.GetSwapped():
			t.Errorf("request %d was not swapped: %v", r.GetId(), swap)
		case r.GetGet() != nil && string(r.GetGet().GetRow().GetValue()) != "up":
			t.Errorf("request %d got %v", r.GetId(), r.GetGet())
		}
	}
	if entries := replica.Applied().Index - before; entries > 3 {
		t.Errorf("%d writes took %d entries", 2*n, entries)
	}
}

func failureOf(r *kvpb.Response) *kvpb.Error {
	switch b := r.GetBody().(type) {
	case *kvpb.Response_Put:
		return b.Put.GetError()
	case *kvpb.Response_CompareAndSwap:
		return b.CompareAndSwap.GetError()
	case *kvpb.Response_Get:
		return b.Get.GetError()
	}
	return r.GetError()
}
