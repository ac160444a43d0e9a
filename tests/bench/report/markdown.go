package report

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/dustin/go-humanize"
)

// Markdown is the report for people.
func (r Report) Markdown() string {
	var b strings.Builder
	fmt.Fprintf(&b, "# Ridge and its peers, %s\n\n", r.Date.UTC().Format(time.RFC3339))
	fmt.Fprintf(&b, "- commit %s\n- machine: %s\n- command: `%s`\n", r.Commit, r.Machine, r.Command)
	for _, s := range r.Settings {
		fmt.Fprintf(&b, "- %s\n", s)
	}
	r.failures(&b)
	r.ratios(&b)
	r.points(&b)
	r.ceilings(&b)
	return b.String()
}

func (r Report) failures(b *strings.Builder) {
	if len(r.Failures) == 0 {
		return
	}
	b.WriteString("\n## Failed\n\n")
	for _, f := range r.Failures {
		fmt.Fprintf(b, "- %s\n", f)
	}
}

func (r Report) ratios(b *strings.Builder) {
	all := r.Ratios()
	if len(all) == 0 {
		return
	}
	b.WriteString("\n## Ratios\n\nRates of Ridge in those of the peer (lowest to highest round); " +
		"p99 of the peer in that of Ridge, so above 1 is better in both.\n\n")
	t := newTable("system", "peer", "workload", "callers", "ops/s", "peer ops/s", "ratio", "goal",
		"p99 ms", "peer p99", "p99 ratio", "met")
	for _, v := range all {
		goal, met := "", ""
		if v.Goal > 0 {
			goal, met = fmt.Sprintf("%g", v.Goal), "no"
			if v.Met {
				met = "yes"
			}
		}
		t.row(v.Ridge.System, v.Peer.System, v.Ridge.Workload, fmt.Sprint(v.Ridge.Callers),
			rate(v.Ridge.OpsPerSec), rate(v.Peer.OpsPerSec),
			fmt.Sprintf("%.2f (%.2f-%.2f)", v.OpsRatio, v.Low, v.High), goal,
			millis(v.Ridge.All.P99), millis(v.Peer.All.P99), fmt.Sprintf("%.2f", v.P99Ratio), met)
	}
	t.write(b)
}

func (r Report) points(b *strings.Builder) {
	b.WriteString("\n## Points\n\nCPU is microseconds per operation of all the system's processes, " +
		"and of the client.\n\n")
	t := newTable("phase", "system", "workload", "callers", "ops/s", "rounds", "p50 ms", "p99 ms",
		"p99.9", "max", "server CPU", "client CPU", "leaders", "errors")
	for _, p := range r.Points {
		var rounds []string
		leaders := ""
		for _, v := range p.Rounds {
			rounds = append(rounds, rate(v.OpsPerSec))
			if len(v.Leaders) > 0 {
				leaders = strings.Trim(fmt.Sprint(v.Leaders), "[]")
			}
		}
		t.row(fmt.Sprint(p.Phase), p.System, p.Workload, fmt.Sprint(p.Callers), rate(p.OpsPerSec),
			strings.Join(rounds, " "), millis(p.All.P50), millis(p.All.P99), millis(p.All.P999),
			millis(p.All.Max), fmt.Sprintf("%.1f", p.ServerCPUMicros),
			fmt.Sprintf("%.1f", p.ClientCPUMicros), leaders, errorText(p.Errors))
	}
	t.write(b)
}

func errorText(errors map[string]int64) string {
	var all int64
	for v := range maps.Values(errors) {
		all += v
	}
	if all == 0 {
		return ""
	}
	first := slices.Sorted(maps.Keys(errors))[0]
	first = strings.NewReplacer("|", "/", "\n", " ").Replace(first)
	return fmt.Sprintf("%d: %s", all, first[:min(len(first), 100)])
}

func (r Report) ceilings(b *strings.Builder) {
	if len(r.Ceilings) == 0 {
		return
	}
	b.WriteString("\n## Ceilings\n\nThe pieces by themselves, in the same run.\n\n")
	t := newTable("piece", "rate", "rounds", "unit", "how")
	for _, c := range r.Ceilings {
		var rounds []string
		for _, v := range c.Rounds {
			rounds = append(rounds, rate(v))
		}
		t.row(c.Name, rate(c.Value), strings.Join(rounds, " "), c.Unit, c.Note)
	}
	t.write(b)
	all := r.Shares()
	if len(all) == 0 {
		return
	}
	b.WriteString("\nHow far Ridge is from them:\n\n")
	t = newTable("system", "workload", "rows/s", "piece", "part", "goal", "met")
	for _, s := range all {
		met := "no"
		if s.Part >= s.Goal {
			met = "yes"
		}
		t.row(s.Point.System, s.Point.Workload, rate(s.Point.OpsPerSec), s.Limit.Name,
			fmt.Sprintf("%.2f", s.Part), fmt.Sprintf("%g", s.Goal), met)
	}
	t.write(b)
}

func rate(v float64) string { return humanize.Comma(int64(v + 0.5)) }

func millis(v float64) string { return fmt.Sprintf("%.2f", v) }

// table is a Markdown table whose columns line up as plain text too.
type table struct{ rows [][]string }

func newTable(heads ...string) *table {
	rule := make([]string, len(heads))
	for i := range rule {
		rule[i] = "-"
	}
	return &table{rows: [][]string{heads, rule}}
}

func (t *table) row(cells ...string) { t.rows = append(t.rows, cells) }

func (t *table) write(b *strings.Builder) {
	widths := make([]int, len(t.rows[0]))
	for _, row := range t.rows {
		for i, cell := range row {
			widths[i] = max(widths[i], len(cell))
		}
	}
	for n, row := range t.rows {
		for i, cell := range row {
			pad := " "
			if n == 1 {
				pad = "-"
			}
			fmt.Fprintf(b, "| %s%s ", cell, strings.Repeat(pad, widths[i]-len(cell)))
		}
		b.WriteString("|\n")
	}
}
