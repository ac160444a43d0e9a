package apply

import (
	"cmp"
	"maps"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"testing"

	sm "github.com/lni/dragonboat/v4/statemachine"
	"google.golang.org/protobuf/proto"

	logpb "github.com/ridgekv/ridge/proto/ridge/log/v1"
)

// seeds are those of RIDGE_SEED, or n random ones; many with RIDGE_LONG.
func seeds(t *testing.T, n int) []uint64 {
	t.Helper()
	if s, err := strconv.ParseUint(os.Getenv("RIDGE_SEED"), 10, 64); err == nil {
		return []uint64{s}
	}
	if os.Getenv("RIDGE_LONG") != "" {
		n *= 20
	}
	var out []uint64
	for range n {
		out = append(out, rand.Uint64())
	}
	return out
}

// worldSize is how many entries a history has.
func worldSize() int {
	if os.Getenv("RIDGE_LONG") != "" {
		return 300
	}
	return 150
}

// TestCrashAndReplay applies random histories to a store that crashes at
// random points: kill -9, or a power loss that cuts what was not flushed. The
// store replays from the applied index it finds, and must at every start, now
// and then, and in the end be what the model says it is, with and without a row
// cache.
func TestCrashAndReplay(t *testing.T) {
	for _, seed := range seeds(t, 3) {
		t.Run(strconv.FormatUint(seed, 10), func(t *testing.T) {
			rng := rand.New(rand.NewPCG(seed, 0))
			r := &replay{t: t, rng: rng, world: newWorld(rng, worldSize())}
			r.rowCacheSizeBytes = []int64{0, 1 << 20, -1}[seed%3]
			r.store = openStoreCaching(t, t.TempDir(), testStoreID, r.rowCacheSizeBytes)
			r.store.bear()
			r.flush()
			for r.step() {
			}
			r.check()
			r.store.checkLaw2()
			t.Logf("seed %d: %d ranges, %d entries, %d kills, %d power losses (%d lost entries), %d halts",
				seed, len(r.world.past), r.applied, r.kills, r.losses, r.lost, r.halts)
		})
	}
}

// replay drives one store through a world.
type replay struct {
	t        *testing.T
	rng      *rand.Rand
	world    *world
	store    *store
	machines map[uint64]*Machine
	// rowCacheSizeBytes is an option of the store's engine.
	rowCacheSizeBytes int64
	// flushed is how much of the newest memtable log a flush has promised.
	flushed int64

	applied, kills, losses, halts int
	lost                          uint64
}

// step applies some entries of some range, or crashes. It returns false when
// all logs are applied.
func (r *replay) step() bool {
	var todo []uint64
	for _, c := range r.store.catalog.Replicas() {
		if len(r.pending(c.RangeID())) > 0 {
			todo = append(todo, c.RangeID())
		}
	}
	if len(todo) == 0 {
		return false
	}
	switch r.rng.IntN(24) {
	case 0:
		r.kill()
	case 1:
		r.powerLoss()
	case 2:
		r.flush()
	case 3:
		// The config index is unknown while NodeHost closes.
		r.store.unknown = true
	case 4:
		r.check() // The row cache now holds what comes next changes.
	}
	id := todo[r.rng.IntN(len(todo))]
	if _, ok := r.store.catalog.Replica(id); ok { // a crash may have undone its birth
		r.update(id)
	}
	if r.store.unknown {
		r.store.unknown = false
		r.halts++
		r.kill()
	}
	return true
}

// pending are the entries of a range that are not applied.
func (r *replay) pending(id uint64) []modelOp {
	log, applied := r.world.logs[id], r.store.replica(id).Applied().Index
	i, _ := slices.BinarySearchFunc(log, applied+1, func(o modelOp, index uint64) int {
		return cmp.Compare(o.index, index)
	})
	return log[i:]
}

func (r *replay) update(id uint64) {
	ops := r.pending(id)
	ops = ops[:min(len(ops), 1+r.rng.IntN(8))]
	var entries []sm.Entry
	for _, o := range ops {
		entries = append(entries, o.entry())
	}
	if r.machines == nil {
		r.machines = map[uint64]*Machine{}
	}
	if r.machines[id] == nil {
		r.machines[id] = r.store.machine(id)
	}
	for i, got := range r.store.update(r.machines[id], entries...) {
		want := r.world.codes[id][ops[i].index]
		if got.Value == ResultHalted && r.store.unknown {
			return
		}
		if got.Value != want {
			r.t.Fatalf("range %d index %d (%s): %s %s, want %s", id, ops[i].index,
				ops[i].header.Kind, ResultName(got.Value), got.Data, ResultName(want))
		}
		r.applied++
	}
	if got, want := r.store.replica(id).Applied().Index, ops[len(ops)-1].index; got != want {
		r.t.Fatalf("range %d is at %d after entry %d", id, got, want)
	}
}

// flush makes durable what is there.
func (r *replay) flush() {
	if err := r.store.engine.Flush(r.t.Context()); err != nil {
		r.t.Fatal(err)
	}
	r.flushed = usedLog(r.t, r.store.dir)
}

func (r *replay) kill() {
	before := r.indexes()
	r.reopen(nil)
	r.kills++
	if after := r.indexes(); !maps.Equal(before, after) {
		r.t.Fatalf("kill -9 lost something: %v, then %v", before, after)
	}
}

func (r *replay) powerLoss() {
	before := r.indexes()
	r.reopen(func(used int64) int64 {
		keep := min(r.flushed, used)
		return keep + r.rng.Int64N(used-keep+1)
	})
	r.losses++
	after := r.indexes()
	for id, index := range before {
		if after[id] > index {
			r.t.Fatalf("range %d is at %d after a power loss at %d", id, after[id], index)
		}
		r.lost += index - after[id]
	}
}

