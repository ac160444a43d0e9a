package apply

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	sm "github.com/lni/dragonboat/v4/statemachine"
	"golang.org/x/time/rate"

	logpb "github.com/ridgekv/ridge/proto/ridge/log/v1"
	metapb "github.com/ridgekv/ridge/proto/ridge/meta/v1"
	"github.com/ridgekv/ridge/proto/ts"
	"github.com/ridgekv/ridge/storenode/internal/catalog"
	"github.com/ridgekv/ridge/storenode/internal/engine"
)

// filled is a store whose range has some history: several versions of the
// keys, deletes, rows that expire, and two slices (it was an image once).
func filled(t testing.TB, rng *rand.Rand, entries int) (*store, *Machine) {
	t.Helper()
	s := newStore(t)
	m := s.machine(testRangeID)
	s.update(m, acquire(6, 0))
	index, at := uint64(6), ts.Timestamp(100)
	for n := range uint64(entries) {
		index, at = index+1, at+1+ts.Timestamp(rng.IntN(5))
		var effects []Effect
		for range 1 + rng.IntN(20) {
			e := Effect{Key: fmt.Appendf(nil, "key%03d", rng.IntN(200))}
			switch rng.IntN(6) {
			case 0:
				e.Delete = true
			case 1:
				e.ExpiresAt = at + 1000
				fallthrough
			default:
				e.Value = bytes.Repeat([]byte{byte(n)}, rng.IntN(3000))
			}
			effects = append(effects, e)
		}
		s.update(m, sm.Entry{Index: index, Cmd: EncodeWrite(
			header(KindWrite, 1, n+1, 1), at, effects)})
	}
	return s, m
}

func image(t testing.TB, m *Machine) []byte {
	t.Helper()
	ctx, err := m.PrepareSnapshot()
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	if err := m.SaveSnapshot(ctx, &out, nil); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// learner is a store that waits for an image of the test range.
func learner(t testing.TB) (*store, *Machine) {
	t.Helper()
	s := openStore(t, t.TempDir(), 2)
	s.join(testRangeID, 20)
	return s, s.machine(testRangeID)
}

func TestImageRoundTrip(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 1))
	from, m := filled(t, rng, 300)
	img := image(t, m)

	to, lm := learner(t)
	if index, err := lm.Open(nil); index != 0 || err != nil {
		t.Fatalf("a learner opens at %d, %v", index, err)
	}
	if _, err := lm.Lookup(nil); !errors.Is(err, ErrNotServing) {
		t.Errorf("a joining replica answers: %v", err)
	}
	if err := lm.RecoverFromSnapshot(bytes.NewReader(img), nil); err != nil {
		t.Fatal(err)
	}
	mustEqual(t, from, to, testRangeID)
	state := to.replica(testRangeID).State()
	if state.ReplicaID() != 20 || state.Role() != metapb.Role_ROLE_LEARNER || !state.Serving() {
		t.Errorf("received %v", state.PB())
	}
	if g := to.engine.Garbage(); len(g) != 0 {
		t.Errorf("garbage after the swap: %v", g)
	}
	to.checkLaw2()
	// Both go on alike.
	next := put(from.replica(testRangeID).Applied().Index+1, 1,
		from.replica(testRangeID).Applied().Number+1, 1, 1<<40, "key001", "new", "zz", "1")
	for _, c := range []struct {
		s *store
		m *Machine
	}{{from, m}, {to, lm}} {
		if got := c.s.update(c.m, next); got[0].Value != ResultApplied {
			t.Errorf("after the image: %s %s", ResultName(got[0].Value), got[0].Data)
		}
	}
	mustEqual(t, from, to, testRangeID)
	// The image of the image is the same.
	if again := image(t, m); !bytes.Equal(again, image(t, lm)) {
		t.Error("the image of a replica made of an image differs")
	}
	// An image that is not newer changes nothing.
	if err := lm.RecoverFromSnapshot(bytes.NewReader(img), nil); err != nil {
		t.Fatal(err)
	}
	mustEqual(t, from, to, testRangeID)
	if err := lm.Sync(); err != nil {
		t.Fatal(err)
	}
	// What a power loss after Sync leaves.
	dir := t.TempDir()
	copyDir(t, to.dir, dir)
	again := openStore(t, dir, 2)
	mustEqual(t, from, again, testRangeID)
	if index, _ := again.machine(testRangeID).Open(nil); index != next.Index {
		t.Errorf("opens at %d, want %d", index, next.Index)
	}
}

