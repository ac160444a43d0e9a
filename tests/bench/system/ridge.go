package system

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/ridgekv/ridge/client"
	"github.com/ridgekv/ridge/proto/keys"
	"github.com/ridgekv/ridge/tests/harness"
)

// Ridge is three stores and one placement driver, settings as shipped: the
// Raft logs are fsynced, and a store's budget is the default of 1 GB.
type Ridge struct {
	// Binary is the ridge binary.
	Binary string
	// Splits are the first keys of all ranges but one.
	Splits []string
	// StoreFlags are added to the stores' command lines.
	StoreFlags []string

	cluster *harness.Cluster
}

// Start implements System. The cluster is started anew once it has its ranges:
// then every range elects its leader by itself, as after a power cut, instead of
// all of them sitting where the first one was split.
func (r *Ridge) Start(ctx context.Context, dir string) (err error) {
	r.cluster, err = harness.Start(ctx, harness.Options{
		Dir: dir, Binary: r.Binary, Memory: "1GB", StoreFlags: r.StoreFlags,
	})
	if err != nil {
		return fmt.Errorf("%w\n%s", err, r.lastWords())
	}
	if err := r.split(ctx); err != nil {
		return err
	}
	const tries = 4
	for range tries {
		if err := r.cluster.RestartAll(ctx); err != nil {
			return err
		}
		if err := r.cluster.AwaitReplicated(ctx); err != nil {
			return err
		}
		leaders, err := r.Leaders(ctx)
		if err != nil || r.spread(leaders) {
			return err
		}
	}
	return nil // the report tells where the leaders are
}

func (r *Ridge) lastWords() string {
	text := ""
	for _, p := range r.cluster.Processes() {
		if out := p.Output(); !p.Running() {
			text += p.Name + ": " + out[max(0, len(out)-2000):] + "\n"
		}
	}
	return text
}

// split splits from the middle outwards, so that splits run side by side.
func (r *Ridge) split(ctx context.Context) error {
	faults := make([]error, len(r.Splits))
	var halve func(low, high int)
	halve = func(low, high int) {
		if low >= high {
			return
		}
		middle := (low + high) / 2
		if faults[middle] = r.cluster.Split(ctx, []byte(r.Splits[middle])); faults[middle] != nil {
			return
		}
		var wg sync.WaitGroup
		wg.Go(func() { halve(low, middle) })
		wg.Go(func() { halve(middle+1, high) })
		wg.Wait()
	}
	halve(0, len(r.Splits))
	return errors.Join(errors.Join(faults...), r.cluster.AwaitReplicated(ctx))
}

// spread reports whether no store leads more than its share and a quarter of
// all ranges.
func (r *Ridge) spread(leaders []int) bool {
	for _, n := range leaders {
		all := len(r.Splits) + 1
		if n > (all+2)/3+all/6 {
			return false
		}
	}
	return true
}

// Leaders is how many ranges each store leads.
func (r *Ridge) Leaders(ctx context.Context) ([]int, error) {
	routes, err := r.cluster.Routes(ctx)
	if err != nil {
		return nil, err
	}
	counts := make([]int, len(r.cluster.Stores))
	for _, route := range routes {
		id := int(route.GetLeader().GetStoreId())
		if id < 1 || id > len(counts) {
			continue
		}
		counts[id-1]++
	}
	return counts, nil
}

// Open implements System. One client is enough for a process.
func (r *Ridge) Open(ctx context.Context) (Conn, error) {
	var addresses []string
	for _, p := range r.cluster.PDs {
		addresses = append(addresses, p.GRPC)
	}
	c, err := client.Open(ctx, client.Options{PD: addresses})
	if err != nil {
		return nil, err
	}
	return ridgeConn{c}, nil
}

// Processes implements System.
func (r *Ridge) Processes() []*harness.Process {
	if r.cluster == nil {
		return nil
	}
	return r.cluster.Processes()
}

// Close implements System.
func (r *Ridge) Close() error {
	if r.cluster == nil {
		return nil
	}
	return r.cluster.Close()
}

type ridgeConn struct{ client *client.Client }

func (c ridgeConn) Caller(int) Caller { return ridgeCaller{c.client} }

func (c ridgeConn) Load(ctx context.Context, rows []Row) error {
	const batch, callers = 4000, 4
	return inParallel(ctx, rows, batch, callers,
		func(ctx context.Context, _ int, rows []Row) error {
			return ridgeCaller(c).PutMany(ctx, rows)
		})
}

func (c ridgeConn) Close() error { return c.client.Close() }

type ridgeCaller struct{ client *client.Client }

func (c ridgeCaller) Get(ctx context.Context, key string) ([]byte, error) {
	row, found, err := c.client.Get(ctx, []byte(key))
	if err == nil && !found {
		err = errMissing
	}
	return row.Value, err
}

func (c ridgeCaller) Put(ctx context.Context, key string, value []byte) error {
	_, err := c.client.Put(ctx, []byte(key), value)
	return err
}

func (c ridgeCaller) Scan(ctx context.Context, start, end string, limit int) ([]Row, error) {
	span := keys.Span{Start: []byte(start), End: []byte(end)}
	rows := make([]Row, 0, limit)
	for row, err := range c.client.Scan(ctx, span, client.WithLimit(limit)) {
		if err != nil {
			return nil, err
		}
		rows = append(rows, Row{Key: string(row.Key), Value: row.Value})
	}
	return rows, nil
}

// GetMany implements Batcher.
func (c ridgeCaller) GetMany(ctx context.Context, wanted []string) (int, error) {
	ks := make([][]byte, len(wanted))
	for i, key := range wanted {
		ks[i] = []byte(key)
	}
	rows, err := c.client.BatchGet(ctx, ks)
	return len(rows), err
}

// PutMany implements Batcher.
func (c ridgeCaller) PutMany(ctx context.Context, rows []Row) error {
	mutations := make([]client.Mutation, len(rows))
	for i, row := range rows {
		mutations[i] = client.Mutation{Key: []byte(row.Key), Value: row.Value}
	}
	_, err := c.client.BulkWrite(ctx, mutations)
	return err
}