// reopen starts the store again from a copy of its directory, torn by cut.
func (r *replay) reopen(cut func(used int64) int64) {
	dir := r.t.TempDir()
	copyDir(r.t, r.store.dir, dir)
	if cut != nil {
		tear(r.t, dir, cut)
	}
	r.store.close()
	if err := os.RemoveAll(r.store.dir); err != nil {
		r.t.Fatal(err)
	}
	r.store = openStoreCaching(r.t, dir, testStoreID, r.rowCacheSizeBytes)
	r.machines = nil
	r.flush()
	r.check()
}

func (r *replay) indexes() map[uint64]uint64 {
	out := map[uint64]uint64{}
	for _, c := range r.store.catalog.Replicas() {
		out[c.RangeID()] = c.Applied().Index
	}
	return out
}

// check compares all that is here with the model as of the indexes found.
func (r *replay) check() {
	r.t.Helper()
	at := r.indexes()
	for id, born := range r.world.bornAt {
		_, here := at[id]
		if parent, ok := at[born.parent]; here != (ok && parent >= born.index) {
			r.t.Fatalf("range %d here: %v, its parent %d at %d, the split was at %d",
				id, here, born.parent, parent, born.index)
		}
	}
	for id, index := range at {
		want := r.world.past[id][index]
		if want == nil {
			r.t.Fatalf("range %d is at %d, where there is no entry", id, index)
		}
		state, applied := r.store.replica(id).Both()
		if applied != want.applied || !proto.Equal(state.Replicated(), want.state) {
			r.t.Fatalf("range %d at %d is\n%+v %v\nwant\n%+v %v", id, index,
				applied, state.Replicated(), want.applied, want.state)
		}
		if state.Status() != logpb.ReplicaState_REPLICA_STATE_NORMAL {
			r.t.Fatalf("range %d is %v", id, state.PB())
		}
		r.checkRows(id, want)
	}
}

func (r *replay) checkRows(id uint64, want *modelRange) {
	r.t.Helper()
	var wantVersions, gotVersions []string
	for _, k := range slices.Sorted(maps.Keys(want.rows)) {
		for _, row := range want.rows[k] {
			mark := ""
			if row.deleted {
				mark = "-"
			}
			wantVersions = append(wantVersions, mark+k)
		}
	}
	for _, v := range r.store.versions(id) {
		mark := ""
		if v.mark {
			mark = "-"
		}
		gotVersions = append(gotVersions, mark+v.key)
	}
	if !slices.Equal(gotVersions, wantVersions) {
		r.t.Fatalf("range %d at %d holds versions\n%v, want\n%v", id, want.applied.Index,
			gotVersions, wantVersions)
	}
	view := r.store.engine.View()
	for k, rows := range want.rows {
		x := r.store.replica(id).State().Slices()[0].Extent
		for _, w := range rows {
			got, ok, err := view.GetAt(x, []byte(k), w.at)
			if err != nil {
				r.t.Fatal(err)
			}
			if ok == w.deleted || ok && (got.CommitTS != w.at || string(got.Value) != w.value ||
				got.ExpiresAt != w.expires) {
				r.t.Fatalf("range %d key %s at %d is %v %+v, want %+v", id, k, w.at, ok, got, w)
			}
		}
		newest := rows[len(rows)-1]
		if got, ok := r.store.get(id, k); ok == newest.deleted || ok && got.CommitTS != newest.at {
			r.t.Fatalf("range %d key %s is %v %+v, want %+v", id, k, ok, got, newest)
		}
	}
}

// TestBatchingDoesNotMatter applies the same logs in different batches, with
// the ranges in different order: the replicas and their checksums are equal.
func TestBatchingDoesNotMatter(t *testing.T) {
	for _, seed := range seeds(t, 3) {
		t.Run(strconv.FormatUint(seed, 10), func(t *testing.T) {
			w := newWorld(rand.New(rand.NewPCG(seed, 0)), 250)
			var stores []*store
			for i, size := range []int{1, 7, 1000} {
				s := newStore(t)
				applyAll(t, rand.New(rand.NewPCG(seed, uint64(i))), w, s, size)
				stores = append(stores, s)
			}
			for id := range w.past {
				for _, other := range stores[1:] {
					mustEqual(t, stores[0], other, id)
				}
			}
		})
	}
}

// applyAll applies all logs of w in batches of at most size entries.
func applyAll(t *testing.T, rng *rand.Rand, w *world, s *store, size int) {
	t.Helper()
	r := &replay{t: t, rng: rng, world: w, store: s, machines: map[uint64]*Machine{}}
	for {
		var todo []uint64
		for _, c := range s.catalog.Replicas() {
			if len(r.pending(c.RangeID())) > 0 {
				todo = append(todo, c.RangeID())
			}
		}
		if len(todo) == 0 {
			return
		}
		id := todo[rng.IntN(len(todo))]
		if r.machines[id] == nil {
			r.machines[id] = s.machine(id)
		}
		var entries []sm.Entry
		for _, o := range r.pending(id)[:min(len(r.pending(id)), 1+rng.IntN(size))] {
			entries = append(entries, o.entry())
		}
		s.update(r.machines[id], entries...)
		if got, want := s.replica(id).Applied().Index, entries[len(entries)-1].Index; got != want {
			t.Fatalf("range %d is at %d after entry %d", id, got, want)
		}
	}
}