// TestImageReplacesOldState: the second image of a replica that fell behind
// makes its old slices garbage, in the commit that adopts the new one.
func TestImageReplacesOldState(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	from, m := filled(t, rand.New(rand.NewPCG(seed, 2)), 50)
	to, lm := learner(t)
	for i := range 2 {
		if err := lm.RecoverFromSnapshot(bytes.NewReader(image(t, m)), nil); err != nil {
			t.Fatal(err)
		}
		mustEqual(t, from, to, testRangeID)
		to.checkLaw2()
		if g := to.engine.Garbage(); len(g) != i {
			t.Errorf("garbage after image %d: %v", i+1, g)
		}
		a := from.replica(testRangeID).Applied()
		from.update(m, put(a.Index+1, 1, a.Number+1, 1, a.MaxCommitTS+1, "key005", "again"))
	}
}

// TestImageSplitsAndSlices: halves of a split are copied on their own.
func TestImageOfHalves(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	from, m := filled(t, rand.New(rand.NewPCG(seed, 3)), 100)
	a := from.replica(testRangeID).Applied()
	from.update(m, split(a.Index+1, 1, a.Number+1, 1, "key100", 9))
	to, lm := learner(t)
	if err := lm.RecoverFromSnapshot(bytes.NewReader(image(t, m)), nil); err != nil {
		t.Fatal(err)
	}
	to.join(9, 902)
	cm := to.machine(9)
	if err := cm.RecoverFromSnapshot(bytes.NewReader(image(t, from.machine(9))), nil); err != nil {
		t.Fatal(err)
	}
	mustEqual(t, from, to, testRangeID)
	mustEqual(t, from, to, 9)
	to.checkLaw2()
	if len(from.versions(testRangeID)) == 0 || len(from.versions(9)) == 0 {
		t.Error("a half is empty")
	}
}

// TestCrashWhileReceiving copies the directory at every place of an image: the
// old state is whole, the new extent is garbage, and the image can come again.
func TestCrashWhileReceiving(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	from, m := filled(t, rand.New(rand.NewPCG(seed, 4)), 60)
	to, lm := learner(t)
	if err := lm.RecoverFromSnapshot(bytes.NewReader(image(t, m)), nil); err != nil {
		t.Fatal(err)
	}
	for range 100 {
		a := from.replica(testRangeID).Applied()
		from.update(m, put(a.Index+1, 1, a.Number+1, 1, a.MaxCommitTS+1,
			fmt.Sprintf("key%03d", a.Index%150), strings.Repeat("x", 30_000)))
	}
	before := to.versions(testRangeID)
	stateBefore, appliedBefore := to.replica(testRangeID).Both()
	img := image(t, m)
	var copies []string
	r := &watchedReader{r: bytes.NewReader(img), every: len(img) / 4, at: func() {
		dir := t.TempDir()
		copyDir(t, to.dir, dir)
		copies = append(copies, dir)
	}}
	if err := lm.RecoverFromSnapshot(r, nil); err != nil {
		t.Fatal(err)
	}
	mustEqual(t, from, to, testRangeID)
	to.checkLaw2()
	if len(copies) < 3 {
		t.Fatalf("%d copies of an image of %d bytes", len(copies), len(img))
	}
	for i, dir := range copies {
		crashed := openStore(t, dir, 2)
		crashed.checkLaw2()
		state, applied := crashed.replica(testRangeID).Both()
		if applied != appliedBefore || !bytes.Equal(
			catalog.EncodeState(state), catalog.EncodeState(stateBefore)) {
			t.Errorf("copy %d: %+v, want %+v", i, applied, appliedBefore)
		}
		if got := crashed.versions(testRangeID); !slices.Equal(got, before) {
			t.Errorf("copy %d: the old state is not whole", i)
		}
		if g := crashed.engine.Garbage(); len(g) != 1 || !g[0].Receiving {
			t.Errorf("copy %d: garbage %v", i, g)
		}
		again := crashed.machine(testRangeID)
		if err := again.RecoverFromSnapshot(bytes.NewReader(img), nil); err != nil {
			t.Fatal(err)
		}
		mustEqual(t, from, crashed, testRangeID)
		crashed.checkLaw2()
		crashed.close()
	}
}

