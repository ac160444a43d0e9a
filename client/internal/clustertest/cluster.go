// Package clustertest is a scripted cluster for the tests of the client: real
// gRPC servers on loopback that speak PDService and KVService over one shared
// map, with ranges that split, leaders that move, stores that die, freeze or
// lie on command. It imports nothing of the client.
package clustertest

import (
	"bytes"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/ridgekv/ridge/proto/keys"
	kvpb "github.com/ridgekv/ridge/proto/ridge/kv/v1"
	metapb "github.com/ridgekv/ridge/proto/ridge/meta/v1"
	pdpb "github.com/ridgekv/ridge/proto/ridge/pd/v1"
	"github.com/ridgekv/ridge/proto/ts"
)

// ClusterID is the id of every scripted cluster.
const ClusterID = 4711

// Cluster is the whole of it. All methods are safe for concurrent use.
type Cluster struct {
	PDs    []*PD
	Stores []*Store

	mu struct {
		sync.Mutex
		ranges   map[uint64]*group
		nextID   uint64
		now      ts.Timestamp
		rows     map[string][]version
		pdLeader int // index in PDs, -1: none
		// frozen, if set, is what PD answers about routes instead of the truth.
		frozen   []*pdpb.Route
		watchers map[chan struct{}]bool
	}
}

// group is a range with its leader.
type group struct {
	rng    *metapb.Range
	leader uint64 // store id, 0: none
}

type version struct {
	at      ts.Timestamp
	value   []byte
	deleted bool
}

// New starts pds PD nodes and stores stores, with one range that has a replica
// on each store and is led by store 1. Everything stops with the test.
func New(t testing.TB, pds, stores int) *Cluster {
	t.Helper()
	c := &Cluster{}
	c.mu.ranges, c.mu.rows = map[uint64]*group{}, map[string][]version{}
	c.mu.watchers = map[chan struct{}]bool{}
	c.mu.now, c.mu.nextID = ts.FromTime(time.Now()), 1000
	rng := &metapb.Range{RangeId: 1, Span: &metapb.Span{}, Epoch: &metapb.Epoch{Config: 5, Span: 1}}
	for i := range pds {
		c.PDs = append(c.PDs, &PD{c: c, index: i, server: newServer(t)})
	}
	for i := range stores {
		id := uint64(i + 1)
		c.Stores = append(c.Stores, &Store{c: c, ID: id, server: newServer(t)})
		rng.Replicas = append(rng.Replicas, &metapb.Replica{
			ReplicaId: id, StoreId: id, Role: metapb.Role_ROLE_VOTER,
		})
	}
	c.mu.ranges[1] = &group{rng: rng, leader: 1}
	for _, p := range c.PDs {
		p.server.start(p.register)
	}
	for _, s := range c.Stores {
		s.server.start(s.register)
	}
	return c
}

// PDAddresses are the addresses of all PD nodes.
func (c *Cluster) PDAddresses() []string {
	var out []string
	for _, p := range c.PDs {
		out = append(out, p.server.addr)
	}
	return out
}

// Store returns the store with the id.
func (c *Cluster) Store(id uint64) *Store { return c.Stores[id-1] }

// MovePDLeader lets node index lead; -1 leaves the cluster without one.
func (c *Cluster) MovePDLeader(index int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.mu.pdLeader = index
}

// Split cuts the range that holds key at key and returns the child's id.
func (c *Cluster) Split(key string) uint64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	g := c.findLocked([]byte(key))
	left, right := keys.FromProto(g.rng.Span).SplitAt([]byte(key))
	c.mu.nextID++
	child := proto.CloneOf(g.rng)
	child.RangeId, child.Span = c.mu.nextID, right.Proto()
	child.Epoch = &metapb.Epoch{Config: 5, Span: g.rng.Epoch.Span + 1}
	parent := proto.CloneOf(g.rng)
	parent.Span, parent.Epoch.Span = left.Proto(), g.rng.Epoch.Span+1
	g.rng = parent
	c.mu.ranges[child.RangeId] = &group{rng: child, leader: g.leader}
	c.notifyLocked()
	return child.RangeId
}

// MoveLeader lets store lead the range; 0 leaves it without a leader.
func (c *Cluster) MoveLeader(rangeID, store uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.mu.ranges[rangeID].leader = store
	c.notifyLocked()
}

