package engine_test

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/dgraph-io/badger/v4/table"

	"github.com/ridgekv/ridge/proto/ts"
	"github.com/ridgekv/ridge/storenode/internal/engine"
	"github.com/ridgekv/ridge/storenode/internal/engine/enginetest"
)

var (
	seedFlag   = flag.Uint64("seed", 0, "seed of the random tests; 0 takes one from the clock")
	imagesFlag = flag.Int("images", 25, "crash images that the Law 3 test opens")
)

func newRand(t *testing.T) *rand.Rand {
	seed := *seedFlag
	if seed == 0 {
		seed = uint64(time.Now().UnixNano())
	}
	t.Logf("go test -run %s -seed %d", t.Name(), seed)
	return rand.New(rand.NewPCG(seed, 0))
}

func open(t testing.TB, o engine.Options) *engine.Engine {
	t.Helper()
	e, err := engine.Open(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := e.Close(); err != nil {
			t.Error(err)
		}
	})
	return e
}

// history is a sequence of write sets, of which set n is commit n.
type history struct {
	rand *rand.Rand
	sets []*engine.WriteSet
}

// next makes the next write set.
func (h *history) next() *engine.WriteSet {
	n := len(h.sets) + 1
	w := new(engine.WriteSet)
	for range 1 + h.rand.IntN(4) {
		key := fmt.Appendf(nil, "k%02d", h.rand.IntN(60))
		if h.rand.IntN(5) == 0 {
			w.Delete(20, key, ts.Timestamp(n))
			continue
		}
		value := make([]byte, h.rand.IntN(900))
		w.Put(20, key, engine.Row{CommitTS: ts.Timestamp(n), Value: value})
	}
	w.SetApplied(1, fmt.Append(nil, n))
	h.sets = append(h.sets, w)
	return w
}

func (h *history) commit(t *testing.T, e *engine.Engine) {
	t.Helper()
	if err := e.Commit(h.next()); err != nil {
		t.Fatal(err)
	}
	if int(e.Visible()) != len(h.sets) {
		t.Fatalf("commit %d is set %d", e.Visible(), len(h.sets))
	}
}

// cut forgets the sets after seq.
func (h *history) cut(seq engine.Seq) *history {
	return &history{rand: h.rand, sets: slices.Clone(h.sets[:seq])}
}

// check compares the engine with the model after the sets.
func (h *history) check(t *testing.T, e *engine.Engine) {
	t.Helper()
	m := enginetest.NewModel()
	if err := m.Commit(h.sets...); err != nil {
		t.Fatal(err)
	}
	if int(e.Visible()) != len(h.sets) {
		t.Fatalf("at commit %d, want %d", e.Visible(), len(h.sets))
	}
	if got, want := fmt.Sprint(e.Applied()), fmt.Sprint(m.Applied()); got != want {
		t.Fatalf("applied %s, want %s", got, want)
	}
	got, want := contents(t, e.View()), contents(t, m.View())
	if !slices.Equal(got, want) {
		t.Fatalf("commit %d: the contents differ:\n got %s\nwant %s", e.Visible(),
			strings.Join(got, " "), strings.Join(want, " "))
	}
}

// contents are all versions, and the rows that a scan and a get show.
func contents(t *testing.T, v enginetest.View) []string {
	t.Helper()
	var out []string
	s := engine.Slice{Extent: 20}
	for r, err := range v.Versions(s) {
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, fmt.Sprintf("%s:%x:%t", r.Key, r.EncodedRow[:10], r.DeleteMark))
	}
	for r, err := range v.Scan(engine.ScanOptions{Slices: []engine.Slice{s}}) {
		if err != nil {
			t.Fatal(err)
		}
		g, ok, err := v.Get(20, r.Key)
		if err != nil || !ok || g.CommitTS != r.Row.CommitTS {
			t.Fatalf("get %s: %v %t %v, scan: %v", r.Key, g.CommitTS, ok, err, r.Row.CommitTS)
		}
		out = append(out, fmt.Sprintf("%s=%d/%d", r.Key, r.Row.CommitTS, len(r.Row.Value)))
	}
	return out
}

// image is a directory as a power cut may leave it.
type image struct {
	dir string
	// flushed and its offsets are what a flush made durable before.
	flushed engine.Seq
	durable map[string]int64
}

// takeImage copies a running directory: the MANIFEST, the tables it names,
// and the *.mem files as they are at that moment.
func takeImage(t *testing.T, o engine.Options) image {
	t.Helper()
	for {
		to := t.TempDir()
		err := copyRunning(o, to)
		if err == nil {
			return image{dir: to}
		}
		if !errors.Is(err, fs.ErrNotExist) {
			t.Fatal(err)
		}
	}
}

