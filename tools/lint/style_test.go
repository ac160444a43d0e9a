package lint

import (
	"bufio"
	"bytes"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"
)

const (
	maxFileLines     = 600
	maxFunctionLines = 70
	maxLineLength    = 100
	// maxTableLineLength is for tests, and for the files below: a row of a
	// table stays one row.
	maxTableLineLength = 140
)

// tables are files that are one table.
var tables = []string{"proto/errs/wire.go"}

// forbiddenNames say nothing about what is inside.
var forbiddenNames = strings.Fields(
	"util utils common misc helper helpers types constants manager base impl")

// longFunctions are dispatch switches and tables: one case a line, no logic.
// The name is package.Function or package.Type.Function.
var longFunctions = []string{
	"proto/errs.ToProto",
	"proto/errs.FromProto",
}

// calls lists functions of other packages that only some places may call.
var calls = []struct {
	pkg, name string
	where     string // roots, as in contains
	tests     bool   // tests may call it too
	why       string
}{
	{
		"google.golang.org/grpc", "NewServer",
		"tools/ridge client/internal/clustertest tests/bench/ceiling", true,
		"listeners, TLS and interceptors belong to the composition root",
	},
	{
		"google.golang.org/grpc", "NewClient",
		"client/internal/dial tests/bench/ceiling", true,
		"dialling has one home: use client, pdclient or storeclient",
	},
	{"google.golang.org/grpc", "Dial", "", false, "deprecated: see client/internal/dial"},
	{"log/slog", "Default", "tools", false, "take a *slog.Logger in Options: no globals"},
	{
		"github.com/prometheus/client_golang/prometheus", "MustRegister", "", false,
		"register on the Registerer that was passed in: no globals",
	},
	{
		"time", "Sleep", "tests/harness tests/chaos", false,
		"in a test: wait for the state itself (an eventually function, a channel, a synctest " +
			"bubble); in code: a timer and the context",
	},
}

// pure are the rooms where the same input must give the same output.
const pure = "storenode/internal/apply pd/internal/schedule pd/internal/operator proto"

// paced are files of pure rooms that may look at the clock: it decides when
// bytes move, never which.
var paced = []string{"storenode/internal/apply/image.go"}

// impure are calls that have no place there.
var impure = map[string]string{
	"time":      "Now Since Until Sleep After Tick NewTimer NewTicker",
	"os":        "Getenv Hostname Getpid",
	"math/rand": "", "math/rand/v2": "", "crypto/rand": "",
}

type source struct {
	path    string // relative to the root, with slashes
	dir     string
	test    bool
	text    []byte
	fset    *token.FileSet
	file    *ast.File
	imports map[string]string // local name → import path
}

func (s *source) at(n ast.Node) string {
	return fmt.Sprintf("%s:%d", s.path, s.fset.Position(n.Pos()).Line)
}

// TestStyle checks every file of the repository that people write.
func TestStyle(t *testing.T) {
	documented := map[string]bool{}
	for _, s := range readSources(t) {
		checkNames(t, s)
		checkLengths(t, s)
		checkComments(t, s)
		checkGo(t, s)
		checkCalls(t, s)
		checkDeclarations(t, s)
		if !s.test && s.file.Name.Name != "main" {
			documented[s.dir] = documented[s.dir] || s.file.Doc.Text() != ""
		}
	}
	for dir, ok := range documented {
		if !ok {
			t.Errorf("%s has no package comment: say in one sentence why the room exists, and "+
				"the law it guards", dir)
		}
	}
}

// TestRootIsClosed refuses new things in the root of the repository.
func TestRootIsClosed(t *testing.T) {
	allowed := strings.Fields("proto pd storenode client tools deploy tests go.mod go.sum buf.yaml " +
		"Makefile README.md ARCHITECTURE.md bin data LICENSE")
	entries, err := os.ReadDir(root)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if !strings.HasPrefix(e.Name(), ".") && !slices.Contains(allowed, e.Name()) {
			t.Errorf("%s does not belong in the root, which holds exactly %v", e.Name(), allowed)
		}
	}
}

