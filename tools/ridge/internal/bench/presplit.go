package bench

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/ridgekv/ridge/client/pdclient"
	"github.com/ridgekv/ridge/proto/keys"
	metapb "github.com/ridgekv/ridge/proto/ridge/meta/v1"
	pdpb "github.com/ridgekv/ridge/proto/ridge/pd/v1"
)

const (
	// splitsAtOnce bounds the splits that wait for each other.
	splitsAtOnce = 8
	lookEvery    = 50 * time.Millisecond
	// moveEvery is how long PD is given to move leaders by itself, or to do what
	// it was asked to, before it is asked again.
	moveEvery = time.Second
	// settled is how long the leaders may stay where they are, unevenly, before
	// that counts as all that can be done.
	settled = 5 * time.Second
)

// Spread is how the ranges of the keyspace lie.
type Spread struct {
	Ranges int
	// Leaders counts the ranges that each store leads; a store that leads none
	// is there too.
	Leaders map[uint64]int
	// Even tells that no store leads two more than another.
	Even bool
}

func (s Spread) String() string {
	var stores []uint64
	for id := range s.Leaders {
		stores = append(stores, id)
	}
	slices.Sort(stores)
	text := fmt.Sprintf("%d ranges; led by", s.Ranges)
	for _, id := range stores {
		text += fmt.Sprintf(" store %d: %d", id, s.Leaders[id])
	}
	if !s.Even {
		text += " (unevenly, and nothing moves)"
	}
	return text
}

// Presplit cuts the keyspace of prefix into n ranges of equal share, and off
// from its neighbours. It waits until every range is led and the leaders are
// spread evenly; when PD does not spread them by itself it is asked to, range by
// range. When nothing moves any more the spread is what it is.
func Presplit(ctx context.Context, pd *pdclient.Client, prefix string, n int) (Spread, error) {
	if n < 1 || n > MaxRanges {
		return Spread{}, fmt.Errorf("--presplit %d: from 1 to %d", n, MaxRanges)
	}
	space := keyspace{[]byte(prefix)}
	var group errgroup.Group
	group.SetLimit(splitsAtOnce)
	for _, at := range halving(space.bounds(n)) {
		if len(at) > 0 {
			group.Go(func() error { return splitAt(ctx, pd, at) })
		}
	}
	if err := group.Wait(); err != nil {
		return Spread{}, err
	}
	return awaitSpread(ctx, pd, space.span())
}

// halving orders keys so that neighbours in the order lie far from each other,
// and splits of one range seldom meet.
func halving(ks [][]byte) [][]byte {
	out := make([][]byte, 0, len(ks))
	for queue := [][][]byte{ks}; len(queue) > 0; queue = queue[1:] {
		if part := queue[0]; len(part) > 0 {
			middle := len(part) / 2
			out = append(out, part[middle])
			queue = append(queue, part[:middle], part[middle+1:])
		}
	}
	return out
}

// splitAt asks until a range begins at key.
func splitAt(ctx context.Context, pd *pdclient.Client, key []byte) error {
	var last error
	var asked time.Time
	for {
		r, err := pd.GetRoute(ctx, key)
		if err == nil && bytes.Equal(r.GetRoute().GetRange().GetSpan().GetStart(), key) {
			return nil
		}
		if err == nil && time.Since(asked) > time.Second {
			asked = time.Now()
			_, err = pd.SplitRange(ctx, key)
		}
		if err != nil && ctx.Err() == nil {
			last, asked = err, time.Time{}
		}
		if err := pause(ctx); err != nil {
			return fmt.Errorf("bench: split at %s: %w", keys.Format(key), errors.Join(err, last))
		}
	}
}

func pause(ctx context.Context) error {
	t := time.NewTimer(lookEvery)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
		return nil
	}
}

func awaitSpread(ctx context.Context, pd *pdclient.Client, span keys.Span) (Spread, error) {
	var last string
	since, asked := time.Now(), time.Now()
	for {
		s, routes, err := look(ctx, pd, span)
		led := err == nil && s.Leaders[0] == 0
		if led && s.Even {
			return s, nil
		}
		if now := s.String(); err != nil || now != last {
			last, since = now, time.Now()
		}
		if led && time.Since(since) > settled {
			return s, nil
		}
		if led && time.Since(since) > moveEvery && time.Since(asked) > moveEvery {
			asked = time.Now()
			for _, m := range evening(s.Leaders, routes) {
				// A refusal is no fault: another change may be under way.
				_, _ = pd.MoveLeader(ctx, m.rangeID, m.store)
			}
		}
		if e := pause(ctx); e != nil {
			return s, fmt.Errorf("bench: not every range is led yet: %w", errors.Join(e, err))
		}
	}
}

// move asks for another leader.
type move struct{ rangeID, store uint64 }

// evening returns the moves that leave no store with two leaders more than
// another, as far as replicas are there.
func evening(leaders map[uint64]int, routes []*pdpb.Route) []move {
	count := maps.Clone(leaders)
	var out []move
	for _, r := range routes {
		from, best := r.GetLeader().GetStoreId(), uint64(0)
		for _, p := range r.GetRange().GetReplicas() {
			n, up := count[p.GetStoreId()]
			if up && p.GetRole() == metapb.Role_ROLE_VOTER && n <= count[from]-2 &&
				(best == 0 || n < count[best]) {
				best = p.GetStoreId()
			}
		}
		if best != 0 {
			count[from]--
			count[best]++
			out = append(out, move{r.GetRange().GetRangeId(), best})
		}
	}
	return out
}

// look counts leaders; ranges without one are counted at store 0.
func look(
	ctx context.Context, pd *pdclient.Client, span keys.Span,
) (s Spread, routes []*pdpb.Route, err error) {
	s.Leaders = map[uint64]int{}
	stores, err := pd.ListStores(ctx)
	if err != nil {
		return s, nil, err
	}
	for _, one := range stores.GetStores() {
		if one.GetStore().GetState() == metapb.StoreState_STORE_STATE_UP {
			s.Leaders[one.GetStore().GetStoreId()] = 0
		}
	}
	if routes, err = routesOf(ctx, pd, span); err != nil {
		return s, nil, err
	}
	for _, r := range routes {
		s.Ranges++
		s.Leaders[r.GetLeader().GetStoreId()]++
	}
	low, high := s.Ranges, 0
	for _, n := range s.Leaders {
		low, high = min(low, n), max(high, n)
	}
	s.Even = s.Ranges > 0 && high-low <= 1
	return s, routes, nil
}

func routesOf(
	ctx context.Context, pd *pdclient.Client, span keys.Span,
) (all []*pdpb.Route, err error) {
	for {
		r, err := pd.ListRoutes(ctx, span, 0)
		if err != nil {
			return nil, err
		}
		all = append(all, r.GetRoutes()...)
		if !r.GetMore() || len(r.GetRoutes()) == 0 {
			return all, nil
		}
		span.Start = r.GetRoutes()[len(r.GetRoutes())-1].GetRange().GetSpan().GetEnd()
		if len(span.Start) == 0 {
			return all, nil
		}
	}
}
