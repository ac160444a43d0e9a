package workload_test

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/ridgekv/ridge/tests/bench/system"
	"github.com/ridgekv/ridge/tests/bench/workload"
)

func TestMain(m *testing.M) {
	code := m.Run()
	if err := goleak.Find(
		goleak.IgnoreTopFunction("github.com/golang/glog.(*fileSink).flushDaemon"),
	); err != nil && code == 0 {
		fmt.Println("goroutines are left:", err)
		code = 1
	}
	os.Exit(code)
}

// built builds a main package of the module in dir.
func built(t *testing.T, dir, name string) string {
	binary := filepath.Join(t.TempDir(), filepath.Base(name))
	out, err := exec.Command("go", "build", "-C", dir, "-o", binary, "./"+name).CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return binary
}

// TestEverySystemRunsEveryWorkload starts each system small, stops it where it
// stands as a run does between turns, and has it serve every workload for a
// moment: nothing may fail, and nothing but scans of NATS may be missing.
func TestEverySystemRunsEveryWorkload(t *testing.T) {
	rows := workload.NewRows(2000)
	for name, s := range map[string]system.System{
		"ridge": &system.Ridge{Binary: built(t, "../../..", "tools/ridge"), Splits: rows.Splits(4)},
		"etcd":  &system.Etcd{Binary: built(t, "..", "cmd/etcdnode")},
		"nats":  &system.NATS{Binary: built(t, "..", "cmd/natsnode")},
	} {
		t.Run(name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
			defer cancel()
			t.Cleanup(func() {
				if err := s.Close(); err != nil {
					t.Error(err)
				}
			})
			if err := s.Start(ctx, t.TempDir()); err != nil {
				t.Fatal(err)
			}
			conn, err := s.Open(ctx)
			if err != nil {
				t.Fatal(err)
			}
			if err := conn.Load(ctx, rows.All(0, rows.Len())); err != nil {
				t.Fatal(err)
			}
			if err := conn.Close(); err != nil {
				t.Fatal(err)
			}
			system.Suspend(s)
			conn, err = system.Resume(ctx, s, rows.Spread(20), 100*time.Millisecond)
			if err != nil {
				t.Fatal(err)
			}
			defer func() {
				if err := conn.Close(); err != nil {
					t.Error(err)
				}
			}()
			drive(ctx, t, name, conn, rows)
		})
	}
}

func drive(
	ctx context.Context, t *testing.T, name string, conn system.Conn, rows *workload.Rows,
) {
	all := map[string]workload.Workload{
		"put": workload.Put{Rows: rows}, "get": workload.Get{Rows: rows},
	}
	for _, mix := range []string{"a", "b", "e"} {
		if mix == "e" && name == "nats" {
			continue
		}
		w, err := workload.NewYCSB(mix, "uniform", rows)
		if err != nil {
			t.Fatal(err)
		}
		all[mix] = w
	}
	if _, ok := conn.Caller(0).(system.Batcher); ok {
		all["bulkwrite"], all["batchget"] = workload.BulkWrite{Rows: rows}, workload.BatchGet{Rows: rows}
	} else if name == "ridge" {
		t.Error("Ridge has no batches")
	}
	shape := workload.Shape{Callers: 8, Warm: 20 * time.Millisecond, Measured: 200 * time.Millisecond}
	for what, w := range all {
		r := workload.Drive(ctx, w, conn, shape, func() time.Duration { return 0 })
		if h := r.All(); h.TotalCount() == 0 || r.Failed() > 0 || h.Max() == 0 {
			t.Errorf("%s: %d operations, %d failed: %v", what, h.TotalCount(), r.Failed(), r.Errors)
		}
	}
}

// The keys, their order, and what is cut from them.
func TestRows(t *testing.T) {
	rows := workload.NewRows(1000)
	for i := 1; i < rows.Len(); i++ {
		if rows.Sorted(i-1) >= rows.Sorted(i) {
			t.Fatalf("%s is not below %s", rows.Sorted(i-1), rows.Sorted(i))
		}
	}
	seen := map[string]bool{}
	for i, row := range rows.All(0, rows.Len()) {
		if row.Key != rows.Key(i) || len(row.Value) != workload.ValueBytes || seen[row.Key] {
			t.Fatalf("row %d: %+v", i, row)
		}
		seen[row.Key] = true
		if rank := rows.Rank(row.Key); rows.Sorted(rank) != row.Key {
			t.Fatalf("%s has rank %d", row.Key, rank)
		}
	}
	splits := rows.Splits(4)
	if len(splits) != 3 || rows.Rank(splits[0]) != 250 || rows.Rank(splits[2]) != 750 {
		t.Fatalf("got %v", splits)
	}
}
