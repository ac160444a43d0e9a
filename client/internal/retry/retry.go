// Package retry decides what follows an error: again, elsewhere or never; how
// long to wait before; and, in the end, where the time went. Law: an unknown
// outcome is final, so nothing that may have happened is sent twice.
package retry

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"time"
)

// Kind is a cause of waiting. Its name appears in the final error.
type Kind int

// The kinds, and how their time reads in the final error.
const (
	NotLeader   Kind = iota // 7.1s not-leader on range 12
	NoRange                 // 200ms looking for range 12
	Moved                   // 40ms following a split of range 12
	Dialing                 // 2.7s dialing store 3
	Broken                  // 10ms connection lost to store 3
	Silent                  // 1s no answer from store 3
	Busy                    // 800ms busy at store 3
	Unavailable             // 3s unavailable: quorum of range 12
	Locked                  // 50ms locked key on range 12
	PD                      // 500ms waiting for pd
	Working                 // 12ms working: time in calls that succeeded
	kinds
)

// rule is the behaviour of one kind: waits grow from base to limit, and all
// waits of the kind together may take budget.
type rule struct {
	name        string
	base, limit time.Duration
	// free is how many first tries need no wait, because the error itself says
	// where to go.
	free   int
	budget time.Duration
}

const ms = time.Millisecond

// rules is the table of backoff. Failover must take less than two seconds, so
// whatever looks for a leader waits at most 100ms.
var rules = [kinds]rule{
	NotLeader:   {"not-leader on", 10 * ms, 100 * ms, 0, time.Minute},
	NoRange:     {"looking for", 10 * ms, 100 * ms, 1, 30 * time.Second},
	Moved:       {"following a split of", 2 * ms, 50 * ms, 2, 30 * time.Second},
	Dialing:     {"dialing", 10 * ms, 100 * ms, 1, time.Minute},
	Broken:      {"connection lost to", 10 * ms, 100 * ms, 1, time.Minute},
	Silent:      {"no answer from", 10 * ms, 100 * ms, 1, time.Minute},
	Busy:        {"busy at", 5 * ms, time.Second, 0, time.Minute},
	Unavailable: {"unavailable:", 20 * ms, 200 * ms, 0, time.Minute},
	Locked:      {"locked key on", 5 * ms, 100 * ms, 0, 20 * time.Second},
	PD:          {"waiting for", 10 * ms, 200 * ms, 1, time.Minute},
	Working:     {"working on", 0, 0, 0, time.Hour},
}

// String is the name of k as metrics show it.
func (k Kind) String() string {
	return [kinds]string{
		"not_leader", "no_range", "moved", "dialing", "broken", "silent",
		"busy", "unavailable", "locked", "pd", "working",
	}[k]
}

// Cause is a kind and the thing it happened at: "range 12", "store 3".
type Cause struct {
	Kind  Kind
	Where string
}

func (c Cause) String() string { return rules[c.Kind].name + " " + c.Where }

// Log is the memory of one operation: its waits by cause. It belongs to one
// goroutine; parallel parts of an operation Fork it.
type Log struct {
	start  time.Time
	mark   time.Time
	tries  [kinds]int
	spent  [kinds]time.Duration
	causes []spent
	last   error
	// onRetry, if set, is told each cause (metrics).
	onRetry func(Kind)
}

type spent struct {
	cause Cause
	time  time.Duration
}

// maxCauses bounds how many causes one operation remembers one by one.
const maxCauses = 16

// NewLog starts the clock of an operation.
func NewLog(onRetry func(Kind)) *Log { return NewLogSince(time.Now(), onRetry) }

// NewLogSince is the log of an operation that began before.
func NewLogSince(began time.Time, onRetry func(Kind)) *Log {
	return &Log{start: began, mark: began, onRetry: onRetry}
}

// Began is when the operation began.
func (l *Log) Began() time.Time { return l.start }

// Fork returns a log for a parallel part: it has its own budgets and reports
// its own time.
func (l *Log) Fork() *Log { return NewLog(l.onRetry) }

// Delay is how long the next wait for kind k would be: hint, if the server
// gave one, else growing with every try and jittered by a half.
func (l *Log) Delay(k Kind, hint time.Duration) time.Duration {
	r := rules[k]
	n := l.tries[k] - r.free
	if n < 0 {
		return 0
	}
	d := r.limit
	if n < 20 {
		d = min(r.base<<n, r.limit)
	}
	// A hint is a floor, but no server may put a client to sleep for long.
	d = max(d, min(hint, 2*r.limit))
	if d <= 0 {
		return 0
	}
	return d/2 + rand.N(d/2+1)
}

// Wait records that err was met for cause and sleeps before the next try. It
// returns nil when there may be one, else the final error.
func (l *Log) Wait(ctx context.Context, cause Cause, hint time.Duration, err error) error {
	return l.WaitFor(ctx, nil, cause, hint, err)
}

