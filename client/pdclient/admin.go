package pdclient

import (
	"context"
	"time"

	pdpb "github.com/ridgekv/ridge/proto/ridge/pd/v1"
)

// admin is call for the service of people and scripts, on the leader.
func admin[Req any, Resp answer](
	ctx context.Context, c *Client, op string,
	do method[pdpb.PDAdminServiceClient, Req, Resp], r Req,
) (Resp, error) {
	return call(ctx, c, op, toLeader, 5*c.o.TryTimeout, do, r)
}

// ListSettings returns PD's settings.
func (c *Client) ListSettings(ctx context.Context) (*pdpb.ListSettingsResponse, error) {
	return admin(ctx, c, "list settings", pdpb.PDAdminServiceClient.ListSettings,
		&pdpb.ListSettingsRequest{Header: c.header()})
}

// SetSettings changes PD's settings: all that are named, or none.
func (c *Client) SetSettings(
	ctx context.Context, set map[string]string, unset ...string,
) (*pdpb.SetSettingsResponse, error) {
	return admin(ctx, c, "set settings", pdpb.PDAdminServiceClient.SetSettings,
		&pdpb.SetSettingsRequest{Header: c.header(), Set: set, Unset: unset})
}

// GetSchedule tells whether planning is paused.
func (c *Client) GetSchedule(ctx context.Context) (*pdpb.GetScheduleResponse, error) {
	return admin(ctx, c, "get schedule", pdpb.PDAdminServiceClient.GetSchedule,
		&pdpb.GetScheduleRequest{Header: c.header()})
}

// PauseSchedule keeps PD from balancing for a time, and from repairing too if
// all is set; a time of 0 resumes.
func (c *Client) PauseSchedule(
	ctx context.Context, length time.Duration, all bool,
) (*pdpb.SetScheduleResponse, error) {
	return admin(ctx, c, "set schedule", pdpb.PDAdminServiceClient.SetSchedule,
		&pdpb.SetScheduleRequest{
			Header: c.header(), ForMs: uint64(length.Milliseconds()), All: all,
		})
}

// CancelOperator ends a change in flight.
func (c *Client) CancelOperator(
	ctx context.Context, operatorID uint64,
) (*pdpb.CancelOperatorResponse, error) {
	return admin(ctx, c, "cancel operator", pdpb.PDAdminServiceClient.CancelOperator,
		&pdpb.CancelOperatorRequest{Header: c.header(), OperatorId: operatorID})
}

// MoveReplica moves a replica by hand. force allows a failure domain that holds
// one already.
func (c *Client) MoveReplica(
	ctx context.Context, rangeID, from, to uint64, force bool,
) (*pdpb.MoveReplicaResponse, error) {
	return admin(ctx, c, "move replica", pdpb.PDAdminServiceClient.MoveReplica,
		&pdpb.MoveReplicaRequest{
			Header: c.header(), RangeId: rangeID, FromStoreId: from, ToStoreId: to, Force: force,
		})
}

// MoveLeader moves the leadership of a range by hand.
func (c *Client) MoveLeader(
	ctx context.Context, rangeID, storeID uint64,
) (*pdpb.MoveLeaderResponse, error) {
	return admin(ctx, c, "move leader", pdpb.PDAdminServiceClient.MoveLeader,
		&pdpb.MoveLeaderRequest{Header: c.header(), RangeId: rangeID, StoreId: storeID})
}
