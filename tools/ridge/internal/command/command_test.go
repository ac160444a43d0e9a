package command

import (
	"bytes"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// ridge runs one command line.
func ridge(t *testing.T, args ...string) (code int, out, errOut string) {
	t.Helper()
	var o, e bytes.Buffer
	code = run(t.Context(), args, strings.NewReader(""), &o, &e)
	return code, o.String(), e.String()
}

func TestExitCodes(t *testing.T) {
	bad := filepath.Join(t.TempDir(), "bad.yaml")
	if err := os.WriteFile(bad, []byte("storage: {compresion: zstd}\nmemory: much\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		args  string
		code  int
		words string
	}{
		{"version", 0, "ridge unknown"},
		{"version -o json", 0, `{"version":"unknown"}`},
		{"--help", 0, "ridge dev"},
		{"", 2, "needs a subcommand"},
		{"bogus", 2, "unknown command"},
		{"range", 2, "needs a subcommand"},
		{"range split", 2, "accepts 1 arg"},
		{"range show seven", 2, "not a range id"},
		{"range move 7 --from 1", 2, `"" is not a store id`},
		{"range move seven --from 1 --to 2", 2, "not a range id"},
		{"range transfer-leader 7", 2, "accepts 2 arg"},
		{"range transfer-leader 7 0", 2, "not a store id"},
		{"store drain", 2, "accepts 1 arg"},
		{"store decommission x", 2, "not a store id"},
		{"store forget 3", 2, "--yes"},
		{"store safe-to-restart 0", 2, "not a store id"},
		{"why", 2, "needs a subcommand"},
		{"why store x", 2, "not a store id"},
		{"plan drain x", 2, "not a store id"},
		{"plan balance 1", 2, "unknown command"},
		{"what-if down 1,x", 2, "not a store id"},
		{"plan stop 7", 2, "unknown command"},
		{"range scatter --from b --to a", 2, "not below"},
		{"range scatter --prefix a --to b", 2, "prefix"},
		{"range scatter a", 2, "unknown command"},
		{"plan rule", 2, "accepts 1 arg"},
		{"plan rule /does/not/exist", 1, "no such file"},
		{"rule", 2, "needs a subcommand"},
		{"rule set /does/not/exist", 1, "no such file"},
		{"rule delete", 2, "accepts 1 arg"},
		{"operator cancel x", 2, "not an operator id"},
		{"schedule pause", 2, "--for"},
		{"schedule pause --for -1m", 2, "--for"},
		{"config set replicas", 2, "at least 2 arg"},
		{"config set replicas 3 retention", 2, "retention has no value"},
		{"config set replicas 3 replicas 5", 2, "twice"},
		{"get", 2, "accepts 1 arg"},
		{"get a b", 2, "accepts 1 arg"},
		{"get k -o xml", 2, "neither table nor json"},
		{"get k --bogus", 2, "unknown flag"},
		{"get k --timeout soon", 2, "not a duration"},
		{"get ? --b64", 2, "--b64"},
		{"cas k old", 2, "accepts 3 arg"},
		{"cas k new --absent --delete", 2, ""},
		{"scan --from b --to a", 2, "not below"},
		{"scan --prefix a --from b", 2, "prefix"},
		{"scan --limit -1", 2, "negative"},
		{"load", 2, "accepts 1 arg"},
		{"load - --parallel 0", 2, "--parallel"},
		{"load /does/not/exist", 1, "no such file"},
		{"dump - --resume x", 2, "--resume"},
		{"store --config " + bad, 2, "unknown key storage.compresion (did you mean storage.compression?)"},
		{"store --config " + bad, 2, `"much" is not a size`},
		{"store --listen 0.0.0.0:7500 --raft-listen 0.0.0.0:7501", 2, "raft.listen 0.0.0.0:7501 is beyond"},
		{"pd --listen 0.0.0.0:7400", 2, "--insecure"},
		{"pd --members 1=a", 2, "ID=GRPC_ADDRESS/RAFT_ADDRESS"},
		{"pd --replicas 2", 2, ""},
		{"store --tls-ca ca.pem", 2, "belong together"},
		{"dev --stores 0", 2, "too small"},
		{"bench", 2, "needs a subcommand"},
		{"bench run", 2, "--workload \"\": choose one of a, b, c"},
		{"bench run -w a --callers 0 --keys 0", 2, "--keys 0: from 1"},
		{"bench run -w a --presplit -1", 2, "--presplit -1"},
		{"bench run -w a --progress often", 2, "--progress \"often\""},
		{"bench run -w a --duration 0", 2, "would not end"},
		{"bench run -w a --pd 127.0.0.1:1 --timeout 50ms", 1, ""},
		{"bench load --batch-size 0", 2, "--batch-size 0: from 1"},
		{"bench clean --prefix=", 2, "every key of the cluster"},
	} {
		code, out, errOut := ridge(t, strings.Fields(c.args)...)
		if code != c.code || !strings.Contains(out+errOut, c.words) {
			t.Errorf("ridge %s: code %d, want %d and %q:\n%s%s", c.args, code, c.code, c.words, out, errOut)
		}
	}
}

func TestPortInUseIsClear(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	code, _, errOut := ridge(t, "pd", "--dir", t.TempDir(), "--listen", l.Addr().String(),
		"--raft-listen", "127.0.0.1:1", "--raft-advertise", "127.0.0.1:1")
	if code != 1 {
		t.Errorf("code %d: %s", code, errOut)
	}
	code, _, errOut = ridge(t, "store", "--dir", t.TempDir(), "--raft-listen", l.Addr().String())
	if code != 1 || !strings.Contains(errOut, "in use by another process") ||
		!strings.Contains(errOut, "--raft-listen") {
		t.Errorf("code %d: %s", code, errOut)
	}
}

func TestCompletion(t *testing.T) {
	for _, shell := range []string{"bash", "zsh", "fish", "powershell"} {
		if code, out, _ := ridge(t, "completion", shell); code != 0 || len(out) < 1000 {
			t.Errorf("%s: code %d, %d bytes", shell, code, len(out))
		}
	}
}

func TestShifted(t *testing.T) {
	for _, c := range []struct {
		address string
		n       int
		want    string
	}{{"127.0.0.1:7400", 2, "127.0.0.1:7402"}, {"[::1]:1", 0, "[::1]:1"}, {"a:0", 1, ""}, {"a:65535", 1, ""}} {
		if got := shifted(c.address, c.n); got != c.want {
			t.Errorf("%s + %d = %s, want %s", c.address, c.n, got, c.want)
		}
	}
}
