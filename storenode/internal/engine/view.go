package engine

import (
	"errors"
	"fmt"
	"sync"
	"sync/atomic"

	"github.com/dgraph-io/badger/v4"
	"github.com/ridgekv/ridge/proto/ts"
)

// ErrExpired is returned by a view that was kept too long without a pin.
var ErrExpired = errors.New("engine: the view is too old")

// View is the state of the store at one seq. It may be used by several
// goroutines.
type View struct {
	e   *Engine
	seq Seq
	// txn has no state of its own; all readers of the view share it.
	txn *badger.Txn
	// floor is where the history of a pinned view begins; 0 without a pin.
	floor ts.Timestamp
}

// Seq is the commit this view shows.
func (v View) Seq() Seq { return v.seq }

// View returns the state at the present visible. It is good for point reads
// and for scans begun within 30 s.
func (e *Engine) View() View { return *e.visible.Load() }

// Pin returns a view that stays good until release is called, history from
// the present floor on included.
func (e *Engine) Pin() (v View, release func()) {
	for {
		v = e.View()
		releaseSeq, err := e.pins.hold(v.seq)
		if err != nil {
			continue // The view fell behind between two lines.
		}
		floor, releaseFloor := e.gc.holdFloor()
		v.floor = floor
		return v, sync.OnceFunc(func() { releaseFloor(); releaseSeq() })
	}
}

// keyBuffers spare an allocation per point read.
var keyBuffers = sync.Pool{New: func() any { b := make([]byte, 0, 128); return &b }}

// Get returns the newest version of key; false when it is absent or deleted.
// The expiry is not judged. The row's value may be shared with other readers
// and must not be changed.
func (v View) Get(x Extent, key []byte) (row Row, ok bool, err error) {
	if uint64(v.seq) < v.e.pins.expired.Load() {
		return Row{}, false, ErrExpired
	}
	row, known, err := v.e.rows.get(v.seq, x, key)
	if err != nil {
		return Row{}, false, fmt.Errorf("engine: get: %w", err)
	}
	switch {
	case known == notCached:
		return v.getStored(x, key)
	case known == cachedAbsent || row.Deleted:
		return Row{}, false, nil
	}
	return row, true, nil
}

// getStored is Get from Badger. What it finds may answer the next reader.
func (v View) getStored(x Extent, key []byte) (row Row, ok bool, err error) {
	if err := v.e.enter(); err != nil {
		return Row{}, false, err
	}
	defer v.e.leave()
	if uint64(v.seq) < v.e.pins.expired.Load() {
		return Row{}, false, ErrExpired
	}
	buf := keyBuffers.Get().(*[]byte)
	defer keyBuffers.Put(buf)
	*buf = appendExtentKey((*buf)[:0], kindData, x, key)
	item, err := v.txn.Get(*buf)
	if err == badger.ErrKeyNotFound { //nolint:errorlint // Badger returns it bare.
		v.e.rows.fill(v.seq, v.seq, x, key, nil)
		return Row{}, false, nil
	}
	if err != nil {
		return Row{}, false, fmt.Errorf("engine: get: %w", err)
	}
	// Value copies, so the row owns what decodeRow shares.
	err = item.Value(func(b []byte) error {
		if row, err = decodeRow(b); err == nil && row.Deleted {
			err = fmt.Errorf("%w: delete mark without its expiry", errCorruptRow)
		}
		if err == nil {
			v.e.rows.fill(v.seq, Seq(item.Version()), x, key, b)
		}
		return err
	})
	if err != nil {
		return Row{}, false, fmt.Errorf("engine: get: %w", err)
	}
	return row, true, nil
}

// GetAt returns the newest version at or below at; false when it is absent or
// deleted. The newest version of all is nearly always the one, and Get finds it
// at a fraction of what an iterator costs. Where Get finds nothing, or something
// newer, only the key's versions tell.
func (v View) GetAt(x Extent, key []byte, at ts.Timestamp) (Row, bool, error) {
	row, ok, err := v.Get(x, key)
	if err != nil || ok && row.CommitTS <= at {
		return row, ok, err
	}
	row, ok, err = v.walk(x, key, at)
	if err != nil || !ok || row.Deleted {
		return Row{}, false, err
	}
	return row, true, nil
}

// Newest returns the newest version of key, delete marks included.
func (v View) Newest(x Extent, key []byte) (Row, bool, error) { return v.walk(x, key, ts.Max) }

