package schedule

import (
	"bytes"
	"cmp"
	"slices"
	"strings"

	"github.com/ridgekv/ridge/pd/internal/operator"
	"github.com/ridgekv/ridge/pd/internal/topology"
	"github.com/ridgekv/ridge/proto/keys"
	metapb "github.com/ridgekv/ridge/proto/ridge/meta/v1"
	pdpb "github.com/ridgekv/ridge/proto/ridge/pd/v1"
)

// seat is a store as planners count on it: as it will be when everything in
// flight, and everything planned so far in this pass, is done.
type seat struct {
	id    uint64
	store *topology.Store
	// up stores take part in balancing; fit ones may receive replicas now; low
	// ones are well below the high watermark, so that balancing may give to them.
	up, fit, low bool
	// usedPercent tells how full its disk is.
	usedPercent int
	// domains are its failure domains, the widest first, as numbers.
	domains []int
	// share is its capacity, as a part of the mean.
	share float64

	leaders, replicas int
	weight            float64
	load              float64
	// led and held are indexes of ranges that nothing changes yet.
	led, held []int32
}

// fullness is what balancing compares.
func (s *seat) fullness() float64 { return s.weight / s.share }

// aim is what a rule, or the configuration, wants of a range.
type aim struct {
	rule *pdpb.PlacementRule
	// voters is the number wanted, target the odd number that the fitting stores
	// which are up allow, stores how many of those there are.
	voters, target, stores int
	// cost is the least isolation cost that target voters can have.
	cost int64
}

// segment begins where a rule begins or ends.
type segment struct {
	start []byte
	aim   *aim
}

const (
	// maxLevels is how many location labels count.
	maxLevels = 8
	// lowGap, in percent, lies between a disk that is emptied because it is over
	// the high watermark, and one that balancing may fill.
	lowGap = 5
	// costBase is above the number of pairs among the members of a range.
	costBase = 64
)

// seatStores counts what every store has.
func (p *Planner) seatStores() {
	known, sum := 0, 0.0
	domains := map[string]int{}
	for _, s := range p.v.Stores {
		state := p.v.State(s)
		t := &seat{
			id: s.Store.GetStoreId(), store: s, share: 1,
			up: state == metapb.StoreState_STORE_STATE_UP && s.Stats != nil && !p.v.Silent(s),
		}
		if c := s.Stats.GetCapacityBytes(); c > 0 {
			t.usedPercent = int(100 * float64(c-min(c, s.Stats.GetAvailableBytes())) / float64(c))
			known, sum = known+1, sum+float64(c)
		}
		t.fit = p.v.Receives(s) &&
			(p.v.HighWaterPercent == 0 || t.usedPercent < p.v.HighWaterPercent)
		t.low = t.fit && (p.v.HighWaterPercent == 0 || t.usedPercent < p.v.HighWaterPercent-lowGap)
		path := ""
		for _, key := range p.v.LocationLabels[:min(maxLevels, len(p.v.LocationLabels))] {
			path += "\x00" + s.Store.GetLabels()[key]
			if domains[path] == 0 {
				domains[path] = len(domains) + 1
			}
			t.domains = append(t.domains, domains[path])
		}
		p.seats = append(p.seats, t)
	}
	if known != len(p.seats) || known == 0 {
		return // without all capacities all disks count alike
	}
	for _, t := range p.seats {
		t.share = float64(t.store.Stats.GetCapacityBytes()) * float64(known) / sum
	}
}

// seat finds a store; nil when it is not known.
func (p *Planner) seat(id uint64) *seat {
	i, ok := slices.BinarySearchFunc(p.seats, id, func(s *seat, id uint64) int {
		return cmp.Compare(s.id, id)
	})
	if !ok {
		return nil
	}
	return p.seats[i]
}

// weigh counts all ranges in, as they will be.
func (p *Planner) weigh() {
	flying := make(map[uint64]*operator.Operator, len(p.f.Operators))
	for _, o := range p.f.Operators {
		flying[o.RangeID] = o
	}
	for i, r := range p.v.Ranges {
		o := flying[r.Range.GetRangeId()]
		if o == nil {
			p.count(r, 1)
			p.index(int32(i), r)
			continue
		}
		for _, s := range o.Steps[o.Current:] {
			r = After(r, s)
		}
		p.count(r, 1)
	}
}

func (p *Planner) index(i int32, r *topology.Range) {
	if s := p.seat(r.Leader.GetStoreId()); s != nil {
		s.led = append(s.led, i)
	}
	for _, m := range r.Range.GetReplicas() {
		if s := p.seat(m.GetStoreId()); s != nil {
			s.held = append(s.held, i)
		}
	}
}

// count adds what r costs to its stores, or takes it away.
func (p *Planner) count(r *topology.Range, sign int) {
	w, l := float64(sign)*p.weight(r), float64(sign)*float64(r.Report.GetWriteRate())
	for _, m := range r.Range.GetReplicas() {
		if s := p.seat(m.GetStoreId()); s != nil {
			s.replicas += sign
			s.weight += w
			s.load += l
		}
	}
	if s := p.seat(r.Leader.GetStoreId()); s != nil {
		s.leaders += sign
		s.load += float64(sign) * leaderLoad(r)
	}
}

// leaderLoad is what leading r costs beyond holding it.
func leaderLoad(r *topology.Range) float64 {
	return float64(r.Report.GetReadRate() + r.Report.GetWriteRate())
}

