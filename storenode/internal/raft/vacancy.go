package raft

import (
	"math/rand/v2"
	"time"

	pb "github.com/lni/dragonboat/v4/raftpb"
)

// A vacancy is a range that nobody leads although no store that led it has
// died: all of its stores were started at once, or its leader stepped down.
// After a moment in which a living leader would have been heard, time passes
// for one voter after the other: the soft form, so a range that is led all the
// same, by a leader that this store does not hear, is not disturbed.
type vacancy struct {
	round int
	next  time.Time
}

const (
	// vacancyRetry leaves the candidate before time to win: ticks that reach one
	// which has just become leader make it step down.
	vacancyRetry  = 300 * time.Millisecond
	vacancyRounds = 20
	// vacancyRest is between later rounds: most of the voters are away, and
	// ordinary elections would take twice as long to see that they are back.
	vacancyRest = 2 * time.Second
)

// vacantAfter is how long the replicas of a living leader may not know it: a
// heartbeat and a half.
func (h *Host) vacantAfter() time.Duration {
	return 3 * h.opts.Tick * time.Duration(h.opts.HeartbeatTicks) / 2
}

// stepVacancies is stepBirths for ranges that nobody leads.
func (h *Host) stepVacancies(
	now time.Time, out []pb.Message, next time.Time,
) ([]pb.Message, time.Time) {
	h.findVacancies(now)
	if len(h.vacancies) == 0 {
		return out, next
	}
	silent := h.deaths.silent()
	infos := h.shardInfos()
	for rangeID, c := range h.vacancies {
		r, ok := h.replica(rangeID)
		if !ok || r.leading().Known {
			delete(h.vacancies, rangeID)
			continue
		}
		if !now.Before(c.next) {
			g := electorateOf(infos[rangeID])
			rank, ranks := rankOf(rangeID, h.opts.StoreID, g, silent)
			leader, _, known := h.leaderNow(rangeID)
			if c.round%ranks == rank && 2*ranks > len(g.stores) &&
				(!known || leader == 0) {
				out = h.ticksFor(out, r, 2*h.opts.ElectionTicks-1)
				h.metrics.injections.inc("vacancy")
			}
			c.round++
			c.next = now.Add(vacancyRetry + rand.N(vacancyRetry/2))
			if c.round >= vacancyRounds {
				c.next = now.Add(vacancyRest + rand.N(vacancyRest/2))
			}
		}
		if c.next.Before(next) {
			next = c.next
		}
	}
	return out, next
}

// findVacancies notes the replicas that know no leader and that neither a birth
// nor a death is about.
func (h *Host) findVacancies(now time.Time) {
	h.births.mu.Lock()
	defer h.births.mu.Unlock()
	h.replicas.Range(func(_, v any) bool {
		r := v.(*replica)
		if r.leading().Known || !r.started.Load() {
			return true
		}
		_, born := h.births.mu.children[r.rangeID]
		_, dead := h.deaths.ranges[r.rangeID]
		switch _, noted := h.vacancies[r.rangeID]; {
		case born || dead:
			delete(h.vacancies, r.rangeID)
		case !noted:
			h.vacancies[r.rangeID] = &vacancy{next: now.Add(h.vacantAfter())}
		}
		return true
	})
}
