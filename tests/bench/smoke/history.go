// Package smoke guards against regressions: a line per run with what does not
// depend on the machine's mood, allocations and ratios to raw pieces measured in
// the same run, and the comparison with the line before. Law: rates are kept for
// people and never judged; they differ from hour to hour.
package smoke

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"slices"
	"time"

	"github.com/ridgekv/ridge/tests/bench/report"
)

// Line is one run.
type Line struct {
	Date    time.Time      `json:"date"`
	Commit  string         `json:"commit"`
	Machine report.Machine `json:"machine"`
	// Allocs and Bytes are per operation, by benchmark.
	Allocs map[string]int64 `json:"allocs_per_op"`
	Bytes  map[string]int64 `json:"bytes_per_op"`
	// Ratios are rates of ours in those of a raw piece.
	Ratios map[string]float64 `json:"ratios"`
	// Rates are what the ratios are made of, and what else was seen.
	Rates map[string]float64 `json:"rates"`
}

// Last returns the newest line of the file; nil when there is none.
func Last(path string) (*Line, error) {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("smoke: %w", err)
	}
	defer f.Close()
	var last *Line
	lines := bufio.NewScanner(f)
	lines.Buffer(nil, 1<<20)
	for n := 1; lines.Scan(); n++ {
		one := new(Line)
		if err := json.Unmarshal(lines.Bytes(), one); err != nil {
			return nil, fmt.Errorf("smoke: %s:%d: %w", path, n, err)
		}
		// Branches append side by side, so the order is not that of time.
		if last == nil || !one.Date.Before(last.Date) {
			last = one
		}
	}
	return last, lines.Err()
}

// Append adds the line to the file.
func (l Line) Append(path string) error {
	text, err := json.Marshal(l)
	if err != nil {
		return fmt.Errorf("smoke: %w", err)
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		return fmt.Errorf("smoke: %w", err)
	}
	_, err = f.Write(append(text, '\n'))
	return errors.Join(err, f.Close())
}

// Change is one figure beside what it was.
type Change struct {
	Name     string
	Was, Is  float64
	Known    bool // there was such a figure
	Worse    bool // beyond what is tolerated
	Judgment string
}

// Bounds say what is tolerated.
type Bounds struct {
	// Ratio is the part a ratio may fall: the noise of two rounds of a few
	// seconds on a shared machine.
	Ratio float64
	// Allocs is the part allocations may grow where goroutines meet by chance;
	// where one goroutine runs alone they are exact.
	Allocs float64
}

// Compare sets now beside was, which may be nil. exact are the benchmarks whose
// allocations must not grow at all.
func Compare(was *Line, now Line, exact func(name string) bool, b Bounds) []Change {
	var out []Change
	if was == nil {
		was = &Line{}
	}
	for _, name := range slices.Sorted(maps.Keys(now.Allocs)) {
		before, known := was.Allocs[name]
		c := Change{Name: name, Was: float64(before), Is: float64(now.Allocs[name]), Known: known}
		bound := 0.0
		if !exact(name) {
			bound = b.Allocs
		}
		c.Worse = known && c.Is > c.Was*(1+bound)
		c.Judgment = fmt.Sprintf("allocations may grow by %g %%", bound*100)
		out = append(out, c)
	}
	for _, name := range slices.Sorted(maps.Keys(now.Ratios)) {
		before, known := was.Ratios[name]
		c := Change{Name: name, Was: before, Is: now.Ratios[name], Known: known}
		c.Worse = known && c.Is < c.Was*(1-b.Ratio)
		c.Judgment = fmt.Sprintf("the ratio may fall by %g %%", b.Ratio*100)
		out = append(out, c)
	}
	return out
}
