package client_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"
	"google.golang.org/protobuf/proto"

	"github.com/ridgekv/ridge/client"
	"github.com/ridgekv/ridge/client/internal/clustertest"
	"github.com/ridgekv/ridge/proto/errs"
	"github.com/ridgekv/ridge/proto/keys"
	kvpb "github.com/ridgekv/ridge/proto/ridge/kv/v1"
	metapb "github.com/ridgekv/ridge/proto/ridge/meta/v1"
	"github.com/ridgekv/ridge/proto/ts"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func open(t *testing.T, cluster *clustertest.Cluster, o client.Options) *client.Client {
	t.Helper()
	o.PD = cluster.PDAddresses()
	c, err := client.Open(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	return c
}

func put(t *testing.T, c *client.Client, key, value string) ts.Timestamp {
	t.Helper()
	at, err := c.Put(t.Context(), []byte(key), []byte(value))
	if err != nil {
		t.Fatal(err)
	}
	return at
}

func get(t *testing.T, c *client.Client, key string, opts ...client.Option) string {
	t.Helper()
	row, ok, err := c.Get(t.Context(), []byte(key), opts...)
	if err != nil {
		t.Fatal(err)
	}
	if !ok {
		return "-"
	}
	if string(row.Key) != key {
		t.Fatalf("got the row of %q", row.Key)
	}
	return string(row.Value)
}

func TestBasicOperations(t *testing.T) {
	cluster := clustertest.New(t, 1, 1)
	c := open(t, cluster, client.Options{})
	ctx := t.Context()
	if v := get(t, c, "a"); v != "-" {
		t.Fatalf("got %q", v)
	}
	first := put(t, c, "a", "1")
	if v := get(t, c, "a"); v != "1" {
		t.Fatalf("got %q", v)
	}
	second := put(t, c, "a", "2")
	if second <= first || c.Session().Token() < second {
		t.Fatalf("commits %d, %d, token %d", first, second, c.Session().Token())
	}
	if v := get(t, c, "a", client.WithConsistency(client.Snapshot(first))); v != "1" {
		t.Fatalf("got %q", v)
	}
	if v := get(t, c, "a", client.WithConsistency(client.Stale(time.Second))); v != "2" {
		t.Fatalf("got %q", v)
	}
	r, err := c.CompareAndSwap(ctx, client.Swap{Key: []byte("a"), ExpectAbsent: true})
	if err != nil || r.Swapped || string(r.Current.Value) != "2" {
		t.Fatalf("got %+v, %v", r, err)
	}
	r, err = c.CompareAndSwap(ctx,
		client.Swap{Key: []byte("a"), Expected: []byte("2"), Value: []byte("3")})
	if err != nil || !r.Swapped || r.CommitTS <= second {
		t.Fatalf("got %+v, %v", r, err)
	}
	if _, err := c.Delete(ctx, []byte("a")); err != nil {
		t.Fatal(err)
	}
	if v := get(t, c, "a"); v != "-" {
		t.Fatalf("got %q", v)
	}
}

func TestRefusesNonsenseBeforeSending(t *testing.T) {
	cluster := clustertest.New(t, 1, 1)
	c := open(t, cluster, client.Options{})
	ctx, k := t.Context(), []byte("k")
	big := make([]byte, keys.MaxValueSizeBytes+1)
	for name, call := range map[string]func() error{
		"empty key": func() error { _, err := c.Put(ctx, nil, nil); return err },
		"long key": func() error {
			_, _, err := c.Get(ctx, make([]byte, keys.MaxKeySizeBytes+1))
			return err
		},
		"long value":   func() error { _, err := c.Put(ctx, k, big); return err },
		"TTL of a get": func() error { _, _, err := c.Get(ctx, k, client.WithTTL(time.Hour)); return err },
		"tiny TTL":     func() error { _, err := c.Put(ctx, k, nil, client.WithTTL(1)); return err },
		"limit of put": func() error { _, err := c.Put(ctx, k, nil, client.WithLimit(1)); return err },
		"snapshot at 0": func() error {
			_, _, err := c.Get(ctx, k, client.WithConsistency(client.Snapshot(0)))
			return err
		},
		"empty batch": func() error { _, err := c.BatchWrite(ctx, nil); return err },
		"huge batch": func() error {
			_, err := c.BatchWrite(ctx, make([]client.Mutation, keys.MaxEntryKeys+1))
			return err
		},
		"heavy batch": func() error {
			ms := make([]client.Mutation, 5)
			for i := range ms {
				ms[i] = client.Mutation{Key: k, Value: big[1:]}
			}
			_, err := c.BatchWrite(ctx, ms)
			return err
		},
		"empty span": func() error {
			_, err := c.DeleteRange(ctx, keys.Span{Start: k, End: k})
			return err
		},
	} {
		err := call()
		if errs.Class(err) != kvpb.ErrorClass_ERROR_CLASS_FAIL || client.IsUnknown(err) {
			t.Errorf("%s: got %v", name, err)
		}
	}
	if m, _ := cluster.Stores[0].Messages(); m != 0 {
		t.Errorf("%d messages were sent", m)
	}
}

func TestFollowsTheLeader(t *testing.T) {
	cluster := clustertest.New(t, 1, 3)
	c := open(t, cluster, client.Options{})
	put(t, c, "k", "1")
	for _, leader := range []uint64{2, 3, 1} {
		cluster.MoveLeader(1, leader)
		put(t, c, "k", fmt.Sprint(leader))
		if v := get(t, c, "k"); v != fmt.Sprint(leader) {
			t.Fatalf("got %q", v)
		}
	}
}

func TestFollowsSplitsAndMoves(t *testing.T) {
	cluster := clustertest.New(t, 1, 4)
	c := open(t, cluster, client.Options{})
	put(t, c, "z", "0")
	child := cluster.Split("m")
	put(t, c, "z", "1") // EpochMismatch with the current ranges
	calls := cluster.PDs[0].Calls.Load()
	put(t, c, "a", "1")
	if n := cluster.PDs[0].Calls.Load(); n != calls {
		t.Errorf("PD was asked %d times although the store told", n-calls)
	}
	cluster.MoveReplicas(child, 4)
	put(t, c, "z", "2") // RangeNotFound everywhere else
	if v, _ := cluster.Value("z"); v != "2" {
		t.Fatalf("got %q", v)
	}
	r, err := c.Route(t.Context(), []byte("z"))
	if err != nil || r.GetLeader().GetStoreId() != 4 {
		t.Fatalf("got %v, %v", r, err)
	}
}

// TestWaitsInTheGapAfterASplit: a store has told of the parent's new span and
// PD does not know the child yet. The call waits; it does not give up.
func TestWaitsInTheGapAfterASplit(t *testing.T) {
	cluster := clustertest.New(t, 1, 1)
	c := open(t, cluster, client.Options{})
	put(t, c, "z", "0")
	cluster.FreezeRoutes()
	cluster.Split("m")
	r, err := c.Route(t.Context(), []byte("a"))
	if err != nil {
		t.Fatal(err)
	}
	parent := proto.CloneOf(r.GetRange())
	parent.Span.End, parent.Epoch.Span = []byte("m"), parent.GetEpoch().GetSpan()+1
	var asked atomic.Int64
	cluster.Stores[0].Hook(func(*kvpb.Request) *clustertest.Script {
		if asked.Add(1) > 1 {
			return nil
		}
		return &clustertest.Script{Answer: errs.ToProto(errs.EpochMismatch{
			RangeID: r.GetRange().GetRangeId(), Current: []*metapb.Range{parent},
		})}
	})
	calls := cluster.PDs[0].Calls.Load()
	got := make(chan error, 1)
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() {
		_, _, err := c.Get(t.Context(), []byte("z"))
		got <- err
	})
	// Long after four questions, which were once all that were asked.
	for cluster.PDs[0].Calls.Load() < calls+8 {
		select {
		case err := <-got:
			t.Fatalf("gave up: %v", err)
		case <-time.After(time.Millisecond):
		}
	}
	cluster.ThawRoutes()
	if err := <-got; err != nil {
		t.Fatal(err)
	}
}

