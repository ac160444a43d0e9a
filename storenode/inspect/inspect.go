// Package inspect lists what is in the directory of a store that does not run.
// Law: the directory is only read; what must be opened is a copy.
package inspect

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"text/tabwriter"

	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"

	"github.com/ridgekv/ridge/proto/keys"
	logpb "github.com/ridgekv/ridge/proto/ridge/log/v1"
	"github.com/ridgekv/ridge/storenode/internal/catalog"
	"github.com/ridgekv/ridge/storenode/internal/engine"
	"github.com/ridgekv/ridge/storenode/internal/raft/logstore"
)

// ErrInUse: a store runs on the directory. Ask the store itself.
var ErrInUse = errors.New("inspect: a store is running on this directory")

// Report is what a directory holds.
type Report struct {
	// Ident is nil when the store never joined a cluster.
	Ident *logpb.StoreIdent
	// Seq is the newest commit that survives opening.
	Seq    uint64
	Ranges []Range
	// Garbage are the slices that await deletion.
	Garbage []engine.GarbageSlice
	// Levels are the tables of the LSM tree.
	Levels []engine.Level
	// LogFilled: the Raft log's directory holds something.
	LogFilled bool
	// Logs are the replicas of which the Raft log holds anything. Only of Ridge's
	// own log, not of Dragonboat's.
	Logs []logstore.Owner
	// Rows counts the live rows of all extents; Orphans are those of them that lie
	// in no slice. Shared are pairs of slices that overlap. By Law 2 there is
	// neither of both.
	Rows, Orphans uint64
	Shared        []string
}

// Range is one replica on the disk.
type Range struct {
	State   *logpb.RangeState
	Applied catalog.Applied
}

// Directory reads the store in dir.
func Directory(dir string) (*Report, error) {
	data := filepath.Join(dir, "engine")
	if _, err := os.Stat(data); err != nil {
		return nil, fmt.Errorf("inspect: %w", err)
	}
	unlock, err := lock(data)
	if err != nil {
		return nil, err
	}
	defer unlock()
	// Inside dir, so that tables can be linked instead of copied.
	scratch, err := os.MkdirTemp(dir, "inspect-*")
	if err != nil {
		return nil, fmt.Errorf("inspect: %w", err)
	}
	defer os.RemoveAll(scratch)
	memTable, err := clone(data, scratch)
	if err != nil {
		return nil, fmt.Errorf("inspect: copy: %w", err)
	}
	e, err := engine.Open(engine.Options{Dir: scratch, MemTableSizeBytes: max(memTable, 64<<20)})
	if err != nil {
		return nil, fmt.Errorf("inspect: %w", err)
	}
	r, err := read(e)
	if err := errors.Join(err, e.Close()); err != nil {
		return nil, fmt.Errorf("inspect: %w", err)
	}
	entries, err := os.ReadDir(filepath.Join(dir, "log"))
	r.LogFilled = err == nil && len(entries) > 0
	logs, err := filepath.Glob(filepath.Join(dir, "log", "*", "*", "raftlog"))
	if err != nil {
		return nil, fmt.Errorf("inspect: %w", err)
	}
	for _, path := range logs {
		of, err := logstore.List(path)
		if err != nil {
			return nil, fmt.Errorf("inspect: %w", err)
		}
		r.Logs = append(r.Logs, of...)
	}
	return r, nil
}

func read(e *engine.Engine) (*Report, error) {
	r := &Report{Seq: uint64(e.Visible()), Garbage: e.Garbage(), Levels: e.Levels()}
	b, ok, err := e.Store("ident")
	if err != nil {
		return nil, err
	}
	if ok {
		r.Ident = &logpb.StoreIdent{}
		if len(b) == 0 || b[0] != 1 || proto.Unmarshal(b[1:], r.Ident) != nil {
			return nil, errors.New("the identity has an unknown format")
		}
	}
	c, err := catalog.Load(e)
	if err != nil {
		return nil, err
	}
	for _, x := range c.Replicas() {
		state, applied := x.Both()
		r.Ranges = append(r.Ranges, Range{State: state.PB(), Applied: applied})
	}
	return r, r.audit(e, c)
}

// owned is a slice and who it belongs to.
type owned struct {
	slice engine.Slice
	owner string
}

