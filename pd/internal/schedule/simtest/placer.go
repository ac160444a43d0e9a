package simtest

import (
	"fmt"
	"slices"
	"time"

	"github.com/ridgekv/ridge/pd/internal/operator"
	"github.com/ridgekv/ridge/pd/internal/schedule"
	"github.com/ridgekv/ridge/pd/internal/service"
	"github.com/ridgekv/ridge/pd/internal/topology"
	metapb "github.com/ridgekv/ridge/proto/ridge/meta/v1"
	pdpb "github.com/ridgekv/ridge/proto/ridge/pd/v1"
)

// What PD is configured with, as in pd/driver.go and pd/options.go.
const (
	silentHeartbeats = 5
	missingAfter     = time.Minute
	scheduleAfter    = 30 * time.Second
	operatorTimeout  = 2 * time.Minute
	highWaterPercent = 80
	maxSplits        = 32
	maxOperators     = 1000
	persistInterval  = time.Second
)

// placer is one leadership of PD.
type placer struct {
	c         *Cluster
	topology  *topology.Topology
	operators *operator.Controller
	leading   *service.Leading
	began     time.Time
	epoch     uint64
	// persisted is what outlives this leadership.
	persisted map[uint64]*metapb.Range
	verdicts  []schedule.Verdict
	// records are what was said of the stores last, rendered.
	records      map[uint64]*pdpb.StoreRecord
	lastOperator string
	// last is what the last pass saw, planned when it was.
	last    topology.View
	planned time.Time
	// longest is the longest time, of the real clock, that a pass took.
	longest time.Duration
}

// ChangeLeader gives PD a new leader: what is in flight is forgotten, streams
// break, and everything is reported anew.
func (c *Cluster) ChangeLeader() {
	c.stimulus++
	old := c.pd
	p := &placer{
		c: c, began: c.now, epoch: 1, persisted: map[uint64]*metapb.Range{},
		records: map[uint64]*pdpb.StoreRecord{},
	}
	var ranges []*metapb.Range
	if old != nil {
		p.epoch, p.persisted = old.epoch+1, old.persisted
		for _, r := range p.persisted {
			ranges = append(ranges, r)
		}
		slices.SortFunc(ranges, func(a, b *metapb.Range) int {
			return int(a.GetRangeId()) - int(b.GetRangeId())
		})
	}
	p.topology = topology.New(c.now, p.storeRecords(), ranges)
	p.operators = operator.NewController(operator.Limits{
		StoreMoves: c.o.StoreMoves, LeaderTransfers: c.o.LeaderTransfers,
		Splits: maxSplits, Operators: maxOperators, StepTimeout: operatorTimeout,
	}, p.epoch<<32)
	p.leading = &service.Leading{Topology: p.topology, Operators: p.operators}
	service.New(service.Options{}).Lead(p.leading)
	c.pd = p
	p.persist()
	if old != nil {
		for _, id := range c.storeIDs() {
			s := c.stores[id]
			s.dropped = true
			s.look()
		}
	}
}

// storeRecords are what PD's group knows of the stores: the same record as long
// as nothing was said of the store.
func (p *placer) storeRecords() []*pdpb.StoreRecord {
	var out []*pdpb.StoreRecord
	for _, id := range p.c.storeIDs() {
		out = append(out, p.storeRecord(id))
	}
	return out
}

func (p *placer) storeRecord(id uint64) *pdpb.StoreRecord {
	s := p.c.stores[id]
	if p.records[id].GetStore() != s.record {
		p.records[id] = &pdpb.StoreRecord{Store: s.record, Activated: true}
	}
	return p.records[id]
}

func (p *placer) current() bool { return p.c.pd == p }

func (p *placer) heard(id uint64, stats *pdpb.StoreStats) {
	if p.current() {
		p.topology.PutStores([]*pdpb.StoreRecord{p.storeRecord(id)}, p.c.now)
		p.topology.HeardStore(id, stats, metapb.DiskState_DISK_STATE_OK, p.c.now)
	}
}

func (p *placer) ingest(s *store, m *pdpb.RangeHeartbeatRequest) {
	if p.current() {
		p.send(s.record.GetStoreId(), p.leading.Ingest(s.record.GetStoreId(), m, p.c.now))
	}
}

func (p *placer) reportSplit(left, right *pdpb.RangeReport) {
	if p.current() {
		p.topology.Report(left, p.c.now)
		p.topology.Report(right, p.c.now)
	}
}

