package wire

import (
	"bytes"
	"encoding/binary"
	"testing"

	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"pgregory.net/rapid"

	kvpb "github.com/ridgekv/ridge/proto/ridge/kv/v1"
)

// edges are the numbers where encodings change.
var edges = rapid.OneOf(
	rapid.SampledFrom([]uint64{0, 1, 127, 128, 1 << 14, 1 << 32, 1<<64 - 1}), rapid.Uint64())

func data(t *rapid.T, label string) []byte {
	return rapid.SliceOfN(rapid.Byte(), 0, 200).Draw(t, label)
}

func header(t *rapid.T) *kvpb.Header {
	return &kvpb.Header{
		RangeId: edges.Draw(t, "range"), SpanEpoch: edges.Draw(t, "epoch"),
		Token: edges.Draw(t, "token"), Forwarded: rapid.Bool().Draw(t, "forwarded"),
		TimeoutMs: rapid.Uint32().Draw(t, "timeout"),
	}
}

func request(t *rapid.T) *kvpb.Request {
	r := &kvpb.Request{Id: edges.Draw(t, "id")}
	h := header(t)
	if rapid.IntRange(0, 9).Draw(t, "no header") == 0 {
		h = nil
	}
	switch rapid.IntRange(0, 7).Draw(t, "kind") {
	case 0:
		g := &kvpb.GetRequest{Header: h, Key: data(t, "key")}
		if rapid.Bool().Draw(t, "consistency") {
			g.Consistency = &kvpb.Consistency{Level: 2, SnapshotTs: edges.Draw(t, "at")}
		}
		r.Body = &kvpb.Request_Get{Get: g}
	case 1:
		r.Body = &kvpb.Request_Put{Put: &kvpb.PutRequest{
			Header: h, Key: data(t, "key"), Value: data(t, "value"), TtlMs: edges.Draw(t, "ttl"),
		}}
	case 2:
		r.Body = &kvpb.Request_Delete{Delete: &kvpb.DeleteRequest{Header: h, Key: data(t, "key")}}
	case 3:
		r.Body = &kvpb.Request_CompareAndSwap{CompareAndSwap: &kvpb.CompareAndSwapRequest{
			Header: h, Key: data(t, "key"), Value: data(t, "value"),
		}}
	case 4:
		g := &kvpb.BatchGetRequest{
			Header: h, Keys: rapid.SliceOfN(rapid.Custom(func(t *rapid.T) []byte {
				return data(t, "key")
			}), 0, 5).Draw(t, "keys"),
		}
		if rapid.Bool().Draw(t, "consistency") {
			g.Consistency = &kvpb.Consistency{Level: 2, SnapshotTs: edges.Draw(t, "at")}
		}
		r.Body = &kvpb.Request_BatchGet{BatchGet: g}
	case 5:
		r.Body = &kvpb.Request_BulkWrite{BulkWrite: &kvpb.BulkWriteRequest{
			Header: h, Mutations: rapid.SliceOfN(rapid.Custom(mutation), 0, 5).Draw(t, "rows"),
		}}
	case 6:
		s := &kvpb.ScanRequest{
			Header: h, Start: data(t, "start"), End: data(t, "end"), Limit: edges.Draw(t, "limit"),
			Reverse: rapid.Bool().Draw(t, "reverse"), KeysOnly: rapid.Bool().Draw(t, "keys only"),
			PageBytes: rapid.Uint32().Draw(t, "page"),
		}
		if rapid.Bool().Draw(t, "consistency") {
			s.Consistency = &kvpb.Consistency{Level: 2, SnapshotTs: edges.Draw(t, "at")}
		}
		r.Body = &kvpb.Request_Scan{Scan: s}
	}
	return r
}

func mutation(t *rapid.T) *kvpb.Mutation {
	return &kvpb.Mutation{
		Key: data(t, "key"), Delete: rapid.Bool().Draw(t, "delete"), Value: data(t, "value"),
		TtlMs: edges.Draw(t, "ttl"),
	}
}

