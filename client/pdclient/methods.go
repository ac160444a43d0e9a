package pdclient

import (
	"context"
	"time"

	"github.com/ridgekv/ridge/proto/keys"
	pdpb "github.com/ridgekv/ridge/proto/ridge/pd/v1"
	"github.com/ridgekv/ridge/proto/ts"
)

// Members lists the PD nodes. Any node answers.
func (c *Client) Members(ctx context.Context) (*pdpb.MembersResponse, error) {
	r, err := call(ctx, c, "members", toAny, c.o.TryTimeout,
		pdpb.PDServiceClient.Members, &pdpb.MembersRequest{})
	if err == nil {
		c.learnCluster(r.GetClusterId())
	}
	return r, err
}

// Status asks the leader, or any node while there is none.
func (c *Client) Status(ctx context.Context) (*pdpb.StatusResponse, error) {
	c.members.mu.Lock()
	leader := c.members.mu.leader
	c.members.mu.Unlock()
	if leader != "" {
		if r, err := c.StatusOf(ctx, leader); err == nil {
			return r, nil
		}
		c.members.failed(leader)
	}
	r, err := call(ctx, c, "status", toAny, c.o.TryTimeout,
		pdpb.PDServiceClient.Status, &pdpb.StatusRequest{})
	if err == nil {
		c.learnCluster(r.GetClusterId())
	}
	return r, err
}

// StatusOf asks exactly the PD node at address, once.
func (c *Client) StatusOf(ctx context.Context, address string) (*pdpb.StatusResponse, error) {
	ctx, cancel := c.bound(ctx)
	defer cancel()
	client, err := c.members.at(address)
	if err != nil {
		return nil, err
	}
	r, err := try(ctx, client, c.o.TryTimeout, pdpb.PDServiceClient.Status, &pdpb.StatusRequest{})
	if err != nil {
		return nil, transportError{op: "status", addr: address, err: err}
	}
	if p := r.GetError(); p != nil {
		return nil, fromProto("status", p)
	}
	c.learnCluster(r.GetClusterId())
	return r, nil
}

// RegisterStore admits a store to the cluster. It fills in r.Header. An answer
// that got lost makes it ask again: PD must know the store by its addresses.
func (c *Client) RegisterStore(
	ctx context.Context, r *pdpb.RegisterStoreRequest,
) (*pdpb.RegisterStoreResponse, error) {
	r.Header = c.header()
	resp, err := call(ctx, c, "register store", toLeader, 5*c.o.TryTimeout,
		pdpb.PDServiceClient.RegisterStore, r)
	if err == nil {
		c.learnCluster(resp.GetClusterId())
	}
	return resp, err
}

// StoreHeartbeat reports a store. It fills in r.Header.
func (c *Client) StoreHeartbeat(
	ctx context.Context, r *pdpb.StoreHeartbeatRequest,
) (*pdpb.StoreHeartbeatResponse, error) {
	r.Header = c.header()
	return call(ctx, c, "store heartbeat", toLeader, c.o.TryTimeout,
		pdpb.PDServiceClient.StoreHeartbeat, r)
}

// AllocateIDs returns the first of count consecutive ids, never given before.
func (c *Client) AllocateIDs(ctx context.Context, count uint32) (first uint64, err error) {
	r, err := call(ctx, c, "allocate ids", toLeader, c.o.TryTimeout,
		pdpb.PDServiceClient.AllocateIds,
		&pdpb.AllocateIdsRequest{Header: c.header(), Count: count})
	return r.GetFirst(), err
}

// AskSplit reserves the ids of a child range. It fills in r.Header.
func (c *Client) AskSplit(
	ctx context.Context, r *pdpb.AskSplitRequest,
) (*pdpb.AskSplitResponse, error) {
	r.Header = c.header()
	return call(ctx, c, "ask split", toLeader, c.o.TryTimeout, pdpb.PDServiceClient.AskSplit, r)
}

// ReportSplit tells both halves of a split at once. It fills in r.Header.
func (c *Client) ReportSplit(
	ctx context.Context, r *pdpb.ReportSplitRequest,
) (*pdpb.ReportSplitResponse, error) {
	r.Header = c.header()
	return call(ctx, c, "report split", toLeader, c.o.TryTimeout,
		pdpb.PDServiceClient.ReportSplit, r)
}

// GetRoute returns the range that holds key, and the stores of its replicas.
func (c *Client) GetRoute(ctx context.Context, key []byte) (*pdpb.GetRouteResponse, error) {
	return call(ctx, c, "get route", toLeader, c.o.TryTimeout, pdpb.PDServiceClient.GetRoute,
		&pdpb.GetRouteRequest{Header: c.header(), Key: key})
}