// walk goes through the versions of a key, newest first, to the first one at
// or below at. A key's seq order is its commit_ts order.
func (v View) walk(x Extent, key []byte, at ts.Timestamp) (Row, bool, error) {
	if uint64(v.seq) < v.e.pins.expired.Load() {
		return Row{}, false, ErrExpired
	}
	row, ok, err := v.cachedAt(x, key, at)
	if err != nil {
		return Row{}, false, fmt.Errorf("engine: read versions: %w", err)
	}
	if ok {
		return row, true, nil
	}
	return v.walkStored(x, key, at)
}

// walkStored is walk in Badger. A newest version may answer the next reader.
func (v View) walkStored(x Extent, key []byte, at ts.Timestamp) (Row, bool, error) {
	release, err := v.e.pins.hold(v.seq)
	if err != nil {
		return Row{}, false, err
	}
	defer release()
	if err := v.e.enter(); err != nil {
		return Row{}, false, err
	}
	defer v.e.leave()
	raw := appendExtentKey(make([]byte, 0, extentSizeBytes+len(key)), kindData, x, key)
	it := v.txn.NewKeyIterator(raw, badger.IteratorOptions{})
	defer it.Close()
	first := true
	for it.Rewind(); it.Valid(); it.Next() {
		row, erased, err := itemRow(it.Item())
		if err == nil && first && !erased {
			first, err = false, v.offer(x, key, it.Item())
		}
		if err != nil {
			return Row{}, false, fmt.Errorf("engine: read versions: %w", err)
		}
		if erased {
			return Row{}, false, nil
		}
		if row.CommitTS <= at {
			row.Value = append([]byte(nil), row.Value...)
			return row, true, nil
		}
	}
	return Row{}, false, nil
}

// offer fills the row cache with the newest version of a key.
func (v View) offer(x Extent, key []byte, newest *badger.Item) error {
	return newest.Value(func(b []byte) error {
		v.e.rows.fill(v.seq, Seq(newest.Version()), x, key, b)
		return nil
	})
}

// itemRow decodes an item of an iterator over all versions. Its memory is
// the iterator's. Erased tells that the collector took the key.
func itemRow(item *badger.Item) (row Row, erased bool, err error) {
	mark := item.ExpiresAt() == deleteMarkExpiry
	if !mark && item.IsDeletedOrExpired() {
		return Row{}, true, nil
	}
	err = item.Value(func(b []byte) error {
		row, err = decodeRow(b)
		return err
	})
	if err == nil && row.Deleted != mark {
		err = fmt.Errorf("%w: its flags say deleted=%t, its expiry says %t",
			errCorruptRow, row.Deleted, mark)
	}
	return row, false, err
}

// record reads a record a| m| x|.
func (v View) record(key []byte) ([]byte, bool, error) {
	if err := v.e.enter(); err != nil {
		return nil, false, err
	}
	defer v.e.leave()
	item, err := v.txn.Get(key)
	if errors.Is(err, badger.ErrKeyNotFound) {
		return nil, false, nil
	}
	if err != nil {
		return nil, false, fmt.Errorf("engine: get record %q: %w", key, err)
	}
	b, err := item.ValueCopy(nil)
	if err != nil {
		return nil, false, fmt.Errorf("engine: get record %q: %w", key, err)
	}
	return b, true, nil
}

// pinSet holds the seqs that are being read. What they see is not dropped.
type pinSet struct {
	mu struct {
		sync.Mutex
		refs map[Seq]int
		// discard is what Badger was told with SetDiscardTs. Invariant: it
		// is not above any seq in refs.
		discard Seq
	}
	// expired is discard, for point reads, which hold nothing.
	expired atomic.Uint64
}

func (p *pinSet) init() { p.mu.refs = make(map[Seq]int) }

// hold registers seq until release is called, once.
func (p *pinSet) hold(seq Seq) (release func(), err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if seq < p.mu.discard {
		return nil, ErrExpired
	}
	p.mu.refs[seq]++
	return func() { p.release(seq) }, nil
}

func (p *pinSet) release(seq Seq) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.mu.refs[seq]--; p.mu.refs[seq] == 0 {
		delete(p.mu.refs, seq)
	}
}

// advance moves discard towards to, but not above any seq that is held, and
// calls set with it when it moved.
func (p *pinSet) advance(to Seq, set func(Seq)) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for seq := range p.mu.refs {
		to = min(to, seq)
	}
	if to > p.mu.discard {
		p.mu.discard = to
		p.expired.Store(uint64(to))
		set(to)
	}
}

func (p *pinSet) count() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.mu.refs)
}
