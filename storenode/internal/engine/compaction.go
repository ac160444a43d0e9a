package engine

import (
	"math"
	"runtime"
	"strings"
	"sync"
	"time"
)

// compactionPacer keeps compactions from taking all processors. Badger cuts a
// compaction into up to five parts and runs them all, as fast as they can.
// Go lets a goroutine that computes go on for 10 ms while others wait for its
// processor, and a write passes through some ten goroutines of three stores: with
// five such parts in each store, writes waited for a second and more, and their
// rate fell to a tenth.
//
// So compactions share a quarter of Go's processors, by the time that their tables
// took. That is time on the clock: what others take from a compaction makes it
// slower still, so that it gives way the more there is to do. A compaction that
// gives way for too long would stop all writes (NumLevelZeroTablesStall): its share
// doubles with each table in level 0 beyond those that one compaction takes and two
// more, and is without bound from half way to the stall on.
//
// Badger has no place for this but its log: a part tells there of each table that it
// has filled, and waits until that is written down. The engine's logger
// (options.go) pauses it in that line; Badger holds no lock there.
type compactionPacer struct {
	// l0 counts the tables of level 0.
	l0 func() int
	// processors is the share while level 0 has up to calm tables; from hurry on
	// nothing waits.
	processors  float64
	calm, hurry int
	// stopped ends all pauses: a closing Badger waits for its compactions.
	stopped  chan struct{}
	stopOnce sync.Once

	mu struct {
		sync.Mutex
		// granted is the work that the share has allowed so far, as of at; done is
		// the work of all tables. Whoever fills a table waits until what was done,
		// with this table, is granted.
		granted, done time.Duration
		at            time.Time
		// tables and paused sum up what was seen.
		tables uint64
		paused time.Duration
	}
}

// compactionLook is how often a pause looks at level 0 again.
const compactionLook = 20 * time.Millisecond

func newCompactionPacer(o Options, l0 func() int) *compactionPacer {
	return &compactionPacer{
		l0: l0, processors: float64(runtime.GOMAXPROCS(0)) / 4,
		calm:    o.NumLevelZeroTables + 2,
		hurry:   (o.NumLevelZeroTables + o.NumLevelZeroTablesStall) / 2,
		stopped: make(chan struct{}),
	}
}

// compactionLine begins the line in which Badger tells of a table that a
// compaction has filled. Its last argument is how long that took.
const compactionLine = "[%d] LOG Compact. Added %d keys."

// hear takes a line that Badger logs.
func (p *compactionPacer) hear(format string, args []any) {
	if !strings.HasPrefix(format, compactionLine) || len(args) == 0 {
		return
	}
	if took, ok := args[len(args)-1].(time.Duration); ok {
		p.pause(took)
	}
}

// pause returns when the caller, whose table took so long, may fill its next one.
func (p *compactionPacer) pause(took time.Duration) {
	began := time.Now()
	p.mu.Lock()
	defer p.mu.Unlock()
	p.grantLocked(began)
	p.mu.tables++
	p.mu.done = max(p.mu.done, p.mu.granted) + took
	due := p.mu.done
	for ended := false; !ended; {
		if p.grantLocked(time.Now()); p.mu.granted >= due {
			break
		}
		p.mu.Unlock()
		ended = p.rest()
		p.mu.Lock()
	}
	p.mu.paused += time.Since(began)
}

// rest waits until it is time to look again, or reports that pauses are over.
func (p *compactionPacer) rest() (ended bool) {
	t := time.NewTimer(compactionLook)
	defer t.Stop()
	select {
	case <-t.C:
		return false
	case <-p.stopped:
		return true
	}
}

// grantLocked grants the work that fits into the time since it was last called.
func (p *compactionPacer) grantLocked(now time.Time) {
	since := now.Sub(p.mu.at)
	p.mu.at = now
	if p.mu.granted >= p.mu.done {
		return // Nobody waits, and nothing is saved up.
	}
	l0 := p.l0()
	if l0 >= p.hurry {
		p.mu.granted = p.mu.done
		return
	}
	share := p.processors * math.Exp2(float64(max(0, l0-p.calm)))
	p.mu.granted += time.Duration(min(share*float64(since), float64(p.mu.done-p.mu.granted)))
}

// stop ends all pauses for good.
func (p *compactionPacer) stop() { p.stopOnce.Do(func() { close(p.stopped) }) }

// seen sums up what was seen so far.
func (p *compactionPacer) seen() (tables uint64, paused time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.mu.tables, p.mu.paused
}
