package clustertest

import (
	"testing"
	"time"
)

// Eventually waits until f holds.
func Eventually(t testing.TB, f func() bool) {
	t.Helper()
	for end := time.Now().Add(5 * time.Second); !f(); {
		if time.Now().After(end) {
			t.Fatal("it did not happen")
		}
		Rest(time.Millisecond)
	}
}

// Rest waits for d. It paces a workload; to wait for a state use Eventually.
func Rest(d time.Duration) { <-time.After(d) }
