package client

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"hash/maphash"
	"slices"
	"sync"
	"time"

	"github.com/ridgekv/ridge/client/internal/retry"
	"github.com/ridgekv/ridge/client/internal/route"
	"github.com/ridgekv/ridge/proto/errs"
	"github.com/ridgekv/ridge/proto/keys"
	kvpb "github.com/ridgekv/ridge/proto/ridge/kv/v1"
	"github.com/ridgekv/ridge/proto/ts"
)

// maxBatchGetKeys bounds the keys of one request. More are cut into several,
// which are then read at one timestamp.
const maxBatchGetKeys = 1024

// group is the part of a multi-key call that falls into one range. members are
// positions in the call, ascending.
type group struct {
	rt      *route.Route
	members []int
}

// groups cuts n keys by range. Positions for which skip is true are left out.
func (c *Client) groups(
	ctx context.Context, log *retry.Log, n int, key func(int) []byte, skip func(int) bool,
) ([]group, error) {
	var out []group
	index := map[uint64]int{}
	var last *route.Route
	for i := range n {
		if skip(i) {
			continue
		}
		if last == nil || !last.Span.Contains(key(i)) {
			rt, err := c.locate(ctx, log, key(i))
			if err != nil {
				return nil, err
			}
			last = rt
		}
		at, ok := index[last.RangeID]
		if !ok || out[at].rt != last {
			at = len(out)
			index[last.RangeID] = at
			out = append(out, group{rt: last})
		}
		out[at].members = append(out[at].members, i)
	}
	return out, nil
}

// parallel runs f for 0..n-1, at most Parallelism at the same time, and joins
// the errors. After an error none is started, but none is interrupted either:
// an interrupted write would have an unknown outcome.
func (c *Client) parallel(n int, f func(i int) error) error {
	if n == 1 {
		return f(0)
	}
	var wg sync.WaitGroup
	var mu sync.Mutex
	var faults []error
	next := 0
	for range min(n, c.o.Parallelism) {
		wg.Go(func() {
			for {
				mu.Lock()
				i := next
				next++
				stop := i >= n || len(faults) > 0
				mu.Unlock()
				if stop {
					return
				}
				if err := f(i); err != nil {
					mu.Lock()
					faults = append(faults, err)
					mu.Unlock()
				}
			}
		})
	}
	wg.Wait()
	return join(faults)
}

// join joins errors. If one of them is an unknown outcome, it is the only one
// whose type remains: a class of "not applied" must not hide it.
func join(faults []error) error {
	i := slices.IndexFunc(faults, IsUnknown)
	if i < 0 || len(faults) == 1 {
		return errors.Join(faults...)
	}
	others := slices.Delete(slices.Clone(faults), i, i+1)
	return fmt.Errorf("%w; also: %v", faults[i], errors.Join(others...))
}

// BatchGet returns the rows that exist, in the order of ks. Keys of one range
// are read at one moment; keys of several at one timestamp, which needs PD.
func (c *Client) BatchGet(
	ctx context.Context, ks [][]byte, opts ...Option,
) (rows []Row, err error) {
	began := time.Now()
	defer func() { c.metrics.done("batch get", began, err) }()
	ctx, cancel := c.bound(ctx)
	defer cancel()
	s, err := c.apply(opts, bitConsistency)
	if err == nil {
		b := batchGet{
			c: c, s: s, log: retry.NewLog(c.metrics.retried), limit: maxBatchGetKeys,
		}
		if err = b.collect(ks); err == nil {
			err = b.run(ctx)
		}
		if err == nil {
			rows = b.rows()
			err = b.checkSize(rowsSize(rows)) // a key may have been asked for twice
		}
		if err == nil {
			return rows, nil
		}
	}
	return nil, fmt.Errorf("client: batch get of %d keys: %w", len(ks), err)
}

// batchGet is one BatchGet. Each key is asked for once.
type batchGet struct {
	c   *Client
	s   settings
	log *retry.Log
	// keys are the different keys; asked tells for each key of the call which of
	// them it is.
	keys  [][]byte
	asked []int32
	done  []bool
	mu    sync.Mutex
	// found holds the row of each key, with a key if it exists; guarded by mu, as
	// are done, rest, size and limit.
	found []Row
	// rest is how many keys are not done.
	rest int
	// size is about what the rows found so far take.
	size int
	// limit is how many keys one request may have. It is halved when an answer
	// would be too large.
	limit int
}

