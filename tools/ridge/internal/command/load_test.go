package command

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/ridgekv/ridge/client"
	"github.com/ridgekv/ridge/proto/errs"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// memory is a cluster of one map that fails as it is told.
type memory struct {
	mu   sync.Mutex
	rows map[string]string
	fail func(n int) (applied int, err error)
}

func (m *memory) BulkWrite(
	_ context.Context, ms []client.Mutation, _ ...client.Option,
) (client.BulkResult, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	applied, err := len(ms), error(nil)
	if m.fail != nil {
		applied, err = m.fail(len(ms))
	}
	r := client.BulkResult{Applied: applied}
	for i, one := range ms {
		if i < applied {
			m.rows[string(one.Key)] = string(one.Value)
			continue
		}
		if client.IsUnknown(err) {
			r.Unknown = append(r.Unknown, i)
		} else {
			r.Pending = append(r.Pending, i)
		}
	}
	return r, err
}

func newLoader(m *memory, resume string) *loader {
	return &loader{
		kv: m, source: "rows", resume: resume, parallel: 4, patience: 5 * time.Second, bar: &bar{},
	}
}

func lines(n int) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, "{\"key\":\"k%d\",\"value\":\"v%d\"}\n", i%(n/2), i)
	}
	return b.String()
}

// TestLoadOrder: of several rows of one key the last line wins.
func TestLoadOrder(t *testing.T) {
	m := &memory{rows: map[string]string{}}
	const n = 20_000
	if err := newLoader(m, "").run(t.Context(), strings.NewReader(lines(n))); err != nil {
		t.Fatal(err)
	}
	if len(m.rows) != n/2 {
		t.Errorf("%d rows", len(m.rows))
	}
	for i := range n / 2 {
		if got, want := m.rows[fmt.Sprintf("k%d", i)], fmt.Sprintf("v%d", i+n/2); got != want {
			t.Fatalf("k%d = %s, want %s", i, got, want)
		}
	}
}

// TestLoadThroughFaults: unknown outcomes and refusals are written again.
func TestLoadThroughFaults(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 2))
	m := &memory{rows: map[string]string{}, fail: func(n int) (int, error) {
		switch rnd.IntN(4) {
		case 0:
			return rnd.IntN(n), errs.UnknownOutcome{RangeID: 1}
		case 1:
			return rnd.IntN(n), errs.NotLeader{RangeID: 1}
		}
		return n, nil
	}}
	if err := newLoader(m, "").run(t.Context(), strings.NewReader(lines(10_000))); err != nil {
		t.Fatal(err)
	}
	if len(m.rows) != 5_000 {
		t.Errorf("%d rows", len(m.rows))
	}
}

// TestLoadResume: a run that stops anywhere is finished by the next ones.
func TestLoadResume(t *testing.T) {
	text := lines(50_000)
	resume := filepath.Join(t.TempDir(), "progress")
	m := &memory{rows: map[string]string{}}
	calls := 0
	m.fail = func(n int) (int, error) {
		if calls++; calls%5 == 0 {
			return 0, errs.DiskFull{StoreID: 3}
		}
		return n, nil
	}
	runs := 0
	for ; ; runs++ {
		err := newLoader(m, resume).run(t.Context(), strings.NewReader(text))
		if err == nil {
			break
		}
		if _, full := errors.AsType[errs.DiskFull](err); !full || runs > 100 {
			t.Fatal(err)
		}
	}
	if runs == 0 {
		t.Error("no run was stopped")
	}
	for i := range 25_000 {
		if got, want := m.rows[fmt.Sprintf("k%d", i)], fmt.Sprintf("v%d", i+25_000); got != want {
			t.Fatalf("k%d = %s, want %s", i, got, want)
		}
	}
	other := newLoader(m, resume)
	other.source = "others"
	if err := other.run(t.Context(), strings.NewReader(text)); err == nil {
		t.Error("the progress of another file is accepted")
	}
	if err := newLoader(m, resume).run(t.Context(), strings.NewReader("{}")); err == nil {
		t.Error("a file that became shorter is accepted")
	}
	if err := os.WriteFile(resume, []byte("hello"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := newLoader(m, resume).run(t.Context(), strings.NewReader(text)); err == nil {
		t.Error("nonsense is accepted as progress")
	}
}

// TestLoadTruncated: what stands before a cut line is loaded, and the error
// names the line.
func TestLoadTruncated(t *testing.T) {
	m := &memory{rows: map[string]string{}}
	resume := filepath.Join(t.TempDir(), "progress")
	text := "{\"key\":\"a\",\"value\":\"1\"}\n\n{\"key\":\"b\",\"value\":\"2\"}\n{\"key\":\"c\",\"val"
	err := newLoader(m, resume).run(t.Context(), strings.NewReader(text))
	if err == nil || !strings.Contains(err.Error(), "line 4") ||
		!strings.Contains(err.Error(), "cut off") {
		t.Errorf("got %v", err)
	}
	if len(m.rows) != 2 {
		t.Errorf("rows: %v", m.rows)
	}
	// The file is completed and the load goes on.
	err = newLoader(m, resume).run(t.Context(), strings.NewReader(text+"ue\":\"3\"}"))
	if err != nil || m.rows["c"] != "3" {
		t.Errorf("got %v, rows %v", err, m.rows)
	}
}

func TestLoadCancelled(t *testing.T) {
	m := &memory{rows: map[string]string{}, fail: func(int) (int, error) {
		return 0, errs.NotLeader{RangeID: 1}
	}}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := newLoader(m, "").run(ctx, strings.NewReader(lines(10))); err == nil {
		t.Error("no error")
	}
}
