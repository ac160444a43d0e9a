package schedule

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/cockroachdb/datadriven"
	"go.uber.org/goleak"

	"github.com/ridgekv/ridge/pd/internal/operator"
	"github.com/ridgekv/ridge/pd/internal/topology"
	metapb "github.com/ridgekv/ridge/proto/ridge/meta/v1"
	pdpb "github.com/ridgekv/ridge/proto/ridge/pd/v1"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var now = time.Unix(1_700_000_000, 0)

// TestScripts runs testdata/*.txt. Run with -rewrite to accept what it prints.
//
//	stores [replicas=3] [split=1000] [load=0]    one store per line: id state [since=] [disk=] [ranges=] [full=percent]
//	rule id=x [voters=3] [in=zone:a] [lead=zone:a]    of the whole key space
//	check                               one range per line; prints what is wanted
//	settle                              one range; plans are carried out until none is left
//	balance                             one range per line, "range 1..9" for several alike; what
//	                                    balancing does until it rests, and what stores have then
func TestScripts(t *testing.T) {
	datadriven.Walk(t, "testdata", func(t *testing.T, path string) {
		if !strings.HasSuffix(path, ".txt") {
			return // what a failed property test left
		}
		v := topology.View{}
		datadriven.RunTest(t, path, func(t *testing.T, d *datadriven.TestData) string {
			switch d.Cmd {
			case "stores":
				v = readStores(t, d)
				return fmt.Sprintf("%d stores, %d voters wanted", len(v.Stores), planFor(v).standard.target)
			case "rule":
				v.Rules = append(v.Rules, readRule(t, d))
				return fmt.Sprintf("%d rules", len(v.Rules))
			case "check":
				return check(t, v, d.Input)
			case "settle":
				return settle(t, v, readRange(t, d.Input))
			case "balance":
				return balanceAll(t, v, d.Input)
			}
			t.Fatalf("unknown command %s", d.Cmd)
			return ""
		})
	})
}

// limits are wide: scripts are about what is wanted.
var limits = operator.Limits{StoreMoves: 100, LeaderTransfers: 100, Splits: 100, Operators: 1000}

func planFor(v topology.View) *Planner {
	return NewPlanner(v, operator.Flight{Limits: limits})
}

func check(t *testing.T, v topology.View, input string) string {
	var out strings.Builder
	p := planFor(v)
	for line := range strings.Lines(input) {
		r := readRange(t, line)
		op, why := p.Check(r)
		if op != nil {
			p.take(op, r)
		}
		out.WriteString(show(r, op, why.String()) + "\n")
	}
	return out.String()
}

func show(r *topology.Range, op *operator.Operator, why string) string {
	switch {
	case op != nil && why != "":
		return op.String() + "; else " + why
	case op != nil:
		return op.String()
	case why != "":
		return fmt.Sprintf("range %d: nothing   # %s", r.Range.GetRangeId(), why)
	}
	return fmt.Sprintf("range %d: well", r.Range.GetRangeId())
}

// settle carries plans out, one after the other, as healthy stores would.
func settle(t *testing.T, v topology.View, r *topology.Range) string {
	var out strings.Builder
	for id := uint64(1000); ; id += 100 {
		op, why := planFor(v).Check(r)
		out.WriteString(show(r, op, why.String()) + "\n")
		if op == nil || id > 3000 {
			return out.String() + members(r)
		}
		for i, s := range op.Steps {
			if s.ReplicaID == 0 && s.StoreID != 0 {
				op.Steps[i].ReplicaID = id + s.StoreID
			}
			if why := Allow(v, r, op.Steps[i]); why != "" {
				t.Errorf("%s: %s", op, why)
			}
			r = carryOut(r, op.Steps[i])
		}
	}
}

