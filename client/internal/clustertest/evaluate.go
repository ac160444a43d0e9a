package clustertest

import (
	"bytes"
	"slices"

	"github.com/ridgekv/ridge/proto/keys"
	kvpb "github.com/ridgekv/ridge/proto/ridge/kv/v1"
	metapb "github.com/ridgekv/ridge/proto/ridge/meta/v1"
	"github.com/ridgekv/ridge/proto/ts"
)

// pageRows is how many rows a page of a scan has, and deleteChunk how many
// keys one DeleteRange takes: small, so that tests see many.
const (
	pageRows    = 7
	deleteChunk = 5
)

type evaluation struct {
	rows map[string][]version
	rng  *metapb.Range
	tick func() ts.Timestamp
}

// evaluate is the state machine of the scripted cluster.
func evaluate(
	rows *map[string][]version, req *kvpb.Request, rng *metapb.Range, tick func() ts.Timestamp,
) *kvpb.Response {
	e := evaluation{*rows, rng, tick}
	switch b := req.GetBody().(type) {
	case *kvpb.Request_Get:
		return &kvpb.Response{Body: &kvpb.Response_Get{Get: e.get(b.Get)}}
	case *kvpb.Request_Put:
		at := e.write(&kvpb.Mutation{Key: b.Put.Key, Value: b.Put.Value})
		return &kvpb.Response{Body: &kvpb.Response_Put{Put: &kvpb.PutResponse{CommitTs: uint64(at)}}}
	case *kvpb.Request_Delete:
		at := e.write(&kvpb.Mutation{Key: b.Delete.Key, Delete: true})
		return &kvpb.Response{Body: &kvpb.Response_Delete{
			Delete: &kvpb.DeleteResponse{CommitTs: uint64(at)},
		}}
	case *kvpb.Request_CompareAndSwap:
		return &kvpb.Response{Body: &kvpb.Response_CompareAndSwap{
			CompareAndSwap: e.swap(b.CompareAndSwap),
		}}
	case *kvpb.Request_BatchGet:
		return &kvpb.Response{Body: &kvpb.Response_BatchGet{BatchGet: e.batchGet(b.BatchGet)}}
	case *kvpb.Request_BatchWrite:
		at := e.write(b.BatchWrite.Mutations...)
		return &kvpb.Response{Body: &kvpb.Response_BatchWrite{
			BatchWrite: &kvpb.BatchWriteResponse{CommitTs: uint64(at)},
		}}
	case *kvpb.Request_BulkWrite:
		at := e.write(b.BulkWrite.Mutations...)
		return &kvpb.Response{Body: &kvpb.Response_BulkWrite{BulkWrite: &kvpb.BulkWriteResponse{
			AppliedCount: uint64(len(b.BulkWrite.Mutations)), CommitTs: uint64(at),
		}}}
	case *kvpb.Request_DeleteRange:
		return &kvpb.Response{Body: &kvpb.Response_DeleteRange{DeleteRange: e.deleteRange(b.DeleteRange)}}
	case *kvpb.Request_Scan:
		return &kvpb.Response{Body: &kvpb.Response_Scan{Scan: e.scan(b.Scan)}}
	}
	return &kvpb.Response{}
}

// readAt is the timestamp a consistency asks for.
func (e evaluation) readAt(c *kvpb.Consistency) ts.Timestamp {
	if c.GetLevel() == kvpb.ConsistencyLevel_CONSISTENCY_LEVEL_SNAPSHOT {
		return ts.Timestamp(c.GetSnapshotTs())
	}
	return ts.Max
}

func (e evaluation) row(key string, at ts.Timestamp) (*kvpb.Row, bool) {
	v, ok := newest(e.rows[key], at)
	if !ok {
		return nil, false
	}
	return &kvpb.Row{Key: []byte(key), Value: v.value, CommitTs: uint64(v.at)}, true
}

func (e evaluation) get(r *kvpb.GetRequest) *kvpb.GetResponse {
	row, ok := e.row(string(r.Key), e.readAt(r.Consistency))
	return &kvpb.GetResponse{Found: ok, Row: row, Token: row.GetCommitTs()}
}

