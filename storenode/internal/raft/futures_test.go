//lint:file-ignore SA1019 CompletedC is the only channel of a RequestState that a test can set.

package raft

import (
	"encoding/binary"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/lni/dragonboat/v4"
	sm "github.com/lni/dragonboat/v4/statemachine"
)

// testFutures counts the futures that ended, answered or not.
type testFutures struct {
	*futures
	answered, forgotten atomic.Int64
}

func newTestFutures() *testFutures {
	tf := &testFutures{}
	tf.futures = newFutures(func(_ future, _ dragonboat.RequestResult, answered bool) {
		if answered {
			tf.answered.Add(1)
		} else {
			tf.forgotten.Add(1)
		}
	})
	return tf
}

func (tf *testFutures) begin(patience time.Duration) *dragonboat.RequestState {
	rs := &dragonboat.RequestState{CompletedC: make(chan dragonboat.RequestResult, 1)}
	tf.start(future{rs: rs}, patience)
	return rs
}

// expect waits until nothing can happen without time passing.
func (tf *testFutures) expect(t *testing.T, answered, forgotten int64, waiters int) {
	t.Helper()
	synctest.Wait()
	tf.mu.Lock()
	all, idle, sweeping := len(tf.mu.all), len(tf.mu.idle), tf.mu.sweeping
	tf.mu.Unlock()
	if a, f := tf.answered.Load(), tf.forgotten.Load(); a != answered || f != forgotten {
		t.Errorf("%d answered, %d forgotten; want %d and %d", a, f, answered, forgotten)
	}
	if all != waiters || idle > all || sweeping != (all > 0) {
		t.Errorf("%d waiters, %d idle, sweeping %v; want %d", all, idle, sweeping, waiters)
	}
}

// TestLostReads: when a range loses its leader its reads end at once, and
// neither those of other ranges nor proposals, whose fate is not known.
func TestLostReads(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tf := newTestFutures()
		read, propose := func(error) {}, func(Outcome) {}
		var all []*dragonboat.RequestState
		for _, f := range []future{
			{rangeID: 1, confirmed: read},
			{rangeID: 1, confirmed: read},
			{rangeID: 2, confirmed: read},
			{rangeID: 1, proposed: propose},
		} {
			f.rs = &dragonboat.RequestState{CompletedC: make(chan dragonboat.RequestResult, 1)}
			all = append(all, f.rs)
			tf.start(f, time.Minute)
		}
		tf.expect(t, 0, 0, 4)
		tf.giveUp(1)
		tf.expect(t, 0, 2, 4)
		for _, rs := range all[2:] {
			rs.CompletedC <- dragonboat.RequestResult{}
		}
		tf.expect(t, 2, 2, 4)
		tf.close()
	})
}

// TestForgottenFutures: a call that is never answered ends when its time is
// up, not before, and no other call with it.
func TestForgottenFutures(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tf := newTestFutures()
		patient := tf.begin(time.Minute)
		time.Sleep(sweepTime - 1)
		tf.begin(4*sweepTime + sweepTime/2)
		time.Sleep(4*sweepTime + sweepTime/2)
		tf.expect(t, 0, 0, 2)
		time.Sleep(3 * sweepTime)
		tf.expect(t, 0, 1, 2)
		// A nudge for a future that has ended meets the next one.
		tf.mu.Lock()
		for w := range tf.mu.all {
			w.poke()
		}
		tf.mu.Unlock()
		late := tf.begin(time.Second)
		tf.expect(t, 0, 1, 2)
		late.CompletedC <- dragonboat.RequestResult{}
		patient.CompletedC <- dragonboat.RequestResult{}
		tf.expect(t, 2, 1, 2)
		tf.close()
		tf.expect(t, 2, 1, 0)
	})
}

