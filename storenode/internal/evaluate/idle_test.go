package evaluate

import (
	"context"
	"testing"
	"time"
)

// A store that nobody writes to asks for no timestamps. Time passes for its
// rows all the same.
func TestTTLOnASilentStore(t *testing.T) {
	c := newCluster(t, 1)
	c.lead(rangeOne, 1)
	s := c.stores[0]
	s.mustPut("other", "x")
	put := func(key string) {
		t.Helper()
		if err := (<-s.sendPut(key, "v", 5*time.Second)).GetPut().GetError(); err != nil {
			t.Fatal(err)
		}
	}
	s.clock.pass(time.Minute)
	put("a")
	if _, err := s.clock.Fresh(context.Background()); err != nil {
		t.Fatal(err)
	}
	s.mustGet("a", "v") // it is younger than 5 s, whatever its commit_ts

	put("b")
	s.clock.pass(10 * time.Second)
	s.mustGet("a", "")
	s.mustGet("b", "")

	put("c")
	s.clock.pass(10 * time.Second)
	if got, err := s.scan("", "", nil); err != nil || len(got.GetRows()) != 1 {
		t.Fatal("only the row without a TTL is left:", got, err)
	}

	put("d")
	s.clock.pass(10 * time.Second)
	if r, err := s.swap("d", "", "w"); err != nil || !r.GetSwapped() {
		t.Fatal("the row is gone, so it is absent:", r, err)
	}

	put("e")
	s.clock.pass(10 * time.Second)
	c.oracle.setAway(true)
	s.mustGet("e", "v") // nobody knows better
	put("f")
	s.mustGet("f", "v")
	c.oracle.setAway(false)
	eventually(t, "PD is asked again", func() bool {
		v, err := s.get("e")
		return err == nil && v == ""
	})
	s.mustGet("f", "v")
}