func (e evaluation) write(ms ...*kvpb.Mutation) ts.Timestamp {
	at := e.tick()
	for _, m := range ms {
		k := string(m.Key)
		e.rows[k] = append(e.rows[k], version{at: at, value: m.Value, deleted: m.Delete})
	}
	return at
}

func (e evaluation) swap(r *kvpb.CompareAndSwapRequest) *kvpb.CompareAndSwapResponse {
	row, ok := e.row(string(r.Key), ts.Max)
	if ok == r.ExpectedAbsent || ok && !bytes.Equal(row.Value, r.Expected) {
		return &kvpb.CompareAndSwapResponse{Found: ok, Current: row, Token: row.GetCommitTs()}
	}
	at := e.write(&kvpb.Mutation{Key: r.Key, Value: r.Value, Delete: r.Delete})
	return &kvpb.CompareAndSwapResponse{Swapped: true, CommitTs: uint64(at)}
}

func (e evaluation) batchGet(r *kvpb.BatchGetRequest) *kvpb.BatchGetResponse {
	resp := &kvpb.BatchGetResponse{}
	for _, k := range r.Keys {
		if row, ok := e.row(string(k), e.readAt(r.Consistency)); ok {
			resp.Rows = append(resp.Rows, row)
			resp.Token = max(resp.Token, row.CommitTs)
		}
	}
	return resp
}

// in lists the keys of a span that exist at a timestamp, in order.
func (e evaluation) in(span keys.Span, at ts.Timestamp) []string {
	var out []string
	for k := range e.rows {
		if _, ok := newest(e.rows[k], at); ok && span.Contains([]byte(k)) {
			out = append(out, k)
		}
	}
	slices.Sort(out)
	return out
}

func (e evaluation) scan(r *kvpb.ScanRequest) *kvpb.ScanResponse {
	at := e.readAt(r.Consistency)
	ks := e.in(keys.Span{Start: r.Start, End: r.End}, at)
	if r.Reverse {
		slices.Reverse(ks)
	}
	resp := &kvpb.ScanResponse{}
	if at != ts.Max {
		resp.SnapshotTs = uint64(at)
	}
	page := pageRows
	if r.Limit > 0 {
		page = min(page, int(r.Limit))
	}
	for i, k := range ks {
		if i == page {
			resp.More, resp.ResumeKey = true, []byte(k)
			if r.Reverse {
				resp.ResumeKey = keys.Next([]byte(k))
			}
			break
		}
		row, _ := e.row(k, at)
		if r.KeysOnly {
			row.Value = nil
		}
		resp.Rows = append(resp.Rows, row)
		resp.Token = max(resp.Token, row.CommitTs)
	}
	return resp
}

func (e evaluation) deleteRange(r *kvpb.DeleteRangeRequest) *kvpb.DeleteRangeResponse {
	resp := &kvpb.DeleteRangeResponse{}
	limit := deleteChunk
	if r.Limit > 0 {
		limit = min(limit, int(r.Limit))
	}
	for i, k := range e.in(keys.Span{Start: r.Start, End: r.End}, ts.Max) {
		if i == limit {
			resp.ResumeKey = []byte(k)
			break
		}
		resp.CommitTs = uint64(e.write(&kvpb.Mutation{Key: []byte(k), Delete: true}))
		resp.DeletedCount++
	}
	return resp
}

// keysOf lists the keys that must lie in the range of req.
func keysOf(req *kvpb.Request) [][]byte {
	switch b := req.GetBody().(type) {
	case *kvpb.Request_Get:
		return [][]byte{b.Get.Key}
	case *kvpb.Request_Put:
		return [][]byte{b.Put.Key}
	case *kvpb.Request_Delete:
		return [][]byte{b.Delete.Key}
	case *kvpb.Request_CompareAndSwap:
		return [][]byte{b.CompareAndSwap.Key}
	case *kvpb.Request_BatchGet:
		return b.BatchGet.Keys
	case *kvpb.Request_BatchWrite:
		return mutationKeys(b.BatchWrite.Mutations)
	case *kvpb.Request_BulkWrite:
		return mutationKeys(b.BulkWrite.Mutations)
	}
	return nil
}

func mutationKeys(ms []*kvpb.Mutation) [][]byte {
	var out [][]byte
	for _, m := range ms {
		out = append(out, m.Key)
	}
	return out
}
