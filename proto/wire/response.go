package wire

import (
	"encoding/binary"
	"fmt"

	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	kvpb "github.com/ridgekv/ridge/proto/ridge/kv/v1"
)

// Tags of the fields of answers.
const (
	tagStreamError = 1<<3 | length // StreamResponse.error
	tagResponse    = 2<<3 | length // StreamResponse.responses
	tagError       = 1<<3 | length // in each answer
	tagCommitTS    = 2<<3 | varint // PutResponse, DeleteResponse
	tagFound       = 2<<3 | varint // GetResponse
	tagRow         = 3<<3 | length
	tagGetToken    = 4<<3 | varint
	tagRowKey      = 1<<3 | length // Row
	tagRowValue    = 2<<3 | length
	tagRowCommit   = 3<<3 | varint
	tagRowExpires  = 4<<3 | varint
)

// marshal encodes m as it is.
func (m Responses) marshal() (mem.BufferSlice, error) {
	if m.GetError() != nil {
		return standard.Marshal(m.StreamResponse)
	}
	size := 0
	sizes := make([]int, len(m.GetResponses()))
	for i, r := range m.GetResponses() {
		sizes[i] = responseSize(r)
		size += 1 + varintSize(uint64(sizes[i])) + sizes[i]
	}
	b, done := newBuffer(size)
	for i, r := range m.GetResponses() {
		b = binary.AppendUvarint(append(b, tagResponse), uint64(sizes[i]))
		var err error
		if b, err = appendResponse(b, r); err != nil {
			return nil, err
		}
	}
	return mem.BufferSlice{done(b)}, nil
}

// plain reports whether r is an answer that has code of its own: one without an
// error. Answers are made by the process that sends them, so there are no
// fields in them that this version does not know.
func plain(r *kvpb.Response) bool {
	switch b := r.GetBody().(type) {
	case *kvpb.Response_Put:
		return b.Put != nil && b.Put.Error == nil
	case *kvpb.Response_Delete:
		return b.Delete != nil && b.Delete.Error == nil
	case *kvpb.Response_Get:
		return b.Get != nil && b.Get.Error == nil
	case *kvpb.Response_BatchGet:
		return b.BatchGet != nil && b.BatchGet.Error == nil
	case *kvpb.Response_BulkWrite:
		return b.BulkWrite != nil && b.BulkWrite.Error == nil
	case *kvpb.Response_Scan:
		return b.Scan != nil && b.Scan.Error == nil
	}
	return false
}

// ResponseSize is the length of r on the wire.
func ResponseSize(r *kvpb.Response) int { return responseSize(r) }

func responseSize(r *kvpb.Response) int {
	if !plain(r) {
		return proto.Size(r)
	}
	n := uintSize(r.Id)
	switch b := r.Body.(type) {
	case *kvpb.Response_Put:
		return n + embedded(uintSize(b.Put.CommitTs))
	case *kvpb.Response_Delete:
		return n + embedded(uintSize(b.Delete.CommitTs))
	case *kvpb.Response_Get:
		return n + embedded(getSize(b.Get))
	case *kvpb.Response_BatchGet:
		return n + embedded(batchGetSize(b.BatchGet))
	case *kvpb.Response_BulkWrite:
		return n + embedded(bulkWriteSize(b.BulkWrite))
	case *kvpb.Response_Scan:
		return n + embedded(scanSize(b.Scan))
	}
	return n
}

// embedded is the size of a field that holds a message of n bytes.
func embedded(n int) int { return 1 + varintSize(uint64(n)) + n }

func getSize(g *kvpb.GetResponse) int {
	n := uintSize(g.Token)
	if g.Found {
		n += 2
	}
	if g.Row != nil {
		n += embedded(rowSize(g.Row))
	}
	return n
}

func rowSize(r *kvpb.Row) int {
	return bytesSize(r.GetKey()) + bytesSize(r.GetValue()) + uintSize(r.GetCommitTs()) +
		uintSize(r.GetExpiresAt())
}

func appendResponse(b []byte, r *kvpb.Response) ([]byte, error) {
	if !plain(r) {
		b, err := proto.MarshalOptions{}.MarshalAppend(b, r)
		if err != nil {
			return nil, fmt.Errorf("wire: encode an answer: %w", err)
		}
		return b, nil
	}
	b = appendUint(b, tagID, r.Id)
	switch body := r.Body.(type) {
	case *kvpb.Response_Put:
		b = binary.AppendUvarint(append(b, tagPut), uint64(uintSize(body.Put.CommitTs)))
		b = appendUint(b, tagCommitTS, body.Put.CommitTs)
	case *kvpb.Response_Delete:
		b = binary.AppendUvarint(append(b, tagDelete), uint64(uintSize(body.Delete.CommitTs)))
		b = appendUint(b, tagCommitTS, body.Delete.CommitTs)
	case *kvpb.Response_Get:
		b = binary.AppendUvarint(append(b, tagGet), uint64(getSize(body.Get)))
		b = appendGetResponse(b, body.Get)
	case *kvpb.Response_BatchGet:
		b = binary.AppendUvarint(append(b, tagBatchGet), uint64(batchGetSize(body.BatchGet)))
		b = appendBatchGetResponse(b, body.BatchGet)
	case *kvpb.Response_BulkWrite:
		b = binary.AppendUvarint(append(b, tagBulkWrite), uint64(bulkWriteSize(body.BulkWrite)))
		b = appendBulkWriteResponse(b, body.BulkWrite)
	case *kvpb.Response_Scan:
		b = binary.AppendUvarint(append(b, tagScan), uint64(scanSize(body.Scan)))
		b = appendScanResponse(b, body.Scan)
	}
	return b, nil
}

