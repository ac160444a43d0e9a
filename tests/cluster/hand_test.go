package cluster

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	pdpb "github.com/ridgekv/ridge/proto/ridge/pd/v1"
	"github.com/ridgekv/ridge/tests/harness"
)

// TestByHand: under load, four stores in three zones. Replicas keep to the zones,
// leaders follow a rule, replicas and leaders are moved and scattered by hand, a
// plan is given up when the cluster is not as it found it, and another one is
// carried out: it empties a store.
func TestByHand(t *testing.T) {
	t.Parallel()
	c := harness.New(t, harness.Options{
		Stores: 4, Labels: []string{"zone=a", "zone=a", "zone=b", "zone=c"},
		PDFlags: []string{"--location-labels=zone"},
	})
	kv := c.Client(t)
	for _, at := range []string{"load/f", "load/k", "load/p", "load/u"} {
		harness.Must(t, c.Split(t.Context(), []byte(at)))
	}
	harness.Must(t, c.AwaitReplicated(t.Context()))
	l := startLoad(t, kv, "load/", 4)
	l.awaitWrites(t, 200)
	h := hand{t: t, c: c}
	for _, p := range c.Stores {
		id, err := c.StoreID(t.Context(), p)
		harness.Must(t, err)
		h.ids = append(h.ids, id)
	}
	h.awaitZones()
	h.moves()
	l.awaitWrites(t, 100)
	h.rules()
	l.awaitWrites(t, 100)
	h.drift()
	l.awaitWrites(t, 100)
	h.apply()
	awaitGone(t, c, c.Stores[1], h.ids[1])
	l.verify(t)
	settled(t, c)
}

// hand runs what a person types.
type hand struct {
	t *testing.T
	c *harness.Cluster
	// ids are the stores, in the order of their processes: zones a, a, b, c.
	ids []uint64
}

func (h hand) run(code int, line string, args ...any) harness.Result {
	h.t.Helper()
	return h.c.Run(h.t, code, strings.Fields(fmt.Sprintf(line, args...))...)
}

// eventually waits for what routes must fulfil.
func (h hand) eventually(what string, check func(r *pdpb.Route) error) {
	h.t.Helper()
	harness.Must(h.t, harness.Eventually(h.t.Context(), time.Minute, what,
		func(ctx context.Context) error {
			routes, err := h.c.Routes(ctx)
			for _, r := range routes {
				err = errors.Join(err, check(r))
			}
			return err
		}))
}

func storesOf(r *pdpb.Route) (ids []uint64) {
	for _, p := range r.GetRange().GetReplicas() {
		ids = append(ids, p.GetStoreId())
	}
	return ids
}

// awaitZones waits until no range has two replicas in zone a.
func (h hand) awaitZones() {
	h.t.Helper()
	h.eventually("a replica in each zone", func(r *pdpb.Route) error {
		at := storesOf(r)
		if len(at) != 3 || slices.Contains(at, h.ids[0]) && slices.Contains(at, h.ids[1]) {
			return fmt.Errorf("range %d is on %v", r.GetRange().GetRangeId(), at)
		}
		return nil
	})
}

// quiet pauses balancing and waits until nothing is under way.
func (h hand) quiet() {
	h.t.Helper()
	h.run(0, "schedule pause --for 5m")
	h.idle()
}

// idle waits until nothing is under way.
func (h hand) idle() {
	h.t.Helper()
	harness.Must(h.t, harness.Eventually(h.t.Context(), time.Minute, "no operator in flight",
		func(ctx context.Context) error {
			r, err := h.c.PD().ListOperators(ctx)
			if err == nil && len(r.GetOperators()) > 0 {
				err = fmt.Errorf("in flight: %v", r.GetOperators())
			}
			return err
		}))
}

