package linearizability

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/ridgekv/ridge/client"
)

// Key is the key of a slot of a group. Keys of a group are neighbours.
func Key(group, slot int) []byte { return fmt.Appendf(nil, "g%04d/%d", group, slot) }

// Boundary is the smallest key of a group: a split there separates no group.
func Boundary(group int) []byte { return fmt.Appendf(nil, "g%04d/", group) }

// Workload is a bounded load of random operations.
type Workload struct {
	// Groups is the number of key groups; fewer means more contention.
	Groups int
	// Workers is the number of concurrent callers, spread over Clients.
	Workers int
	// Pause is the mean rest between two operations of a worker. It bounds the
	// length of the history, and with it the time to check it.
	Pause time.Duration
	// OpTimeout bounds one operation.
	OpTimeout time.Duration
	Seed      uint64
	Clients   []*client.Client
	// Corrupt, when set, may replace the answer of a Get. A checker that does
	// not notice is broken.
	Corrupt func(ctx context.Context, c *client.Client, in Input, out Output) Output
}

// Run drives the workload until ctx ends and records everything in h.
func (w Workload) Run(ctx context.Context, h *History) {
	var wg sync.WaitGroup
	for i := range w.Workers {
		wg.Go(func() { w.worker(ctx, i, h) })
	}
	wg.Wait()
}

func (w Workload) worker(ctx context.Context, id int, h *History) {
	rng := rand.New(rand.NewPCG(w.Seed, uint64(id)))
	c := w.Clients[id%len(w.Clients)]
	// last is what this worker believes about keys: it makes swaps succeed.
	last := map[[2]int]string{}
	for n := 0; ctx.Err() == nil; n++ {
		in := w.draw(rng, fmt.Sprintf("w%d-%d", id, n), last)
		call := h.Now()
		opCtx, cancel := context.WithTimeout(context.WithoutCancel(ctx), w.OpTimeout)
		out, happened := perform(opCtx, c, in)
		if w.Corrupt != nil && happened && in.Kind == Get {
			out = w.Corrupt(opCtx, c, in, out)
		}
		cancel()
		if happened {
			h.Add(id, in, out, call)
			learn(last, in, out)
		}
		rest(ctx, time.Duration(rng.Int64N(int64(2*w.Pause)+1)))
	}
}

// draw picks the next operation.
func (w Workload) draw(rng *rand.Rand, value string, last map[[2]int]string) Input {
	in := Input{Group: rng.IntN(w.Groups), Slot: rng.IntN(GroupSize), Value: value}
	switch p := rng.IntN(100); {
	case p < 35:
		in.Kind = Get
	case p < 60:
		in.Kind = Put
	case p < 80:
		in.Kind = CompareAndSwap
		in.Expected = last[[2]int{in.Group, in.Slot}]
	case p < 87:
		in.Kind = Delete
	case p < 94:
		in.Kind = BatchGet
	default:
		in.Kind = BatchWrite
		for i := range in.Values {
			in.Values[i] = fmt.Sprintf("%s.%d", value, i)
		}
	}
	return in
}

// learn keeps what a worker was told.
func learn(last map[[2]int]string, in Input, out Output) {
	at := [2]int{in.Group, in.Slot}
	switch {
	case out.Unknown:
	case in.Kind == Get, in.Kind == CompareAndSwap && !out.Swapped:
		last[at] = out.Value
	case in.Kind == Put, in.Kind == CompareAndSwap:
		last[at] = in.Value
	case in.Kind == Delete:
		last[at] = ""
	case in.Kind == BatchGet, in.Kind == BatchWrite:
		for i := range GroupSize {
			if in.Kind == BatchWrite {
				last[[2]int{in.Group, i}] = in.Values[i]
			} else {
				last[[2]int{in.Group, i}] = out.Values[i]
			}
		}
	}
}

// perform runs one operation. happened is false when it surely had no effect
// and no answer, so that it says nothing.
func perform(ctx context.Context, c *client.Client, in Input) (out Output, happened bool) {
	var err error
	key := Key(in.Group, in.Slot)
	switch in.Kind {
	case Get:
		var row client.Row
		row, _, err = c.Get(ctx, key)
		out.Value = string(row.Value)
	case Put:
		_, err = c.Put(ctx, key, []byte(in.Value))
	case Delete:
		_, err = c.Delete(ctx, key)
	case CompareAndSwap:
		var res client.SwapResult
		res, err = c.CompareAndSwap(ctx, client.Swap{
			Key: key, Value: []byte(in.Value),
			ExpectAbsent: in.Expected == "", Expected: []byte(in.Expected),
		})
		out.Swapped, out.Value = res.Swapped, string(res.Current.Value)
	case BatchGet:
		out.Values, err = batchGet(ctx, c, in.Group)
	case BatchWrite:
		batch := make([]client.Mutation, GroupSize)
		for i := range batch {
			batch[i] = client.Mutation{Key: Key(in.Group, i), Value: []byte(in.Values[i])}
		}
		_, err = c.BatchWrite(ctx, batch)
	}
	if err != nil {
		return Output{Unknown: true}, client.IsUnknown(err)
	}
	return out, true
}

func batchGet(
	ctx context.Context, c *client.Client, group int,
) (values [GroupSize]string, err error) {
	ask := make([][]byte, GroupSize)
	for i := range ask {
		ask[i] = Key(group, i)
	}
	rows, err := c.BatchGet(ctx, ask)
	for _, row := range rows {
		for i := range ask {
			if string(ask[i]) == string(row.Key) {
				values[i] = string(row.Value)
			}
		}
	}
	return values, err
}

func rest(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}
