package config

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/spf13/pflag"
)

func load(t *testing.T, s Schema, file string, environ []string, args ...string) (Values, error) {
	t.Helper()
	flags := pflag.NewFlagSet("test", pflag.ContinueOnError)
	s.AddFlags(flags)
	if file != "" {
		path := filepath.Join(t.TempDir(), "ridge.yaml")
		if err := os.WriteFile(path, []byte(file), 0o600); err != nil {
			t.Fatal(err)
		}
		args = append(args, "--config", path)
	}
	if err := flags.Parse(args); err != nil {
		t.Fatal(err)
	}
	return s.Load(flags, environ)
}

func TestDefaults(t *testing.T) {
	v, err := load(t, Store(), "", nil)
	if err != nil {
		t.Fatal(err)
	}
	if got := v.String("listen"); got != "127.0.0.1:7500" {
		t.Errorf("listen = %q", got)
	}
	if got := v.Strings("pd"); len(got) != 1 || got[0] != "127.0.0.1:7400" {
		t.Errorf("pd = %q", got)
	}
	if got := v.Int("memory"); got != 1<<30 {
		t.Errorf("memory = %d", got)
	}
	if v.Given("storage.capacity") || v.Int("storage.capacity") != 0 {
		t.Error("capacity should be left to the store")
	}
}

func TestPrecedence(t *testing.T) {
	file := "listen: 127.0.0.1:1\nraft: {listen: \"127.0.0.1:2\"}\nhttp: {listen: \"127.0.0.1:3\"}\n" +
		"labels: {zone: a, rack: 7}\nstorage: {data_path: /f, capacity: 1GB}\n"
	v, err := load(t, Store(), file,
		[]string{"RIDGE_RAFT_LISTEN=127.0.0.1:20", "RIDGE_HTTP_LISTEN=127.0.0.1:30", "PATH=/bin"},
		"--http-listen", "127.0.0.1:300")
	if err != nil {
		t.Fatal(err)
	}
	for key, want := range map[string]string{
		"listen": "127.0.0.1:1", "raft.listen": "127.0.0.1:20", "http.listen": "127.0.0.1:300",
		"storage.data_path": "/f",
	} {
		if got := v.String(key); got != want {
			t.Errorf("%s = %q, want %q", key, got, want)
		}
	}
	if l := v.Labels("labels"); l["zone"] != "a" || l["rack"] != "7" {
		t.Errorf("labels = %v", l)
	}
	if got := v.Int("storage.capacity"); got != 1<<30 {
		t.Errorf("capacity = %d", got)
	}
}

func TestAllFaultsAtOnce(t *testing.T) {
	file := `listen: nowhere
storge: {capacity: 1GB}
storage:
  capacity: lots
  memtable_sise: 64MB
  memtable_size: 8MB
  value_threshold: 1KB
  detect_conflicts: true
  compression: brotli
  num_memtables: 0
raft: 7
labels: {zone: ""}
`
	_, err := load(t, Store(), file, []string{"RIDGE_STORAGE_SYNC_WRITES=perhaps", "RIDGE_MEMROY=1GB"},
		"--memory", "1MB")
	if err == nil {
		t.Fatal("accepted")
	}
	for _, want := range []string{
		`listen: "nowhere" is not host:port`, "unknown key storge", "storage.capacity",
		"unknown key storage.memtable_sise (did you mean storage.memtable_size?)",
		"below 32MB is refused", "older version of a key", "managed mode",
		`"brotli" is not one of none, snappy, zstd`, "storage.num_memtables: 0 is too small",
		"unknown key raft", "labels", "RIDGE_STORAGE_SYNC_WRITES", "unknown variable RIDGE_MEMROY",
		"--memory",
	} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("the error does not mention %q:\n%v", want, err)
		}
	}
}

