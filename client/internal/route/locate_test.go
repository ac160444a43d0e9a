package route

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ridgekv/ridge/proto/keys"
	metapb "github.com/ridgekv/ridge/proto/ridge/meta/v1"
	pdpb "github.com/ridgekv/ridge/proto/ridge/pd/v1"
)

// fakePD has n ranges [0000,0001), [0001,0002), ...; the last is open.
type fakePD struct {
	n                   int
	lists, gets, stores atomic.Int64
	delay               time.Duration
	err                 error
	hide                string // ListRoutes does not know the range of this key
	leader              atomic.Uint64
}

func (f *fakePD) route(i int) *pdpb.Route {
	start, end := fmt.Sprintf("%04d", i), fmt.Sprintf("%04d", i+1)
	if i == 0 {
		start = ""
	}
	if i == f.n-1 {
		end = ""
	}
	return &pdpb.Route{
		Range:  rng(uint64(i+1), 1, 1, start, end, 1, 2),
		Leader: on(f.leader.Load(), f.leader.Load()),
	}
}

func (f *fakePD) GetRoute(_ context.Context, key []byte) (*pdpb.GetRouteResponse, error) {
	f.gets.Add(1)
	time.Sleep(f.delay)
	for i := range f.n {
		if rt := f.route(i); keys.FromProto(rt.Range.Span).Contains(key) {
			return &pdpb.GetRouteResponse{Route: rt}, f.err
		}
	}
	return nil, errors.New("no range")
}

func (f *fakePD) ListRoutes(
	_ context.Context, span keys.Span, limit uint32,
) (*pdpb.ListRoutesResponse, error) {
	f.lists.Add(1)
	time.Sleep(f.delay)
	resp := &pdpb.ListRoutesResponse{}
	for i := range f.n {
		rt := f.route(i)
		s := keys.FromProto(rt.Range.Span)
		if s.Overlaps(span) && len(resp.Routes) < int(limit) &&
			!(f.hide != "" && s.Contains([]byte(f.hide))) {
			resp.Routes = append(resp.Routes, rt)
		}
	}
	return resp, f.err
}

func (f *fakePD) ListStores(context.Context) (*pdpb.ListStoresResponse, error) {
	f.stores.Add(1)
	return &pdpb.ListStoresResponse{Stores: []*pdpb.StoreInfo{
		{Store: &metapb.Store{StoreId: 1, GrpcAddress: "one:1"}},
		{Store: &metapb.Store{
			StoreId: 2, GrpcAddress: "two:2", State: metapb.StoreState_STORE_STATE_GONE,
		}},
	}}, f.err
}

func TestOneFillForAllThatMiss(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		pd := &fakePD{n: 40, delay: time.Second}
		l := NewLocator(pd, 1000, time.Minute)
		var wg sync.WaitGroup
		for i := range 1000 {
			wg.Go(func() {
				key := fmt.Appendf(nil, "%04d", i%40)
				r, err := l.Locate(t.Context(), key)
				if err != nil || !r.Span.Contains(key) {
					t.Errorf("got %v, %v", r, err)
				}
			})
		}
		wg.Wait()
		// An answer holds what follows the key that was asked for; callers with
		// keys before it need another one.
		if n := pd.lists.Load(); n > 10 {
			t.Errorf("PD was asked %d times by 1000 callers", n)
		}
	})
}

func TestAMissBringsTheRangesThatFollow(t *testing.T) {
	pd := &fakePD{n: 200}
	l := NewLocator(pd, 1000, time.Minute)
	for i := range 200 {
		if _, err := l.Locate(t.Context(), fmt.Appendf(nil, "%04d", i)); err != nil {
			t.Fatal(err)
		}
	}
	if n := pd.lists.Load(); n != (200+prefetch-1)/prefetch {
		t.Errorf("%d questions for 200 ranges", n)
	}
}

func TestFallsBackToOneRoute(t *testing.T) {
	pd := &fakePD{n: 3, hide: "0001"}
	l := NewLocator(pd, 1000, time.Minute)
	r, err := l.Locate(t.Context(), []byte("0001"))
	if err != nil || r.RangeID != 2 {
		t.Fatalf("got %v, %v", r, err)
	}
	if pd.gets.Load() != 1 {
		t.Error("GetRoute was not asked")
	}
}

func TestErrorsAndLeavingCallers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		pd := &fakePD{n: 1, err: errors.New("no pd")}
		l := NewLocator(pd, 10, time.Minute)
		if _, err := l.Locate(t.Context(), nil); !errors.Is(err, pd.err) {
			t.Errorf("got %v", err)
		}
		pd.err, pd.delay = nil, time.Minute
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := l.Locate(ctx, nil); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("got %v", err)
		}
		// The question goes on for those who stay.
		if _, err := l.Locate(t.Context(), nil); err != nil || pd.lists.Load() != 2 {
			t.Errorf("got %v after %d questions", err, pd.lists.Load())
		}
	})
}

func TestRefreshKeepsWhatIsKnown(t *testing.T) {
	pd := &fakePD{n: 1}
	l := NewLocator(pd, 10, time.Minute)
	pd.leader.Store(1)
	if _, err := l.Locate(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	pd.err = errors.New("no pd")
	if err := l.Refresh(t.Context(), nil); !errors.Is(err, pd.err) {
		t.Fatalf("got %v", err)
	}
	if l.Find(nil) == nil {
		t.Fatal("the route is gone")
	}
	pd.err = nil
	pd.leader.Store(2)
	if err := l.Refresh(t.Context(), nil); err != nil || l.Find(nil).Leader != 2 {
		t.Fatalf("got %v, %v", l.Find(nil), err)
	}
}

func TestNudgesAreRare(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		pd := &fakePD{n: 1}
		l := NewLocator(pd, 10, time.Minute)
		r, err := l.Locate(t.Context(), nil)
		if err != nil {
			t.Fatal(err)
		}
		for range 1000 {
			l.Nudge(t.Context(), r)
			time.Sleep(time.Millisecond)
		}
		synctest.Wait()
		if n := pd.gets.Load(); n < 9 || n > 11 {
			t.Errorf("PD was asked %d times in a second", n)
		}
	})
}

func TestAddresses(t *testing.T) {
	pd := &fakePD{n: 1}
	l := NewLocator(pd, 10, time.Minute)
	for range 2 {
		if a, err := l.Address(t.Context(), 1); err != nil || a != "one:1" {
			t.Fatalf("got %q, %v", a, err)
		}
	}
	if pd.stores.Load() != 1 {
		t.Errorf("PD was asked %d times", pd.stores.Load())
	}
	if _, err := l.Address(t.Context(), 2); err == nil {
		t.Error("a store that is gone has an address")
	}
	l.ForgetAddress(1)
	if a, err := l.Address(t.Context(), 1); err != nil || a != "one:1" {
		t.Fatalf("got %q, %v", a, err)
	}
}
