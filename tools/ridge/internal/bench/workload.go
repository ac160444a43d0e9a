package bench

import (
	"fmt"
	"math/rand/v2"
	"strings"

	"github.com/ridgekv/ridge/client"
)

// Kind is a kind of operation.
type Kind int

// The kinds of operations.
const (
	Read Kind = iota
	Update
	Insert
	Scan
	ReadModifyWrite
	BatchRead
	BatchWrite
	Load
	kinds
)

var kindNames = [kinds]string{
	"read", "update", "insert", "scan", "read_modify_write", "batch_read", "batch_write", "load",
}

func (k Kind) String() string { return kindNames[k] }

// share is how many in a hundred operations are of a kind.
type share struct {
	kind    Kind
	percent int
}

// workload is a mix of operations.
type workload struct {
	name, about  string
	distribution string
	mix          []share
	// anyLength lets scans have any length up to the one configured.
	anyLength bool
	// hot draws from the first HotKeys keys only.
	hot bool
}

// LoadWorkload writes every key once, in order of their indexes.
const LoadWorkload = "load"

var workloads = []workload{
	{
		name: "a", about: "YCSB A: half reads, half updates",
		distribution: zipfian, mix: []share{{Read, 50}, {Update, 50}},
	},
	{
		name: "b", about: "YCSB B: 95 % reads, 5 % updates",
		distribution: zipfian, mix: []share{{Read, 95}, {Update, 5}},
	},
	{
		name: "c", about: "YCSB C: reads",
		distribution: zipfian, mix: []share{{Read, 100}},
	},
	{
		name: "d", about: "YCSB D: 95 % reads of the newest, 5 % inserts",
		distribution: latest, mix: []share{{Read, 95}, {Insert, 5}},
	},
	{
		name: "e", about: "YCSB E: 95 % scans of 1 to --scan-length rows, 5 % inserts",
		distribution: zipfian, mix: []share{{Scan, 95}, {Insert, 5}}, anyLength: true,
	},
	{
		name: "f", about: "YCSB F: half reads, half get and compare-and-swap until it succeeds",
		distribution: zipfian, mix: []share{{Read, 50}, {ReadModifyWrite, 50}},
	},
	{
		name: "read", about: "single gets",
		distribution: uniform, mix: []share{{Read, 100}},
	},
	{
		name: "write", about: "single puts of existing keys",
		distribution: uniform, mix: []share{{Update, 100}},
	},
	{
		name: "scan", about: "scans of --scan-length rows",
		distribution: uniform, mix: []share{{Scan, 100}},
	},
	{
		name: "batch", about: "half BatchGets, half BulkWrites of --batch-size keys, all over",
		distribution: uniform, mix: []share{{BatchRead, 50}, {BatchWrite, 50}},
	},
	{
		name: "batch-read", about: "BatchGets of --batch-size keys",
		distribution: uniform, mix: []share{{BatchRead, 100}},
	},
	{
		name: "batch-write", about: "BulkWrites of --batch-size keys",
		distribution: uniform, mix: []share{{BatchWrite, 100}},
	},
	{
		name: "hot", about: "half reads, half updates of the same --hot-keys keys",
		distribution: uniform, mix: []share{{Read, 50}, {Update, 50}}, hot: true,
	},
}

// Workloads lists the names of the workloads of a run.
func Workloads() []string {
	var out []string
	for _, w := range workloads {
		out = append(out, w.name)
	}
	return out
}

// Describe explains the workloads, one a line.
func Describe() string {
	var b strings.Builder
	for _, w := range workloads {
		fmt.Fprintf(&b, "  %-12s %s; %s\n", w.name, w.about, w.distribution)
	}
	return b.String()
}

func find(name string) (workload, bool) {
	if name == LoadWorkload {
		return workload{name: name, distribution: uniform, mix: []share{{Load, 100}}}, true
	}
	name = strings.TrimPrefix(strings.ToLower(name), "ycsb-")
	for _, w := range workloads {
		if w.name == name {
			return w, true
		}
	}
	return workload{}, false
}

func (w workload) batches() bool {
	for _, s := range w.mix {
		if s.kind == BatchRead || s.kind == BatchWrite || s.kind == Load {
			return true
		}
	}
	return false
}

// Reads reports whether the workload needs rows that are there.
func (c Config) Reads() bool {
	w, _ := find(c.Workload)
	for _, s := range w.mix {
		if s.kind == Read || s.kind == Scan || s.kind == ReadModifyWrite || s.kind == BatchRead {
			return true
		}
	}
	return false
}