func checkNames(t *testing.T, s *source) {
	for _, part := range strings.Split(strings.TrimSuffix(s.path, ".go"), "/") {
		if slices.Contains(forbiddenNames, strings.TrimSuffix(part, "_test")) {
			t.Errorf("%s: %q says nothing about what is inside: name the file or package after "+
				"its noun", s.path, part)
		}
	}
}

func checkLengths(t *testing.T, s *source) {
	lines := bufio.NewScanner(bytes.NewReader(s.text))
	lines.Buffer(nil, 1<<20)
	count, limit := 0, maxLineLength
	if s.test || slices.Contains(tables, s.path) {
		limit = maxTableLineLength
	}
	for lines.Scan() {
		count++
		line := lines.Text()
		if n := utf8.RuneCountInString(line); n > limit && !strings.Contains(line, "://") &&
			!strings.HasPrefix(line, "//go:") {
			t.Errorf("%s:%d: %d characters: at most %d", s.path, count, n, limit)
		}
	}
	if count > maxFileLines {
		t.Errorf("%s: %d lines: at most %d; a second reason to change deserves its own file",
			s.path, count, maxFileLines)
	}
	for _, d := range s.file.Decls {
		f, ok := d.(*ast.FuncDecl)
		if !ok || f.Body == nil || s.test || slices.Contains(longFunctions, qualified(s, f)) {
			continue
		}
		n := s.fset.Position(f.End()).Line - s.fset.Position(f.Pos()).Line + 1
		if n > maxFunctionLines {
			t.Errorf("%s: %s has %d lines: at most %d; keep control flow here and move the leaves "+
				"below", s.at(f), f.Name.Name, n, maxFunctionLines)
		}
	}
}

var todo = regexp.MustCompile(`\b(TODO|FIXME|XXX)\b(\(#\d+\))?`)

func checkComments(t *testing.T, s *source) {
	for _, g := range s.file.Comments {
		for _, m := range todo.FindAllStringSubmatch(g.Text(), -1) {
			if m[2] == "" && s.dir != "tools/lint" {
				t.Errorf("%s: %s without an issue: write TODO(#123), or do it", s.at(g), m[1])
			}
		}
	}
}

// checkGo refuses go statements outside a Run: whoever calls Run owns what it
// starts, and a sync.WaitGroup's Go says when it ends.
func checkGo(t *testing.T, s *source) {
	if s.test {
		return // tests start goroutines; goleak in TestMain judges them
	}
	for _, d := range s.file.Decls {
		f, ok := d.(*ast.FuncDecl)
		if ok && f.Name.Name == "Run" {
			continue
		}
		ast.Inspect(d, func(n ast.Node) bool {
			if g, ok := n.(*ast.GoStmt); ok {
				t.Errorf("%s: a go statement outside Run: use a WaitGroup's Go and wait for it, or "+
					"let Run own the loop", s.at(g))
			}
			return true
		})
	}
}

func checkCalls(t *testing.T, s *source) {
	library := strings.HasSuffix(s.dir, "test") // of tests
	waiting := waitingFunctions(s)
	bubble := slices.Contains(importPaths(s), "testing/synctest")
	isPure := contains(pure, s.dir) && !s.test && !slices.Contains(paced, s.path) &&
		!strings.HasSuffix(s.dir, "simtest")
	ast.Inspect(s.file, func(n ast.Node) bool {
		sel, ok := n.(*ast.SelectorExpr)
		if !ok {
			return true
		}
		x, ok := sel.X.(*ast.Ident)
		if !ok || x.Obj != nil || s.imports[x.Name] == "" {
			return true
		}
		pkg, name := s.imports[x.Name], sel.Sel.Name
		for _, c := range calls {
			mayWait := name == "Sleep" && (bubble || library || slices.ContainsFunc(waiting,
				func(f *ast.FuncDecl) bool { return f.Pos() <= sel.Pos() && sel.End() <= f.End() }))
			if c.pkg == pkg && c.name == name && !contains(c.where, s.dir) &&
				!(c.tests && (s.test || library)) && !mayWait {
				t.Errorf("%s: %s.%s: %s", s.at(sel), x.Name, name, c.why)
			}
		}
		if names, listed := impure[pkg]; listed && isPure &&
			(names == "" || slices.Contains(strings.Fields(names), name)) {
			t.Errorf("%s: %s.%s in a pure room: take now or a seed as an argument, so that the same "+
				"input gives the same bytes on every replica", s.at(sel), x.Name, name)
		}
		return true
	})
}

