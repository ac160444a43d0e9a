package engine

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"testing"

	"github.com/ridgekv/ridge/proto/ts"
)

// TestRowCacheAgainstModel interleaves commits, reads at views, late fills
// and evictions in one goroutine, so that a seed repeats: whatever the cache
// answers at a view must be what was committed up to it.
func TestRowCacheAgainstModel(t *testing.T) {
	seeds := []uint64{rand.Uint64(), rand.Uint64(), rand.Uint64(), rand.Uint64()}
	if s, err := strconv.ParseUint(os.Getenv("RIDGE_SEED"), 10, 64); err == nil {
		seeds = []uint64{s}
	}
	for _, seed := range seeds {
		t.Run(strconv.FormatUint(seed, 10), func(t *testing.T) {
			rng := rand.New(rand.NewPCG(seed, 0))
			for range 20 {
				limit := 4096 << rng.IntN(7)
				m := &cacheModel{
					T: t, rng: rng, cache: newRowCache(int64(limit)), keys: 1 + rng.IntN(400),
					history: map[cacheKey][]cacheVersion{}, maxValue: 1 << rng.IntN(13),
				}
				for range 3000 {
					m.step()
				}
				m.checkShards()
			}
		})
	}
}

type cacheKey struct {
	extent Extent
	key    string
}

// cacheVersion is what one commit made of a key; no row when it erased it.
type cacheVersion struct {
	seq     Seq
	encoded []byte
}

// foundRow is what a reader has found in Badger and not yet offered.
type foundRow struct {
	key  cacheKey
	view Seq
	cacheVersion
}

type cacheModel struct {
	*testing.T
	rng      *rand.Rand
	cache    *rowCache
	keys     int
	maxValue int
	history  map[cacheKey][]cacheVersion
	seq      Seq
	// visible is behind seq between the moments when Badger and the cache
	// take a commit.
	visible Seq
	pending []part
	fills   []foundRow
	hits    int
}

func (m *cacheModel) step() {
	switch m.rng.IntN(12) {
	case 0:
		m.commit()
	case 1:
		m.publish()
	case 2, 3:
		if n := len(m.fills); n > 0 {
			i := m.rng.IntN(n)
			f := m.fills[i]
			m.fills[i] = m.fills[n-1]
			m.fills = m.fills[:n-1]
			m.cache.fill(f.view, f.seq, f.key.extent, []byte(f.key.key), f.encoded)
		}
	default:
		m.read()
	}
}

func (m *cacheModel) key() cacheKey {
	return cacheKey{
		extent: Extent(16 + m.rng.IntN(2)), key: fmt.Sprintf("%04d", m.rng.IntN(m.keys)),
	}
}

// commit lets Badger have a commit that is not yet visible.
func (m *cacheModel) commit() {
	m.publish()
	m.seq++
	w := new(WriteSet)
	wrote := map[cacheKey]bool{}
	for range 1 + m.rng.IntN(8) {
		k := m.key()
		if wrote[k] {
			continue
		}
		wrote[k] = true
		at := ts.Timestamp(m.seq * 10)
		v := cacheVersion{seq: m.seq}
		switch m.rng.IntN(8) {
		case 0:
			w.erase(appendExtentKey(nil, kindData, k.extent, []byte(k.key)))
		case 1:
			w.Delete(k.extent, []byte(k.key), at)
			v.encoded = appendRow(nil, Row{CommitTS: at, Deleted: true})
		default:
			row := Row{CommitTS: at, Value: make([]byte, m.rng.IntN(m.maxValue))}
			for i := range row.Value {
				row.Value[i] = byte(m.rng.Uint32())
			}
			w.Put(k.extent, []byte(k.key), row)
			v.encoded = appendRow(nil, row)
		}
		m.history[k] = append(m.history[k], v)
	}
	w.SetApplied(1, []byte("a record, which is not for the cache"))
	m.pending = []part{{w, 0, len(w.ops)}}
}

// publish does what the committer does when Badger has taken the commit.
func (m *cacheModel) publish() {
	if m.visible < m.seq {
		m.cache.commit(m.seq, m.pending)
		m.visible = m.seq
	}
}

// at is what Badger shows of a key at a view. Without a row nothing is known
// of when it went.
func (m *cacheModel) at(k cacheKey, view Seq) cacheVersion {
	for i := len(m.history[k]) - 1; i >= 0; i-- {
		if v := m.history[k][i]; v.seq <= view {
			return v
		}
	}
	return cacheVersion{}
}

