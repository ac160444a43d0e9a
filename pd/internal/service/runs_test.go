package service

import (
	"testing"
	"time"
)

// TestRuns: of two processes with one identity that are both alive the older one
// is told to stop; a restart never is, whether it registered or not.
func TestRuns(t *testing.T) {
	var r runs
	now := time.Unix(1000, 0)
	beat := func(run uint64, refused bool) {
		t.Helper()
		now = now.Add(time.Second)
		if err := r.check(7, run, now); (err != nil) != refused {
			t.Fatalf("run %d: %v", run, err)
		}
	}
	r.claim(7, 1, now)
	beat(1, false)
	beat(0, false)     // an older binary says nothing of runs
	r.claim(7, 2, now) // a restart
	for range 20 {
		beat(2, false)
	}
	beat(1, false) // a message that was late
	for range 20 {
		beat(2, false)
	}
	// A restart while PD could not be reached: it does not register.
	for range 20 {
		beat(3, false)
	}
	beat(2, false)
	beat(3, false)
	beat(2, true)
	// A copy registers: it has the identity, and the other stops.
	r.claim(7, 4, now)
	beat(3, false)
	beat(4, false)
	beat(3, true)
	beat(4, false)
}
