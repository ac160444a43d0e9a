package smoke

import (
	"context"
	"fmt"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
)

// Room is a package whose benchmarks are run.
type Room struct {
	// Name is that of the test binary, without the suffix.
	Name string
	// Pattern selects benchmarks, Time is -test.benchtime.
	Pattern, Time string
	// Exact says that nothing but the benchmark allocates.
	Exact bool
}

// Rooms are those on the path of an operation.
var Rooms = []Room{
	{Name: "engine", Pattern: "^BenchmarkCommit$/^rows=500$", Time: "1s"},
	{
		Name: "engine", Pattern: "^BenchmarkGet$/^(cache|nocache)$/^(hit|miss)$", Time: "300000x",
		Exact: true,
	},
	{Name: "engine", Pattern: "^BenchmarkScan$/^at=0$/^reverse=false$/^limit=1000$", Time: "500x"},
	{Name: "evaluate", Pattern: "^BenchmarkEvaluate$", Time: "100000x"},
	{Name: "client", Pattern: "^BenchmarkRoundTrip$", Time: "10000x"},
	{Name: "route", Pattern: "^BenchmarkFind$", Time: "2000000x", Exact: true},
}

// IsExact reports whether the allocations of a benchmark must not grow at all.
func IsExact(name string) bool {
	for _, r := range Rooms {
		benchmark, _, _ := strings.Cut(strings.TrimPrefix(r.Pattern, "^Benchmark"), "$")
		if r.Exact && strings.HasPrefix(name, r.Name+"/"+benchmark) {
			return true
		}
	}
	return false
}

// Seen is what one benchmark gave.
type Seen struct {
	Name          string
	NsPerOp       float64
	Bytes, Allocs int64
	// Rows is the metric rows/s, where there is one.
	Rows float64
}

// Run runs a room's benchmarks from the binaries in dir.
func (r Room) Run(ctx context.Context, dir string) ([]Seen, error) {
	binary, err := filepath.Abs(filepath.Join(dir, r.Name+".test"))
	if err != nil {
		return nil, err
	}
	cmd := exec.CommandContext(ctx, binary, "-test.run=^$", "-test.bench="+r.Pattern,
		"-test.benchtime="+r.Time, "-test.benchmem", "-test.timeout=60s")
	out, err := cmd.CombinedOutput()
	if err != nil {
		return nil, fmt.Errorf("smoke: benchmarks of %s: %w\n%s", r.Name, err, out)
	}
	seen := parse(r.Name, string(out))
	if len(seen) == 0 {
		return nil, fmt.Errorf("smoke: %s has no benchmark %s any more", r.Name, r.Pattern)
	}
	return seen, nil
}

// resultLine is BenchmarkName/case-2  1000  123 ns/op  9 rows/s  1 B/op  2 allocs/op.
var resultLine = regexp.MustCompile(`^Benchmark(\S+?)(?:-\d+)?\s+\d+\s+(.*)$`)

func parse(room, out string) []Seen {
	var all []Seen
	for line := range strings.Lines(out) {
		m := resultLine.FindStringSubmatch(strings.TrimSpace(line))
		if m == nil {
			continue
		}
		s := Seen{Name: room + "/" + m[1]}
		fields := strings.Fields(m[2])
		for i := 0; i+1 < len(fields); i += 2 {
			v, err := strconv.ParseFloat(fields[i], 64)
			if err != nil {
				continue
			}
			switch fields[i+1] {
			case "ns/op":
				s.NsPerOp = v
			case "B/op":
				s.Bytes = int64(v)
			case "allocs/op":
				s.Allocs = int64(v)
			case "rows/s":
				s.Rows = v
			}
		}
		all = append(all, s)
	}
	return all
}
