package route

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/singleflight"

	"github.com/ridgekv/ridge/proto/errs"
	"github.com/ridgekv/ridge/proto/keys"
	metapb "github.com/ridgekv/ridge/proto/ridge/meta/v1"
	pdpb "github.com/ridgekv/ridge/proto/ridge/pd/v1"
)

// Source is where routes come from: PD.
type Source interface {
	GetRoute(ctx context.Context, key []byte) (*pdpb.GetRouteResponse, error)
	ListRoutes(ctx context.Context, span keys.Span, limit uint32) (*pdpb.ListRoutesResponse, error)
	ListStores(ctx context.Context) (*pdpb.ListStoresResponse, error)
}

// prefetch is how many ranges a miss brings: the one that was missed and those
// that follow it.
const prefetch = 64

// ErrGap tells that PD's newest answer does not cover the key: a store has told
// of a split before PD has heard of it. It passes by itself.
var ErrGap = errors.New("route: in a gap")

// Locator finds routes: from the cache, else from PD, with one question for
// all that miss at the same place.
type Locator struct {
	*Cache
	source  Source
	timeout time.Duration
	flight  singleflight.Group

	// addresses is replaced under mu, never changed.
	addresses atomic.Pointer[map[uint64]string]
	mu        sync.Mutex
}

// NewLocator returns a Locator over source. timeout bounds one question.
func NewLocator(source Source, max int, timeout time.Duration) *Locator {
	l := &Locator{Cache: NewCache(max), source: source, timeout: timeout}
	l.addresses.Store(&map[uint64]string{})
	return l
}

// Locate returns the range that holds key.
func (l *Locator) Locate(ctx context.Context, key []byte) (*Route, error) {
	// Two fills may be wasted on a gap that other keys share.
	for range 3 {
		if r := l.Find(key); r != nil {
			return r, nil
		}
		if err := l.once(ctx, "gap:"+string(l.gapStart(key)), func(ctx context.Context) error {
			return l.fill(ctx, key)
		}); err != nil {
			return nil, err
		}
	}
	if r := l.Find(key); r != nil {
		return r, nil
	}
	if err := l.Refresh(ctx, key); err != nil {
		return nil, err
	}
	if r := l.Find(key); r != nil {
		return r, nil
	}
	return nil, fmt.Errorf("%w: %w", ErrGap, errs.Unavailable{Part: "route of " + keys.Format(key)})
}

// Refresh asks PD about key although the cache may know it. What is known
// stays known when PD does not answer or knows something older.
func (l *Locator) Refresh(ctx context.Context, key []byte) error {
	return l.once(ctx, "key:"+string(key), func(ctx context.Context) error {
		return l.ask(ctx, key)
	})
}

// nudgeInterval is how often PD is asked about one range that makes trouble.
const nudgeInterval = 100 * time.Millisecond

// Nudge asks PD about r again without waiting; what it says is found in the
// cache. However many callers are in trouble with r, PD hears of it ten times
// a second.
func (l *Locator) Nudge(ctx context.Context, r *Route) {
	now, last := time.Now().UnixNano(), r.asked.Load()
	if now-last < int64(nudgeInterval) || !r.asked.CompareAndSwap(last, now) {
		return
	}
	l.flight.DoChan(fmt.Sprintf("range:%d", r.RangeID), func() (any, error) {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), l.timeout)
		defer cancel()
		return nil, l.ask(ctx, r.Span.Start)
	})
}

func (l *Locator) ask(ctx context.Context, key []byte) error {
	r, err := l.source.GetRoute(ctx, key)
	if err != nil {
		return err
	}
	l.learnStores(r.GetStores())
	l.Learn(r.GetRoute().GetRange(), r.GetRoute().GetLeader())
	return nil
}

// fill asks for the range of key and those that follow it.
func (l *Locator) fill(ctx context.Context, key []byte) error {
	if l.Find(key) != nil {
		return nil // the fill before brought it
	}
	r, err := l.source.ListRoutes(ctx, keys.Span{Start: key}, prefetch)
	if err != nil {
		return err
	}
	l.learnStores(r.GetStores())
	for _, rt := range r.GetRoutes() {
		l.Learn(rt.GetRange(), rt.GetLeader())
	}
	if l.Find(key) != nil {
		return nil
	}
	return l.ask(ctx, key)
}

// Address returns where store listens, asking PD when it is not known.
func (l *Locator) Address(ctx context.Context, store uint64) (string, error) {
	if addr := l.Known(store); addr != "" {
		return addr, nil
	}
	if err := l.RefreshStores(ctx); err != nil {
		return "", err
	}
	if addr := l.Known(store); addr != "" {
		return addr, nil
	}
	return "", fmt.Errorf("route: pd knows no address of store %d", store)
}

// RefreshStores asks PD for the addresses of all stores.
func (l *Locator) RefreshStores(ctx context.Context) error {
	return l.once(ctx, "stores", func(ctx context.Context) error {
		r, err := l.source.ListStores(ctx)
		if err != nil {
			return err
		}
		for _, s := range r.GetStores() {
			l.learnStores([]*metapb.Store{s.GetStore()})
		}
		return nil
	})
}

// ForgetAddress drops the address of a store that turned out to be another.
func (l *Locator) ForgetAddress(store uint64) {
	l.edit(func(m map[uint64]string) { delete(m, store) })
}

// edit changes what is known of addresses.
func (l *Locator) edit(f func(map[uint64]string)) {
	l.mu.Lock()
	defer l.mu.Unlock()
	m := maps.Clone(*l.addresses.Load())
	f(m)
	l.addresses.Store(&m)
}

// Known is where store listens, as far as it is known: "" when it is not.
func (l *Locator) Known(store uint64) string { return (*l.addresses.Load())[store] }

// Addresses are all stores that are known.
func (l *Locator) Addresses() map[uint64]string { return maps.Clone(*l.addresses.Load()) }

func (l *Locator) learnStores(stores []*metapb.Store) {
	if len(stores) == 0 {
		return
	}
	l.edit(func(m map[uint64]string) {
		for _, s := range stores {
			if s.GetState() == metapb.StoreState_STORE_STATE_GONE {
				delete(m, s.GetStoreId())
			} else if s.GetGrpcAddress() != "" {
				m[s.GetStoreId()] = s.GetGrpcAddress()
			}
		}
	})
}

// once runs f for all callers that ask the same at the same time. f outlives a
// caller that leaves, because others may wait for it.
func (l *Locator) once(ctx context.Context, what string, f func(context.Context) error) error {
	done := l.flight.DoChan(what, func() (any, error) {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), l.timeout)
		defer cancel()
		return nil, f(ctx)
	})
	select {
	case r := <-done:
		return r.Err
	case <-ctx.Done():
		return errors.Join(ctx.Err(), errs.Unavailable{Part: "pd"})
	}
}