func row(t *rapid.T) *kvpb.Row {
	return &kvpb.Row{
		Key: data(t, "key"), Value: data(t, "value"), CommitTs: edges.Draw(t, "commit"),
		ExpiresAt: edges.Draw(t, "expires"),
	}
}

func response(t *rapid.T) *kvpb.Response {
	r := &kvpb.Response{Id: edges.Draw(t, "id")}
	var e *kvpb.Error
	if rapid.IntRange(0, 4).Draw(t, "error") == 0 {
		e = &kvpb.Error{Message: "no", Applied: kvpb.Applied_APPLIED_NO}
	}
	switch rapid.IntRange(0, 8).Draw(t, "kind") {
	case 0:
		g := &kvpb.GetResponse{Error: e, Token: edges.Draw(t, "token")}
		if g.Found = rapid.Bool().Draw(t, "found"); g.Found {
			g.Row = row(t)
		}
		r.Body = &kvpb.Response_Get{Get: g}
	case 1:
		r.Body = &kvpb.Response_Put{Put: &kvpb.PutResponse{Error: e, CommitTs: edges.Draw(t, "c")}}
	case 2:
		r.Body = &kvpb.Response_Delete{
			Delete: &kvpb.DeleteResponse{Error: e, CommitTs: edges.Draw(t, "c")},
		}
	case 3:
		r.Body = &kvpb.Response_Error{Error: &kvpb.Error{Message: "no"}}
	case 4:
		r.Body = &kvpb.Response_BatchWrite{
			BatchWrite: &kvpb.BatchWriteResponse{CommitTs: edges.Draw(t, "c")},
		}
	case 5:
		r.Body = &kvpb.Response_BatchGet{BatchGet: &kvpb.BatchGetResponse{
			Error: e, Rows: rapid.SliceOfN(rapid.Custom(row), 0, 40).Draw(t, "rows"),
			Token: edges.Draw(t, "token"),
		}}
	case 6:
		r.Body = &kvpb.Response_BulkWrite{BulkWrite: &kvpb.BulkWriteResponse{
			Error: e, AppliedCount: edges.Draw(t, "applied"), CommitTs: edges.Draw(t, "c"),
		}}
	case 7:
		r.Body = &kvpb.Response_Scan{Scan: &kvpb.ScanResponse{
			Error: e, Rows: rapid.SliceOfN(rapid.Custom(row), 0, 40).Draw(t, "rows"),
			More: rapid.Bool().Draw(t, "more"), ResumeKey: data(t, "resume"),
			SnapshotTs: edges.Draw(t, "at"), Token: edges.Draw(t, "token"),
		}}
	}
	return r
}

// What either side encodes the protobuf library decodes to the same, and what
// the library encodes is decoded here to the same.
func TestSameAsProtobuf(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		want := &kvpb.StreamRequest{Requests: rapid.SliceOfN(
			rapid.Custom(request), 0, 40).Draw(t, "requests")}
		if rapid.IntRange(0, 9).Draw(t, "hello") == 0 {
			want.Hello = &kvpb.Hello{ClusterId: 1}
		}
		b, err := proto.Marshal(want)
		if err != nil {
			t.Fatal(err)
		}
		got := &Requests{StreamRequest: &kvpb.StreamRequest{Hello: &kvpb.Hello{}}}
		if err := (Codec{}).Unmarshal(mem.BufferSlice{mem.SliceBuffer(b)}, got); err != nil {
			t.Fatal(err)
		}
		if !proto.Equal(want, got.StreamRequest) {
			t.Fatalf("got %v, want %v", got.StreamRequest, want)
		}
		size := 0
		var encoded [][]byte
		for _, r := range want.Requests {
			e := appendAny(t, r)
			encoded = append(encoded, e)
			size += RequestSize(len(e))
		}
		built := NewBuilder(size)
		for i, e := range encoded {
			built.Add(want.Requests[i].Id, e)
		}
		f := built.Frame()
		again := &kvpb.StreamRequest{}
		if err := proto.Unmarshal(f.Bytes(), again); err != nil {
			t.Fatal(err)
		}
		want.Hello = nil
		if !proto.Equal(want, again) {
			t.Fatalf("got %v, want %v", again, want)
		}
	})
}

