package logstore

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"slices"

	"github.com/lni/dragonboat/v4/raftio"
	"github.com/lni/dragonboat/v4/raftpb"
)

// A record says one thing about one replica. Its encoding is
//
//	kind(1) range(uvarint) replica(uvarint) size(4) body(size)
type recordKind byte

const (
	// kindBootstrap: how the replica was first started.
	kindBootstrap recordKind = 1 + iota
	// kindState: term, vote, commit index.
	kindState
	// kindSnapshot: the newest log snapshot or received image.
	kindSnapshot
	// kindTrim: entries below an index are gone.
	kindTrim
	// kindReset: all entries are gone and the next one has an index.
	kindReset
	// kindEntries: a run of entries, and none after it.
	kindEntries
	// kindMoved: a run of entries again, to replace an older copy.
	kindMoved
	// kindRemoved: nothing of the replica is left.
	kindRemoved
)

// record is a record decoded, but for the entries of a run, which stay where
// they are.
type record struct {
	kind     recordKind
	of       raftio.NodeInfo
	state    raftpb.State
	boot     *raftpb.Bootstrap
	snapshot *raftpb.Snapshot
	// first is the index of a trim, a reset or a run, count the run's length.
	first uint64
	count uint32
	// off and size are where the body of a run lies, from the beginning of the
	// payload; of others only size is set.
	off, size uint32
}

// maxRunBytes cuts long updates into runs, so that a reader who wants a part
// need not read much more.
const maxRunBytes = 256 << 10

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

var errRecord = errors.New("logstore: a record cannot be read")

// encoder builds a payload and the records in it.
type encoder struct {
	buf     []byte
	records []record
}

func (e *encoder) reset() {
	const keep = 4 << 20
	if cap(e.buf) > keep {
		e.buf = nil
	}
	clear(e.records)
	e.buf, e.records = e.buf[:0], e.records[:0]
}

// begin writes the head of a record and returns where its body begins.
func (e *encoder) begin(kind recordKind, of raftio.NodeInfo) int {
	e.buf = append(e.buf, byte(kind))
	e.buf = binary.AppendUvarint(e.buf, of.ShardID)
	e.buf = binary.AppendUvarint(e.buf, of.ReplicaID)
	e.buf = append(e.buf, 0, 0, 0, 0)
	return len(e.buf)
}

// end fills in the size of the body that began at body.
func (e *encoder) end(r record, body int) {
	size := uint32(len(e.buf) - body)
	binary.LittleEndian.PutUint32(e.buf[body-4:], size)
	r.size = size
	e.records = append(e.records, r)
}

func (e *encoder) bootstrap(of raftio.NodeInfo, b *raftpb.Bootstrap) {
	body := e.begin(kindBootstrap, of)
	e.buf = append(e.buf, raftpb.MustMarshal(b)...)
	own := cloneBootstrap(b)
	e.end(record{kind: kindBootstrap, of: of, boot: &own}, body)
}

func (e *encoder) state(of raftio.NodeInfo, s raftpb.State) {
	body := e.begin(kindState, of)
	e.buf = binary.AppendUvarint(e.buf, s.Term)
	e.buf = binary.AppendUvarint(e.buf, s.Vote)
	e.buf = binary.AppendUvarint(e.buf, s.Commit)
	e.end(record{kind: kindState, of: of, state: s}, body)
}

func (e *encoder) snapshot(of raftio.NodeInfo, s *raftpb.Snapshot) {
	body := e.begin(kindSnapshot, of)
	e.buf = append(e.buf, raftpb.MustMarshal(s)...)
	own := cloneSnapshot(s)
	e.end(record{kind: kindSnapshot, of: of, snapshot: &own}, body)
}

// cloneBootstrap and cloneSnapshot copy what is written and nothing else:
// Dragonboat hangs reference counts on snapshots, and callers own their maps.
func cloneBootstrap(b *raftpb.Bootstrap) (own raftpb.Bootstrap) {
	raftpb.MustUnmarshal(&own, raftpb.MustMarshal(b))
	return own
}

func cloneSnapshot(s *raftpb.Snapshot) (own raftpb.Snapshot) {
	raftpb.MustUnmarshal(&own, raftpb.MustMarshal(s))
	return own
}

// index writes a trim or a reset.
func (e *encoder) index(kind recordKind, of raftio.NodeInfo, first uint64) {
	body := e.begin(kind, of)
	e.buf = binary.AppendUvarint(e.buf, first)
	e.end(record{kind: kind, of: of, first: first}, body)
}

func (e *encoder) removed(of raftio.NodeInfo) {
	e.end(record{kind: kindRemoved, of: of}, e.begin(kindRemoved, of))
}

// entries writes entries as one run or several. The body of a run is
//
//	crc32c(4) of the rest, first(uvarint) count(uvarint) {size(4) entry}...
func (e *encoder) entries(of raftio.NodeInfo, all []raftpb.Entry) {
	for len(all) > 0 {
		n, size := 1, all[0].SizeUpperLimit()
		for n < len(all) && size+all[n].SizeUpperLimit() <= maxRunBytes {
			size += all[n].SizeUpperLimit()
			n++
		}
		body := e.begin(kindEntries, of)
		e.buf = append(e.buf, 0, 0, 0, 0)
		e.buf = binary.AppendUvarint(e.buf, all[0].Index)
		e.buf = binary.AppendUvarint(e.buf, uint64(n))
		for i := range all[:n] {
			e.entry(&all[i])
		}
		sum := crc32.Checksum(e.buf[body+4:], castagnoli)
		binary.LittleEndian.PutUint32(e.buf[body:], sum)
		e.end(record{
			kind: kindEntries, of: of, first: all[0].Index, count: uint32(n), off: uint32(body),
		}, body)
		all = all[n:]
	}
}

