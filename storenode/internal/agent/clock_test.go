package agent

import (
	"context"
	"errors"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ridgekv/ridge/proto/ts"
)

// fakeOracle counts questions and gives growing timestamps, or an error.
type fakeOracle struct {
	mu    sync.Mutex
	asked int
	err   error
}

func (o *fakeOracle) Timestamp(context.Context) (ts.Timestamp, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.asked++
	return ts.FromTime(time.Now()), o.err
}

func (o *fakeOracle) count() int {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.asked
}

func (o *fakeOracle) fail(err error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.err = err
}

func TestClockIsYoungWhileWanted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		oracle := &fakeOracle{}
		c := NewClock(oracle)
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		wg.Go(func() { _ = c.Run(ctx) })
		time.Sleep(time.Minute)
		if oracle.count() != 0 || c.Limit() != 0 {
			t.Errorf("unwanted, it asked %d times; limit %d", oracle.count(), c.Limit())
		}
		c.Want()
		time.Sleep(500 * time.Millisecond)
		if age := ts.FromTime(time.Now()).Sub(c.Seen()); age > 21*time.Millisecond {
			t.Errorf("wanted, it is %v old", age)
		}
		time.Sleep(time.Minute)
		if n := oracle.count(); n < 40 || n > 60 {
			t.Errorf("one Want asked %d times in a second", n)
		}
		if age := ts.FromTime(time.Now()).Sub(c.Seen()); age < 50*time.Second {
			t.Errorf("unwanted, it is %v old", age)
		}
		cancel()
		wg.Wait()
	})
}

func TestClockLimitMovesOnWithoutPD(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		oracle := &fakeOracle{}
		c := NewClock(oracle)
		seen, err := c.Fresh(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		oracle.fail(errors.New("away"))
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		wg.Go(func() { _ = c.Run(ctx) })
		c.Want()
		time.Sleep(10 * time.Second)
		if c.Seen() != seen {
			t.Error("Seen moved without PD")
		}
		if ahead := c.Limit().Sub(seen); ahead < 10900*time.Millisecond || ahead > 11100*time.Millisecond {
			t.Errorf("the limit is %v ahead after 10s", ahead)
		}
		if n := oracle.count(); n > 15 {
			t.Errorf("an absent PD was asked %d times", n)
		}
		if _, err := c.Fresh(t.Context()); err == nil {
			t.Error("Fresh without PD")
		}
		cancel()
		wg.Wait()
	})
}

func TestClockNeverGoesBack(t *testing.T) {
	c := NewClock(nil)
	c.Saw(100)
	c.Saw(50)
	if c.Seen() != 100 {
		t.Errorf("seen %d", c.Seen())
	}
}
