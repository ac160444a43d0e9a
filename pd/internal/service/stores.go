package service

import (
	"context"
	"time"

	"github.com/ridgekv/ridge/pd/internal/meta"
	"github.com/ridgekv/ridge/pd/internal/topology"
	metapb "github.com/ridgekv/ridge/proto/ridge/meta/v1"
	pdpb "github.com/ridgekv/ridge/proto/ridge/pd/v1"
)

// RegisterStore admits a store; the first one ever bootstraps the cluster.
func (s *Service) RegisterStore(
	ctx context.Context, req *pdpb.RegisterStoreRequest,
) (out *pdpb.RegisterStoreResponse, _ error) {
	out = &pdpb.RegisterStoreResponse{}
	m, l, err := s.confirmed(ctx, req.GetHeader())
	if err == nil {
		err = checkStore(req.GetStore())
	}
	if err != nil {
		out.Error = s.pdError(err)
		return out, nil
	}
	var silent []uint64
	now := time.Now()
	for _, st := range l.Topology.Stores() {
		if now.Sub(st.Heard) > 10*time.Second {
			silent = append(silent, st.Store.GetStoreId())
		}
	}
	r, err := fromResult(m.Propose(ctx, &pdpb.Command{Command: &pdpb.Command_AdmitStore{
		AdmitStore: &pdpb.AdmitStore{Store: req.GetStore(), SilentStoreIds: silent},
	}}))
	if err != nil {
		out.Error = s.pdError(err)
		return out, nil
	}
	putStore(m, l, r.GetStore().GetStoreId())
	l.runs.claim(r.GetStore().GetStoreId(), req.GetRun(), now)
	if r.GetFirstRange() != nil {
		s.o.Logger.Info("store bears the first range", "store", r.GetStore().GetStoreId())
	}
	out.ClusterId, out.StoreId = m.ClusterID(), r.GetStore().GetStoreId()
	out.FirstRange = r.GetFirstRange()
	out.Config, out.Stores = m.Config(), s.stores(l)
	if t, err := l.Oracle.Timestamps(ctx, 1); err == nil {
		out.Timestamp = uint64(t)
	}
	return out, nil
}

// stores lists all stores with their states as seen now.
func (s *Service) stores(l *Leading) []*metapb.Store {
	var out []*metapb.Store
	for _, info := range s.storeInfos(l) {
		out = append(out, info.GetStore())
	}
	return out
}

func (s *Service) storeInfos(l *Leading) []*pdpb.StoreInfo {
	now, downAfter := time.Now(), l.Settings().StoreDownAfter
	var out []*pdpb.StoreInfo
	for _, st := range l.Topology.Stores() {
		out = append(out, &pdpb.StoreInfo{
			Store: shown(st.Store, isDown(st, now, downAfter)), Stats: st.Stats,
			LastHeartbeatUnixMs: uint64(st.Heard.UnixMilli()),
		})
	}
	return out
}

// isDown reports whether a store has been silent for too long.
func isDown(s *topology.Store, now time.Time, downAfter time.Duration) bool {
	return s.Store.GetState() != metapb.StoreState_STORE_STATE_GONE &&
		now.Sub(s.Heard) >= downAfter
}

// shown is a store with its state as others shall see it.
func shown(s *metapb.Store, down bool) *metapb.Store {
	if !down {
		return s
	}
	return &metapb.Store{
		StoreId: s.GetStoreId(), GrpcAddress: s.GetGrpcAddress(), RaftAddress: s.GetRaftAddress(),
		Labels: s.GetLabels(), Version: s.GetVersion(), DiskState: s.GetDiskState(),
		State: metapb.StoreState_STORE_STATE_DOWN,
	}
}

// registered returns the record of a store that may speak to PD.
func (s *Service) registered(
	m *meta.Meta, l *Leading, id uint64,
) (*pdpb.StoreRecord, error) {
	rec, ok := m.Store(id)
	switch {
	case !ok:
		return nil, refuse(pdpb.PDErrorReason_PD_ERROR_REASON_NOT_FOUND,
			"store %d is not registered", id)
	case rec.GetStore().GetState() == metapb.StoreState_STORE_STATE_GONE:
		return nil, refuse(pdpb.PDErrorReason_PD_ERROR_REASON_STORE_GONE,
			"store %d was declared gone", id)
	}
	// The command of a former leader may come after this one began to lead.
	l.Topology.PutStores([]*pdpb.StoreRecord{rec}, time.Now())
	return rec, nil
}

// putStore shows planners what was just decided about a store.
func putStore(m *meta.Meta, l *Leading, id uint64) {
	if rec, ok := m.Store(id); ok {
		l.Topology.PutStores([]*pdpb.StoreRecord{rec}, time.Now())
	}
}

