package engine

import (
	"bytes"
	"fmt"
	"reflect"
	"unsafe"

	"github.com/dgraph-io/badger/v4"
	"github.com/dgraph-io/badger/v4/y"

	"github.com/ridgekv/ridge/proto/keys"
)

// Like badgerwrite.go, this file reaches past Badger's public interface: a scan
// reads the keys and values of memtables and blocks where they lie. Badger's own
// iterator copies each key twice and each value once, into an object, two rows
// ahead of the one that is asked for.

// metaValuePointer marks an entry whose value lies in the value log.
const metaValuePointer = 1 << 1

// checkBadgerIterator refuses a Badger whose iterator does not begin with the one
// that merges its tables.
func checkBadgerIterator() error {
	f := reflect.TypeFor[badger.Iterator]().Field(0)
	if f.Name != "iitr" || f.Type != reflect.TypeFor[y.Iterator]() {
		return errBadgerMoved("Iterator.iitr")
	}
	return nil
}

// merged is the iterator over all entries in the tables that it was opened for:
// every version of every key, whoever may see it. What it gives is good until it
// moves on or it is closed. It is nil when there is no table.
func merged(it *badger.Iterator) y.Iterator { return *(*y.Iterator)(unsafe.Pointer(it)) }

// forward picks of each key the newest version of the view, and at or below At if
// that is given. The versions of a key come newest first.
func (s *scanner) forward(it y.Iterator) error {
	if it == nil {
		s.ends = true
		return nil
	}
	readTS := s.v.txn.ReadTs()
	var decided []byte // The key that is decided.
	passed := 0
	for it.Seek(y.KeyWithTs(s.pos, readTS)); it.Valid(); {
		key := y.ParseKey(it.Key())
		if over, _ := s.outside(key); over {
			break
		}
		if bytes.Equal(key, decided) {
			if passed++; passed < skipVersions {
				it.Next()
			} else {
				it.Seek(y.KeyWithTs(keys.Next(decided), readTS))
			}
			continue
		}
		if version := y.ParseTs(it.Key()); version <= readTS {
			done, err := s.decide(key, version, it.Value())
			if err != nil {
				return err
			}
			if done {
				decided, passed = append(decided[:0], key...), 0
				if full, err := s.full(); full || err != nil {
					s.resumeAfter(decided)
					return err
				}
			}
		}
		it.Next()
	}
	s.ends = true
	return nil
}

// decide takes a version if it is the one to be read; no older one is, when it
// returns true.
func (s *scanner) decide(key []byte, version uint64, v y.ValueStruct) (done bool, err error) {
	mark := v.ExpiresAt == deleteMarkExpiry
	switch {
	case mark && s.o.At == 0:
		return true, nil
	case !mark && (v.Meta&metaDelete != 0 || v.ExpiresAt != 0 && v.ExpiresAt <= s.now):
		return true, nil // The collector took the key.
	case v.Meta&metaValuePointer != 0:
		return s.decidePointer(key, version)
	}
	return s.decideRow(key, v.Value, mark)
}

func (s *scanner) decideRow(key, encoded []byte, mark bool) (done bool, err error) {
	row, err := decodeRow(encoded)
	if err == nil && row.Deleted != mark {
		err = fmt.Errorf("%w: its flags say deleted=%t, its expiry says %t",
			errCorruptRow, row.Deleted, mark)
	}
	if err != nil || s.o.At != 0 && row.CommitTS > s.o.At {
		return false, err
	}
	if !row.Deleted {
		s.take(key, row)
	}
	return true, nil
}

// decidePointer is decide for a value in the value log, which Badger has to read.
// Its files stay while the iterator is open.
func (s *scanner) decidePointer(key []byte, version uint64) (done bool, err error) {
	txn := s.v.e.db.NewTransactionAt(version, false)
	defer txn.Discard()
	item, err := txn.Get(key)
	if err != nil {
		return false, err
	}
	err = item.Value(func(b []byte) error {
		done, err = s.decideRow(key, b, false)
		return err
	})
	return done, err
}
