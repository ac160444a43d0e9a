package wire

import (
	"encoding/binary"
	"fmt"
	"math/bits"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	kvpb "github.com/ridgekv/ridge/proto/ridge/kv/v1"
)

// Tags of the fields that are written and read here.
const (
	varint = byte(protowire.VarintType)
	length = byte(protowire.BytesType)

	tagRequest  = 2<<3 | length // StreamRequest.requests
	tagID       = 1<<3 | varint // Request.id, Response.id
	tagGet      = 2<<3 | length // Request.get, Response.get
	tagPut      = 3<<3 | length
	tagDelete   = 4<<3 | length
	tagHeader   = 1<<3 | length // in each request
	tagKey      = 2<<3 | length
	tagConsist  = 3<<3 | length // GetRequest.consistency
	tagValue    = 3<<3 | length // PutRequest.value
	tagTTL      = 4<<3 | varint // PutRequest.ttl_ms
	tagRangeID  = 1<<3 | varint // Header
	tagEpoch    = 2<<3 | varint
	tagToken    = 3<<3 | varint
	tagForward  = 4<<3 | varint
	tagTimeout  = 5<<3 | varint
	maxIDBytes  = 1 + binary.MaxVarintLen64
	frameBytes  = 1 + binary.MaxVarintLen32 + maxIDBytes
	headerBytes = 2 + 5*(1+binary.MaxVarintLen64)
)

// Header is a kvpb.Header.
type Header struct {
	RangeID, SpanEpoch, Token uint64
	Forwarded                 bool
	TimeoutMillis             uint32
}

func (h *Header) size() int {
	n := uintSize(h.RangeID) + uintSize(h.SpanEpoch) + uintSize(h.Token) +
		uintSize(uint64(h.TimeoutMillis))
	if h.Forwarded {
		n += 2
	}
	return n
}

func (h *Header) append(b []byte) []byte {
	b = binary.AppendUvarint(append(b, tagHeader), uint64(h.size()))
	b = appendUint(b, tagRangeID, h.RangeID)
	b = appendUint(b, tagEpoch, h.SpanEpoch)
	b = appendUint(b, tagToken, h.Token)
	if h.Forwarded {
		b = append(b, tagForward, 1)
	}
	return appendUint(b, tagTimeout, uint64(h.TimeoutMillis))
}

// AppendGet appends a Request that gets key, without its id. The read is
// linearizable.
func AppendGet(b []byte, h *Header, key []byte) []byte {
	return appendKeyed(b, tagGet, h, key, 0)
}

// AppendDelete appends a Request that deletes key, without its id.
func AppendDelete(b []byte, h *Header, key []byte) []byte {
	return appendKeyed(b, tagDelete, h, key, 0)
}

// AppendPut appends a Request that puts value under key, without its id.
func AppendPut(b []byte, h *Header, key, value []byte, ttlMillis uint64) []byte {
	b = appendKeyed(b, tagPut, h, key, bytesSize(value)+uintSize(ttlMillis))
	if len(value) > 0 {
		b = appendBytes(b, tagValue, value)
	}
	return appendUint(b, tagTTL, ttlMillis)
}

// appendKeyed appends the body that all three have in common; more bytes of it
// follow.
func appendKeyed(b []byte, tag byte, h *Header, key []byte, more int) []byte {
	header := h.size()
	n := 1 + varintSize(uint64(header)) + header + bytesSize(key) + more
	b = binary.AppendUvarint(append(b, tag), uint64(n))
	b = h.append(b)
	if len(key) > 0 {
		b = appendBytes(b, tagKey, key)
	}
	return b
}

// AppendRequest appends any Request, without its id.
func AppendRequest(b []byte, m *kvpb.Request) ([]byte, error) {
	if out := appendBatch(b, m); out != nil {
		return out, nil
	}
	id := m.Id
	m.Id = 0
	b, err := proto.MarshalOptions{}.MarshalAppend(b, m)
	m.Id = id
	if err != nil {
		return nil, fmt.Errorf("wire: encode a request: %w", err)
	}
	return b, nil
}

// Builder makes a StreamRequest of requests that were encoded one by one.
type Builder struct {
	bytes []byte
	done  func([]byte) Frame
}

// RequestSize is the most that a request of n bytes adds to a Builder.
func RequestSize(n int) int { return frameBytes + n }

