package evaluate

import (
	"context"

	"github.com/ridgekv/ridge/proto/keys"
	kvpb "github.com/ridgekv/ridge/proto/ridge/kv/v1"
	"github.com/ridgekv/ridge/storenode/internal/engine"
)

const (
	// rowOverheadBytes is what a row costs on the wire beside key and value.
	rowOverheadBytes = 32
	// examineMax ends a page that meets ever more expired rows.
	examineMax = 50_000
)

// page answers one page of a scan. It holds at least one row if there is one,
// so a scan always comes on.
func (g *gather) page(c *call) (*kvpb.Response, error) {
	r := c.req.GetScan()
	limitBytes := int(r.GetPageBytes())
	if limitBytes == 0 {
		limitBytes = g.w.ev.limits.PageBytes
	}
	limitBytes = min(limitBytes, maxPageBytes)
	out := &kvpb.ScanResponse{SnapshotTs: uint64(g.at)}
	size, examined := 0, 0
	var last []byte // the last key looked at
	for kr, err := range g.view.Scan(g.scanOptions(c)) {
		if err != nil {
			return nil, err
		}
		fullPage := len(out.Rows) > 0 &&
			(size+len(kr.Key)+len(kr.Row.Value)+rowOverheadBytes > limitBytes ||
				r.GetLimit() > 0 && uint64(len(out.Rows)) >= r.GetLimit())
		if fullPage || examined >= examineMax {
			out.More, out.ResumeKey = true, resumeAt(kr.Key, last, r.GetReverse())
			break
		}
		last = kr.Key
		examined++
		if !g.keep(kr.Row) {
			continue
		}
		out.Rows = append(out.Rows, rowProto(kr.Key, kr.Row, r.GetKeysOnly()))
		size += len(kr.Key) + len(kr.Row.Value) + rowOverheadBytes
	}
	out.Token = g.token(true)
	return &kvpb.Response{Body: &kvpb.Response_Scan{Scan: out}}, nil
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

// resumeAt is where the next page begins: at the first key not answered, or
// for reverse scans below the last one that was.
func resumeAt(next, last []byte, reverse bool) []byte {
	if reverse {
		return last
	}
	return next
}