// balanceAll lets balancing alone work until it wants nothing more.
func balanceAll(t *testing.T, v topology.View, input string) string {
	v.TolerancePercent, v.HighWaterPercent = 5, 80
	for line := range strings.Lines(input) {
		first, last, rest := uint64(0), uint64(0), ""
		if n, _ := fmt.Sscanf(line, "range %d..%d", &first, &last); n == 2 {
			_, rest, _ = strings.Cut(strings.TrimPrefix(line, "range "), " ")
			for id := first; id <= last; id++ {
				v.Ranges = append(v.Ranges, readRange(t, fmt.Sprintf("range %d %s", id, rest)))
			}
			continue
		}
		v.Ranges = append(v.Ranges, readRange(t, line))
	}
	f := Foresee(v, limits, func(op *operator.Operator, _ *topology.Range) bool {
		return op.Priority == operator.Balance
	})
	out := tell(f)
	for _, s := range planFor(f.After).Scores() {
		out += fmt.Sprintf("store %d: %d replicas, %d leaders, %.0f operations/s\n", s.StoreID,
			s.Replicas, s.Leaders, s.Load)
	}
	return out
}

// carryOut is the range after a step.
func carryOut(r *topology.Range, s operator.Step) *topology.Range {
	next := After(r, s)
	if s.Kind == operator.Split {
		next.Report = &pdpb.RangeReport{Health: r.Report.GetHealth(), SizeBytes: 1, KeyCount: 2}
	}
	return next
}

func members(r *topology.Range) string {
	var parts []string
	for _, m := range slices.SortedFunc(slices.Values(r.Range.GetReplicas()),
		func(a, b *metapb.Replica) int { return cmp.Compare(a.GetStoreId(), b.GetStoreId()) }) {
		part := fmt.Sprint(m.GetStoreId())
		if m.GetRole() == metapb.Role_ROLE_LEARNER {
			part += "(learner)"
		}
		if m.GetReplicaId() == r.Leader.GetReplicaId() {
			part += "*"
		}
		parts = append(parts, part)
	}
	return "on " + strings.Join(parts, " ") + "\n"
}

func readStores(t *testing.T, d *datadriven.TestData) topology.View {
	replicas, split := 3, 1000
	d.MaybeScanArgs(t, "replicas", &replicas)
	d.MaybeScanArgs(t, "split", &split)
	load := 0
	d.MaybeScanArgs(t, "load", &load)
	v := topology.View{
		Now: now, DownAfter: 5 * time.Minute, SilentAfter: 5 * time.Second,
		MissingAfter: time.Minute, StaleAfter: 5 * time.Minute,
		Replicas: replicas, SplitSizeBytes: uint64(split), SplitLoadOps: uint64(load),
	}
	if d.HasArg("labels") {
		d.ScanArgs(t, "labels", &v.LocationLabels)
	}
	for line := range strings.Lines(d.Input) {
		words := strings.Fields(line)
		s := &topology.Store{
			Store: &metapb.Store{StoreId: number(t, words[0]), State: metapb.StoreState(
				metapb.StoreState_value["STORE_STATE_"+strings.ToUpper(words[1])])},
			Stats: &pdpb.StoreStats{}, Heard: now,
		}
		for _, w := range words[2:] {
			key, value, _ := strings.Cut(w, "=")
			switch key {
			case "since":
				d, err := time.ParseDuration(value)
				if err != nil {
					t.Fatal(err)
				}
				s.Heard = now.Add(-d)
			case "disk":
				s.Store.DiskState = metapb.DiskState(
					metapb.DiskState_value["DISK_STATE_"+strings.ToUpper(value)])
			case "ranges":
				s.Stats.RangeCount = number(t, value)
			case "new":
				s.Stats = nil
			case "full":
				s.Stats.CapacityBytes, s.Stats.AvailableBytes = 1000, 1000-10*number(t, value)
			case "zone", "ssd":
				if s.Store.Labels == nil {
					s.Store.Labels = map[string]string{}
				}
				s.Store.Labels[key] = value
			default:
				t.Fatalf("unknown word %q", w)
			}
		}
		v.Stores = append(v.Stores, s)
	}
	return v
}

// readRule reads rule id=x [voters=3] [in=label:value] [lead=label:value].
func readRule(t *testing.T, d *datadriven.TestData) *pdpb.PlacementRule {
	r := &pdpb.PlacementRule{Span: &metapb.Span{}}
	var voters int
	var in, lead string
	d.ScanArgs(t, "id", &r.Id)
	d.MaybeScanArgs(t, "voters", &voters)
	d.MaybeScanArgs(t, "in", &in)
	d.MaybeScanArgs(t, "lead", &lead)
	r.Voters = uint32(voters)
	constraint := func(text string) []*pdpb.LabelConstraint {
		key, value, ok := strings.Cut(text, ":")
		if !ok {
			return nil
		}
		return []*pdpb.LabelConstraint{{
			Key: key, Op: pdpb.LabelConstraint_OP_IN, Values: []string{value},
		}}
	}
	r.Constraints, r.LeaderPreference = constraint(in), constraint(lead)
	return r
}

