package safepoint

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	pdpb "github.com/ridgekv/ridge/proto/ridge/pd/v1"
	"github.com/ridgekv/ridge/proto/ts"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// log notes what is asked for.
type log struct {
	mu    sync.Mutex
	asked []*pdpb.RaiseSafePoint
	fail  bool
}

func (l *log) Propose(_ context.Context, c *pdpb.Command) (*pdpb.CommandResult, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.fail {
		return nil, errors.New("no quorum")
	}
	l.asked = append(l.asked, c.GetRaiseSafePoint())
	return &pdpb.CommandResult{}, nil
}

func (l *log) rounds() []*pdpb.RaiseSafePoint {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.asked
}

func TestPointsFollowTheClock(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		l := &log{}
		var lost atomic.Bool
		fresh := func(context.Context) (ts.Timestamp, error) {
			if lost.Load() {
				return 0, errors.New("another PD leads")
			}
			return ts.FromTime(time.Now()), nil
		}
		done := make(chan error, 1)
		var wg sync.WaitGroup
		wg.Go(func() { done <- Run(ctx, l, fresh, keepTenMinutes) })
		time.Sleep(2*time.Minute + time.Second)
		rounds := l.rounds()
		if len(rounds) != 5 { // at once, then every 30 s
			t.Fatalf("%d rounds in two minutes", len(rounds))
		}
		for i, r := range rounds {
			at := time.UnixMilli(int64(r.GetNowUnixMs()))
			want := uint64(ts.FromTime(at).Add(-10 * time.Minute))
			if r.GetGc() != want || r.GetTxn() != want {
				t.Errorf("round %d: gc %d, txn %d, want %d", i, r.GetGc(), r.GetTxn(), want)
			}
		}
		// A group without quorum, or a lost leadership, asks for nothing.
		lost.Store(true)
		time.Sleep(2 * time.Minute)
		if n := len(l.rounds()); n != 5 {
			t.Errorf("%d rounds without a timestamp", n-5)
		}
		cancel()
		wg.Wait()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Errorf("Run returned %v", err)
		}
	})
}

func TestInterval(t *testing.T) {
	for retention, want := range map[time.Duration]time.Duration{
		time.Second: 200 * time.Millisecond, time.Minute: 3 * time.Second, time.Hour: 30 * time.Second,
	} {
		if got := interval(retention); got != want {
			t.Errorf("%s: every %s, want %s", retention, got, want)
		}
	}
}

func keepTenMinutes() time.Duration { return 10 * time.Minute }
