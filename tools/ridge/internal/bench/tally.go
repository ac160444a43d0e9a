package bench

import (
	"context"
	"errors"

	"github.com/HdrHistogram/hdrhistogram-go"

	"github.com/ridgekv/ridge/client"
	"github.com/ridgekv/ridge/proto/errs"
)

// highest is the largest latency a histogram tells apart: ten minutes, in
// microseconds. The largest of all is kept beside it, exactly.
const highest = 600_000_000

// histogramBudget bounds the memory of all histograms of a run at 3 digits. It
// is about a processor's cache: when a thousand callers count in histograms of
// 170 KiB each, the misses cost more than the rest of the generator.
const histogramBudget = 16 << 20

// tally is what one caller has seen of one kind of operation.
type tally struct {
	latency *hdrhistogram.Histogram
	// sum and most are of the latencies in it, in nanoseconds.
	sum, most int64
	// ended and rowsEnded count what succeeded and ended inside the window.
	ended, rowsEnded       int64
	rows, missing, retries int64
	// faults counts failures by class.
	faults map[string]*fault
}

// fault is a class of failures.
type fault struct {
	count, longest int64
	example        string
}

// digits is the precision of the histograms: 3 significant digits, or 2, which
// is a hundredth, for more than about 90 callers.
func (p *plan) digits() int {
	one := hdrhistogram.New(1, highest, 3).ByteSize()
	if one*p.c.Callers*len(p.mix) <= histogramBudget {
		return 3
	}
	return 2
}

func newTally(digits int) *tally {
	return &tally{latency: hdrhistogram.New(1, highest, digits)}
}

// record takes one operation that took so many nanoseconds.
func (t *tally) record(took int64, out Outcome, err error) {
	if err != nil {
		t.fail(took, err)
		return
	}
	// It cannot fail: the value is within the bounds.
	_ = t.latency.RecordValue(min(max(took/1000, 0), highest))
	t.sum += took
	t.most = max(t.most, took)
	t.rows += int64(out.Rows)
	t.missing += int64(out.Missing)
	t.retries += int64(out.Retries)
}

func (t *tally) fail(took int64, err error) {
	if t.faults == nil {
		t.faults = map[string]*fault{}
	}
	class := errorClass(err)
	f := t.faults[class]
	if f == nil {
		f = &fault{example: err.Error()}
		t.faults[class] = f
	}
	f.count++
	f.longest = max(f.longest, took)
}

// merge adds what another caller has seen.
func (t *tally) merge(other *tally) {
	t.latency.Merge(other.latency)
	t.sum += other.sum
	t.most = max(t.most, other.most)
	t.ended += other.ended
	t.rowsEnded += other.rowsEnded
	t.rows += other.rows
	t.missing += other.missing
	t.retries += other.retries
	for class, f := range other.faults {
		if t.faults == nil {
			t.faults = map[string]*fault{}
		}
		mine := t.faults[class]
		if mine == nil {
			mine = &fault{example: f.example}
			t.faults[class] = mine
		}
		mine.count += f.count
		mine.longest = max(mine.longest, f.longest)
	}
}

// failed counts all failures.
func (t *tally) failed() int64 {
	n := int64(0)
	for _, f := range t.faults {
		n += f.count
	}
	return n
}

// errorClass names what kind of error err is: the name of Ridge's own error on
// the wire, such as busy or not_leader, or what the client adds to them. A call
// that ran out of time is a timeout, whatever it met on the way, unless a write
// may have happened.
func errorClass(err error) string {
	switch {
	case client.IsUnknown(err):
		return "unknown_outcome"
	case errors.Is(err, errSwapsLost):
		return "swaps_lost"
	case errors.Is(err, context.DeadlineExceeded):
		return "timeout"
	case errors.Is(err, client.ErrClosed):
		return "closed"
	}
	p := errs.ToProto(err).ProtoReflect()
	detail := p.WhichOneof(p.Descriptor().Oneofs().ByName("detail"))
	_, own := errors.AsType[errs.Unavailable](err)
	if detail == nil || (detail.Name() == "unavailable" && !own) {
		return "other"
	}
	return string(detail.Name())
}
