package agent

import (
	"context"
	"sync"
	"time"

	metapb "github.com/ridgekv/ridge/proto/ridge/meta/v1"
	"github.com/ridgekv/ridge/storenode/internal/catalog"
)

const (
	// handParallel bounds the transfers under way while draining.
	handParallel = 16
	// handTimeout bounds one of them.
	handTimeout = 2 * time.Second
	// askPatience bounds the wait for one of several heirs.
	askPatience = 50 * time.Millisecond
)

// HandAway gives the lease and the leadership of every range led here to
// another voter that keeps up. It returns when none is left that could go, or
// when ctx ends.
func (a *Agent) HandAway(ctx context.Context) {
	for ctx.Err() == nil {
		var wg sync.WaitGroup
		slots := make(chan struct{}, handParallel)
		left := 0
		for _, r := range a.d.Catalog.Replicas() {
			heirs := a.heirs(r)
			if !a.d.Host.Leader(r.RangeID()).Self || len(heirs) == 0 {
				continue
			}
			left++
			slots <- struct{}{}
			wg.Go(func() {
				defer func() { <-slots }()
				a.handOne(ctx, r, heirs)
			})
		}
		wg.Wait()
		if left == 0 || !sleep(ctx, 20*time.Millisecond) {
			return
		}
	}
}

// handOne gives one range to the first of the heirs that keeps up.
func (a *Agent) handOne(ctx context.Context, r *catalog.Replica, heirs []*metapb.Replica) {
	ctx, cancel := context.WithTimeout(ctx, handTimeout)
	defer cancel()
	for _, heir := range heirs {
		if a.awaitHeir(ctx, r.RangeID(), heir, heirLag, askPatience) != nil {
			continue
		}
		if err := a.transfer(ctx, r.RangeID(), heir.GetReplicaId()); err != nil {
			a.o.Logger.Debug("cannot hand away", "range", r.RangeID(), "op", "drain", "error", err)
		}
		return
	}
}

// heirs are the voters that could lead r next, in an order that spreads the
// ranges over them.
func (a *Agent) heirs(r *catalog.Replica) []*metapb.Replica {
	members, _, _ := a.d.Host.Membership(r.RangeID())
	var fit []*metapb.Replica
	for _, p := range members {
		if p.GetReplicaId() != r.State().ReplicaID() &&
			p.GetRole() == metapb.Role_ROLE_VOTER && !a.watch.isSilent(p.GetStoreId()) {
			fit = append(fit, p)
		}
	}
	if len(fit) == 0 {
		return nil
	}
	first := int(r.RangeID() % uint64(len(fit)))
	return append(fit[first:len(fit):len(fit)], fit[:first]...)
}

// catchUpParallel bounds the reads under way while a store catches up.
const catchUpParallel = 32

// CatchUp waits until every replica here has answered a read of its own, or
// until ctx ends. From then on the store may be counted on when another stops.
func (a *Agent) CatchUp(ctx context.Context) error {
	var wg sync.WaitGroup
	slots := make(chan struct{}, catchUpParallel)
	for _, r := range a.d.Catalog.Replicas() {
		if !r.State().Serving() {
			continue
		}
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-slots }()
			for ctx.Err() == nil && r.State().Serving() {
				if !a.d.Host.Leader(r.RangeID()).Known { // the question would be lost
					sleep(ctx, 20*time.Millisecond)
					continue
				}
				one, cancel := context.WithTimeout(ctx, askTimeout)
				err := a.d.Host.CaughtUp(one, r.RangeID())
				cancel()
				if err == nil || !sleep(ctx, 20*time.Millisecond) {
					return
				}
			}
		})
	}
	wg.Wait()
	return ctx.Err()
}
