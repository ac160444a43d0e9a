package command

import (
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/dustin/go-humanize"
	"github.com/spf13/cobra"

	"github.com/ridgekv/ridge/tools/ridge/internal/bench"
)

// print answers with the report.
func (b *benchmark) print(cmd *cobra.Command, r *bench.Report) error {
	out := cmd.OutOrStdout()
	if b.json() {
		return b.object(out, struct {
			Version string `json:"version"`
			*bench.Report
		}{Version, r})
	}
	printHead(out, r)
	rows := make([][]string, 0, len(r.Kinds)+1)
	for _, k := range r.Kinds {
		rows = append(rows, kindRow(k))
	}
	if len(r.Kinds) > 1 {
		rows = append(rows, kindRow(r.All))
	}
	err := b.table(out,
		strings.Fields("OPERATION OPS/S COUNT FAILED MEAN P50 P95 P99 P99.9 MAX"), rows)
	if err != nil {
		return err
	}
	printRemarks(out, r)
	return nil
}

func printHead(w io.Writer, r *bench.Report) {
	c := r.Config
	if c.Workload == bench.LoadWorkload {
		fmt.Fprintf(w, "loaded %s keys of %s in %s: %s rows/s, %d callers, seed %d\n\n",
			humanize.Comma(r.All.Rows), humanize.IBytes(uint64(c.ValueSizeBytes)),
			micros(float64(r.ElapsedUs)), humanize.Comma(int64(r.RowsPerSecond)), c.Callers, c.Seed)
		return
	}
	fmt.Fprintf(w, "workload %s (%s) over %s keys of %s, %d callers, %s reads, seed %d\n",
		c.Workload, c.Distribution, humanize.Comma(c.Keys), humanize.IBytes(uint64(c.ValueSizeBytes)),
		c.Callers, c.Consistency, c.Seed)
	fmt.Fprintf(w, "%s operations/s, %s rows/s in %s\n",
		humanize.Comma(int64(r.OperationsPerSecond)), humanize.Comma(int64(r.RowsPerSecond)),
		micros(float64(r.ElapsedUs)))
	if o := r.OpenLoop; o != nil {
		fmt.Fprintf(w, "open loop: %v a second, %s due, %s started late, %s not started; "+
			"from the call on p50 %s, p99 %s\n", c.Rate,
			humanize.Comma(o.Due), humanize.Comma(o.StartedLate), humanize.Comma(o.NotStarted),
			micros(float64(o.CalledP50Us)), micros(float64(o.CalledP99Us)))
	}
	fmt.Fprintln(w)
}

func kindRow(k bench.KindReport) []string {
	row := []string{
		k.Kind, humanize.Comma(int64(k.OperationsPerSecond)), humanize.Comma(k.Operations),
		humanize.Comma(k.Failed), micros(k.MeanUs),
	}
	for _, us := range []int64{k.P50Us, k.P95Us, k.P99Us, k.P999Us, k.MaxUs} {
		row = append(row, micros(float64(us)))
	}
	return row
}

// printRemarks says what the table does not.
func printRemarks(w io.Writer, r *bench.Report) {
	if r.All.Missing > 0 {
		fmt.Fprintf(w, "\n%s keys that were read do not exist\n", humanize.Comma(r.All.Missing))
	}
	if r.All.Retries > 0 {
		fmt.Fprintf(w, "\n%s compare-and-swaps were lost to other writers and tried again\n",
			humanize.Comma(r.All.Retries))
	}
	for _, e := range r.Errors {
		fmt.Fprintf(w, "\nfailed: %s x %s %s, the longest after %s\n  for example: %s\n",
			humanize.Comma(e.Count), e.Kind, e.Class, micros(float64(e.LongestUs)), e.Example)
	}
	if o := r.OpenLoop; o != nil && o.NotStarted > 0 {
		fmt.Fprintf(w, "\nThe schedule was not kept: all callers were busy. Latencies would be higher "+
			"still.\nGive more --callers if the cluster has room, or a lower --rate.\n")
	}
}

// micros writes a number of microseconds with three significant digits.
func micros(us float64) string {
	return bench.Short(time.Duration(us * float64(time.Microsecond)))
}
