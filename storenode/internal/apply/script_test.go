package apply

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/cockroachdb/datadriven"
	sm "github.com/lni/dragonboat/v4/statemachine"

	logpb "github.com/ridgekv/ridge/proto/ridge/log/v1"
	metapb "github.com/ridgekv/ridge/proto/ridge/meta/v1"
	"github.com/ridgekv/ridge/proto/ts"
	"github.com/ridgekv/ridge/storenode/internal/engine"
)

// TestScripts runs testdata/*.txt. Run with -rewrite to accept what it prints.
func TestScripts(t *testing.T) {
	datadriven.Walk(t, "testdata", func(t *testing.T, path string) {
		if !strings.HasSuffix(path, ".txt") {
			return
		}
		var s *script
		datadriven.RunTest(t, path, func(t *testing.T, d *datadriven.TestData) string {
			if d.Cmd == "store" {
				s = &script{t: t, store: newStore(t), index: map[uint64]uint64{1: 5}}
				return s.show(1)
			}
			s.t, s.store.t = t, t
			return s.run(d)
		})
	})
}

// script is one store that a script speaks to.
type script struct {
	t        *testing.T
	store    *store
	index    map[uint64]uint64
	machines map[uint64]*Machine
}

func (s *script) run(d *datadriven.TestData) string {
	rangeID := uint64(1)
	d.MaybeScanArgs(s.t, "range", &rangeID)
	switch d.Cmd {
	case "apply": // one entry per line, one Update for all; prints the results
		return s.apply(rangeID, d.Input)
	case "show":
		return s.show(rangeID)
	case "rows":
		return s.rows(rangeID)
	case "garbage":
		return s.garbage()
	case "config": // what ConfigIndex answers: a number or unknown
		s.store.unknown = d.CmdArgs[0].Key == "unknown"
		if !s.store.unknown {
			s.store.config, _ = strconv.ParseUint(d.CmdArgs[0].Key, 10, 64)
		}
		return ""
	case "restart": // without a flush, in the same process or as after a kill
		dir := s.t.TempDir()
		copyDir(s.t, s.store.dir, dir)
		config, unknown := s.store.config, s.store.unknown
		s.store.close()
		s.store = openStore(s.t, dir, testStoreID)
		s.store.config, s.store.unknown = config, unknown
		s.machines, s.index = nil, map[uint64]uint64{}
		return s.list()
	case "join":
		var replicaID uint64
		d.ScanArgs(s.t, "replica", &replicaID)
		s.store.join(rangeID, replicaID)
		return s.list()
	case "destroy":
		if err := s.store.catalog.Destroy(rangeID, s.store.replica(rangeID).State().ReplicaID()); err != nil {
			return err.Error()
		}
		return s.list()
	case "settle":
		if err := s.store.catalog.SettleBirths(); err != nil {
			return err.Error()
		}
		return s.show(rangeID)
	case "lookup":
		r, ok := s.store.catalog.Lookup([]byte(d.CmdArgs[0].Key))
		if !ok {
			return "nowhere"
		}
		return fmt.Sprintf("range %d", r.RangeID())
	case "list":
		return s.list()
	}
	d.Fatalf(s.t, "unknown command %s", d.Cmd)
	return ""
}

func (s *script) machine(rangeID uint64) *Machine {
	if s.machines == nil {
		s.machines = map[uint64]*Machine{}
	}
	if s.machines[rangeID] == nil {
		s.machines[rangeID] = s.store.machine(rangeID)
	}
	return s.machines[rangeID]
}

func (s *script) apply(rangeID uint64, input string) string {
	var entries []sm.Entry
	m := s.machine(rangeID)
	for line := range strings.Lines(input) {
		if line = strings.TrimSpace(line); line == "" {
			continue
		}
		if s.index[rangeID] == 0 {
			s.index[rangeID] = s.store.replica(rangeID).Applied().Index
		}
		s.index[rangeID]++
		entries = append(entries, sm.Entry{Index: s.index[rangeID], Cmd: s.parse(line)})
	}
	var out strings.Builder
	for i, r := range s.store.update(m, entries...) {
		fmt.Fprintf(&out, "%d: %s", entries[i].Index, ResultName(r.Value))
		if len(r.Data) > 0 {
			fmt.Fprintf(&out, " (%s)", r.Data)
		}
		out.WriteByte('\n')
	}
	s.store.checkLaw2()
	return out.String()
}