func TestWorksWithoutPDOnceItKnowsTheWay(t *testing.T) {
	cluster := clustertest.New(t, 1, 3)
	c := open(t, cluster, client.Options{})
	put(t, c, "k", "1")
	cluster.PDs[0].Kill()
	cluster.MoveLeader(1, 3)
	put(t, c, "k", "2")
	cluster.Split("j")
	put(t, c, "k", "3")
	put(t, c, "a", "1")
	if v := get(t, c, "k"); v != "3" {
		t.Fatalf("got %q", v)
	}
}

// A store is killed, and another one leads a moment later: nobody may wait two
// seconds, and no write that was answered may be lost.
func TestFailoverTakesLessThanTwoSeconds(t *testing.T) {
	cluster := clustertest.New(t, 1, 3)
	c := open(t, cluster, client.Options{})
	put(t, c, "k", "0")
	for _, how := range []string{"kill", "freeze"} {
		t.Run(how, func(t *testing.T) {
			_, leader := cluster.Leader("k")
			next := leader%3 + 1
			if how == "kill" {
				cluster.Store(leader).Kill()
				defer cluster.Store(leader).Start()
			} else {
				cluster.Store(leader).Freeze()
				defer cluster.Store(leader).Thaw()
			}
			time.AfterFunc(300*time.Millisecond, func() { cluster.MoveLeader(1, next) })
			began := time.Now()
			if v := get(t, c, "k"); v != "0" {
				t.Fatalf("got %q", v)
			}
			put(t, c, "other", "1")
			if d := time.Since(began); d > 2*time.Second {
				t.Errorf("unavailable for %v", d)
			}
		})
	}
}