// TestImageOfUnreadableRows: rows that this store's engine cannot read are not
// taken over: every scan of the range would fail on them.
func TestImageOfUnreadableRows(t *testing.T) {
	_, m := filled(t, rand.New(rand.NewPCG(1, 6)), 10)
	header, err := newImageReader(bytes.NewReader(image(t, m))).header(testRangeID)
	if err != nil {
		t.Fatal(err)
	}
	var img bytes.Buffer
	w := newImageWriter(&img, nil, nil)
	row := engine.VersionRow{
		Kind: logpb.ImageKind_IMAGE_KIND_DATA, Key: []byte("k"), EncodedRow: []byte{200, 1},
	}
	if err := errors.Join(w.header(header), w.row(row), w.end()); err != nil {
		t.Fatal(err)
	}
	to, lm := learner(t)
	if err := lm.RecoverFromSnapshot(&img, nil); err != nil {
		t.Fatalf("an error kills the store: %v", err)
	}
	if state := to.replica(testRangeID).State(); state.Serving() {
		t.Errorf("the replica is %s", state.Status())
	}
}

// TestBadImages poison the replica; they never return an error.
func TestBadImages(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 5))
	_, m := filled(t, rng, 30)
	img := image(t, m)
	flipped := bytes.Clone(img)
	flipped[len(img)/2+rng.IntN(len(img)/4)] ^= 0x10
	for name, bad := range map[string][]byte{
		"empty": nil, "format": {9}, "no header": img[:1], "cut": img[:len(img)-1],
		"half": img[:len(img)/2], "flipped": flipped,
	} {
		t.Run(name, func(t *testing.T) {
			to, lm := learner(t)
			if err := lm.RecoverFromSnapshot(bytes.NewReader(bad), nil); err != nil {
				t.Fatalf("an error kills the store: %v", err)
			}
			state, applied := to.replica(testRangeID).Both()
			if state.Status() != logpb.ReplicaState_REPLICA_STATE_POISONED || state.Serving() {
				t.Errorf("state %v", state.PB())
			}
			to.checkLaw2()
			// The index goes on, so that no record of Dragonboat runs ahead of it.
			got := to.update(lm, acquire(applied.Index+1000, 0))
			if got[0].Value != ResultPoisoned ||
				to.replica(testRangeID).Applied().Index != applied.Index+1000 {
				t.Errorf("a poisoned replica answers %s", ResultName(got[0].Value))
			}
			if _, err := lm.Lookup(nil); !errors.Is(err, ErrNotServing) {
				t.Errorf("lookup: %v", err)
			}
			ctx, err := lm.PrepareSnapshot()
			if err != nil {
				t.Fatal(err)
			}
			if err := lm.SaveSnapshot(ctx, io.Discard, nil); !errors.Is(err, sm.ErrSnapshotAborted) {
				t.Errorf("a poisoned replica was copied: %v", err)
			}
			if err := lm.RecoverFromSnapshot(bytes.NewReader(img), nil); err != nil {
				t.Fatal(err)
			}
			if to.replica(testRangeID).State().Serving() {
				t.Error("an image healed a poisoned replica")
			}
		})
	}
}

// TestImageStops: closing the stop channel ends both sides.
func TestImageStops(t *testing.T) {
	_, m := filled(t, rand.New(rand.NewPCG(1, 1)), 100)
	img := image(t, m)
	stop := make(chan struct{})
	close(stop)
	ctx, _ := m.PrepareSnapshot()
	if err := m.SaveSnapshot(ctx, io.Discard, stop); !errors.Is(err, sm.ErrSnapshotStopped) {
		t.Errorf("save: %v", err)
	}
	to, lm := learner(t)
	// Exactly this error: Dragonboat does not look into joined ones, and ends the
	// process over any other.
	//nolint:errorlint // see above
	if err := lm.RecoverFromSnapshot(bytes.NewReader(img), stop); err != sm.ErrSnapshotStopped {
		t.Errorf("recover: %#v", err)
	}
	if g := to.engine.Garbage(); len(g) != 1 || g[0].Receiving {
		t.Errorf("what was received is to be collected in this run: %v", g)
	}
	// While it waits for the limiter.
	slow := rate.NewLimiter(1, 1)
	m.deps.ImageLimiter = slow
	stop = make(chan struct{})
	w := writerFunc(func(p []byte) (int, error) { return len(p), nil })
	timer := time.AfterFunc(20*time.Millisecond, func() { close(stop) })
	defer timer.Stop()
	ctx, _ = m.PrepareSnapshot()
	if err := m.SaveSnapshot(ctx, w, stop); !errors.Is(err, sm.ErrSnapshotStopped) {
		t.Errorf("throttled save: %v", err)
	}
}