// parse reads "kind t=1 n=2 e=1 ..." as an entry.
func (s *script) parse(line string) []byte {
	kind, rest, _ := strings.Cut(line, " ")
	args, words := map[string]uint64{}, []string(nil)
	for word := range strings.FieldsSeq(rest) {
		k, v, ok := strings.Cut(word, "=")
		n, err := strconv.ParseUint(v, 10, 64)
		if ok && err == nil && (len(k) > 1 || strings.Contains("tne", k)) {
			args[k] = n
			continue
		}
		words = append(words, word)
	}
	h := Header{Tenure: args["t"], Number: args["n"], SpanEpoch: args["e"], MinVersion: 1}
	switch kind {
	case "write": // words: k=v puts, k=v^9 expires at 9, -k deletes
		h.Kind = KindWrite
		return EncodeWrite(h, ts.Timestamp(args["ts"]), effects(words))
	case "acquire":
		h.Kind = KindAcquireLease
		return EncodeMessage(h, &logpb.AcquireLease{
			HolderReplicaId: args["holder"], HolderStoreId: args["store"],
			Nonce: args["nonce"], ExpectedTenure: args["expect"],
		})
	case "bound":
		h.Kind = KindRaiseReadBound
		return EncodeMessage(h, &logpb.RaiseReadBound{ReadBound: args["at"]})
	case "safepoint":
		h.Kind = KindSetTxnSafePoint
		return EncodeMessage(h, &logpb.SetTxnSafePoint{Ts: args["at"]})
	case "checksum":
		h.Kind = KindChecksum
		return EncodeMessage(h, &logpb.Checksum{CheckId: args["id"]})
	case "split":
		h.Kind = KindSplit
		p := splitMessage(words[0], args["child"])
		p.ExpectedConfig = cmp.Or(args["config"], p.ExpectedConfig)
		p.MaxReadTs = args["read"]
		if args["learner"] != 0 {
			p.ChildReplicas[1].Role = metapb.Role_ROLE_LEARNER
		}
		if args["elsewhere"] != 0 {
			p.ChildReplicas = p.ChildReplicas[1:]
		}
		return EncodeMessage(h, p)
	case "bytes":
		return []byte(strings.Join(words, ""))
	case "kind":
		return []byte{1, byte(args["id"]), 1, 1, 1, 1}
	}
	s.t.Fatalf("unknown entry %q", line)
	return nil
}

func effects(words []string) []Effect {
	var out []Effect
	for _, w := range words {
		if key, ok := strings.CutPrefix(w, "-"); ok {
			out = append(out, Effect{Key: []byte(key), Delete: true})
			continue
		}
		key, value, _ := strings.Cut(w, "=")
		value, at, _ := strings.Cut(value, "^")
		n, _ := strconv.ParseUint(at, 10, 64)
		out = append(out, Effect{
			Key: []byte(key), Value: []byte(value), ExpiresAt: ts.Timestamp(n),
		})
	}
	return out
}

func (s *script) show(rangeID uint64) string {
	r, ok := s.store.catalog.Replica(rangeID)
	if !ok {
		return "not here"
	}
	state, a := r.Both()
	var out strings.Builder
	fmt.Fprintf(&out, "replica %d %s of range %d %s epoch=%d", state.ReplicaID(),
		strings.ToLower(strings.TrimPrefix(state.Status().String(), "REPLICA_STATE_")),
		rangeID, state.Span(), state.SpanEpoch())
	fmt.Fprintf(&out, "\napplied: index=%d number=%d max=%d", a.Index, a.Number, a.MaxCommitTS)
	if l := state.Lease(); l != nil {
		fmt.Fprintf(&out, "\nlease: tenure=%d holder=%d/%d nonce=%d",
			l.Tenure, l.HolderReplicaId, l.HolderStoreId, l.Nonce)
	}
	if p := state.Previous(); p != nil {
		fmt.Fprintf(&out, " previous=%d/%d", p.Tenure, p.LastNumber)
	}
	if state.ReadBound() != 0 {
		fmt.Fprintf(&out, "\nbound=%d", state.ReadBound())
	}
	if state.TxnSafePoint() != 0 {
		fmt.Fprintf(&out, "\nsafepoint=%d", state.TxnSafePoint())
	}
	if state.HasTTL() {
		out.WriteString("\nhas ttl")
	}
	for _, x := range state.Slices() {
		fmt.Fprintf(&out, "\nslice %s", x)
	}
	for _, u := range state.Unborn() {
		fmt.Fprintf(&out, "\nunborn %d at %d", u.RangeId, u.SplitIndex)
	}
	if p := state.PB(); p.ParentRangeId != 0 {
		fmt.Fprintf(&out, "\nchild of %d with %d members", p.ParentRangeId, len(p.BirthMembers))
	}
	if state.Halted() != "" {
		fmt.Fprintf(&out, "\nhalted: %s", state.Halted())
	}
	if p := state.PB().PoisonReason; p != "" {
		fmt.Fprintf(&out, "\npoisoned: %s", p)
	}
	return out.String()
}

func (s *script) rows(rangeID uint64) string {
	var out strings.Builder
	state := s.store.replica(rangeID).State()
	for row, err := range s.store.engine.View().Scan(engine.ScanOptions{
		Slices: state.Slices(), Span: state.Span(),
	}) {
		if err != nil {
			return err.Error()
		}
		fmt.Fprintf(&out, "%s=%s @%d", row.Key, row.Row.Value, row.Row.CommitTS)
		if row.Row.ExpiresAt != 0 {
			fmt.Fprintf(&out, " until %d", row.Row.ExpiresAt)
		}
		out.WriteByte('\n')
	}
	return cmp.Or(out.String(), "none")
}

func (s *script) garbage() string {
	list := s.store.engine.Garbage()
	slices.SortFunc(list, func(a, b engine.GarbageSlice) int {
		return cmp.Compare(a.Slice.String(), b.Slice.String())
	})
	var out strings.Builder
	for _, g := range list {
		fmt.Fprintf(&out, "%s receiving=%v\n", g.Slice, g.Receiving)
	}
	return cmp.Or(out.String(), "none")
}

func (s *script) list() string {
	var out strings.Builder
	for _, r := range s.store.catalog.Replicas() {
		fmt.Fprintf(&out, "range %d replica %d index %d\n",
			r.RangeID(), r.State().ReplicaID(), r.Applied().Index)
	}
	return cmp.Or(out.String(), "none")
}