// NewBuilder returns a Builder for n bytes, as RequestSize counts them.
func NewBuilder(n int) Builder {
	b, done := newBuffer(n)
	return Builder{bytes: b, done: func(b []byte) Frame { return Frame{buffer: done(b)} }}
}

// Add appends a request that was encoded without its id.
func (b *Builder) Add(id uint64, request []byte) {
	b.bytes = append(b.bytes, tagRequest)
	b.bytes = binary.AppendUvarint(b.bytes, uint64(1+varintSize(id)+len(request)))
	b.bytes = binary.AppendUvarint(append(b.bytes, tagID), id)
	b.bytes = append(b.bytes, request...)
}

// Frame is the message; the Builder is at its end.
func (b *Builder) Frame() Frame { return b.done(b.bytes) }

// unmarshal decodes a StreamRequest. Its requests share b.
func (m *Requests) unmarshal(b []byte) error {
	m.SizeBytes = len(b)
	if len(b) > 2*maxRequests && countRequests(b) > maxRequests {
		return errTooMany
	}
	m.Hello, m.Requests = nil, m.Requests[:0]
	var slab slabs
	rest := b
	for len(rest) > 0 {
		if rest[0] != tagRequest {
			return m.unmarshalAll(b)
		}
		request, n := protowire.ConsumeBytes(rest[1:])
		if n < 0 {
			return fmt.Errorf("wire: %w", protowire.ParseError(n))
		}
		rest = rest[1+n:]
		r := slab.request(request)
		if r == nil {
			r = &kvpb.Request{}
			if err := proto.Unmarshal(request, r); err != nil {
				return fmt.Errorf("wire: decode a request: %w", err)
			}
		}
		m.Requests = append(m.Requests, r)
	}
	return nil
}

// maxRequests bounds the requests of one message, of which the smallest takes two
// bytes on the wire and a hundred in memory. A store lets far fewer wait.
const maxRequests = 1 << 16

var errTooMany = fmt.Errorf("wire: more than %d requests in one message", maxRequests)

// countRequests counts up to the first thing that is not protobuf.
func countRequests(b []byte) (count int) {
	for len(b) > 0 {
		number, _, n := protowire.ConsumeField(b)
		if n < 0 {
			break
		}
		if number == protowire.Number(tagRequest>>3) {
			count++
		}
		b = b[n:]
	}
	return count
}

func (m *Requests) unmarshalAll(b []byte) error {
	if err := proto.Unmarshal(b, m.StreamRequest); err != nil {
		return fmt.Errorf("wire: decode a StreamRequest: %w", err)
	}
	return nil
}

// slabs hands out requests of one message, several of one allocation: they come
// and go together.
type slabs struct {
	gets    []getRequest
	puts    []putRequest
	deletes []deleteRequest
	scans   []scanRequest
}

// slabLen bounds what a single slow request keeps alive.
const slabLen = 16

type getRequest struct {
	request kvpb.Request
	body    kvpb.Request_Get
	get     kvpb.GetRequest
	header  kvpb.Header
}

type putRequest struct {
	request kvpb.Request
	body    kvpb.Request_Put
	put     kvpb.PutRequest
	header  kvpb.Header
}

type deleteRequest struct {
	request kvpb.Request
	body    kvpb.Request_Delete
	del     kvpb.DeleteRequest
	header  kvpb.Header
}

func next[T any](slab *[]T) *T {
	if len(*slab) == 0 {
		*slab = make([]T, slabLen)
	}
	x := &(*slab)[0]
	*slab = (*slab)[1:]
	return x
}

