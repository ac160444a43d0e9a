package raft

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/ridgekv/ridge/storenode/internal/apply"
	"github.com/ridgekv/ridge/storenode/internal/catalog"
)

// TestRestartsUnderLoad restarts stores at random while every range that is
// led somewhere is written and split. At the end every acknowledged write is on
// every replica, and no replica was quarantined. RIDGE_LONG=1 makes it long,
// RIDGE_SEED repeats a run.
func TestRestartsUnderLoad(t *testing.T) {
	rounds := 3
	if os.Getenv("RIDGE_LONG") != "" {
		rounds = 60
	}
	seed := uint64(time.Now().UnixNano())
	if s, err := strconv.ParseUint(os.Getenv("RIDGE_SEED"), 10, 64); err == nil {
		seed = s
	}
	t.Logf("RIDGE_SEED=%d", seed)
	rng := rand.New(rand.NewPCG(seed, 0))
	c := threeVoters(t, func(o *Options) { o.LogSnapshotEntries = 64 })
	l := &load{c: c, acked: make(map[string]string), child: 100}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	for writer := range 3 {
		wg.Go(func() { l.write(ctx, writer, seed) })
	}
	for range rounds {
		<-time.After(time.Duration(100+rng.IntN(300)) * time.Millisecond)
		l.split(rng)
		victim := c.stores[1+rng.Uint64N(3)]
		victim.stop(t)
		c.suspect(victim.id, true)
		<-time.After(time.Duration(100+rng.IntN(400)) * time.Millisecond)
		victim.start(t)
		c.suspect(victim.id, false)
		c.await(t, 1)
	}
	cancel()
	wg.Wait()
	l.check(t)
}

// suspect is what the pings of the agents would tell.
func (c *testCluster) suspect(storeID uint64, silent bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, h := range c.hosts {
		h.Suspect(storeID, silent)
	}
}

// await waits until all replicas of a range can be read. One of three may be
// missing: a store that slept through a split and was sent an image of the
// parent never gets the child (PD replaces it).
func (c *testCluster) await(t *testing.T, rangeID uint64) {
	t.Helper()
	missing := 0
	for _, s := range c.stores {
		if _, ok := s.catalog.Replica(rangeID); !ok {
			missing++
			continue
		}
		eventually(t, fmt.Sprintf("range %d on store %d", rangeID, s.id), func() error {
			return s.host.CaughtUp(testContext(t), rangeID)
		})
	}
	if missing > 1 {
		t.Errorf("range %d is missing on %d stores", rangeID, missing)
	}
}

// held reports whether any store has heard of a range.
func (c *testCluster) held(rangeID uint64) bool {
	for _, s := range c.stores {
		if _, ok := s.catalog.Replica(rangeID); ok {
			return true
		}
	}
	return false
}

// load writes like a leaseholder, without any of its care: it acquires where
// it finds a leader, and forgets what is not acknowledged.
type load struct {
	c     *testCluster
	mu    sync.Mutex
	acked map[string]string
	child uint64
	turns sync.Map // range id to *sync.Mutex: numbers follow each other
}

// turn waits for the right to propose to a range.
func (l *load) turn(rangeID uint64) (done func()) {
	m, _ := l.turns.LoadOrStore(rangeID, &sync.Mutex{})
	m.(*sync.Mutex).Lock()
	return m.(*sync.Mutex).Unlock
}

// led lists the ranges that a running store leads, in random order.
func (l *load) led(shuffle func(int, func(int, int))) (out []ledRange) {
	l.c.mu.Lock()
	defer l.c.mu.Unlock()
	for id, h := range l.c.hosts {
		for _, cr := range h.catalog.Replicas() {
			if h.Leader(cr.RangeID()).Self && cr.State().Serving() {
				out = append(out, ledRange{h, id, cr})
			}
		}
	}
	shuffle(len(out), func(i, j int) { out[i], out[j] = out[j], out[i] })
	return out
}

type ledRange struct {
	host    *Host
	storeID uint64
	replica *catalog.Replica
}

func (r ledRange) propose(cmd []byte) Outcome {
	done := make(chan Outcome, 1)
	r.host.Propose(r.replica.RangeID(), cmd, 500*time.Millisecond, func(o Outcome) { done <- o })
	return <-done
}

// held makes sure that the lease is this store's.
func (r ledRange) held() bool {
	s := r.replica.State()
	if s.Lease().GetHolderStoreId() == r.storeID {
		return true
	}
	return applied(r.propose(acquireEntry(s, r.storeID))) == nil
}

func (l *load) write(ctx context.Context, writer int, seed uint64) {
	rng := rand.New(rand.NewPCG(seed, uint64(writer)+1))
	for i := 0; ctx.Err() == nil; i++ {
		for _, r := range l.led(rng.Shuffle) {
			// One writer per key, so that the last acknowledged value is known.
			if r.replica.RangeID()%3 == uint64(writer) {
				l.writeOne(r, fmt.Sprintf("/%d", rng.IntN(50)), strconv.Itoa(i))
			}
		}
		<-time.After(time.Millisecond)
	}
}

func (l *load) writeOne(r ledRange, suffix, value string) {
	defer l.turn(r.replica.RangeID())()
	if !r.held() {
		return
	}
	s, a := r.replica.Both()
	key := string(s.Span().Start) + suffix
	if !s.Span().Contains([]byte(key)) {
		return
	}
	o := r.propose(writeEntry(s, a, key, value))
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case o.Err == nil && o.Code == apply.ResultApplied:
		l.acked[key] = value
	case errors.Is(o.Err, ErrNotProposed):
	case o.Err != nil || o.Code == apply.ResultDuplicate:
		delete(l.acked, key) // what is there now, nobody knows
	}
}

// split splits some range that is led.
func (l *load) split(rng *rand.Rand) {
	for _, r := range l.led(rng.Shuffle) {
		if l.splitOne(r, rng.IntN(26)) {
			return
		}
	}
}

func (l *load) splitOne(r ledRange, letter int) bool {
	defer l.turn(r.replica.RangeID())()
	_, config, ok := r.host.Membership(r.replica.RangeID())
	if !ok || len(r.replica.State().Unborn()) > 0 || !r.held() {
		return false
	}
	s, a := r.replica.Both()
	l.child++
	key := string(s.Span().Start) + string(rune('a'+letter))
	return applied(r.propose(splitEntry(s, a, l.child, key, config, 1, 2, 3))) == nil
}

func (l *load) check(t *testing.T) {
	t.Helper()
	for _, s := range l.c.stores {
		for _, cr := range s.catalog.Replicas() {
			if st := cr.State(); !st.Serving() {
				t.Errorf("store %d: range %d is %s: %s", s.id, st.RangeID(), st.Status(),
					st.PB().GetPoisonReason())
			}
		}
	}
	for id := uint64(1); id <= l.child; id++ {
		if l.c.held(id) {
			l.c.await(t, id)
		}
	}
	for key, value := range l.acked {
		copies := 0
		for _, s := range l.c.stores {
			cr, ok := s.catalog.Lookup([]byte(key))
			if !ok {
				continue
			}
			copies++
			if v, _ := s.get(t, cr.RangeID(), key); v != value {
				t.Fatalf("store %d: %s is %q, acknowledged %q", s.id, key, v, value)
			}
		}
		if copies < 2 {
			t.Fatalf("%s is on %d stores", key, copies)
		}
	}
	ranges := l.c.stores[1].catalog.Replicas()
	t.Logf("%d acknowledged keys, %d ranges", len(l.acked), len(ranges))
	if len(l.acked) == 0 || len(ranges) < 2 {
		t.Error("nothing was written or split")
	}
}