// Operation is what a target is asked to do. It belongs to one caller, which
// uses it again when the target has returned.
type Operation struct {
	Kind       Kind
	Key, Value []byte
	// Limit is the number of rows of a scan.
	Limit int
	// Keys are those of a BatchRead, Mutations those of a BatchWrite or a Load.
	Keys      [][]byte
	Mutations []client.Mutation

	// index is the key of an insert.
	index int64
	// options are scratch space of the target.
	options []client.Option
}

// plan is what all callers of a run draw from. It is immutable but for its
// atomics.
type plan struct {
	workload
	c        Config
	keys     keyspace
	draw     *drawer
	inserted *frontier
	// noise is random, and so does not compress; every value is a part of it.
	noise []byte
}

// noiseSize is small enough to stay in a cache of the processor's, and large
// enough that values differ.
const noiseSize = 1 << 17

func newPlan(c Config) *plan {
	w, _ := find(c.Workload)
	p := &plan{workload: w, c: c, keys: keyspace{[]byte(c.Prefix)}}
	n := c.Keys
	if w.hot {
		n = c.HotKeys
	}
	p.inserted = newFrontier(c.Keys)
	if w.name == LoadWorkload {
		p.inserted = newFrontier(0)
	}
	p.draw = newDrawer(c.distribution(), n, p.inserted)
	p.noise = make([]byte, noiseSize+c.ValueSize)
	r := rand.New(rand.NewPCG(c.Seed, 0))
	for i := range p.noise {
		p.noise[i] = byte(r.Uint32())
	}
	return p
}

// source is one caller's part of the plan.
type source struct {
	*plan
	r *rand.Rand
	// arena holds the keys of the operation.
	arena []byte
}

func (p *plan) source(caller int) *source {
	per := len(p.keys.prefix) + hashDigits
	n := 1
	if p.batches() {
		n = p.c.BatchSize
	}
	return &source{
		plan: p, r: rand.New(rand.NewPCG(p.c.Seed, uint64(caller)+1)), arena: make([]byte, 0, n*per),
	}
}

// next draws an operation. It is false when there is nothing left to load.
func (s *source) next(op *Operation) bool {
	op.Kind = s.kind()
	s.arena = s.arena[:0]
	switch op.Kind {
	case Insert:
		op.index = s.inserted.take()
		op.Key, op.Value = s.key(op.index), s.value()
	case Update, ReadModifyWrite:
		op.Key, op.Value = s.key(s.draw.draw(s.r)), s.value()
	case Scan:
		op.Key, op.Limit = s.key(s.draw.draw(s.r)), s.c.ScanLength
		if s.anyLength {
			op.Limit = 1 + s.r.IntN(s.c.ScanLength)
		}
	case BatchRead:
		op.Keys, op.Mutations = op.Keys[:0], op.Mutations[:0]
		for range s.c.BatchSize {
			op.Keys = append(op.Keys, s.key(s.draw.draw(s.r)))
		}
	case BatchWrite:
		op.Keys, op.Mutations = op.Keys[:0], op.Mutations[:0]
		for range s.c.BatchSize {
			op.Mutations = append(op.Mutations,
				client.Mutation{Key: s.key(s.draw.draw(s.r)), Value: s.value()})
		}
	case Load:
		return s.nextLoad(op)
	default:
		op.Key = s.key(s.draw.draw(s.r))
	}
	return true
}

func (s *source) nextLoad(op *Operation) bool {
	n := int64(s.c.BatchSize)
	end := s.inserted.next.Add(n)
	op.Mutations = op.Mutations[:0]
	for i := end - n; i < min(end, s.c.Keys); i++ {
		op.Mutations = append(op.Mutations, client.Mutation{Key: s.key(i), Value: s.value()})
	}
	return len(op.Mutations) > 0
}

func (s *source) kind() Kind {
	if len(s.mix) == 1 {
		return s.mix[0].kind
	}
	at := s.r.IntN(100)
	for _, m := range s.mix[1:] {
		if at < m.percent {
			return m.kind
		}
		at -= m.percent
	}
	return s.mix[0].kind
}

// key writes a key behind those that the operation has already.
func (s *source) key(index int64) []byte {
	from := len(s.arena)
	s.arena = s.keys.append(s.arena, index)
	return s.arena[from:len(s.arena):len(s.arena)]
}

func (s *source) value() []byte {
	at := s.r.IntN(noiseSize)
	return s.noise[at : at+s.c.ValueSize : at+s.c.ValueSize]
}