func TestRowCacheOff(t *testing.T) {
	for text, want := range map[string]int64{"off": -1, "64MB": 64 << 20} {
		v, err := load(t, Store(), "storage: {row_cache_size: "+text+"}\n", nil)
		if err != nil || v.Int("storage.row_cache_size") != want {
			t.Errorf("%s: %d, %v", text, v.Int("storage.row_cache_size"), err)
		}
	}
	_, err := load(t, Store(), "storage: {row_cache_size: 0, block_cache_size: off}\n", nil)
	if err == nil || !strings.Contains(err.Error(), "write off") ||
		!strings.Contains(err.Error(), "storage.block_cache_size") {
		t.Errorf("a cache of nothing, a block cache turned off: %v", err)
	}
}

func TestBrokenFiles(t *testing.T) {
	if _, err := load(t, PD(), "a: [", nil); err == nil || !strings.Contains(err.Error(), "YAML") {
		t.Errorf("broken YAML: %v", err)
	}
	if _, err := load(t, PD(), "", []string{"RIDGE_CONFIG=/does/not/exist"}); err == nil {
		t.Error("a missing file is accepted")
	}
	if _, err := load(t, PD(), "- 1\n- 2\n", nil); err == nil {
		t.Error("a list is accepted")
	}
	if _, err := load(t, Store(), "storage:\n", nil); err != nil {
		t.Errorf("an empty section: %v", err)
	}
}

func TestParseBytes(t *testing.T) {
	for text, want := range map[string]int64{
		"0": 0, "4096": 4096, "64MB": 64 << 20, "64MiB": 64 << 20, "64m": 64 << 20, "1.5 GB": 3 << 29,
		"2TiB": 2 << 40, "10K": 10 << 10, "7B": 7,
	} {
		if got, err := parseBytes(text); err != nil || got != want {
			t.Errorf("%q = %d, %v; want %d", text, got, err, want)
		}
	}
	for _, text := range []string{"", "MB", "-1MB", "1XB", "1 2MB", "nan", "1e400", "99999999TB", "infMB"} {
		if got, err := parseBytes(text); err == nil {
			t.Errorf("%q is accepted as %d", text, got)
		}
	}
}

// TestSchemas keeps keys, flags and variables of every schema apart.
func TestSchemas(t *testing.T) {
	for _, s := range []Schema{PD(), Store(), Dev(), Client()} {
		seen := map[string]string{}
		for _, set := range s.settings {
			for _, name := range []string{set.key, "--" + set.flagName(), set.envName()} {
				if other, ok := seen[name]; ok && other != set.key {
					t.Errorf("%s: %s belongs to %s and %s", s.name, name, other, set.key)
				}
				seen[name] = set.key
			}
			if set.help == "" {
				t.Errorf("%s: %s has no help", s.name, set.key)
			}
		}
		if _, err := load(t, s, "", nil); err != nil {
			t.Errorf("%s: the defaults are refused: %v", s.name, err)
		}
	}
}

func TestDuration(t *testing.T) {
	v, err := load(t, PD(), "retention: 90s\n", nil)
	if err != nil || v.Duration("retention") != 90*time.Second {
		t.Errorf("retention = %v, %v", v.Duration("retention"), err)
	}
	if _, err := load(t, PD(), "retention: 90\n", nil); err == nil {
		t.Error("a number without a unit is accepted as a duration")
	}
}

func FuzzParseBytes(f *testing.F) {
	for _, s := range []string{"64MB", "", "1.5GiB", "9e9"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		if n, err := parseBytes(text); err == nil && n < 0 {
			t.Errorf("%q = %d", text, n)
		}
	})
}

// TestExamples: the files in deploy are accepted as they are.
func TestExamples(t *testing.T) {
	for name, s := range map[string]Schema{
		"pd.yaml": PD(), "store.yaml": Store(), "small.yaml": Store(),
	} {
		path := filepath.Join("..", "..", "..", "..", "deploy", "config", name)
		v, err := load(t, s, "", nil, "--config", path)
		if err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if v.String("tls.ca") == "" {
			t.Errorf("%s: read nothing", name)
		}
	}
}
