package meta

import (
	"maps"
	"slices"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/ridgekv/ridge/proto/keys"
	metapb "github.com/ridgekv/ridge/proto/ridge/meta/v1"
	pdpb "github.com/ridgekv/ridge/proto/ridge/pd/v1"
	"github.com/ridgekv/ridge/proto/ts"
)

const (
	// firstRangeID and firstReplicaID are what bootstrap names. The counter of
	// ids begins above them.
	firstRangeID   = 1
	firstReplicaID = 1
	// bornConfigEpoch is the config epoch of a range that was never changed:
	// the index its truncated log begins behind.
	bornConfigEpoch = 5

	// maxAllocation bounds one AllocateIDs, so that a hostile count cannot use
	// the ids up.
	maxAllocation = 1 << 16
	// maxStores and maxHolds bound the maps of the state.
	maxStores = 10_000
	maxHolds  = 10_000
	// takeOverGap is how far above the old bound a new owner of the TSO begins:
	// one step of a lease's read bound, so that it lies above whatever a
	// leaseholder wrote while PD was away.
	takeOverGap = time.Second
	// maxWindow bounds one extension.
	maxWindow = time.Minute
)

// state is PD's replicated state. Messages in it are never changed in place:
// readers keep what they were given.
type state struct {
	clusterID      uint64
	nextID         uint64
	nextStoreID    uint64
	config         *pdpb.ClusterConfig
	stores         map[uint64]*pdpb.StoreRecord
	ranges         map[uint64]*metapb.Range
	firstRange     *metapb.Range
	firstRangeBorn bool
	tso            *pdpb.TSORecord
	gcSafePoint    uint64
	txnSafePoint   uint64
	holds          map[string]*pdpb.Hold
	rules          map[string]*pdpb.PlacementRule
	ruleRevision   uint64
	appliedIndex   uint64
	// settings are replaced whole, never changed in place.
	settings        map[string]string
	settingsVersion uint64
	pause           *pdpb.Pause
	// journal holds the last JournalSize decisions, oldest first.
	journal      []*pdpb.Decision
	nextDecision uint64
	// journalWriter and journalBatch name the last batch that was taken.
	journalWriter, journalBatch uint64
	members                     map[uint64]*pdpb.Member
	lastMemberID                uint64
	memberRevision              uint64
}

func newState() *state {
	return &state{
		nextID:      max(firstRangeID, firstReplicaID) + 1,
		nextStoreID: 1,
		stores:      map[uint64]*pdpb.StoreRecord{},
		ranges:      map[uint64]*metapb.Range{},
		holds:       map[string]*pdpb.Hold{},
		rules:       map[string]*pdpb.PlacementRule{},
		tso:         &pdpb.TSORecord{},
		members:     map[uint64]*pdpb.Member{},
		settings:    map[string]string{}, nextDecision: 1,
	}
}

// apply does one command. It is pure: same state and command, same outcome.
func (s *state) apply(c *pdpb.Command) *pdpb.CommandResult {
	switch c := c.GetCommand().(type) {
	case *pdpb.Command_InitCluster:
		return s.initCluster(c.InitCluster)
	case *pdpb.Command_AllocateIds:
		return s.allocateIDs(c.AllocateIds)
	case *pdpb.Command_AdmitStore:
		return s.admitStore(c.AdmitStore)
	case *pdpb.Command_ActivateStore:
		return s.activateStore(c.ActivateStore)
	case *pdpb.Command_PutStoreState:
		return s.putStoreState(c.PutStoreState)
	case *pdpb.Command_PutRanges:
		return s.putRanges(c.PutRanges)
	case *pdpb.Command_TakeTso:
		return s.takeTSO(c.TakeTso)
	case *pdpb.Command_ExtendTso:
		return s.extendTSO(c.ExtendTso)
	case *pdpb.Command_RaiseSafePoint:
		return s.raiseSafePoint(c.RaiseSafePoint)
	case *pdpb.Command_PutHold:
		return s.putHold(c.PutHold)
	case *pdpb.Command_DropHold:
		delete(s.holds, c.DropHold.GetHoldId())
		return s.safePoints()
	case *pdpb.Command_PutConfig:
		s.config = proto.CloneOf(c.PutConfig.GetConfig())
		return &pdpb.CommandResult{}
	case *pdpb.Command_PutRule:
		return s.putRule(c.PutRule)
	case *pdpb.Command_DropRule:
		return s.dropRule(c.DropRule)
	case *pdpb.Command_PutSettings:
		return s.putSettings(c.PutSettings)
	case *pdpb.Command_PutPause:
		return s.putPause(c.PutPause)
	case *pdpb.Command_AppendJournal:
		return s.appendJournal(c.AppendJournal)
	case *pdpb.Command_SeedMembers:
		return s.seedMembers(c.SeedMembers)
	case *pdpb.Command_AdmitMember:
		return s.admitMember(c.AdmitMember)
	case *pdpb.Command_PutMember:
		return s.putMember(c.PutMember)
	case *pdpb.Command_DropMember:
		return s.dropMember(c.DropMember)
	case *pdpb.Command_ProbeClock, *pdpb.Command_AnswerClock:
		return &pdpb.CommandResult{} // spoken past the state, see Machine.observe
	}
	return refuse(pdpb.PDErrorReason_PD_ERROR_REASON_INVALID_ARGUMENT, "unknown command")
}

