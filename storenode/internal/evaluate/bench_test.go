package evaluate

import (
	"fmt"
	"testing"

	"github.com/ridgekv/ridge/proto/errs"
	kvpb "github.com/ridgekv/ridge/proto/ridge/kv/v1"
)

// What does an operation cost between the door and the engine, when callers
// come 256 at a time and Raft answers at once? One store, real apply, real
// engine, a log in memory.
func BenchmarkEvaluate(b *testing.B) {
	const callers = 256
	c := newCluster(b, 1)
	c.lead(rangeOne, 1)
	s := c.stores[0]
	value := string(make([]byte, 128))
	var names [4 * callers]string
	for i := range names {
		names[i] = fmt.Sprintf("%020d", i)
		s.mustPut(names[i], value)
	}
	put := func(i int) <-chan *kvpb.Response { return s.sendPut(names[i%len(names)], value, 0) }
	get := func(i int) <-chan *kvpb.Response { return s.sendGet(names[i%len(names)], nil) }
	for _, op := range []struct {
		name string
		send func(int) <-chan *kvpb.Response
	}{{"put", put}, {"get", get}} {
		b.Run(op.name, func(b *testing.B) {
			b.ReportAllocs()
			var waiting [callers]<-chan *kvpb.Response
			for i := 0; i < b.N; i += callers {
				n := min(callers, b.N-i)
				for k := range n {
					waiting[k] = op.send(i + k)
				}
				for _, answer := range waiting[:n] {
					r := <-answer
					err := errs.FromProto(r.GetPut().GetError())
					if err == nil {
						err = errs.FromProto(r.GetGet().GetError())
					}
					if err != nil {
						b.Fatal(err)
					}
				}
			}
		})
	}
}