// audit counts the rows and holds them against the slices.
func (r *Report) audit(e *engine.Engine, c *catalog.Catalog) error {
	var all []owned
	for _, x := range c.Replicas() {
		for _, s := range x.State().Slices() {
			all = append(all, owned{s, fmt.Sprintf("range %d", x.RangeID())})
		}
	}
	for _, g := range r.Garbage {
		all = append(all, owned{g.Slice, "garbage"})
	}
	for i, a := range all {
		for _, b := range all[:i] {
			if a.slice.Extent == b.slice.Extent && a.slice.Span.Overlaps(b.slice.Span) {
				r.Shared = append(r.Shared, fmt.Sprintf("%s and %s share extent %d: %s and %s", b.owner,
					a.owner, a.slice.Extent, b.slice.Span, a.slice.Span))
			}
		}
	}
	for extent := engine.Extent(1); extent <= e.NewestExtent(); extent++ {
		whole := engine.Slice{Extent: extent, Span: keys.All()}
		for row, err := range e.View().Scan(engine.ScanOptions{
			Slices: []engine.Slice{whole}, Span: whole.Span, KeysOnly: true,
		}) {
			if err != nil {
				return err
			}
			r.Rows++
			if !slices.ContainsFunc(all, func(o owned) bool {
				return o.slice.Extent == extent && o.slice.Span.Contains(row.Key)
			}) {
				r.Orphans++
			}
		}
	}
	return nil
}

// lock keeps a store from starting while its files are copied.
func lock(data string) (unlock func(), err error) {
	f, err := os.Open(filepath.Join(data, "RIDGE_LOCK"))
	if errors.Is(err, os.ErrNotExist) {
		return func() {}, nil
	}
	if err != nil {
		return nil, fmt.Errorf("inspect: %w", err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_SH|unix.LOCK_NB); err != nil {
		_ = f.Close()
		return nil, ErrInUse
	}
	return func() { _ = f.Close() }, nil
}

// clone links the tables, which never change, and copies the rest. It returns
// the size of the largest memtable file.
func clone(from, to string) (memTable int64, err error) {
	entries, err := os.ReadDir(from)
	if err != nil {
		return 0, err
	}
	for _, entry := range entries {
		name := entry.Name()
		if !entry.Type().IsRegular() || name == "RESERVE" || name == "RIDGE_LOCK" || name == "LOCK" {
			continue
		}
		src, dst := filepath.Join(from, name), filepath.Join(to, name)
		if filepath.Ext(name) == ".sst" && os.Link(src, dst) == nil {
			continue
		}
		size, err := copyFile(src, dst)
		if err != nil {
			return 0, err
		}
		if filepath.Ext(name) == ".mem" {
			memTable = max(memTable, size)
		}
	}
	return memTable, nil
}

func copyFile(src, dst string) (size int64, err error) {
	in, err := os.Open(src)
	if err != nil {
		return 0, err
	}
	defer in.Close()
	out, err := os.Create(dst)
	if err != nil {
		return 0, err
	}
	size, err = io.Copy(out, in)
	return size, errors.Join(err, out.Close())
}

// Print writes the report for people.
func (r *Report) Print(w io.Writer) error {
	if r.Ident == nil {
		fmt.Fprintln(w, "no identity: the store never joined a cluster")
	} else {
		fmt.Fprintf(w, "store %d of cluster %d, host %s, log %s (%d shards, %d exec shards)\n",
			r.Ident.GetStoreId(), r.Ident.GetClusterId(), r.Ident.GetHostName(),
			r.Ident.GetLogKind(), r.Ident.GetLogShards(), r.Ident.GetExecShards())
	}
	fmt.Fprintf(w, "commit %d, %d rows (%d in no slice), %d garbage slices, %d raft logs\n",
		r.Seq, r.Rows, r.Orphans, len(r.Garbage), len(r.Logs))
	for _, pair := range r.Shared {
		fmt.Fprintln(w, pair)
	}
	t := tabwriter.NewWriter(w, 0, 4, 2, ' ', 0)
	fmt.Fprintln(t, "RANGE\tREPLICA\tROLE\tSTATE\tSPAN\tEPOCH\tAPPLIED\tTENURE\tSLICES\tUNBORN")
	for _, x := range r.Ranges {
		s := catalog.NewState(x.State)
		fmt.Fprintf(t, "%d\t%d\t%s\t%s\t%s\t%d\t%d\t%d\t%v\t%d\n", s.RangeID(), s.ReplicaID(),
			s.Role(), s.Status(), s.Span(), s.SpanEpoch(), x.Applied.Index, s.Tenure(), s.Slices(),
			len(s.Unborn()))
	}
	for _, g := range r.Garbage {
		fmt.Fprintf(t, "garbage\t\t\t\t%s\t\t\t\t%d\t\n", g.Slice.Span, g.Slice.Extent)
	}
	return t.Flush()
}
