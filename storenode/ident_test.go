package storenode

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	logpb "github.com/ridgekv/ridge/proto/ridge/log/v1"
	"github.com/ridgekv/ridge/storenode/internal/engine"
)

func sampleIdent() *logpb.StoreIdent {
	return &logpb.StoreIdent{
		Format: identFormat, ClusterId: 7, StoreId: 3, HostName: "a", LogKind: "k",
		LogShards: 1, ExecShards: 2,
	}
}

// Every difference between a directory and a start is refused with what to do.
func TestCheckIdent(t *testing.T) {
	dirs := Options{Dir: "/d"}.directories()
	for _, c := range []struct {
		name     string
		change   func(now *logpb.StoreIdent)
		found    presence
		replicas int
		want     string
	}{
		{"the same", func(*logpb.StoreIdent) {}, presence{true, true}, 4, ""},
		{
			"cluster not known yet", func(n *logpb.StoreIdent) { n.ClusterId = 0 },
			presence{true, true},
			4, "",
		},
		{"no replica, so no log", func(*logpb.StoreIdent) {}, presence{true, false}, 0, ""},
		{
			"host", func(n *logpb.StoreIdent) { n.HostName = "b" },
			presence{true, true},
			4,
			`give this host its old name`,
		},
		{
			"log gone", func(*logpb.StoreIdent) {},
			presence{true, false},
			4,
			"bring the log directory back",
		},
		{
			"log kind", func(n *logpb.StoreIdent) { n.LogKind = "l" },
			presence{true, true},
			4,
			"use the binary that wrote it",
		},
		{
			"log shards", func(n *logpb.StoreIdent) { n.LogShards = 4 },
			presence{true, true},
			4,
			"set them back",
		},
		{
			"exec shards", func(n *logpb.StoreIdent) { n.ExecShards = 4 },
			presence{true, true},
			4,
			"set them back",
		},
		{
			"cluster", func(n *logpb.StoreIdent) { n.ClusterId = 8 },
			presence{true, true},
			4,
			"correct the PD addresses",
		},
	} {
		now := sampleIdent()
		c.change(now)
		err := dirs.checkIdent(sampleIdent(), now, c.found, c.replicas)
		switch {
		case c.want == "" && err != nil:
			t.Errorf("%s: %v", c.name, err)
		case c.want != "" && (!errors.Is(err, ErrDirectory) || !strings.Contains(err.Error(), c.want)):
			t.Errorf("%s: got %v, want %q", c.name, err, c.want)
		}
	}
}

func TestIdentRecord(t *testing.T) {
	e, err := engine.Open(engine.Options{Dir: t.TempDir(), MemTableSizeBytes: 32 << 20})
	if err != nil {
		t.Fatal(err)
	}
	defer e.Close()
	if got, err := readIdent(e); got != nil || err != nil {
		t.Fatalf("a new engine: %v, %v", got, err)
	}
	if err := writeIdent(e, sampleIdent()); err != nil {
		t.Fatal(err)
	}
	got, err := readIdent(e)
	if err != nil || !proto.Equal(got, sampleIdent()) {
		t.Fatalf("read back: %v, %v", got, err)
	}
}

func FuzzDecodeIdent(f *testing.F) {
	f.Add(encodeIdent(sampleIdent()))
	f.Add([]byte{})
	f.Add([]byte{identFormat, 0xff})
	f.Fuzz(func(t *testing.T, b []byte) {
		ident, err := decodeIdent(b)
		if err == nil && (ident.GetClusterId() == 0 || ident.GetStoreId() == 0) {
			t.Fatalf("accepted %v", ident)
		}
	})
}

// One half of a store without the other, before anything is opened.
func TestHalves(t *testing.T) {
	for _, c := range []struct {
		engine, log bool
		refused     bool
	}{{false, false, false}, {true, false, false}, {true, true, false}, {false, true, true}} {
		dirs := Options{Dir: t.TempDir()}.directories()
		if err := dirs.create(); err != nil {
			t.Fatal(err)
		}
		for dir, fill := range map[string]bool{dirs.engine: c.engine, dirs.log: c.log} {
			// Each half may be a file system of its own.
			if err := os.Mkdir(filepath.Join(dir, lostAndFound), 0o700); err != nil {
				t.Fatal(err)
			}
			if !fill {
				continue
			}
			if err := os.WriteFile(filepath.Join(dir, "f"), nil, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		found, err := dirs.look()
		if err != nil || found != (presence{c.engine, c.log}) {
			t.Fatalf("%+v: found %+v, %v", c, found, err)
		}
		if err := dirs.checkHalves(found); (err != nil) != c.refused {
			t.Errorf("%+v: %v", c, err)
		}
	}
}

func TestOptionsReportAllFaults(t *testing.T) {
	err := Options{
		GRPCAddress: ":7000", RaftListenAddress: "0.0.0.0:7001", MemoryBytes: 1,
		TLS: nil, SilenceAfter: 1,
	}.Validate()
	for _, want := range []string{
		"dir: missing", "pd: at least", "a wildcard cannot be dialled", "beyond loopback",
		"the least is", "suspects healthy stores",
	} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q is not reported: %v", want, err)
		}
	}
	good := Options{
		Dir: "d", PD: []string{"127.0.0.1:1"}, GRPCAddress: "127.0.0.1:2",
		RaftListenAddress: "127.0.0.1:3",
	}
	if err := good.Validate(); err != nil {
		t.Errorf("good options: %v", err)
	}
}

// What the options leave open of the Raft log is as the directory was made;
// what they ask for is compared.
func TestWithLog(t *testing.T) {
	was := &logpb.StoreIdent{LogKind: "sharded-pebble", LogShards: 4, ExecShards: 3}
	o := Options{}.withLog(was)
	if o.LogKind != "sharded-pebble" || o.LogShards != 4 || o.ExecShards != 3 {
		t.Errorf("on a directory of Pebble: %s, %d, %d", o.LogKind, o.LogShards, o.ExecShards)
	}
	if o := (Options{LogKind: "ridge-log"}).withLog(was); o.LogKind != "ridge-log" {
		t.Errorf("what was asked for became %s", o.LogKind)
	}
	o = Options{}.withLog(nil)
	if o.LogKind != "ridge-log" || o.LogShards != 1 || o.ExecShards < 1 {
		t.Errorf("on a new directory: %s, %d, %d", o.LogKind, o.LogShards, o.ExecShards)
	}
}
