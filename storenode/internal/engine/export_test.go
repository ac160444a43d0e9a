package engine

import (
	"context"
	"errors"
	"io/fs"
	"time"

	"github.com/dgraph-io/badger/v4"

	metapb "github.com/ridgekv/ridge/proto/ridge/meta/v1"
	"github.com/ridgekv/ridge/proto/ts"
)

// SmallTables makes memtables so small that a few hundred rows fill one.
func SmallTables(o Options) Options {
	o.smallTables = true
	o.MemTableSizeBytes, o.ValueThresholdBytes = 64<<10, 4<<10
	o.BlockCacheSizeBytes = 1 << 20
	return o
}

// KeepVersions sets how far behind visible old versions may be dropped.
func KeepVersions(o Options, d time.Duration) Options {
	o.gcDistance = d
	return o
}

// GetStored is Get that Badger answers.
func (v View) GetStored(x Extent, key []byte) (Row, bool, error) { return v.getStored(x, key) }

// GetAtStored is GetAt that Badger answers.
func (v View) GetAtStored(x Extent, key []byte, at ts.Timestamp) (Row, bool, error) {
	row, ok, err := v.walkStored(x, key, at)
	if err != nil || !ok || row.Deleted {
		return Row{}, false, err
	}
	return row, true, nil
}

// RowCacheHits counts the reads that the row cache answered, RowCacheEvictions
// the rows that left it.
func (e *Engine) RowCacheHits() uint64      { return e.rows.stats().hits }
func (e *Engine) RowCacheEvictions() uint64 { return e.rows.stats().evictions }

// HoldMemtables keeps the *.mem files of this moment from being removed.
func (e *Engine) HoldMemtables() (release func()) {
	it := e.visible.Load().txn.NewIterator(badger.IteratorOptions{})
	return it.Close
}

// CollectHistory does one round of the GC.
func (e *Engine) CollectHistory() error { return e.collectHistory(context.Background()) }

// DiscardSeq is what Badger was told.
func (e *Engine) DiscardSeq() Seq {
	e.pins.mu.Lock()
	defer e.pins.mu.Unlock()
	return e.pins.mu.discard
}

// Compact moves all tables to one level and returns the newest seq in the
// last level.
func (e *Engine) Compact() (Seq, error) {
	err := e.db.Flatten(2)
	newest := Seq(0)
	for _, t := range e.db.Tables() {
		if t.Level == 6 {
			newest = max(newest, Seq(t.MaxVersion))
		}
	}
	return newest, err
}

// RawVersions counts the versions that Badger holds below a key.
func (e *Engine) RawVersions(x Extent, key string) int {
	it := e.visible.Load().txn.NewKeyIterator(
		appendExtentKey(nil, kindData, x, []byte(key)), badger.IteratorOptions{})
	defer it.Close()
	n := 0
	for it.Rewind(); it.Valid(); it.Next() {
		n++
	}
	return n
}

// Verify does one round over all tables.
func (e *Engine) Verify() error { return e.verifyTables(context.Background()) }

// SyncedFiles are the *.mem files that the flusher need not look at again.
func (e *Engine) SyncedFiles() map[int]bool { return e.flusher.synced }

// LookAtDisk measures now.
func (e *Engine) LookAtDisk() error { return e.lookAtDisk() }

// ManifestTables are the tables that the MANIFEST of dir names.
func ManifestTables(o Options) ([]uint64, error) {
	tables, err := manifestTables(o.withDefaults())
	var out []uint64
	for id := range tables {
		out = append(out, id)
	}
	return out, err
}

// MemFile is what a *.mem file holds.
type MemFile struct {
	Path        string
	First, Last Seq
	EndBytes    int64
}

// MemFiles reads the *.mem files of dir in number order.
func MemFiles(dir string) ([]MemFile, error) {
	numbers, err := memFiles(dir)
	if err != nil {
		return nil, err
	}
	var out []MemFile
	for _, n := range numbers {
		log, err := readMemFile(memPath(dir, n))
		if errors.Is(err, fs.ErrNotExist) {
			continue // Written out meanwhile.
		}
		if err != nil {
			return nil, err
		}
		out = append(out, MemFile{memPath(dir, n), log.first, log.last, log.endBytes})
	}
	return out, nil
}

// Options are those of the engine.
func (e *Engine) Options() Options { return e.opt }

// DiskLookDue reports whether the disk would be looked at now.
func (e *Engine) DiskLookDue() bool { return e.diskLookDue() }

// DiskState judges a disk with the watermarks of o.
func DiskState(d Disk, o Options, workBytes uint64, last metapb.DiskState) metapb.DiskState {
	return diskState(d, o.withDefaults(), workBytes, last)
}

// PoolsBuilders reports whether Badger keeps the memory of table builders.
func PoolsBuilders(e *Engine) bool {
	pool, err := dropBuilderPool(e.db)
	return err != nil || pool != nil
}

// Compactions tells of the tables that compactions filled, and how long they paused.
func (e *Engine) Compactions() (tables uint64, paused time.Duration) { return e.compactions.seen() }
