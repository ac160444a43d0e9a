package apply

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	sm "github.com/lni/dragonboat/v4/statemachine"
	"go.uber.org/goleak"
	"google.golang.org/protobuf/proto"

	logpb "github.com/ridgekv/ridge/proto/ridge/log/v1"
	metapb "github.com/ridgekv/ridge/proto/ridge/meta/v1"
	"github.com/ridgekv/ridge/proto/ts"
	"github.com/ridgekv/ridge/storenode/internal/catalog"
	"github.com/ridgekv/ridge/storenode/internal/engine"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	testStoreID   = 1
	testRangeID   = 1
	testReplicaID = 10
)

// store is an engine with its catalog and the machines of its replicas.
type store struct {
	t       testing.TB
	dir     string
	engine  *engine.Engine
	catalog *catalog.Catalog
	deps    Deps
	// config is what ConfigIndex answers, unless unknown.
	config  uint64
	unknown bool
}

func openStore(t testing.TB, dir string, storeID uint64) *store {
	t.Helper()
	return openStoreCaching(t, dir, storeID, 0)
}

// openStoreCaching is openStore with a row cache of that size.
func openStoreCaching(
	t testing.TB, dir string, storeID uint64, rowCacheSizeBytes int64,
) *store {
	t.Helper()
	e, err := engine.Open(engine.Options{
		Dir: dir, Logger: quiet(), MemTableSizeBytes: 32 << 20,
		BlockCacheSizeBytes: 8 << 20, IndexCacheSizeBytes: 8 << 20,
		RowCacheSizeBytes: rowCacheSizeBytes,
	})
	if err != nil {
		t.Fatalf("open %s: %v", dir, err)
	}
	t.Cleanup(func() { _ = e.Close() })
	c, err := catalog.Load(e)
	if err != nil {
		t.Fatal(err)
	}
	s := &store{t: t, dir: dir, engine: e, catalog: c, config: 5}
	s.deps = Deps{
		Engine: e, Catalog: c, StoreID: storeID, Logger: quiet(),
		ConfigIndex: func(uint64) (uint64, bool) { return s.config, !s.unknown },
	}
	return s
}

// newStore is a store with one born range over the whole keyspace.
func newStore(t testing.TB) *store {
	t.Helper()
	s := openStore(t, t.TempDir(), testStoreID)
	s.bear()
	return s
}

func (s *store) bear() {
	s.t.Helper()
	w := &engine.WriteSet{}
	pb := &logpb.RangeState{
		RangeId: testRangeID, Span: &metapb.Span{}, SpanEpoch: 1, ReplicaId: testReplicaID,
		Role: metapb.Role_ROLE_VOTER, State: logpb.ReplicaState_REPLICA_STATE_NORMAL,
		Slices: []*logpb.Slice{{Extent: uint32(s.engine.NewExtent(w)), Span: &metapb.Span{}}},
	}
	state, applied := catalog.NewState(pb), catalog.Applied{Index: catalog.BirthIndex}
	catalog.StageState(w, state)
	catalog.StageApplied(w, testRangeID, applied)
	if err := s.engine.Commit(w); err != nil {
		s.t.Fatal(err)
	}
	s.catalog.Update(testRangeID, state, applied)
}

// join creates a learner that waits for an image.
func (s *store) join(rangeID, replicaID uint64) {
	s.t.Helper()
	err := s.catalog.Create(catalog.NewState(&logpb.RangeState{
		RangeId: rangeID, ReplicaId: replicaID, Role: metapb.Role_ROLE_LEARNER,
		State: logpb.ReplicaState_REPLICA_STATE_JOINING,
	}), catalog.Applied{})
	if err != nil {
		s.t.Fatal(err)
	}
}

func (s *store) close() {
	s.t.Helper()
	if err := s.engine.Close(); err != nil {
		s.t.Fatal(err)
	}
}

// machine opens the machine of the replica that the store holds.
func (s *store) machine(rangeID uint64) *Machine {
	s.t.Helper()
	m := New(s.deps, rangeID, s.replica(rangeID).State().ReplicaID())
	if _, err := m.Open(nil); err != nil {
		s.t.Fatal(err)
	}
	return m
}

func (s *store) replica(rangeID uint64) *catalog.Replica {
	s.t.Helper()
	r, ok := s.catalog.Replica(rangeID)
	if !ok {
		s.t.Fatalf("store holds no range %d", rangeID)
	}
	return r
}

