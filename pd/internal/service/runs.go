package service

import (
	"sync"
	"time"

	pdpb "github.com/ridgekv/ridge/proto/ridge/pd/v1"
)

// runs tells apart the processes that speak with one store's identity, as when
// its directory was copied. It holds one entry per registered store.
type runs struct {
	mu      sync.Mutex
	byStore map[uint64]storeRun
}

// storeRun is the run that has the identity, and the last other one heard of.
type storeRun struct {
	run        uint64
	heard      time.Time
	rival      uint64
	rivalSince time.Time
}

// runTakeover is how long the run that has the identity must be silent before
// another has it without registering.
const runTakeover = 10 * time.Second

// claim gives the identity to a run that registered. An older one that is alive
// is refused from then on.
func (t *runs) claim(storeID, run uint64, now time.Time) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.byStore == nil {
		t.byStore = map[uint64]storeRun{}
	}
	if run != 0 {
		t.byStore[storeID] = storeRun{run: run, heard: now}
	}
}

// check takes in that a run was heard. It is refused only when the run that has
// the identity was heard since the other one showed up: then both are alive. A
// restart is never refused: its former run says nothing any more.
func (t *runs) check(storeID, run uint64, now time.Time) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.byStore == nil {
		t.byStore = map[uint64]storeRun{}
	}
	if run == 0 {
		return nil // an older binary
	}
	r := t.byStore[storeID]
	switch {
	case r.run == run || r.run == 0:
		r.run, r.heard = run, now
	case r.rival != run:
		r.rival, r.rivalSince = run, now
	case r.heard.After(r.rivalSince):
		return refuse(pdpb.PDErrorReason_PD_ERROR_REASON_STORE_DUPLICATE,
			"another process runs as store %d: its directory was copied, and this copy must stop; "+
				"never start two of one directory", storeID)
	case now.Sub(r.rivalSince) > runTakeover:
		r = storeRun{run: run, heard: now}
	}
	t.byStore[storeID] = r
	return nil
}