func appendGetResponse(b []byte, g *kvpb.GetResponse) []byte {
	if g.Found {
		b = append(b, tagFound, 1)
	}
	if g.Row != nil {
		b = appendRow(b, tagRow, g.Row)
	}
	return appendUint(b, tagGetToken, g.Token)
}

func appendRow(b []byte, tag byte, r *kvpb.Row) []byte {
	b = binary.AppendUvarint(append(b, tag), uint64(rowSize(r)))
	if key := r.GetKey(); len(key) > 0 {
		b = appendBytes(b, tagRowKey, key)
	}
	if value := r.GetValue(); len(value) > 0 {
		b = appendBytes(b, tagRowValue, value)
	}
	b = appendUint(b, tagRowCommit, r.GetCommitTs())
	return appendUint(b, tagRowExpires, r.GetExpiresAt())
}

// EachResponse calls yield with the id and the bytes of each answer in a
// StreamResponse. A message that carries an error about the stream yields
// nothing.
func EachResponse(b []byte, yield func(id uint64, response []byte)) (*kvpb.Error, error) {
	for rest := b; len(rest) > 0; {
		if rest[0] != tagResponse {
			return eachSlowly(b, yield)
		}
		_, n := protowire.ConsumeBytes(rest[1:])
		if n < 0 {
			return nil, fmt.Errorf("wire: %w", protowire.ParseError(n))
		}
		rest = rest[1+n:]
	}
	for rest := b; len(rest) > 0; {
		response, n := protowire.ConsumeBytes(rest[1:])
		rest = rest[1+n:]
		id, err := idOf(response)
		if err != nil {
			return nil, err
		}
		yield(id, response)
	}
	return nil, nil
}

// eachSlowly is for messages that hold something else than answers.
func eachSlowly(b []byte, yield func(id uint64, response []byte)) (*kvpb.Error, error) {
	m := &kvpb.StreamResponse{}
	if err := proto.Unmarshal(b, m); err != nil {
		return nil, fmt.Errorf("wire: decode a StreamResponse: %w", err)
	}
	if m.GetError() != nil {
		return m.GetError(), nil
	}
	for _, r := range m.GetResponses() {
		out, err := proto.Marshal(r)
		if err != nil {
			return nil, fmt.Errorf("wire: encode an answer: %w", err)
		}
		yield(r.GetId(), out)
	}
	return nil, nil
}

// idOf finds the id of an answer; the last one counts, as everywhere in
// protobuf.
func idOf(b []byte) (id uint64, err error) {
	d := decoder{b: b}
	if id = d.uint(tagID); !d.failed && len(d.b) > 0 && d.b[0]&7 == length {
		body, n := protowire.ConsumeBytes(d.b[1:])
		if n >= 0 && 1+n == len(d.b) && body != nil && d.b[0] < 0x80 {
			return id, nil
		}
	}
	r := &kvpb.Response{}
	if err := proto.Unmarshal(b, r); err != nil {
		return 0, fmt.Errorf("wire: decode an answer: %w", err)
	}
	return r.GetId(), nil
}

// Answer is the answer to a request for one key.
type Answer struct {
	// CommitTS is when a Put or Delete was committed, or when the row that a
	// Get found was.
	CommitTS uint64
	// Found, Value, ExpiresAt and Token are those of a Get.
	Found            bool
	Value            []byte
	ExpiresAt, Token uint64
}

// Decode reads an answer in its usual form. It returns false for anything else:
// errors, answers of other kinds, fields it does not know. The value shares b.
func (a *Answer) Decode(b []byte) bool {
	*a = Answer{}
	d := decoder{b: b}
	d.uint(tagID)
	if d.failed || len(d.b) == 0 {
		return false
	}
	tag := d.b[0]
	body := decoder{b: d.bytes(tag)}
	if !d.end() {
		return false
	}
	switch tag {
	case tagPut, tagDelete:
		a.CommitTS = body.uint(tagCommitTS)
		return body.end()
	case tagGet:
		a.Found = body.uint(tagFound) != 0
		row := body.bytes(tagRow)
		a.Token = body.uint(tagGetToken)
		if !body.end() || a.Found != (row != nil) {
			return false
		}
		r := decoder{b: row}
		r.bytes(tagRowKey)
		a.Value = r.bytes(tagRowValue)
		a.CommitTS = r.uint(tagRowCommit)
		a.ExpiresAt = r.uint(tagRowExpires)
		return r.end()
	}
	return false
}
