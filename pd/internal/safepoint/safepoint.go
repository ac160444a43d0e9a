// Package safepoint moves the points below which history may be forgotten.
//
// Law P3: gc <= txn <= every hold, and neither ever decreases. The state
// machine keeps it; this loop only says what it would like.
package safepoint

import (
	"context"
	"time"

	pdpb "github.com/ridgekv/ridge/proto/ridge/pd/v1"
	"github.com/ridgekv/ridge/proto/ts"
)

// Log is PD's group.
type Log interface {
	Propose(ctx context.Context, c *pdpb.Command) (*pdpb.CommandResult, error)
}

// Run raises both points to retention ago, again and again, until ctx ends.
// fresh gives a timestamp and fails on a PD that no longer leads. There are no
// locks in this release, so the GC safe point follows the transactions' at
// once. The retention may change: each round asks for it anew.
func Run(
	ctx context.Context, log Log, fresh func(context.Context) (ts.Timestamp, error),
	retention func() time.Duration,
) error {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-timer.C:
		}
		keep := retention()
		timer.Reset(interval(keep))
		if now, err := fresh(ctx); err == nil {
			point := uint64(now.Add(-keep))
			// A failure is made good by the next round.
			_, _ = log.Propose(ctx, &pdpb.Command{Command: &pdpb.Command_RaiseSafePoint{
				RaiseSafePoint: &pdpb.RaiseSafePoint{
					Txn: point, Gc: point, NowUnixMs: uint64(time.Now().UnixMilli()),
				},
			}})
		}
	}
}

// interval is how often the points move: often enough that history is kept not
// much longer than asked.
func interval(retention time.Duration) time.Duration {
	return min(max(retention/20, 200*time.Millisecond), 30*time.Second)
}
