package cluster

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ridgekv/ridge/client"
	"github.com/ridgekv/ridge/proto/ts"
	"github.com/ridgekv/ridge/tests/harness"
)

// stamps takes timestamps again and again, each after the last one was told, and
// remembers if one was not larger.
type stamps struct {
	cancel context.CancelFunc
	wg     sync.WaitGroup
	mu     sync.Mutex
	last   ts.Timestamp
	taken  int
	fault  error
}

func startStamps(t *testing.T, kv *client.Client) *stamps {
	s := &stamps{}
	ctx, cancel := context.WithCancel(context.Background())
	s.cancel = cancel
	s.wg.Go(func() {
		for ctx.Err() == nil {
			next, err := kv.Timestamp(ctx)
			if err == nil {
				s.note(next)
			}
			harness.Rest(ctx, 2*time.Millisecond)
		}
	})
	t.Cleanup(s.stop)
	return s
}

func (s *stamps) note(next ts.Timestamp) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if next <= s.last && s.fault == nil {
		s.fault = fmt.Errorf("timestamp %d after %d", next, s.last)
	}
	s.last = max(s.last, next)
	s.taken++
}

func (s *stamps) stop() {
	s.cancel()
	s.wg.Wait()
}

// await waits until n more timestamps were taken.
func (s *stamps) await(t *testing.T, n int) {
	t.Helper()
	count := func() int {
		s.mu.Lock()
		defer s.mu.Unlock()
		return s.taken
	}
	want := count() + n
	harness.Must(t, harness.Eventually(t.Context(), 30*time.Second, "timestamps go on",
		func(context.Context) error {
			if have := count(); have < want {
				return fmt.Errorf("%d of %d", have, want)
			}
			return nil
		}))
}

// awaitKnown waits until the client and all stores know that there are n PD nodes.
func awaitKnown(t *testing.T, c *harness.Cluster, n int) {
	t.Helper()
	harness.Must(t, harness.Eventually(t.Context(), 20*time.Second, "all know the PD nodes",
		func(ctx context.Context) error {
			if have := c.PD().Addresses(); len(have) != n {
				return fmt.Errorf("the client knows %v", have)
			}
			for _, s := range c.Stores {
				text, err := s.HTTPGet(ctx, "/metrics")
				if err != nil {
					return err
				}
				if !strings.Contains(text, fmt.Sprintf("\nridge_pdclient_members %d\n", n)) {
					return fmt.Errorf("%s does not know all", s.Name)
				}
			}
			return nil
		}))
}

// TestPDMembers: under load, one PD becomes three, the first, which leads, is
// killed and replaced, and the rest of those that anything was ever configured
// with goes away. Timestamps go on and never back, no acknowledged write is lost,
// stores find PD when they start, and a removed PD that comes back stops.
func TestPDMembers(t *testing.T) {
	c := harness.New(t, harness.Options{PDs: 1})
	kv, err := client.Open(t.Context(), client.Options{PDClient: c.PD()})
	harness.Must(t, err)
	defer kv.Close()
	l := startLoad(t, kv, "load/", 4)
	stamped := startStamps(t, kv)
	l.awaitWrites(t, 100)
	contains(t, c.Run(t, 1, "pd", "remove", "1"), "only one that votes")
	contains(t, c.Run(t, 1, "pd", "remove", "7"), "no PD node 7")
	c.Run(t, 2, "pd", "remove", "first")
	began := time.Now()
	step := func(what string) { t.Logf("%s: %s", time.Since(began).Round(time.Millisecond), what) }
	for range 2 {
		_, err := c.JoinPD(t.Context())
		harness.Must(t, err)
	}
	step("three")
	contains(t, c.Run(t, 0, "pd", "list"), "leader", "voter", c.PDs[2].GRPC)
	awaitKnown(t, c, 3)

	founder := c.PDs[0]
	founder.Kill()
	step("all know")
	stamped.await(t, 50)
	step("next leader")
	c.LeavePD(founder)
	contains(t, c.Run(t, 1, "pd", "remove", "2"), "start PD node 1", "remove a silent one first")
	contains(t, c.Run(t, 0, "pd", "remove", "1"), "PD node 1 is removed", "loss of either")
	c.Run(t, 0, "pd", "remove", "1")
	_, err = c.JoinPD(t.Context())
	harness.Must(t, err)
	var list struct {
		Members []struct {
			MemberID uint64 `json:"member_id"`
			Answers  bool   `json:"answers"`
		} `json:"members"`
	}
	decode(t, c.Run(t, 0, "pd", "list", "-o", "json").Out, &list)
	if got := fmt.Sprint(list.Members); got != "[{2 true} {3 true} {4 true}]" {
		t.Errorf("PD nodes %s", got)
	}
	step("replaced")
	awaitKnown(t, c, 3)
	step("all know")
	l.awaitWrites(t, 100)

	// The stores are configured with the founder alone, which is no more.
	for _, s := range c.Stores {
		harness.Must(t, s.Restart(t.Context()))
	}
	step("stores restarted")
	awaitKnown(t, c, 3)
	step("all know")
	harness.Must(t, founder.Start())
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	if err := founder.Wait(ctx); err == nil || !strings.Contains(founder.Output(), "was removed") {
		t.Errorf("the removed PD: %v", err)
	}
	step("the removed PD has ended")
	stamped.await(t, 50)
	stamped.stop()
	if stamped.fault != nil {
		t.Error(stamped.fault)
	}
	l.verify(t)
}
