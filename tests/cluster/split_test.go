package cluster

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	metapb "github.com/ridgekv/ridge/proto/ridge/meta/v1"
	pdpb "github.com/ridgekv/ridge/proto/ridge/pd/v1"
	"github.com/ridgekv/ridge/tests/harness"
)

// TestSplitUnderLoad: while ranges are split, by hand and by size, no key is
// unwritable for more than a second and nothing is lost.
func TestSplitUnderLoad(t *testing.T) {
	c := harness.New(t, harness.Options{SplitSize: "1MB"})
	kv := c.Client(t)
	l := startLoad(t, kv, "load/", 8)
	l.awaitWrites(t, 400)
	l.resetLongest()
	for ch := byte('b'); ch <= 'y'; ch += 4 {
		harness.Must(t, c.Split(t.Context(), fmt.Appendf(nil, "load/%c", ch)))
		l.awaitWrites(t, 50)
	}
	longest, key := l.resetLongest()
	t.Logf("longest time a key could not be written: %s (%s)", longest, key)
	if longest > time.Second {
		t.Errorf("%s could not be written for %s", key, longest)
	}
	fill(t, kv, "size/", 4000, 1000)
	harness.Must(t, c.AwaitRanges(t.Context(), 10, time.Minute))
	l.verify(t)
	seen, err := c.AwaitEqual(t.Context(), time.Minute)
	harness.Must(t, err)
	t.Logf("compared %+v", seen)
}

// TestSleptThroughSplit: a store that was away while a range was split and
// written to comes back and is repaired.
func TestSleptThroughSplit(t *testing.T) {
	t.Parallel()
	c := harness.New(t, harness.Options{})
	kv := c.Client(t)
	for _, how := range []string{"killed", "stopped by SIGSTOP"} {
		t.Run(how, func(t *testing.T) {
			prefix := how[:1] + "/"
			fill(t, kv, prefix, 2000, 200)
			leader, err := c.LeaderOf(t.Context(), []byte(prefix))
			harness.Must(t, err)
			before, err := c.Routes(t.Context())
			harness.Must(t, err)
			sleeper := c.Stores[0]
			if sleeper == leader {
				sleeper = c.Stores[1]
			}
			if how == "killed" {
				sleeper.Kill()
			} else {
				sleeper.Pause()
			}
			for i := range 4 {
				harness.Must(t, c.Split(t.Context(), fmt.Appendf(nil, "%s%08d", prefix, 400*(i+1))))
			}
			fill(t, kv, prefix, 3000, 300)
			if how == "killed" {
				harness.Must(t, sleeper.Start())
			} else {
				sleeper.Resume()
			}
			harness.Must(t, sleeper.AwaitReady(t.Context()))
			seen, err := c.AwaitEqual(t.Context(), 90*time.Second)
			harness.Must(t, err)
			if seen.Ranges < len(before)+4 || seen.Replicas != 3*seen.Ranges || seen.Keys%3000 != 0 {
				t.Errorf("compared %+v", seen)
			}
		})
	}
}

// TestMoveAwaitsSplit: a replica is moved away whose store was killed before its
// range's last split and is started again as soon as the copy is there. The replica
// learns of the split first, so that the child has all its replicas long before PD
// would miss one.
func TestMoveAwaitsSplit(t *testing.T) {
	t.Parallel()
	c := harness.New(t, harness.Options{Stores: 4})
	kv := c.Client(t)
	fill(t, kv, "k/", 600, 100)
	harness.Must(t, c.AwaitReplicated(t.Context()))
	h := hand{t: t, c: c}
	h.quiet()
	for i := range 3 {
		key := fmt.Appendf(nil, "k/%08d", 500-100*i)
		route, err := c.PD().GetRoute(t.Context(), key)
		harness.Must(t, err)
		r := route.GetRoute()
		from, to := h.followerAndOutsider(r)
		store, err := c.StoreAt(t.Context(), from)
		harness.Must(t, err)
		store.Kill()
		harness.Must(t, c.Split(t.Context(), key))
		harness.Must(t, harness.Eventually(t.Context(), 20*time.Second, "a move begins",
			func(ctx context.Context) error {
				out, err := c.Ridge(ctx, "", "range", "move", fmt.Sprint(r.GetRange().GetRangeId()),
					"--from", fmt.Sprint(from), "--to", fmt.Sprint(to))
				if err == nil && out.Code != 0 { // a child of the range is not born yet
					err = errors.New(out.String())
				}
				return err
			}))
		h.eventually("the copy has a vote", func(now *pdpb.Route) error {
			for _, p := range now.GetRange().GetReplicas() {
				if p.GetStoreId() == to && p.GetRole() == metapb.Role_ROLE_VOTER {
					return nil
				}
			}
			return unless(same(now, r), now)
		})
		harness.Must(t, store.Start())
		h.eventually("the move is done", func(now *pdpb.Route) error {
			return unless(same(now, r) && slices.Contains(storesOf(now), from), now)
		})
	}
	_, err := c.AwaitEqual(t.Context(), 20*time.Second)
	harness.Must(t, err)
}

func same(a, b *pdpb.Route) bool {
	return a.GetRange().GetRangeId() == b.GetRange().GetRangeId()
}

// unless is an error that names the members of r if it is not as it shall be.
func unless(wrong bool, r *pdpb.Route) error {
	if !wrong {
		return nil
	}
	return fmt.Errorf("range %d has %v", r.GetRange().GetRangeId(), r.GetRange().GetReplicas())
}

// followerAndOutsider are a store with a replica of r that does not lead, and one
// without.
func (h hand) followerAndOutsider(r *pdpb.Route) (follower, outsider uint64) {
	h.t.Helper()
	for _, p := range h.c.Stores {
		id, err := h.c.StoreID(h.t.Context(), p)
		harness.Must(h.t, err)
		switch {
		case !slices.Contains(storesOf(r), id):
			outsider = id
		case id != r.GetLeader().GetStoreId():
			follower = id
		}
	}
	return follower, outsider
}
