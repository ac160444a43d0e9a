package agent

import (
	"context"
	"math/bits"
	"time"

	"github.com/ridgekv/ridge/client/pdclient"
	logpb "github.com/ridgekv/ridge/proto/ridge/log/v1"
	metapb "github.com/ridgekv/ridge/proto/ridge/meta/v1"
	pdpb "github.com/ridgekv/ridge/proto/ridge/pd/v1"
	"github.com/ridgekv/ridge/storenode/internal/catalog"
	"github.com/ridgekv/ridge/storenode/internal/raft"
)

// The replicas are looked through for changes that nobody announced every
// lookPeriod, and more and more seldom, up to idleLookPeriod, while there are
// none: with a thousand replicas a look is not free.
const (
	lookPeriod     = 200 * time.Millisecond
	idleLookPeriod = 8 * lookPeriod
)

// mark is what PD was last told about a replica. A change of it is reported at
// once; all else waits for the slow heartbeat.
type mark struct {
	config, spanEpoch  uint64
	leaderID, term     uint64
	role               metapb.Role
	led, self          bool
	poisoned, joining  bool
	unborn             bool
	lagging            uint64
	sizeStep, keysSeen uint64
	// load is the order of magnitude of the load: a change of it is worth a report.
	load int
	// over: it bears more than PD wants of one range; and what is known of where.
	over, divisible, hot bool
}

// reports keeps a stream to PD open: reports up, orders down.
func (a *Agent) reports(ctx context.Context) error {
	pause := time.Duration(0)
	for ctx.Err() == nil {
		stream, err := a.d.PD.RangeHeartbeat(ctx)
		if err == nil {
			pause = 0
			err = a.talk(ctx, stream)
			stream.Close()
		}
		if ctx.Err() != nil {
			return nil
		}
		a.o.Logger.Debug("range heartbeats broke", "op", "report", "error", err)
		pause = max(nextPause(pause, err), 20*time.Millisecond)
		sleep(ctx, pause)
	}
	return nil
}

// talk uses one stream until it breaks.
func (a *Agent) talk(run context.Context, stream *pdclient.RangeHeartbeats) error {
	ctx, cancel := context.WithCancel(run)
	heard := make(chan error, 1)
	a.workers.Go(func() {
		defer cancel()
		heard <- a.listen(run, stream) // Orders outlive the stream.
	})
	look := time.NewTimer(lookPeriod)
	defer look.Stop()
	pause := lookPeriod
	all := time.NewTicker(a.o.RangeHeartbeatInterval)
	defer all.Stop()
	sent := map[uint64]mark{}
	complete := true
	var err error
	for err == nil {
		pause = min(2*pause, idleLookPeriod)
		if m := a.report(sent, complete); m != nil {
			if !complete {
				pause = lookPeriod
			}
			err = stream.Send(m)
		}
		complete = false
		look.Reset(pause)
		select {
		case <-a.kick:
			pause = lookPeriod
		case <-look.C:
		case <-all.C:
			complete = true
		case <-ctx.Done():
			err = ctx.Err()
		}
	}
	cancel()
	stream.Close()
	if cause := <-heard; cause != nil {
		err = cause
	}
	return err
}

func (a *Agent) listen(ctx context.Context, stream *pdclient.RangeHeartbeats) error {
	for {
		m, err := stream.Recv()
		if err != nil {
			return err
		}
		for _, o := range m.GetOrders() {
			a.obey(ctx, o)
		}
	}
}

// report collects what PD does not know yet, or everything. It returns nil when
// there is nothing to tell.
func (a *Agent) report(sent map[uint64]mark, complete bool) *pdpb.RangeHeartbeatRequest {
	replicas := a.d.Catalog.Replicas()
	present := make(map[uint64]mark, len(replicas))
	for _, r := range replicas {
		if r.State().Status() != logpb.ReplicaState_REPLICA_STATE_REMOVED {
			present[r.RangeID()] = a.markOf(r)
		}
	}
	for id := range sent {
		if _, ok := present[id]; !ok {
			complete = true // Only a complete list tells that one is missing.
			delete(sent, id)
		}
	}
	m := &pdpb.RangeHeartbeatRequest{StoreId: a.d.Self.GetStoreId(), Complete: complete}
	for _, r := range replicas {
		now, ok := present[r.RangeID()]
		if old, told := sent[r.RangeID()]; !ok || told && old == now && !complete {
			continue
		}
		sent[r.RangeID()] = now
		m.Replicas = append(m.Replicas, localReplica(r, now))
		if now.self {
			m.Ranges = append(m.Ranges, a.rangeReport(r))
		}
	}
	m.Run, m.Failures = a.o.Run, a.takeFailures()
	if !complete && len(m.Replicas)+len(m.Failures) == 0 {
		return nil
	}
	a.metrics.reports.Add(float64(len(m.Ranges)))
	return m
}

