package raft

import (
	"cmp"
	"context"
	"encoding/binary"
	"hash/fnv"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/lni/dragonboat/v4"
	pb "github.com/lni/dragonboat/v4/raftpb"

	"github.com/ridgekv/ridge/storenode/internal/catalog"
)

// Elections on demand. Ticks are slow, because a thousand ranges cost a good
// part of a core at fast ones; instead a replica is told when time is up. Two
// forms, both messages handed to a local replica as if they had arrived:
//
// Birth of a child: TimeoutNow, which skips the pre-vote. Nobody leads a child,
// so there is nobody to disturb.
//
// Death of a store, and a range without a leader (vacancy.go): a burst of
// LocalTick, which only lets time pass. It keeps
// the pre-vote and the voters' patience with a living leader, so that Raft
// itself demands that a quorum agrees; wrong, it costs nothing.
//
// A transfer that its heir does not take: the leader, which takes no proposals
// meanwhile, gives it up after an election timeout. It gets a burst, too.
//
// None can break Raft: all only move clocks.

const (
	// maxElectionTicks keeps burstTicks below the receive queue of a replica
	// (receiveQueueLen): a full queue drops ticks.
	maxElectionTicks = 60

	orphanAfter    = 300 * time.Millisecond
	aloneAfter     = 100 * time.Millisecond
	aloneEvery     = 50 * time.Millisecond
	birthEvery     = 5 * time.Millisecond
	birthReset     = 50 * time.Millisecond
	birthResetMax  = time.Second
	birthGiveUp    = 10 * time.Second
	deathRetry     = 100 * time.Millisecond
	deathRounds    = 40
	roundsPerRank  = 2
	deathRescan    = 200 * time.Millisecond
	messagesAtOnce = 4096
)

// births are the children this store campaigns for: those whose parent it led
// from the split until they started here, and in the soft form all others, later.
type births struct {
	bell chan struct{}
	mu   struct {
		sync.Mutex
		children map[uint64]*birth
	}
}

type birth struct {
	replicaID uint64
	since     time.Time
	next      time.Time
	// reset is when a candidate that is stuck is sent back to being a follower.
	reset      time.Time
	resetEvery time.Duration
	// alone: this is no child, but a replica that is the only member, so that
	// nobody else can lead. It is looked at again before each message.
	alone bool
	// patient: another store is expected to campaign. If it has died, time
	// passes here: the soft form, since the child may well be led by now.
	patient bool
}

func newBirths() *births {
	b := &births{bell: make(chan struct{}, 1)}
	b.mu.children = make(map[uint64]*birth)
	return b
}

func (b *births) ring() { ring(b.bell) }

func (b *births) add(rangeID, replicaID uint64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	now := time.Now()
	b.mu.children[rangeID] = &birth{
		replicaID: replicaID, since: now, next: now,
		reset: now.Add(birthReset), resetEvery: birthReset,
	}
	b.ring()
}

// addAlone is add for a replica that is the only member of its range. It waits
// a moment, because a replica that starts learns of the members that joined
// only while its log is replayed.
func (b *births) addAlone(rangeID, replicaID uint64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.mu.children[rangeID] != nil {
		return
	}
	now := time.Now()
	begin := now.Add(aloneAfter)
	b.mu.children[rangeID] = &birth{
		replicaID: replicaID, since: now, next: begin, alone: true,
		reset: begin.Add(birthReset), resetEvery: birthReset,
	}
	b.ring()
}

// addPatient is add for a child that another store should lead.
func (b *births) addPatient(rangeID, replicaID uint64, rank int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	now := time.Now()
	b.mu.children[rangeID] = &birth{
		replicaID: replicaID, since: now, patient: true,
		next: now.Add(time.Duration(rank+1) * orphanAfter),
	}
	b.ring()
}

// hurry makes the next message a reset, because another member has started.
func (b *births) hurry(rangeID uint64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if c, ok := b.mu.children[rangeID]; ok && !c.patient {
		c.next, c.reset, c.resetEvery = time.Time{}, time.Time{}, birthReset
		b.ring()
	}
}

// ChildStarted tells that another store has started its replica of a child.
func (h *Host) ChildStarted(rangeID, storeID uint64) {
	if storeID != h.opts.StoreID {
		h.births.hurry(rangeID)
	}
}

// deaths are the stores that are silent, and the ranges they led.
type deaths struct {
	bell chan struct{}
	mu   struct {
		sync.Mutex
		silent map[uint64]struct{}
	}
	// Only the campaign loop uses ranges.
	ranges map[uint64]*death
}

type death struct {
	storeID uint64
	round   int
	next    time.Time
}

