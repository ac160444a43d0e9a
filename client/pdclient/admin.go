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

// DrainStore lets a store give its leaders away.
func (c *Client) DrainStore(ctx context.Context, id uint64) (*pdpb.DrainStoreResponse, error) {
	return admin(ctx, c, "drain store", pdpb.PDAdminServiceClient.DrainStore,
		&pdpb.DrainStoreRequest{Header: c.header(), StoreId: id})
}

// DecommissionStore lets a store give its replicas away and go for ever.
func (c *Client) DecommissionStore(
	ctx context.Context, id uint64,
) (*pdpb.DecommissionStoreResponse, error) {
	return admin(ctx, c, "decommission store", pdpb.PDAdminServiceClient.DecommissionStore,
		&pdpb.DecommissionStoreRequest{Header: c.header(), StoreId: id})
}

// ResumeStore calls a store back that drains or leaves.
func (c *Client) ResumeStore(ctx context.Context, id uint64) (*pdpb.ResumeStoreResponse, error) {
	return admin(ctx, c, "resume store", pdpb.PDAdminServiceClient.ResumeStore,
		&pdpb.ResumeStoreRequest{Header: c.header(), StoreId: id})
}

// ForgetStore declares a lost store gone, for ever.
func (c *Client) ForgetStore(ctx context.Context, id uint64) (*pdpb.ForgetStoreResponse, error) {
	return admin(ctx, c, "forget store", pdpb.PDAdminServiceClient.ForgetStore,
		&pdpb.ForgetStoreRequest{Header: c.header(), StoreId: id})
}

// DescribeStore tells what is left on a store, and what keeps it there.
func (c *Client) DescribeStore(
	ctx context.Context, id uint64,
) (*pdpb.DescribeStoreResponse, error) {
	return admin(ctx, c, "describe store", pdpb.PDAdminServiceClient.DescribeStore,
		&pdpb.DescribeStoreRequest{Header: c.header(), StoreId: id})
}

// Explain tells the last decisions about something, and why nothing else is
// done. It fills in r.Header.
func (c *Client) Explain(
	ctx context.Context, r *pdpb.ExplainRequest,
) (*pdpb.ExplainResponse, error) {
	r.Header = c.header()
	return admin(ctx, c, "explain", pdpb.PDAdminServiceClient.Explain, r)
}

// MakePlan runs PD's planners on a picture of the cluster. It changes nothing.
func (c *Client) MakePlan(
	ctx context.Context, subject *pdpb.PlanSubject,
) (*pdpb.MakePlanResponse, error) {
	return admin(ctx, c, "make plan", pdpb.PDAdminServiceClient.MakePlan,
		&pdpb.MakePlanRequest{Header: c.header(), Subject: subject})
}

// ApplyPlan carries a plan out that PD has made.
func (c *Client) ApplyPlan(ctx context.Context, id string) (*pdpb.ApplyPlanResponse, error) {
	return admin(ctx, c, "apply plan", pdpb.PDAdminServiceClient.ApplyPlan,
		&pdpb.ApplyPlanRequest{Header: c.header(), PlanId: id})
}

// GetPlanProgress tells how far a plan is; an empty id asks for the last one.
func (c *Client) GetPlanProgress(
	ctx context.Context, id string,
) (*pdpb.GetPlanProgressResponse, error) {
	return admin(ctx, c, "get plan progress", pdpb.PDAdminServiceClient.GetPlanProgress,
		&pdpb.GetPlanProgressRequest{Header: c.header(), PlanId: id})
}

// StopPlan begins no more moves of a plan.
func (c *Client) StopPlan(ctx context.Context, id string) (*pdpb.StopPlanResponse, error) {
	return admin(ctx, c, "stop plan", pdpb.PDAdminServiceClient.StopPlan,
		&pdpb.StopPlanRequest{Header: c.header(), PlanId: id})
}

// WhatIf tells what the loss of stores would mean, or their restart.
func (c *Client) WhatIf(
	ctx context.Context, restart bool, stores ...uint64,
) (*pdpb.WhatIfResponse, error) {
	return admin(ctx, c, "what if", pdpb.PDAdminServiceClient.WhatIf,
		&pdpb.WhatIfRequest{Header: c.header(), StoreIds: stores, Restart: restart})
}

// JoinMember asks for the admission of a new PD node. It fills in r.Header.
func (c *Client) JoinMember(
	ctx context.Context, r *pdpb.JoinMemberRequest,
) (*pdpb.JoinMemberResponse, error) {
	r.Header = c.header()
	return admin(ctx, c, "join", pdpb.PDAdminServiceClient.JoinMember, r)
}

// RemoveMember takes a PD node out, for ever.
func (c *Client) RemoveMember(
	ctx context.Context, id uint64,
) (*pdpb.RemoveMemberResponse, error) {
	return admin(ctx, c, "remove pd", pdpb.PDAdminServiceClient.RemoveMember,
		&pdpb.RemoveMemberRequest{Header: c.header(), MemberId: id})
}