// TestWaitersEnd: waiters are used again, and end when fewer are needed.
func TestWaitersEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tf := newTestFutures()
		ended := int64(0)
		for range 3 {
			var calls []*dragonboat.RequestState
			for range 100 {
				calls = append(calls, tf.begin(time.Minute))
			}
			for _, rs := range calls {
				rs.CompletedC <- dragonboat.RequestResult{}
			}
			ended += 100
			tf.expect(t, ended, 0, 100)
		}
		for range 50 {
			rs := tf.begin(time.Minute)
			time.Sleep(100 * time.Millisecond)
			rs.CompletedC <- dragonboat.RequestResult{}
			synctest.Wait()
		}
		tf.expect(t, ended+50, 0, 1)
		time.Sleep(2 * idleSweeps * sweepTime)
		tf.expect(t, ended+50, 0, 0)
		// All over again.
		tf.begin(time.Second).CompletedC <- dragonboat.RequestResult{}
		tf.expect(t, ended+51, 0, 1)
		tf.close()
	})
}

// TestCloseOfFutures: nobody waits for what cannot come any more, and what has
// come is passed on.
func TestCloseOfFutures(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tf := newTestFutures()
		began := time.Now()
		for i := range 100 {
			if rs := tf.begin(time.Minute); i%2 == 0 {
				rs.CompletedC <- dragonboat.RequestResult{}
			}
		}
		tf.close()
		if waited := time.Since(began); waited != 0 {
			t.Errorf("waited %v", waited)
		}
		tf.expect(t, 50, 50, 0)
	})
}

// numberedMachine applies entries that are a marked number, and answers with
// the number; all others go to the machine of the range.
type numberedMachine struct {
	sm.IOnDiskStateMachine
	applied *sync.Map
}

const numberMark = 0xF7

func numbered(n uint64) []byte {
	return binary.BigEndian.AppendUint64([]byte{numberMark}, n)
}

func (m numberedMachine) Update(entries []sm.Entry) ([]sm.Entry, error) {
	var others []sm.Entry
	var places []int
	for i, e := range entries {
		if len(e.Cmd) == 9 && e.Cmd[0] == numberMark {
			n := binary.BigEndian.Uint64(e.Cmd[1:])
			m.applied.Store(n, true)
			entries[i].Result.Value = n
			continue
		}
		others, places = append(others, e), append(places, i)
	}
	if len(others) == 0 {
		return entries, nil
	}
	others, err := m.IOnDiskStateMachine.Update(others)
	if err != nil {
		return nil, err
	}
	for i, e := range others {
		entries[places[i]] = e
	}
	return entries, nil
}

func startNumbered(t testing.TB) (*testStore, *sync.Map) {
	c := newTestCluster(t, 1)
	s, applied := c.stores[1], &sync.Map{}
	s.wrap = func(_, _ uint64, m sm.IOnDiskStateMachine) sm.IOnDiskStateMachine {
		return numberedMachine{m, applied}
	}
	s.start(t)
	s.bearFirst(t)
	return s, applied
}

// TestEveryFutureEndsOnce: 10,000 calls at once end once each with their own
// answer, also when the host closes in their middle.
func TestEveryFutureEndsOnce(t *testing.T) {
	for _, closing := range []bool{false, true} {
		t.Run(fmt.Sprintf("closing=%v", closing), func(t *testing.T) {
			s, applied := startNumbered(t)
			f := newFlood(10_000)
			if closing {
				close(f.gate)
			}
			f.begin(s.host)
			if closing {
				eventually(t, "a quarter of them", func() error {
					if n := f.ended.Load(); n < int64(len(f.ends)/4) {
						return fmt.Errorf("%d have ended", n)
					}
					return nil
				})
				s.stop(t)
			}
			f.all.Wait()
			if !closing {
				close(f.gate) // until now all 10,000 were in flight
			}
			eventually(t, "all of them", func() error {
				if n := f.ended.Load(); n != int64(len(f.ends)) {
					return fmt.Errorf("%d have ended", n)
				}
				return nil
			})
			s.stop(t)
			f.check(t, applied)
		})
	}
}

