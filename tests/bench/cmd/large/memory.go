package main

import (
	"context"
	"fmt"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/dustin/go-humanize"

	"github.com/ridgekv/ridge/tests/harness"
)

// resident is what a process has in memory: its own, and pages of mapped files.
type resident struct{ anon, file uint64 }

// watch keeps the most that each process had.
type watch struct {
	mu  sync.Mutex
	max []resident
}

// run looks until ctx ends.
func (w *watch) run(ctx context.Context, of []*harness.Process) {
	w.mu.Lock()
	w.max = make([]resident, len(of))
	w.mu.Unlock()
	const interval = 200 * time.Millisecond
	for ctx.Err() == nil {
		for i, p := range of {
			if pid := p.PID(); pid != 0 {
				w.note(i, look(pid))
			}
		}
		harness.Rest(ctx, interval)
	}
}

func (w *watch) note(i int, m resident) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.max[i].anon, w.max[i].file = max(w.max[i].anon, m.anon), max(w.max[i].file, m.file)
}

func (w *watch) peaks() []resident {
	w.mu.Lock()
	defer w.mu.Unlock()
	return append([]resident(nil), w.max...)
}

func (w *watch) text() string {
	var out []string
	for _, m := range w.peaks() {
		out = append(out, humanize.IBytes(m.anon)+" + "+humanize.IBytes(m.file))
	}
	return "peaks " + strings.Join(out, ", ")
}

// look reads the kernel's account of a process.
func look(pid int) (m resident) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return m // It has ended.
	}
	for line := range strings.Lines(string(text)) {
		var kib uint64
		if _, err := fmt.Sscanf(line, "RssAnon: %d kB", &kib); err == nil {
			m.anon = kib << 10
		}
		if _, err := fmt.Sscanf(line, "RssFile: %d kB", &kib); err == nil {
			m.file = kib << 10
		}
	}
	return m
}
