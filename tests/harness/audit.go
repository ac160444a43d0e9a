package harness

import (
	"context"
	"errors"
	"fmt"
	"time"

	metapb "github.com/ridgekv/ridge/proto/ridge/meta/v1"
	storepb "github.com/ridgekv/ridge/proto/ridge/store/v1"
	"github.com/ridgekv/ridge/storenode/inspect"
)

// replicaOf is a replica of a range.
type replicaOf struct{ rangeID, replicaID uint64 }

// members are the replicas that PD knows, by store.
func (c *Cluster) members(ctx context.Context) (map[uint64]map[replicaOf]bool, error) {
	routes, err := c.Routes(ctx)
	if err != nil {
		return nil, err
	}
	out := map[uint64]map[replicaOf]bool{}
	for _, r := range routes {
		for _, p := range r.GetRange().GetReplicas() {
			of := out[p.GetStoreId()]
			if of == nil {
				of = map[replicaOf]bool{}
				out[p.GetStoreId()] = of
			}
			of[replicaOf{r.GetRange().GetRangeId(), p.GetReplicaId()}] = true
		}
	}
	return out, nil
}

// AwaitNoStrays waits until no store that is up holds a replica that is not a
// member of its range: what came back after it was replaced has cleaned up.
func (c *Cluster) AwaitNoStrays(ctx context.Context, within time.Duration) error {
	return Eventually(ctx, within, "no store has a stray replica", func(ctx context.Context) error {
		members, err := c.members(ctx)
		if err != nil {
			return err
		}
		stores, err := c.pd.ListStores(ctx)
		if err != nil {
			return err
		}
		for _, s := range stores.GetStores() {
			if s.GetStore().GetState() == metapb.StoreState_STORE_STATE_GONE {
				continue
			}
			answer, err := c.pool.Store(s.GetStore().GetGrpcAddress()).ListReplicas(ctx,
				&storepb.ListReplicasRequest{})
			if err != nil {
				return err
			}
			id := s.GetStore().GetStoreId()
			for _, r := range answer.GetReplicas() {
				at := replicaOf{r.GetRange().GetRangeId(), r.GetReplicaId()}
				if !members[id][at] {
					return fmt.Errorf("store %d holds replica %d of range %d, which is no member", id,
						at.replicaID, at.rangeID)
				}
			}
		}
		return nil
	})
}

// Audit kills every store and reads its directory. By Law 2 each row lies in one
// slice and each slice has one owner; and a Raft log belongs to a replica.
func (c *Cluster) Audit() error {
	var faults []error
	for _, p := range c.Stores {
		p.Kill()
		report, err := inspect.Directory(p.Dir)
		if err != nil {
			return fmt.Errorf("harness: %s: %w", p.Name, err)
		}
		if report.Orphans > 0 || len(report.Shared) > 0 {
			faults = append(faults, fmt.Errorf("%s: %d of %d rows lie in no slice; %v", p.Name,
				report.Orphans, report.Rows, report.Shared))
		}
		here := map[replicaOf]bool{}
		for _, r := range report.Ranges {
			here[replicaOf{r.State.GetRangeId(), r.State.GetReplicaId()}] = true
		}
		for _, l := range report.Logs {
			if !here[replicaOf{l.RangeID, l.ReplicaID}] {
				faults = append(faults, fmt.Errorf("%s: a Raft log of replica %d of range %d is left",
					p.Name, l.ReplicaID, l.RangeID))
			}
		}
	}
	return errors.Join(faults...)
}

// Empty reports what is left in the directory of a store that has ended.
func (p *Process) Empty() error {
	report, err := inspect.Directory(p.Dir)
	if err != nil {
		return fmt.Errorf("harness: %s: %w", p.Name, err)
	}
	if n := len(report.Ranges) + len(report.Garbage) + len(report.Logs); n > 0 || report.Rows > 0 {
		return fmt.Errorf("harness: %s has %d replicas, %d slices, %d rows and %d Raft logs left",
			p.Name, len(report.Ranges), len(report.Garbage), report.Rows, len(report.Logs))
	}
	return nil
}
