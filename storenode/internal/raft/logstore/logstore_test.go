package logstore

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/lni/dragonboat/v4/raftio"
	"github.com/lni/dragonboat/v4/raftpb"
)

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func openDir(t testing.TB, dir string, segment int64) *Store {
	t.Helper()
	s, err := Open(Options{Dir: dir, SegmentBytes: segment, Workers: 4})
	must(t, err)
	return s
}

// save appends entries [first, first+n) of a term, and commits all of them.
func save(t testing.TB, s *Store, rangeID, first, n, term uint64, size int) {
	t.Helper()
	must(t, trySave(s, rangeID, first, n, term, size))
}

func trySave(s *Store, rangeID, first, n, term uint64, size int) error {
	u := raftpb.Update{
		ShardID: rangeID, ReplicaID: 1,
		State: raftpb.State{Term: term, Vote: 1, Commit: first + n - 1},
	}
	for i := range n {
		u.EntriesToSave = append(u.EntriesToSave, raftpb.Entry{
			Index: first + i, Term: term, Cmd: bytes.Repeat([]byte{byte(first + i)}, size),
		})
	}
	return s.SaveRaftState([]raftpb.Update{u}, rangeID%4+1)
}

func read(t testing.TB, s *Store, rangeID, low, high uint64) []raftpb.Entry {
	t.Helper()
	entries, _, err := s.IterateEntries(nil, 0, rangeID, 1, low, high, 1<<40)
	must(t, err)
	return entries
}

// snapshotAt cuts the log of a range as Raft does.
func snapshotAt(t testing.TB, s *Store, rangeID, index uint64) {
	t.Helper()
	must(t, s.SaveSnapshots([]raftpb.Update{{
		ShardID: rangeID, ReplicaID: 1,
		Snapshot: raftpb.Snapshot{ShardID: rangeID, Index: index, Term: 1, Type: raftpb.OnDiskStateMachine},
	}}))
	must(t, s.RemoveEntriesTo(rangeID, 1, index))
}

// waitReclaimed waits until the reclaimer has nothing to do.
func waitReclaimed(t testing.TB, s *Store) {
	t.Helper()
	for range 1_000_000 {
		if !s.due() {
			return
		}
		s.ring()
		// A batch of its own is a way to wait for the reclaimer's.
		must(t, s.commit(newRequest()))
	}
	t.Fatalf("never reclaimed: %+v", s.Stats())
}

// TestSpace: with one range far behind, the log stays below what the package
// promises, and what the laggard holds is moved and not lost.
func TestSpace(t *testing.T) {
	const segment = 64 << 10
	dir := t.TempDir()
	s := openDir(t, dir, segment)
	save(t, s, 2, 1, 40, 1, 1000)
	must(t, s.SaveBootstrapInfo(9, 1, raftpb.Bootstrap{Join: true, Type: raftpb.OnDiskStateMachine}))
	for first := uint64(1); first < 20_000; first += 50 {
		save(t, s, 1, first, 50, 1, 200)
		if first > 100 {
			snapshotAt(t, s, 1, first-50)
		}
	}
	waitReclaimed(t, s)
	st := s.Stats()
	if st.SizeBytes > 2*st.LiveBytes+3*segment || st.Reclaimed < 50 {
		t.Errorf("not bounded: %+v", st)
	}
	if st.Moved == 0 || st.Moved > st.Bytes {
		t.Errorf("%d bytes moved of %d written", st.Moved, st.Bytes)
	}
	for range 2 {
		if got := read(t, s, 2, 1, 41); len(got) != 40 || !bytes.Equal(got[7].Cmd, bytes.Repeat([]byte{8}, 1000)) {
			t.Fatalf("the laggard has %d entries", len(got))
		}
		if _, err := s.GetBootstrapInfo(9, 1); err != nil {
			t.Fatal(err)
		}
		must(t, s.Close())
		s = openDir(t, dir, segment)
	}
	files, err := os.ReadDir(dir)
	must(t, err)
	if len(files) != s.Stats().Segments {
		t.Errorf("%d files, %d segments", len(files), s.Stats().Segments)
	}
	// All is freed once nothing is needed.
	must(t, s.RemoveNodeData(2, 1))
	must(t, s.RemoveNodeData(1, 1))
	waitReclaimed(t, s)
	must(t, s.Close())
}

