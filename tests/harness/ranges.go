package harness

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/ridgekv/ridge/proto/errs"
	"github.com/ridgekv/ridge/proto/keys"
	metapb "github.com/ridgekv/ridge/proto/ridge/meta/v1"
	pdpb "github.com/ridgekv/ridge/proto/ridge/pd/v1"
	storepb "github.com/ridgekv/ridge/proto/ridge/store/v1"
)

// Routes asks PD for all ranges, in the order of their keys.
func (c *Cluster) Routes(ctx context.Context) ([]*pdpb.Route, error) {
	var all []*pdpb.Route
	span := keys.All()
	for {
		r, err := c.pd.ListRoutes(ctx, span, 0)
		if err != nil {
			return nil, err
		}
		all = append(all, r.GetRoutes()...)
		if !r.GetMore() || len(r.GetRoutes()) == 0 {
			return all, nil
		}
		last := r.GetRoutes()[len(r.GetRoutes())-1]
		if span.Start = last.GetRange().GetSpan().GetEnd(); len(span.Start) == 0 {
			return all, nil
		}
	}
}

// voters is how many a range shall have with the stores there are.
func (c *Cluster) voters() int {
	c.mu.Lock()
	n := min(c.o.Replicas, len(c.Stores))
	c.mu.Unlock()
	return n - 1 + n%2
}

// AwaitReplicated waits until the ranges cover the keyspace, each with a leader
// and with as many voters as there are stores for.
func (c *Cluster) AwaitReplicated(ctx context.Context) error {
	want := c.voters()
	return Eventually(ctx, 2*time.Minute, "every range has its voters",
		func(ctx context.Context) error {
			routes, err := c.Routes(ctx)
			if err != nil {
				return err
			}
			return checkRoutes(routes, want)
		})
}

func checkRoutes(routes []*pdpb.Route, voters int) error {
	if len(routes) == 0 {
		return errors.New("there is no range")
	}
	var end []byte
	for i, r := range routes {
		g := r.GetRange()
		span := keys.FromProto(g.GetSpan())
		if string(span.Start) != string(end) || (i > 0 && len(end) == 0) {
			return fmt.Errorf("range %d begins at %s, the one before ends at %s", g.GetRangeId(),
				keys.Format(span.Start), keys.Format(end))
		}
		end = span.End
		if n := countVoters(g); n != voters {
			return fmt.Errorf("range %d has %d voters, not %d", g.GetRangeId(), n, voters)
		}
		if r.GetLeader().GetStoreId() == 0 {
			return fmt.Errorf("range %d has no leader", g.GetRangeId())
		}
	}
	if len(end) != 0 {
		return fmt.Errorf("no range holds the keys from %s on", keys.Format(end))
	}
	return nil
}

func countVoters(g *metapb.Range) int {
	n := 0
	for _, p := range g.GetReplicas() {
		if p.GetRole() == metapb.Role_ROLE_VOTER {
			n++
		}
	}
	return n
}

// AwaitRanges waits until there are at least n ranges.
func (c *Cluster) AwaitRanges(ctx context.Context, n int, within time.Duration) error {
	return Eventually(ctx, within, fmt.Sprintf("there are %d ranges", n),
		func(ctx context.Context) error {
			routes, err := c.Routes(ctx)
			if err == nil && len(routes) < n {
				err = fmt.Errorf("there are %d", len(routes))
			}
			return err
		})
}

// Split splits at key and waits until PD knows both halves.
func (c *Cluster) Split(ctx context.Context, key []byte) error {
	return Eventually(ctx, 30*time.Second, "split at "+keys.Format(key),
		func(ctx context.Context) error {
			r, err := c.pd.GetRoute(ctx, key)
			if err != nil {
				return err
			}
			if string(r.GetRoute().GetRange().GetSpan().GetStart()) == string(key) {
				return nil
			}
			if _, err := c.pd.SplitRange(ctx, key); err != nil {
				return err
			}
			return errors.New("PD was asked")
		})
}

// StoreAt returns the process of a store by its id.
func (c *Cluster) StoreAt(ctx context.Context, storeID uint64) (*Process, error) {
	r, err := c.pd.ListStores(ctx)
	if err != nil {
		return nil, err
	}
	for _, s := range r.GetStores() {
		if s.GetStore().GetStoreId() != storeID {
			continue
		}
		for _, p := range c.Stores {
			if p.GRPC == s.GetStore().GetGrpcAddress() {
				return p, nil
			}
		}
	}
	return nil, fmt.Errorf("harness: no process of store %d", storeID)
}