func (a *Agent) markOf(r *catalog.Replica) mark {
	s := r.State()
	members, config, _ := a.d.Host.Membership(r.RangeID())
	l := a.d.Host.Leader(r.RangeID())
	m := mark{
		config: config, spanEpoch: s.SpanEpoch(), role: s.Role(), led: l.Known,
		self: l.Self, poisoned: poisoned(s), unborn: len(s.Unborn()) > 0,
		joining: a.joining(r),
	}
	for _, p := range members {
		if p.GetReplicaId() == s.ReplicaID() {
			m.role = p.GetRole()
		}
	}
	if l.Self {
		m.leaderID, m.term = l.ReplicaID, l.Term
		for i, p := range members {
			if a.health.lagging(r.RangeID(), p) {
				m.lagging |= 1 << (i % 64)
			}
		}
		read, write := a.rates.of(r.RangeID(), s.SpanEpoch())
		m.load = bits.Len64((read + write) / 128)
		if m.over = a.over(read + write); m.over {
			l := a.d.Evaluator.LoadOf(r.RangeID())
			m.divisible, m.hot = l.SplitKey != nil, l.HotKey != nil
		}
		size, keyCount, known := a.sizes.estimate(r)
		if known {
			m.sizeStep = 1 + size/max(a.splitSize()/16, 1)
			m.keysSeen = min(keyCount, 1)
		}
	}
	return m
}

func poisoned(s *catalog.State) bool {
	return s.Status() == logpb.ReplicaState_REPLICA_STATE_POISONED
}

// joining reports whether the replica is not yet a full copy.
func (a *Agent) joining(r *catalog.Replica) bool {
	s := r.State()
	if s.Status() == logpb.ReplicaState_REPLICA_STATE_JOINING {
		return true
	}
	return s.Role() == metapb.Role_ROLE_LEARNER && !a.health.hasRead(r.RangeID(), s.ReplicaID())
}

// Joining is joining by range id, for the store's own status.
func (a *Agent) Joining(rangeID uint64) bool {
	r, ok := a.d.Catalog.Replica(rangeID)
	return ok && a.joining(r)
}

func localReplica(r *catalog.Replica, m mark) *pdpb.LocalReplica {
	return &pdpb.LocalReplica{
		RangeId: r.RangeID(), ReplicaId: r.State().ReplicaID(), ConfigEpoch: m.config,
		Role: m.role, Led: m.led, Poisoned: m.poisoned, Joining: m.joining,
	}
}

// rangeReport is what the leader tells about its range.
func (a *Agent) rangeReport(r *catalog.Replica) *pdpb.RangeReport {
	s, applied := r.Both()
	ops := a.d.Evaluator.Stats(r.RangeID())
	m := &pdpb.RangeReport{
		Range:   a.describe(r),
		Leader:  leaderProto(a.d.Host.Leader(r.RangeID())),
		ReadOps: ops.ReadOps, WriteOps: ops.WriteOps,
		HasUnbornChildren: len(s.Unborn()) > 0, AppliedIndex: applied.Index,
	}
	m.ReadRate, m.WriteRate = a.rates.of(r.RangeID(), s.SpanEpoch())
	if a.over(m.GetReadRate() + m.GetWriteRate()) {
		l := a.d.Evaluator.LoadOf(r.RangeID())
		m.LoadSplitKey, m.HotKey, m.HotKeyPercent = l.SplitKey, l.HotKey, uint32(l.HotKeyPercent)
	}
	m.SizeBytes, m.KeyCount, _ = a.sizes.estimate(r)
	for _, p := range m.GetRange().GetReplicas() {
		h := &pdpb.ReplicaHealth{ReplicaId: p.GetReplicaId()}
		if p.GetReplicaId() == s.ReplicaID() {
			h.Poisoned = poisoned(s)
		} else {
			h.Lagging = a.health.lagging(r.RangeID(), p)
		}
		m.Health = append(m.Health, h)
	}
	return m
}

// over reports whether PD divides a range that bears so many operations a second.
func (a *Agent) over(ops uint64) bool {
	limit := a.config.Load().GetSplitLoadOps()
	return limit > 0 && ops >= limit
}

func leaderProto(l raft.Leader) *metapb.Leader {
	return &metapb.Leader{ReplicaId: l.ReplicaID, StoreId: l.StoreID, Term: l.Term}
}

// splitSize is what PD calls a large range.
func (a *Agent) splitSize() uint64 {
	if n := a.config.Load().GetSplitSizeBytes(); n != 0 {
		return n
	}
	return 96 << 20
}