func refuse(reason pdpb.PDErrorReason, message string) *pdpb.CommandResult {
	return &pdpb.CommandResult{Reason: reason, Message: message}
}

func (s *state) initCluster(c *pdpb.InitCluster) *pdpb.CommandResult {
	if s.clusterID == 0 {
		s.clusterID = c.GetClusterId()
		s.config = proto.CloneOf(c.GetConfig())
	}
	return &pdpb.CommandResult{FirstId: s.clusterID}
}

func (s *state) allocateIDs(c *pdpb.AllocateIDs) *pdpb.CommandResult {
	if n := c.GetCount(); n == 0 || n > maxAllocation {
		return refuse(pdpb.PDErrorReason_PD_ERROR_REASON_INVALID_ARGUMENT,
			"count must be within 1 and 65536")
	}
	first := s.nextID
	s.nextID += uint64(c.GetCount())
	return &pdpb.CommandResult{FirstId: first}
}

func (s *state) activateStore(c *pdpb.ActivateStore) *pdpb.CommandResult {
	rec := s.stores[c.GetStoreId()]
	if rec == nil {
		return refuse(pdpb.PDErrorReason_PD_ERROR_REASON_NOT_FOUND, "no such store")
	}
	s.stores[c.GetStoreId()] = &pdpb.StoreRecord{Store: rec.GetStore(), Activated: true}
	return &pdpb.CommandResult{Store: rec.GetStore()}
}

func (s *state) putStoreState(c *pdpb.PutStoreState) *pdpb.CommandResult {
	rec := s.stores[c.GetStoreId()]
	if rec == nil {
		return refuse(pdpb.PDErrorReason_PD_ERROR_REASON_NOT_FOUND, "no such store")
	}
	if rec.GetStore().GetState() == metapb.StoreState_STORE_STATE_GONE {
		if c.GetState() == metapb.StoreState_STORE_STATE_GONE {
			return &pdpb.CommandResult{Store: rec.GetStore()}
		}
		return refuse(pdpb.PDErrorReason_PD_ERROR_REASON_STORE_GONE, "the store is gone for ever")
	}
	switch c.GetState() {
	case metapb.StoreState_STORE_STATE_UP, metapb.StoreState_STORE_STATE_DRAINING,
		metapb.StoreState_STORE_STATE_LEAVING, metapb.StoreState_STORE_STATE_GONE:
	default:
		return refuse(pdpb.PDErrorReason_PD_ERROR_REASON_INVALID_ARGUMENT,
			"a store can be set to up, draining, leaving or gone")
	}
	store := proto.CloneOf(rec.GetStore())
	store.State = c.GetState()
	s.stores[c.GetStoreId()] = &pdpb.StoreRecord{Store: store, Activated: rec.GetActivated()}
	return &pdpb.CommandResult{Store: store}
}

// putRanges remembers descriptors. The halves of the epoch are judged apart,
// so entries of different PD leaders may arrive in any order.
func (s *state) putRanges(c *pdpb.PutRanges) *pdpb.CommandResult {
	for _, id := range c.GetDroppedRangeIds() {
		delete(s.ranges, id)
	}
	for _, r := range c.GetRanges() {
		if r.GetRangeId() == 0 {
			continue
		}
		s.ranges[r.GetRangeId()] = MergeRange(s.ranges[r.GetRangeId()], r)
		if r.GetRangeId() == s.firstRange.GetRangeId() {
			s.firstRangeBorn = true
		}
	}
	return &pdpb.CommandResult{}
}

