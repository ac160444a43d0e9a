package evaluate

import (
	"bytes"
	"context"
	"sync"

	"github.com/ridgekv/ridge/proto/keys"
	kvpb "github.com/ridgekv/ridge/proto/ridge/kv/v1"
	"github.com/ridgekv/ridge/proto/wire"
	"github.com/ridgekv/ridge/storenode/internal/engine"
)

const (
	// rowOverheadBytes is what a row costs on the wire beside key and value.
	rowOverheadBytes = 32
	// examineMax ends a page that meets ever more expired rows.
	examineMax = 50_000
)

// pageBuffers are what pages are made in, before their length is known.
var pageBuffers = sync.Pool{New: func() any { return new([]byte) }}

// maxKeptBytes is the largest of them that is used again.
const maxKeptBytes = 64 << 10

// page answers one page of a scan. It holds at least one row if there is one,
// so a scan always comes on. Its rows are encoded where the engine shows them:
// the answer is one piece of memory, whatever their number.
func (g *gather) page(c *call) (*kvpb.Response, error) {
	buffer := pageBuffers.Get().(*[]byte)
	p := pageWriter{g: g, r: c.req.GetScan(), rows: (*buffer)[:0]}
	p.limitBytes = int(p.r.GetPageBytes())
	if p.limitBytes == 0 {
		p.limitBytes = g.w.ev.limits.PageBytes
	}
	p.limitBytes = min(p.limitBytes, maxPageBytes)
	err := g.view.Visit(g.scanOptions(c), p.add)
	if cap(p.rows) <= maxKeptBytes {
		*buffer = p.rows
	}
	defer pageBuffers.Put(buffer)
	if err != nil {
		return nil, err
	}
	a := &scanAnswer{}
	a.response.Body, a.body.Scan = &a.body, &a.scan
	a.scan.SnapshotTs, a.scan.Token = uint64(g.at), g.token(true)
	a.scan.More, a.scan.ResumeKey = p.more, p.resumeKey
	wire.SetScanRows(&a.scan, append([]byte(nil), p.rows...))
	return &a.response, nil
}

// scanAnswer is the answer to a Scan in one piece of memory, beside its rows.
type scanAnswer struct {
	response kvpb.Response
	body     kvpb.Response_Scan
	scan     kvpb.ScanResponse
}

// pageWriter makes one page.
type pageWriter struct {
	g          *gather
	r          *kvpb.ScanRequest
	limitBytes int
	// rows are count rows, encoded.
	rows            []byte
	count, examined uint64
	// sizeBytes is what the rows count for.
	sizeBytes int
	// last is the last key looked at, for reverse scans.
	last      []byte
	more      bool
	resumeKey []byte
}

// add takes the next row; it returns false when the page was full before.
func (p *pageWriter) add(key []byte, row engine.Row) bool {
	sizeBytes := len(key) + len(row.Value) + rowOverheadBytes
	full := p.count > 0 && (p.sizeBytes+sizeBytes > p.limitBytes ||
		p.r.GetLimit() > 0 && p.count >= p.r.GetLimit())
	if full || p.examined >= examineMax {
		p.more, p.resumeKey = true, p.resumeAt(key)
		return false
	}
	p.examined++
	if p.r.GetReverse() {
		p.last = append(p.last[:0], key...)
	}
	if p.g.keep(row) {
		p.rows = wire.AppendScanRow(
			p.rows, key, row.Value, uint64(row.CommitTS), uint64(row.ExpiresAt))
		p.count++
		p.sizeBytes += sizeBytes
	}
	return true
}

// resumeAt is where the next page begins: at the first key not answered, or
// for reverse scans below the last one that was.
func (p *pageWriter) resumeAt(next []byte) []byte {
	if p.r.GetReverse() {
		return p.last
	}
	return bytes.Clone(next)
}

// scanOptions reads no further ahead than the page can need.
func (g *gather) scanOptions(c *call) engine.ScanOptions {
	r := c.req.GetScan()
	o := engine.ScanOptions{
		Context: context.Background(),
		Slices:  g.st.Slices(), Span: keys.Span{Start: r.GetStart(), End: r.GetEnd()},
		Reverse: r.GetReverse(), KeysOnly: r.GetKeysOnly(), At: g.at,
	}
	if n := r.GetLimit(); n > 0 && n < examineMax && !g.st.HasTTL() {
		o.Limit = int(n) + 1
	}
	return o
}
