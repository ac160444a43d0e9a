package bench

import (
	"encoding/binary"
	"encoding/hex"
	"math/bits"

	"github.com/ridgekv/ridge/proto/keys"
)

// hashDigits is the length of a key behind its prefix.
const hashDigits = 16

// keyspace maps the index of a key to its bytes: the prefix, then the index,
// scrambled, as 16 hexadecimal digits. So neighbours by index, which are the
// popular keys of a zipfian draw and the fresh ones of an insert, lie all over
// the keyspace, and ranges cut at even distances hold equal shares.
type keyspace struct{ prefix []byte }

// append writes the key of index behind b.
func (s keyspace) append(b []byte, index int64) []byte {
	b = append(b, s.prefix...)
	return appendHash(b, scramble(uint64(index)))
}

func appendHash(b []byte, h uint64) []byte {
	var raw [8]byte
	binary.BigEndian.PutUint64(raw[:], h)
	return hex.AppendEncode(b, raw[:])
}

// span holds all keys.
func (s keyspace) span() keys.Span { return keys.Prefix(s.prefix) }

// bounds returns the n+1 keys between which lie n ranges of equal share. The
// last is nil when no key lies above the prefix.
func (s keyspace) bounds(n int) [][]byte {
	out := make([][]byte, 0, n+1)
	out = append(out, s.prefix)
	for i := 1; i < n; i++ {
		h, _ := bits.Div64(uint64(i), 0, uint64(n))
		out = append(out, appendHash(append([]byte{}, s.prefix...), h))
	}
	return append(out, keys.PrefixEnd(s.prefix))
}

// scramble is a bijection (the finalizer of SplitMix64): no two indexes get the
// same key.
func scramble(x uint64) uint64 {
	x += 0x9e3779b97f4a7c15
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}
