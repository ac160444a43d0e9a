// Package report turns what was measured into a table for people and a file for
// programs. Law: every figure carries the commit, the machine and the command
// that gave it, and what failed is shown as failed.
package report

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"
)

// Report is one run.
type Report struct {
	Date    time.Time `json:"date"`
	Commit  string    `json:"commit"`
	Command string    `json:"command"`
	Machine Machine   `json:"machine"`
	// Settings are what a reader must know to judge the figures.
	Settings []string `json:"settings"`
	Points   []Point  `json:"points"`
	Ceilings []Figure `json:"ceilings,omitempty"`
	// Failures are the systems that could not be measured, and why.
	Failures []string `json:"failures,omitempty"`
}

// Point is one workload on one system with a number of callers, all rounds.
type Point struct {
	// Phase tells which points were measured side by side.
	Phase    int     `json:"phase"`
	System   string  `json:"system"`
	Workload string  `json:"workload"`
	Callers  int     `json:"callers"`
	Rounds   []Round `json:"rounds"`
	// OpsPerSec is over all rounds, as are the latencies.
	OpsPerSec float64            `json:"ops_per_s"`
	All       Latency            `json:"latency"`
	Kinds     map[string]Latency `json:"kinds,omitempty"`
	// ServerCPUMicros and ClientCPUMicros are processor time per operation.
	ServerCPUMicros float64          `json:"server_cpu_us_per_op"`
	ClientCPUMicros float64          `json:"client_cpu_us_per_op"`
	Errors          map[string]int64 `json:"errors,omitempty"`
}

// Round is one turn of a point.
type Round struct {
	OpsPerSec float64 `json:"ops_per_s"`
	P99Millis float64 `json:"p99_ms"`
	// Leaders is how many ranges each of Ridge's stores led.
	Leaders []int `json:"leaders,omitempty"`
}

// Latency is a distribution of latencies in milliseconds.
type Latency struct {
	Count int64   `json:"count"`
	P50   float64 `json:"p50_ms"`
	P95   float64 `json:"p95_ms"`
	P99   float64 `json:"p99_ms"`
	P999  float64 `json:"p999_ms"`
	Max   float64 `json:"max_ms"`
}

// Figure is one ceiling.
type Figure struct {
	Name string `json:"name"`
	// Value is the mean of the rounds.
	Value  float64   `json:"value"`
	Rounds []float64 `json:"rounds"`
	Unit   string    `json:"unit"`
	Note   string    `json:"note,omitempty"`
}

// Ratio sets Ridge beside a peer at one point.
type Ratio struct {
	Ridge, Peer Point
	// OpsRatio is Ridge's rate in the peer's; Low and High are the extremes of
	// the rounds. P99Ratio is the peer's p99 in Ridge's: above 1 Ridge is faster.
	OpsRatio, Low, High, P99Ratio float64
	// Goal is the OpsRatio to reach; 0 means there is none. Met says if it was,
	// and if Ridge's p99 was the lower one where that is asked.
	Goal float64
	Met  bool
}

// Baselines are the names of the systems that others are compared with, and
// the p99 of which must be beaten as well.
var baselines = []struct {
	name    string
	wantP99 bool
}{{"etcd", true}, {"nats", false}}

type goalKey struct {
	workload string
	callers  int
}

// goals are the ratios to etcd that Ridge set itself.
var goals = map[goalKey]float64{
	{"put", 256}: 5, {"put", 1000}: 8, {"get", 256}: 8, {"get", 1000}: 14,
	{"a", 256}: 5, {"b", 256}: 8, {"e", 256}: 5,
}

// Ratios compares every other system with each baseline of its phase.
func (r Report) Ratios() []Ratio {
	var out []Ratio
	for _, base := range baselines {
		for _, peer := range r.Points {
			if peer.System != base.name {
				continue
			}
			for _, p := range r.Points {
				same := p.Phase == peer.Phase && p.Workload == peer.Workload &&
					p.Callers == peer.Callers
				if same && !isBaseline(p.System) && p.OpsPerSec > 0 && peer.OpsPerSec > 0 {
					out = append(out, compare(p, peer, base.name == "etcd", base.wantP99))
				}
			}
		}
	}
	return out
}

func isBaseline(name string) bool {
	for _, b := range baselines {
		if b.name == name {
			return true
		}
	}
	return false
}

func compare(ridge, peer Point, hasGoals, wantP99 bool) Ratio {
	r := Ratio{
		Ridge: ridge, Peer: peer, OpsRatio: ridge.OpsPerSec / peer.OpsPerSec,
		P99Ratio: peer.All.P99 / max(ridge.All.P99, 1e-3), Goal: 1,
	}
	if hasGoals {
		r.Goal = goals[goalKey{ridge.Workload, ridge.Callers}]
	}
	for i := range min(len(ridge.Rounds), len(peer.Rounds)) {
		if peer.Rounds[i].OpsPerSec == 0 {
			continue
		}
		one := ridge.Rounds[i].OpsPerSec / peer.Rounds[i].OpsPerSec
		if r.Low == 0 || one < r.Low {
			r.Low = one
		}
		r.High = max(r.High, one)
	}
	r.Met = r.OpsRatio >= r.Goal && (!wantP99 || r.P99Ratio > 1)
	return r
}

// shares are the parts of a ceiling that a workload is to reach.
var shares = []struct {
	workload, ceiling string
	goal              float64
}{{"bulkwrite", "Badger writes", 0.5}, {"batchget", "Badger reads", 0.7}}

// Share sets a system beside a ceiling.
type Share struct {
	Point Point
	Limit Figure
	// Part is the point's rate in that of the ceiling, Goal what it is to be.
	Part, Goal float64
}

// Shares says how far Ridge is from the limit.
func (r Report) Shares() []Share {
	var out []Share
	for _, s := range shares {
		for _, limit := range r.Ceilings {
			for _, p := range r.Points {
				if s.workload == p.Workload && s.ceiling == limit.Name && limit.Value > 0 {
					out = append(out, Share{p, limit, p.OpsPerSec / limit.Value, s.goal})
				}
			}
		}
	}
	return out
}

// Write writes the report as Markdown and as JSON into dir and returns their
// common path without the suffix.
func (r Report) Write(dir string) (string, error) {
	slices.SortStableFunc(r.Points, func(a, b Point) int { return cmp.Compare(a.Phase, b.Phase) })
	text, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return "", fmt.Errorf("report: %w", err)
	}
	path := filepath.Join(dir, "peers-"+r.Date.Format("20060102-150405")+"-"+r.Commit)
	return path, errors.Join(
		os.MkdirAll(dir, 0o755),
		os.WriteFile(path+".json", append(text, '\n'), 0o644),
		os.WriteFile(path+".md", []byte(r.Markdown()), 0o644),
	)
}