func (e *encoder) entry(x *raftpb.Entry) {
	at := len(e.buf)
	e.buf = slices.Grow(e.buf, 4+x.SizeUpperLimit())
	n, err := x.MarshalTo(e.buf[at+4 : cap(e.buf)])
	if err != nil {
		panic(fmt.Sprintf("logstore: encode an entry: %v", err))
	}
	e.buf = e.buf[:at+4+n]
	binary.LittleEndian.PutUint32(e.buf[at:], uint32(n))
}

// moved writes the body of a run again, of which count entries from first on
// are still valid.
func (e *encoder) moved(of raftio.NodeInfo, first uint64, count uint32, run []byte) {
	body := e.begin(kindMoved, of)
	e.buf = binary.AppendUvarint(e.buf, first)
	e.buf = binary.AppendUvarint(e.buf, uint64(count))
	off := len(e.buf)
	e.buf = append(e.buf, run...)
	e.end(record{kind: kindMoved, of: of, first: first, count: count}, body)
	r := &e.records[len(e.records)-1]
	r.off, r.size = uint32(off), uint32(len(run))
}

// cursor reads numbers and says at the end whether all were there.
type cursor struct {
	b   []byte
	bad bool
}

func (c *cursor) uvarint() uint64 {
	v, n := binary.Uvarint(c.b)
	if n <= 0 {
		c.bad, c.b = true, nil
		return 0
	}
	c.b = c.b[n:]
	return v
}

func (c *cursor) take(n uint32) []byte {
	if uint64(n) > uint64(len(c.b)) {
		c.bad, c.b = true, nil
		return nil
	}
	b := c.b[:n]
	c.b = c.b[n:]
	return b
}

func (c *cursor) uint32() uint32 {
	if b := c.take(4); b != nil {
		return binary.LittleEndian.Uint32(b)
	}
	return 0
}

func (c *cursor) count() uint32 {
	n := c.uvarint()
	if n == 0 || n > 1<<31 {
		c.bad = true
		return 0
	}
	return uint32(n)
}

// decode hands each record of a payload to f.
func decode(payload []byte, f func(record) error) error {
	c := cursor{b: payload}
	for len(c.b) > 0 {
		r := record{}
		if kind := c.take(1); kind != nil {
			r.kind = recordKind(kind[0])
		}
		r.of.ShardID, r.of.ReplicaID = c.uvarint(), c.uvarint()
		r.size = c.uint32()
		off := uint32(len(payload) - len(c.b))
		body := cursor{b: c.take(r.size)}
		if c.bad {
			return errRecord
		}
		if err := r.decodeBody(&body, off); err != nil {
			return err
		}
		if err := f(r); err != nil {
			return err
		}
	}
	return nil
}

// decodeBody reads a body that begins at off of the payload.
func (r *record) decodeBody(c *cursor, off uint32) error {
	var err error
	all := c.b
	switch r.kind {
	case kindBootstrap:
		r.boot = &raftpb.Bootstrap{}
		err = r.boot.Unmarshal(all)
		c.b = nil
	case kindSnapshot:
		r.snapshot = &raftpb.Snapshot{}
		err = r.snapshot.Unmarshal(all)
		c.b = nil
	case kindState:
		r.state = raftpb.State{Term: c.uvarint(), Vote: c.uvarint(), Commit: c.uvarint()}
	case kindTrim, kindReset:
		r.first = c.uvarint()
	case kindEntries:
		r.off = off
		c.take(4)
		r.first, r.count = c.uvarint(), c.count()
		c.b = nil
	case kindMoved:
		r.first, r.count = c.uvarint(), c.count()
		r.off = off + uint32(len(all)-len(c.b))
		r.size = uint32(len(c.b))
		c.b = nil
	case kindRemoved:
	default:
		return fmt.Errorf("%w: kind %d", errRecord, r.kind)
	}
	if err != nil || c.bad || len(c.b) > 0 {
		return fmt.Errorf("%w: kind %d of %d bytes: %v", errRecord, r.kind, len(all), err)
	}
	return nil
}

// decodeRun hands the entries of a run's body to f, from index low on, until f
// says that it has enough.
func decodeRun(body []byte, low uint64, f func(raftpb.Entry) bool) error {
	c := cursor{b: body}
	sum := c.uint32()
	if c.bad || crc32.Checksum(c.b, castagnoli) != sum {
		return fmt.Errorf("%w: the checksum of a run is wrong", errRecord)
	}
	first, count := c.uvarint(), c.count()
	for i := range uint64(count) {
		b := c.take(c.uint32())
		if c.bad {
			return errRecord
		}
		if first+i < low {
			continue
		}
		var x raftpb.Entry
		if err := x.Unmarshal(b); err != nil {
			return fmt.Errorf("%w: %v", errRecord, err)
		}
		if x.Index != first+i {
			return fmt.Errorf("%w: entry %d where %d belongs", errRecord, x.Index, first+i)
		}
		if !f(x) {
			return nil
		}
	}
	return nil
}
