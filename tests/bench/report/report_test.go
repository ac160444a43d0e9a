package report_test

import (
	"strings"
	"testing"
	"time"

	"github.com/ridgekv/ridge/tests/bench/report"
)

func point(phase int, system, workload string, callers int, ops, p99 float64) report.Point {
	return report.Point{
		Phase: phase, System: system, Workload: workload, Callers: callers, OpsPerSec: ops,
		All: report.Latency{P99: p99}, Rounds: []report.Round{{OpsPerSec: ops}},
	}
}

// A goal is met by the ratio and, against etcd, by the lower p99; points of
// different phases are not compared.
func TestRatios(t *testing.T) {
	r := report.Report{Date: time.Unix(0, 0), Points: []report.Point{
		point(1, "ridge", "put", 256, 500, 5), point(1, "etcd", "put", 256, 100, 6),
		point(1, "nats", "put", 256, 501, 1),
		point(1, "ridge", "get", 256, 900, 5), point(1, "etcd", "get", 256, 100, 4),
		point(2, "ridge@2", "put", 256, 499, 5), point(2, "etcd", "put", 256, 100, 6),
	}}
	want := map[string]bool{
		"1 etcd put": true, "1 nats put": false, "1 etcd get": false, "2 etcd put": false,
	}
	for _, v := range r.Ratios() {
		key := string(rune('0'+v.Ridge.Phase)) + " " + v.Peer.System + " " + v.Ridge.Workload
		met, known := want[key]
		if !known || v.Met != met {
			t.Errorf("%s: met %t, %+v", key, v.Met, v)
		}
		delete(want, key)
	}
	if len(want) > 0 {
		t.Errorf("not compared: %v", want)
	}
	if text := r.Markdown(); !strings.Contains(text, "| 5.00 (5.00-5.00) | 5    |") {
		t.Errorf("got\n%s", text)
	}
}
