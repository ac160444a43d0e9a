package retry

import (
	"context"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ridgekv/ridge/proto/errs"
	kvpb "github.com/ridgekv/ridge/proto/ridge/kv/v1"
)

func TestDecide(t *testing.T) {
	for _, tt := range []struct {
		err  error
		move Move
		text string
	}{
		{errs.NotLeader{RangeID: 12}, Follow, "not-leader on range 12"},
		{errs.EpochMismatch{RangeID: 12}, Relocate, "following a split of range 12"},
		{errs.KeyNotInRange{}, Relocate, "following a split of range 12"},
		{errs.RangeNotFound{RangeID: 12}, Next, "looking for range 12"},
		{errs.StoreMismatch{}, Next, "dialing store 3"},
		{errs.Busy{Reason: "range queue"}, Again, "busy at store 3"},
		{errs.Unavailable{Part: "quorum"}, Next, "unavailable: quorum for range 12"},
		{errs.Locked{}, Again, "locked key on range 12"},
		{errs.ClusterMismatch{}, Stop, ""},
		{errs.DiskFull{}, Stop, ""},
		{errs.TooLarge{}, Stop, ""},
		{errs.InvalidArgument{}, Stop, ""},
		{errs.Conflict{}, Stop, ""},
		{errs.TooOld{}, Stop, ""},
		{errs.UnknownOutcome{}, Stop, ""},
		{errors.New("odd"), Stop, ""},
	} {
		d := Decide(tt.err, 12, 3)
		if d.Move != tt.move || d.Move != Stop && d.Cause.String() != tt.text {
			t.Errorf("%T: got %v, %q", tt.err, d.Move, d.Cause)
		}
		// What the class says and what the table does must agree.
		class := errs.Class(tt.err)
		final := class == kvpb.ErrorClass_ERROR_CLASS_FAIL ||
			class == kvpb.ErrorClass_ERROR_CLASS_UNKNOWN
		if final && d.Move != Stop {
			t.Errorf("%T: class %v is final, but the move is %v", tt.err, class, d.Move)
		}
	}
}

func TestFromWireTrustsAppliedMoreThanTheDetail(t *testing.T) {
	p := errs.ToProto(errs.Busy{Reason: "x"})
	if _, ok := FromWire(p, 1, true).(errs.Busy); !ok {
		t.Error("a plain Busy")
	}
	p.Applied = kvpb.Applied_APPLIED_UNKNOWN
	if _, ok := FromWire(p, 1, true).(errs.UnknownOutcome); !ok {
		t.Error("a write that may have happened must be unknown")
	}
	if _, ok := FromWire(p, 1, false).(errs.Busy); !ok {
		t.Error("a read has no outcome")
	}
	p = errs.ToProto(errs.UnknownOutcome{RangeID: 1})
	if _, ok := FromWire(p, 1, false).(errs.Unavailable); !ok {
		t.Error("a read cannot be unknown")
	}
	if FromWire(nil, 1, true) != nil {
		t.Error("nil")
	}
}

// Every kind waits at least half of its base and at most its limit, and gives
// up after its budget.
func TestBudgets(t *testing.T) {
	for k := range kinds {
		if k == Working {
			continue
		}
		t.Run(k.String(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := rules[k]
				retries := 0
				l := NewLog(func(Kind) { retries++ })
				began := time.Now()
				var err error
				n := 0
				for ; err == nil; n++ {
					d := l.Delay(k, 0)
					switch {
					case n < r.free && d != 0:
						t.Fatalf("try %d waits %v", n, d)
					case n >= r.free && (d < r.base/2 || d > r.limit):
						t.Fatalf("try %d waits %v, not %v..%v", n, d, r.base/2, r.limit)
					case n > r.free+20 && d < r.limit/2:
						t.Fatalf("try %d waits %v: it does not grow", n, d)
					}
					err = l.Wait(t.Context(), Cause{k, "x"}, 0, errs.Busy{Reason: "y"})
				}
				spent := time.Since(began)
				if spent <= r.budget || spent > r.budget+2*r.limit {
					t.Errorf("it gave up after %v, the budget is %v", spent, r.budget)
				}
				if retries != n || l.Tries(k) != n {
					t.Errorf("%d tries, %d told, %d counted", n, retries, l.Tries(k))
				}
				if _, ok := errors.AsType[errs.Busy](err); !ok || !strings.Contains(err.Error(), " x") {
					t.Errorf("got %v", err)
				}
			})
		})
	}
}

func TestHintsAreFloorsWithALimit(t *testing.T) {
	l := NewLog(nil)
	if d := l.Delay(Busy, 800*time.Millisecond); d < 400*time.Millisecond || d > 800*time.Millisecond {
		t.Errorf("got %v", d)
	}
	if d := l.Delay(Busy, time.Hour); d > 2*rules[Busy].limit {
		t.Errorf("a server put the client to sleep for %v", d)
	}
}

func TestFinalErrorSaysWhereTheTimeWent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), 9800*time.Millisecond)
		defer cancel()
		l := NewLog(nil)
		time.Sleep(7100 * time.Millisecond)
		l.Spend(Cause{NotLeader, "range 12"})
		time.Sleep(10 * time.Millisecond)
		l.Spend(Cause{Working, "store 1"})
		time.Sleep(2691 * time.Millisecond)
		err := l.Wait(ctx, Cause{Dialing, "store 3"}, 0, errs.Unavailable{Part: "store 3"})
		want := "context deadline exceeded; 9.8s spent: 7.1s not-leader on range 12, " +
			"2.7s dialing store 3; last: store 3 is unavailable"
		if err == nil || err.Error() != want {
			t.Fatalf("got  %v\nwant %v", err, want)
		}
		if !errors.Is(err, context.DeadlineExceeded) {
			t.Error("the context's error is lost")
		}
	})
}

// A try that fails because time is up does not hide the cause before it.
func TestTheLastWordIsNotTheDeadline(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		l := NewLog(nil)
		if err := l.Wait(ctx, Cause{PD, "pd"}, 0, errors.New("no leader")); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Second + time.Millisecond)
		err := l.Wait(ctx, Cause{PD, "pd"}, 0, errors.New("deadline"))
		if err == nil || !strings.HasSuffix(err.Error(), "last: no leader") {
			t.Fatalf("got %v", err)
		}
	})
}

func TestFinalWithoutWaitsIsTheErrorItself(t *testing.T) {
	want := errs.DiskFull{StoreID: 1}
	if err := NewLog(nil).Final(t.Context(), want); err != want {
		t.Fatalf("got %v", err)
	}
}

func TestManyCausesAreBounded(t *testing.T) {
	l := NewLog(nil)
	for i := range 100 {
		l.Spend(Cause{Dialing, strings.Repeat("x", i)})
	}
	if len(l.causes) != maxCauses {
		t.Fatalf("%d causes", len(l.causes))
	}
}