// A frozen store holds at most the writes that were on their way to it.
func TestNothingNewIsSentToASilentStore(t *testing.T) {
	cluster := clustertest.New(t, 1, 3)
	c := open(t, cluster, client.Options{TryTimeout: 50 * time.Millisecond})
	put(t, c, "k", "0")
	cluster.Store(1).Freeze()
	ctx, cancel := context.WithTimeout(t.Context(), 400*time.Millisecond)
	defer cancel()
	if _, err := c.Put(ctx, []byte("k"), []byte("1")); !client.IsUnknown(err) {
		t.Fatalf("got %v", err)
	}
	ctx, cancel = context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	// It may end as unknown, if time is up while a follower is asked.
	if _, err := c.Put(ctx, []byte("k"), []byte("2")); err == nil {
		t.Fatal("it was written")
	}
	if n := cluster.Store(1).Arrivals("put"); n != 2 {
		t.Errorf("%d puts arrived, want the first and the unknown one", n)
	}
	cluster.Store(1).Thaw()
	put(t, c, "k", "3")
}

// A store that is starting or draining refuses streams: what was sent on one
// that it refused had no effect, and goes elsewhere.
func TestWritesLeaveAStoreThatRefusesStreams(t *testing.T) {
	cluster := clustertest.New(t, 1, 2)
	c := open(t, cluster, client.Options{})
	put(t, c, "k", "0")
	cluster.Store(1).Kill()
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if _, _, err := c.Get(ctx, []byte("k")); err == nil { // it notices the break
		t.Fatal("a dead store answered")
	}
	cluster.Store(1).RefuseStreams(errs.Unavailable{Part: "store"})
	cluster.Store(1).Start()
	time.AfterFunc(200*time.Millisecond, func() { cluster.MoveLeader(1, 2) })
	var wg sync.WaitGroup
	for i := range 50 {
		wg.Go(func() { put(t, c, fmt.Sprint(i), "1") })
	}
	wg.Wait()
	if n := cluster.Store(1).Arrivals("put"); n != 1 {
		t.Errorf("%d puts arrived at the store that refuses", n)
	}
}

