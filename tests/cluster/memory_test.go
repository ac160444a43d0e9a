package cluster

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ridgekv/ridge/tests/harness"
)

// TestMemoryBudget: many callers write large values, which is more than three
// stores on one machine can take, and no store goes beyond its memory, but for
// what a garbage collector is late. Pages of files are the kernel's.
func TestMemoryBudget(t *testing.T) {
	const budgetMiB = 512
	c := harness.New(t, harness.Options{Memory: fmt.Sprintf("%dMB", budgetMiB)})
	c.Run(t, 0, "put", "k", "v")
	w := watchMemory(t, c)
	r := parseBench(t, c.Run(t, 0, "bench", "run", "-w", "write", "--value-size", "65536",
		"--callers", "400", "--operations", "6000", "--warmup", "0", "--timeout", "30s", "-o", "json"))
	peaks := w.stop()
	t.Logf("%.0f operations/s, %d of %d failed, peaks %v MiB",
		r.OperationsPerSecond, r.Failed, r.Failed+r.Operations, peaks)
	if r.Operations < 3000 {
		t.Errorf("only %d operations succeeded", r.Operations)
	}
	for i, peak := range peaks {
		if peak == 0 || peak > budgetMiB*5/4 {
			t.Errorf("store %d had %d MiB, its budget is %d", i+1, peak, budgetMiB)
		}
	}
}

// memoryWatch notes the most memory that the stores have beside files.
type memoryWatch struct {
	wg     sync.WaitGroup
	cancel context.CancelFunc
	peaks  []int
}

func watchMemory(t *testing.T, c *harness.Cluster) *memoryWatch {
	ctx, cancel := context.WithCancel(t.Context())
	w := &memoryWatch{cancel: cancel, peaks: make([]int, len(c.Stores))}
	t.Cleanup(cancel)
	w.wg.Go(func() {
		tick := time.NewTicker(50 * time.Millisecond)
		defer tick.Stop()
		for {
			for i, p := range c.Stores {
				w.peaks[i] = max(w.peaks[i], anonymousMiB(p.PID()))
			}
			select {
			case <-tick.C:
			case <-ctx.Done():
				return
			}
		}
	})
	return w
}

func (w *memoryWatch) stop() []int {
	w.cancel()
	w.wg.Wait()
	return w.peaks
}

// anonymousMiB is the resident memory of a process that is not of a file.
func anonymousMiB(pid int) int {
	f, err := os.Open(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0
	}
	defer f.Close()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		if rest, ok := strings.CutPrefix(lines.Text(), "RssAnon:"); ok {
			kib := 0
			_, _ = fmt.Sscan(rest, &kib)
			return kib >> 10
		}
	}
	return 0
}
