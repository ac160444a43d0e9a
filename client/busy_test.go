package client_test

import (
	"context"
	"errors"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ridgekv/ridge/client"
	"github.com/ridgekv/ridge/client/internal/clustertest"
	"github.com/ridgekv/ridge/proto/errs"
	kvpb "github.com/ridgekv/ridge/proto/ridge/kv/v1"
)

func after(d time.Duration) <-chan struct{} {
	c := make(chan struct{})
	time.AfterFunc(d, func() { close(c) })
	return c
}

// A store that is so busy that its refusals take long would take as long to answer
// the next try: with less time left a write ends refused, and not unknown.
func TestBusyWriteIsNotSentTooLate(t *testing.T) {
	cluster := clustertest.New(t, 1, 1)
	c := open(t, cluster, client.Options{})
	put(t, c, "k", "0")
	var tries atomic.Int32
	cluster.Store(1).Hook(func(*kvpb.Request) *clustertest.Script {
		if tries.Add(1) > 1 {
			return &clustertest.Script{DropBefore: true}
		}
		return &clustertest.Script{
			Hold:   after(200 * time.Millisecond),
			Answer: errs.ToProto(errs.Busy{Reason: "x", RetryAfter: 20 * time.Millisecond}),
		}
	})
	ctx, cancel := context.WithTimeout(t.Context(), 440*time.Millisecond)
	defer cancel()
	_, err := c.Put(ctx, []byte("k"), []byte("1"))
	if _, busy := errors.AsType[errs.Busy](err); !busy || client.IsUnknown(err) || tries.Load() != 1 {
		t.Errorf("after %d tries: %v", tries.Load(), err)
	}
}

// A write that was refused at once is sent again, with little time left too.
func TestBusyWriteIsSentAgain(t *testing.T) {
	cluster := clustertest.New(t, 1, 1)
	c := open(t, cluster, client.Options{})
	put(t, c, "k", "0")
	var tries atomic.Int32
	cluster.Store(1).Hook(func(*kvpb.Request) *clustertest.Script {
		if tries.Add(1) > 3 {
			return nil
		}
		return &clustertest.Script{Answer: errs.ToProto(errs.Busy{Reason: "x"})}
	})
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	if _, err := c.Put(ctx, []byte("k"), []byte("1")); err != nil || tries.Load() != 4 {
		t.Errorf("after %d tries: %v", tries.Load(), err)
	}
}

// Of the writes that a store has no room for the oldest goes next, so none is
// overtaken by many that came later.
func TestBusyWritesKeepTheirTurn(t *testing.T) {
	const callers, room, writes = 48, 4, 1500
	cluster := clustertest.New(t, 1, 1)
	c := open(t, cluster, client.Options{})
	put(t, c, "k", "0")
	var inside atomic.Int32
	cluster.Store(1).Hook(func(*kvpb.Request) *clustertest.Script {
		if inside.Add(1) > room {
			inside.Add(-1)
			return &clustertest.Script{Answer: errs.ToProto(errs.Busy{Reason: "no room"})}
		}
		done := make(chan struct{})
		time.AfterFunc(time.Millisecond, func() {
			inside.Add(-1)
			close(done)
		})
		return &clustertest.Script{Hold: done}
	})
	var begun atomic.Int64
	var mu sync.Mutex
	var ended []int64 // the number of each call, in the order of their ends
	var wg sync.WaitGroup
	for i := range callers {
		wg.Go(func() {
			for {
				n := begun.Add(1)
				if n > writes {
					return
				}
				put(t, c, strconv.Itoa(i), "1")
				mu.Lock()
				ended = append(ended, n)
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	worst := 0
	for i, n := range ended {
		overtaken := 0
		for _, other := range ended[:i] {
			if other > n {
				overtaken++
			}
		}
		worst = max(worst, overtaken)
	}
	t.Logf("a call was overtaken by %d, %d tries", worst, cluster.Store(1).Arrivals("put"))
	if limit := 4 * callers; worst > limit {
		t.Errorf("a call was overtaken by %d that came later, more than %d", worst, limit)
	}
	if !slices.IsSorted(ended) && worst == 0 {
		t.Error("it does not count")
	}
}