// A message of many tiny requests is refused before it takes a hundred times its
// size in memory, wherever the requests stand.
func TestTooManyRequests(t *testing.T) {
	tiny := []byte{tagRequest, 0}
	for name, front := range map[string][]byte{"plain": nil, "after a Hello": {1<<3 | length, 0}} {
		b := append(front, bytes.Repeat(tiny, maxRequests)...)
		m := &Requests{StreamRequest: &kvpb.StreamRequest{}}
		if err := m.unmarshal(b); err != nil || len(m.GetRequests()) != maxRequests {
			t.Fatalf("%s: %d requests, %v", name, len(m.GetRequests()), err)
		}
		m = &Requests{StreamRequest: &kvpb.StreamRequest{}}
		if err := m.unmarshal(append(b, tiny...)); err == nil || len(m.GetRequests()) != 0 {
			t.Errorf("%s: %d requests, %v", name, len(m.GetRequests()), err)
		}
	}
}

func headerOf(r *kvpb.Request) *kvpb.Header {
	switch b := r.GetBody().(type) {
	case *kvpb.Request_Get:
		return b.Get.Header
	case *kvpb.Request_Put:
		return b.Put.Header
	case *kvpb.Request_Delete:
		return b.Delete.Header
	}
	return nil
}

// appendAny encodes r in the shortest way there is.
func appendAny(t *rapid.T, r *kvpb.Request) []byte {
	if p := headerOf(r); p != nil {
		h := &Header{p.RangeId, p.SpanEpoch, p.Token, p.Forwarded, p.TimeoutMs}
		switch b := r.Body.(type) {
		case *kvpb.Request_Get:
			if b.Get.Consistency == nil {
				return AppendGet(nil, h, b.Get.Key)
			}
		case *kvpb.Request_Put:
			return AppendPut(nil, h, b.Put.Key, b.Put.Value, b.Put.TtlMs)
		case *kvpb.Request_Delete:
			return AppendDelete(nil, h, b.Delete.Key)
		}
	}
	e, err := AppendRequest(nil, r)
	if err != nil {
		t.Fatal(err)
	}
	return e
}

func TestAnswersSameAsProtobuf(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		want := &kvpb.StreamResponse{Responses: rapid.SliceOfN(
			rapid.Custom(response), 0, 40).Draw(t, "responses")}
		made := want
		if rapid.Bool().Draw(t, "encoded rows") {
			made = encodedRowsOf(want)
			standardWay(t, made, want)
		}
		s, err := Codec{}.Marshal(Responses{made})
		if err != nil {
			t.Fatal(err)
		}
		b := s.Materialize()
		got := &kvpb.StreamResponse{}
		if err := proto.Unmarshal(b, got); err != nil {
			t.Fatal(err)
		}
		if !proto.Equal(want, got) {
			t.Fatalf("got %v, want %v", got, want)
		}
		n := 0
		_, err = EachResponse(b, func(id uint64, one []byte) {
			if id != want.Responses[n].Id {
				t.Fatalf("answer %d: id %d, want %d", n, id, want.Responses[n].Id)
			}
			checkAnswer(t, one, want.Responses[n])
			checkScan(t, one, want.Responses[n], true)
			n++
		})
		if err != nil || n != len(want.Responses) {
			t.Fatalf("%d answers, %v", n, err)
		}
	})
}

type fataler interface {
	Helper()
	Fatalf(format string, args ...any)
}