func number(t *testing.T, s string) uint64 {
	t.Helper()
	n, err := strconv.ParseUint(s, 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// readRange reads "range 7 voters=1,2 learners=3 leader=1 size=5 poisoned=2
// missing=2 lost=2 unlisted=2 lagging=3 unborn silent since=1h load=9 halved-at=k hot=k:60". Replicas are named by
// their stores; missing is by the leader's word, lost by that of the store;
// unlisted: the store has not named it yet.
func readRange(t *testing.T, line string) *topology.Range {
	words := strings.Fields(line)
	if len(words) < 2 || words[0] != "range" {
		t.Fatalf("not a range: %q", line)
	}
	r := &topology.Range{
		Range:    &metapb.Range{RangeId: number(t, words[1]), Epoch: &metapb.Epoch{Config: 5, Span: 1}},
		Report:   &pdpb.RangeReport{SizeBytes: 1, KeyCount: 2},
		Reported: now,
	}
	for _, w := range words[2:] {
		key, value, _ := strings.Cut(w, "=")
		var ids []uint64
		for id := range strings.SplitSeq(value, ",") {
			if n, err := strconv.ParseUint(id, 10, 64); err == nil {
				ids = append(ids, n)
			}
		}
		readWord(t, r, key, value, ids)
	}
	return r
}

func readWord(t *testing.T, r *topology.Range, key, value string, ids []uint64) {
	health := func(set func(*pdpb.ReplicaHealth)) {
		for _, id := range ids {
			h := r.Health(100 + id)
			if h == nil {
				h = &pdpb.ReplicaHealth{ReplicaId: 100 + id}
				r.Report.Health = append(r.Report.Health, h)
			}
			set(h)
		}
	}
	switch key {
	case "voters", "learners":
		role := metapb.Role_ROLE_VOTER
		if key == "learners" {
			role = metapb.Role_ROLE_LEARNER
		}
		for _, id := range ids {
			r.Range.Replicas = append(r.Range.Replicas,
				&metapb.Replica{ReplicaId: 100 + id, StoreId: id, Role: role})
		}
	case "leader":
		r.Leader = &metapb.Leader{ReplicaId: 100 + ids[0], StoreId: ids[0]}
	case "size":
		r.Report.SizeBytes = ids[0]
	case "load":
		r.Report.ReadRate, r.Report.WriteRate = ids[0]/2, ids[0]-ids[0]/2
	case "halved-at":
		r.Report.LoadSplitKey = []byte(value)
	case "hot":
		key, percent, _ := strings.Cut(value, ":")
		r.Report.HotKey, r.Report.HotKeyPercent = []byte(key), uint32(number(t, percent))
	case "keys":
		r.Report.KeyCount = ids[0]
	case "unborn":
		r.Report.HasUnbornChildren = true
	case "silent":
		r.Reported = time.Time{}
	case "since":
		d, err := time.ParseDuration(value)
		if err != nil {
			t.Fatal(err)
		}
		r.Reported = now.Add(-d)
	case "poisoned":
		health(func(h *pdpb.ReplicaHealth) { h.Poisoned = true })
	case "missing":
		health(func(h *pdpb.ReplicaHealth) { h.Missing = true })
	case "lagging":
		health(func(h *pdpb.ReplicaHealth) { h.Lagging = true })
	case "lost", "late":
		age := 2 * time.Minute
		if key == "late" {
			age = 30 * time.Second
		}
		for _, id := range ids {
			r.Words = append(r.Words, topology.Word{
				ReplicaID: 100 + id, MissingFrom: now.Add(-age), MissingTo: now,
			})
		}
	case "unlisted":
		for _, id := range ids {
			r.Words = append(r.Words, topology.Word{ReplicaID: 100 + id, Unlisted: true})
		}
	case "sick":
		for _, id := range ids {
			r.Words = append(r.Words, topology.Word{ReplicaID: 100 + id, Poisoned: true})
		}
	default:
		t.Fatalf("unknown word %q", key)
	}
}