// keySeed is for telling equal keys of a call.
var keySeed = maphash.MakeSeed()

func (b *batchGet) collect(ks [][]byte) error {
	b.keys = make([][]byte, 0, len(ks))
	b.asked = make([]int32, len(ks))
	seen := make(map[uint64]int32, len(ks))
	for i, k := range ks {
		if err := checkKey(k); err != nil {
			return err
		}
		h := maphash.Bytes(keySeed, k)
		at, taken := seen[h]
		for taken && !bytes.Equal(b.keys[at], k) {
			h++ // another key has this hash
			at, taken = seen[h]
		}
		if !taken {
			at = int32(len(b.keys))
			seen[h] = at
			b.keys = append(b.keys, k)
		}
		b.asked[i] = at
	}
	b.rest = len(b.keys)
	b.done, b.found = make([]bool, b.rest), make([]Row, b.rest)
	return nil
}

func (b *batchGet) run(ctx context.Context) error {
	for b.rest > 0 {
		groups, err := b.c.groups(ctx, b.log, len(b.keys),
			func(i int) []byte { return b.keys[i] }, func(i int) bool { return b.done[i] })
		if err != nil {
			return err
		}
		groups = cut(groups, b.limit)
		if len(groups) > 1 && b.s.consistency.level == linearizable {
			// Nothing has been read yet: a single group is all or nothing.
			at, err := b.c.freshTimestamp(ctx, b.s.session)
			if err != nil {
				return err
			}
			b.s.consistency = Snapshot(at)
		}
		if err := b.c.parallel(len(groups), func(i int) error {
			log := b.log
			if len(groups) > 1 {
				log = log.Fork()
			}
			return b.ask(ctx, log, groups[i])
		}); err != nil {
			return err
		}
	}
	return nil
}

// ask reads one group. A range that has changed leaves it for the next pass, as
// does an answer that would be too large.
func (b *batchGet) ask(ctx context.Context, log *retry.Log, g group) error {
	ks := make([][]byte, len(g.members))
	for i, m := range g.members {
		ks[i] = b.keys[m]
	}
	resp, err := b.c.toRange(ctx, log, g.rt, request{
		key: ks[0], session: b.s.session, anywhere: b.s.consistency.level == stale,
		build: func(h *kvpb.Header) *kvpb.Request {
			return &kvpb.Request{Body: &kvpb.Request_BatchGet{BatchGet: &kvpb.BatchGetRequest{
				Header: h, Keys: ks, Consistency: b.s.consistency.proto(),
			}}}
		},
	})
	b.mu.Lock()
	defer b.mu.Unlock()
	_, tooLarge := errors.AsType[errs.TooLarge](err)
	if tooLarge && len(ks) > 1 && b.c.o.MaxBatchGetBytes == 0 {
		b.limit = min(b.limit, (len(ks)+1)/2)
		return nil
	}
	if errors.Is(err, errMoved) {
		return nil
	}
	if err != nil {
		return err
	}
	// Rows come in the order of the keys.
	rows := resp.GetBatchGet().GetRows()
	for _, m := range g.members {
		b.done[m] = true
		if len(rows) > 0 && bytes.Equal(rows[0].GetKey(), b.keys[m]) {
			b.found[m] = toRow(rows[0])
			b.size += len(rows[0].GetKey()) + len(rows[0].GetValue())
			rows = rows[1:]
		}
	}
	b.rest -= len(g.members)
	if len(rows) > 0 {
		return errs.Unavailable{Part: "order of the rows of a batch get"}
	}
	return b.checkSize(b.size)
}

// checkSize refuses an answer of more bytes than this client may gather.
func (b *batchGet) checkSize(size int) error {
	if limit := b.c.o.MaxBatchGetBytes; limit > 0 && size > limit {
		return errs.TooLarge{
			What: "answer of a BatchGet", SizeBytes: uint64(size), Limit: uint64(limit),
		}
	}
	return nil
}

func rowsSize(rows []Row) int {
	size := 0
	for _, r := range rows {
		size += len(r.Key) + len(r.Value)
	}
	return size
}

func (b *batchGet) rows() []Row {
	out := make([]Row, 0, len(b.asked))
	for _, at := range b.asked {
		if r := &b.found[at]; r.Key != nil {
			out = append(out, *r)
		}
	}
	return out
}