// waitingFunctions are those named eventually: they look at a state in a loop.
func waitingFunctions(s *source) []*ast.FuncDecl {
	var out []*ast.FuncDecl
	for _, d := range s.file.Decls {
		if f, ok := d.(*ast.FuncDecl); ok && s.test && strings.EqualFold(f.Name.Name, "eventually") {
			out = append(out, f)
		}
	}
	return out
}

func checkDeclarations(t *testing.T, s *source) {
	for _, d := range s.file.Decls {
		if f, ok := d.(*ast.FuncDecl); ok && f.Recv == nil && f.Name.Name == "init" && !s.test {
			t.Errorf("%s: init runs before anyone can pass an option: call it by name from New", s.at(f))
		}
	}
	ast.Inspect(s.file, func(n ast.Node) bool {
		spec, ok := n.(*ast.TypeSpec)
		if !ok {
			return true
		}
		if strings.HasSuffix(spec.Name.Name, "Impl") {
			t.Errorf("%s: %s: name a type after what it is; the interface belongs to its consumer",
				s.at(spec), spec.Name.Name)
		}
		return true
	})
}

// readSources parses every Go file that is not generated.
func readSources(t *testing.T) []*source {
	t.Helper()
	var all []*source
	err := filepath.WalkDir(root, func(p string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(root, p)
		if err != nil {
			return err
		}
		if e.IsDir() && rel != "." && (strings.HasPrefix(e.Name(), ".") || rel == "bin" ||
			rel == "data" || e.Name() == "testdata") {
			return fs.SkipDir
		}
		if e.IsDir() || !strings.HasSuffix(p, ".go") || strings.HasSuffix(p, ".pb.go") {
			return nil
		}
		s, err := readSource(p, filepath.ToSlash(rel))
		all = append(all, s)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

func readSource(file, rel string) (*source, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	s := &source{
		path: rel, dir: path.Dir(rel), test: strings.HasSuffix(rel, "_test.go"),
		text: text, fset: token.NewFileSet(), imports: map[string]string{},
	}
	s.file, err = parser.ParseFile(s.fset, file, text, parser.ParseComments)
	if err != nil {
		return nil, err
	}
	for _, imp := range s.file.Imports {
		p := strings.Trim(imp.Path.Value, `"`)
		name := path.Base(p)
		if imp.Name != nil {
			name = imp.Name.Name
		} else if regexp.MustCompile(`^v\d+$`).MatchString(name) {
			name = path.Base(path.Dir(p))
		}
		s.imports[name] = p
	}
	return s, nil
}

func importPaths(s *source) []string {
	var out []string
	for _, p := range s.imports {
		out = append(out, p)
	}
	return out
}

// qualified is dir.Function or dir.Type.Method.
func qualified(s *source, f *ast.FuncDecl) string {
	name := f.Name.Name
	if f.Recv != nil && len(f.Recv.List) == 1 {
		recv := f.Recv.List[0].Type
		if star, ok := recv.(*ast.StarExpr); ok {
			recv = star.X
		}
		if id, ok := recv.(*ast.Ident); ok {
			name = id.Name + "." + name
		}
	}
	return s.dir + "." + name
}
