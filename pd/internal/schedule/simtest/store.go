package simtest

import (
	"fmt"
	"maps"
	"slices"
	"time"

	metapb "github.com/ridgekv/ridge/proto/ridge/meta/v1"
	pdpb "github.com/ridgekv/ridge/proto/ridge/pd/v1"
)

const (
	// lookPeriod is how soon a change is reported, orderTime how long an order
	// takes, electionTime how long a range is without a leader whose store died.
	lookPeriod   = 200 * time.Millisecond
	orderTime    = 50 * time.Millisecond
	electionTime = 400 * time.Millisecond
	// maxOrders bounds the orders under way on one store.
	maxOrders = 16
)

// store is a virtual store.
type store struct {
	c        *Cluster
	record   *metapb.Store
	capacity uint64
	alive    bool
	// life tells one run of the process from the next, died when it ended.
	life int
	died time.Time
	held map[uint64]*replica
	used uint64
	// leaders is how many ranges are led here.
	leaders int
	// images is how many replicas are received, tombs what was destroyed.
	images  map[uint64]bool
	tombs   map[uint64]bool
	busy    map[uint64]bool
	changed map[uint64]bool
	// looking: a report of what changed is due. dropped: a replica went, so that
	// the next report is complete.
	looking, dropped bool
}

// replica is what a store holds of a range.
type replica struct {
	id   uint64
	full bool
	r    *vrange
	// config is the last one it knew when it was no member any more.
	config uint64
}

// admit registers a new store, which does not run yet.
func (c *Cluster) admit() *store {
	id := uint64(len(c.stores) + 1)
	s := &store{
		c: c, capacity: c.o.Capacity(id), held: map[uint64]*replica{},
		record: &metapb.Store{StoreId: id, State: metapb.StoreState_STORE_STATE_UP},
		images: map[uint64]bool{}, tombs: map[uint64]bool{}, changed: map[uint64]bool{},
		died: c.now.Add(-time.Hour),
	}
	if c.o.Labels != nil {
		s.record.Labels = c.o.Labels(id)
	}
	c.stores[id] = s
	return s
}

// AddStore adds an empty store and starts it.
func (c *Cluster) AddStore() uint64 {
	c.stimulus++
	s := c.admit()
	s.boot()
	return s.record.GetStoreId()
}

// SetState is an administrator's word on a store.
func (c *Cluster) SetState(id uint64, state metapb.StoreState) {
	c.stimulus++
	old := c.stores[id].record
	c.stores[id].record = &metapb.Store{StoreId: id, Labels: old.GetLabels(), State: state}
}

// Kill ends a store at once.
func (c *Cluster) Kill(id uint64) {
	c.stimulus++
	s := c.stores[id]
	if !s.alive {
		return
	}
	s.alive, s.died = false, c.now
	// PD learns of it later: what was under way until then may have to be undone.
	life := s.life
	c.after(c.o.StoreDownAfter-c.o.Heartbeat, func() {
		if !s.alive && s.life == life {
			c.stimulus++
		}
	})
	s.images, s.busy = map[uint64]bool{}, map[uint64]bool{}
	for _, rangeID := range slices.Sorted(maps.Keys(s.held)) {
		p := s.held[rangeID]
		p.config = p.r.desc.GetEpoch().GetConfig()
		c.judge(p.r, fmt.Sprintf("death of store %d", id))
		if p.r.leader.GetReplicaId() == p.id {
			c.setLeader(p.r, nil)
			c.elect(p.r)
		}
	}
}

// Start starts a store that was killed.
func (c *Cluster) Start(id uint64) {
	c.stimulus++
	s := c.stores[id]
	if s.alive {
		return
	}
	s.boot()
	// PD learns of it later, and replaces what is there until then.
	life := s.life
	c.after(c.o.Heartbeat+c.Pass+time.Second, func() {
		if s.alive && s.life == life {
			c.stimulus++
		}
	})
}