// checkAnswer compares the short decoder with want, when it accepts b.
func checkAnswer(t fataler, b []byte, want *kvpb.Response) {
	t.Helper()
	checkWhole(t, b, want)
	var a Answer
	if !a.Decode(b) {
		if plain(want) && !many(want) && (want.GetGet() == nil || want.GetGet().Found == (want.GetGet().Row != nil)) {
			t.Fatalf("%v was not decoded", want)
		}
		return
	}
	var w Answer
	switch body := want.GetBody().(type) {
	case *kvpb.Response_Get:
		w = Answer{
			CommitTS: body.Get.GetRow().GetCommitTs(), Found: body.Get.Found,
			Value: body.Get.GetRow().GetValue(), ExpiresAt: body.Get.GetRow().GetExpiresAt(),
			Token: body.Get.Token,
		}
	case *kvpb.Response_Put:
		w.CommitTS = body.Put.CommitTs
	case *kvpb.Response_Delete:
		w.CommitTS = body.Delete.CommitTs
	default:
		t.Fatalf("%v was decoded", want)
	}
	same := a.CommitTS == w.CommitTS && a.Found == w.Found && bytes.Equal(a.Value, w.Value) &&
		a.ExpiresAt == w.ExpiresAt && a.Token == w.Token
	if !same || errorOf(want) != nil {
		t.Fatalf("got %+v, want %v", a, want)
	}
}

func errorOf(r *kvpb.Response) *kvpb.Error {
	switch b := r.GetBody().(type) {
	case *kvpb.Response_Get:
		return b.Get.Error
	case *kvpb.Response_Put:
		return b.Put.Error
	case *kvpb.Response_Delete:
		return b.Delete.Error
	}
	return nil
}

func TestAnErrorAboutTheStream(t *testing.T) {
	want := &kvpb.StreamResponse{Error: &kvpb.Error{Message: "draining"}}
	s, err := Codec{}.Marshal(Responses{want})
	if err != nil {
		t.Fatal(err)
	}
	e, err := EachResponse(s.Materialize(), func(uint64, []byte) { t.Error("an answer") })
	if err != nil || !proto.Equal(e, want.Error) {
		t.Errorf("got %v, %v", e, err)
	}
}

// A message must not be decoded to something else than the library makes of it,
// nor must what it refuses be taken.
func FuzzRequests(f *testing.F) {
	seed, _ := proto.Marshal(&kvpb.StreamRequest{Requests: []*kvpb.Request{
		{Id: 300, Body: &kvpb.Request_Put{Put: &kvpb.PutRequest{
			Header: &kvpb.Header{RangeId: 1, Token: 1 << 40}, Key: []byte("k"), Value: []byte("v"),
		}}},
		{Id: 1, Body: &kvpb.Request_Get{Get: &kvpb.GetRequest{
			Header: &kvpb.Header{TimeoutMs: 5}, Consistency: &kvpb.Consistency{Level: 1},
		}}},
		{Id: 2, Body: &kvpb.Request_Scan{Scan: &kvpb.ScanRequest{
			Header: &kvpb.Header{RangeId: 5}, Start: []byte("a"), End: []byte("b"), Limit: 9,
			Reverse: true, KeysOnly: true, PageBytes: 7,
		}}},
	}})
	f.Add(seed)
	f.Fuzz(func(t *testing.T, b []byte) {
		want := &kvpb.StreamRequest{}
		wantErr := proto.Unmarshal(b, want)
		got := &Requests{StreamRequest: &kvpb.StreamRequest{}}
		err := got.unmarshal(bytes.Clone(b))
		if (err == nil) != (wantErr == nil) {
			t.Fatalf("got %v, want %v", err, wantErr)
		}
		if err == nil && !proto.Equal(got.StreamRequest, want) {
			t.Fatalf("got %v, want %v", got.StreamRequest, want)
		}
	})
}