// MoveReplicas gives the range replicas on exactly these stores; the first one
// leads.
func (c *Cluster) MoveReplicas(rangeID uint64, stores ...uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	g := c.mu.ranges[rangeID]
	r := proto.CloneOf(g.rng)
	r.Epoch.Config += 3
	r.Replicas = nil
	for _, s := range stores {
		c.mu.nextID++
		r.Replicas = append(r.Replicas, &metapb.Replica{
			ReplicaId: c.mu.nextID, StoreId: s, Role: metapb.Role_ROLE_VOTER,
		})
	}
	g.rng, g.leader = r, stores[0]
	c.notifyLocked()
}

// Leader is the store that leads the range of key.
func (c *Cluster) Leader(key string) (rangeID, store uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	g := c.findLocked([]byte(key))
	return g.rng.RangeId, g.leader
}

// FreezeRoutes lets PD answer with the routes of now until ThawRoutes.
func (c *Cluster) FreezeRoutes() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.mu.frozen = c.routesLocked()
}

// ThawRoutes ends FreezeRoutes.
func (c *Cluster) ThawRoutes() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.mu.frozen = nil
	c.notifyLocked()
}

// Value is the newest value of key in the shared map.
func (c *Cluster) Value(key string) (string, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	v, ok := newest(c.mu.rows[key], ts.Max)
	return string(v.value), ok
}

// Versions is how many times key was written.
func (c *Cluster) Versions(key string) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.mu.rows[key])
}

// Fill writes n rows "<prefix>%04d" behind the servers' back.
func (c *Cluster) Fill(prefix string, n int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.mu.now++
	for i := range n {
		k := fmt.Sprintf("%s%04d", prefix, i)
		c.mu.rows[k] = append(c.mu.rows[k], version{at: c.mu.now, value: []byte("v" + k)})
	}
}

func newest(vs []version, at ts.Timestamp) (version, bool) {
	for i := len(vs) - 1; i >= 0; i-- {
		if vs[i].at <= at {
			return vs[i], !vs[i].deleted
		}
	}
	return version{}, false
}

// findLocked returns the range that holds key.
func (c *Cluster) findLocked(key []byte) *group {
	for _, g := range c.mu.ranges {
		if keys.FromProto(g.rng.Span).Contains(key) {
			return g
		}
	}
	panic(fmt.Sprintf("no range holds %q", key))
}

// routesLocked is the truth about all ranges, by start key.
func (c *Cluster) routesLocked() []*pdpb.Route {
	if c.mu.frozen != nil {
		return c.mu.frozen
	}
	var out []*pdpb.Route
	for _, g := range c.mu.ranges {
		out = append(out, &pdpb.Route{Range: g.rng, Leader: leaderOf(g)})
	}
	slices.SortFunc(out, func(a, b *pdpb.Route) int {
		return bytes.Compare(a.Range.Span.Start, b.Range.Span.Start)
	})
	return out
}

func leaderOf(g *group) *metapb.Leader {
	for _, r := range g.rng.Replicas {
		if r.StoreId == g.leader {
			return &metapb.Leader{ReplicaId: r.ReplicaId, StoreId: r.StoreId, Term: 2}
		}
	}
	return nil
}

func (c *Cluster) storesLocked() []*metapb.Store {
	var out []*metapb.Store
	for _, s := range c.Stores {
		out = append(out, &metapb.Store{
			StoreId: s.ID, GrpcAddress: s.server.addr, State: metapb.StoreState_STORE_STATE_UP,
		})
	}
	return out
}

func (c *Cluster) notifyLocked() {
	for w := range c.mu.watchers {
		select {
		case w <- struct{}{}:
		default:
		}
	}
}

// timestampsLocked hands out n timestamps.
func (c *Cluster) timestampsLocked(n uint64) ts.Timestamp {
	first := c.mu.now + 1
	c.mu.now += ts.Timestamp(n)
	return first
}

// apply evaluates one request that has passed the checks of its store.
func (c *Cluster) applyLocked(req *kvpb.Request, g *group) *kvpb.Response {
	return evaluate(&c.mu.rows, req, g.rng, func() ts.Timestamp { return c.timestampsLocked(1) })
}
