package evaluate

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ridgekv/ridge/proto/errs"
	"github.com/ridgekv/ridge/proto/keys"
	kvpb "github.com/ridgekv/ridge/proto/ridge/kv/v1"
	logpb "github.com/ridgekv/ridge/proto/ridge/log/v1"
	metapb "github.com/ridgekv/ridge/proto/ridge/meta/v1"
	"github.com/ridgekv/ridge/storenode/internal/apply"
	"github.com/ridgekv/ridge/storenode/internal/catalog"
)

// TestEpochTable writes down which request is checked against what. A change
// of the table changes testdata/epochs.txt, and a reader can see it.
func TestEpochTable(t *testing.T) {
	st := catalog.NewState(&logpb.RangeState{
		RangeId: 7, SpanEpoch: 3, ReplicaId: 1, Span: keys.Span{Start: []byte("b")}.Proto(),
		State: logpb.ReplicaState_REPLICA_STATE_NORMAL,
	})
	headers := []struct {
		name string
		h    *kvpb.Header
	}{
		{"none", &kvpb.Header{RangeId: 7}},
		{"same", &kvpb.Header{RangeId: 7, SpanEpoch: 3}},
		{"older", &kvpb.Header{RangeId: 7, SpanEpoch: 2}},
		{"newer", &kvpb.Header{RangeId: 7, SpanEpoch: 4}},
		{"other", &kvpb.Header{RangeId: 8, SpanEpoch: 3}},
	}
	var b bytes.Buffer
	fmt.Fprintf(&b, "%-17s %-6s %-5s", "kind", "writes", "span")
	for _, h := range headers {
		fmt.Fprintf(&b, " %-14s", h.name)
	}
	b.WriteByte('\n')
	for k := range kindEnd {
		outside := &call{kind: k, keys: [][]byte{[]byte("a")}}
		fmt.Fprintf(&b, "%-17s %-6t %-5t", k, k.Write(), outside.checkSpan(st) != nil)
		for _, h := range headers {
			fmt.Fprintf(&b, " %-14s", verdictName(CheckHeader(k, h.h, st)))
		}
		b.WriteByte('\n')
	}
	got := trimLines(b.String())
	const golden = "testdata/epochs.txt"
	if os.Getenv("UPDATE_GOLDEN") != "" {
		if err := os.WriteFile(golden, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Fatalf("got\n%swant\n%s", got, want)
	}
}

func trimLines(s string) string {
	lines := strings.Split(s, "\n")
	for i := range lines {
		lines[i] = strings.TrimRight(lines[i], " ")
	}
	return strings.Join(lines, "\n")
}

func verdictName(err error) string {
	switch err.(type) {
	case nil:
		return "ok"
	case errs.EpochMismatch:
		return "epoch-mismatch"
	case errs.RangeNotFound:
		return "not-found"
	}
	return "?"
}

func TestRefusals(t *testing.T) {
	c := newCluster(t, 1)
	c.lead(rangeOne, 1)
	s := c.stores[0]
	long := bytes.Repeat([]byte("k"), keys.MaxKeySizeBytes+1)
	h := s.header
	put := func(key, value []byte, ttl uint64) *kvpb.Request {
		return &kvpb.Request{Body: &kvpb.Request_Put{Put: &kvpb.PutRequest{
			Header: h(), Key: key, Value: value, TtlMs: ttl,
		}}}
	}
	scan := func(start, end string) *kvpb.Request {
		return &kvpb.Request{Body: &kvpb.Request_Scan{Scan: &kvpb.ScanRequest{
			Header: h(), Start: []byte(start), End: []byte(end),
		}}}
	}
	batch := func(ms ...*kvpb.Mutation) *kvpb.Request {
		return &kvpb.Request{Body: &kvpb.Request_BatchWrite{BatchWrite: &kvpb.BatchWriteRequest{
			Header: h(), Mutations: ms,
		}}}
	}
	many := make([]*kvpb.Mutation, keys.MaxEntryKeys+1)
	for i := range many {
		many[i] = &kvpb.Mutation{Key: fmt.Appendf(nil, "%d", i)}
	}
	big := make([]*kvpb.Mutation, 5)
	for i := range big {
		big[i] = &kvpb.Mutation{Key: fmt.Appendf(nil, "%d", i), Value: make([]byte, 1000<<10)}
	}
	var invalid errs.InvalidArgument
	var large errs.TooLarge
	for name, tc := range map[string]struct {
		req  *kvpb.Request
		want any
	}{
		"no body":        {&kvpb.Request{Id: 9}, &invalid},
		"empty key":      {put(nil, nil, 0), &invalid},
		"long key":       {put(long, nil, 0), &large},
		"long value":     {put([]byte("k"), make([]byte, keys.MaxValueSizeBytes+1), 0), &large},
		"endless TTL":    {put([]byte("k"), nil, 1<<63), &invalid},
		"inverted span":  {scan("b", "a"), &invalid},
		"empty span":     {scan("a", "a"), &invalid},
		"empty batch":    {batch(), &invalid},
		"many mutations": {batch(many...), &large},
		"big batch":      {batch(big...), &large},
		"delete + value": {batch(&kvpb.Mutation{
			Key: []byte("k"), Delete: true, Value: []byte("v"),
		}), &invalid},
	} {
		t.Run(name, func(t *testing.T) {
			r := <-s.send(tc.req)
			if r.GetId() != tc.req.GetId() {
				t.Fatalf("answer to %d", r.GetId())
			}
			if err := responseError(r); !errors.As(err, tc.want) {
				t.Fatalf("got %v", err)
			}
		})
	}
	largest := put([]byte("k"), make([]byte, keys.MaxValueSizeBytes), 0)
	if err := responseError(<-s.send(largest)); err != nil {
		t.Fatal(err)
	}
}

func responseError(r *kvpb.Response) error {
	for _, e := range []*kvpb.Error{
		r.GetError(), r.GetGet().GetError(), r.GetPut().GetError(), r.GetDelete().GetError(),
		r.GetScan().GetError(), r.GetBatchWrite().GetError(), r.GetBatchGet().GetError(),
		r.GetCompareAndSwap().GetError(), r.GetBulkWrite().GetError(),
		r.GetDeleteRange().GetError(),
	} {
		if e != nil {
			return errs.FromProto(e)
		}
	}
	return nil
}

func TestBatchWriteLastOneWins(t *testing.T) {
	c := newCluster(t, 1)
	c.lead(rangeOne, 1)
	s := c.stores[0]
	r := (<-s.send(&kvpb.Request{Body: &kvpb.Request_BatchWrite{
		BatchWrite: &kvpb.BatchWriteRequest{Header: s.header(), Mutations: []*kvpb.Mutation{
			{Key: []byte("a"), Value: []byte("1")},
			{Key: []byte("b"), Value: []byte("1")},
			{Key: []byte("a"), Value: []byte("2")},
			{Key: []byte("b"), Delete: true},
		}},
	}})).GetBatchWrite()
	if r.GetError() != nil || r.GetCommitTs() == 0 {
		t.Fatal(r)
	}
	s.mustGet("a", "2")
	s.mustGet("b", "")
	g := (<-s.send(&kvpb.Request{Body: &kvpb.Request_BatchGet{BatchGet: &kvpb.BatchGetRequest{
		Header: s.header(), Keys: [][]byte{[]byte("b"), []byte("a"), []byte("a")},
	}}})).GetBatchGet()
	if len(g.GetRows()) != 2 || string(g.GetRows()[0].GetValue()) != "2" {
		t.Fatal(g)
	}
}

// TestBatchGetAnswersAreBounded: an answer that gRPC would refuse to send is
// refused alone, and does not end the stream it shares with others.
func TestBatchGetAnswersAreBounded(t *testing.T) {
	c := newCluster(t, 1)
	c.lead(rangeOne, 1)
	s := c.stores[0]
	value := strings.Repeat("v", keys.MaxValueSizeBytes)
	var ask [][]byte
	for i := range 5 {
		key := fmt.Sprintf("k%d", i)
		s.mustPut(key, value)
		ask = append(ask, []byte(key))
	}
	get := func(ask [][]byte) *kvpb.BatchGetResponse {
		return (<-s.send(&kvpb.Request{Body: &kvpb.Request_BatchGet{
			BatchGet: &kvpb.BatchGetRequest{Header: s.header(), Keys: ask},
		}})).GetBatchGet()
	}
	if r := get(ask); r.GetError().GetTooLarge().GetLimitBytes() != maxPageBytes {
		t.Fatalf("want TooLarge, got %v and %d rows", r.GetError(), len(r.GetRows()))
	}
	if r := get(ask[:3]); r.GetError() != nil || len(r.GetRows()) != 3 {
		t.Fatalf("got %v and %d rows", r.GetError(), len(r.GetRows()))
	}
}

func TestBulkWriteAndDeleteRange(t *testing.T) {
	c := newCluster(t, 1)
	c.lead(rangeOne, 1)
	s := c.stores[0]
	const n = 15_000
	ms := make([]*kvpb.Mutation, n)
	for i := range ms {
		ms[i] = &kvpb.Mutation{Key: fmt.Appendf(nil, "k%05d", i), Value: []byte("v")}
	}
	bulk := s.send(&kvpb.Request{Body: &kvpb.Request_BulkWrite{
		BulkWrite: &kvpb.BulkWriteRequest{Header: s.header(), Mutations: ms},
	}})
	after := s.sendPut("z", "z", 0)
	if r := (<-bulk).GetBulkWrite(); r.GetError() != nil || r.GetAppliedCount() != n {
		t.Fatal(r)
	}
	if r := (<-after).GetPut(); r.GetError() != nil {
		t.Fatal(r)
	}
	deleted, start := uint64(0), []byte("k")
	for calls := 0; start != nil; calls++ {
		r := (<-s.send(&kvpb.Request{Body: &kvpb.Request_DeleteRange{
			DeleteRange: &kvpb.DeleteRangeRequest{
				Header: s.header(), Start: start,
				End: []byte("l"),
			},
		}})).GetDeleteRange()
		if r.GetError() != nil || calls > 10 {
			t.Fatal(r)
		}
		deleted += r.GetDeletedCount()
		start = r.GetResumeKey()
	}
	if deleted != n {
		t.Fatalf("deleted %d", deleted)
	}
	got, err := s.scan("", "", nil)
	if err != nil || len(got.GetRows()) != 1 {
		t.Fatal(got, err)
	}
	r := (<-s.send(&kvpb.Request{Body: &kvpb.Request_DeleteRange{
		DeleteRange: &kvpb.DeleteRangeRequest{
			Header: s.header(), Start: []byte("k"),
			End: []byte("l"),
		},
	}})).GetDeleteRange()
	if r.GetError() != nil || r.GetDeletedCount() != 0 || r.GetCommitTs() != 0 {
		t.Fatal(r)
	}
}

func TestScanPages(t *testing.T) {
	c := newCluster(t, 1)
	c.lead(rangeOne, 1)
	s := c.stores[0]
	for i := range 50 {
		s.mustPut(fmt.Sprintf("k%02d", i), strings.Repeat("v", 100))
	}
	at, _ := c.oracle.fresh()
	for _, consistency := range []*kvpb.Consistency{nil, snapshotAt(uint64(at))} {
		for _, reverse := range []bool{false, true} {
			for _, limit := range []uint64{0, 7} {
				var got []string
				req := &kvpb.ScanRequest{
					Header: s.header(), Start: []byte("k05"),
					End: []byte("k45"), Reverse: reverse, Limit: limit, PageBytes: 1000,
					Consistency: consistency,
				}
				for pages := 1; ; pages++ {
					r := (<-s.send(&kvpb.Request{Body: &kvpb.Request_Scan{Scan: req}})).GetScan()
					if r.GetError() != nil || pages > 40 {
						t.Fatal(r)
					}
					for _, row := range r.GetRows() {
						got = append(got, string(row.GetKey()))
					}
					if !r.GetMore() {
						break
					}
					if reverse {
						req.End = r.GetResumeKey()
					} else {
						req.Start = r.GetResumeKey()
					}
				}
				if len(got) != 40 {
					t.Fatalf("reverse %t limit %d: %d rows: %v", reverse, limit, len(got), got)
				}
				for i, k := range got {
					want := fmt.Sprintf("k%02d", i+5)
					if reverse {
						want = fmt.Sprintf("k%02d", 44-i)
					}
					if k != want {
						t.Fatalf("row %d is %s, want %s", i, k, want)
					}
				}
			}
		}
	}
}

func (c *cluster) child(id uint64, replicas ...uint64) SplitChild {
	out := SplitChild{RangeID: id, ReplicaIDs: replicas, ExpectedConfig: config}
	for _, s := range c.stores {
		out.Members = append(out.Members, &metapb.Replica{
			ReplicaId: s.id, StoreId: s.id, Role: metapb.Role_ROLE_VOTER,
		})
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.logs[id] = &scriptedLog{}
	return out
}

// Writes and snapshot reads go on around a split; none is lost, none crosses.
func TestSplitWithWritesAround(t *testing.T) {
	c := newCluster(t, 2)
	c.lead(rangeOne, 1)
	s := c.stores[0]
	s.holds()
	putTo := func(rangeID uint64, key, value string) error {
		r := <-s.send(&kvpb.Request{Body: &kvpb.Request_Put{Put: &kvpb.PutRequest{
			Header: &kvpb.Header{RangeId: rangeID}, Key: []byte(key), Value: []byte(value),
		}}})
		return responseError(r)
	}
	last := make([]map[string]string, 4)
	stop := make(chan struct{})
	var wg sync.WaitGroup
	for i := range last {
		last[i] = map[string]string{}
		wg.Go(func() {
			for n := 0; ; n++ {
				select {
				case <-stop:
					return
				default:
				}
				key, value := fmt.Sprintf("%c%d", 'a'+n%26, i), fmt.Sprint(n)
				err := putTo(rangeOne, key, value)
				if errors.As(err, new(errs.KeyNotInRange)) {
					err = putTo(2, key, value)
				}
				if err == nil {
					last[i][key] = value
				} else if errs.ToProto(err).GetApplied() != kvpb.Applied_APPLIED_NO {
					t.Errorf("put %s: %v", key, err)
				}
			}
		})
	}
	var snapshots []uint64
	for range 3 {
		at, _ := c.oracle.fresh()
		if _, err := s.getAt("m0", uint64(at)); err != nil {
			t.Error(err)
		}
		snapshots = append(snapshots, uint64(at))
	}
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	left, right, err := s.ev.Split(ctx, rangeOne, []byte("m"), c.child(2, 11, 12))
	if err != nil {
		t.Fatal(err)
	}
	if string(left.GetSpan().GetEnd()) != "m" || string(right.GetSpan().GetStart()) != "m" ||
		left.GetEpoch().GetSpan() != 2 || right.GetEpoch().GetSpan() != 2 ||
		len(right.GetReplicas()) != 2 || right.GetReplicas()[1].GetReplicaId() != 12 {
		t.Fatalf("left %v right %v", left, right)
	}
	child, ok := s.catalog.Replica(2)
	if !ok || uint64(child.State().ReadBound()) < snapshots[2] {
		t.Fatalf("the child does not know of the snapshot at %d", snapshots[2])
	}
	c.lead(2, 1)
	eventually(t, "the child is led", func() bool { return s.ev.Leaseholder(2) })
	for i := range 20 {
		if err := putTo(2, "x-"+fmt.Sprint(i), "new"); err != nil {
			t.Fatal(err)
		}
	}
	close(stop)
	wg.Wait()
	for _, m := range last {
		for key, want := range m {
			id := rangeOne
			if key >= "m" {
				id = 2
			}
			r := (<-s.send(&kvpb.Request{Body: &kvpb.Request_Get{Get: &kvpb.GetRequest{
				Header: &kvpb.Header{RangeId: id}, Key: []byte(key),
			}}})).GetGet()
			if r.GetError() != nil || string(r.GetRow().GetValue()) != want {
				t.Fatalf("%s is %v, want %s", key, r, want)
			}
		}
	}
	r := <-s.send(&kvpb.Request{Body: &kvpb.Request_Get{Get: &kvpb.GetRequest{
		Header: &kvpb.Header{RangeId: rangeOne, SpanEpoch: 1}, Key: []byte("a0"),
	}}})
	e, ok := errors.AsType[errs.EpochMismatch](responseError(r))
	if !ok || len(e.Current) == 0 || e.Current[0].GetEpoch().GetSpan() != 2 ||
		len(e.Current[0].GetReplicas()) != 2 {
		t.Fatal(r)
	}
}

func TestSplitRefusals(t *testing.T) {
	c := newCluster(t, 1)
	c.lead(rangeOne, 1)
	s := c.stores[0]
	s.mustPut("k", "v")
	wrongConfig := c.child(2, 11)
	wrongConfig.ExpectedConfig = config + 1
	if _, _, err := s.ev.Split(t.Context(), rangeOne, []byte("m"), wrongConfig); err == nil {
		t.Fatal("a split with another config index")
	}
	s.mustPut("k", "w") // it goes on after a refusal
	for name, key := range map[string][]byte{"empty": nil, "long": make([]byte, 5000)} {
		if _, _, err := s.ev.Split(t.Context(), rangeOne, key, c.child(2, 11)); err == nil {
			t.Fatalf("%s split key", name)
		}
	}
	none := SplitChild{RangeID: 2}
	if _, _, err := s.ev.Split(t.Context(), rangeOne, []byte("m"), none); err == nil {
		t.Fatal("a child without replicas")
	}
	// The outcome of the first proposal is lost: the repetition does not say
	// whether it was refused, the state does.
	tries := 0
	c.setScript(func(_, _ uint64, e apply.Entry) action {
		if e.Kind == apply.KindSplit {
			if tries++; tries == 1 {
				return deafen
			}
		}
		return deliver
	})
	if _, _, err := s.ev.Split(t.Context(), rangeOne, []byte("m"), wrongConfig); err == nil {
		t.Fatal("a refused split was called done")
	}
	tries = 0
	if _, _, err := s.ev.Split(t.Context(), rangeOne, []byte("m"), c.child(3, 11)); err != nil {
		t.Fatal(err)
	}
	if _, _, err := s.ev.Split(t.Context(), rangeOne, []byte("c"), c.child(4, 11)); !errors.As(
		err, new(errs.Busy)) {
		t.Fatalf("a split with an unborn child: %v", err)
	}
	s.mustPut("k", "x")
}

func TestPrepareTransferSparesTheNewHolderTheWait(t *testing.T) {
	c := newCluster(t, 2)
	c.lead(rangeOne, 1)
	a, b := c.stores[0], c.stores[1]
	a.mustPut("k", "0")
	at, _ := c.oracle.fresh()
	if _, err := a.getAt("k", uint64(at)); err != nil {
		t.Fatal(err)
	}
	if err := a.ev.PrepareTransfer(t.Context(), rangeOne); err != nil {
		t.Fatal(err)
	}
	if bound := a.catalog.Replicas()[0].State().ReadBound(); bound > c.freshEverywhere() {
		t.Fatal("the bound lies ahead of the oracle")
	}
	rests := a.sendPut("k", "1", 0)
	c.lead(rangeOne, 2)
	if err := responseError(<-rests); !errors.As(err, new(errs.NotLeader)) {
		t.Fatal(err)
	}
	b.mustPut("k", "2")
	b.mustGet("k", "2")
}

// When the leadership stays, evaluation goes on.
func TestRestEnds(t *testing.T) {
	c := newCluster(t, 1)
	c.lead(rangeOne, 1)
	s := c.stores[0]
	s.mustPut("k", "0")
	if err := s.ev.PrepareTransfer(t.Context(), rangeOne); err != nil {
		t.Fatal(err)
	}
	s.mustPut("k", "1")
}

func TestChecksumAndDrain(t *testing.T) {
	c := newCluster(t, 1)
	c.lead(rangeOne, 1)
	s := c.stores[0]
	s.mustPut("k", "0")
	if err := s.ev.Checksum(t.Context(), rangeOne); err != nil {
		t.Fatal(err)
	}
	if n := len(c.logged(rangeOne, apply.KindChecksum)); n != 1 {
		t.Fatalf("%d checksum entries", n)
	}
	c.lag(s, true)
	put := s.sendPut("k", "1", 0)
	drained := make(chan error, 1)
	c.wg.Go(func() { drained <- s.ev.DrainAll(context.Background()) })
	eventually(t, "draining", s.ev.draining.Load)
	if _, err := s.put("k", "2"); !errors.As(err, new(errs.NotLeader)) {
		t.Fatal(err)
	}
	c.lag(s, false)
	if err := <-drained; err != nil {
		t.Fatal(err)
	}
	if err := responseError(<-put); err != nil {
		t.Fatal(err)
	}
}