func FuzzAnswer(f *testing.F) {
	for _, r := range []*kvpb.Response{
		{Id: 7, Body: &kvpb.Response_Put{Put: &kvpb.PutResponse{CommitTs: 1 << 60}}},
		{Id: 1 << 40, Body: &kvpb.Response_Get{Get: &kvpb.GetResponse{
			Found: true, Row: &kvpb.Row{Key: []byte("k"), Value: []byte("v"), CommitTs: 9}, Token: 3,
		}}},
		{Id: 1 << 30, Body: &kvpb.Response_Scan{Scan: &kvpb.ScanResponse{
			Rows: []*kvpb.Row{{Key: []byte("k"), Value: []byte("v"), CommitTs: 9}, {}}, More: true,
			ResumeKey: []byte("l"), Token: 3,
		}}},
	} {
		seed, _ := proto.Marshal(r)
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		want := &kvpb.Response{}
		if proto.Unmarshal(b, want) != nil {
			var a Answer
			var s ScanAnswer
			if a.Decode(b) || s.Decode(b, func(int, ScanRow) {}) {
				t.Fatal("a broken answer was decoded")
			}
			return
		}
		checkScan(t, b, want, false)
		var a Answer
		if a.Decode(b) {
			checkAnswer(t, b, want)
		}
		if id, err := idOf(b); err != nil || id != want.GetId() {
			t.Fatalf("id %d, %v: want %d", id, err, want.GetId())
		}
	})
}

func BenchmarkRequests(b *testing.B) {
	m := &kvpb.StreamRequest{}
	for i := range 64 {
		m.Requests = append(m.Requests, &kvpb.Request{Id: uint64(i) + 1<<20, Body: &kvpb.Request_Put{
			Put: &kvpb.PutRequest{
				Header: &kvpb.Header{RangeId: 5, SpanEpoch: 3, Token: 1 << 60, TimeoutMs: 9900},
				Key:    make([]byte, 16), Value: make([]byte, 128),
			},
		}})
	}
	raw, _ := proto.Marshal(m)
	for name, f := range map[string]func() error{
		"wire": func() error {
			return (&Requests{StreamRequest: &kvpb.StreamRequest{}}).unmarshal(bytes.Clone(raw))
		},
		"protobuf": func() error { return proto.Unmarshal(raw, &kvpb.StreamRequest{}) },
	} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if err := f(); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// irregular writes m as a peer might that is not this package: legal protobuf,
// but with unknown fields, overlong numbers, fields in another order, fields
// that come twice and messages in several parts.
func irregular(t *rapid.T, m protoreflect.Message) []byte {
	var fields [][]byte
	m.Range(func(f protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		if f.IsList() {
			for i := range v.List().Len() {
				fields = append(fields, irregularField(t, f, v.List().Get(i)))
			}
			return true
		}
		one := irregularField(t, f, v)
		fields = append(fields, one)
		if rapid.IntRange(0, 9).Draw(t, "twice") == 0 {
			fields = append(fields, one)
		}
		return true
	})
	for rapid.IntRange(0, 4).Draw(t, "unknown") == 0 {
		fields = append(fields, rapid.SampledFrom([][]byte{
			{0x80, 0x7d, 1},
			{0x82, 0x7d, 1, 'x'},
			{0x83, 0x7d, 8, 1, 0x84, 0x7d}, // varint, bytes, group
			{0x85, 0x7d, 1, 2, 3, 4},
			{0x0d, 1, 2, 3, 4},
			{0x39, 1, 2, 3, 4, 5, 6, 7, 8}, // fixed
			{0x12, 0},
			{0x1a, 0},
			{0x22, 0},
			{0x08, 0},
			{0x10, 0},
			{0x08, 0x80, 0}, // known to some
			{0x20, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1},
			{0x28, 0xff, 0xff, 0xff, 0xff, 0x7f},
		}).Draw(t, "field"))
	}
	if rapid.Bool().Draw(t, "shuffled") {
		fields = rapid.Permutation(fields).Draw(t, "order")
	}
	return bytes.Join(fields, nil)
}

func irregularField(t *rapid.T, f protoreflect.FieldDescriptor, v protoreflect.Value) []byte {
	number := func(b []byte, n uint64) []byte {
		b = binary.AppendUvarint(b, n)
		if n < 1<<56 && rapid.IntRange(0, 9).Draw(t, "overlong") == 0 {
			b[len(b)-1] |= 0x80
			b = append(b, 0)
		}
		return b
	}
	tag := uint64(f.Number()) << 3
	switch f.Kind() {
	case protoreflect.MessageKind:
		b := irregular(t, v.Message())
		return append(number(number(nil, tag|uint64(length)), uint64(len(b))), b...)
	case protoreflect.BytesKind:
		b := v.Bytes()
		return append(number(number(nil, tag|uint64(length)), uint64(len(b))), b...)
	case protoreflect.StringKind:
		b := v.String()
		return append(number(number(nil, tag|uint64(length)), uint64(len(b))), b...)
	case protoreflect.BoolKind:
		return number(number(nil, tag), rapid.SampledFrom([]uint64{1, 2, 1 << 40}).Draw(t, "true"))
	case protoreflect.EnumKind:
		return number(number(nil, tag), uint64(v.Enum()))
	}
	return number(number(nil, tag), v.Uint())
}

// Whatever legal encoding another client chooses is decoded as the library does,
// and what the library refuses is refused.
func TestIrregularRequests(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		b := irregular(t, (&kvpb.StreamRequest{Requests: rapid.SliceOfN(
			rapid.Custom(request), 0, 4).Draw(t, "requests")}).ProtoReflect())
		if rapid.IntRange(0, 9).Draw(t, "cut") == 0 && len(b) > 0 {
			b = b[:rapid.IntRange(0, len(b)-1).Draw(t, "at")]
		}
		want := &kvpb.StreamRequest{}
		wantErr := proto.Unmarshal(b, want)
		got := &Requests{StreamRequest: &kvpb.StreamRequest{}}
		if err := got.unmarshal(bytes.Clone(b)); (err == nil) != (wantErr == nil) {
			t.Fatalf("%x: got %v, want %v", b, err, wantErr)
		}
		if wantErr == nil && !proto.Equal(got.StreamRequest, want) {
			t.Fatalf("%x: got %v, want %v", b, got.StreamRequest, want)
		}
	})
}

