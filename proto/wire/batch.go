package wire

import (
	"encoding/binary"

	"google.golang.org/protobuf/proto"

	kvpb "github.com/ridgekv/ridge/proto/ridge/kv/v1"
)

// Tags of BatchGet and BulkWrite: requests and answers of many rows.
const (
	tagBatchGet  = 6<<3 | length // Request.batch_get, Response.batch_get
	tagBulkWrite = 8<<3 | length // Request.bulk_write, Response.bulk_write

	tagKeys        = 2<<3 | length // BatchGetRequest.keys
	tagMutations   = 2<<3 | length // BulkWriteRequest.mutations
	tagMutationDel = 2<<3 | varint // Mutation.delete
	tagRows        = 2<<3 | length // BatchGetResponse.rows
	tagRowsToken   = 3<<3 | varint // BatchGetResponse.token
	tagApplied     = 2<<3 | varint // BulkWriteResponse.applied_count
	tagBulkCommit  = 3<<3 | varint // BulkWriteResponse.commit_ts
)

func plainHeader(h *kvpb.Header) Header {
	return Header{
		RangeID: h.RangeId, SpanEpoch: h.SpanEpoch, Token: h.Token,
		Forwarded: h.Forwarded, TimeoutMillis: h.TimeoutMs,
	}
}

// appendBatch appends a BatchGet, a BulkWrite or a Scan that this process has made, so
// there are no fields in it that this version does not know. It returns nil for
// any other request.
func appendBatch(b []byte, m *kvpb.Request) []byte {
	switch body := m.Body.(type) {
	case *kvpb.Request_BatchGet:
		if body.BatchGet.GetHeader() == nil {
			return nil
		}
		return appendBatchGet(b, body.BatchGet)
	case *kvpb.Request_BulkWrite:
		if body.BulkWrite.GetHeader() == nil {
			return nil
		}
		return appendBulkWrite(b, body.BulkWrite)
	case *kvpb.Request_Scan:
		return appendScan(b, body.Scan)
	}
	return nil
}

func appendBatchGet(b []byte, r *kvpb.BatchGetRequest) []byte {
	h := plainHeader(r.Header)
	size, consistency := embedded(h.size()), 0
	for _, key := range r.Keys {
		size += embedded(len(key))
	}
	if r.Consistency != nil {
		consistency = proto.Size(r.Consistency)
		size += embedded(consistency)
	}
	b = binary.AppendUvarint(append(b, tagBatchGet), uint64(size))
	b = h.append(b)
	for _, key := range r.Keys {
		b = appendBytes(b, tagKeys, key)
	}
	if r.Consistency == nil {
		return b
	}
	b = binary.AppendUvarint(append(b, tagConsist), uint64(consistency))
	b, err := proto.MarshalOptions{UseCachedSize: true}.MarshalAppend(b, r.Consistency)
	if err != nil {
		return nil // The general way tells what is wrong.
	}
	return b
}

func mutationSize(m *kvpb.Mutation) int {
	n := bytesSize(m.GetKey()) + bytesSize(m.GetValue()) + uintSize(m.GetTtlMs())
	if m.GetDelete() {
		n += 2
	}
	return n
}

func appendBulkWrite(b []byte, r *kvpb.BulkWriteRequest) []byte {
	h := plainHeader(r.Header)
	size := embedded(h.size())
	for _, m := range r.Mutations {
		size += embedded(mutationSize(m))
	}
	b = binary.AppendUvarint(append(b, tagBulkWrite), uint64(size))
	b = h.append(b)
	for _, m := range r.Mutations {
		b = binary.AppendUvarint(append(b, tagMutations), uint64(mutationSize(m)))
		if key := m.GetKey(); len(key) > 0 {
			b = appendBytes(b, tagRowKey, key)
		}
		if m.GetDelete() {
			b = append(b, tagMutationDel, 1)
		}
		if value := m.GetValue(); len(value) > 0 {
			b = appendBytes(b, tagValue, value)
		}
		b = appendUint(b, tagTTL, m.GetTtlMs())
	}
	return b
}

// header reads the header that a request begins with; nil when there is none, or
// none in its usual form.
func (d *decoder) header() *kvpb.Header {
	h := decoder{b: d.bytes(tagHeader)}
	if h.b == nil {
		return nil
	}
	out := &kvpb.Header{}
	if !h.headerInto(out) {
		return nil
	}
	return out
}

// count is how many fields of this tag stand at the front.
func (d decoder) count(tag byte) (n int) {
	for d.bytes(tag) != nil {
		n++
	}
	return n
}

// batchGet reads the body of a BatchGet in its usual form, or returns nil. The
// keys share b.
func batchGet(b []byte) *kvpb.BatchGetRequest {
	d := decoder{b: b}
	r := &kvpb.BatchGetRequest{Header: d.header()}
	if r.Header == nil {
		return nil
	}
	if n := d.count(tagKeys); n > 0 {
		r.Keys = make([][]byte, n)
	}
	for i := range r.Keys {
		r.Keys[i] = d.bytes(tagKeys)
	}
	if c := d.bytes(tagConsist); c != nil {
		r.Consistency = &kvpb.Consistency{}
		if len(c) > 0 && proto.Unmarshal(c, r.Consistency) != nil {
			return nil
		}
	}
	if !d.end() {
		return nil
	}
	return r
}

