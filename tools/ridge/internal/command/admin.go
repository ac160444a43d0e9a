package command

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/dustin/go-humanize"
	"github.com/spf13/cobra"

	"github.com/ridgekv/ridge/client/pdclient"
	metapb "github.com/ridgekv/ridge/proto/ridge/meta/v1"
	pdpb "github.com/ridgekv/ridge/proto/ridge/pd/v1"
)

// withPD opens a client of PD, runs body within the timeout and closes.
func (c *connection) withPD(
	cmd *cobra.Command, body func(ctx context.Context, pd *pdclient.Client) error,
) error {
	pd, err := c.pd(cmd.Context())
	if err != nil {
		return err
	}
	defer pd.Close()
	ctx, cancel := context.WithTimeout(cmd.Context(), c.timeout())
	defer cancel()
	return body(ctx, pd)
}

func newStoreList() *cobra.Command {
	var c connection
	cmd := &cobra.Command{
		Use: "list", Aliases: []string{"ls"}, Short: "List the stores of the cluster",
		Args: cobra.NoArgs,
	}
	return c.add(cmd, func(cmd *cobra.Command, _ []string) error {
		return c.withPD(cmd, func(ctx context.Context, pd *pdclient.Client) error {
			r, err := pd.ListStores(ctx)
			if err != nil {
				return err
			}
			stores := r.GetStores()
			slices.SortFunc(stores, func(a, b *pdpb.StoreInfo) int {
				return int(a.GetStore().GetStoreId()) - int(b.GetStore().GetStoreId())
			})
			if c.json() {
				return c.object(cmd.OutOrStdout(), map[string]any{"stores": storeObjects(stores)})
			}
			return c.table(cmd.OutOrStdout(), strings.Fields(
				"STORE STATE DISK GRPC RAFT RANGES LEADERS USED AVAILABLE HEARD LABELS VERSION"),
				storeRows(stores, time.Now()))
		})
	})
}

func storeObjects(stores []*pdpb.StoreInfo) []map[string]any {
	out := []map[string]any{}
	for _, s := range stores {
		st, stats := s.GetStore(), s.GetStats()
		labels := st.GetLabels()
		if labels == nil {
			labels = map[string]string{}
		}
		out = append(out, map[string]any{
			"store_id": st.GetStoreId(), "grpc_address": st.GetGrpcAddress(),
			"raft_address": st.GetRaftAddress(), "state": enumText(st.GetState(), "STORE_STATE_"),
			"disk_state": enumText(st.GetDiskState(), "DISK_STATE_"), "labels": labels,
			"version": st.GetVersion(), "capacity_bytes": stats.GetCapacityBytes(),
			"available_bytes": stats.GetAvailableBytes(), "used_bytes": stats.GetUsedBytes(),
			"range_count": stats.GetRangeCount(), "leader_count": stats.GetLeaderCount(),
			"poisoned_replicas":      stats.GetPoisonedReplicas(),
			"last_heartbeat_unix_ms": s.GetLastHeartbeatUnixMs(),
		})
	}
	return out
}

func storeRows(stores []*pdpb.StoreInfo, now time.Time) [][]string {
	var out [][]string
	for _, s := range stores {
		st, stats := s.GetStore(), s.GetStats()
		heard := "never"
		if ms := s.GetLastHeartbeatUnixMs(); ms != 0 {
			heard = now.Sub(time.UnixMilli(int64(ms))).Round(100*time.Millisecond).String() + " ago"
		}
		var labels []string
		for k, v := range st.GetLabels() {
			labels = append(labels, k+"="+v)
		}
		slices.Sort(labels)
		out = append(out, []string{
			id(st.GetStoreId()), enumText(st.GetState(), "STORE_STATE_"),
			enumText(st.GetDiskState(), "DISK_STATE_"), st.GetGrpcAddress(), st.GetRaftAddress(),
			id(stats.GetRangeCount()), id(stats.GetLeaderCount()), humanize.IBytes(stats.GetUsedBytes()),
			humanize.IBytes(stats.GetAvailableBytes()), heard, strings.Join(labels, ","), st.GetVersion(),
		})
	}
	return out
}

func newStatus() *cobra.Command {
	var c connection
	cmd := &cobra.Command{
		Use: "status", Short: "Show the cluster at a glance", Args: cobra.NoArgs,
	}
	return c.add(cmd, func(cmd *cobra.Command, _ []string) error {
		return c.withPD(cmd, func(ctx context.Context, pd *pdclient.Client) error {
			s, err := pd.Status(ctx)
			if err != nil {
				return err
			}
			m, err := pd.Members(ctx)
			if err != nil {
				return err
			}
			var stores []*pdpb.StoreInfo
			if s.GetBootstrapped() {
				r, err := pd.ListStores(ctx)
				if err != nil {
					return err
				}
				stores = r.GetStores()
			}
			return c.status(cmd, s, m, stores)
		})
	})
}

func (c *connection) status(
	cmd *cobra.Command, s *pdpb.StatusResponse, m *pdpb.MembersResponse, stores []*pdpb.StoreInfo,
) error {
	up := 0
	for _, st := range stores {
		if st.GetStore().GetState() == metapb.StoreState_STORE_STATE_UP {
			up++
		}
	}
	var members []map[string]any
	var rows [][]string
	for _, p := range m.GetMembers() {
		leads := p.GetMemberId() == m.GetLeaderId()
		members = append(members, map[string]any{
			"member_id": p.GetMemberId(), "grpc_address": p.GetGrpcAddress(),
			"raft_address": p.GetRaftAddress(), "leader": leads,
		})
		role := ""
		if leads {
			role = " (leader)"
		}
		rows = append(rows, []string{"pd " + id(p.GetMemberId()), p.GetGrpcAddress() + role})
	}
	config := s.GetConfig()
	if c.json() {
		return c.object(cmd.OutOrStdout(), map[string]any{
			"cluster_id": s.GetClusterId(), "bootstrapped": s.GetBootstrapped(), "members": members,
			"leader_id": m.GetLeaderId(), "version": s.GetVersion(), "range_count": s.GetRangeCount(),
			"store_count": s.GetStoreCount(), "up_store_count": up, "timestamp": s.GetTimestamp(),
			"operator_count": s.GetOperatorCount(), "replicas": config.GetReplicas(),
			"split_size_bytes": config.GetSplitSizeBytes(), "retention_ms": config.GetRetentionMs(),
		})
	}
	bootstrapped := "yes"
	if !s.GetBootstrapped() {
		bootstrapped = "no: waiting for the first store"
	}
	rows = append([][]string{
		{"cluster", id(s.GetClusterId())},
		{"bootstrapped", bootstrapped},
		{"version", s.GetVersion()},
	}, rows...)
	rows = append(rows,
		[]string{"stores", fmt.Sprintf("%d, %d up", s.GetStoreCount(), up)},
		[]string{"ranges", id(s.GetRangeCount())},
		[]string{"operators", id(s.GetOperatorCount())},
		[]string{"replicas", strconv.FormatUint(uint64(config.GetReplicas()), 10)},
		[]string{"split size", humanize.IBytes(config.GetSplitSizeBytes())},
		[]string{"retention", (time.Duration(config.GetRetentionMs()) * time.Millisecond).String()},
	)
	return c.table(cmd.OutOrStdout(), []string{"WHAT", "VALUE"}, rows)
}

func id(n uint64) string { return strconv.FormatUint(n, 10) }