// TestImageLimiter: all the bytes pass the limiter, also those of a message
// larger than its burst.
func TestImageLimiter(t *testing.T) {
	_, m := filled(t, rand.New(rand.NewPCG(2, 2)), 100)
	const perSecond = 64 << 20
	m.deps.ImageLimiter = rate.NewLimiter(perSecond, 10_000)
	begin := time.Now()
	n := len(image(t, m))
	want := time.Duration(n-10_000) * time.Second / perSecond
	if took := time.Since(begin); took < want {
		t.Errorf("%d bytes took %v, at least %v were due", n, took, want)
	}
}

// TestPrepareWithoutSave: a pin that nobody comes for is let go.
func TestPrepareWithoutSave(t *testing.T) {
	_, m := filled(t, rand.New(rand.NewPCG(3, 3)), 3)
	first, _ := m.PrepareSnapshot()
	released := false
	first.(*imagePin).release = func() { released = true }
	second, _ := m.PrepareSnapshot()
	if !released {
		t.Error("the first pin is still held")
	}
	if err := m.SaveSnapshot(second, io.Discard, nil); err != nil {
		t.Error(err)
	}
	third, _ := m.PrepareSnapshot()
	released = false
	third.(*imagePin).release = func() { released = true }
	if err := m.Close(); err != nil || !released {
		t.Errorf("close: %v, released %v", err, released)
	}
}

// TestChecksumEntry: the checksum is of the state at its entry, whatever came
// in the same Update.
func TestChecksumEntry(t *testing.T) {
	s := newStore(t)
	checker := NewChecker(s.engine, quiet())
	s.deps.Checker = checker
	m := s.machine(testRangeID)
	s.update(m, acquire(6, 0), put(7, 1, 1, 1, 10, "a", "1"))
	want, rows := s.checksum(testRangeID)
	check := sm.Entry{Index: 8, Cmd: EncodeMessage(
		header(KindChecksum, 1, 2, 1), &logpb.Checksum{CheckId: 5})}
	s.update(m, check, put(9, 1, 3, 1, 20, "a", "2", "b", "3"))
	var wg sync.WaitGroup
	done := make(chan error, 1)
	ctx, cancel := context.WithCancel(t.Context())
	wg.Go(func() { done <- checker.Run(ctx) })
	got, err := checker.Await(t.Context(), testRangeID, 8)
	if err != nil {
		t.Fatal(err)
	}
	if got.Sum != want || got.Keys != rows || got.Index != 8 || got.CheckID != 5 {
		t.Errorf("check %+v, want sum %d of %d rows", got, want, rows)
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	if _, err := checker.Await(t.Context(), testRangeID, 100); !errors.Is(err, ErrCheckerClosed) {
		t.Errorf("await after the end: %v", err)
	}
	// What is offered after the end lets go of its pin.
	released := false
	checker.offer(checkJob{release: func() { released = true }, view: engine.View{}})
	if !released {
		t.Error("a pin is held after the end")
	}
}

type watchedReader struct {
	r     io.Reader
	every int
	n     int
	at    func()
}

func (w *watchedReader) Read(p []byte) (int, error) {
	n, err := w.r.Read(p)
	if before := w.n / w.every; (w.n+n)/w.every > before {
		w.at()
	}
	w.n += n
	return n, err
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }

// TestRemovedWhileReceiving: a removal that is recorded while an image comes in
// is not undone by it, or an order to destroy the replica would be forgotten.
func TestRemovedWhileReceiving(t *testing.T) {
	from, m := filled(t, rand.New(rand.NewPCG(1, 5)), 50)
	to, lm := learner(t)
	if err := lm.RecoverFromSnapshot(bytes.NewReader(image(t, m)), nil); err != nil {
		t.Fatal(err)
	}
	a := from.replica(testRangeID).Applied()
	from.update(m, put(a.Index+1, 1, a.Number+1, 1, a.MaxCommitTS+1, "key005", "again"))
	img := image(t, m)
	removed := false
	r := &watchedReader{r: bytes.NewReader(img), every: len(img) / 2, at: func() {
		if removed {
			return
		}
		removed = true
		if err := to.catalog.SetRemoved(testRangeID, 20); err != nil {
			t.Fatal(err)
		}
	}}
	if err := lm.RecoverFromSnapshot(r, nil); err != nil {
		t.Fatal(err)
	}
	got := to.replica(testRangeID).State()
	if !removed || got.Status() != logpb.ReplicaState_REPLICA_STATE_REMOVED {
		t.Errorf("the replica is %s", got.Status())
	}
	to.checkLaw2()
	if g := to.engine.Garbage(); len(g) != 1 || g[0].Receiving {
		t.Errorf("garbage %v", g)
	}
}
