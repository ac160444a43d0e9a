package client_test

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ridgekv/ridge/client"
	"github.com/ridgekv/ridge/client/internal/clustertest"
	"github.com/ridgekv/ridge/proto/errs"
	"github.com/ridgekv/ridge/proto/keys"
	kvpb "github.com/ridgekv/ridge/proto/ridge/kv/v1"
)

// collect returns the keys of a scan and its error.
func collect(seq iter.Seq2[client.Row, error]) ([]string, error) {
	var out []string
	for r, err := range seq {
		if err != nil {
			return out, err
		}
		out = append(out, string(r.Key))
	}
	return out, nil
}

func wantKeys(from, to int) []string {
	var out []string
	for i := from; i < to; i++ {
		out = append(out, fmt.Sprintf("k%04d", i))
	}
	return out
}

func TestScanAcrossRanges(t *testing.T) {
	cluster := clustertest.New(t, 1, 3)
	cluster.Fill("k", 100)
	for _, at := range []string{"k0010", "k0011", "k0055", "k0090"} {
		cluster.Split(at)
	}
	c := open(t, cluster, client.Options{})
	all := wantKeys(0, 100)
	backwards := slices.Clone(all)
	slices.Reverse(backwards)
	check := func(name string, want []string, seq iter.Seq2[client.Row, error]) {
		t.Helper()
		got, err := collect(seq)
		if err != nil || !slices.Equal(got, want) {
			t.Errorf("%s: %v, got %d keys: %v", name, err, len(got), got)
		}
	}
	ctx := t.Context()
	some := keys.Span{Start: []byte("k0007"), End: []byte("k0060")}
	check("all", all, c.Scan(ctx, keys.All()))
	check("all, backwards", backwards, c.ReverseScan(ctx, keys.All()))
	check("some", all[7:60], c.Scan(ctx, some))
	check("some, backwards", backwards[40:93], c.ReverseScan(ctx, some))
	check("limit", all[7:29], c.Scan(ctx, some, client.WithLimit(22)))
	check("limit, backwards", backwards[40:63], c.ReverseScan(ctx, some, client.WithLimit(23)))
	check("prefix", all[50:60], c.Scan(ctx, keys.All(), client.WithPrefix([]byte("k005"))))
	check("limit 0", nil, c.Scan(ctx, keys.All(), client.WithLimit(0)))
	check("nothing", nil, c.Scan(ctx, keys.Prefix([]byte("z"))))
	check("stale", all, c.Scan(ctx, keys.All(),
		client.WithConsistency(client.Stale(time.Second))))
	for r, err := range c.Scan(ctx, keys.All(), client.WithKeysOnly()) {
		if err != nil || len(r.Value) != 0 {
			t.Fatalf("got %v, %v", r, err)
		}
		break
	}
	if _, err := collect(c.Scan(ctx, keys.All(), client.WithTTL(time.Hour))); err == nil {
		t.Error("an option that means nothing was taken")
	}
}

// A scan is one snapshot although rows change, ranges split and leaders move
// under it.
func TestScanIsASnapshotAcrossSplits(t *testing.T) {
	for _, ranges := range []int{1, 3} {
		for _, reverse := range []bool{false, true} {
			t.Run(fmt.Sprintf("%d ranges, reverse %v", ranges, reverse), func(t *testing.T) {
				cluster := clustertest.New(t, 1, 3)
				cluster.Fill("k", 60)
				for i := 1; i < ranges; i++ {
					cluster.Split(fmt.Sprintf("k%04d", i*20))
				}
				c, other := open(t, cluster, client.Options{}), open(t, cluster, client.Options{})
				scan, want := c.Scan, wantKeys(0, 60)
				if reverse {
					scan = c.ReverseScan
					slices.Reverse(want)
				}
				n := 0
				var got []string
				for r, err := range scan(t.Context(), keys.All()) {
					if err != nil {
						t.Fatal(err)
					}
					if v := "v" + string(r.Key); string(r.Value) != v {
						t.Fatalf("%s = %s: written after the scan began", r.Key, r.Value)
					}
					got = append(got, string(r.Key))
					n++
					if n%10 == 3 {
						for i := range 60 {
							put(t, other, fmt.Sprintf("k%04d", i), "new")
						}
						if _, err := other.Delete(t.Context(), []byte("k0030")); err != nil {
							t.Fatal(err)
						}
						cluster.Split(fmt.Sprintf("k%04d5", n))
						id, _ := cluster.Leader(fmt.Sprintf("k%04d", n))
						cluster.MoveLeader(id, uint64(1+n%3))
					}
				}
				if !slices.Equal(got, want) {
					t.Fatalf("got %v", got)
				}
			})
		}
	}
}

