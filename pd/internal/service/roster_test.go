package service

import (
	"math/rand/v2"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/ridgekv/ridge/pd/internal/settings"
	"github.com/ridgekv/ridge/pd/internal/topology"
	metapb "github.com/ridgekv/ridge/proto/ridge/meta/v1"
	pdpb "github.com/ridgekv/ridge/proto/ridge/pd/v1"
)

// crew is a leader whose stores can be changed.
type crew struct {
	l   *Leading
	now time.Time
}

func newCrew(stores uint64) *crew {
	c := &crew{now: time.Unix(1_700_000_000, 0)}
	c.l = &Leading{
		Topology: topology.New(c.now, nil, nil),
		Settings: func() settings.Settings { return settings.Settings{StoreDownAfter: time.Minute} },
	}
	for id := range stores {
		c.put(id+1, metapb.StoreState_STORE_STATE_UP, "")
	}
	return c
}

func (c *crew) put(id uint64, state metapb.StoreState, address string) {
	c.l.Topology.PutStores([]*pdpb.StoreRecord{{
		Store: &metapb.Store{StoreId: id, State: state, GrpcAddress: address},
	}}, c.now)
}

// since asks after the roster has grown old.
func (c *crew) since(epoch, version uint64) ([]*metapb.Store, uint64) {
	c.now = c.now.Add(rosterAge)
	return c.l.roster.since(c.l, epoch, version, c.now)
}

// A heartbeat is told what changed since the last one and no more; what is not
// known here, or was told by another leader, is told whole.
func TestRoster(t *testing.T) {
	c := newCrew(3)
	want := func(what string, epoch, version uint64, ids ...uint64) uint64 {
		t.Helper()
		stores, latest := c.since(epoch, version)
		have := map[uint64]bool{}
		for _, s := range stores {
			have[s.GetStoreId()] = true
		}
		for _, id := range ids {
			if !have[id] {
				t.Errorf("%s: store %d is not told", what, id)
			}
		}
		if len(stores) != len(ids) {
			t.Errorf("%s: %d stores are told, want %v", what, len(stores), ids)
		}
		return latest
	}
	v1 := want("all, at first", 7, 0, 1, 2, 3)
	if v1 <= 7<<32 {
		t.Errorf("version %d is not one of this leader", v1)
	}
	want("nothing new", 7, v1)
	c.put(2, metapb.StoreState_STORE_STATE_DRAINING, "")
	v2 := want("a state", 7, v1, 2)
	want("the same again, when the answer was lost", 7, v1, 2)
	c.put(4, metapb.StoreState_STORE_STATE_UP, "d:1")
	v3 := want("a new store", 7, v2, 4)
	want("both, to one that lags", 7, v1, 2, 4)
	want("all, to one that comes from the leader before", 7, 6<<32+v3&0xffff, 1, 2, 3, 4)
	want("all, to one that is ahead", 7, v3+1, 1, 2, 3, 4)
	c.now = c.now.Add(time.Minute)
	c.l.Topology.HeardStore(1, nil, metapb.DiskState_DISK_STATE_UNSPECIFIED, c.now)
	v4 := want("those that went silent", 7, v3, 2, 3, 4)
	c.l.Topology.HeardStore(3, nil, metapb.DiskState_DISK_STATE_FULL, c.now)
	v5 := want("one that is back, its disk full", 7, v4, 3)
	c.l.Topology.HeardStore(3, nil, metapb.DiskState_DISK_STATE_FULL, c.now)
	want("heard again", 7, v5)
}

// Whoever merges the answers, however many it misses, knows what a whole list
// says, over any changes and changes of leader.
func TestRosterConverges(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 1))
	c := newCrew(5)
	type follower struct {
		version uint64
		knows   map[uint64]*metapb.Store
	}
	followers := make([]follower, 4)
	for i := range followers {
		followers[i].knows = map[uint64]*metapb.Store{}
	}
	epoch, states := uint64(1), []metapb.StoreState{
		metapb.StoreState_STORE_STATE_UP, metapb.StoreState_STORE_STATE_DRAINING,
		metapb.StoreState_STORE_STATE_LEAVING, metapb.StoreState_STORE_STATE_GONE,
	}
	for range 5000 {
		switch id := 1 + rnd.Uint64N(12); rnd.IntN(6) {
		case 0:
			c.put(id, states[rnd.IntN(len(states))], string(rune('a'+rnd.IntN(20))))
		case 1:
			c.l.Topology.HeardStore(id, nil, metapb.DiskState(rnd.IntN(4)), c.now)
		case 2:
			c.now = c.now.Add(time.Duration(rnd.Int64N(int64(20 * time.Second))))
		case 3:
			if rnd.IntN(20) == 0 {
				epoch++
				c.l.roster = roster{}
			}
		default:
			f := &followers[rnd.IntN(len(followers))]
			stores, version := c.since(epoch, f.version)
			if rnd.IntN(3) == 0 {
				continue // the answer is lost
			}
			for _, s := range stores {
				f.knows[s.GetStoreId()] = s
			}
			f.version = version
			for _, s := range c.l.Topology.Stores() {
				want := shown(s.Store, isDown(s, c.now, time.Minute))
				if !proto.Equal(f.knows[s.Store.GetStoreId()], want) {
					t.Fatalf("epoch %d, version %d: known %v, is %v", epoch, version,
						f.knows[s.Store.GetStoreId()], want)
				}
			}
		}
	}
}

// BenchmarkRoster is what the answer to a heartbeat costs with 1,000 stores that
// nothing happens to.
func BenchmarkRoster(b *testing.B) {
	c := newCrew(1000)
	_, version := c.since(1, 0)
	began := time.Now()
	b.ReportAllocs()
	for b.Loop() {
		c.l.roster.since(c.l, 1, version, c.now.Add(time.Since(began)))
	}
}