// moves moves a replica and a leader and refuses what makes no sense.
func (h hand) moves() {
	h.t.Helper()
	h.quiet()
	route, err := h.c.PD().GetRoute(h.t.Context(), []byte("load/a"))
	harness.Must(h.t, err)
	id, at := route.GetRoute().GetRange().GetRangeId(), storesOf(route.GetRoute())
	from, to := h.ids[0], h.ids[1]
	if slices.Contains(at, to) {
		from, to = to, from
	}
	contains(h.t, h.run(1, "range move 999 --from %d --to %d", from, to), "999")
	contains(h.t, h.run(1, "range move %d --from %d --to %d", id, from, h.ids[2]), "already")
	contains(h.t, h.run(1, "range move %d --from %d --to %d", id, h.ids[3], to), "zone")
	h.run(0, "range move %d --from %d --to %d", id, from, to)
	h.eventually("the replica is moved", func(r *pdpb.Route) error {
		at := storesOf(r)
		if r.GetRange().GetRangeId() == id && (!slices.Contains(at, to) || len(at) != 3) {
			return fmt.Errorf("range %d is on %v", id, at)
		}
		return nil
	})
	for _, heir := range []uint64{h.ids[2], to} {
		h.idle()
		h.run(0, "range transfer-leader %d %d", id, heir)
		h.eventually("the leader is moved", func(r *pdpb.Route) error {
			if now := r.GetLeader().GetStoreId(); r.GetRange().GetRangeId() == id && now != heir {
				return fmt.Errorf("store %d leads range %d", now, id)
			}
			return nil
		})
	}
	h.idle()
	contains(h.t, h.run(0, "why range %d", id), "by hand")
	h.run(0, "schedule resume")
	contains(h.t, h.run(0, "range scatter --prefix load/ --dry-run"), "scatter")
	h.run(0, "range scatter --prefix load/")
}

// rules lets zone b lead what begins with load/k to load/p, and refuses a rule
// that no store can follow.
func (h hand) rules() {
	h.t.Helper()
	set := func(code int, text string) harness.Result {
		path := filepath.Join(h.t.TempDir(), "rule.yaml")
		harness.Must(h.t, os.WriteFile(path, []byte(text), 0o600))
		return h.c.Run(h.t, code, "rule", "set", path)
	}
	contains(h.t, set(1, "{id: far, prefix: load/, constraints: [{key: zone, in: [moon]}]}"), "zone")
	set(0, "{id: b, start: load/k, end: load/p, leader_preference: [{key: zone, in: [b]}]}")
	h.eventually("zone b leads", func(r *pdpb.Route) error {
		if now := r.GetLeader().GetStoreId(); string(r.GetRange().GetSpan().GetStart()) == "load/k" &&
			now != h.ids[2] {
			return fmt.Errorf("store %d leads", now)
		}
		return nil
	})
	h.run(0, "rule delete b")
	h.awaitZones()
}

// drift makes a plan fail: a range that it would move is divided behind its back.
func (h hand) drift() {
	h.t.Helper()
	h.run(0, "config set store_moves 1")
	h.quiet()
	var plan struct {
		Moves []struct {
			RangeID uint64 `json:"range_id"`
		}
	}
	shown := h.run(0, "plan decommission %d -o json", h.ids[2])
	harness.Must(h.t, json.Unmarshal([]byte(shown.Out), &plan))
	if len(plan.Moves) < 4 {
		h.t.Fatalf("too few moves: %s", shown)
	}
	last := plan.Moves[len(plan.Moves)-1].RangeID
	done := make(chan harness.Result, 1)
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() {
		r, err := h.c.Ridge(context.WithoutCancel(h.t.Context()), "", "plan", "decommission", fmt.Sprint(h.ids[2]),
			"--apply")
		r.Err += fmt.Sprint(err)
		done <- r
	})
	harness.Must(h.t, harness.Eventually(h.t.Context(), time.Minute, "the plan has begun",
		func(ctx context.Context) error {
			r, err := h.c.PD().GetPlanProgress(ctx, "")
			if err == nil && r.GetProgress().GetUnderWay() == 0 {
				err = errors.New("nothing is under way")
			}
			return err
		}))
	// The range that is moved last is another one from now on.
	routes, err := h.c.Routes(h.t.Context())
	harness.Must(h.t, err)
	for _, r := range routes {
		if g := r.GetRange(); g.GetRangeId() == last {
			h.run(0, "range split %s", max(string(g.GetSpan().GetStart()), "load/")+"0")
		}
	}
	r := <-done
	if r.Code != 1 {
		h.t.Errorf("the plan went on: %s", r)
	}
	contains(h.t, r, "is given up", "were not begun")
	contains(h.t, h.run(0, "store list"), "up")
	h.run(0, "config unset store_moves")
	h.run(0, "schedule resume")
	h.awaitZones()
}

// apply lets a plan empty the second store of zone a.
func (h hand) apply() {
	h.t.Helper()
	harness.Must(h.t, harness.Eventually(h.t.Context(), 2*time.Minute, "a plan is carried out",
		func(ctx context.Context) error {
			r, err := h.c.Ridge(ctx, "", "plan", "decommission", fmt.Sprint(h.ids[1]), "--apply")
			if err == nil && r.Code != 0 {
				err = errors.New(r.Err) // something else was under way
			}
			return err
		}))
}
