package agent

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/ridgekv/ridge/client/pdclient"
	logpb "github.com/ridgekv/ridge/proto/ridge/log/v1"
	metapb "github.com/ridgekv/ridge/proto/ridge/meta/v1"
	pdpb "github.com/ridgekv/ridge/proto/ridge/pd/v1"
	"github.com/ridgekv/ridge/proto/ts"
	"github.com/ridgekv/ridge/storenode/internal/evaluate"
)

// Register tells PD about the store and returns its answer. It tries until ctx
// ends or PD refuses for good.
func Register(
	ctx context.Context, pd *pdclient.Client, r *pdpb.RegisterStoreRequest,
) (*pdpb.RegisterStoreResponse, error) {
	pause := time.Duration(0)
	for {
		answer, err := pd.RegisterStore(ctx, r)
		if err == nil {
			return answer, nil
		}
		if final(err) {
			return nil, fmt.Errorf("%w: %w", ErrRefused, err)
		}
		pause = nextPause(pause, err)
		if !sleep(ctx, pause) {
			return nil, fmt.Errorf("agent: register: %w", err)
		}
	}
}

// final reports whether PD will never accept this store as it is.
func final(err error) bool {
	e, ok := errors.AsType[pdclient.Error](err)
	if !ok {
		return false
	}
	switch e.Reason {
	case pdpb.PDErrorReason_PD_ERROR_REASON_CLUSTER_MISMATCH,
		pdpb.PDErrorReason_PD_ERROR_REASON_STORE_GONE,
		pdpb.PDErrorReason_PD_ERROR_REASON_STORE_DUPLICATE,
		pdpb.PDErrorReason_PD_ERROR_REASON_ADDRESS_IN_USE,
		pdpb.PDErrorReason_PD_ERROR_REASON_INVALID_ARGUMENT:
		return true
	}
	return false
}

// Welcome takes over what PD answered to a registration: addresses, time,
// configuration, and the first range if this store shall bear it.
func (a *Agent) Welcome(ctx context.Context, r *pdpb.RegisterStoreResponse) error {
	a.Configure(r.GetConfig())
	a.d.Clock.Saw(ts.Timestamp(r.GetTimestamp()))
	if err := a.d.Book.Learn(r.GetStores()); err != nil {
		return err
	}
	if first := r.GetFirstRange(); first != nil {
		if err := a.d.Host.BearFirst(ctx, first); err != nil {
			return fmt.Errorf("agent: bear the first range: %w", err)
		}
		a.o.Logger.Info("first range is here", "range", first.GetRangeId())
		a.Kick()
	}
	return nil
}

// heartbeats reports the store until ctx ends.
func (a *Agent) heartbeats(ctx context.Context) error {
	failing := false
	known, err := KnownPDs(a.d.Engine)
	if err != nil {
		a.o.Logger.Warn("PD's addresses are not known", "error", err)
	}
	return every(ctx, a.o.HeartbeatInterval, func(ctx context.Context) error {
		one, cancel := context.WithTimeout(ctx, max(a.o.HeartbeatInterval, time.Second))
		defer cancel()
		answer, err := a.d.PD.StoreHeartbeat(one, a.storeReport())
		if err != nil {
			if final(err) && ctx.Err() == nil {
				return fmt.Errorf("%w: %w", ErrRefused, err)
			}
			if !failing && ctx.Err() == nil {
				a.o.Logger.Warn("PD does not answer", "op", "heartbeat", "error", err)
			}
			failing = true
			return nil
		}
		if failing {
			a.o.Logger.Info("PD answers again", "op", "heartbeat")
		}
		failing = false
		a.metrics.heartbeats.Inc()
		a.Configure(answer.GetConfig())
		a.d.Engine.SetSafePoint(ts.Timestamp(answer.GetGcSafePoint()))
		if err := a.d.Book.Learn(answer.GetStores()); err != nil {
			return err
		}
		a.storesVersion = answer.GetStoresVersion()
		a.d.Engine.SetEmptying(a.emptied())
		known, err = keepPDs(a.d.Engine, known, a.d.PD.Addresses())
		return err
	})
}

// emptied reports whether this store is leaving and holds no range any more:
// then nothing needs to wait for its readers.
func (a *Agent) emptied() bool {
	self, _ := a.d.Book.Store(a.d.Self.GetStoreId())
	return self.GetState() == metapb.StoreState_STORE_STATE_LEAVING &&
		len(a.d.Catalog.Replicas()) == 0
}

func (a *Agent) storeReport() *pdpb.StoreHeartbeatRequest {
	d := a.d.Engine.Disk()
	stats := &pdpb.StoreStats{
		CapacityBytes: d.CapacityBytes, AvailableBytes: d.AvailableBytes, UsedBytes: d.UsedBytes,
		StartedAtUnixMs: uint64(a.started.UnixMilli()),
		GarbageSlices:   uint64(len(a.d.Engine.Garbage())),
	}
	counters := map[uint64]evaluate.Stats{}
	for _, r := range a.d.Catalog.Replicas() {
		stats.RangeCount++
		if a.d.Host.Leader(r.RangeID()).Self {
			stats.LeaderCount++
		}
		switch r.State().Status() {
		case logpb.ReplicaState_REPLICA_STATE_POISONED:
			stats.PoisonedReplicas++
		case logpb.ReplicaState_REPLICA_STATE_JOINING:
			stats.ApplyingImages++
		}
		ops := a.d.Evaluator.Stats(r.RangeID())
		stats.ReadOps += ops.ReadOps
		stats.WriteOps += ops.WriteOps
		counters[r.RangeID()] = ops
	}
	a.rates.take(counters, time.Now())
	for id, c := range counters {
		read, write := a.rates.of(id, c.SpanEpoch)
		stats.ReadRate, stats.WriteRate = stats.ReadRate+read, stats.WriteRate+write
	}
	return &pdpb.StoreHeartbeatRequest{
		StoreId: a.d.Self.GetStoreId(), Stats: stats, DiskState: d.State,
		Run: a.o.Run, StoresVersion: a.storesVersion,
	}
}