// update applies entries and returns their results.
func (s *store) update(m *Machine, entries ...sm.Entry) []sm.Result {
	s.t.Helper()
	out, err := m.Update(entries)
	if err != nil {
		s.t.Fatal(err)
	}
	var results []sm.Result
	for _, e := range out {
		results = append(results, e.Result)
	}
	return results
}

// version is one row of a replica without its extent: equal on all replicas.
type version struct {
	kind logpb.ImageKind
	key  string
	row  string
	mark bool
}

// versions is the whole history of a replica, as an image would carry it.
func (s *store) versions(rangeID uint64) []version {
	s.t.Helper()
	var out []version
	view, release := s.engine.Pin()
	defer release()
	for _, x := range s.replica(rangeID).State().Slices() {
		for row, err := range view.Versions(x) {
			if err != nil {
				s.t.Fatal(err)
			}
			out = append(out, version{
				row.Kind, string(row.Key), string(row.EncodedRow), row.DeleteMark,
			})
		}
	}
	return out
}

// get reads the newest row of a key.
func (s *store) get(rangeID uint64, key string) (engine.Row, bool) {
	s.t.Helper()
	for _, x := range s.replica(rangeID).State().Slices() {
		if x.Span.Contains([]byte(key)) {
			row, ok, err := s.engine.View().Get(x.Extent, []byte(key))
			if err != nil {
				s.t.Fatal(err)
			}
			return row, ok
		}
	}
	s.t.Fatalf("range %d does not own key %q", rangeID, key)
	return engine.Row{}, false
}

func (s *store) checksum(rangeID uint64) (sum, rows uint64) {
	s.t.Helper()
	view, release := s.engine.Pin()
	defer release()
	state := s.replica(rangeID).State()
	sum, rows, _, err := s.engine.Checksum(s.t.Context(), view, state.Slices(), state.Span())
	if err != nil {
		s.t.Fatal(err)
	}
	return sum, rows
}

// mustEqual compares two replicas of one range: replicated state, applied
// record, history and checksum.
func mustEqual(t testing.TB, a, b *store, rangeID uint64) {
	t.Helper()
	sa, aa := a.replica(rangeID).Both()
	sb, ab := b.replica(rangeID).Both()
	if !proto.Equal(sa.Replicated(), sb.Replicated()) {
		t.Errorf("range %d: states differ:\n%v\n%v", rangeID, sa.Replicated(), sb.Replicated())
	}
	if aa != ab {
		t.Errorf("range %d: applied %+v and %+v", rangeID, aa, ab)
	}
	if va, vb := a.versions(rangeID), b.versions(rangeID); !slices.Equal(va, vb) {
		t.Errorf("range %d: histories of %d and %d versions differ", rangeID, len(va), len(vb))
	}
	suma, rows := a.checksum(rangeID)
	if sumb, _ := b.checksum(rangeID); suma != sumb {
		t.Errorf("range %d: checksums %x and %x differ (%d rows)", rangeID, suma, sumb, rows)
	}
}

// checkLaw2 fails unless every slice of the store has exactly one owner.
func (s *store) checkLaw2() {
	s.t.Helper()
	type owned struct {
		engine.Slice
		owner string
	}
	var all []owned
	for _, r := range s.catalog.Replicas() {
		for _, x := range r.State().Slices() {
			all = append(all, owned{x, fmt.Sprintf("range %d", r.RangeID())})
		}
	}
	for _, g := range s.engine.Garbage() {
		all = append(all, owned{g.Slice, "garbage"})
	}
	for i, a := range all {
		for _, b := range all[i+1:] {
			if a.Extent == b.Extent && a.Span.Overlaps(b.Span) {
				s.t.Errorf("slice %s of %s overlaps %s of %s", a.Slice, a.owner, b.Slice, b.owner)
			}
		}
	}
}

// copyDir copies the directory of an engine in use that commits nothing just
// now, as a kill -9 would leave it. A write-out that comes in between would mix
// two moments, so it copies again until nothing moved.
func copyDir(t testing.TB, from, to string) {
	t.Helper()
	for range 100 {
		before := listing(t, from)
		err := filepath.WalkDir(from, func(path string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() {
				return err
			}
			return copySparse(path, filepath.Join(to, filepath.Base(path)))
		})
		if err == nil && listing(t, from) == before {
			return
		}
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			t.Fatal(err)
		}
		for _, e := range readDir(t, to) {
			if err := os.Remove(filepath.Join(to, e.Name())); err != nil {
				t.Fatal(err)
			}
		}
	}
	t.Fatalf("%s does not come to rest", from)
}

