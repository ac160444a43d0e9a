package wire

import (
	"bytes"
	"testing"

	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/proto"

	kvpb "github.com/ridgekv/ridge/proto/ridge/kv/v1"
)

// encodedRowsOf is want as a store makes it: its scans have rows that are
// encoded already.
func encodedRowsOf(want *kvpb.StreamResponse) *kvpb.StreamResponse {
	out := proto.CloneOf(want)
	for _, r := range out.GetResponses() {
		s := r.GetScan()
		if s == nil {
			continue
		}
		var b []byte
		for _, row := range s.GetRows() {
			b = AppendScanRow(b, row.GetKey(), row.GetValue(), row.GetCommitTs(), row.GetExpiresAt())
		}
		s.Rows = nil
		SetScanRows(s, b)
	}
	return out
}

// standardWay checks that the library sends encoded rows on as rows, and that
// this process finds them.
func standardWay(t fataler, made, want *kvpb.StreamResponse) {
	t.Helper()
	b, err := proto.Marshal(made)
	got := &kvpb.StreamResponse{}
	if err == nil {
		err = proto.Unmarshal(b, got)
	}
	if err != nil || !proto.Equal(got, want) {
		t.Fatalf("got %v, %v, want %v", got, err, want)
	}
	for i, r := range made.GetResponses() {
		if r.GetScan() == nil {
			continue
		}
		rows, err := ScanRows(r.GetScan())
		all := &kvpb.ScanResponse{Rows: rows}
		if err != nil || !proto.Equal(
			all, &kvpb.ScanResponse{Rows: want.Responses[i].GetScan().GetRows()}) {
			t.Fatalf("got %v, %v", rows, err)
		}
	}
}

// checkScan compares the short decoder of scans with want, when it accepts b;
// what a store sends it must accept.
func checkScan(t fataler, b []byte, want *kvpb.Response, usual bool) {
	t.Helper()
	var a ScanAnswer
	got := &kvpb.ScanResponse{}
	input := bytes.Clone(b)
	ok := a.Decode(input, func(of int, row ScanRow) {
		if of != len(want.GetScan().GetRows()) && plain(want) {
			t.Fatalf("one of %d rows: %v", of, want)
		}
		got.Rows = append(got.Rows, &kvpb.Row{
			Key: row.Key, Value: row.Value, CommitTs: row.CommitTS, ExpiresAt: row.ExpiresAt,
		})
	})
	clear(input) // It keeps nothing of it.
	if !ok {
		if usual && plain(want) && want.GetScan() != nil {
			t.Fatalf("%v was not decoded", want)
		}
		return
	}
	got.More, got.ResumeKey, got.SnapshotTs, got.Token = a.More, a.ResumeKey, a.SnapshotTS, a.Token
	if want.GetScan() == nil || !proto.Equal(got, want.GetScan()) {
		t.Fatalf("got %v, want %v", got, want)
	}
}

// A page that is larger than a piece of memory is decoded like any other.
func TestLargeScanAnswer(t *testing.T) {
	page := &kvpb.ScanResponse{More: true, ResumeKey: []byte("next"), Token: 1 << 50}
	for i := range 300 {
		page.Rows = append(page.Rows, &kvpb.Row{
			Key: []byte{byte(i >> 8), byte(i)}, Value: bytes.Repeat([]byte{byte(i)}, i*i/3), CommitTs: 7,
		})
	}
	want := &kvpb.Response{Id: 9, Body: &kvpb.Response_Scan{Scan: page}}
	b, err := proto.Marshal(want)
	if err != nil || len(b) < 4*scanPieceBytes {
		t.Fatal(len(b), err)
	}
	checkScan(t, b, want, true)
}

// What does it cost to send five pages of 50 rows in one message, and to receive
// it?
func BenchmarkScanAnswers(b *testing.B) {
	m := &kvpb.StreamResponse{}
	for i := range 5 {
		var rows []byte
		for range 50 {
			rows = AppendScanRow(rows, make([]byte, 23), make([]byte, 128), 1<<60, 0)
		}
		s := &kvpb.ScanResponse{Token: 1 << 60}
		SetScanRows(s, rows)
		m.Responses = append(m.Responses, &kvpb.Response{
			Id: uint64(i) + 1<<20, Body: &kvpb.Response_Scan{Scan: s},
		})
	}
	var frame Frame
	defer frame.Free()
	b.ReportAllocs()
	for b.Loop() {
		sent, err := Codec{}.Marshal(Responses{m})
		if err != nil {
			b.Fatal(err)
		}
		// It arrives in frames of 16 KiB.
		var pieces mem.BufferSlice
		for rest := sent.Materialize(); len(rest) > 0; rest = rest[min(len(rest), 16<<10):] {
			pieces = append(pieces, mem.SliceBuffer(rest[:min(len(rest), 16<<10)]))
		}
		sent.Free()
		if err := (Codec{}).Unmarshal(pieces, &frame); err != nil {
			b.Fatal(err)
		}
		n := 0
		if _, err := EachResponse(frame.Bytes(), func(_ uint64, one []byte) {
			var a ScanAnswer
			a.Decode(one, func(int, ScanRow) { n++ })
		}); err != nil || n != 250 {
			b.Fatal(n, err)
		}
	}
}
