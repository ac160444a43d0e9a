package raft

import "testing"

// TestPebbleLog: the other log does what ours does, through births, growth and
// restarts, and neither is opened as the other.
func TestPebbleLog(t *testing.T) {
	c := startTestCluster(t, 3, func(o *Options) { o.LogKind = LogKindPebble })
	lead := c.stores[1]
	if name := lead.host.logDB.Name(); name != LogKindPebble {
		t.Fatalf("the log is %s", name)
	}
	lead.put(t, 1, "a", "1")
	c.grow(t, 1, 2, 2)
	c.grow(t, 1, 3, 3)
	for _, s := range c.stores {
		s.restart(t)
	}
	c.leader(t, 1).acquire(t, 1)
	if v, _ := c.leader(t, 1).get(t, 1, "a"); v != "1" {
		t.Errorf("a is %q", v)
	}
	s := c.stores[3]
	s.stop(t)
	o := s.options()
	o.LogKind = LogKindRidge
	if h, err := Open(o, Deps{}); err == nil {
		t.Error("a log of Pebble was opened as ours")
		must(t, h.Close())
	}
	s.start(t)
}