// pause is how long until the next round. It doubles after every two turns of two
// ranks, up to eight times: where elections take longer than a pause, on a machine
// with too much to do, the next candidate would disturb each of them.
func (d *death) pause() time.Duration {
	p := deathRetry << min(d.round/(2*roundsPerRank), 3)
	return p + rand.N(p/2)
}

func newDeaths() *deaths {
	d := &deaths{bell: make(chan struct{}, 1), ranges: make(map[uint64]*death)}
	d.mu.silent = make(map[uint64]struct{})
	return d
}

func (d *deaths) ring() { ring(d.bell) }

func (d *deaths) silent() map[uint64]struct{} {
	d.mu.Lock()
	defer d.mu.Unlock()
	out := make(map[uint64]struct{}, len(d.mu.silent))
	for s := range d.mu.silent {
		out[s] = struct{}{}
	}
	return out
}

// Suspect tells whether a store is heard. The ranges that a silent store led
// are led again within a second, unless most of the others still hear it.
func (h *Host) Suspect(storeID uint64, silent bool) {
	if storeID == h.opts.StoreID {
		return
	}
	d := h.deaths
	d.mu.Lock()
	_, was := d.mu.silent[storeID]
	if silent {
		d.mu.silent[storeID] = struct{}{}
	} else {
		delete(d.mu.silent, storeID)
	}
	d.mu.Unlock()
	if was != silent {
		h.log.Info("store suspected", "suspect", storeID, "silent", silent)
		h.door.renew(storeID)
		d.ring()
	}
}

// campaign sends what births and deaths ask for, and keeps the clock.
func (h *Host) campaign(ctx context.Context) error {
	// The same kind of clock as NodeHost's: both miss the same ticks when the
	// process is stopped.
	h.ticks.Store(uint64(time.Since(h.opened) / h.opts.Tick))
	clock := time.NewTicker(h.opts.Tick)
	defer clock.Stop()
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for {
		now := time.Now()
		next := now.Add(time.Hour)
		var messages []pb.Message
		messages, next = h.stepBirths(now, messages, next)
		messages, next = h.stepDeaths(now, messages, next)
		messages, next = h.stepVacancies(now, messages, next)
		for batch := range slices.Chunk(messages, messagesAtOnce) {
			if !h.door.inject(batch) {
				return nil // closing
			}
		}
		timer.Reset(max(time.Until(next), time.Millisecond))
		select {
		case <-ctx.Done():
			return nil
		case <-clock.C:
			h.ticks.Add(1)
		case <-h.births.bell:
		case <-h.deaths.bell:
		case <-timer.C:
		}
	}
}

// stepBirths adds the messages that are due for children, and moves next to
// when the next one is.
func (h *Host) stepBirths(
	now time.Time, out []pb.Message, next time.Time,
) ([]pb.Message, time.Time) {
	b := h.births
	b.mu.Lock()
	defer b.mu.Unlock()
	infos := sync.OnceValue(h.shardInfos) // looks at all replicas
	for rangeID, c := range b.mu.children {
		r, ok := h.replica(rangeID)
		if !ok || r.replicaID != c.replicaID || now.Sub(c.since) > birthGiveUp {
			delete(b.mu.children, rangeID)
			continue
		}
		due := !now.Before(c.next)
		if c.alone && due && !r.alone(infos()[rangeID].ConfigChangeIndex) {
			delete(b.mu.children, rangeID)
			continue
		}
		leader, term, known := h.leaderNow(rangeID)
		if known && leader != 0 {
			h.log.Debug("child has a leader", "range", rangeID, "after", now.Sub(c.since))
			delete(b.mu.children, rangeID)
			continue
		}
		if due && c.patient {
			out = h.ticksFor(out, r, 2*h.opts.ElectionTicks-1)
			c.next = now.Add(orphanAfter + rand.N(orphanAfter))
			h.metrics.injections.inc("birth")
		} else if due {
			if !now.Before(c.reset) {
				// A candidate ignores TimeoutNow. A message of a later term makes
				// it a follower again; the term rises by two.
				out = append(out, pb.Message{
					Type: pb.NoOP, ShardID: rangeID, To: c.replicaID,
					Term: max(term, catalog.BirthIndex) + 1,
				})
				c.reset = now.Add(c.resetEvery)
				c.resetEvery = min(2*c.resetEvery, birthResetMax)
			}
			out = append(out, pb.Message{Type: pb.TimeoutNow, ShardID: rangeID, To: c.replicaID})
			c.next = now.Add(birthEvery)
			if c.alone {
				c.next = now.Add(aloneEvery)
			}
			h.metrics.injections.inc("birth")
		}
		if c.next.Before(next) {
			next = c.next
		}
	}
	return out, next
}