// ListRoutes returns one page of the routes that overlap span; limit 0 is PD's
// choice. While the answer says More, go on at the end of its last route.
func (c *Client) ListRoutes(
	ctx context.Context, span keys.Span, limit uint32,
) (*pdpb.ListRoutesResponse, error) {
	return call(ctx, c, "list routes", toLeader, c.o.TryTimeout, pdpb.PDServiceClient.ListRoutes,
		&pdpb.ListRoutesRequest{Header: c.header(), Span: span.Proto(), Limit: limit})
}

// GetRange returns a range by its id.
func (c *Client) GetRange(ctx context.Context, rangeID uint64) (*pdpb.GetRangeResponse, error) {
	return call(ctx, c, "get range", toLeader, c.o.TryTimeout, pdpb.PDServiceClient.GetRange,
		&pdpb.GetRangeRequest{Header: c.header(), RangeId: rangeID})
}

// SplitRange asks PD to split the range that holds key at key.
func (c *Client) SplitRange(ctx context.Context, key []byte) (*pdpb.SplitRangeResponse, error) {
	return call(ctx, c, "split range", toLeader, c.o.TryTimeout, pdpb.PDServiceClient.SplitRange,
		&pdpb.SplitRangeRequest{Header: c.header(), Key: key})
}

// ListStores returns every store PD knows.
func (c *Client) ListStores(ctx context.Context) (*pdpb.ListStoresResponse, error) {
	return call(ctx, c, "list stores", toLeader, c.o.TryTimeout, pdpb.PDServiceClient.ListStores,
		&pdpb.ListStoresRequest{Header: c.header()})
}

// SetRule creates or replaces a placement rule.
func (c *Client) SetRule(
	ctx context.Context, rule *pdpb.PlacementRule,
) (*pdpb.SetRuleResponse, error) {
	return call(ctx, c, "set rule", toLeader, c.o.TryTimeout,
		pdpb.PDServiceClient.SetRule, &pdpb.SetRuleRequest{Header: c.header(), Rule: rule})
}

// DeleteRule removes a placement rule.
func (c *Client) DeleteRule(ctx context.Context, id string) (*pdpb.DeleteRuleResponse, error) {
	return call(ctx, c, "delete rule", toLeader, c.o.TryTimeout,
		pdpb.PDServiceClient.DeleteRule, &pdpb.DeleteRuleRequest{Header: c.header(), Id: id})
}

// ListRules lists the placement rules.
func (c *Client) ListRules(ctx context.Context) (*pdpb.ListRulesResponse, error) {
	return call(ctx, c, "list rules", toLeader, c.o.TryTimeout,
		pdpb.PDServiceClient.ListRules, &pdpb.ListRulesRequest{Header: c.header()})
}

// ListOperators returns the changes in flight, and why PD does not make others.
func (c *Client) ListOperators(ctx context.Context) (*pdpb.ListOperatorsResponse, error) {
	return call(ctx, c, "list operators", toLeader, c.o.TryTimeout,
		pdpb.PDServiceClient.ListOperators, &pdpb.ListOperatorsRequest{Header: c.header()})
}

// GetSafePoint returns the safe points and the holds.
func (c *Client) GetSafePoint(ctx context.Context) (*pdpb.GetSafePointResponse, error) {
	return call(ctx, c, "get safe point", toLeader, c.o.TryTimeout,
		pdpb.PDServiceClient.GetSafePoint, &pdpb.GetSafePointRequest{Header: c.header()})
}

// SetHold creates or renews a hold that keeps history at or above at. It
// returns PD's GC safe point.
func (c *Client) SetHold(
	ctx context.Context, id string, at ts.Timestamp, ttl time.Duration,
) (ts.Timestamp, error) {
	r, err := call(ctx, c, "set hold", toLeader, c.o.TryTimeout, pdpb.PDServiceClient.SetHold,
		&pdpb.SetHoldRequest{
			Header: c.header(), HoldId: id, Ts: uint64(at), TtlMs: uint64(ttl.Milliseconds()),
		})
	return ts.Timestamp(r.GetGcSafePoint()), err
}

// ReleaseHold drops a hold. Dropping one that does not exist is no error.
func (c *Client) ReleaseHold(ctx context.Context, id string) error {
	_, err := call(ctx, c, "release hold", toLeader, c.o.TryTimeout,
		pdpb.PDServiceClient.ReleaseHold,
		&pdpb.ReleaseHoldRequest{Header: c.header(), HoldId: id})
	return err
}
