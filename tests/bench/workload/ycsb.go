package workload

import (
	"context"
	"fmt"
	"os"
	"strconv"
	"time"

	"github.com/magiconair/properties"
	_ "github.com/pingcap/go-ycsb/pkg/workload" // registers "core"
	"github.com/pingcap/go-ycsb/pkg/ycsb"

	"github.com/ridgekv/ridge/tests/bench/system"
)

// YCSB is go-ycsb's core workload, one field of 128 bytes in each row, which is
// stored as it is.
type YCSB struct {
	rows *Rows
	core ycsb.Workload
}

// mixes are the proportions of the standard workloads.
var mixes = map[string]map[string]string{
	// How fast is a session store: half reads, half updates?
	"a": {"readproportion": "0.5", "updateproportion": "0.5"},
	// How fast is a page of tags: reads with a few updates?
	"b": {"readproportion": "0.95", "updateproportion": "0.05"},
	// How fast is a threaded conversation: scans of 1 to 100 rows, a few inserts?
	"e": {
		"readproportion": "0", "updateproportion": "0", "scanproportion": "0.95",
		"insertproportion": "0.05", "maxscanlength": "100", "scanlengthdistribution": "uniform",
	},
}

// NewYCSB returns workload "a", "b" or "e" over rows; distribution is go-ycsb's
// requestdistribution.
func NewYCSB(name, distribution string, rows *Rows) (*YCSB, error) {
	mix, known := mixes[name]
	if !known {
		return nil, fmt.Errorf("no workload %q", name)
	}
	p := properties.LoadMap(map[string]string{
		"recordcount": strconv.Itoa(rows.Len()), "fieldcount": "1",
		"fieldlength": strconv.Itoa(ValueBytes), "zeropadding": strconv.Itoa(keyDigits),
		"requestdistribution": distribution,
	})
	for k, v := range mix {
		p.MustSet(k, v)
	}
	core, err := create(p)
	if err != nil {
		return nil, fmt.Errorf("go-ycsb: %w", err)
	}
	return &YCSB{rows: rows, core: core}, nil
}

// create makes the core workload. It tells standard output what it has made, by
// a bare Println; ours is for the report.
func create(p *properties.Properties) (ycsb.Workload, error) {
	nowhere, err := os.OpenFile(os.DevNull, os.O_WRONLY, 0)
	if err != nil {
		return nil, err
	}
	defer nowhere.Close()
	out := os.Stdout
	os.Stdout = nowhere
	defer func() { os.Stdout = out }()
	return ycsb.GetWorkloadCreator("core").Create(p)
}

// Caller implements Workload.
func (w *YCSB) Caller(ctx context.Context, n int, c system.Caller, r *Recorder) func() {
	ctx = w.core.InitThread(ctx, n, 0)
	b := &binding{n: n, caller: c, recorder: r, rows: w.rows}
	// Its error was noted by the binding.
	return func() { _ = w.core.DoTransaction(ctx, b) }
}

// binding is a system as go-ycsb sees it, for one caller.
type binding struct {
	n        int
	caller   system.Caller
	recorder *Recorder
	rows     *Rows
}

const field = "field0"

var _ ycsb.DB = (*binding)(nil)

func (b *binding) Close() error                                             { return nil }
func (b *binding) InitThread(ctx context.Context, _, _ int) context.Context { return ctx }
func (b *binding) CleanupThread(context.Context)                            {}

// Read implements ycsb.DB.
func (b *binding) Read(
	ctx context.Context, _, key string, _ []string,
) (map[string][]byte, error) {
	began := time.Now()
	value, err := b.caller.Get(ctx, key)
	err = orWrongLength(value, err)
	b.recorder.Observe(b.n, "read", began, err)
	return map[string][]byte{field: value}, err
}

// Scan implements ycsb.DB. The end is where the limit will have been reached,
// whatever was inserted meanwhile.
func (b *binding) Scan(
	ctx context.Context, _, start string, count int, _ []string,
) ([]map[string][]byte, error) {
	from := b.rows.Rank(start)
	count = min(count, b.rows.Len()-from)
	end := "v" // after the last "user"
	if from+count < b.rows.Len() {
		end = b.rows.Sorted(from + count)
	}
	began := time.Now()
	rows, err := b.caller.Scan(ctx, start, end, count)
	if err == nil && len(rows) != count {
		err = fmt.Errorf("a scan gave %d rows, not %d", len(rows), count)
	}
	b.recorder.Observe(b.n, "scan", began, err)
	out := make([]map[string][]byte, len(rows))
	for i, row := range rows {
		out[i] = map[string][]byte{field: row.Value}
	}
	return out, err
}

// Update implements ycsb.DB.
func (b *binding) Update(ctx context.Context, _, key string, v map[string][]byte) error {
	return b.put(ctx, "update", key, v)
}

// Insert implements ycsb.DB.
func (b *binding) Insert(ctx context.Context, _, key string, v map[string][]byte) error {
	return b.put(ctx, "insert", key, v)
}

func (b *binding) put(ctx context.Context, kind, key string, v map[string][]byte) error {
	began := time.Now()
	err := b.caller.Put(ctx, key, v[field])
	b.recorder.Observe(b.n, kind, began, err)
	return err
}

// Delete implements ycsb.DB; the core workload has none.
func (b *binding) Delete(context.Context, string, string) error { return system.ErrUnsupported }