func TestScanOfOneRangeNeedsNoPD(t *testing.T) {
	cluster := clustertest.New(t, 1, 1)
	cluster.Fill("k", 5)
	c := open(t, cluster, client.Options{Timeout: time.Second})
	put(t, c, "x", "1")
	cluster.PDs[0].Kill()
	got, err := collect(c.Scan(t.Context(), keys.Prefix([]byte("k"))))
	if err != nil || len(got) != 5 {
		t.Fatalf("got %v, %v", got, err)
	}
}

func TestScanPagesCanBeResumed(t *testing.T) {
	cluster := clustertest.New(t, 1, 1)
	cluster.Fill("k", 50)
	cluster.Split("k0020")
	c := open(t, cluster, client.Options{})
	for _, reverse := range []bool{false, true} {
		span, n := keys.All(), 0
		for more := true; more; {
			more = false
			for p, err := range c.ScanPages(t.Context(), span, reverse, client.WithLimit(3)) {
				if err != nil {
					t.Fatal(err)
				}
				n += len(p.Rows)
				if more = p.More; !more {
					break
				}
				if reverse {
					span.End = p.ResumeKey
				} else {
					span.Start = p.ResumeKey
				}
			}
		}
		if n != 50 {
			t.Errorf("reverse %v: %d rows", reverse, n)
		}
	}
}

func TestTooOldTellsWhereTheScanStands(t *testing.T) {
	cluster := clustertest.New(t, 1, 1)
	cluster.Fill("k", 20)
	c := open(t, cluster, client.Options{})
	cluster.Store(1).Hook(func(req *kvpb.Request) *clustertest.Script {
		if string(req.GetScan().GetStart()) > "k0010" {
			return &clustertest.Script{Answer: errs.ToProto(errs.TooOld{Requested: 1, Floor: 2})}
		}
		return nil
	})
	got, err := collect(c.Scan(t.Context(), keys.All()))
	e, ok := errors.AsType[errs.TooOld](err)
	if !ok || len(got) != 14 || string(e.ResumeKey) != "k0014" {
		t.Fatalf("got %d keys, %v, resume at %q", len(got), err, e.ResumeKey)
	}
}

func TestBatchGet(t *testing.T) {
	cluster := clustertest.New(t, 1, 3)
	cluster.Fill("k", 30)
	c := open(t, cluster, client.Options{})
	ks := [][]byte{
		[]byte("k0021"), []byte("k0001"), []byte("nope"), []byte("k0011"), []byte("k0001"),
	}
	want := []string{"k0021", "k0001", "k0011", "k0001"}
	check := func() {
		t.Helper()
		rows, err := c.BatchGet(t.Context(), ks)
		var got []string
		for _, r := range rows {
			got = append(got, string(r.Key))
		}
		if err != nil || !slices.Equal(got, want) {
			t.Fatalf("got %v, %v", got, err)
		}
	}
	check()
	asked := cluster.PDs[0].TimestampRequests.Load()
	if asked != 0 {
		t.Error("a batch of one range asked PD for a timestamp")
	}
	cluster.Split("k0010") // found out by the next batch
	check()
	cluster.Split("k0020")
	cluster.MoveLeader(1, 3)
	check()
	if cluster.PDs[0].TimestampRequests.Load() == 0 {
		t.Error("a batch of several ranges is no snapshot")
	}
	if rows, err := c.BatchGet(t.Context(), nil); err != nil || len(rows) != 0 {
		t.Errorf("got %v, %v", rows, err)
	}
	var many [][]byte
	for i := range 3000 {
		many = append(many, fmt.Appendf(nil, "k%04d", i))
	}
	if rows, err := c.BatchGet(t.Context(), many); err != nil || len(rows) != 30 {
		t.Errorf("got %d rows, %v", len(rows), err)
	}
}