// listing changes with every write-out and compaction.
func listing(t testing.TB, dir string) string {
	t.Helper()
	var out []string
	for _, e := range readDir(t, dir) {
		out = append(out, e.Name())
		if info, err := e.Info(); err == nil && e.Name() == "MANIFEST" {
			out = append(out, fmt.Sprint(info.Size()))
		}
	}
	return strings.Join(out, " ")
}

func readDir(t testing.TB, dir string) []os.DirEntry {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	return entries
}

// copySparse copies a file. Holes stay holes: a memtable's log is mostly one.
func copySparse(from, to string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.Create(to)
	if err != nil {
		return err
	}
	defer out.Close()
	zero, buf, off := make([]byte, 1<<16), make([]byte, 1<<16), int64(0)
	for {
		n, err := io.ReadFull(in, buf)
		if n > 0 && !bytes.Equal(buf[:n], zero[:n]) {
			if _, err := out.WriteAt(buf[:n], off); err != nil {
				return err
			}
		}
		off += int64(n)
		if err == io.EOF || err == io.ErrUnexpectedEOF {
			return out.Truncate(off)
		}
		if err != nil {
			return err
		}
	}
}

// logHeader is what a memtable's log begins with.
const logHeader = 20

// newestLog is the memtable log with the highest number and the bytes used of
// it behind its header.
func newestLog(t testing.TB, dir string) (path string, size, used int64) {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(dir, "*.mem"))
	if err != nil || len(files) == 0 {
		t.Fatalf("no memtable logs in %s: %v", dir, err)
	}
	slices.Sort(files)
	path = files[len(files)-1]
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	size = int64(len(b))
	for block := make([]byte, 1<<12); bytes.HasSuffix(b, block); {
		b = b[:len(b)-len(block)]
	}
	return path, size, max(int64(len(bytes.TrimRight(b, "\x00")))-logHeader, 0)
}

func usedLog(t testing.TB, dir string) int64 {
	t.Helper()
	_, _, used := newestLog(t, dir)
	return used
}

// tear zeroes the newest memtable log from a point on, as a power loss would
// that comes before a flush.
func tear(t testing.TB, dir string, keep func(used int64) int64) {
	t.Helper()
	path, size, used := newestLog(t, dir)
	if err := os.Truncate(path, logHeader+keep(used)); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(path, size); err != nil {
		t.Fatal(err)
	}
}

func quiet() *slog.Logger { return slog.New(slog.DiscardHandler) }

// Makers of entries, by the tenure and number they carry.

func acquire(index, expected uint64) sm.Entry {
	return sm.Entry{Index: index, Cmd: EncodeMessage(
		Header{Kind: KindAcquireLease, MinVersion: 1},
		&logpb.AcquireLease{
			HolderReplicaId: testReplicaID, HolderStoreId: testStoreID, Nonce: index,
			ExpectedTenure: expected,
		})}
}

func header(k Kind, tenure, number, epoch uint64) Header {
	return Header{Kind: k, Tenure: tenure, Number: number, SpanEpoch: epoch, MinVersion: 1}
}

func put(index, tenure, number, epoch uint64, at ts.Timestamp, kv ...string) sm.Entry {
	var effects []Effect
	for i := 0; i+1 < len(kv); i += 2 {
		effects = append(effects, Effect{Key: []byte(kv[i]), Value: []byte(kv[i+1])})
	}
	return sm.Entry{Index: index, Cmd: EncodeWrite(
		header(KindWrite, tenure, number, epoch), at, effects)}
}

func split(index, tenure, number, epoch uint64, key string, child uint64) sm.Entry {
	return sm.Entry{Index: index, Cmd: EncodeMessage(
		header(KindSplit, tenure, number, epoch), splitMessage(key, child))}
}

func splitMessage(key string, child uint64) *logpb.Split {
	p := &logpb.Split{
		SplitKey: []byte(key), ChildRangeId: child, ExpectedConfig: 5, MaxReadTs: 1000 + child,
	}
	for storeID := range uint64(3) {
		p.ChildReplicas = append(p.ChildReplicas, &metapb.Replica{
			ReplicaId: child*100 + storeID + 1, StoreId: storeID + 1,
			Role: metapb.Role_ROLE_VOTER,
		})
	}
	return p
}
