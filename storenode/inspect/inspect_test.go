package inspect

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/ridgekv/ridge/proto/keys"
	logpb "github.com/ridgekv/ridge/proto/ridge/log/v1"
	metapb "github.com/ridgekv/ridge/proto/ridge/meta/v1"
	"github.com/ridgekv/ridge/storenode/internal/catalog"
	"github.com/ridgekv/ridge/storenode/internal/engine"
)

func TestDirectory(t *testing.T) {
	dir := t.TempDir()
	data := filepath.Join(dir, "engine")
	e, err := engine.Open(engine.Options{Dir: data, MemTableSizeBytes: 32 << 20})
	if err != nil {
		t.Fatal(err)
	}
	ident, err := proto.Marshal(&logpb.StoreIdent{Format: 1, ClusterId: 7, StoreId: 3, HostName: "h"})
	if err != nil {
		t.Fatal(err)
	}
	span := &metapb.Span{Start: []byte("a"), End: []byte("m")}
	w := &engine.WriteSet{}
	w.SetStore("ident", append([]byte{1}, ident...))
	catalog.StageState(w, catalog.NewState(&logpb.RangeState{
		RangeId: 4, ReplicaId: 5, Span: span, SpanEpoch: 2, Role: metapb.Role_ROLE_VOTER,
		State:  logpb.ReplicaState_REPLICA_STATE_NORMAL,
		Slices: []*logpb.Slice{{Extent: 1, Span: span}},
	}))
	catalog.StageApplied(w, 4, catalog.Applied{Index: 33})
	if err := e.Commit(w); err != nil {
		t.Fatal(err)
	}
	if _, err := Directory(dir); !errors.Is(err, ErrInUse) {
		t.Fatalf("while a store runs: %v", err)
	}
	if err := e.Close(); err != nil {
		t.Fatal(err)
	}
	before := listing(t, dir)
	r, err := Directory(dir)
	if err != nil {
		t.Fatal(err)
	}
	if r.Ident.GetStoreId() != 3 || len(r.Ranges) != 1 || r.Ranges[0].Applied.Index != 33 ||
		r.LogFilled || r.Seq == 0 {
		t.Errorf("report %+v", r)
	}
	if after := listing(t, dir); after != before {
		t.Errorf("the directory changed from\n%s to\n%s", before, after)
	}
	var out bytes.Buffer
	if err := r.Print(&out); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"store 3 of cluster 7", `["a","m")`, "33"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("%q is not in\n%s", want, out.String())
		}
	}
	if _, err := Directory(t.TempDir()); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("an empty directory: %v", err)
	}
}

// TestAudit: rows in no slice are found, and slices with two owners.
func TestAudit(t *testing.T) {
	dir := t.TempDir()
	e, err := engine.Open(engine.Options{
		Dir: filepath.Join(dir, "engine"), MemTableSizeBytes: 32 << 20,
	})
	if err != nil {
		t.Fatal(err)
	}
	span := keys.Span{Start: []byte("a"), End: []byte("m")}
	w := &engine.WriteSet{}
	x := e.NewExtent(w)
	catalog.StageState(w, catalog.NewState(&logpb.RangeState{
		RangeId: 4, ReplicaId: 5, Span: span.Proto(), Role: metapb.Role_ROLE_VOTER,
		State:  logpb.ReplicaState_REPLICA_STATE_NORMAL,
		Slices: []*logpb.Slice{{Extent: uint32(x), Span: span.Proto()}},
	}))
	for _, key := range []string{"a", "l", "n", "p", "z"} {
		w.Put(x, []byte(key), engine.Row{CommitTS: 1, Value: []byte("v")})
	}
	w.AddGarbage(engine.Slice{Extent: x, Span: keys.Span{
		Start: []byte("k"), End: []byte("q"),
	}}, false)
	if err := errors.Join(e.Commit(w), e.Close()); err != nil {
		t.Fatal(err)
	}
	r, err := Directory(dir)
	if err != nil {
		t.Fatal(err)
	}
	if r.Rows != 5 || r.Orphans != 1 || len(r.Shared) != 1 {
		t.Errorf("%d rows, %d orphans, shared %q; want 5, 1 (z) and one pair", r.Rows, r.Orphans,
			r.Shared)
	}
}

// listing is the name, size and time of change of every file.
func listing(t *testing.T, dir string) string {
	t.Helper()
	var out strings.Builder
	err := filepath.Walk(dir, func(path string, info os.FileInfo, err error) error {
		if err == nil && !info.IsDir() {
			out.WriteString(path + " " + info.ModTime().String() + "\n")
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return out.String()
}
