package tso

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/ridgekv/ridge/pd/internal/meta"
)

func freeAddress(t *testing.T) string {
	t.Helper()
	for range 100 {
		address := fmt.Sprintf("127.0.0.1:%d", 10_000+rand.IntN(20_000))
		if l, err := net.Listen("tcp", address); err == nil {
			_ = l.Close()
			return address
		}
	}
	t.Fatal("no free port")
	return ""
}

// node is a member of a real group that hands out timestamps while it leads.
type node struct {
	meta   *meta.Meta
	id     uint64
	mu     sync.Mutex
	oracle *Oracle
}

func (n *node) present() *Oracle {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.oracle
}

// run takes the record over whenever Raft says that this member leads.
func (n *node) run(ctx context.Context) {
	ticker := time.NewTicker(20 * time.Millisecond)
	defer ticker.Stop()
	for ctx.Err() == nil {
		if n.meta.Leader() == n.id {
			n.lead(ctx)
		}
		select {
		case <-ctx.Done():
		case <-ticker.C:
		case <-n.meta.Bell():
		}
	}
}

func (n *node) lead(ctx context.Context) {
	record, err := n.meta.ReadTSO(ctx)
	if err != nil {
		return
	}
	o := New(n.meta, n.id)
	if o.TakeOver(ctx, record.GetEpoch(), time.Now()) != nil {
		return
	}
	n.mu.Lock()
	n.oracle = o
	n.mu.Unlock()
	_ = o.Run(ctx)
}

// TestGroup: three real members; the leader's NodeHost is closed, twice over a
// restart; timestamps never go back and soon come again.
func TestGroup(t *testing.T) {
	members, dirs := map[uint64]string{}, map[uint64]string{}
	for id := uint64(1); id <= 3; id++ {
		members[id], dirs[id] = freeAddress(t), t.TempDir()
	}
	nodes := map[uint64]*node{}
	stops := map[uint64]func(){}
	start := func(id uint64) {
		m, err := meta.Open(meta.Options{
			Dir: dirs[id], MemberID: id, Members: members, ListenAddress: members[id],
			Tick: 50 * time.Millisecond, Logger: slog.New(slog.DiscardHandler),
		})
		if err != nil {
			t.Fatal(err)
		}
		n := &node{meta: m, id: id}
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		wg.Go(func() { n.run(ctx) })
		nodes[id] = n
		stops[id] = sync.OnceFunc(func() {
			m.Close() // the host goes first: whatever is under way fails
			cancel()
			wg.Wait()
		})
		t.Cleanup(stops[id])
	}
	for id := range members {
		start(id)
	}
	var h told
	// ask goes round all members until one answers, and names it.
	ask := func() uint64 {
		t.Helper()
		for began := time.Now(); time.Since(began) < 30*time.Second; {
			for id, n := range nodes {
				o := n.present()
				if o == nil {
					continue
				}
				ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
				err := h.ask(ctx, t, o, 1)
				cancel()
				if err == nil {
					return id
				}
			}
		}
		t.Fatal("nobody gives timestamps")
		return 0
	}
	for range 2 {
		leader := ask()
		for range 100 {
			leader = ask()
		}
		stops[leader]()
		gone := time.Now()
		for next := leader; next == leader; {
			next = ask()
		}
		took := time.Since(gone)
		t.Logf("timestamps came back after %s", took.Round(time.Millisecond))
		if took > 10*time.Second { // about 1 to 2 s when the machine is free
			t.Errorf("timestamps came back after %s", took)
		}
		start(leader)
	}
	for range 20 {
		ask()
	}
}
