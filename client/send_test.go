package client

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ridgekv/ridge/client/internal/retry"
	"github.com/ridgekv/ridge/proto/errs"
	kvpb "github.com/ridgekv/ridge/proto/ridge/kv/v1"
)

// A gateway sends on the class of whatever error a call ends with: however an
// unknown outcome is wrapped, it must stay one.
func TestAnUnknownOutcomeIsNeverHidden(t *testing.T) {
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	busy, unknown := errs.Busy{Reason: "x"}, errs.UnknownOutcome{RangeID: 1}
	for name, err := range map[string]error{
		"broken by a typed error": unknownOutcome(t.Context(), 1, errs.Unavailable{Part: "store"}),
		"deadline":                unknownOutcome(ended, 1, context.Canceled),
		"final":                   retry.NewLog(nil).Final(ended, unknownOutcome(ended, 1, busy)),
		"joined":                  join([]error{busy, unknown, errs.NotLeader{RangeID: 2}}),
		"joined alone":            join([]error{unknown}),
	} {
		p := errs.ToProto(err)
		if p.GetClass() != kvpb.ErrorClass_ERROR_CLASS_UNKNOWN ||
			p.GetApplied() != kvpb.Applied_APPLIED_UNKNOWN || !IsUnknown(err) {
			t.Errorf("%s: %v becomes %v", name, err, p)
		}
	}
	if err := unknownOutcome(ended, 1, busy); !errors.Is(err, context.Canceled) {
		t.Errorf("the context's error is lost: %v", err)
	}
	if join(nil) != nil {
		t.Error("no errors became one")
	}
}

func TestHealth(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var h health
		for _, tt := range []struct{ attempt, down time.Duration }{
			{0, minDown}, {500 * time.Millisecond, time.Second},
		} {
			h.down(1, tt.attempt)
			time.Sleep(tt.down - time.Millisecond)
			if !h.isDown(1) || h.isDown(2) {
				t.Errorf("after %v: it is not down", tt.attempt)
			}
			time.Sleep(time.Millisecond)
			if h.isDown(1) {
				t.Errorf("after %v: it is still down", tt.attempt)
			}
		}
		h.down(1, 0)
		h.up(1)
		if h.isDown(1) {
			t.Error("it answered, but is down")
		}
	})
}

func TestBefore(t *testing.T) {
	for _, tt := range []struct{ end, below, above string }{
		{"b", "a\xff\xff", "b"}, {"b\x00", "b", "b\x01"}, {"", "\xff\xff\xff", ""},
	} {
		k := before([]byte(tt.end))
		if string(k) < tt.below || tt.above != "" && string(k) >= tt.above || checkKey(k) != nil {
			t.Errorf("before %q: %q", tt.end, k[:3])
		}
	}
}