func TestUnknownOutcomesAreNeverResent(t *testing.T) {
	unknown := errs.ToProto(errs.UnknownOutcome{RangeID: 1})
	odd := errs.ToProto(errs.Unavailable{Part: "quorum"})
	odd.Applied = kvpb.Applied_APPLIED_UNKNOWN
	for name, script := range map[string]clustertest.Script{
		"answered":                  {Answer: unknown},
		"another error, but unsure": {Answer: odd},
		"broken before":             {BreakBefore: true},
		"broken after":              {BreakAfter: true},
		"no answer":                 {Drop: true},
		"lost":                      {DropBefore: true},
	} {
		t.Run(name, func(t *testing.T) {
			cluster := clustertest.New(t, 1, 3)
			c := open(t, cluster, client.Options{TryTimeout: 50 * time.Millisecond})
			put(t, c, "k", "0")
			before := arrivals(cluster)
			cluster.Store(1).Hook(func(req *kvpb.Request) *clustertest.Script {
				if kind := clustertest.Kind(req); kind == "get" {
					return nil
				}
				return &script
			})
			calls := map[string]func(ctx context.Context) error{
				"put": func(ctx context.Context) error {
					_, err := c.Put(ctx, []byte("k"), []byte("1"))
					return err
				},
				"delete": func(ctx context.Context) error {
					_, err := c.Delete(ctx, []byte("k"))
					return err
				},
				"compare_and_swap": func(ctx context.Context) error {
					_, err := c.CompareAndSwap(ctx, client.Swap{Key: []byte("k")})
					return err
				},
				"batch_write": func(ctx context.Context) error {
					_, err := c.BatchWrite(ctx, []client.Mutation{{Key: []byte("k")}})
					return err
				},
				"bulk_write": func(ctx context.Context) error {
					r, err := c.BulkWrite(ctx, []client.Mutation{{Key: []byte("k")}})
					if len(r.Unknown) != 1 || r.Applied != 0 || len(r.Pending) != 0 {
						t.Errorf("bulk: got %+v", r)
					}
					return err
				},
				"delete_range": func(ctx context.Context) error {
					_, err := c.DeleteRange(ctx, keys.Prefix([]byte("k")))
					return err
				},
			}
			for op, call := range calls {
				clustertest.Eventually(t, func() bool {
					_, _, err := c.Get(t.Context(), []byte("k")) // a live stream
					return err == nil
				})
				ctx, cancel := context.WithTimeout(t.Context(), 150*time.Millisecond)
				if err := call(ctx); !client.IsUnknown(err) {
					t.Errorf("%s: got %v", op, err)
				}
				cancel()
				if n := arrivals(cluster)[op] - before[op]; n != 1 {
					t.Errorf("%s arrived %d times", op, n)
				}
			}
		})
	}
}

func arrivals(cluster *clustertest.Cluster) map[string]int {
	out := map[string]int{}
	for _, s := range cluster.Stores {
		for _, op := range []string{
			"put", "delete", "compare_and_swap", "batch_write", "bulk_write", "delete_range",
		} {
			out[op] += s.Arrivals(op)
		}
	}
	return out
}

// Reads are sent elsewhere when a stream breaks or hangs.
func TestReadsAreRetried(t *testing.T) {
	for name, script := range map[string]clustertest.Script{
		"broken":  {BreakBefore: true},
		"dropped": {DropBefore: true},
		"busy":    {Answer: errs.ToProto(errs.Busy{Reason: "range queue", RetryAfter: time.Millisecond})},
		"quorum":  {Answer: errs.ToProto(errs.Unavailable{Part: "quorum"})},
		"locked":  {Answer: errs.ToProto(errs.Locked{Key: []byte("k")})},
		"leader":  {Answer: errs.ToProto(errs.NotLeader{RangeID: 1})},
		"range":   {Answer: errs.ToProto(errs.RangeNotFound{RangeID: 1})},
		"epoch":   {Answer: errs.ToProto(errs.EpochMismatch{RangeID: 1})},
		"key":     {Answer: errs.ToProto(errs.KeyNotInRange{Key: []byte("k")})},
		"store":   {Answer: errs.ToProto(errs.StoreMismatch{Want: 1, Have: 2})},
	} {
		t.Run(name, func(t *testing.T) {
			cluster := clustertest.New(t, 1, 2)
			c := open(t, cluster, client.Options{TryTimeout: 50 * time.Millisecond})
			put(t, c, "k", "1")
			var once sync.Once
			cluster.Store(1).Hook(func(*kvpb.Request) (s *clustertest.Script) {
				once.Do(func() { s = &script })
				return s
			})
			if v := get(t, c, "k"); v != "1" {
				t.Fatalf("got %q", v)
			}
		})
	}
}

func TestFinalErrorsAreReturnedAtOnce(t *testing.T) {
	for _, want := range []error{
		errs.DiskFull{StoreID: 3},
		errs.TooLarge{What: "value", SizeBytes: 2, Limit: 1},
		errs.InvalidArgument{Field: "key", Reason: "odd"},
		errs.Conflict{CommitTS: 5},
		errs.TooOld{Requested: 1, Floor: 2},
		errs.ClusterMismatch{Want: 1, Have: 2},
	} {
		cluster := clustertest.New(t, 1, 1)
		c := open(t, cluster, client.Options{})
		cluster.Store(1).Hook(func(*kvpb.Request) *clustertest.Script {
			return &clustertest.Script{Answer: errs.ToProto(want)}
		})
		_, err := c.Put(t.Context(), []byte("k"), nil)
		if err == nil || !strings.HasSuffix(err.Error(), want.Error()) ||
			errs.Class(err) != errs.Class(want) {
			t.Errorf("got %v, want %v", err, want)
		}
		if n := cluster.Store(1).Arrivals("put"); n != 1 {
			t.Errorf("%v: %d puts arrived", want, n)
		}
	}
}

