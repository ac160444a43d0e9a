package evaluate

import (
	"errors"
	"flag"
	"fmt"
	"math"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"

	"github.com/ridgekv/ridge/proto/errs"
	kvpb "github.com/ridgekv/ridge/proto/ridge/kv/v1"
	"github.com/ridgekv/ridge/storenode/internal/apply"
)

var (
	seedFlag  = flag.Uint64("seed", 0, "seed of the histories; 0: from 1 on")
	longFlag  = flag.Bool("long", false, "check many histories")
	opsFlag   = flag.Int("ops", 150, "answered operations per client of a history")
	roundFlag = flag.Int("rounds", 0, "how many histories; 0: 2, or 40 with -long")
)

// One key is a register: get, put, delete, compare and swap. A value put with a
// TTL may vanish at any moment, but once somebody found it gone it stays gone.
type regOp struct {
	kind, key, old, value string
	ttl                   time.Duration
	// unknown: the write may take effect at any time from its call on.
	unknown bool
}

type regState struct {
	value  string
	mortal bool
}

type regResult struct {
	value   string
	swapped bool
}

var register = porcupine.Model{
	Partition: func(history []porcupine.Operation) [][]porcupine.Operation {
		byKey := map[string][]porcupine.Operation{}
		for _, op := range history {
			k := op.Input.(regOp).key
			byKey[k] = append(byKey[k], op)
		}
		var out [][]porcupine.Operation
		for _, ops := range byKey {
			out = append(out, ops)
		}
		return out
	},
	Init:  func() any { return regState{} },
	Step:  stepRegister,
	Equal: func(a, b any) bool { return a == b },
	DescribeOperation: func(input, output any) string {
		return fmt.Sprintf("%+v -> %+v", input, output)
	},
}

func stepRegister(state, input, output any) (bool, any) {
	s, op, res := state.(regState), input.(regOp), output.(regResult)
	written := regState{value: op.value, mortal: op.ttl > 0}
	// What was there, as far as the answer tells.
	there := func(v string) bool { return v == s.value || v == "" && s.mortal }
	switch op.kind {
	case "get":
		if res.value == "" {
			return there(""), regState{}
		}
		return there(res.value), s
	case "put":
		return true, written
	case "delete":
		return true, regState{}
	}
	switch {
	case op.unknown:
		if there(op.old) {
			return true, written
		}
		return true, s
	case res.swapped:
		return there(op.old), written
	case res.value == op.old: // it matched, and yet was not swapped
		return false, s
	case res.value == "":
		return there(""), regState{}
	}
	return there(res.value), s
}

// TestSingleKeyOperationsAreLinearizable runs clients against three stores
// whose log drops, delays, doubles and reorders entries while the leadership
// moves, stores are cut off, lag and die.
func TestSingleKeyOperationsAreLinearizable(t *testing.T) {
	rounds, first := *roundFlag, max(*seedFlag, 1)
	if rounds == 0 {
		if rounds = 2; *longFlag {
			rounds = 40
		} else if *seedFlag != 0 {
			rounds = 1
		}
	}
	for i := range uint64(rounds) {
		seed := first + i
		t.Run(fmt.Sprintf("seed=%d", seed), func(t *testing.T) {
			checkHistory(t, seed, runHistory(t, seed))
		})
	}
}

func checkHistory(t *testing.T, seed uint64, history []porcupine.Operation) {
	acked := 0
	for _, op := range history {
		if op.Return != math.MaxInt64 {
			acked++
		}
	}
	t.Logf("seed %d: %d operations, %d acknowledged", seed, len(history), acked)
	if acked < len(history)/4 {
		t.Errorf("seed %d: too little was answered", seed)
	}
	switch res, _ := porcupine.CheckOperationsVerbose(register, history, 30*time.Second); res {
	case porcupine.Illegal:
		t.Fatalf("seed %d: not linearizable", seed)
	case porcupine.Unknown:
		t.Logf("seed %d: too hard to decide", seed)
	}
}

func runHistory(t *testing.T, seed uint64) []porcupine.Operation {
	c := newCluster(t, 3)
	c.lead(rangeOne, 1)
	c.faultyLog(seed)
	var mu sync.Mutex
	var history []porcupine.Operation
	began := time.Now()
	var clients, nemesis sync.WaitGroup
	for id := range 6 {
		clients.Go(func() {
			rnd := rand.New(rand.NewPCG(seed, uint64(id)))
			done := 0
			for n := 0; done < *opsFlag && time.Since(began) < 4*time.Second; n++ {
				op := randomOp(rnd, id, n)
				if op.kind == "swap" && rnd.IntN(3) > 0 {
					seen, _ := c.perform(rnd, regOp{kind: "get", key: op.key})
					op.old = seen.value
				}
				call := time.Since(began).Nanoseconds()
				res, err := c.perform(rnd, op)
				end := time.Since(began).Nanoseconds()
				if err != nil {
					if op.kind == "get" || errs.ToProto(err).GetApplied() == kvpb.Applied_APPLIED_NO {
						continue
					}
					op.unknown, end = true, math.MaxInt64
				}
				done++
				mu.Lock()
				history = append(history, porcupine.Operation{
					ClientId: id, Input: op, Output: res, Call: call, Return: end,
				})
				mu.Unlock()
			}
		})
	}
	stop := make(chan struct{})
	nemesis.Go(func() { c.nemesis(rand.New(rand.NewPCG(seed, 99)), stop) })
	clients.Wait()
	close(stop)
	nemesis.Wait()
	// Whatever was lost on the way may still arrive, to no effect; then all
	// must be well again.
	c.setScript(nil)
	c.lead(rangeOne, 2)
	for _, s := range c.stores {
		c.lag(s, false)
		c.heal(s)
	}
	c.releaseLimbo(rangeOne, rand.New(rand.NewPCG(seed, 7)))
	for k := range 3 {
		key := fmt.Sprint("k", k)
		call := time.Since(began).Nanoseconds()
		var v string
		// What comes out of limbo may be an old AcquireLease that takes the lease
		// away for a moment: whoever asked again would be answered.
		eventually(t, fmt.Sprintf("seed %d: an answer after healing", seed), func() bool {
			call = time.Since(began).Nanoseconds()
			got, err := c.stores[1].get(key)
			if _, moved := errors.AsType[errs.NotLeader](err); err != nil && !moved {
				t.Fatalf("seed %d: after healing: %v", seed, err)
			}
			v = got
			return err == nil
		})
		history = append(history, porcupine.Operation{
			ClientId: 0, Input: regOp{kind: "get", key: key}, Output: regResult{value: v},
			Call: call, Return: time.Since(began).Nanoseconds(),
		})
	}
	return history
}