// StoreID returns the id of the store that the process is.
func (c *Cluster) StoreID(ctx context.Context, p *Process) (uint64, error) {
	r, err := c.pd.ListStores(ctx)
	if err != nil {
		return 0, err
	}
	for _, s := range r.GetStores() {
		if s.GetStore().GetGrpcAddress() == p.GRPC {
			return s.GetStore().GetStoreId(), nil
		}
	}
	return 0, fmt.Errorf("harness: PD does not know %s", p.Name)
}

// LeaderOf returns the store that leads the range of key.
func (c *Cluster) LeaderOf(ctx context.Context, key []byte) (*Process, error) {
	r, err := c.pd.GetRoute(ctx, key)
	if err != nil {
		return nil, err
	}
	return c.StoreAt(ctx, r.GetRoute().GetLeader().GetStoreId())
}

// PDLeader returns the PD node that leads.
func (c *Cluster) PDLeader(ctx context.Context) (*Process, error) {
	m, err := c.pd.Members(ctx)
	if err != nil {
		return nil, err
	}
	for _, p := range m.GetMembers() {
		for _, process := range c.PDs {
			if p.GetMemberId() == m.GetLeaderId() && p.GetGrpcAddress() == process.GRPC {
				return process, nil
			}
		}
	}
	return nil, errors.New("harness: PD has no leader")
}

// Checked is what a comparison of replicas has seen.
type Checked struct {
	Ranges, Replicas int
	Keys, Bytes      uint64
}

// AwaitEqual waits until all replicas of every range hold the same visible
// rows: the leader's checksum is taken, and the others' at that index or
// later. There must be no writes meanwhile.
func (c *Cluster) AwaitEqual(ctx context.Context, within time.Duration) (Checked, error) {
	var seen Checked
	err := Eventually(ctx, within, "replicas are equal", func(ctx context.Context) error {
		routes, err := c.Routes(ctx)
		if err != nil {
			return err
		}
		if err := checkRoutes(routes, c.voters()); err != nil {
			return err
		}
		addresses, err := c.storeAddresses(ctx)
		if err != nil {
			return err
		}
		seen = Checked{}
		for _, r := range routes {
			if err := c.compare(ctx, r, addresses, &seen); err != nil {
				return err
			}
		}
		return nil
	})
	return seen, err
}

func (c *Cluster) storeAddresses(ctx context.Context) (map[uint64]string, error) {
	r, err := c.pd.ListStores(ctx)
	if err != nil {
		return nil, err
	}
	out := map[uint64]string{}
	for _, s := range r.GetStores() {
		out[s.GetStore().GetStoreId()] = s.GetStore().GetGrpcAddress()
	}
	return out, nil
}

func (c *Cluster) compare(
	ctx context.Context, route *pdpb.Route, addresses map[uint64]string, seen *Checked,
) error {
	g, leader := route.GetRange(), route.GetLeader().GetStoreId()
	want, err := c.checksum(ctx, addresses[leader], g.GetRangeId(), 0)
	if err != nil {
		return err
	}
	if e := g.GetEpoch().GetSpan(); want.GetSpanEpoch() != e {
		// What it has given to a child is in none of the routes.
		return fmt.Errorf("range %d has span epoch %d, and its route %d",
			g.GetRangeId(), want.GetSpanEpoch(), e)
	}
	for _, p := range g.GetReplicas() {
		got := want
		if p.GetStoreId() != leader {
			got, err = c.checksum(ctx, addresses[p.GetStoreId()], g.GetRangeId(), want.GetAppliedIndex())
		}
		if err != nil {
			return fmt.Errorf("range %d on store %d: %w", g.GetRangeId(), p.GetStoreId(), err)
		}
		if got.GetChecksum() != want.GetChecksum() || got.GetKeyCount() != want.GetKeyCount() ||
			got.GetSpanEpoch() != want.GetSpanEpoch() {
			return fmt.Errorf("range %d: store %d holds %d keys, checksum %x, at index %d; "+
				"store %d, which leads, %d keys, %x, at %d", g.GetRangeId(), p.GetStoreId(),
				got.GetKeyCount(), got.GetChecksum(), got.GetAppliedIndex(), leader,
				want.GetKeyCount(), want.GetChecksum(), want.GetAppliedIndex())
		}
		seen.Replicas++
	}
	seen.Ranges++
	seen.Keys += want.GetKeyCount()
	seen.Bytes += want.GetSizeBytes()
	return nil
}

func (c *Cluster) checksum(
	ctx context.Context, address string, rangeID, index uint64,
) (*storepb.ChecksumResponse, error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	r, err := c.pool.Store(address).Checksum(ctx, &storepb.ChecksumRequest{
		RangeId: rangeID, MinAppliedIndex: index,
	})
	if err != nil {
		return nil, err
	}
	return r, errs.FromProto(r.GetError())
}