// bulkWrite reads the body of a BulkWrite in its usual form, or returns nil. Keys
// and values share b; the mutations come in one piece, as they go.
func bulkWrite(b []byte) *kvpb.BulkWriteRequest {
	d := decoder{b: b}
	r := &kvpb.BulkWriteRequest{Header: d.header()}
	if r.Header == nil {
		return nil
	}
	n := d.count(tagMutations)
	if n > 0 {
		r.Mutations = make([]*kvpb.Mutation, n)
	}
	slab := make([]kvpb.Mutation, n)
	for i := range slab {
		m := &slab[i]
		f := decoder{b: d.bytes(tagMutations)}
		m.Key = f.bytes(tagRowKey)
		m.Delete = f.uint(tagMutationDel) != 0
		m.Value = f.bytes(tagValue)
		m.TtlMs = f.uint(tagTTL)
		if !f.end() {
			return nil
		}
		r.Mutations[i] = m
	}
	if !d.end() {
		return nil
	}
	return r
}

// batch decodes a BatchGet or a BulkWrite; nil for what is not in its usual form.
func batch(id uint64, d decoder) *kvpb.Request {
	tag := d.b[0]
	body := d.bytes(tag)
	if !d.end() {
		return nil
	}
	if tag == tagBatchGet {
		if r := batchGet(body); r != nil {
			return &kvpb.Request{Id: id, Body: &kvpb.Request_BatchGet{BatchGet: r}}
		}
		return nil
	}
	if r := bulkWrite(body); r != nil {
		return &kvpb.Request{Id: id, Body: &kvpb.Request_BulkWrite{BulkWrite: r}}
	}
	return nil
}

func batchGetSize(r *kvpb.BatchGetResponse) int {
	n := uintSize(r.Token)
	for _, row := range r.Rows {
		n += embedded(rowSize(row))
	}
	return n
}

func bulkWriteSize(r *kvpb.BulkWriteResponse) int {
	return uintSize(r.AppliedCount) + uintSize(r.CommitTs)
}

func appendBatchGetResponse(b []byte, r *kvpb.BatchGetResponse) []byte {
	for _, row := range r.Rows {
		b = appendRow(b, tagRows, row)
	}
	return appendUint(b, tagRowsToken, r.Token)
}

func appendBulkWriteResponse(b []byte, r *kvpb.BulkWriteResponse) []byte {
	b = appendUint(b, tagApplied, r.AppliedCount)
	return appendUint(b, tagBulkCommit, r.CommitTs)
}

// DecodeResponse decodes any answer. It keeps nothing of b.
func DecodeResponse(b []byte, r *kvpb.Response) error {
	d := decoder{b: b}
	id := d.uint(tagID)
	if !d.failed && len(d.b) > 0 && d.b[0] == tagBatchGet {
		body := d.bytes(tagBatchGet)
		if d.end() {
			if g := batchGetResponse(body); g != nil {
				r.Id, r.Body = id, &kvpb.Response_BatchGet{BatchGet: g}
				return nil
			}
		}
	}
	return proto.Unmarshal(b, r)
}

// batchGetResponse decodes rows in their usual form, or returns nil.
func batchGetResponse(b []byte) *kvpb.BatchGetResponse {
	d := decoder{b: b}
	r := &kvpb.BatchGetResponse{}
	n := d.count(tagRows)
	slab := make([]kvpb.Row, n)
	if n > 0 {
		r.Rows = make([]*kvpb.Row, n)
	}
	a := arena{pieceBytes: batchPieceBytes}
	for i := range slab {
		row := &slab[i]
		f := decoder{b: d.bytes(tagRows)}
		key, value := f.bytes(tagRowKey), f.bytes(tagRowValue)
		row.CommitTs, row.ExpiresAt = f.uint(tagRowCommit), f.uint(tagRowExpires)
		if !f.end() {
			return nil
		}
		row.Key, row.Value = a.clone(key), a.clone(value)
		r.Rows[i] = row
	}
	r.Token = d.uint(tagRowsToken)
	if !d.end() {
		return nil
	}
	return r
}

// arena clones several small things into one piece of memory, which bounds what
// whoever keeps one of them keeps alive.
type arena struct {
	pieceBytes int
	free       []byte
}

// batchPieceBytes is the piece of a BatchGet.
const batchPieceBytes = 4 << 10

func (a *arena) clone(b []byte) []byte {
	if b == nil {
		return nil
	}
	if len(b) > a.pieceBytes/4 {
		return append([]byte(nil), b...)
	}
	if len(b) > cap(a.free)-len(a.free) {
		a.free = make([]byte, 0, a.pieceBytes)
	}
	at := len(a.free)
	a.free = append(a.free, b...)
	return a.free[at:len(a.free):len(a.free)]
}
