package lint

import (
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/ridgekv/ridge/"

// root is the directory of the root module, seen from this package.
var root = filepath.Join("..", "..")

// trees lists, for each tree, the trees it may import. Nothing else is legal.
var trees = map[string]string{
	"proto":     "proto",
	"client":    "client proto",
	"pd":        "pd proto",
	"storenode": "storenode client/pdclient client/storeclient proto",
	"tools":     "tools pd storenode client proto",
	"tests":     "tests pd storenode client proto",
}

// rooms lists, inside a tree, what a room may import of its own tree. A room
// that is not listed is a façade: it may import all of its tree.
var rooms = map[string]string{
	"proto/keys": "proto/ridge",
	"proto/ts":   "",
	"proto/errs": "proto/keys proto/ridge",
	"proto/wire": "proto/ridge",

	"client/internal/route":  "",
	"client/internal/retry":  "",
	"client/internal/dial":   "",
	"client/internal/stream": "client/internal/dial",
	"client/pdclient":        "client/internal/dial client/internal/retry",
	"client/storeclient":     "client/internal/dial client/internal/retry",

	// The river: a step may be skipped, never climbed.
	"storenode/internal/engine":  "storenode/internal/engine",
	"storenode/internal/catalog": "storenode/internal/engine",
	"storenode/internal/apply":   "storenode/internal/catalog storenode/internal/engine",
	"storenode/internal/raft": "storenode/internal/raft/logstore storenode/internal/apply " +
		"storenode/internal/catalog storenode/internal/engine",
	"storenode/internal/raft/logstore": "",
	"storenode/internal/evaluate": "storenode/internal/raft storenode/internal/apply " +
		"storenode/internal/catalog storenode/internal/engine",
	"storenode/internal/service": "storenode/internal/evaluate storenode/internal/raft " +
		"storenode/internal/apply storenode/internal/catalog storenode/internal/engine " +
		"storenode/internal/gateway",
	"storenode/internal/gateway": "",
	"storenode/internal/agent": "storenode/internal/evaluate storenode/internal/raft " +
		"storenode/internal/catalog storenode/internal/engine",
	"storenode/inspect": "storenode/internal/catalog storenode/internal/engine " +
		"storenode/internal/raft/logstore",

	"pd/internal/meta":      "",
	"pd/internal/tso":       "pd/internal/meta",
	"pd/internal/safepoint": "pd/internal/meta",
	"pd/internal/members":   "pd/internal/meta",
	"pd/internal/settings":  "",
	"pd/internal/topology":  "pd/internal/meta",
	"pd/internal/operator":  "pd/internal/topology",
	"pd/internal/schedule":  "pd/internal/schedule pd/internal/operator pd/internal/topology",
	// The simulator drives the planners as the façade does.
	"pd/internal/schedule/simtest": "pd/internal/schedule pd/internal/operator " +
		"pd/internal/topology pd/internal/service",
	"pd/internal/service": "pd/internal/meta pd/internal/members pd/internal/topology pd/internal/operator " +
		"pd/internal/tso pd/internal/safepoint pd/internal/schedule pd/internal/settings",

	"tools/ridge/internal/bench": "",
}

// exceptions are single edges that the tables above forbid, with the reason.
var exceptions = map[string]string{
	// Keys of other stores are answered through the smart client, here only.
	"storenode/internal/gateway": "client",
}

// owners lists imports that only some packages may make. The longest matching
// prefix counts. Tests are free: they are not in the lists go gives us.
var owners = map[string]string{
	"github.com/dgraph-io/badger/v4": "storenode/internal/engine",
	"github.com/lni/dragonboat/v4":   "storenode/internal/raft pd/internal/meta",
	// apply implements the state machine and speaks its types.
	"github.com/lni/dragonboat/v4/statemachine": "storenode/internal/raft " +
		"storenode/internal/apply pd/internal/meta",
	"github.com/spf13/cobra": "tools/ridge",
	"github.com/spf13/pflag": "tools/ridge",
	"github.com/knadh/koanf": "tools/ridge",
	"flag":                   "tools tests/demo tests/idle tests/bench",
	// Packages named ...test are libraries of tests.
	"testing": "tests",
}

type listedPackage struct {
	ImportPath string
	Imports    []string
}

// TestEdges refuses imports that climb: see STYLE, "Arrows".
func TestEdges(t *testing.T) {
	for _, p := range listPackages(t) {
		from := strings.TrimPrefix(p.ImportPath, module)
		for _, imp := range p.Imports {
			if why := refuse(from, imp); why != "" {
				t.Error(why)
			}
		}
	}
}

// TestRefuse shows that the judge is awake.
func TestRefuse(t *testing.T) {
	for _, c := range []struct {
		from, imp string
		refused   bool
	}{
		{"pd", module + "client", true},
		{"pd", module + "proto/keys", false},
		{"storenode/internal/apply", module + "storenode/internal/raft", true},
		{"storenode/internal/raft", module + "storenode/internal/engine", false},
		{"storenode/internal/agent", module + "client", true},
		{"storenode/internal/agent", module + "client/pdclient", false},
		{"storenode/internal/gateway", module + "client", false},
		{"storenode/internal/catalog", "github.com/dgraph-io/badger/v4", true},
		{"storenode/internal/apply", "github.com/lni/dragonboat/v4/statemachine", false},
		{"storenode/internal/apply", "github.com/lni/dragonboat/v4", true},
		{"client", "github.com/spf13/cobra", true},
		{"storenode", module + "storenode/internal/agent", false},
	} {
		if why := refuse(c.from, c.imp); (why != "") != c.refused {
			t.Errorf("%s imports %s: got %q, refused should be %v", c.from, c.imp, why, c.refused)
		}
	}
}

// refuse returns why from must not import imp, or "".
func refuse(from, imp string) string {
	to, ours := strings.CutPrefix(imp, module)
	if !ours {
		return refuseForeign(from, imp)
	}
	if contains(exceptions[from], to) || from == to {
		return ""
	}
	tree, _, _ := strings.Cut(from, "/")
	if allowed, known := trees[tree]; !known {
		return from + " lies in no tree of ours: the root holds proto, pd, storenode, client, " +
			"tools and tests, and nothing else"
	} else if !contains(allowed, to) {
		return from + " imports " + to + ": " + tree + " may import only " + allowed +
			". Facts run back up as return values; move the shared meaning to proto"
	}
	if !contains(tree, to) {
		return ""
	}
	room, listed := longest(rooms, from)
	if listed && !contains(rooms[room]+" "+room, to) {
		return from + " imports " + to + ": " + room + " may import only [" + rooms[room] +
			"] of its tree. Dependencies run downhill: persist the fact and ring a bell, or take " +
			"a function from the façade"
	}
	return ""
}

func refuseForeign(from, imp string) string {
	owned, listed := longest(owners, imp)
	library := imp == "testing" && strings.HasSuffix(from, "test")
	if listed && !library && !contains(owners[owned], from) {
		return from + " imports " + imp + ", which only " + owners[owned] +
			" may: the rest of the house speaks to that room instead"
	}
	return ""
}

// listPackages asks go for the packages of the root module and their imports.
func listPackages(t *testing.T) []listedPackage {
	t.Helper()
	cmd := exec.Command("go", "list", "-tags=invariants", "-json=ImportPath,Imports", "./...")
	cmd.Dir, cmd.Stderr = root, os.Stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list in the root module: %v", err)
	}
	var all []listedPackage
	for dec := json.NewDecoder(strings.NewReader(string(out))); ; {
		var p listedPackage
		if err := dec.Decode(&p); errors.Is(err, io.EOF) {
			return all
		} else if err != nil {
			t.Fatal(err)
		}
		all = append(all, p)
	}
}

// contains reports whether path lies at or under one of the listed roots.
func contains(roots, path string) bool {
	return slices.ContainsFunc(strings.Fields(roots), func(r string) bool {
		return path == r || strings.HasPrefix(path, r+"/")
	})
}

// longest returns the longest key of table at or above path.
func longest(table map[string]string, path string) (string, bool) {
	best, found := "", false
	for k := range table {
		if contains(k, path) && len(k) >= len(best) {
			best, found = k, true
		}
	}
	return best, found
}