// The same of answers, as a client takes them out of a message.
func TestIrregularAnswers(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		b := irregular(t, (&kvpb.StreamResponse{Responses: rapid.SliceOfN(
			rapid.Custom(response), 0, 4).Draw(t, "responses")}).ProtoReflect())
		want := &kvpb.StreamResponse{}
		wantErr := proto.Unmarshal(b, want)
		n := 0
		e, err := EachResponse(b, func(id uint64, one []byte) {
			answer := &kvpb.Response{}
			if wantErr != nil || proto.Unmarshal(one, answer) != nil {
				return // The caller finds that out.
			}
			if id != want.Responses[n].Id || !proto.Equal(answer, want.Responses[n]) {
				t.Fatalf("%x: answer %d: got %d %v, want %v", b, n, id, answer, want.Responses[n])
			}
			checkDecoded(t, one, answer)
			n++
		})
		switch {
		case wantErr != nil:
		case err != nil || (e != nil) != (want.Error != nil):
			t.Fatalf("%x: got %v, %v, want %v", b, e, err, want.Error)
		case e == nil && n != len(want.Responses):
			t.Fatalf("%x: %d answers, want %d", b, n, len(want.Responses))
		}
	})
}

// checkWhole compares DecodeResponse with the library.
func checkWhole(t fataler, b []byte, want *kvpb.Response) {
	t.Helper()
	input, got := bytes.Clone(b), &kvpb.Response{}
	if err := DecodeResponse(input, got); err != nil {
		t.Fatalf("%v was not decoded: %v", want, err)
	}
	clear(input) // It keeps nothing of it.
	if !proto.Equal(got, want) {
		t.Fatalf("got %v, want %v", got, want)
	}
}

// many reports whether r answers a request for many rows.
func many(r *kvpb.Response) bool {
	return r.GetBatchGet() != nil || r.GetBulkWrite() != nil || r.GetScan() != nil
}

// checkDecoded is checkAnswer for encodings that Decode may leave to the library.
func checkDecoded(t fataler, b []byte, want *kvpb.Response) {
	checkWhole(t, b, want)
	checkScan(t, b, want, false)
	var a Answer
	if a.Decode(b) {
		checkAnswer(t, b, want)
	}
}