func TestTheFinalErrorSaysWhereTheTimeWent(t *testing.T) {
	cluster := clustertest.New(t, 1, 2)
	c := open(t, cluster, client.Options{Timeout: 400 * time.Millisecond})
	put(t, c, "k", "1")
	cluster.MoveLeader(1, 0)
	cluster.Store(2).Kill()
	_, _, err := c.Get(t.Context(), []byte("k"))
	if !errors.Is(err, context.DeadlineExceeded) || client.IsUnknown(err) ||
		!strings.Contains(err.Error(), "on range 1") || !strings.Contains(err.Error(), "ms spent: ") {
		t.Fatalf("got %v", err)
	}
	if _, ok := errors.AsType[errs.NotLeader](err); !ok {
		if !strings.Contains(err.Error(), "store 2") {
			t.Fatalf("the last error is lost: %v", err)
		}
	}
	t.Log(err)
}

func TestHeader(t *testing.T) {
	cluster := clustertest.New(t, 1, 1)
	c := open(t, cluster, client.Options{Forwarded: true})
	at := put(t, c, "k", "1")
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	if _, err := c.Put(ctx, []byte("k"), nil); err != nil {
		t.Fatal(err)
	}
	h := cluster.Store(1).LastHeader()
	if h.GetToken() != uint64(at) || !h.GetForwarded() || h.GetRangeId() != 1 ||
		h.GetSpanEpoch() != 1 || h.GetTimeoutMs() < 4000 || h.GetTimeoutMs() > 5000 {
		t.Fatalf("got %v", h)
	}
	// A session of one's own neither sees nor raises the client's.
	s := client.NewSession(7)
	if _, err := c.Put(ctx, []byte("k"), nil, client.WithSession(s)); err != nil {
		t.Fatal(err)
	}
	if h := cluster.Store(1).LastHeader(); h.GetToken() != 7 {
		t.Errorf("token %d", h.GetToken())
	}
	if s.Token() <= c.Session().Token() {
		t.Errorf("tokens %d, %d", s.Token(), c.Session().Token())
	}
}

func TestOpenFailsWithoutPD(t *testing.T) {
	cluster := clustertest.New(t, 1, 1)
	cluster.PDs[0].Kill()
	o := client.Options{PD: cluster.PDAddresses(), Timeout: 100 * time.Millisecond}
	if _, err := client.Open(t.Context(), o); err == nil {
		t.Fatal("it opened")
	}
	o.Lazy = true
	c, err := client.Open(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	cluster.PDs[0].Start()
	put(t, c, "k", "1")
	if err := (client.Options{Parallelism: -1}).Validate(); err == nil ||
		!strings.Contains(err.Error(), "no address") || !strings.Contains(err.Error(), "negative") {
		t.Errorf("got %v", err)
	}
}

func TestCloseEndsCalls(t *testing.T) {
	cluster := clustertest.New(t, 1, 1)
	c, err := client.Open(t.Context(), client.Options{PD: cluster.PDAddresses()})
	if err != nil {
		t.Fatal(err)
	}
	put(t, c, "k", "1")
	cluster.Store(1).Hook(func(*kvpb.Request) *clustertest.Script {
		return &clustertest.Script{Drop: true}
	})
	write, read := make(chan error, 1), make(chan error, 1)
	var wg sync.WaitGroup
	wg.Go(func() { _, err := c.Put(t.Context(), []byte("k"), nil); write <- err })
	wg.Go(func() { _, _, err := c.Get(t.Context(), []byte("k")); read <- err })
	clustertest.Eventually(t, func() bool {
		return cluster.Store(1).Arrivals("put") == 2 && cluster.Store(1).Arrivals("get") == 1
	})
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	wg.Wait()
	if err := <-write; !client.IsUnknown(err) {
		t.Errorf("put: got %v", err)
	}
	if err := <-read; !errors.Is(err, client.ErrClosed) {
		t.Errorf("get: got %v", err)
	}
	if _, err := c.Put(t.Context(), []byte("k"), nil); !errors.Is(err, client.ErrClosed) {
		t.Errorf("put: got %v", err)
	}
}
