package engine

import (
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// pacedParts has five parts fill tables one after another, each of which takes
// 40 ms, and returns how long it took until all were through.
func pacedParts(p *compactionPacer, tables int) time.Duration {
	const parts, table = 5, 40 * time.Millisecond
	began := time.Now()
	var wg sync.WaitGroup
	for range parts {
		wg.Go(func() {
			for range tables / parts {
				time.Sleep(table)
				p.hear(compactionLine+" and so on", []any{1, 2, table})
			}
		})
	}
	wg.Wait()
	return time.Since(began)
}

func testPacer(l0 *atomic.Int64) *compactionPacer {
	return &compactionPacer{
		l0: func() int { return int(l0.Load()) }, processors: 0.5, calm: 7, hurry: 12,
		stopped: make(chan struct{}),
	}
}

// Compactions take their share of the processors, whatever they are cut into, and
// more of it the further level 0 is behind.
func TestCompactionsTakeTheirShare(t *testing.T) {
	for _, c := range []struct {
		l0       int64
		from, to time.Duration
	}{
		{0, 3900, 4200}, {7, 3900, 4200}, {8, 1900, 2200}, {9, 900, 1200}, {12, 400, 420},
	} {
		synctest.Test(t, func(t *testing.T) {
			var l0 atomic.Int64
			l0.Store(c.l0)
			p := testPacer(&l0)
			took := pacedParts(p, 50).Milliseconds()
			if took < int64(c.from) || took > int64(c.to) {
				t.Errorf("with %d tables in level 0, 2 s of work took %d ms, want %d to %d",
					c.l0, took, c.from, c.to)
			}
			if n, _ := p.seen(); n != 50 {
				t.Errorf("%d tables were seen of 50", n)
			}
		})
	}
}

// With a stall far off the share grows beyond all bounds, and does not come round to
// nothing.
func TestCompactionsFarBehind(t *testing.T) {
	for _, behind := range []int64{62, 63, 64, 70, 2000} {
		synctest.Test(t, func(t *testing.T) {
			var l0 atomic.Int64
			l0.Store(7 + behind)
			p := testPacer(&l0)
			p.hurry = 10_000
			if took := pacedParts(p, 50); took > time.Second {
				t.Errorf("%d tables behind, 2 s of work took %s", behind, took)
			}
		})
	}
}

// What was not used is not saved up: after hours of rest the share is the same.
func TestCompactionsSaveNothingUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := testPacer(new(atomic.Int64))
		pacedParts(p, 5)
		time.Sleep(time.Hour)
		if took := pacedParts(p, 50); took < 3900*time.Millisecond {
			t.Errorf("2 s of work took %s", took)
		}
	})
}

// A pause ends soon after level 0 has come near the stall, and when the engine is
// closed.
func TestCompactionPausesEnd(t *testing.T) {
	for name, end := range map[string]func(*compactionPacer, *atomic.Int64){
		"level 0 is behind": func(_ *compactionPacer, l0 *atomic.Int64) { l0.Store(12) },
		"the engine closes": func(p *compactionPacer, _ *atomic.Int64) { p.stop() },
	} {
		synctest.Test(t, func(t *testing.T) {
			var l0 atomic.Int64
			p := testPacer(&l0)
			go func() {
				time.Sleep(time.Second)
				end(p, &l0)
			}()
			began := time.Now()
			p.hear(compactionLine, []any{time.Hour})
			if took := time.Since(began); took < time.Second || took > time.Second+compactionLook {
				t.Errorf("%s after 1 s, and the pause took %s", name, took)
			}
		})
	}
}

// Other lines, and ones that look like it, pause nobody.
func TestCompactionPacerHearsItsLineOnly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := testPacer(new(atomic.Int64))
		began := time.Now()
		p.hear("Discard stats: %v", []any{time.Hour})
		p.hear(compactionLine, nil)
		p.hear(compactionLine, []any{"an hour"})
		if took := time.Since(began); took != 0 {
			t.Errorf("lines of others paused for %s", took)
		}
	})
}