// A store refuses to make an answer of any size: the batch is cut.
func TestBatchGetOfLargeRows(t *testing.T) {
	cluster := clustertest.New(t, 1, 1)
	cluster.Fill("k", 40)
	c := open(t, cluster, client.Options{})
	cluster.Store(1).Hook(func(req *kvpb.Request) *clustertest.Script {
		if n := len(req.GetBatchGet().GetKeys()); n > 3 {
			return &clustertest.Script{Answer: errs.ToProto(errs.TooLarge{What: "answer"})}
		}
		return nil
	})
	var ks [][]byte
	for i := range 40 {
		ks = append(ks, fmt.Appendf(nil, "k%04d", i))
	}
	if rows, err := c.BatchGet(t.Context(), ks); err != nil || len(rows) != 40 {
		t.Fatalf("got %d rows, %v", len(rows), err)
	}
}

// A token that nobody can have been given is refused, not waited for.
func TestTokenFromTheFuture(t *testing.T) {
	cluster := clustertest.New(t, 1, 1)
	cluster.Fill("k", 10)
	cluster.Split("k0005")
	c := open(t, cluster, client.Options{})
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	future := client.WithSession(client.NewSession(1 << 63))
	_, err := c.BatchGet(ctx, [][]byte{[]byte("k0000"), []byte("k0009")}, future)
	if _, ok := errors.AsType[errs.InvalidArgument](err); !ok {
		t.Error("batch get:", err)
	}
	_, err = collect(c.Scan(ctx, keys.All(), future))
	if _, ok := errors.AsType[errs.InvalidArgument](err); !ok {
		t.Error("scan:", err)
	}
}

// A gateway must not gather gigabytes for a caller that asks for one row often,
// or for many large ones.
func TestBatchGetIsBounded(t *testing.T) {
	cluster := clustertest.New(t, 1, 3)
	cluster.Fill("k", 100)
	cluster.Split("k0050")
	c := open(t, cluster, client.Options{MaxBatchGetBytes: 200})
	var all, one [][]byte
	for i := range 100 {
		all = append(all, fmt.Appendf(nil, "k%04d", i))
		one = append(one, []byte("k0000"))
	}
	for name, ks := range map[string][][]byte{"many rows": all, "one row": one} {
		rows, err := c.BatchGet(t.Context(), ks)
		if _, ok := errors.AsType[errs.TooLarge](err); !ok || rows != nil {
			t.Errorf("%s: %d rows, %v", name, len(rows), err)
		}
	}
	if rows, err := c.BatchGet(t.Context(), all[48:52]); err != nil || len(rows) != 4 {
		t.Error(rows, err)
	}
}

func TestBatchWriteIsForOneRange(t *testing.T) {
	cluster := clustertest.New(t, 1, 1)
	c := open(t, cluster, client.Options{})
	batch := []client.Mutation{
		{Key: []byte("a"), Value: []byte("1")}, {Key: []byte("z"), Value: []byte("1")},
	}
	if at, err := c.BatchWrite(t.Context(), batch); err != nil || at == 0 {
		t.Fatalf("got %v, %v", at, err)
	}
	cluster.Split("m") // the client does not know yet
	_, err := c.BatchWrite(t.Context(), batch)
	if e, ok := errors.AsType[errs.InvalidArgument](err); !ok || e.Field != "mutations" ||
		!strings.Contains(err.Error(), "BulkWrite") {
		t.Fatalf("got %v", err)
	}
	if n := cluster.Versions("a"); n != 1 {
		t.Errorf("a was written %d times", n)
	}
}

func bulkOf(n int) []client.Mutation {
	ms := make([]client.Mutation, n)
	for i := range ms {
		ms[i] = client.Mutation{Key: fmt.Appendf(nil, "k%04d", i), Value: fmt.Appendf(nil, "%d", i)}
	}
	return ms
}