// boot lets the store live: it says so, reports, and goes on with what it was
// receiving.
func (s *store) boot() {
	s.alive, s.looking, s.dropped = true, false, false
	s.life++
	s.images, s.busy = map[uint64]bool{}, map[uint64]bool{}
	clear(s.changed)
	for _, rangeID := range slices.Sorted(maps.Keys(s.held)) {
		p := s.held[rangeID]
		s.receive(p)
		if p.r.leader == nil {
			s.c.elect(p.r)
		}
	}
	life := s.life
	// Processes are not started in the same instant.
	s.c.after(time.Duration(s.c.rnd.Int64N(int64(s.c.o.Heartbeat))), func() { s.heartbeats(life) })
	s.c.after(time.Duration(s.c.rnd.Int64N(int64(lookPeriod))), func() { s.fullReports(life) })
}

func (s *store) heartbeats(life int) {
	if !s.alive || s.life != life {
		return
	}
	stats, pd := s.stats(), s.c.pd
	s.c.message(func() { pd.heard(s.record.GetStoreId(), stats) })
	s.c.after(s.c.o.Heartbeat, func() { s.heartbeats(life) })
}

func (s *store) stats() *pdpb.StoreStats {
	return &pdpb.StoreStats{
		CapacityBytes: s.capacity, UsedBytes: s.used,
		AvailableBytes: s.capacity - min(s.used, s.capacity),
		RangeCount:     uint64(len(s.held)), ApplyingImages: uint64(len(s.images)),
		LeaderCount: uint64(s.leaders),
	}
}

func (s *store) fullReports(life int) {
	if !s.alive || s.life != life {
		return
	}
	s.report(true)
	s.c.after(s.c.FullReport, func() { s.fullReports(life) })
}

// note lets the store report a range of its soon.
func (s *store) note(rangeID uint64) {
	s.changed[rangeID] = true
	s.look()
}

func (s *store) look() {
	if s.looking || !s.alive {
		return
	}
	s.looking = true
	life := s.life
	s.c.after(lookPeriod, func() {
		if s.life == life && s.looking {
			s.report(s.dropped)
		}
	})
}

func (s *store) report(complete bool) {
	s.looking = false
	if complete {
		s.dropped = false
	}
	ids := slices.Sorted(maps.Keys(s.changed))
	if complete {
		ids = slices.Sorted(maps.Keys(s.held))
	}
	clear(s.changed)
	m := &pdpb.RangeHeartbeatRequest{StoreId: s.record.GetStoreId(), Complete: complete}
	for _, id := range ids {
		p := s.held[id]
		if p == nil {
			continue
		}
		local := &pdpb.LocalReplica{
			RangeId: id, ReplicaId: p.id, ConfigEpoch: p.config, Led: p.r.leader != nil,
			Joining: !p.full, Role: metapb.Role_ROLE_LEARNER,
		}
		if member := find(p.r.desc, p.id); member != nil {
			local.Role, local.ConfigEpoch = member.GetRole(), p.r.desc.GetEpoch().GetConfig()
		}
		m.Replicas = append(m.Replicas, local)
		if p.r.leader.GetReplicaId() == p.id {
			m.Ranges = append(m.Ranges, s.c.rangeReport(p.r))
		}
	}
	pd := s.c.pd
	s.c.message(func() { pd.ingest(s, m) })
}

// rangeReport is what the leader of r says.
func (c *Cluster) rangeReport(r *vrange) *pdpb.RangeReport {
	seconds := c.now.Sub(r.opsSince).Seconds()
	r.applied++
	out := &pdpb.RangeReport{
		Range: r.desc, SizeBytes: r.size, KeyCount: r.keys, AppliedIndex: r.applied,
		Leader: &metapb.Leader{
			ReplicaId: r.leader.GetReplicaId(), StoreId: r.leader.GetStoreId(), Term: r.term,
		},
		ReadOps:  r.readOps + uint64(seconds*float64(r.reads)),
		WriteOps: r.writeOps + uint64(seconds*float64(r.writes)),
		ReadRate: r.reads, WriteRate: r.writes,
		Health: make([]*pdpb.ReplicaHealth, 0, len(r.desc.GetReplicas())),
	}
	for _, m := range r.desc.GetReplicas() {
		out.Health = append(out.Health, &pdpb.ReplicaHealth{
			ReplicaId: m.GetReplicaId(),
			Lagging:   m.GetRole() == metapb.Role_ROLE_LEARNER && !c.serves(m, r),
		})
	}
	return out
}