func randomOp(rnd *rand.Rand, id, n int) regOp {
	op := regOp{key: fmt.Sprint("k", rnd.IntN(3)), value: fmt.Sprintf("%d.%d", id, n)}
	switch rnd.IntN(8) {
	case 0:
		op.kind, op.value = "delete", ""
	case 1, 2:
		if op.kind = "put"; rnd.IntN(3) == 0 {
			op.ttl = time.Duration(5+rnd.IntN(30)) * time.Millisecond
		}
	case 3, 4, 5:
		op.kind = "swap"
	default:
		op.kind = "get"
	}
	return op
}

// perform asks a store that may lead, mostly.
func (c *cluster) perform(rnd *rand.Rand, op regOp) (regResult, error) {
	s := c.stores[rnd.IntN(len(c.stores))]
	c.mu.Lock()
	if l := c.logs[rangeOne].leader; l != 0 && rnd.IntN(4) > 0 {
		s = c.stores[l-1]
	}
	ev := s.ev
	c.mu.Unlock()
	send := func(req *kvpb.Request) *kvpb.Response {
		out := make(chan *kvpb.Response, 2)
		ev.SubmitAll([]Submission{{req, respondFunc(func(r *kvpb.Response) { out <- r })}})
		return <-out
	}
	h, key := &kvpb.Header{RangeId: rangeOne, TimeoutMs: 250}, []byte(op.key)
	var res regResult
	var r *kvpb.Response
	switch op.kind {
	case "get":
		r = send(&kvpb.Request{Body: &kvpb.Request_Get{Get: &kvpb.GetRequest{Header: h, Key: key}}})
		res.value = string(r.GetGet().GetRow().GetValue())
	case "put":
		r = send(&kvpb.Request{Body: &kvpb.Request_Put{Put: &kvpb.PutRequest{
			Header: h, Key: key, Value: []byte(op.value),
			TtlMs: uint64(op.ttl.Milliseconds()),
		}}})
	case "delete":
		r = send(&kvpb.Request{Body: &kvpb.Request_Delete{Delete: &kvpb.DeleteRequest{
			Header: h, Key: key,
		}}})
	default:
		r = send(&kvpb.Request{Body: &kvpb.Request_CompareAndSwap{
			CompareAndSwap: &kvpb.CompareAndSwapRequest{
				Header: h, Key: key,
				ExpectedAbsent: op.old == "", Expected: []byte(op.old), Value: []byte(op.value),
			},
		}})
		res.swapped = r.GetCompareAndSwap().GetSwapped()
		res.value = string(r.GetCompareAndSwap().GetCurrent().GetValue())
	}
	if err := responseError(r); err != nil {
		if errors.As(err, new(errs.NotLeader)) {
			<-time.After(time.Duration(rnd.IntN(2000)) * time.Microsecond)
		}
		return res, err
	}
	return res, nil
}

// faultyLog makes one proposal in six go wrong.
func (c *cluster) faultyLog(seed uint64) {
	rnd := rand.New(rand.NewPCG(seed, 3)) // called under c.mu
	c.setScript(func(uint64, uint64, apply.Entry) action {
		if rnd.IntN(6) > 0 {
			return deliver
		}
		return []action{refuse, swallow, deafen, duplicate, limbo}[rnd.IntN(5)]
	})
}

// nemesis moves the leadership, cuts stores off, lets them lag and die, and
// lets late entries arrive.
func (c *cluster) nemesis(rnd *rand.Rand, stop <-chan struct{}) {
	ticker := time.NewTicker(15 * time.Millisecond)
	defer ticker.Stop()
	for {
		select {
		case <-stop:
			return
		case <-ticker.C:
		}
		s := c.stores[rnd.IntN(3)]
		switch rnd.IntN(10) {
		case 0, 1:
			c.lead(rangeOne, s.id)
		case 2:
			c.cutOff(s)
			c.lead(rangeOne, uint64(rnd.IntN(3)+1))
		case 3, 4:
			c.heal(s)
		case 5:
			c.lag(s, true)
		case 6, 7:
			c.lag(s, false)
		case 8:
			c.releaseLimbo(rangeOne, rnd)
		case 9:
			s.kill()
			s.start()
		}
	}
}