// WaitFor is Wait that ends early when wake is closed.
func (l *Log) WaitFor(
	ctx context.Context, wake <-chan struct{}, cause Cause, hint time.Duration, err error,
) error {
	if l.last != nil && timeIsUp(ctx) {
		// This try failed for lack of time; the one before says more.
		err = l.last
	}
	l.last = err
	if l.onRetry != nil {
		l.onRetry(cause.Kind)
	}
	d := l.Delay(cause.Kind, hint)
	l.tries[cause.Kind]++
	if deadline, ok := ctx.Deadline(); ok && time.Until(deadline) < d {
		d = max(time.Until(deadline), 0)
	}
	wakeErr := sleep(ctx, wake, d)
	l.Spend(cause)
	if wakeErr != nil {
		return l.Final(ctx, err)
	}
	if l.spent[cause.Kind] > rules[cause.Kind].budget {
		return l.Final(ctx, err)
	}
	return nil
}

// Spend books the time since the last booking to cause.
func (l *Log) Spend(cause Cause) {
	now := time.Now()
	d := now.Sub(l.mark)
	l.mark = now
	l.spent[cause.Kind] += d
	for i := range l.causes {
		if l.causes[i].cause == cause {
			l.causes[i].time += d
			return
		}
	}
	if len(l.causes) == maxCauses {
		l.causes[maxCauses-1].time += d
		l.causes[maxCauses-1].cause = Cause{Kind: cause.Kind, Where: "others"}
		return
	}
	l.causes = append(l.causes, spent{cause, d})
}

// Tries is how many waits of kind k there were.
func (l *Log) Tries(k Kind) int { return l.tries[k] }

// Relax forgets the tries of kind k, so that its next wait is short: there was
// progress.
func (l *Log) Relax(k Kind) { l.tries[k] = 0 }

// Final is the error that ends the operation: err, what the context says about
// it, and where the time went. Without the latter two it is err itself.
func (l *Log) Final(ctx context.Context, err error) error {
	if err == nil {
		err = l.last
	}
	if ctx.Err() == nil && l.Report() == "" {
		return err
	}
	return &Error{Spent: l.Report(), Err: err, Context: ctx.Err()}
}

// Report says where the time went, longest first, without what took less than
// a hundredth; empty if nothing was waited for.
func (l *Log) Report() string {
	if len(l.causes) == 0 {
		return ""
	}
	causes := slices.Clone(l.causes)
	slices.SortStableFunc(causes, func(a, b spent) int { return int(b.time - a.time) })
	total := time.Since(l.start)
	parts := make([]string, 0, len(causes))
	for _, c := range causes {
		if short := round(c.time); short > 0 && c.time >= total/100 {
			parts = append(parts, fmt.Sprintf("%v %s", short, c.cause))
		}
	}
	if len(parts) == 0 {
		return ""
	}
	return fmt.Sprintf("%v spent: %s", round(total), strings.Join(parts, ", "))
}

// Error is the final error of an operation that was retried.
type Error struct {
	// Spent says where the time went.
	Spent string
	// Err is the last error met.
	Err error
	// Context is the context's error if the operation ended with it.
	Context error
}

func (e *Error) Error() string {
	var parts []string
	if e.Context != nil {
		parts = append(parts, e.Context.Error())
	}
	if e.Spent != "" {
		parts = append(parts, e.Spent)
	}
	if e.Err != nil {
		parts = append(parts, "last: "+e.Err.Error())
	}
	return strings.Join(parts, "; ")
}

// Unwrap gives both the last error and the context's.
func (e *Error) Unwrap() []error {
	var out []error
	for _, err := range []error{e.Err, e.Context} {
		if err != nil {
			out = append(out, err)
		}
	}
	return out
}

// timeIsUp allows for a server that sees the deadline a little earlier.
func timeIsUp(ctx context.Context) bool {
	deadline, ok := ctx.Deadline()
	return ctx.Err() != nil || ok && time.Until(deadline) < 5*time.Millisecond
}

func sleep(ctx context.Context, wake <-chan struct{}, d time.Duration) error {
	if err := ctx.Err(); err != nil || d <= 0 {
		return err
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return ctx.Err()
	case <-wake:
		return ctx.Err()
	case <-ctx.Done():
		return ctx.Err()
	}
}

// round makes a duration readable: tenths of seconds, else milliseconds, else
// nothing below a tenth of a millisecond.
func round(d time.Duration) time.Duration {
	switch {
	case d >= time.Second:
		return d.Round(100 * time.Millisecond)
	case d >= time.Millisecond:
		return d.Round(time.Millisecond)
	default:
		return d.Round(100 * time.Microsecond)
	}
}