// MergeRange takes the span from the descriptor with the larger span epoch and
// the members from the one with the larger config epoch: the halves are
// sampled apart, so neither descriptor need be newer as a whole. It returns
// old itself when r brings nothing new.
func MergeRange(old, r *metapb.Range) *metapb.Range {
	if old == nil {
		return proto.CloneOf(r)
	}
	newSpan := r.GetEpoch().GetSpan() > old.GetEpoch().GetSpan()
	newConfig := r.GetEpoch().GetConfig() > old.GetEpoch().GetConfig()
	if !newSpan && !newConfig {
		return old
	}
	out := proto.CloneOf(old)
	if out.Epoch == nil {
		out.Epoch = &metapb.Epoch{}
	}
	if newSpan {
		out.Span, out.Epoch.Span = proto.CloneOf(r.GetSpan()), r.GetEpoch().GetSpan()
	}
	if newConfig {
		out.Replicas, out.Epoch.Config = proto.CloneOf(r).GetReplicas(), r.GetEpoch().GetConfig()
	}
	return out
}

// takeTSO makes c's owner the only one to hand out timestamps. Its first one is
// the returned bound minus the window.
func (s *state) takeTSO(c *pdpb.TakeTSO) *pdpb.CommandResult {
	if c.GetExpectedEpoch() != s.tso.GetEpoch() {
		r := refuse(pdpb.PDErrorReason_PD_ERROR_REASON_STALE_EPOCH, "the record has moved on")
		r.Tso = s.tso
		return r
	}
	window := ts.Timestamp(c.GetWindow())
	if window == 0 || window > ts.Timestamp(0).Add(maxWindow) {
		return refuse(pdpb.PDErrorReason_PD_ERROR_REASON_INVALID_ARGUMENT, "window out of bounds")
	}
	start := ts.Timestamp(c.GetWall())
	if s.tso.GetBound() != 0 {
		start = max(start, ts.Timestamp(s.tso.GetBound()).Add(takeOverGap))
	}
	s.tso = &pdpb.TSORecord{
		Owner: c.GetOwner(), Epoch: s.tso.GetEpoch() + 1, Nonce: c.GetNonce(),
		Bound: uint64(start + window),
	}
	return &pdpb.CommandResult{Tso: s.tso}
}

// extendTSO raises the bound for the run that owns the record. An extension
// that arrives late, from an older epoch or run, is refused.
func (s *state) extendTSO(c *pdpb.ExtendTSO) *pdpb.CommandResult {
	old := s.tso
	if c.GetOwner() != old.GetOwner() || c.GetEpoch() != old.GetEpoch() ||
		c.GetNonce() != old.GetNonce() {
		r := refuse(pdpb.PDErrorReason_PD_ERROR_REASON_STALE_EPOCH, "the record names another run")
		r.Tso = old
		return r
	}
	limit := ts.Timestamp(old.GetBound()).Add(maxWindow)
	if bound := min(c.GetBound(), uint64(limit)); bound > old.GetBound() {
		s.tso = &pdpb.TSORecord{
			Owner: old.GetOwner(), Epoch: old.GetEpoch(), Nonce: old.GetNonce(), Bound: bound,
		}
	}
	return &pdpb.CommandResult{Tso: s.tso}
}

// raiseSafePoint keeps gc <= txn <= every hold, and lowers neither.
func (s *state) raiseSafePoint(c *pdpb.RaiseSafePoint) *pdpb.CommandResult {
	txn := c.GetTxn()
	for id, h := range s.holds {
		if h.GetExpiresAtUnixMs() <= c.GetNowUnixMs() {
			delete(s.holds, id)
			continue
		}
		txn = min(txn, h.GetTs())
	}
	s.txnSafePoint = max(s.txnSafePoint, txn)
	s.gcSafePoint = max(s.gcSafePoint, min(c.GetGc(), s.txnSafePoint))
	return s.safePoints()
}