// stepDeaths is stepBirths for the ranges of silent stores.
func (h *Host) stepDeaths(
	now time.Time, out []pb.Message, next time.Time,
) ([]pb.Message, time.Time) {
	d := h.deaths
	silent := d.silent()
	if len(silent) == 0 {
		clear(d.ranges)
		return out, next
	}
	infos := h.shardInfos()
	h.replicas.Range(func(_, v any) bool {
		r := v.(*replica)
		g := electorateOf(infos[r.rangeID])
		_, dead := silent[g.leader]
		if _, listed := d.ranges[r.rangeID]; dead && !listed {
			d.ranges[r.rangeID] = &death{storeID: g.leader, next: now}
		}
		return true
	})
	for rangeID, c := range d.ranges {
		r, ok := h.replica(rangeID)
		if !ok {
			delete(d.ranges, rangeID)
			continue
		}
		leader, _, known := h.leaderNow(rangeID)
		g := electorateOf(infos[rangeID])
		_, stillSilent := silent[c.storeID]
		led := known && leader != 0 && g.stores[leader] != c.storeID
		if !stillSilent || led || leader == r.replicaID || c.round >= deathRounds {
			if !led && stillSilent && c.round >= deathRounds {
				// Ordinary elections must do. Keep the note, or the next look
				// would begin anew.
				continue
			}
			delete(d.ranges, rangeID)
			continue
		}
		if !now.Before(c.next) {
			out = h.passTime(out, r, c, g, silent)
			c.round++
			c.next = now.Add(c.pause())
		}
		if c.next.Before(next) {
			next = c.next
		}
	}
	if rescan := now.Add(deathRescan); rescan.Before(next) {
		next = rescan
	}
	return out, next
}

// passTime lets time pass for a replica: for the one whose turn it is enough
// to campaign, for the others enough to give a vote.
func (h *Host) passTime(
	out []pb.Message, r *replica, c *death, g electorate, silent map[uint64]struct{},
) []pb.Message {
	if _, ok := g.stores[r.replicaID]; !ok {
		return out
	}
	election := h.opts.ElectionTicks
	n := 0
	switch rank, ranks := rankOf(r.rangeID, h.opts.StoreID, g, silent); {
	case c.round/roundsPerRank%ranks == rank:
		n = 2*election - 1 // more than any random patience
	case c.round%(2*roundsPerRank) == 0:
		n = election // the patience with the old leader ends
	}
	if n == 0 {
		return out
	}
	h.metrics.injections.inc("death")
	return h.ticksFor(out, r, n)
}

// ticksFor lets n ticks pass for a replica.
func (h *Host) ticksFor(out []pb.Message, r *replica, n int) []pb.Message {
	tick := h.ticks.Load()
	for range n {
		out = append(out, pb.Message{
			Type: pb.LocalTick, ShardID: r.rangeID, To: r.replicaID, From: r.replicaID, Hint: tick,
		})
	}
	return out
}

// leaderNow asks NodeHost itself, just before a message that a leader must
// not get.
func (h *Host) leaderNow(rangeID uint64) (leader, term uint64, known bool) {
	_ = h.call(func() (err error) {
		leader, term, known, err = h.nh.GetLeaderID(rangeID)
		return err
	})
	return leader, term, known
}

// electorate is the voters of a range as NodeHost has applied them. What
// replica.members holds follows behind, and for a while after a start it is
// what the log began with: a survivor that took itself for no member, or did
// not know where the leader lives, would withhold its vote.
type electorate struct {
	// stores are the voters' stores by replica id.
	stores map[uint64]uint64
	// leader is the leader's store; 0 when there is none.
	leader uint64
}

func electorateOf(info dragonboat.ShardInfo) electorate {
	g := electorate{stores: make(map[uint64]uint64, len(info.Replicas))}
	for replicaID, t := range info.Replicas {
		if storeID, ok := parseTarget(t); ok {
			g.stores[replicaID] = storeID
		}
	}
	g.leader = g.stores[info.LeaderID]
	return g
}

// rankOf is the place of this store among the voters' stores that are heard.
// All stores that hear the same reckon the same: if several campaigned at
// once they would split the votes.
func rankOf(
	rangeID, storeID uint64, g electorate, silent map[uint64]struct{},
) (rank, ranks int) {
	var stores []uint64
	for _, s := range g.stores {
		if _, dead := silent[s]; !dead {
			stores = append(stores, s)
		}
	}
	slices.SortFunc(stores, func(a, b uint64) int {
		return cmp.Compare(weight(rangeID, a), weight(rangeID, b))
	})
	return slices.Index(stores, storeID), max(len(stores), 1)
}

// weight spreads the ranges of a dead store over the others.
func weight(rangeID, storeID uint64) uint64 {
	f := fnv.New64a()
	var b [16]byte
	binary.BigEndian.PutUint64(b[:], rangeID)
	binary.BigEndian.PutUint64(b[8:], storeID)
	_, _ = f.Write(b[:])
	return f.Sum64()
}
