package wire

import (
	"bytes"
	"encoding/binary"
	"fmt"

	"google.golang.org/protobuf/proto"

	kvpb "github.com/ridgekv/ridge/proto/ridge/kv/v1"
)

// Tags of Scan. Its rows, and how they begin, are those of BatchGet.
const (
	tagScan = 10<<3 | length // Request.scan, Response.scan

	tagScanStart   = 2<<3 | length // ScanRequest
	tagScanEnd     = 3<<3 | length
	tagScanLimit   = 4<<3 | varint
	tagScanReverse = 5<<3 | varint
	tagScanKeys    = 6<<3 | varint
	tagScanConsist = 7<<3 | length
	tagScanBytes   = 8<<3 | varint

	tagMore     = 3<<3 | varint // ScanResponse
	tagResume   = 4<<3 | length
	tagSnapshot = 5<<3 | varint
	tagScanSeen = 6<<3 | varint // ScanResponse.token
)

// AppendScanRow appends a row as a field of a ScanResponse, for SetScanRows.
func AppendScanRow(b, key, value []byte, commitTS, expiresAt uint64) []byte {
	n := bytesSize(key) + bytesSize(value) + uintSize(commitTS) + uintSize(expiresAt)
	b = binary.AppendUvarint(append(b, tagRows), uint64(n))
	if len(key) > 0 {
		b = appendBytes(b, tagRowKey, key)
	}
	if len(value) > 0 {
		b = appendBytes(b, tagRowValue, value)
	}
	b = appendUint(b, tagRowCommit, commitTS)
	return appendUint(b, tagRowExpires, expiresAt)
}

// SetScanRows gives r rows that are encoded already. To protobuf they are fields
// that this process does not know and passes on as they are, so whatever encodes
// r, every reader finds them in Rows; in this process only ScanRows does. r keeps
// rows.
func SetScanRows(r *kvpb.ScanResponse, rows []byte) {
	if len(rows) > 0 {
		r.ProtoReflect().SetUnknown(rows)
	}
}

// encodedRows is what SetScanRows was given.
func encodedRows(r *kvpb.ScanResponse) []byte { return r.ProtoReflect().GetUnknown() }

// ScanRows are the rows of r, those of SetScanRows included.
func ScanRows(r *kvpb.ScanResponse) ([]*kvpb.Row, error) {
	encoded := encodedRows(r)
	if len(encoded) == 0 {
		return r.GetRows(), nil
	}
	out := &kvpb.ScanResponse{}
	if err := proto.Unmarshal(encoded, out); err != nil {
		return nil, fmt.Errorf("wire: decode the rows of a scan: %w", err)
	}
	return append(r.GetRows(), out.GetRows()...), nil
}

// appendScan appends a Scan that this process has made; nil when it has no
// header.
func appendScan(b []byte, r *kvpb.ScanRequest) []byte {
	if r.GetHeader() == nil {
		return nil
	}
	h := plainHeader(r.Header)
	return AppendScan(b, &h, r)
}

// AppendScan appends a Scan, without its id and with h for its header. It returns
// nil when that cannot be done.
func AppendScan(b []byte, h *Header, r *kvpb.ScanRequest) []byte {
	size := embedded(h.size()) + bytesSize(r.Start) + bytesSize(r.End) + uintSize(r.Limit) +
		boolSize(r.Reverse) + boolSize(r.KeysOnly) + uintSize(uint64(r.PageBytes))
	consistency := 0
	if r.Consistency != nil {
		consistency = proto.Size(r.Consistency)
		size += embedded(consistency)
	}
	b = binary.AppendUvarint(append(b, tagScan), uint64(size))
	b = h.append(b)
	if len(r.Start) > 0 {
		b = appendBytes(b, tagScanStart, r.Start)
	}
	if len(r.End) > 0 {
		b = appendBytes(b, tagScanEnd, r.End)
	}
	b = appendUint(b, tagScanLimit, r.Limit)
	b = appendBool(b, tagScanReverse, r.Reverse)
	b = appendBool(b, tagScanKeys, r.KeysOnly)
	if r.Consistency != nil {
		b = binary.AppendUvarint(append(b, tagScanConsist), uint64(consistency))
		var err error
		b, err = proto.MarshalOptions{UseCachedSize: true}.MarshalAppend(b, r.Consistency)
		if err != nil {
			return nil // The general way tells what is wrong.
		}
	}
	return appendUint(b, tagScanBytes, uint64(r.PageBytes))
}

