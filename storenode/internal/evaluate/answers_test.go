package evaluate

import (
	"fmt"
	"testing"

	dto "github.com/prometheus/client_model/go"

	"github.com/ridgekv/ridge/proto/errs"
	kvpb "github.com/ridgekv/ridge/proto/ridge/kv/v1"
)

// Reads that are answered together are answered each as it deserves.
func TestAnswersOfOneRound(t *testing.T) {
	c := newCluster(t, 1)
	c.lead(rangeOne, 1)
	s := c.stores[0]
	s.mustPut("k", "v")
	s.mustGet("k", "v")

	const reads = 3 * readChunk
	rounds := func() float64 {
		var m dto.Metric
		if err := s.ev.metrics.readRounds.Write(&m); err != nil {
			t.Fatal(err)
		}
		return m.GetCounter().GetValue()
	}
	before := rounds()
	answers := make(chan *kvpb.Response, 2*reads)
	var all []Submission
	for i := range reads {
		get := &kvpb.GetRequest{Header: s.header(), Key: []byte("k")}
		switch i % 8 {
		case 1:
			get.Key = fmt.Append(nil, "absent", i)
		case 2:
			get.Header.SpanEpoch = 1 << 40
		}
		req := &kvpb.Request{Id: uint64(i), Body: &kvpb.Request_Get{Get: get}}
		to := respondFunc(func(r *kvpb.Response) { answers <- r })
		all = append(all, Submission{Request: req, To: to})
	}
	s.ev.SubmitAll(all)
	for range reads {
		r := <-answers
		err := errs.FromProto(r.GetGet().GetError())
		found := string(r.GetGet().GetRow().GetValue()) == "v"
		if i := r.GetId() % 8; found != (i != 1 && i != 2) || (err != nil) != (i == 2) {
			t.Errorf("read %d: found %t, %v", r.GetId(), found, err)
		}
	}
	if n := rounds() - before; n != 1 {
		t.Errorf("%v rounds, want 1", n)
	}
	if n := len(answers); n > 0 {
		t.Errorf("%d answers too many", n)
	}
}
