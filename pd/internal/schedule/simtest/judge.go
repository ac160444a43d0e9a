package simtest

import (
	"time"

	metapb "github.com/ridgekv/ridge/proto/ridge/meta/v1"
)

// grace is how old a death may be that PD need not know of yet: the silence it
// waits for, a heartbeat, and an order that is under way.
const grace = silentHeartbeats*time.Second + 3*time.Second

// judge asserts law P4 as users see it: a range has a majority that serves, as
// long as no more of its voters are lost than a full set can spare. It must
// hold at every instant, so it is looked at after everything that may change it.
func (c *Cluster) judge(r *vrange, what string) {
	voters, serving := c.tally(r, r.desc.GetReplicas(), c.serves)
	c.worst = min(c.worst, serving-(voters/2+1))
	if lost := voters - serving; voters > 0 && lost <= (c.o.Replicas-1)/2 && serving <= voters/2 &&
		voters >= c.o.Replicas {
		c.fault("range %d: after %s %d of %d voters serve", r.desc.GetRangeId(), what, serving, voters)
	}
}

// judgeStep asserts law P4 as PD can keep it: no step lowers the margin of
// voters that serve below that of a full set, nor below a majority.
func (c *Cluster) judgeStep(r *vrange, members []*metapb.Replica, what string) {
	voters, serving := c.tally(r, r.desc.GetReplicas(), c.servesForAllPDKnows)
	after, left := c.tally(r, members, c.servesForAllPDKnows)
	if after == voters && left == serving {
		return
	}
	before, margin := serving-(voters/2+1), left-(after/2+1)
	if margin < max(0, min(before, (c.o.Replicas-1)/2)) {
		c.fault("range %d: %s leaves %d of %d voters, there were %d of %d", r.desc.GetRangeId(), what,
			left, after, serving, voters)
	}
}

func (c *Cluster) servesForAllPDKnows(m *metapb.Replica, r *vrange) bool {
	s := c.stores[m.GetStoreId()]
	return s.alive && c.serves(m, r) || !s.alive && c.now.Sub(s.died) < grace
}

// Whole reports whether every range has its number of voters, all of them
// serving, and nothing else; else what is amiss.
func (c *Cluster) Whole() []string {
	var out []string
	for _, r := range c.ranges {
		voters, serving := c.tally(r, r.desc.GetReplicas(), c.serves)
		if voters != c.o.Replicas || serving != voters || len(r.desc.GetReplicas()) != voters ||
			r.leader == nil {
			out = append(out, r.String())
		}
	}
	return out
}

// Strangers counts replicas that stores hold and that are members of nothing.
func (c *Cluster) Strangers() int {
	n := 0
	for _, s := range c.stores {
		for _, p := range s.held {
			if s.alive && find(p.r.desc, p.id) == nil {
				n++
			}
		}
	}
	return n
}

// Share is what a store has.
type Share struct {
	Replicas, Leaders int
	Bytes             uint64
	// Reads and Writes are operations per second of the ranges it leads and of
	// the replicas it holds.
	Reads, Writes uint64
}

// Shares tells what every store has, by id.
func (c *Cluster) Shares() map[uint64]Share {
	out := map[uint64]Share{}
	for id := range c.stores {
		out[id] = Share{}
	}
	for _, r := range c.ranges {
		for _, m := range r.desc.GetReplicas() {
			s := out[m.GetStoreId()]
			s.Replicas++
			s.Bytes += r.size
			s.Writes += r.writes
			if m == r.leader {
				s.Leaders++
				s.Reads += r.reads
			}
			out[m.GetStoreId()] = s
		}
	}
	return out
}