func boolSize(v bool) int {
	if v {
		return 2
	}
	return 0
}

func appendBool(b []byte, tag byte, v bool) []byte {
	if v {
		b = append(b, tag, 1)
	}
	return b
}

type scanRequest struct {
	request kvpb.Request
	body    kvpb.Request_Scan
	scan    kvpb.ScanRequest
	header  kvpb.Header
}

// scan reads the body of a Scan in its usual form, or returns nil. Its keys share
// b.
func (s *slabs) scan(id uint64, b []byte) *kvpb.Request {
	d := decoder{b: b}
	x := next(&s.scans)
	h := decoder{b: d.bytes(tagHeader)}
	if h.b == nil || !h.headerInto(&x.header) {
		return nil
	}
	r := &x.scan
	r.Header = &x.header
	r.Start, r.End = d.bytes(tagScanStart), d.bytes(tagScanEnd)
	r.Limit = d.uint(tagScanLimit)
	r.Reverse, r.KeysOnly = d.uint(tagScanReverse) != 0, d.uint(tagScanKeys) != 0
	if c := d.bytes(tagScanConsist); c != nil {
		r.Consistency = &kvpb.Consistency{}
		if len(c) > 0 && proto.Unmarshal(c, r.Consistency) != nil {
			return nil
		}
	}
	page := d.uint(tagScanBytes)
	r.PageBytes = uint32(page)
	if !d.end() || page>>32 != 0 {
		return nil
	}
	x.body.Scan = r
	x.request.Id, x.request.Body = id, &x.body
	return &x.request
}

func scanSize(r *kvpb.ScanResponse) int {
	n := len(encodedRows(r)) + boolSize(r.More) + bytesSize(r.ResumeKey) +
		uintSize(r.SnapshotTs) + uintSize(r.Token)
	for _, row := range r.Rows {
		n += embedded(rowSize(row))
	}
	return n
}

func appendScanResponse(b []byte, r *kvpb.ScanResponse) []byte {
	b = append(b, encodedRows(r)...)
	for _, row := range r.Rows {
		b = appendRow(b, tagRows, row)
	}
	b = appendBool(b, tagMore, r.More)
	if len(r.ResumeKey) > 0 {
		b = appendBytes(b, tagResume, r.ResumeKey)
	}
	b = appendUint(b, tagSnapshot, r.SnapshotTs)
	return appendUint(b, tagScanSeen, r.Token)
}

const scanPieceBytes = 64 << 10

// ScanRow is a row of an answer.
type ScanRow struct {
	Key, Value          []byte
	CommitTS, ExpiresAt uint64
}

// ScanAnswer is the answer to a Scan, beside its rows.
type ScanAnswer struct {
	More              bool
	ResumeKey         []byte
	SnapshotTS, Token uint64
}

// Decode reads an answer in its usual form and hands out its rows, each with the
// number of all of them. It returns false for anything else, as Answer.Decode
// does; what it has handed out is void then. It keeps nothing of b: the rows share
// pieces of memory of scanPieceBytes, so that whoever keeps one of them keeps no
// more than its piece.
func (a *ScanAnswer) Decode(b []byte, each func(of int, row ScanRow)) bool {
	*a = ScanAnswer{}
	clone := func(b []byte) []byte { return b }
	if len(b) <= scanPieceBytes {
		b = bytes.Clone(b)
	} else {
		clone = (&arena{pieceBytes: scanPieceBytes}).clone
	}
	d := decoder{b: b}
	d.uint(tagID)
	body := decoder{b: d.bytes(tagScan)}
	if !d.end() || body.b == nil {
		return false
	}
	n := body.count(tagRows)
	for range n {
		f := decoder{b: body.bytes(tagRows)}
		row := ScanRow{Key: clone(f.bytes(tagRowKey)), Value: clone(f.bytes(tagRowValue))}
		row.CommitTS, row.ExpiresAt = f.uint(tagRowCommit), f.uint(tagRowExpires)
		if !f.end() {
			return false
		}
		each(n, row)
	}
	a.More = body.uint(tagMore) != 0
	a.ResumeKey = clone(body.bytes(tagResume))
	a.SnapshotTS, a.Token = body.uint(tagSnapshot), body.uint(tagScanSeen)
	return body.end()
}
