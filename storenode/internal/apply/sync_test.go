package apply

import "testing"

// TestSyncCoversWhatOpenFound: after a kill the applied index comes from what
// only the kernel holds. A log snapshot at that index is a promise like any
// other, also when the machine has applied nothing since.
func TestSyncCoversWhatOpenFound(t *testing.T) {
	s := newStore(t)
	found := s.engine.Visible()
	if s.engine.Flushed() >= found {
		t.Fatal("there is nothing to flush")
	}
	m := s.machine(testRangeID)
	if err := m.Sync(); err != nil {
		t.Fatal(err)
	}
	if s.engine.Flushed() < found {
		t.Errorf("opened at commit %d, synced, but only %d is flushed", found, s.engine.Flushed())
	}
}
