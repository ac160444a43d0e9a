package simtest

import (
	"fmt"
	"math"
	"strings"
	"text/tabwriter"
	"time"
)

// results are what became of trials, as a table.
type results struct {
	rows                             []string
	failed, ranges, moves, operators int
	worst                            int
	longest                          time.Duration
}

// add takes in a trial that is over, whether it failed or not. Least is how many
// moves of replicas would do; rest the longest time until PD wanted nothing;
// margin is how many voters more could be lost by the range that could spare
// fewest, at the worst instant.
func (r *results) add(scenario string, seed uint64, x *trial, took time.Duration) {
	if x.Cluster == nil {
		return // it ended before it began
	}
	least, margin, result := "-", "-", "ok"
	if x.least >= 0 {
		least = fmt.Sprint(x.least)
	}
	if x.worst != math.MaxInt {
		margin = fmt.Sprint(x.worst)
	}
	if x.Failed() {
		result = "FAILED"
		r.failed++
	}
	if len(r.rows) == 0 {
		r.worst = math.MaxInt
		r.rows = append(r.rows, "scenario\tseed\tranges\tstores\tmoves\tleast\ttransfers\tsplits\t"+
			"rest after\tvirtual\ttook\tmargin\t")
	}
	r.ranges, r.moves = r.ranges+len(x.ranges), r.moves+x.Moves
	r.operators, r.worst = r.operators+x.Planned, min(r.worst, x.worst)
	r.longest = max(r.longest, x.rest)
	r.rows = append(r.rows, fmt.Sprintf("%s\t%d\t%d\t%d\t%d\t%s\t%d\t%d\t%s\t%s\t%s\t%s\t%s",
		scenario, seed, len(x.ranges), len(x.stores), x.Moves, least, x.Transfers, x.Splits,
		x.rest.Round(time.Second), x.now.Sub(genesis).Round(time.Minute),
		took.Round(100*time.Millisecond), margin, result))
}

// String is the table.
func (r *results) String() string {
	var out strings.Builder
	w := tabwriter.NewWriter(&out, 0, 0, 2, ' ', 0)
	for _, row := range r.rows {
		fmt.Fprintln(w, row)
	}
	w.Flush()
	return fmt.Sprintf("%s\n%d trials, %d failed: %d ranges, %d moves, %d operators, worst margin %d, "+
		"longest time to rest %s", "\n"+out.String(), max(0, len(r.rows)-1), r.failed, r.ranges, r.moves,
		r.operators, r.worst, r.longest.Round(time.Second))
}