// send brings orders to a store. Orders of a former leader are not taken back:
// they may arrive when another leads.
func (p *placer) send(id uint64, orders []*pdpb.Order) {
	if s := p.c.stores[id]; len(orders) > 0 && s != nil {
		p.c.message(func() {
			for _, o := range orders {
				s.obey(o)
			}
		})
	}
}

// persist writes down what changed, as PD does.
func (p *placer) persist() {
	if !p.current() {
		return
	}
	ranges, dropped := p.topology.TakeDirty()
	for _, r := range ranges {
		p.persisted[r.GetRangeId()] = r
	}
	for _, id := range dropped {
		delete(p.persisted, id)
	}
	p.c.after(persistInterval, p.persist)
}

func (p *placer) view() topology.View {
	v := p.topology.View(p.c.now)
	v.DownAfter = p.c.o.StoreDownAfter
	v.SilentAfter = silentHeartbeats * p.c.o.Heartbeat
	v.MissingAfter, v.StaleAfter = missingAfter, max(p.c.o.StoreDownAfter, time.Minute)
	v.Replicas, v.SplitSizeBytes = p.c.o.Replicas, p.c.o.SplitSizeBytes
	v.LocationLabels, v.Rules = p.c.o.LocationLabels, p.c.o.Rules
	v.HighWaterPercent, v.TolerancePercent = highWaterPercent, p.c.o.TolerancePercent
	return v
}

// pass plans once, as the driver does.
func (p *placer) pass() {
	c, began := p.c, time.Now()
	defer func() { p.longest = max(p.longest, time.Since(began)) }()
	p.topology.PutStores(p.storeRecords(), c.now)
	v := p.view()
	if !p.waits(v) {
		p.plan(v)
	}
	p.last, p.planned = v, c.now
}

// advance moves the operators on by what is known of the stores now.
func (p *placer) advance() {
	c, v := p.c, p.last
	if v.Stores == nil {
		return // not before the first pass
	}
	v.Now, v.Stores = c.now, p.topology.Stores()
	allow := func(r *topology.Range, s operator.Step) string { return c.allow(v, r, s) }
	orders, _ := p.operators.Advance(p.topology.Range, allow, c.now)
	for _, id := range c.storeIDs() {
		p.send(id, orders[id])
	}
}

func (p *placer) waits(v topology.View) bool {
	reported := 0
	for _, r := range v.Ranges {
		if !r.Reported.IsZero() {
			reported++
		}
	}
	return 10*reported < 9*len(v.Ranges) && p.c.now.Sub(p.began) <= scheduleAfter
}

func (p *placer) plan(v topology.View) {
	plan := p.c.plan(v, p.operators.Flight())
	p.verdicts = plan.Verdicts
	for _, op := range plan.Operators {
		if why := p.admit(op); why != "" {
			p.verdicts = append(p.verdicts, schedule.Verdict{RangeID: op.RangeID, Reason: why})
		}
	}
}

func (p *placer) admit(op *operator.Operator) string {
	if why := p.operators.Room(op); why != "" {
		return why
	}
	r := p.topology.Range(op.RangeID)
	if r == nil {
		return "the range is gone"
	}
	named := map[uint64]uint64{}
	for i, s := range op.Steps {
		if s.StoreID == 0 || s.ReplicaID != 0 {
			continue
		}
		if named[s.StoreID] == 0 {
			named[s.StoreID] = p.c.id()
		}
		op.Steps[i].ReplicaID = named[s.StoreID]
	}
	if err := p.operators.Admit(op, r, p.c.now); err != nil {
		return err.Error()
	}
	p.c.Planned++
	p.c.lastPlan = p.c.now
	p.lastOperator = op.String()
	return ""
}

// busyWith describes what PD does and why it does not do more.
func (p *placer) busyWith() string {
	list := p.operators.List(p.c.now)
	out := fmt.Sprintf("%d operators, %d verdicts, last: %s", len(list), len(p.verdicts),
		p.lastOperator)
	for _, o := range list[:min(3, len(list))] {
		out += fmt.Sprintf("\n  range %d at step %d of %v: %s, for %d ms", o.GetRangeId(),
			o.GetCurrent(), o.GetSteps(), o.GetReason(), o.GetAgeMs())
	}
	for _, w := range p.verdicts[:min(3, len(p.verdicts))] {
		out += fmt.Sprintf("\n  range %d, store %d, %s: %s", w.RangeID, w.StoreID, w.By, w)
	}
	return out
}