// cut splits groups that are longer than limit.
func cut(groups []group, limit int) []group {
	var out []group
	for _, g := range groups {
		for len(g.members) > limit {
			out = append(out, group{rt: g.rt, members: g.members[:limit]})
			g.members = g.members[limit:]
		}
		out = append(out, g)
	}
	return out
}

// BatchWrite applies all mutations or none and returns their commit timestamp.
// They must fall into one range, and into one log entry: 4 MiB and 10,000
// keys. A batch over several ranges is refused; BulkWrite takes it, without
// the promise.
func (c *Client) BatchWrite(
	ctx context.Context, mutations []Mutation, opts ...Option,
) (at ts.Timestamp, err error) {
	began := time.Now()
	defer func() { c.metrics.done("batch write", began, err) }()
	ctx, cancel := c.bound(ctx)
	defer cancel()
	s, err := c.apply(opts, 0)
	if err == nil {
		err = checkBatch(mutations)
	}
	if err == nil {
		at, err = c.batchWrite(ctx, mutations, s)
	}
	if err != nil {
		return 0, fmt.Errorf("client: batch write of %d mutations: %w", len(mutations), err)
	}
	return at, nil
}

func (c *Client) batchWrite(
	ctx context.Context, mutations []Mutation, s settings,
) (ts.Timestamp, error) {
	log := retry.NewLog(c.metrics.retried)
	wire := protoMutations(len(mutations), func(i int) *Mutation { return &mutations[i] })
	for {
		groups, err := c.groups(ctx, log, len(mutations),
			func(i int) []byte { return mutations[i].Key }, func(int) bool { return false })
		if err != nil {
			return 0, err
		}
		if len(groups) > 1 {
			a, b := groups[0], groups[1]
			return 0, errs.InvalidArgument{Field: "mutations", Reason: fmt.Sprintf(
				"they are atomic only within one range, but %s lies in range %d and %s in range %d; "+
					"use BulkWrite if they need not be atomic",
				keys.Format(mutations[a.members[0]].Key), a.rt.RangeID,
				keys.Format(mutations[b.members[0]].Key), b.rt.RangeID)}
		}
		resp, err := c.toRange(ctx, log, groups[0].rt, request{
			key: mutations[0].Key, session: s.session, write: true,
			build: func(h *kvpb.Header) *kvpb.Request {
				return &kvpb.Request{Body: &kvpb.Request_BatchWrite{
					BatchWrite: &kvpb.BatchWriteRequest{Header: h, Mutations: wire},
				}}
			},
		})
		if !errors.Is(err, errMoved) {
			return ts.Timestamp(resp.GetBatchWrite().GetCommitTs()), err
		}
	}
}

func checkBatch(mutations []Mutation) error {
	if len(mutations) == 0 {
		return errs.InvalidArgument{Field: "mutations", Reason: "there are none"}
	}
	if len(mutations) > keys.MaxEntryKeys {
		return errs.TooLarge{
			What: "batch (keys)", SizeBytes: uint64(len(mutations)), Limit: keys.MaxEntryKeys,
		}
	}
	total := 0
	for _, m := range mutations {
		if err := m.check(); err != nil {
			return err
		}
		total += m.size()
	}
	if total > keys.MaxEntrySizeBytes {
		return errs.TooLarge{
			What: "batch", SizeBytes: uint64(total), Limit: keys.MaxEntrySizeBytes,
		}
	}
	return nil
}

func (m Mutation) check() error {
	if err := checkKey(m.Key); err != nil {
		return err
	}
	if m.Delete {
		return nil
	}
	if m.TTL < 0 || m.TTL > 0 && m.TTL < time.Millisecond {
		return errs.InvalidArgument{Field: "ttl", Reason: "it is below a millisecond"}
	}
	return checkValue(m.Value)
}

// size is about what m takes in a message and in the log.
func (m Mutation) size() int {
	const overhead = 32
	if m.Delete {
		return len(m.Key) + overhead
	}
	return len(m.Key) + len(m.Value) + overhead
}

// protoMutations makes n mutations in two pieces of memory.
func protoMutations(n int, at func(int) *Mutation) []*kvpb.Mutation {
	slab, out := make([]kvpb.Mutation, n), make([]*kvpb.Mutation, n)
	for i := range out {
		m, to := at(i), &slab[i]
		if to.Key, to.Delete = m.Key, m.Delete; !m.Delete {
			to.Value, to.TtlMs = m.Value, millis(m.TTL)
		}
		out[i] = to
	}
	return out
}
