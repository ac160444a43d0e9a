package agent

import (
	"context"
	"sync"
	"time"

	metapb "github.com/ridgekv/ridge/proto/ridge/meta/v1"
)

const (
	// handParallel bounds the transfers under way while draining.
	handParallel = 16
	// handTimeout bounds one of them.
	handTimeout = 2 * time.Second
)

// HandAway gives the lease and the leadership of every range led here to
// another voter whose store is heard. It returns when none is left that could
// go, or when ctx ends.
func (a *Agent) HandAway(ctx context.Context) {
	for ctx.Err() == nil {
		var wg sync.WaitGroup
		slots := make(chan struct{}, handParallel)
		left := 0
		for _, r := range a.d.Catalog.Replicas() {
			id := r.RangeID()
			if !a.d.Host.Leader(id).Self {
				continue
			}
			heir := a.heir(id, r.State().ReplicaID())
			if heir == 0 {
				continue
			}
			left++
			slots <- struct{}{}
			wg.Go(func() {
				defer func() { <-slots }()
				one, cancel := context.WithTimeout(ctx, handTimeout)
				defer cancel()
				if err := a.transfer(one, id, heir); err != nil {
					a.o.Logger.Debug("cannot hand away", "range", id, "op", "drain", "error", err)
				}
			})
		}
		wg.Wait()
		if left == 0 || !sleep(ctx, 20*time.Millisecond) {
			return
		}
	}
}

// heir picks the voter that shall lead next; 0 for none. Ranges are spread over
// the voters.
func (a *Agent) heir(rangeID, self uint64) uint64 {
	members, _, _ := a.d.Host.Membership(rangeID)
	var fit []uint64
	for _, p := range members {
		if p.GetReplicaId() != self && p.GetRole() == metapb.Role_ROLE_VOTER &&
			!a.watch.isSilent(p.GetStoreId()) {
			fit = append(fit, p.GetReplicaId())
		}
	}
	if len(fit) == 0 {
		return 0
	}
	return fit[rangeID%uint64(len(fit))]
}
