package bench

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync/atomic"
	"time"

	"github.com/ridgekv/ridge/client"
	"github.com/ridgekv/ridge/proto/keys"
)

// snapshotEvery is how often snapshot reads take a new timestamp. They share
// it: a timestamp for each would measure PD.
const snapshotEvery = time.Second

// maxSwaps is how often a read-modify-write tries before it gives up.
const maxSwaps = 10_000

var errSwapsLost = fmt.Errorf("bench: %d compare-and-swaps in a row were lost", maxSwaps)

// Cluster is the target that users have: a cluster, through the smart client.
type Cluster struct {
	// Writes brings a batch of Load into the cluster, trying again what was not
	// applied.
	Writes func(ctx context.Context, mutations []client.Mutation) error

	kv   *client.Client
	c    Config
	end  []byte
	read atomic.Pointer[client.Option]
}

// NewCluster returns a target. Run must be running while it is used.
func NewCluster(ctx context.Context, kv *client.Client, c Config) (*Cluster, error) {
	t := &Cluster{kv: kv, c: c, end: keys.PrefixEnd([]byte(c.Prefix))}
	return t, t.refresh(ctx)
}

// Run keeps the timestamp of snapshot reads fresh until ctx ends. Without it
// they go on at the old one, so an error is no reason to stop.
func (t *Cluster) Run(ctx context.Context) {
	if t.c.Consistency != "snapshot" {
		return
	}
	ticker := time.NewTicker(snapshotEvery)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
			_ = t.refresh(ctx)
		}
	}
}

// refresh makes the option of reads.
func (t *Cluster) refresh(ctx context.Context) error {
	level := client.Linearizable()
	switch t.c.Consistency {
	case "stale":
		level = client.Stale(t.c.Staleness)
	case "snapshot":
		at, err := t.kv.Timestamp(ctx)
		if err != nil {
			return fmt.Errorf("bench: %w", err)
		}
		level = client.Snapshot(at)
	}
	o := client.WithConsistency(level)
	t.read.Store(&o)
	return nil
}

// Do does one operation.
func (t *Cluster) Do(ctx context.Context, op *Operation) (Outcome, error) {
	switch op.Kind {
	case Read:
		_, found, err := t.kv.Get(ctx, op.Key, t.reading(op)...)
		return found1(found), err
	case Update, Insert:
		_, err := t.kv.Put(ctx, op.Key, op.Value)
		return Outcome{Rows: 1}, err
	case Scan:
		return t.scan(ctx, op)
	case ReadModifyWrite:
		return t.modify(ctx, op)
	case BatchRead:
		rows, err := t.kv.BatchGet(ctx, op.Keys, t.reading(op)...)
		return Outcome{Rows: len(rows), Missing: len(op.Keys) - len(rows)}, err
	case BatchWrite:
		_, err := t.kv.BulkWrite(ctx, op.Mutations)
		return Outcome{Rows: len(op.Mutations)}, err
	case Load:
		return Outcome{Rows: len(op.Mutations)}, t.Writes(ctx, op.Mutations)
	}
	panic(fmt.Sprintf("bench: operation of kind %d", op.Kind))
}

func found1(found bool) Outcome {
	if found {
		return Outcome{Rows: 1}
	}
	return Outcome{Missing: 1}
}

// reading returns the options of a read, in the operation's scratch space.
func (t *Cluster) reading(op *Operation, more ...client.Option) []client.Option {
	op.options = append(op.options[:0], *t.read.Load())
	return append(op.options, more...)
}

func (t *Cluster) scan(ctx context.Context, op *Operation) (Outcome, error) {
	var out Outcome
	span := keys.Span{Start: op.Key, End: t.end}
	pages := t.kv.ScanPages(ctx, span, false, t.reading(op, client.WithLimit(op.Limit))...)
	for page, err := range pages {
		if err != nil {
			return out, err
		}
		out.Rows += len(page.Rows)
	}
	return out, nil
}

// modify reads a row and replaces what it read, until nobody was faster.
func (t *Cluster) modify(ctx context.Context, op *Operation) (Outcome, error) {
	row, found, err := t.kv.Get(ctx, op.Key)
	if err != nil {
		return Outcome{}, err
	}
	out := found1(found)
	for range maxSwaps {
		r, err := t.kv.CompareAndSwap(ctx, client.Swap{
			Key: op.Key, ExpectAbsent: !found, Expected: row.Value, Value: op.Value,
		})
		if err != nil {
			return out, err
		}
		if r.Swapped {
			return out, nil
		}
		out.Retries++
		row, found = r.Current, r.Found
	}
	return out, errSwapsLost
}

// ErrNotLoaded tells that a run would read keys that are not there.
var ErrNotLoaded = errors.New("bench: the keys are not there")

// Check looks at some keys before a run that reads.
func (t *Cluster) Check(ctx context.Context) error {
	const sample = 64
	space := keyspace{[]byte(t.c.Prefix)}
	r := rand.New(rand.NewPCG(t.c.Seed, 1))
	ks := [][]byte{space.append(nil, 0), space.append(nil, t.c.Keys-1)}
	for len(ks) < sample {
		ks = append(ks, space.append(nil, r.Int64N(t.c.Keys)))
	}
	rows, err := t.kv.BatchGet(ctx, ks)
	if err != nil {
		return fmt.Errorf("bench: look at some keys: %w", err)
	}
	if n := len(ks) - len(rows); n > 0 {
		return fmt.Errorf("%w: %d of %d that were looked at are missing; fill them in with "+
			"`ridge bench load --keys %d --prefix %q`", ErrNotLoaded, n, len(ks), t.c.Keys, t.c.Prefix)
	}
	return nil
}
