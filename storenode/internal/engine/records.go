package engine

import (
	"encoding/binary"
	"fmt"

	"github.com/dgraph-io/badger/v4"
)

// Applied returns all records a|range.
func (e *Engine) Applied() map[uint64][]byte { return e.rangeRecords(kindApplied) }

// States returns all records m|range.
func (e *Engine) States() map[uint64][]byte { return e.rangeRecords(kindState) }

// rangeRecords is called at boot, where an error is a programmer's.
func (e *Engine) rangeRecords(kind byte) map[uint64][]byte {
	records, err := e.View().records([]byte{kind})
	if err != nil {
		panic(fmt.Sprintf("engine: read records %c|: %v", kind, err))
	}
	out := make(map[uint64][]byte, len(records))
	for key, b := range records {
		if len(key) != 1+8 {
			panic(fmt.Sprintf("engine: record key %q", key))
		}
		out[binary.BigEndian.Uint64([]byte(key[1:]))] = b
	}
	return out
}

// Store returns the record x|name.
func (e *Engine) Store(name string) ([]byte, bool, error) {
	return e.View().record(storeKey(name))
}

// StoreRecords returns, by name, all records x| whose names begin with prefix.
func (e *Engine) StoreRecords(prefix string) (map[string][]byte, error) {
	records, err := e.View().records(storeKey(prefix))
	if err != nil {
		return nil, err
	}
	out := make(map[string][]byte, len(records))
	for key, b := range records {
		out[key[1:]] = b
	}
	return out, nil
}

// records returns the records below a prefix, by raw key.
func (v View) records(prefix []byte) (map[string][]byte, error) {
	release, err := v.e.pins.hold(v.seq)
	if err != nil {
		return nil, err
	}
	defer release()
	if err := v.e.enter(); err != nil {
		return nil, err
	}
	defer v.e.leave()
	it := v.txn.NewIterator(badger.IteratorOptions{Prefix: prefix})
	defer it.Close()
	out := make(map[string][]byte)
	for it.Rewind(); it.Valid(); it.Next() {
		b, err := it.Item().ValueCopy(nil)
		if err != nil {
			return nil, fmt.Errorf("engine: read records: %w", err)
		}
		out[string(it.Item().Key())] = b
	}
	return out, nil
}
