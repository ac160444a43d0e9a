package service

import (
	"math"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/ridgekv/ridge/pd/internal/operator"
	"github.com/ridgekv/ridge/pd/internal/topology"
	metapb "github.com/ridgekv/ridge/proto/ridge/meta/v1"
	pdpb "github.com/ridgekv/ridge/proto/ridge/pd/v1"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var began = time.Unix(1_700_000_000, 0)

// scene is a leader of PD with one range that store 1 leads and a replica 9 of
// it on store 2.
type scene struct {
	t *testing.T
	l *Leading
}

func newScene(t *testing.T) *scene {
	l := &Leading{
		Topology: topology.New(began, nil, []*metapb.Range{{
			RangeId: 7, Epoch: &metapb.Epoch{Config: 5, Span: 1}, Span: &metapb.Span{},
			Replicas: []*metapb.Replica{{ReplicaId: 1, StoreId: 1, Role: metapb.Role_ROLE_VOTER}},
		}}),
		Operators: operator.NewController(operator.Limits{
			StoreMoves: 9, LeaderTransfers: 9, StepTimeout: time.Minute, Splits: 9, Operators: 9,
		}, 1),
	}
	l.streams.init()
	l.stale.init()
	return &scene{t: t, l: l}
}

func (s *scene) at(seconds int) time.Time {
	return began.Add(time.Duration(seconds) * time.Second)
}

// led is a report of the leaseholder.
func (s *scene) led(seconds int, config uint64, members ...uint64) {
	r := &metapb.Range{
		RangeId: 7, Epoch: &metapb.Epoch{Config: config, Span: 1}, Span: &metapb.Span{},
	}
	for _, id := range members {
		r.Replicas = append(r.Replicas, &metapb.Replica{
			ReplicaId: id, StoreId: 1, Role: metapb.Role_ROLE_VOTER,
		})
	}
	s.l.Topology.Report(&pdpb.RangeReport{
		Range: r, Leader: &metapb.Leader{ReplicaId: 1, StoreId: 1, Term: 2},
	}, s.at(seconds))
}

// held is a list of store 2; it reports whether replica 9 is condemned.
func (s *scene) held(seconds int, config uint64) bool {
	s.t.Helper()
	orders := s.l.condemn(2, []*pdpb.LocalReplica{
		{RangeId: 7, ReplicaId: 9, ConfigEpoch: config}, {RangeId: 99, ReplicaId: 9},
	}, true, s.at(seconds))
	if len(orders) > 1 || len(orders) == 1 && (orders[0].GetRangeId() != 7 ||
		orders[0].GetDestroyReplica().GetReplicaId() != 9 || orders[0].GetEpoch().GetConfig() == 0) {
		s.t.Fatalf("orders %v", orders)
	}
	return len(orders) == 1
}

func TestStrangersAreDestroyed(t *testing.T) {
	s := newScene(t)
	s.led(0, 5, 1)
	for _, second := range []int{0, 10, 20, 300} {
		if s.held(second, 0) {
			t.Fatalf("condemned after %d s, its leaseholder's report is as old", second)
		}
	}
	s.led(14, 5, 1)
	if s.held(301, 0) {
		t.Fatal("condemned by a report that an order to add it may have overtaken")
	}
	s.led(15, 5, 1)
	if !s.held(302, 0) {
		t.Fatal("a stranger lives on")
	}
	if !s.held(303, 5) {
		t.Fatal("the order is not repeated")
	}
}

func TestNoCondemnation(t *testing.T) {
	for name, spoil := range map[string]func(*scene){
		"an operator adds it": func(s *scene) {
			o := &operator.Operator{RangeID: 7, Steps: []operator.Step{
				{Kind: operator.AddLearner, ReplicaID: 9, StoreID: 2},
			}}
			if err := s.l.Operators.Admit(o, s.l.Topology.Range(7), s.at(20)); err != nil {
				s.t.Fatal(err)
			}
		},
		"it is a member by now":  func(s *scene) { s.led(40, 9, 1, 9) },
		"it knows a later epoch": func(s *scene) { s.held(50, 6); s.held(51, 0) },
		"its store had lost it in between": func(s *scene) {
			s.l.condemn(2, nil, true, s.at(50))
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := newScene(t)
			s.led(0, 5, 1)
			s.held(0, 0)
			s.led(30, 5, 1)
			spoil(s)
			if s.held(60, 0) {
				t.Fatal("condemned")
			}
		})
	}
	t.Run("its leaseholder never reported", func(t *testing.T) {
		s := newScene(t)
		if s.held(0, 0) || s.held(600, 0) {
			t.Fatal("condemned by what is remembered from before")
		}
	})
	t.Run("a short list forgets nothing", func(t *testing.T) {
		s := newScene(t)
		s.led(0, 5, 1)
		s.held(0, 0)
		s.l.condemn(2, nil, false, s.at(10))
		s.led(30, 5, 1)
		if !s.held(31, 0) {
			t.Fatal("a stranger lives on")
		}
	})
}

// TestMemory: what is remembered of strangers is bounded by what stores hold.
func TestMemory(t *testing.T) {
	s := newScene(t)
	s.led(0, 5, 1)
	for i := range 1000 {
		s.l.condemn(2, []*pdpb.LocalReplica{
			{RangeId: 7, ReplicaId: uint64(100 + i)},
		}, true, s.at(i))
	}
	if n := len(s.l.stale.mu.byStore[2]); n != 1 {
		t.Fatalf("%d strangers are remembered, one is there", n)
	}
}

func TestStreams(t *testing.T) {
	var s streams
	s.init()
	order := []*pdpb.Order{{RangeId: 7}}
	s.send(1, order) // no stream: dropped
	old := s.open(1)
	fresh := s.open(1)
	s.close(1, old) // the newer one stays
	for range 100 {
		s.send(1, order) // more than it holds: dropped
	}
	if len(old) != 0 || len(fresh) != cap(fresh) {
		t.Fatalf("%d orders on the old stream, %d on the new one", len(old), len(fresh))
	}
	s.close(1, fresh)
	s.send(1, order)
	if len(s.mu.byStore) != 0 {
		t.Fatal("a closed stream stays")
	}
}

func TestErrorsTellWhatToDo(t *testing.T) {
	s := New(Options{})
	if s.pdError(nil) != nil {
		t.Fatal("nothing became an error")
	}
	for reason := range pdpb.PDErrorReason_name {
		if reason == 0 {
			continue
		}
		e := s.pdError(refuse(pdpb.PDErrorReason(reason), "%d", math.MaxInt64))
		if e.GetReason() != pdpb.PDErrorReason(reason) || e.GetClass() == 0 || e.GetMessage() == "" {
			t.Errorf("%v", e)
		}
	}
}
