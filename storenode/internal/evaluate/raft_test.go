package evaluate

import (
	"context"
	"fmt"
	"net"
	"path/filepath"
	"sync"
	"testing"
	"time"

	metapb "github.com/ridgekv/ridge/proto/ridge/meta/v1"
	"github.com/ridgekv/ridge/storenode/internal/catalog"
	"github.com/ridgekv/ridge/storenode/internal/engine"
	"github.com/ridgekv/ridge/storenode/internal/raft"
)

// realStore is one store with the real log, at the timing that ships.
func realStore(t *testing.T) (*testStore, *raft.Host) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0") // Dragonboat takes no port 0
	if err != nil {
		t.Fatal(err)
	}
	address := l.Addr().String()
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	e, err := engine.Open(engine.Options{
		Dir: filepath.Join(dir, "engine"), MemTableSizeBytes: 32 << 20,
		BlockCacheSizeBytes: 4 << 20,
	})
	if err != nil {
		t.Fatal(err)
	}
	cat, err := catalog.Load(e)
	if err != nil {
		t.Fatal(err)
	}
	host, err := raft.Open(raft.Options{
		Dir: filepath.Join(dir, "log"), ClusterID: 7, StoreID: 1, ListenAddress: address,
		Resolve:    func(uint64) (string, bool) { return address, true },
		ExecShards: 1, LogShards: 1, Tick: 50 * time.Millisecond,
	}, raft.Deps{Engine: e, Catalog: cat})
	if err != nil {
		t.Fatal(err)
	}
	s := &testStore{
		c: &cluster{t: t}, id: 1, engine: e, catalog: cat,
		clock: &testClock{oracle: &testOracle{}},
	}
	_, _ = s.clock.Fresh(t.Context())
	s.ev = New(Deps{Host: host, Catalog: cat, Engine: e, Clock: s.clock, StoreID: 1})
	ctx, cancel := context.WithCancel(context.Background())
	var hosting, evaluating sync.WaitGroup
	hosting.Go(func() {
		if err := host.Run(ctx); err != nil {
			t.Error(err)
		}
	})
	evCtx, stop := context.WithCancel(context.Background())
	evaluating.Go(func() {
		if err := s.ev.Run(evCtx); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(func() {
		stop()
		evaluating.Wait()
		cancel()
		hosting.Wait()
		if err := e.Close(); err != nil {
			t.Error(err)
		}
	})
	return s, host
}

// The scripted log is no Raft; this is.
func TestOnRealRaft(t *testing.T) {
	s, host := realStore(t)
	<-host.Booted()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	if err := host.BearFirst(ctx, &metapb.Range{
		RangeId: rangeOne, Span: &metapb.Span{}, Epoch: &metapb.Epoch{Span: 1},
		Replicas: []*metapb.Replica{{ReplicaId: 1, StoreId: 1, Role: metapb.Role_ROLE_VOTER}},
	}); err != nil {
		t.Fatal(err)
	}
	s.holds()
	began := time.Now()
	var clients sync.WaitGroup
	const perClient = 100
	for i := range 8 {
		clients.Go(func() {
			for n := range perClient {
				key := fmt.Sprintf("%c%d", 'a'+n%26, i)
				if _, err := s.put(key, fmt.Sprint(n)); err != nil {
					t.Error(err)
					return
				}
				if v, err := s.get(key); err != nil || v != fmt.Sprint(n) {
					t.Errorf("%s is %q, %v", key, v, err)
					return
				}
			}
		})
	}
	clients.Wait()
	t.Logf("%d puts and gets by 8 clients in %v", 2*8*perClient, time.Since(began))
	at, _ := s.clock.Fresh(ctx)
	before, err := s.scan("", "", snapshotAt(uint64(at)))
	if err != nil || len(before.GetRows()) != 26*8 {
		t.Fatal(len(before.GetRows()), err)
	}
	members, config, ok := host.Membership(rangeOne)
	if !ok {
		t.Fatal("the members are not known")
	}
	_, right, err := s.ev.Split(ctx, rangeOne, []byte("m"), SplitChild{
		RangeID: 2, ReplicaIDs: []uint64{11}, Members: members, ExpectedConfig: config,
	})
	if err != nil {
		t.Fatal(err)
	}
	split := time.Now()
	eventually(t, "the child is led", func() bool { return s.ev.Leaseholder(right.GetRangeId()) })
	t.Logf("the child was led after %v", time.Since(split))
	left, err := s.scan("", "m", snapshotAt(uint64(at)))
	if err != nil || len(left.GetRows()) != 12*8 {
		t.Fatal(len(left.GetRows()), err)
	}
}
