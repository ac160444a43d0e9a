package cluster

import (
	"fmt"
	"testing"
	"time"

	"github.com/ridgekv/ridge/tests/harness"
)

// TestSplitUnderLoad: while ranges are split, by hand and by size, no key is
// unwritable for more than a second and nothing is lost.
func TestSplitUnderLoad(t *testing.T) {
	c := harness.New(t, harness.Options{SplitSize: "1MB"})
	kv := c.Client(t)
	l := startLoad(t, kv, "load/", 8)
	l.awaitWrites(t, 400)
	l.resetLongest()
	for ch := byte('b'); ch <= 'y'; ch += 4 {
		harness.Must(t, c.Split(t.Context(), fmt.Appendf(nil, "load/%c", ch)))
		l.awaitWrites(t, 50)
	}
	longest, key := l.resetLongest()
	t.Logf("longest time a key could not be written: %s (%s)", longest, key)
	if longest > time.Second {
		t.Errorf("%s could not be written for %s", key, longest)
	}
	fill(t, kv, "size/", 4000, 1000)
	harness.Must(t, c.AwaitRanges(t.Context(), 10, time.Minute))
	l.verify(t)
	seen, err := c.AwaitEqual(t.Context(), time.Minute)
	harness.Must(t, err)
	t.Logf("compared %+v", seen)
}

// TestSleptThroughSplit: a store that was away while a range was split and
// written to comes back and is repaired.
func TestSleptThroughSplit(t *testing.T) {
	t.Parallel()
	c := harness.New(t, harness.Options{})
	kv := c.Client(t)
	for _, how := range []string{"killed", "stopped by SIGSTOP"} {
		t.Run(how, func(t *testing.T) {
			prefix := how[:1] + "/"
			fill(t, kv, prefix, 2000, 200)
			leader, err := c.LeaderOf(t.Context(), []byte(prefix))
			harness.Must(t, err)
			before, err := c.Routes(t.Context())
			harness.Must(t, err)
			sleeper := c.Stores[0]
			if sleeper == leader {
				sleeper = c.Stores[1]
			}
			if how == "killed" {
				sleeper.Kill()
			} else {
				sleeper.Pause()
			}
			for i := range 4 {
				harness.Must(t, c.Split(t.Context(), fmt.Appendf(nil, "%s%08d", prefix, 400*(i+1))))
			}
			fill(t, kv, prefix, 3000, 300)
			if how == "killed" {
				harness.Must(t, sleeper.Start())
			} else {
				sleeper.Resume()
			}
			harness.Must(t, sleeper.AwaitReady(t.Context()))
			seen, err := c.AwaitEqual(t.Context(), 90*time.Second)
			harness.Must(t, err)
			if seen.Ranges < len(before)+4 || seen.Replicas != 3*seen.Ranges || seen.Keys%3000 != 0 {
				t.Errorf("compared %+v", seen)
			}
		})
	}
}
