package agent

import (
	"context"
	"errors"
	"maps"
	"sync"
	"time"

	"github.com/ridgekv/ridge/client/storeclient"
	"github.com/ridgekv/ridge/proto/errs"
	metapb "github.com/ridgekv/ridge/proto/ridge/meta/v1"
	storepb "github.com/ridgekv/ridge/proto/ridge/store/v1"
	"github.com/ridgekv/ridge/storenode/internal/catalog"
)

const (
	// learnerPeriod is how often learners are asked how far they are.
	learnerPeriod = 200 * time.Millisecond
	// closeEntries is how far behind its leader a learner may be and still
	// count as a full copy: it reads by itself, so it is following.
	closeEntries = 1024
	askTimeout   = time.Second
)

// replicaKey names a replica anywhere.
type replicaKey struct{ rangeID, replicaID uint64 }

// health is what is known of learners: those of led ranges, asked at their
// stores, and those here, which try to read.
type health struct {
	mu struct {
		sync.Mutex
		// ready are learners elsewhere that are full copies.
		ready map[replicaKey]bool
		// read are learners here that have answered a read of their own.
		read map[replicaKey]bool
	}
}

func newHealth() *health {
	h := &health{}
	h.mu.ready = map[replicaKey]bool{}
	h.mu.read = map[replicaKey]bool{}
	return h
}

// lagging reports whether p is a learner that is not known to be a full copy.
func (h *health) lagging(rangeID uint64, p *metapb.Replica) bool {
	if p.GetRole() != metapb.Role_ROLE_LEARNER {
		return false
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	return !h.mu.ready[replicaKey{rangeID, p.GetReplicaId()}]
}

func (h *health) hasRead(rangeID, replicaID uint64) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.mu.read[replicaKey{rangeID, replicaID}]
}

func (h *health) setRead(k replicaKey) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.mu.read[k] = true
}

// settle replaces what is known of learners elsewhere, and forgets the local
// ones that are gone. It reports whether PD has to hear of it.
func (h *health) settle(ready, local map[replicaKey]bool) (changed bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	changed = !maps.Equal(h.mu.ready, ready)
	h.mu.ready = ready
	for k := range h.mu.read {
		if !local[k] {
			delete(h.mu.read, k)
		}
	}
	return changed
}

// lookAfterLearners asks the stores of learners of led ranges how far they are.
func (a *Agent) lookAfterLearners(ctx context.Context) error {
	return every(ctx, learnerPeriod, func(ctx context.Context) error {
		ready, local := map[replicaKey]bool{}, map[replicaKey]bool{}
		for _, r := range a.d.Catalog.Replicas() {
			local[replicaKey{r.RangeID(), r.State().ReplicaID()}] = true
			if !a.d.Host.Leader(r.RangeID()).Self {
				continue
			}
			members, _, _ := a.d.Host.Membership(r.RangeID())
			for _, p := range members {
				if p.GetRole() == metapb.Role_ROLE_LEARNER && a.askLearner(ctx, r, p) {
					ready[replicaKey{r.RangeID(), p.GetReplicaId()}] = true
				}
			}
		}
		if a.health.settle(ready, local) {
			a.Kick()
		}
		return nil
	})
}

// askLearner reports whether learner p of r says that it has read by itself and
// is close to its leader.
func (a *Agent) askLearner(ctx context.Context, r *catalog.Replica, p *metapb.Replica) bool {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	applied := r.Applied().Index
	s, err := a.askReplica(ctx, r.RangeID(), p)
	return err == nil && s.GetState() == "normal" && s.GetAppliedIndex()+closeEntries >= applied
}

// errSilent: the store of a replica is unknown, or not heard.
var errSilent = errors.New("agent: the store of the replica is not heard")

// askReplica asks the store of p how p is.
func (a *Agent) askReplica(
	ctx context.Context, rangeID uint64, p *metapb.Replica,
) (*storepb.ReplicaStatus, error) {
	store, ok := a.d.Book.Store(p.GetStoreId())
	if !ok || a.watch.isSilent(p.GetStoreId()) {
		return nil, errSilent
	}
	answer, err := a.d.Pool.Store(store.GetGrpcAddress()).ListReplicas(
		storeclient.WithStoreID(ctx, p.GetStoreId()),
		&storepb.ListReplicasRequest{RangeId: rangeID})
	if err == nil {
		err = errs.FromProto(answer.GetError())
	}
	if err != nil {
		return nil, err
	}
	for _, s := range answer.GetReplicas() {
		if s.GetReplicaId() == p.GetReplicaId() {
			return s, nil
		}
	}
	return nil, errNotHere
}

// readAsLearner lets the learners here read until a read succeeds.
func (a *Agent) readAsLearner(ctx context.Context) error {
	return every(ctx, learnerPeriod, func(ctx context.Context) error {
		for _, r := range a.d.Catalog.Replicas() {
			s := r.State()
			if s.Role() != metapb.Role_ROLE_LEARNER || !s.Serving() ||
				a.health.hasRead(r.RangeID(), s.ReplicaID()) {
				continue
			}
			one, cancel := context.WithTimeout(ctx, askTimeout)
			err := a.d.Host.CaughtUp(one, r.RangeID())
			cancel()
			if err == nil {
				a.health.setRead(replicaKey{r.RangeID(), s.ReplicaID()})
				a.Kick()
			}
		}
		return nil
	})
}