// flood is many calls at once: every fourth is a ReadIndex.
type flood struct {
	all sync.WaitGroup // the callers
	// gate, until it is closed, keeps callbacks from returning.
	gate  chan struct{}
	ended atomic.Int64
	// ends counts how often each call ended; outcomes are those of proposals.
	ends     []atomic.Int32
	outcomes []Outcome
}

func newFlood(n int) *flood {
	return &flood{
		gate: make(chan struct{}), ends: make([]atomic.Int32, n), outcomes: make([]Outcome, n),
	}
}

func (f *flood) begin(h *Host) {
	const callers = 100
	for c := range callers {
		f.all.Go(func() {
			for n := c; n < len(f.ends); n += callers {
				end := func(o Outcome) {
					<-f.gate
					f.outcomes[n] = o
					f.ends[n].Add(1)
					f.ended.Add(1)
				}
				if n%4 == 0 {
					h.ReadIndex(1, 5*time.Second, func(err error) { end(Outcome{Err: err}) })
				} else {
					h.Propose(1, numbered(uint64(n)), 5*time.Second, end)
				}
			}
		})
	}
}

func (f *flood) check(t *testing.T, applied *sync.Map) {
	t.Helper()
	done, refused, unknown := 0, 0, 0
	for n := range f.ends {
		if ends := f.ends[n].Load(); ends != 1 {
			t.Errorf("call %d ended %d times", n, ends)
		}
		o := f.outcomes[n]
		if n%4 == 0 {
			continue
		}
		_, found := applied.Load(uint64(n))
		switch {
		case o.Err == nil:
			done++
			if !found || o.Code != uint64(n) {
				t.Errorf("proposal %d was answered %d; applied: %v", n, o.Code, found)
			}
		case errors.Is(o.Err, ErrNotProposed):
			refused++
			if found {
				t.Errorf("proposal %d was applied after: %v", n, o.Err)
			}
		case errors.Is(o.Err, ErrUnknown):
			unknown++
		default:
			t.Errorf("proposal %d: %v", n, o.Err)
		}
	}
	t.Logf("%d applied, %d refused, %d unknown", done, refused, unknown)
}

// BenchmarkFutures is what a call costs on a host with one replica, 64 in
// flight. Deep callbacks use 6 KiB of stack, as a read of the engine does.
//
//	TMPDIR=/dev/shm go test -run '^$' -bench Futures -benchmem ./storenode/internal/raft
func BenchmarkFutures(b *testing.B) {
	s, _ := startNumbered(b)
	cmd := numbered(0)
	calls := map[string]func(done func()){
		"ReadIndex": func(done func()) {
			s.host.ReadIndex(1, 5*time.Second, func(err error) {
				if err != nil {
					b.Error(err)
				}
				done()
			})
		},
		"Propose": func(done func()) {
			s.host.Propose(1, cmd, 5*time.Second, func(o Outcome) {
				if o.Err != nil {
					b.Error(o.Err)
				}
				done()
			})
		},
	}
	for _, name := range []string{"ReadIndex", "Propose"} {
		for _, deep := range []bool{false, true} {
			b.Run(fmt.Sprintf("%s/deep=%v", name, deep), func(b *testing.B) {
				benchCalls(b, calls[name], deep)
			})
		}
	}
}

func benchCalls(b *testing.B, call func(done func()), deep bool) {
	seats := make(chan struct{}, 64)
	done := func() { <-seats }
	if deep {
		done = func() {
			useStack(1)
			<-seats
		}
	}
	b.ReportAllocs()
	cpu := cpuTime()
	b.ResetTimer()
	for range b.N {
		seats <- struct{}{}
		call(done)
	}
	for range cap(seats) {
		seats <- struct{}{}
	}
	b.StopTimer()
	b.ReportMetric(float64((cpuTime()-cpu).Nanoseconds())/1000/float64(b.N), "cpu-us/op")
}

//go:noinline
func useStack(n byte) byte {
	var frame [6 << 10]byte
	for i := range frame {
		frame[i] = n
	}
	return frame[int(n)*1000]
}