func copyRunning(o engine.Options, to string) error {
	dir := o.Dir
	names := []string{"MANIFEST", "KEYREGISTRY"}
	for _, name := range names {
		if err := copyFile(filepath.Join(dir, name), filepath.Join(to, name)); err != nil {
			return err
		}
	}
	o.Dir = to
	tables, err := engine.ManifestTables(o)
	if err != nil {
		return err
	}
	for _, id := range tables {
		// A copy: Badger truncates a table before it removes it.
		if err := copyFile(table.NewFilename(id, dir), table.NewFilename(id, to)); err != nil {
			return err
		}
		if info, err := os.Stat(table.NewFilename(id, to)); err != nil || info.Size() == 0 {
			return fs.ErrNotExist
		}
	}
	mems, err := filepath.Glob(filepath.Join(dir, "*.mem"))
	if err != nil {
		return err
	}
	for _, path := range mems {
		err := copyFile(path, filepath.Join(to, filepath.Base(path)))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	// The tables must still be those that the MANIFEST names.
	for _, id := range tables {
		if _, err := os.Stat(table.NewFilename(id, dir)); err != nil {
			return err
		}
	}
	return nil
}

func copyFile(from, to string) error {
	b, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	return os.WriteFile(to, b, 0o644)
}

// damage does to the *.mem files what a power cut may do to bytes that were
// not synced: lose the tail, a page, a file.
func (im image) damage(t *testing.T, r *rand.Rand) {
	t.Helper()
	files, err := engine.MemFiles(im.dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		safe := max(20, im.durable[filepath.Base(f.Path)])
		if f.EndBytes <= safe {
			continue
		}
		at := safe + r.Int64N(f.EndBytes-safe)
		wholeFile := im.durable[filepath.Base(f.Path)] == 0
		switch r.IntN(12) {
		case 0, 1: // The tail, file length kept.
			err = zero(f.Path, at, 1<<30)
		case 2: // The tail with the length.
			err = os.Truncate(f.Path, at)
		case 3: // A page in the middle.
			err = zero(f.Path, at, 512)
		case 4: // Garbage.
			err = scribble(f.Path, at, r)
		case 5: // All of it.
			if wholeFile {
				err = os.Remove(f.Path)
			}
		case 6:
			if wholeFile {
				err = os.Truncate(f.Path, 0)
			}
		case 7:
			if wholeFile {
				err = zero(f.Path, 0, 1<<30)
			}
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

func zero(path string, from, n int64) error {
	info, err := os.Stat(path)
	if err != nil {
		return err
	}
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteAt(make([]byte, min(n, info.Size()-from)), from)
	return errors.Join(err, f.Close())
}

func scribble(path string, at int64, r *rand.Rand) error {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	b := make([]byte, 16)
	for i := range b {
		b[i] = byte(r.Uint32())
	}
	_, err = f.WriteAt(b, at)
	return errors.Join(err, f.Close())
}

// Law 3: whatever a power cut leaves of a running directory, the engine opens
// at an exact prefix of its commits, and at least at what was flushed.
func TestExactPrefix(t *testing.T) {
	r := newRand(t)
	images := 0
	for images < *imagesFlag {
		o := engine.SmallTables(engine.Options{Dir: t.TempDir(), NumMemtables: 10})
		e, err := engine.Open(o)
		if err != nil {
			t.Fatal(err)
		}
		h := &history{rand: r}
		list := collectImages(t, e, o, h)
		if err := e.Close(); err != nil {
			t.Fatal(err)
		}
		for _, im := range list {
			files, err := engine.MemFiles(im.dir)
			if err != nil {
				t.Fatal(err)
			}
			im.damage(t, r)
			found := reopen(t, im, h)
			t.Logf("%d *.mem files, last commit %d, flushed %d: opened at %d",
				len(files), files[len(files)-1].Last, im.flushed, found)
			images++
		}
	}
}

// collectImages commits and takes images at random moments. All *.mem files
// are kept alive, as by iterators, so that images have long chains of them.
func collectImages(
	t *testing.T, e *engine.Engine, o engine.Options, h *history,
) (list []image) {
	var flushed engine.Seq
	durable := map[string]int64{}
	var manifest []byte
	for range 400 {
		h.commit(t, e)
		if h.rand.IntN(8) == 0 {
			defer e.HoldMemtables()()
		}
		if h.rand.IntN(100) == 0 {
			if err := e.Flush(context.Background()); err != nil {
				t.Fatal(err)
			}
			flushed = e.Flushed()
			files, err := engine.MemFiles(o.Dir)
			if err != nil {
				t.Fatal(err)
			}
			for _, f := range files {
				durable[filepath.Base(f.Path)] = f.EndBytes
			}
			manifest = nil // The tables of the moment count as well.
		}
		if h.rand.IntN(40) == 0 {
			im := takeImage(t, o)
			im.flushed, im.durable = flushed, cloneMap(durable)
			if manifest != nil && h.rand.IntN(2) == 0 {
				// The write-outs since then did not come to pass.
				path := filepath.Join(im.dir, "MANIFEST")
				if err := os.WriteFile(path, manifest, 0o644); err != nil {
					t.Fatal(err)
				}
				im.flushed, im.durable = 0, nil
			}
			list = append(list, im)
		}
		if manifest == nil && flushed == 0 {
			manifest = emptyManifest(t, o)
		}
	}
	return list
}

// emptyManifest is the MANIFEST while it names no table.
func emptyManifest(t *testing.T, o engine.Options) []byte {
	tables, err := engine.ManifestTables(o)
	if err != nil {
		t.Fatal(err)
	}
	if len(tables) > 0 {
		return nil
	}
	b, err := os.ReadFile(filepath.Join(o.Dir, "MANIFEST"))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func cloneMap(m map[string]int64) map[string]int64 {
	out := map[string]int64{}
	for k, v := range m {
		out[k] = v
	}
	return out
}

// reopen opens an image, compares it, goes on from it, and opens it again.
func reopen(t *testing.T, im image, h *history) engine.Seq {
	t.Helper()
	o := engine.SmallTables(engine.Options{Dir: im.dir})
	e, err := engine.Open(o)
	if err != nil {
		t.Fatal(err)
	}
	if e.Visible() < im.flushed {
		t.Fatalf("opened at commit %d, but %d was flushed", e.Visible(), im.flushed)
	}
	found := e.Visible()
	h = h.cut(found)
	h.check(t, e)
	for range 50 {
		h.commit(t, e)
	}
	h.check(t, e)
	if err := e.Close(); err != nil {
		t.Fatal(err)
	}
	e, err = engine.Open(o)
	if err != nil {
		t.Fatal(err)
	}
	h.check(t, e)
	if err := e.Close(); err != nil {
		t.Fatal(err)
	}
	return found
}

// Badger makes a MANIFEST before all else. Where it is missing beside data it
// was taken away, and Badger would delete every table that it does not name.
func TestLostManifest(t *testing.T) {
	o := engine.SmallTables(engine.Options{Dir: t.TempDir()})
	e := open(t, o)
	fill(t, e, 1)
	if err := e.Close(); err != nil {
		t.Fatal(err)
	}
	files := func() []string {
		t.Helper()
		list, err := filepath.Glob(filepath.Join(o.Dir, "*.[sm]*"))
		if err != nil || len(list) == 0 {
			t.Fatal(list, err)
		}
		return list
	}
	before := files()
	if err := os.Remove(filepath.Join(o.Dir, "MANIFEST")); err != nil {
		t.Fatal(err)
	}
	if e, err := engine.Open(o); err == nil {
		t.Errorf("opened at commit %d without a MANIFEST", e.Visible())
		_ = e.Close()
	} else if !strings.Contains(err.Error(), "MANIFEST") {
		t.Error(err)
	}
	if after := files(); !slices.Equal(before, after) {
		t.Errorf("left are %v of %v", after, before)
	}
}

// What Badger keeps beside tables and logs is never synced and may be torn in
// any way.
func TestTornSideFiles(t *testing.T) {
	for _, tear := range []struct {
		name string
		do   func(path string) error
	}{
		{"zeros", func(path string) error { return zero(path, 0, 1<<30) }},
		{"empty", func(path string) error { return os.Truncate(path, 0) }},
		{"short", func(path string) error { return os.Truncate(path, 10) }},
		{"gone", os.Remove},
	} {
		t.Run(tear.name, func(t *testing.T) {
			o := engine.SmallTables(engine.Options{Dir: t.TempDir()})
			e := open(t, o)
			put(t, e, "a", "1", 1)
			to := t.TempDir()
			list, err := os.ReadDir(o.Dir)
			if err != nil {
				t.Fatal(err)
			}
			for _, en := range list {
				path := filepath.Join(to, en.Name())
				if err := copyFile(filepath.Join(o.Dir, en.Name()), path); err != nil {
					t.Fatal(err)
				}
				if en.Name() != "DISCARD" && !strings.HasSuffix(en.Name(), ".vlog") {
					continue
				}
				if err := tear.do(path); err != nil {
					t.Fatal(err)
				}
			}
			o.Dir = to
			e = open(t, o)
			if row, ok, err := e.View().Get(20, []byte("a")); err != nil || !ok {
				t.Errorf("a: %v %t %v", row, ok, err)
			}
		})
	}
}

// A memtable that is smaller than the *.mem files of an unclean stop need is
// refused: Badger would end the process. What the nodes of many small rows take
// counts, and the same size is always enough.
func TestLoweredMemtable(t *testing.T) {
	o := engine.SmallTables(engine.Options{Dir: t.TempDir()})
	o.MemTableSizeBytes = 256 << 10
	e := open(t, o)
	for i := range 3500 {
		put(t, e, fmt.Sprint(i), "", 1)
		if i == 0 {
			t.Cleanup(e.HoldMemtables())
		}
	}
	o.Dir = takeImage(t, o).dir
	for size := o.MemTableSizeBytes; size >= 64<<10; size -= 8 << 10 {
		lower := o
		lower.Dir, lower.MemTableSizeBytes = takeImage(t, o).dir, size
		got, err := engine.Open(lower)
		switch {
		case err == nil:
			if err := got.Close(); err != nil {
				t.Fatal(err)
			}
		case size == o.MemTableSizeBytes:
			t.Fatal(err)
		case !strings.Contains(err.Error(), "must not be lowered"):
			t.Fatalf("%d bytes: %v", size, err)
		}
		if size == 64<<10 && err == nil {
			t.Error("opened with a quarter of the memtable")
		}
	}
}