func (m *cacheModel) read() {
	k, view := m.key(), m.visible
	if m.rng.IntN(4) == 0 {
		view -= Seq(m.rng.Uint64N(min(uint64(view), 20) + 1))
	}
	want := m.at(k, view)
	row, known, err := m.cache.get(view, k.extent, []byte(k.key))
	gone := want.encoded == nil
	switch {
	case err != nil:
		m.Fatal(err)
	case known == notCached:
		f := foundRow{key: k, view: view, cacheVersion: want}
		if deleted := !gone && want.encoded[9]&rowFlagDeleted != 0; gone ||
			deleted && m.rng.IntN(2) == 0 { // What Get finds of a deleted row.
			f.seq, f.encoded = view, nil
		}
		m.fills = append(m.fills, f)
		return
	case known == cachedAbsent && !gone && want.encoded[9]&rowFlagDeleted == 0:
		m.Fatalf("%v at %d: absent, but commit %d wrote it", k, view, want.seq)
	case known == cachedRow && (gone || !bytes.Equal(appendRow(nil, row), want.encoded)):
		m.Fatalf("%v at %d: row of %d, want what %d wrote", k, view, row.CommitTS, want.seq)
	}
	m.hits++
}

// checkShards asserts the invariants of the shards.
func (m *cacheModel) checkShards() {
	if m.hits == 0 {
		m.Error("the cache never answered")
	}
	for i := range m.cache.shards {
		s := &m.cache.shards[i]
		fixed := 8*minCacheSlots + 8*len(s.fences) + 4*len(s.leavers)
		if s.bytes > max(s.limit, fixed) {
			m.Errorf("%d bytes, the limit is %d", s.bytes, s.limit)
		}
		bytes, live := 8*len(s.slots)+8*len(s.fences)+4*len(s.leavers), 0
		for _, q := range []*segmentQueue{&s.probation, &s.protected} {
			inQueue := 0
			for _, n := range q.numbers {
				inQueue += len(s.segments[n].buf)
				if s.segments[n].protected != q.protected {
					m.Error("a segment in the wrong queue")
				}
				live += m.liveIn(s, n)
			}
			if inQueue != q.bytes {
				m.Errorf("a queue counts %d bytes and has %d", q.bytes, inQueue)
			}
			bytes += inQueue
		}
		if bytes != s.bytes || live != s.used {
			m.Errorf("counts %d bytes, %d entries; has %d, %d", s.bytes, s.used, bytes, live)
		}
	}
}

func (m *cacheModel) liveIn(s *cacheShard, n uint32) (live int) {
	g := s.segments[n]
	for from := 0; from < g.fill; {
		en := entry(g.buf[from:])
		if s.slotOf(en.tag(), n<<placeOffsetBits|uint32(from/8)) >= 0 {
			live++
		}
		from += en.size()
	}
	return live
}

// Keys whose hashes are equal are told apart, by key and by extent.
func TestRowCacheEqualHashes(t *testing.T) {
	s := &newRowCache(1 << 20).shards[0]
	keys := []string{"a", "b", "ab", "a\x00", ""}
	for seq := Seq(1); seq <= 3; seq++ {
		for i, key := range keys {
			h := entryHeader{tag: 7, seq: seq, extent: Extent(20 + seq)}
			s.add(&s.probation, h, []byte(key), []byte{byte(seq), byte(i)})
		}
	}
	for seq := Seq(1); seq <= 3; seq++ {
		for i, key := range keys {
			slot, en := s.find(7, Extent(20+seq), []byte(key))
			if en == nil || en.seq() != seq || !bytes.Equal(en.row(), []byte{byte(seq), byte(i)}) {
				t.Fatalf("%q in extent %d: found %x", key, 20+seq, en)
			}
			if i%2 == 0 {
				s.remove(slot)
			}
		}
		if _, en := s.find(7, Extent(20+seq), []byte("c")); en != nil {
			t.Errorf("found %x for a key that is not there", en)
		}
	}
	if s.used != 3*2 {
		t.Errorf("%d entries", s.used)
	}
}

// What is read twice outlives a pass of many rows that are read once.
func TestRowCacheKeepsWhatIsUsed(t *testing.T) {
	c := newRowCache(1 << 20)
	value := appendRow(nil, Row{CommitTS: 1, Value: make([]byte, 100)})
	key := func(i int) []byte { return fmt.Appendf(nil, "%08d", i) }
	for i := range 1000 {
		c.fill(1, 1, 20, key(i), value)
	}
	for pass := range 20 {
		for i := range 1000 {
			if _, known, _ := c.get(1, 20, key(i)); known != cachedRow {
				t.Fatalf("pass %d: row %d is gone", pass, i)
			}
		}
		for i := range 3000 {
			c.fill(1, 1, 20, key(10_000*(pass+1)+i), value)
		}
	}
	if s := c.stats(); s.bytes > 1<<20 || s.evictions == 0 {
		t.Errorf("%+v", s)
	}
}

// A nil cache is one that holds nothing.
func TestNoRowCache(t *testing.T) {
	c := newRowCache(-1)
	c.fill(1, 1, 20, []byte("k"), nil)
	c.commit(2, nil)
	if _, known, err := c.get(2, 20, []byte("k")); known != notCached || err != nil {
		t.Error(known, err)
	}
	c.close()
	if s := c.stats(); s != (cacheStats{}) {
		t.Error(s)
	}
}