// serves reports whether a member lives and is a full copy.
func (c *Cluster) serves(m *metapb.Replica, r *vrange) bool {
	s := c.stores[m.GetStoreId()]
	p := s.held[r.desc.GetRangeId()]
	return s.alive && p != nil && p.id == m.GetReplicaId() && p.full
}

// quorum reports whether a majority of the voters of r serves.
func (c *Cluster) quorum(r *vrange) bool {
	voters, serving := c.tally(r, r.desc.GetReplicas(), c.serves)
	return serving > voters/2
}

func (c *Cluster) tally(
	r *vrange, members []*metapb.Replica, serves func(*metapb.Replica, *vrange) bool,
) (voters, serving int) {
	for _, m := range members {
		if m.GetRole() == metapb.Role_ROLE_VOTER {
			voters++
			if serves(m, r) {
				serving++
			}
		}
	}
	return voters, serving
}

// elect finds a leader for r in a while, if a majority serves then.
func (c *Cluster) elect(r *vrange) {
	if r.electing {
		return
	}
	r.electing = true
	c.after(electionTime+time.Duration(c.rnd.Int64N(int64(electionTime))), func() {
		r.electing = false
		if r.leader != nil || !c.quorum(r) {
			return // who comes back tries again
		}
		var fit []*metapb.Replica
		for _, m := range r.desc.GetReplicas() {
			if m.GetRole() == metapb.Role_ROLE_VOTER && c.serves(m, r) {
				fit = append(fit, m)
			}
		}
		c.lead(r, fit[c.rnd.IntN(len(fit))])
	})
}

// setLeader keeps count of who leads.
func (c *Cluster) setLeader(r *vrange, m *metapb.Replica) {
	if r.leader != nil {
		c.stores[r.leader.GetStoreId()].leaders--
	}
	if r.leader = m; m != nil {
		c.stores[m.GetStoreId()].leaders++
	}
}

// lead makes m the leader of r, which its store and the former leader's report.
func (c *Cluster) lead(r *vrange, m *metapb.Replica) {
	old := r.leader
	c.setLeader(r, m)
	r.term++
	c.stores[m.GetStoreId()].note(r.desc.GetRangeId())
	if old != nil && c.stores[old.GetStoreId()].held[r.desc.GetRangeId()] != nil {
		c.stores[old.GetStoreId()].note(r.desc.GetRangeId())
	}
	for _, p := range r.desc.GetReplicas() {
		if s := c.stores[p.GetStoreId()]; s.alive && s.held[r.desc.GetRangeId()] != nil {
			s.receive(s.held[r.desc.GetRangeId()])
		}
	}
}

// receive begins to fetch the image of a member that is not a full copy.
func (s *store) receive(p *replica) {
	id := p.r.desc.GetRangeId()
	if p.full || s.images[id] || find(p.r.desc, p.id) == nil || p.r.leader == nil {
		return
	}
	s.images[id] = true
	if n := len(s.images); n > s.c.o.StoreMoves {
		s.c.fault("store %d receives %d images, the limit is %d", s.record.GetStoreId(), n,
			s.c.o.StoreMoves)
	}
	rate := s.c.o.ImageBytesPerSecond / uint64(s.c.o.StoreMoves)
	took := 300*time.Millisecond + time.Duration(p.r.size*uint64(time.Second)/rate)
	life := s.life
	s.c.after(took, func() {
		if s.life != life || !s.alive || !s.images[id] || s.held[id] != p {
			return
		}
		delete(s.images, id)
		if p.r.leader == nil {
			return // the next leader sends it
		}
		p.full = true
		s.used += p.r.size
		s.note(id)
		s.c.stores[p.r.leader.GetStoreId()].note(id)
	})
}

func find(r *metapb.Range, replicaID uint64) *metapb.Replica {
	for _, m := range r.GetReplicas() {
		if m.GetReplicaId() == replicaID {
			return m
		}
	}
	return nil
}