// TestRejoin: after its data was removed a replica begins empty, also after a
// restart, and a new one of the range is not touched.
func TestRejoin(t *testing.T) {
	dir := t.TempDir()
	s := openDir(t, dir, 0)
	save(t, s, 1, 1, 10, 3, 10)
	must(t, s.SaveBootstrapInfo(1, 1, raftpb.Bootstrap{Join: true}))
	must(t, s.SaveBootstrapInfo(1, 2, raftpb.Bootstrap{Join: true}))
	must(t, s.RemoveNodeData(1, 1))
	for range 2 {
		if _, err := s.GetBootstrapInfo(1, 1); !errors.Is(err, raftio.ErrNoBootstrapInfo) {
			t.Errorf("bootstrap: %v", err)
		}
		if _, err := s.ReadRaftState(1, 1, 0); !errors.Is(err, raftio.ErrNoSavedLog) {
			t.Errorf("state: %v", err)
		}
		if got := read(t, s, 1, 1, 11); len(got) > 0 {
			t.Errorf("%d entries", len(got))
		}
		if all, _ := s.ListNodeInfo(); len(all) != 1 || all[0].ReplicaID != 2 {
			t.Errorf("replicas %v", all)
		}
		must(t, s.Close())
		if all, err := List(dir); err != nil || len(all) != 1 || all[0] != (Owner{1, 2}) {
			t.Errorf("listed: %v %v", all, err)
		}
		s = openDir(t, dir, 0)
	}
	save(t, s, 1, 1, 3, 1, 10)
	if got := read(t, s, 1, 1, 11); len(got) != 3 {
		t.Errorf("%d entries after coming back", len(got))
	}
	must(t, s.Close())
}

// TestFailedSync: after a sync has failed nothing is accepted, although the
// next sync would succeed.
func TestFailedSync(t *testing.T) {
	d := newSimDisk()
	s, err := open(Options{Workers: 4}, d)
	must(t, err)
	save(t, s, 1, 1, 5, 1, 10)
	broken := errors.New("input/output error")
	d.mu.Lock()
	d.failSync = broken
	d.mu.Unlock()
	if err := trySave(s, 1, 6, 5, 1, 10); !errors.Is(err, broken) || !errors.Is(err, ErrFailed) {
		t.Errorf("a failed sync: %v", err)
	}
	for _, err := range []error{
		trySave(s, 2, 1, 1, 1, 1), s.SaveBootstrapInfo(1, 1, raftpb.Bootstrap{}), s.RemoveNodeData(1, 1),
		s.Close(),
	} {
		if !errors.Is(err, ErrFailed) {
			t.Errorf("after a failed sync: %v", err)
		}
	}
	// What was acknowledged before is there.
	s, err = open(Options{Workers: 4}, d.crash(rand.New(rand.NewPCG(1, 1))))
	must(t, err)
	if got := read(t, s, 1, 1, 6); len(got) != 5 {
		t.Errorf("%d entries", len(got))
	}
	must(t, s.Close())
}

// TestDamage: a flipped bit anywhere in a closed log is found at the next
// start, which names the file and the place, or it was in nothing that counts.
func TestDamage(t *testing.T) {
	dir := t.TempDir()
	s := openDir(t, dir, 16<<10)
	for i := range uint64(200) {
		save(t, s, 1, 1+i*4, 4, 1, 100)
	}
	must(t, s.Close())
	names, err := filepath.Glob(filepath.Join(dir, "*.log"))
	must(t, err)
	if len(names) < 3 {
		t.Fatalf("only %d segments", len(names))
	}
	r := rand.New(rand.NewPCG(1, 2))
	found, harmless := 0, 0
	for range 300 {
		name := names[r.IntN(len(names))]
		whole, err := os.ReadFile(name)
		must(t, err)
		broken := bytes.Clone(whole)
		broken[r.IntN(len(broken))] ^= 1 << r.IntN(8)
		must(t, os.WriteFile(name, broken, 0o600))
		s, err := Open(Options{Dir: dir, SegmentBytes: 16 << 10, Workers: 4})
		switch {
		case err == nil:
			harmless++
			if got := read(t, s, 1, 1, 801); len(got) != 800 {
				t.Fatalf("%d entries, and no error", len(got))
			}
			must(t, s.Close())
		case !errors.Is(err, ErrCorrupt) || !strings.Contains(err.Error(), ".log"):
			t.Fatalf("damage was answered with: %v", err)
		default:
			found++
		}
		must(t, os.WriteFile(name, whole, 0o600))
	}
	t.Logf("%d found, %d in padding or in the last batch", found, harmless)
	if found < 200 {
		t.Errorf("of 300 damages only %d were found", found)
	}
	// A segment that is missing in the middle.
	must(t, os.Rename(names[1], names[1]+".away"))
	if _, err := Open(Options{Dir: dir}); !errors.Is(err, ErrCorrupt) {
		t.Errorf("without %s: %v", names[1], err)
	}
	must(t, os.Rename(names[1]+".away", names[1]))
	// And the oldest.
	must(t, os.Remove(names[0]))
	if _, err := Open(Options{Dir: dir}); !errors.Is(err, ErrCorrupt) {
		t.Errorf("without %s: %v", names[0], err)
	}
}