func TestBulkWriteAcrossRanges(t *testing.T) {
	cluster := clustertest.New(t, 1, 3)
	c := open(t, cluster, client.Options{Parallelism: 3})
	put(t, c, "k0000", "0")
	for i := range 9 {
		id := cluster.Split(fmt.Sprintf("k%04d", 500*(i+1)))
		cluster.MoveLeader(id, uint64(1+i%3))
	}
	r, err := c.BulkWrite(t.Context(), bulkOf(5000))
	if err != nil || r.Applied != 5000 || len(r.Pending)+len(r.Unknown) != 0 || r.CommitTS == 0 {
		t.Fatalf("got %+v, %v", r, err)
	}
	for i := range 5000 {
		key := fmt.Sprintf("k%04d", i)
		if v, _ := cluster.Value(key); v != fmt.Sprint(i) {
			t.Fatalf("%s = %q", key, v)
		}
		if n := cluster.Versions(key); n != 1 && i > 0 {
			t.Fatalf("%s was written %d times", key, n)
		}
	}
}

func TestBulkWriteKeepsTheOrderOfOneKey(t *testing.T) {
	cluster := clustertest.New(t, 1, 1)
	c := open(t, cluster, client.Options{})
	var ms []client.Mutation
	for i := range 2500 {
		ms = append(ms, client.Mutation{Key: []byte("k"), Value: fmt.Append(nil, i)})
	}
	if _, err := c.BulkWrite(t.Context(), ms); err != nil {
		t.Fatal(err)
	}
	if v, _ := cluster.Value("k"); v != "2499" {
		t.Fatalf("got %q", v)
	}
}

// A bulk that fails says what it did; writing what is pending again completes
// it, and nothing is written twice.
func TestBulkWriteCanBeRestarted(t *testing.T) {
	cluster := clustertest.New(t, 1, 2)
	cluster.Split("k1000")
	child, _ := cluster.Leader("k1000")
	cluster.MoveLeader(child, 2)
	c := open(t, cluster, client.Options{})
	full := true
	cluster.Store(2).Hook(func(req *kvpb.Request) *clustertest.Script {
		if full && req.GetBulkWrite() != nil {
			return &clustertest.Script{Answer: errs.ToProto(errs.DiskFull{StoreID: 2})}
		}
		return nil
	})
	ms := bulkOf(2000)
	r, err := c.BulkWrite(t.Context(), ms)
	if _, ok := errors.AsType[errs.DiskFull](err); !ok || len(r.Unknown) != 0 ||
		len(r.Pending) < 1000 || r.Applied+len(r.Pending) != 2000 {
		t.Fatalf("applied %d, pending %d, %v", r.Applied, len(r.Pending), err)
	}
	full = false
	var rest []client.Mutation
	for _, i := range r.Pending {
		rest = append(rest, ms[i])
	}
	if r, err = c.BulkWrite(t.Context(), rest); err != nil || r.Applied != len(rest) {
		t.Fatalf("got %+v, %v", r, err)
	}
	for i := range 2000 {
		if n := cluster.Versions(fmt.Sprintf("k%04d", i)); n != 1 {
			t.Fatalf("k%04d was written %d times", i, n)
		}
	}
}

// A store may say that it did a part and then failed: the part is not sent
// again.
func TestBulkWriteDoesNotRepeatAPart(t *testing.T) {
	cluster := clustertest.New(t, 1, 1)
	c := open(t, cluster, client.Options{})
	var once sync.Once
	sizes := []int{}
	cluster.Store(1).Hook(func(req *kvpb.Request) (s *clustertest.Script) {
		if b := req.GetBulkWrite(); b != nil {
			sizes = append(sizes, len(b.Mutations))
			once.Do(func() {
				s = &clustertest.Script{
					Answer: errs.ToProto(errs.Busy{Reason: "pipeline"}), AppliedCount: 4,
				}
			})
		}
		return s
	})
	r, err := c.BulkWrite(t.Context(), bulkOf(10))
	if err != nil || r.Applied != 10 || !slices.Equal(sizes, []int{10, 6}) {
		t.Fatalf("got %+v, %v, sizes %v", r, err, sizes)
	}
}