// weight is what a replica counts for: its bytes, and something for being one.
func (p *Planner) weight(r *topology.Range) float64 {
	return float64(r.SizeBytes()) + max(1, float64(p.v.SplitSizeBytes)/4)
}

// take counts an operator in that was planned in this pass.
func (p *Planner) take(op *operator.Operator, r *topology.Range) {
	p.taken[op.RangeID] = true
	after := r
	for _, s := range op.Steps {
		after = After(after, s)
	}
	p.count(r, -1)
	p.count(after, 1)
}

// aims prepares the rules: the key space in segments, each with the narrowest
// rule that covers it.
func (p *Planner) aims() {
	p.standard = p.newAim(nil)
	if len(p.v.Rules) == 0 {
		return
	}
	byRule := make([]*aim, len(p.v.Rules))
	bounds := [][]byte{{}}
	for i, r := range p.v.Rules {
		byRule[i] = p.newAim(r)
		bounds = append(bounds, r.GetSpan().GetStart())
		if len(r.GetSpan().GetEnd()) > 0 {
			bounds = append(bounds, r.GetSpan().GetEnd())
		}
	}
	slices.SortFunc(bounds, bytes.Compare)
	for _, b := range slices.CompactFunc(bounds, bytes.Equal) {
		s := segment{start: b, aim: p.standard}
		var narrow keys.Span
		for i, r := range p.v.Rules {
			span := keys.FromProto(r.GetSpan())
			if span.Contains(b) && (s.aim == p.standard || narrow.ContainsSpan(span)) {
				s.aim, narrow = byRule[i], span
			}
		}
		p.segments = append(p.segments, s)
	}
}

func (p *Planner) newAim(rule *pdpb.PlacementRule) *aim {
	a := &aim{rule: rule, voters: p.v.Replicas}
	if n := int(rule.GetVoters()); n > 0 {
		a.voters = n
	}
	var up []*seat
	for _, s := range p.seats {
		if p.v.State(s.store) == metapb.StoreState_STORE_STATE_UP && s.store.Stats != nil &&
			s.store.Fulfils(rule.GetConstraints()) {
			a.stores++
			up = append(up, s)
		}
	}
	a.target = odd(a.voters, a.stores)
	var chosen []*seat
	for range min(a.target, a.stores) {
		best := -1
		var least int64
		for i, s := range up {
			if c := marginalCost(chosen, s); best < 0 || c < least {
				best, least = i, c
			}
		}
		a.cost += least
		chosen, up = append(chosen, up[best]), slices.Delete(slices.Clone(up), best, best+1)
	}
	return a
}

// odd is the largest odd number of voters that stores allow, at least 1.
func odd(voters, stores int) int {
	n := max(1, min(voters, stores))
	if n%2 == 0 {
		n--
	}
	return n
}

// aimOf is what is wanted of r. A range that crosses a boundary of rules follows
// the rule at its start until it is split there.
func (p *Planner) aimOf(r *topology.Range) *aim {
	if len(p.segments) == 0 {
		return p.standard
	}
	i, found := p.segmentAt(r.Range.GetSpan().GetStart())
	if !found {
		i--
	}
	return p.segments[i].aim
}

func (p *Planner) segmentAt(key []byte) (int, bool) {
	return slices.BinarySearchFunc(p.segments, key, func(s segment, key []byte) int {
		return bytes.Compare(s.start, key)
	})
}

// boundary is the first key within r where a rule begins or ends; nil when there
// is none.
func (p *Planner) boundary(r *topology.Range) []byte {
	if len(p.segments) == 0 {
		return nil
	}
	span := keys.FromProto(r.Range.GetSpan())
	i, found := p.segmentAt(span.Start)
	if found {
		i++
	}
	if i < len(p.segments) && span.Contains(p.segments[i].start) {
		return p.segments[i].start
	}
	return nil
}

// marginalCost is what one more replica on s costs beside those on others: for
// each it shares a failure domain with, the more the wider that is.
func marginalCost(others []*seat, s *seat) int64 {
	var cost int64
	for _, o := range others {
		if o == s {
			continue
		}
		unit := int64(1)
		for i := len(s.domains) - 1; i >= 0; i-- {
			if o.domains[i] == s.domains[i] {
				cost += unit
			}
			unit *= costBase
		}
	}
	return cost
}

// cost is the isolation cost of replicas on these stores; 0 when no two share a
// failure domain.
func cost(seats []*seat) int64 {
	var sum int64
	for i, s := range seats {
		sum += marginalCost(seats[:i], s)
	}
	return sum
}

// seatsOf are the stores of members, but for one; unknown stores are left out.
func (p *Planner) seatsOf(members []*metapb.Replica, except uint64) []*seat {
	out := make([]*seat, 0, len(members))
	for _, m := range members {
		if s := p.seat(m.GetStoreId()); s != nil && m.GetReplicaId() != except {
			out = append(out, s)
		}
	}
	return out
}

// shared names the narrowest kind of failure domain that two of the seats share.
func (p *Planner) shared(seats []*seat) string {
	for level, key := range p.v.LocationLabels[:min(maxLevels, len(p.v.LocationLabels))] {
		seen := map[int]bool{}
		for _, s := range seats {
			if seen[s.domains[level]] {
				return strings.TrimSpace(key + " " + s.store.Store.GetLabels()[key])
			}
			seen[s.domains[level]] = true
		}
	}
	return ""
}