// TestDamagedEntry: damage that happens while the log is open is found by the
// reader.
func TestDamagedEntry(t *testing.T) {
	dir := t.TempDir()
	s := openDir(t, dir, 0)
	save(t, s, 1, 1, 4, 1, 100)
	f, err := os.OpenFile(filepath.Join(dir, segmentName(1)), os.O_RDWR, 0)
	must(t, err)
	_, err = f.WriteAt([]byte("not what was written"), 200)
	must(t, errors.Join(err, f.Close()))
	if _, _, err := s.IterateEntries(nil, 0, 1, 1, 1, 5, 1<<20); !errors.Is(err, ErrCorrupt) {
		t.Errorf("a damaged run was read: %v", err)
	}
	must(t, s.Close())
}

// TestOneSync: callers who come while a batch is synced share the next one, and
// a commit index alone costs none.
func TestOneSync(t *testing.T) {
	s := openDir(t, t.TempDir(), 0)
	for id := range uint64(4) {
		save(t, s, id+4, 1, 1, 1, 1)
	}
	before := s.Stats().Syncs
	for i := range uint64(100) {
		must(t, s.SaveRaftState([]raftpb.Update{{
			ShardID: 5, ReplicaID: 1, State: raftpb.State{Term: 1, Vote: 1, Commit: i + 2},
		}}, 1))
	}
	if got := s.Stats().Syncs; got != before {
		t.Errorf("%d syncs for commit indexes", got-before)
	}
	var wg sync.WaitGroup
	for id := range uint64(4) {
		wg.Go(func() {
			for i := range uint64(200) {
				if err := trySave(s, id+4, 2+i, 1, 1, 10); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	if got := s.Stats().Syncs - before; got > 790 {
		t.Logf("%d syncs for 800 updates of 4 workers: a fast disk", got)
	}
	must(t, s.Close())
}

// TestReadsWhileReclaiming: who reads a segment that is being freed reads to
// the end.
func TestReadsWhileReclaiming(t *testing.T) {
	s := openDir(t, t.TempDir(), 16<<10)
	save(t, s, 2, 1, 30, 1, 500)
	done := make(chan struct{})
	var wg sync.WaitGroup
	for range 3 {
		wg.Go(func() {
			for {
				select {
				case <-done:
					return
				default:
				}
				got, _, err := s.IterateEntries(nil, 0, 2, 1, 1, 31, 1<<40)
				if err != nil || len(got) != 30 {
					t.Errorf("%d entries: %v", len(got), err)
					return
				}
			}
		})
	}
	for first := uint64(1); first < 4000; first += 20 {
		save(t, s, 1, first, 20, 1, 100)
		if first > 40 {
			snapshotAt(t, s, 1, first-20)
		}
	}
	close(done)
	wg.Wait()
	if s.Stats().Reclaimed == 0 {
		t.Error("nothing was reclaimed")
	}
	must(t, s.Close())
}

// TestPinnedSegment: the file of a freed segment stays open until its last
// reader is done.
func TestPinnedSegment(t *testing.T) {
	s := openDir(t, t.TempDir(), 16<<10)
	save(t, s, 2, 1, 30, 1, 100)
	pieces, unpin := s.pin(raftio.GetNodeInfo(2, 1), 1, 31)
	must(t, s.RemoveEntriesTo(2, 1, 30))
	for first := uint64(1); first < 2000; first += 20 {
		save(t, s, 1, first, 20, 1, 100)
		if first > 20 {
			snapshotAt(t, s, 1, first-20)
		}
		if _, err := pieces[0].read(); err != nil {
			t.Fatalf("a segment was closed under its reader: %v", err)
		}
	}
	unpin()
	waitReclaimed(t, s)
	if s.Stats().Reclaimed == 0 {
		t.Error("nothing was reclaimed")
	}
	must(t, s.Close())
}

// TestSnapshotCommits: a snapshot may be saved before Raft has given the commit
// index that it was taken at, and Raft panics on one below it.
func TestSnapshotCommits(t *testing.T) {
	dir := t.TempDir()
	s := openDir(t, dir, 0)
	save(t, s, 1, 1, 5, 1, 10)
	must(t, s.SaveRaftState([]raftpb.Update{{
		ShardID: 1, ReplicaID: 1, EntriesToSave: []raftpb.Entry{{Index: 6, Term: 1}, {Index: 7, Term: 1}},
	}}, 2))
	must(t, s.SaveSnapshots([]raftpb.Update{{
		ShardID: 1, ReplicaID: 1,
		Snapshot: raftpb.Snapshot{ShardID: 1, Index: 6, Term: 1, Type: raftpb.OnDiskStateMachine},
	}}))
	for range 2 {
		state, err := s.ReadRaftState(1, 1, 6)
		must(t, err)
		if state.State.Commit != 6 || state.FirstIndex != 7 || state.EntryCount != 1 {
			t.Errorf("after a snapshot at 6: %+v", state)
		}
		must(t, s.Close())
		s = openDir(t, dir, 0)
	}
	must(t, s.Close())
}

// TestMoveRaces: what is written in the same batch as a moved run, or trimmed
// while that batch is written, wins over it; and what is not in the log yet is
// not moved.
func TestMoveRaces(t *testing.T) {
	dir := t.TempDir()
	s := openDir(t, dir, 0)
	save(t, s, 1, 1, 10, 1, 10)
	save(t, s, 2, 1, 10, 1, 10)
	var chunk []candidate
	for _, of := range s.replicas() {
		for _, c := range s.runsIn(of, 1) {
			c.body = make([]byte, c.at.size)
			_, err := s.head.file.ReadAt(c.body, int64(c.at.off))
			must(t, err)
			chunk = append(chunk, c)
		}
	}
	move, overwrite := newRequest(), newRequest()
	move.front = func(e *encoder) {
		s.moveChunk(e, chunk)
		s.moveMeta(e, 1)
	}
	of := raftio.GetNodeInfo(1, 1)
	overwrite.entries(of, []raftpb.Entry{
		{Index: 6, Term: 2},
		{Index: 7, Term: 2},
		{Index: 8, Term: 2},
		{Index: 9, Term: 2},
		{Index: 10, Term: 2},
		{Index: 11, Term: 2},
	})
	// Raft has given a commit index whose entries are in a later batch.
	s.mu.Lock()
	s.index.replicas[of].state.Commit = 1000
	s.mu.Unlock()
	must(t, s.write([]*request{overwrite, move}))
	// Trimmed between the look and the publication of a moved record.
	s.mu.Lock()
	other := raftio.GetNodeInfo(2, 1)
	r := s.index.replicas[other]
	at := r.runs[0].at
	s.index.trim(r, 8)
	s.index.apply(record{kind: kindMoved, of: other, first: 1, count: 10}, at)
	s.index.apply(record{kind: kindMoved, of: other, first: 1, count: 5}, at)
	r.lateTrim = true
	s.postpone(r)
	s.mu.Unlock()
	for range 2 {
		if got := read(t, s, 1, 1, 20); len(got) != 11 || got[5].Term != 2 {
			t.Errorf("%d entries of range 1: an overwritten one is back", len(got))
		}
		if got := read(t, s, 2, 8, 20); len(got) != 3 || got[0].Index != 8 {
			t.Errorf("%d entries of range 2: a trimmed one is back", len(got))
		}
		if got := read(t, s, 2, 1, 20); len(got) != 0 {
			t.Errorf("%d entries of range 2 from the trimmed ones on", len(got))
		}
		must(t, s.Close())
		s = openDir(t, dir, 0)
	}
	must(t, s.Close())
}

// TestStaleMove: a run that was overwritten, or whose replica was removed, after
// the reclaimer has read it and before it writes it again, does not come back.
func TestStaleMove(t *testing.T) {
	dir := t.TempDir()
	s := openDir(t, dir, 0)
	save(t, s, 1, 1, 10, 1, 10)
	save(t, s, 2, 1, 10, 1, 10)
	var chunk []candidate
	for _, of := range s.replicas() {
		for _, c := range s.runsIn(of, 1) {
			c.body = make([]byte, c.at.size)
			_, err := s.head.file.ReadAt(c.body, int64(c.at.off))
			must(t, err)
			chunk = append(chunk, c)
		}
	}
	save(t, s, 1, 1, 12, 2, 10)
	must(t, s.RemoveNodeData(2, 1))
	move := newRequest()
	move.front = func(e *encoder) { s.moveChunk(e, chunk) }
	must(t, s.commit(move))
	for range 2 {
		if got := read(t, s, 1, 1, 20); len(got) != 12 || got[0].Term != 2 {
			t.Errorf("%d entries of range 1: overwritten ones are back", len(got))
		}
		if got := read(t, s, 2, 1, 20); len(got) != 0 {
			t.Errorf("%d entries of a removed replica", len(got))
		}
		must(t, s.Close())
		s = openDir(t, dir, 0)
	}
	must(t, s.Close())
}

// TestMovedState: a state that is moved does not hide a newer commit index that
// the same batch tells.
func TestMovedState(t *testing.T) {
	dir := t.TempDir()
	s := openDir(t, dir, 0)
	of := raftio.GetNodeInfo(1, 1)
	save(t, s, 1, 1, 5, 1, 10)
	save(t, s, 1, 6, 5, 1, 10)
	s.mu.Lock()
	r := s.index.replicas[of]
	r.state.Commit, r.logged.Commit, r.lateState = 10, 5, true
	s.postpone(r)
	s.mu.Unlock()
	move := newRequest()
	move.front = func(e *encoder) { s.moveMeta(e, 1) }
	must(t, s.commit(move))
	must(t, s.Close())
	s = openDir(t, dir, 0)
	state, err := s.ReadRaftState(1, 1, 0)
	must(t, err)
	if state.State.Commit != 10 {
		t.Errorf("commit index %d after a move", state.State.Commit)
	}
	must(t, s.Close())
}

// TestUnbornSegment: a crash while a segment is created leaves one that was
// never used.
func TestUnbornSegment(t *testing.T) {
	for _, content := range []string{"", "RIDG", strings.Repeat("\x00", 48), strings.Repeat("\x00", 4096)} {
		dir := t.TempDir()
		s := openDir(t, dir, 0)
		save(t, s, 1, 1, 4, 1, 100)
		must(t, s.Close())
		must(t, os.WriteFile(filepath.Join(dir, segmentName(2)), []byte(content), 0o600))
		s = openDir(t, dir, 0)
		if got := read(t, s, 1, 1, 5); len(got) != 4 {
			t.Errorf("%q: %d entries", content, len(got))
		}
		must(t, s.Close())
	}
}

// FuzzDecode: no payload makes the decoder panic, and what it accepts does not
// make the index panic either.
func FuzzDecode(f *testing.F) {
	e := &encoder{}
	of := raftio.GetNodeInfo(3, 4)
	e.bootstrap(of, &raftpb.Bootstrap{Join: true})
	e.state(of, raftpb.State{Term: 1, Commit: 2})
	e.entries(of, []raftpb.Entry{{Index: 1, Term: 1, Cmd: []byte("a")}})
	e.index(kindTrim, of, 2)
	e.removed(of)
	f.Add(e.buf)
	f.Fuzz(func(t *testing.T, payload []byte) {
		x := newIndex()
		_ = decode(payload, func(r record) error {
			if r.first > 1<<20 {
				return errRecord // a log that spans too much is a panic by intent
			}
			x.apply(r, place{segment: 1, off: r.off, size: r.size})
			return nil
		})
		_ = x.check()
		_ = decodeRun(payload, 0, func(raftpb.Entry) bool { return true })
	})
}

// BenchmarkOpen reads a log of 1,000 ranges.
func BenchmarkOpen(b *testing.B) {
	dir := b.TempDir()
	s := openDir(b, dir, 0)
	for i := range uint64(64) {
		for id := range uint64(1000) {
			save(b, s, id+1, 1+i*8, 8, 1, 2048)
		}
	}
	size := s.Stats().SizeBytes
	must(b, s.Close())
	for b.Loop() {
		s := openDir(b, dir, 0)
		b.StopTimer()
		must(b, s.Close())
		b.StartTimer()
	}
	b.SetBytes(size)
}

// BenchmarkSave is one update of 16 ranges at a time.
func BenchmarkSave(b *testing.B) {
	s := openDir(b, b.TempDir(), 0)
	var updates []raftpb.Update
	for id := range uint64(16) {
		updates = append(updates, raftpb.Update{
			ShardID: id + 1, ReplicaID: 1, State: raftpb.State{Term: 1, Vote: 1},
			EntriesToSave: []raftpb.Entry{{Term: 1, Cmd: make([]byte, 128)}},
		})
	}
	b.ReportAllocs()
	for i := uint64(1); b.Loop(); i++ {
		for k := range updates {
			updates[k].EntriesToSave[0].Index = i
		}
		must(b, s.SaveRaftState(updates, 1))
		if i%20_000 == 0 {
			for id := range uint64(16) {
				snapshotAt(b, s, id+1, i-1)
			}
		}
	}
	must(b, s.Close())
	b.ReportMetric(float64(s.Stats().Syncs)/float64(b.N), "syncs/op")
}