// StoreHeartbeat takes a store's report.
func (s *Service) StoreHeartbeat(
	ctx context.Context, req *pdpb.StoreHeartbeatRequest,
) (*pdpb.StoreHeartbeatResponse, error) {
	out := &pdpb.StoreHeartbeatResponse{}
	m, l, err := s.lead(req.GetHeader())
	if err != nil {
		out.Error = s.pdError(err)
		return out, nil
	}
	rec, err := s.registered(m, l, req.GetStoreId())
	if err == nil {
		err = l.runs.check(req.GetStoreId(), req.GetRun(), time.Now())
	}
	if err != nil {
		out.Error = s.pdError(err)
		return out, nil
	}
	stats := req.GetStats()
	if stats == nil {
		stats = &pdpb.StoreStats{}
	}
	l.Topology.HeardStore(req.GetStoreId(), stats, req.GetDiskState(), time.Now())
	if !rec.GetActivated() {
		_, err = fromResult(m.Propose(ctx, &pdpb.Command{Command: &pdpb.Command_ActivateStore{
			ActivateStore: &pdpb.ActivateStore{StoreId: req.GetStoreId()},
		}}))
	}
	out.Error = s.pdError(err)
	out.GcSafePoint, out.TxnSafePoint, _ = m.SafePoints()
	out.Config = m.Config()
	out.Stores, out.StoresVersion = l.roster.since(l, l.Oracle.Epoch(), req.GetStoresVersion(),
		time.Now())
	return out, nil
}

// ListStores lists all stores.
func (s *Service) ListStores(
	_ context.Context, req *pdpb.ListStoresRequest,
) (*pdpb.ListStoresResponse, error) {
	_, l, err := s.lead(req.GetHeader())
	if err != nil {
		return &pdpb.ListStoresResponse{Error: s.pdError(err)}, nil
	}
	return &pdpb.ListStoresResponse{Stores: s.storeInfos(l)}, nil
}

// GetSafePoint returns both points and the holds.
func (s *Service) GetSafePoint(
	_ context.Context, req *pdpb.GetSafePointRequest,
) (*pdpb.GetSafePointResponse, error) {
	m, _, err := s.lead(req.GetHeader())
	if err != nil {
		return &pdpb.GetSafePointResponse{Error: s.pdError(err)}, nil
	}
	out := &pdpb.GetSafePointResponse{}
	out.GcSafePoint, out.TxnSafePoint, out.Holds = m.SafePoints()
	return out, nil
}

// maxHoldTTL bounds how long a hold lives without being renewed.
const maxHoldTTL = 24 * time.Hour

// SetHold creates or renews a hold.
func (s *Service) SetHold(
	ctx context.Context, req *pdpb.SetHoldRequest,
) (*pdpb.SetHoldResponse, error) {
	m, _, err := s.confirmed(ctx, req.GetHeader())
	ttl := time.Duration(min(req.GetTtlMs(), uint64(maxHoldTTL.Milliseconds()))) * time.Millisecond
	switch {
	case err != nil:
	case req.GetHoldId() == "" || len(req.GetHoldId()) > 256:
		err = invalid("hold_id must have 1 to 256 bytes")
	case ttl <= 0 || req.GetTtlMs() > uint64(maxHoldTTL.Milliseconds()):
		err = invalid("ttl_ms must be within 1 and %d", maxHoldTTL.Milliseconds())
	}
	if err != nil {
		return &pdpb.SetHoldResponse{Error: s.pdError(err)}, nil
	}
	r, err := fromResult(m.Propose(ctx, &pdpb.Command{Command: &pdpb.Command_PutHold{
		PutHold: &pdpb.PutHold{
			HoldId: req.GetHoldId(), Ts: req.GetTs(),
			ExpiresAtUnixMs: uint64(time.Now().Add(ttl).UnixMilli()),
		},
	}}))
	return &pdpb.SetHoldResponse{Error: s.pdError(err), GcSafePoint: r.GetGcSafePoint()}, nil
}

// ReleaseHold ends a hold; one that does not exist is released already.
func (s *Service) ReleaseHold(
	ctx context.Context, req *pdpb.ReleaseHoldRequest,
) (*pdpb.ReleaseHoldResponse, error) {
	m, _, err := s.confirmed(ctx, req.GetHeader())
	if err == nil {
		_, err = fromResult(m.Propose(ctx, &pdpb.Command{Command: &pdpb.Command_DropHold{
			DropHold: &pdpb.DropHold{HoldId: req.GetHoldId()},
		}}))
	}
	return &pdpb.ReleaseHoldResponse{Error: s.pdError(err)}, nil
}