// request decodes a request in its usual form: the id and then the body, their
// fields in ascending order, each at most once unless it is repeated. It returns
// nil for anything else, which may still be valid.
func (s *slabs) request(b []byte) *kvpb.Request {
	d := decoder{b: b}
	id := d.uint(tagID)
	if d.failed || len(d.b) == 0 {
		return nil
	}
	switch tag := d.b[0]; tag {
	case tagGet:
		x := next(&s.gets)
		k := keyed{header: &x.header}
		if body := d.bytes(tag); !d.end() || !k.decode(body, tag) {
			return nil
		}
		x.get.Header, x.get.Key, x.get.Consistency = &x.header, k.key, k.consistency
		x.body.Get = &x.get
		x.request.Id, x.request.Body = id, &x.body
		return &x.request
	case tagPut:
		x := next(&s.puts)
		k := keyed{header: &x.header}
		if body := d.bytes(tag); !d.end() || !k.decode(body, tag) {
			return nil
		}
		x.put.Header, x.put.Key, x.put.Value, x.put.TtlMs = &x.header, k.key, k.value, k.ttl
		x.body.Put = &x.put
		x.request.Id, x.request.Body = id, &x.body
		return &x.request
	case tagDelete:
		x := next(&s.deletes)
		k := keyed{header: &x.header}
		if body := d.bytes(tag); !d.end() || !k.decode(body, tag) {
			return nil
		}
		x.del.Header, x.del.Key = &x.header, k.key
		x.body.Delete = &x.del
		x.request.Id, x.request.Body = id, &x.body
		return &x.request
	case tagScan:
		if body := d.bytes(tag); d.end() {
			return s.scan(id, body)
		}
	case tagBatchGet, tagBulkWrite:
		return batch(id, d)
	}
	return nil
}

// keyed is what a request for one key consists of.
type keyed struct {
	header      *kvpb.Header
	key, value  []byte
	ttl         uint64
	consistency *kvpb.Consistency
}

// decode reads the body of a request. A missing header is refused: the
// protobuf library tells it from an empty one.
func (k *keyed) decode(b []byte, kind byte) bool {
	d := decoder{b: b}
	h := decoder{b: d.bytes(tagHeader)}
	if h.b == nil || !h.headerInto(k.header) {
		return false
	}
	k.key = d.bytes(tagKey)
	switch kind {
	case tagPut:
		k.value = d.bytes(tagValue)
		k.ttl = d.uint(tagTTL)
	case tagGet:
		if c := d.bytes(tagConsist); c != nil {
			k.consistency = &kvpb.Consistency{}
			if len(c) > 0 && proto.Unmarshal(c, k.consistency) != nil {
				return false
			}
		}
	}
	return d.end()
}

// headerInto reads the fields of a header.
func (d *decoder) headerInto(h *kvpb.Header) bool {
	h.RangeId = d.uint(tagRangeID)
	h.SpanEpoch = d.uint(tagEpoch)
	h.Token = d.uint(tagToken)
	h.Forwarded = d.uint(tagForward) != 0
	timeout := d.uint(tagTimeout)
	h.TimeoutMs = uint32(timeout)
	return d.end() && timeout>>32 == 0
}

// decoder reads optional fields in ascending order from the front of b.
type decoder struct {
	b      []byte
	failed bool
}

// uint reads a varint field; 0 when it is not there.
func (d *decoder) uint(tag byte) uint64 {
	if d.failed || len(d.b) == 0 || d.b[0] != tag {
		return 0
	}
	v, n := binary.Uvarint(d.b[1:])
	if n <= 0 {
		d.failed = true
		return 0
	}
	d.b = d.b[1+n:]
	return v
}

// bytes reads a field of bytes; nil when it is not there. What it returns
// shares b and is never nil when the field is there.
func (d *decoder) bytes(tag byte) []byte {
	if d.failed || len(d.b) == 0 || d.b[0] != tag {
		return nil
	}
	size, n := binary.Uvarint(d.b[1:])
	if n <= 0 || size > uint64(len(d.b)-1-n) {
		d.failed = true
		return nil
	}
	at := 1 + n
	end := at + int(size)
	out := d.b[at:end:end]
	d.b = d.b[end:]
	return out
}

// end reports whether all was read and nothing was wrong.
func (d *decoder) end() bool { return !d.failed && len(d.b) == 0 }

func appendUint(b []byte, tag byte, v uint64) []byte {
	if v == 0 {
		return b
	}
	return binary.AppendUvarint(append(b, tag), v)
}

func appendBytes(b []byte, tag byte, v []byte) []byte {
	b = binary.AppendUvarint(append(b, tag), uint64(len(v)))
	return append(b, v...)
}

func varintSize(v uint64) int { return (bits.Len64(v|1) + 6) / 7 }

func uintSize(v uint64) int {
	if v == 0 {
		return 0
	}
	return 1 + varintSize(v)
}

func bytesSize(v []byte) int {
	if len(v) == 0 {
		return 0
	}
	return 1 + varintSize(uint64(len(v))) + len(v)
}
