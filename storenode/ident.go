package storenode

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"google.golang.org/protobuf/proto"

	logpb "github.com/ridgekv/ridge/proto/ridge/log/v1"
	"github.com/ridgekv/ridge/storenode/internal/engine"
	"github.com/ridgekv/ridge/storenode/internal/raft"
)

const (
	// identRecord is the record x|ident.
	identRecord = "ident"
	// identFormat is the first byte of the record and the format of the
	// directory.
	identFormat = 1
)

// ErrDirectory is why a store does not start on a directory: it would lose or
// mix data.
var ErrDirectory = errors.New("storenode: this directory cannot be used")

// directories are the two halves of a store.
type directories struct{ engine, log string }

func (o Options) directories() directories {
	return directories{engine: filepath.Join(o.Dir, "engine"), log: filepath.Join(o.Dir, "log")}
}

// presence is what was found before anything was opened.
type presence struct{ engine, log bool }

// look reports which of the halves hold anything.
func (d directories) look() (presence, error) {
	hasEngine, err := filled(d.engine)
	if err != nil {
		return presence{}, err
	}
	hasLog, err := filled(d.log)
	return presence{engine: hasEngine, log: hasLog}, err
}

func filled(dir string) (bool, error) {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, os.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("storenode: look at %s: %w", dir, err)
	}
	for _, e := range entries {
		if e.Name() != lostAndFound {
			return true, nil
		}
	}
	return false, nil
}

// lostAndFound is in the root of every ext4 file system: either half may be
// one.
const lostAndFound = "lost+found"

// create makes both directories. They exist before the identity is written, so
// that a missing one was taken away.
func (d directories) create() error {
	for _, dir := range []string{d.engine, d.log} {
		if err := os.MkdirAll(dir, 0o750); err != nil {
			return fmt.Errorf("storenode: %w", err)
		}
	}
	return nil
}

// checkHalves refuses a log without its engine.
func (d directories) checkHalves(p presence) error {
	if p.log && !p.engine {
		return fmt.Errorf("%w: %s holds a Raft log but %s holds no data. They are one store: "+
			"bring the engine directory back, or remove both to start as a new store "+
			"(PD then replaces the old store's replicas)", ErrDirectory, d.log, d.engine)
	}
	return nil
}

// checkIdent compares the identity a directory was made with to what this start
// would make of it. hadLog is whether the log held anything before this start,
// replicas how many the engine lists.
func (d directories) checkIdent(
	was, now *logpb.StoreIdent, p presence, replicas int,
) error {
	refuse := func(format string, args ...any) error {
		return fmt.Errorf("%w: "+format, append([]any{ErrDirectory}, args...)...)
	}
	switch {
	case was.GetFormat() != identFormat:
		return refuse("%s has format %d, this binary knows %d: use the binary that wrote it",
			d.engine, was.GetFormat(), identFormat)
	case was.GetHostName() != now.GetHostName():
		return refuse("it belongs to host %q, this host is %q, and the Raft log's path contains "+
			"the name: give this host its old name (a container: set its hostname), or remove %s "+
			"and %s to start as a new store", was.GetHostName(), now.GetHostName(), d.engine, d.log)
	case replicas > 0 && !p.log:
		return refuse("%s lists %d replicas but their Raft log in %s is missing. A replica without "+
			"its log could vote twice: bring the log directory back, or remove %s too to start as a "+
			"new store", d.engine, replicas, d.log, d.engine)
	case was.GetLogKind() != now.GetLogKind():
		return refuse("its Raft log is of kind %q, which is frozen; the options ask for %q: leave "+
			"the kind out, or use the binary that wrote it", was.GetLogKind(), now.GetLogKind())
	case was.GetLogShards() != now.GetLogShards() || was.GetExecShards() != now.GetExecShards():
		return refuse("it was made with %d log shards and %d exec shards, which are frozen; the "+
			"options ask for %d and %d: set them back", was.GetLogShards(), was.GetExecShards(),
			now.GetLogShards(), now.GetExecShards())
	case now.GetClusterId() != 0 && was.GetClusterId() != now.GetClusterId():
		return refuse("it belongs to cluster %d, PD speaks for cluster %d: correct the PD "+
			"addresses, or remove %s and %s to join as a new store",
			was.GetClusterId(), now.GetClusterId(), d.engine, d.log)
	}
	return nil
}

// withLog fills in what the options leave open of the Raft log: as the
// directory was made, or for a new one as raft does by default.
func (o Options) withLog(was *logpb.StoreIdent) Options {
	setDefault(&o.LogKind, was.GetLogKind())
	setDefault(&o.LogShards, int(was.GetLogShards()))
	setDefault(&o.ExecShards, int(was.GetExecShards()))
	o.LogKind, o.LogShards, o.ExecShards = raft.LogDefaults(o.LogKind, o.LogShards, o.ExecShards)
	return o
}

// readIdent returns the identity of an engine, nil if it has none yet.
func readIdent(e *engine.Engine) (*logpb.StoreIdent, error) {
	b, ok, err := e.Store(identRecord)
	if err != nil {
		return nil, fmt.Errorf("storenode: read identity: %w", err)
	}
	if !ok {
		return nil, nil
	}
	return decodeIdent(b)
}

func decodeIdent(b []byte) (*logpb.StoreIdent, error) {
	if len(b) == 0 || b[0] != identFormat {
		return nil, fmt.Errorf("%w: its identity has an unknown format; use the binary that wrote it",
			ErrDirectory)
	}
	ident := &logpb.StoreIdent{}
	if err := proto.Unmarshal(b[1:], ident); err != nil {
		return nil, fmt.Errorf("%w: its identity cannot be read: %w", ErrDirectory, err)
	}
	if ident.GetClusterId() == 0 || ident.GetStoreId() == 0 {
		return nil, fmt.Errorf("%w: its identity is incomplete", ErrDirectory)
	}
	return ident, nil
}

func encodeIdent(ident *logpb.StoreIdent) []byte {
	b, err := proto.MarshalOptions{Deterministic: true}.MarshalAppend([]byte{identFormat}, ident)
	if err != nil {
		panic(fmt.Sprintf("storenode: encode identity: %v", err))
	}
	return b
}

// writeIdent keeps the identity. The caller flushes before anything relies on
// it.
func writeIdent(e *engine.Engine, ident *logpb.StoreIdent) error {
	w := &engine.WriteSet{}
	w.SetStore(identRecord, encodeIdent(ident))
	if err := e.Commit(w); err != nil {
		return fmt.Errorf("storenode: write identity: %w", err)
	}
	return nil
}