func TestDeleteRange(t *testing.T) {
	cluster := clustertest.New(t, 1, 3)
	cluster.Fill("k", 60)
	cluster.Split("k0020")
	cluster.Split("k0033")
	c := open(t, cluster, client.Options{})
	span := keys.Span{Start: []byte("k0005"), End: []byte("k0055")}
	r, err := c.DeleteRange(t.Context(), span, client.WithLimit(12))
	if err != nil || r.Deleted != 12 || string(r.ResumeKey) != "k0017" {
		t.Fatalf("got %+v, %v", r, err)
	}
	// Interrupted in the middle, it goes on where it stopped.
	cluster.Store(1).Hook(func(req *kvpb.Request) *clustertest.Script {
		if string(req.GetDeleteRange().GetStart()) >= "k0030" {
			return &clustertest.Script{Answer: errs.ToProto(errs.DiskFull{StoreID: 1})}
		}
		return nil
	})
	span.Start = r.ResumeKey
	r, err = c.DeleteRange(t.Context(), span)
	if err == nil || r.Deleted != 13 || string(r.ResumeKey) != "k0030" {
		t.Fatalf("got %+v, %v", r, err)
	}
	cluster.Store(1).Hook(nil)
	span.Start = r.ResumeKey
	r, err = c.DeleteRange(t.Context(), span)
	if err != nil || r.Deleted != 25 || r.ResumeKey != nil {
		t.Fatalf("got %+v, %v", r, err)
	}
	got, err := collect(c.Scan(t.Context(), keys.All()))
	if err != nil || len(got) != 10 {
		t.Fatalf("got %v, %v", got, err)
	}
}

// Writers, readers and scanners work while ranges split, move and lose their
// leaders; stores die and come back. Every acknowledged write is there, and no
// write happened twice.
func TestUnderChurn(t *testing.T) {
	cluster := clustertest.New(t, 2, 4)
	c := open(t, cluster, client.Options{Timeout: 5 * time.Second, TryTimeout: 200 * time.Millisecond})
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
	defer cancel()
	var wg sync.WaitGroup
	var mu sync.Mutex
	acked, unsure := map[string]bool{}, map[string]bool{}
	for w := range 8 {
		wg.Go(func() {
			for i := 0; ctx.Err() == nil; i++ {
				key := fmt.Sprintf("%c%d/%04d", 'a'+i%26, w, i)
				_, err := c.Put(t.Context(), []byte(key), []byte(key))
				mine := err == nil
				mu.Lock()
				switch {
				case mine:
					acked[key] = true
				case client.IsUnknown(err):
					unsure[key] = true
				default:
					t.Errorf("put %s: %v", key, err)
				}
				mu.Unlock()
				if _, ok, err := c.Get(t.Context(), []byte(key)); err != nil || !ok && mine {
					t.Errorf("get %s: %v, %v", key, ok, err)
				}
			}
		})
	}
	wg.Go(func() {
		for ctx.Err() == nil {
			if got, err := collect(c.Scan(t.Context(), keys.All())); err != nil || !slices.IsSorted(got) {
				t.Errorf("scan: %v", err)
			}
		}
	})
	for i := 0; ctx.Err() == nil; i++ {
		clustertest.Rest(20 * time.Millisecond)
		key := fmt.Sprintf("%c", 'b'+i%25)
		id, leader := cluster.Leader(key)
		switch i % 4 {
		case 0:
			if i < 100 {
				cluster.Split(key + fmt.Sprint(i))
			}
		case 1:
			cluster.MoveLeader(id, leader%4+1)
		case 2:
			cluster.Store(leader).Kill()
			cluster.MoveLeader(id, leader%4+1)
			cluster.Store(leader).Start()
		case 3:
			cluster.MovePDLeader(i / 4 % 2)
		}
	}
	wg.Wait()
	for key := range acked {
		if n := cluster.Versions(key); n != 1 {
			t.Errorf("%s: acknowledged, written %d times", key, n)
		}
	}
	for key := range unsure {
		if n := cluster.Versions(key); n > 1 {
			t.Errorf("%s: unknown, written %d times", key, n)
		}
	}
	t.Logf("%d acknowledged, %d unknown", len(acked), len(unsure))
}
