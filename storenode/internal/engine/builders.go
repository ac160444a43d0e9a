package engine

import (
	"fmt"
	"reflect"
	"unsafe"

	"github.com/dgraph-io/badger/v4"
	"github.com/dgraph-io/ristretto/v2/z"
)

// dropBuilderPool takes from db the pool in which Badger keeps the memory of
// table builders, and returns it, to be released once db is closed.
//
// A builder needs up to five times the size of its table when values are larger
// than a block: the block is allocated anew for its first value, for the offsets
// after it, and for what it is compressed into. The pool keeps eight such heaps,
// of up to 400 MiB each, for whoever builds next, however small that table is,
// and gives one back for every two seconds in which nothing is built: 3 GiB that
// are held while there is work, beyond any memory limit, since the garbage
// collector finds them in use. Without the pool a builder's memory is garbage
// once its table is written.
//
// Badger's own goroutines may read the pointer meanwhile, each once for a
// builder, which keeps what it found; and both values of it are good. So no order
// is needed, only that the pointer is written at once, which a word is; the race
// detector, which cannot know that, does not look.
//
//go:norace
func dropBuilderPool(db *badger.DB) (*z.AllocatorPool, error) {
	field := reflect.ValueOf(db).Elem().FieldByName("allocPool")
	if !field.IsValid() || field.Type() != reflect.TypeFor[*z.AllocatorPool]() {
		return nil, fmt.Errorf("engine: this version of badger keeps its builders' memory elsewhere")
	}
	p := (**z.AllocatorPool)(unsafe.Pointer(field.UnsafeAddr()))
	pool := *p
	*p = nil
	return pool, nil
}