func (s *state) putHold(c *pdpb.PutHold) *pdpb.CommandResult {
	if c.GetTs() < s.txnSafePoint {
		r := refuse(pdpb.PDErrorReason_PD_ERROR_REASON_TOO_OLD,
			"history at that timestamp is no longer kept")
		r.GcSafePoint, r.TxnSafePoint = s.gcSafePoint, s.txnSafePoint
		return r
	}
	if s.holds[c.GetHoldId()] == nil && len(s.holds) >= maxHolds {
		return refuse(pdpb.PDErrorReason_PD_ERROR_REASON_UNAVAILABLE, "too many holds")
	}
	s.holds[c.GetHoldId()] = &pdpb.Hold{
		HoldId: c.GetHoldId(), Ts: c.GetTs(), ExpiresAtUnixMs: c.GetExpiresAtUnixMs(),
	}
	return s.safePoints()
}

func (s *state) safePoints() *pdpb.CommandResult {
	return &pdpb.CommandResult{GcSafePoint: s.gcSafePoint, TxnSafePoint: s.txnSafePoint}
}

// proto renders s with its lists sorted, so that equal states are equal bytes.
func (s *state) proto() *pdpb.MetaState {
	out := &pdpb.MetaState{
		ClusterId: s.clusterID, NextId: s.nextID, NextStoreId: s.nextStoreID, Config: s.config,
		FirstRange: s.firstRange, FirstRangeBorn: s.firstRangeBorn, Tso: s.tso,
		GcSafePoint: s.gcSafePoint, TxnSafePoint: s.txnSafePoint, AppliedIndex: s.appliedIndex,
		Settings: s.settings, SettingsVersion: s.settingsVersion, Pause: s.pause,
		Journal: s.journal, NextDecision: s.nextDecision,
		JournalWriter: s.journalWriter, JournalBatch: s.journalBatch,
		Members: s.memberList(), LastMemberId: s.lastMemberID,
		MemberRevision: s.memberRevision,
	}
	for _, id := range slices.Sorted(maps.Keys(s.stores)) {
		out.Stores = append(out.Stores, s.stores[id])
	}
	for _, id := range slices.Sorted(maps.Keys(s.ranges)) {
		out.Ranges = append(out.Ranges, s.ranges[id])
	}
	for _, id := range slices.Sorted(maps.Keys(s.holds)) {
		out.Holds = append(out.Holds, s.holds[id])
	}
	out.RuleRevision = s.ruleRevision
	for _, id := range slices.Sorted(maps.Keys(s.rules)) {
		out.Rules = append(out.Rules, s.rules[id])
	}
	return out
}

func stateFromProto(p *pdpb.MetaState) *state {
	s := newState()
	s.clusterID, s.config = p.GetClusterId(), p.GetConfig()
	s.nextID, s.nextStoreID = max(s.nextID, p.GetNextId()), max(s.nextStoreID, p.GetNextStoreId())
	s.firstRange, s.firstRangeBorn = p.GetFirstRange(), p.GetFirstRangeBorn()
	s.gcSafePoint, s.txnSafePoint = p.GetGcSafePoint(), p.GetTxnSafePoint()
	s.appliedIndex = p.GetAppliedIndex()
	if p.GetTso() != nil {
		s.tso = p.GetTso()
	}
	s.settingsVersion, s.pause, s.journal = p.GetSettingsVersion(), p.GetPause(), p.GetJournal()
	s.nextDecision = max(s.nextDecision, p.GetNextDecision())
	s.journalWriter, s.journalBatch = p.GetJournalWriter(), p.GetJournalBatch()
	if p.GetSettings() != nil {
		s.settings = p.GetSettings()
	}
	for _, r := range p.GetStores() {
		s.stores[r.GetStore().GetStoreId()] = r
	}
	for _, r := range p.GetRanges() {
		s.ranges[r.GetRangeId()] = r
	}
	for _, h := range p.GetHolds() {
		s.holds[h.GetHoldId()] = h
	}
	s.lastMemberID, s.memberRevision = p.GetLastMemberId(), p.GetMemberRevision()
	for _, m := range p.GetMembers() {
		s.members[m.GetMemberId()] = m
	}
	s.ruleRevision = p.GetRuleRevision()
	for _, r := range p.GetRules() {
		s.rules[r.GetId()] = r
	}
	return s
}

// bootstrapRange is the first range, with its one replica on the store that
// registered first.
func bootstrapRange(storeID uint64) *metapb.Range {
	return &metapb.Range{
		RangeId: firstRangeID, Span: keys.All().Proto(),
		Epoch: &metapb.Epoch{Config: bornConfigEpoch, Span: 1},
		Replicas: []*metapb.Replica{{
			ReplicaId: firstReplicaID, StoreId: storeID, Role: metapb.Role_ROLE_VOTER,
		}},
	}
}
