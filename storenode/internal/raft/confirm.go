package raft

// One confirmation for all ranges that two stores share, in place of a ReadIndex
// for each. Dragonboat confirms a leader by a heartbeat per range, which a step
// worker makes, another answers and the first counts. Here a store asks each other
// store once for all ranges that wait, and what reads the connection there answers
// from the log's index in memory.
//
// # Law
//
// A ReadIndex that ends here without error promises what Dragonboat's does: what is
// applied here then includes all that was acknowledged anywhere before it was
// called. No clock is trusted.
//
// # The argument
//
// This store has led the range in term t (Dragonboat said so, once is enough). A
// round begins at T, after its reads have come. At T or later it sees that its own
// promise, and sees it confirmed that those of so many other voters that they are a
// majority together, is at most t. The promise of a replica is the highest term its
// log was given to save (logstore.Terms). No vote leaves a store before the log has
// saved its term, a candidate's for itself neither, and a promise only grows.
//
// (1) No leader of a term above t was elected before T. The first such was elected
// by a majority; it meets ours in a replica that had promised more than t before T
// and not more than t after T. The answers must be looked up after the question has
// come, and the question must leave after the reads have come. Both do.
//
// A promise is about the past and binds nobody: a leader that is elected while the
// answers are under way does no harm, its writes and these reads are concurrent.
// Nor does a store that stood still with a round in flight: its answers speak of a
// time after the reads of that round.
//
// (2) The two majorities must be of one membership, or of neighbours. Ours are the
// voters that Raft itself counted by at a moment in term t (the anchor, below). Raft
// changes them by entries of the log, one at a time and when they are applied. One
// that came with an earlier term is applied at the anchor. One of term t needs
// another voter, so it left this store in a Replicate message before it could be
// committed, and was noted before it left (told.hidden): a round does not begin
// after it. With a single voter nothing need leave, so such ranges are not confirmed
// here.
//
// (3) The index. By (1) everything that was acknowledged before T is in the log of
// term t. Who acknowledged it had applied it: this store, then it is applied here;
// or another, then that one had learned of its commit from a leader. From one of an
// earlier term: it lies below our first entry of term t, which is applied at the
// anchor. From this store: then in a Replicate or Heartbeat message, whose commit
// index was noted before it left (told.commit), also of those that leave before their
// update is durable (early.go); or by an image, and none is of more than is applied
// here. So the reads wait until told.commit, taken at T, is applied.
//
// Entries that apply does not see, membership changes and those without a command,
// move no applied index. The anchor is above all that were sent before it, and with a
// later one the round does not begin.
//
// # The anchor
//
// It is what a round takes for granted about a range in a term, and is made by a
// ReadIndex of Dragonboat that began when this store led in that term and succeeded:
// all that was committed when it began is applied, our first entry of the term
// included (if a later leader confirmed it instead, (1) fails for every round). base is
// the commit index told before it began, or the index of the present members if that
// is higher: all up to there is applied. The members are those of NodeHost, looked up
// after it has ended; Dragonboat publishes them together with what it counts by.
//
// # What is not confirmed here
//
// Whatever is unclear takes Dragonboat's ReadIndex as before: replicas that do not
// lead, ranges without an anchor, logs of Pebble (whose terms are not in memory),
// voters that do not answer, deny, or do not know the question. A store of an older
// release drops it, as it is addressed to a range that no store has; so stores are
// asked only after they have answered, and an empty question finds out, once in a
// while and only if somebody reads. A replica the log does not know denies: it
// may have forgotten. So does one that does not run: a log that was put back has
// forgotten too, and preflight keeps its replicas from starting. Ids of replicas are
// never used again, and a store that was emptied gets new ones.

import (
	"context"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/lni/dragonboat/v4"
	"github.com/lni/dragonboat/v4/raftio"
	pb "github.com/lni/dragonboat/v4/raftpb"
)

const (
	// confirmRounds is how many rounds of this store are under way at most, of those
	// begun within confirmYoung. Older ones wait for stores that are slow or dead, and
	// ranges with other voters do not wait for these; maxRounds bounds them all.
	confirmRounds = 2
	confirmYoung  = 25 * time.Millisecond
	maxRounds     = 64
	// confirmPatience is how long a majority is waited for, and confirmApply how
	// long until everything is applied, before Dragonboat is asked.
	confirmPatience = 250 * time.Millisecond
	confirmApply    = time.Second
	// confirmProbe is the pause between questions to a store that has not answered.
	confirmProbe = 500 * time.Millisecond
	// anchorPause is the pause between looks at all replicas.
	anchorPause = 20 * time.Millisecond
)

// confirmer holds the rounds of a store.
type confirmer struct {
	storeID uint64
	metrics *metrics
	// promised looks up what replicas here have promised, 0 when that is unknown. It
	// is nil until the log is open, and for a log that cannot tell.
	promised atomic.Pointer[func(of []raftio.NodeInfo) []uint64]
	// deliver hands a message to the transport. It never blocks.
	deliver func(storeID uint64, m pb.Message)
	// plain asks Dragonboat instead.
	plain func(x *read)
	// infos are the members that Raft counts by, of all replicas here.
	infos func() map[uint64]dragonboat.ShardInfo

	// bell wakes run, and anchorBell runAnchors.
	bell, anchorBell chan struct{}

	done finished
	mu   struct {
		sync.Mutex
		open bool
		// last is the id of the newest round. The first is random, so that an answer
		// to a process that was here before is none.
		last uint64
		// waiting joins the next round, flying are those under way, and applying
		// waits until its index is applied here.
		waiting, applying []*read
		flying            []*round
		peers             map[uint64]*peer
		// anchors are in the making; they are looked at together.
		anchors []*anchoring
	}
}

// peer is another store.
type peer struct {
	// speaks: it has answered, and has not left a question unanswered since.
	speaks bool
	// wanted: somebody would ask it if it spoke.
	wanted bool
	probed time.Time
}

// read is a ReadIndex.
type read struct {
	r       *replica
	timeout time.Duration
	done    func(error)
	anchor  *anchor
	// index must be applied; 0: it is.
	index uint64
	since time.Time
	// votes are there, left may come.
	votes, left int
	over        bool
}

// round is one question to each store that has voters of its ranges.
type round struct {
	id    uint64
	begun time.Time
	asked []*asked
	// open is how many reads are not decided.
	open int
}

// asked is what one store was asked, in the order of the question.
type asked struct {
	storeID  uint64
	answered bool
	reads    []*read
	question []byte
}

// outgoing is what a look at the rounds has led to, to be done without the lock.
type outgoing struct {
	messages []pb.Message
	ready    []*read
	back     []fallback
}

type fallback struct {
	x      *read
	reason string
}

func newConfirmer(storeID uint64, m *metrics) *confirmer {
	c := &confirmer{
		storeID: storeID, metrics: m,
		bell: make(chan struct{}, 1), anchorBell: make(chan struct{}, 1),
	}
	c.done.more = sync.NewCond(&c.done.mu)
	c.mu.last = rand.Uint64()
	c.mu.peers = make(map[uint64]*peer)
	return c
}

// join lets a read take part in the next round. It reports false when Dragonboat
// must be asked.
func (c *confirmer) join(r *replica, timeout time.Duration, done func(error)) bool {
	if c.promised.Load() == nil {
		return false
	}
	a, reason := r.anchored()
	if reason == "" {
		reason = c.add(&read{r: r, timeout: timeout, done: done, anchor: a})
	}
	if reason != "" {
		c.metrics.fallbacks.inc(reason)
	}
	return reason == ""
}

func (c *confirmer) add(x *read) (reason string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.mu.open {
		return "closed"
	}
	votes := 1
	for _, v := range x.anchor.others {
		p := c.peerLocked(v.storeID)
		if p.speaks {
			votes++
		} else if !p.wanted {
			p.wanted = true
			ring(c.bell)
		}
	}
	if votes < x.anchor.need {
		return "silent"
	}
	c.mu.waiting = append(c.mu.waiting, x)
	if c.roomLocked(time.Now()) {
		ring(c.bell)
	}
	return ""
}

// roomLocked reports whether another round may begin.
func (c *confirmer) roomLocked(now time.Time) bool {
	young := 0
	for _, x := range c.mu.flying {
		if now.Sub(x.begun) < confirmYoung {
			young++
		}
	}
	return young < confirmRounds && len(c.mu.flying) < maxRounds
}

func (c *confirmer) peerLocked(storeID uint64) *peer {
	p := c.mu.peers[storeID]
	if p == nil {
		p = &peer{}
		c.mu.peers[storeID] = p
	}
	return p
}

// run begins rounds, ends those that wait in vain, and answers reads. It sleeps
// while nobody reads.
func (c *confirmer) run(ctx context.Context) error {
	var wg sync.WaitGroup
	for range finishers() {
		wg.Go(c.done.work)
	}
	c.mu.Lock()
	c.mu.open = true
	c.mu.Unlock()
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for ctx.Err() == nil {
		if next := c.turn(time.Now()); next > 0 {
			timer.Reset(next)
		}
		select {
		case <-ctx.Done():
		case <-c.bell:
		case <-timer.C:
		}
	}
	c.close()
	wg.Wait()
	return nil
}

// turn does what is due. It returns after how long it must be called again, 0: when
// the bell rings.
func (c *confirmer) turn(now time.Time) (next time.Duration) {
	var out outgoing
	c.mu.Lock()
	c.expireLocked(now, &out)
	c.lookAppliedLocked(now, &out)
	c.beginLocked(now, &out)
	next = c.probeLocked(now, &out)
	if len(c.mu.flying)+len(c.mu.applying) > 0 {
		next = confirmYoung
	}
	c.mu.Unlock()
	c.act(&out)
	return next
}

// beginLocked begins rounds of all that wait, while there is room.
func (c *confirmer) beginLocked(now time.Time, out *outgoing) {
	for len(c.mu.waiting) > 0 && c.roomLocked(now) {
		n := min(len(c.mu.waiting), maxQuestions)
		reads := c.mu.waiting[:n:n]
		c.mu.waiting = c.mu.waiting[n:]
		if len(c.mu.waiting) == 0 {
			c.mu.waiting = nil
		}
		c.mu.last++
		x := &round{id: c.mu.last, begun: now}
		own := make([]raftio.NodeInfo, n)
		for i, rd := range reads {
			own[i] = raftio.GetNodeInfo(rd.r.rangeID, rd.r.replicaID)
		}
		for i, term := range (*c.promised.Load())(own) {
			rd := reads[i]
			if reason := rd.begin(term, now); reason != "" {
				out.back = append(out.back, fallback{rd, reason})
				continue
			}
			var voters []voter
			for _, v := range rd.anchor.others {
				if c.peerLocked(v.storeID).speaks {
					voters = append(voters, v)
				}
			}
			if 1+len(voters) < rd.anchor.need {
				out.back = append(out.back, fallback{rd, "silent"})
				continue
			}
			x.ask(rd, voters)
		}
		if x.open == 0 {
			continue
		}
		c.metrics.rounds.inc()
		c.mu.flying = append(c.mu.flying, x)
		for _, d := range x.asked {
			out.messages = append(out.messages, c.message(d.storeID, kindQuestion, x.id, d.question))
		}
	}
}

// begin takes what the read rests on at the beginning of its round. The commit index
// comes first: whatever is hidden below it was noted before it.
func (x *read) begin(promised uint64, now time.Time) (reason string) {
	told := x.r.told.commit.Load()
	if !x.anchor.holds(x.r) {
		return "members"
	}
	if promised == 0 || promised > x.anchor.term {
		return "deposed"
	}
	if told > x.anchor.base {
		x.index = told
	}
	x.since, x.votes = now, 1
	return ""
}

// ask adds a read to the questions to the stores of voters.
func (x *round) ask(rd *read, voters []voter) {
	x.open++
	rd.left = len(voters)
	for _, v := range voters {
		i := slices.IndexFunc(x.asked, func(d *asked) bool { return d.storeID == v.storeID })
		if i < 0 {
			i = len(x.asked)
			x.asked = append(x.asked, &asked{storeID: v.storeID})
		}
		d := x.asked[i]
		d.reads = append(d.reads, rd)
		d.question = appendQuestion(d.question, question{
			rangeID: rd.r.rangeID, replicaID: v.replicaID, term: rd.anchor.term,
		})
	}
}

// answered counts what another store has said.
func (c *confirmer) answered(from, id uint64, answer []byte) {
	var out outgoing
	c.mu.Lock()
	if c.mu.open {
		p := c.peerLocked(from)
		p.speaks, p.wanted = true, false
		c.countLocked(from, id, answer, &out)
	}
	c.mu.Unlock()
	c.act(&out)
}

func (c *confirmer) countLocked(from, id uint64, answer []byte, out *outgoing) {
	at := slices.IndexFunc(c.mu.flying, func(x *round) bool { return x.id == id })
	if at < 0 {
		return
	}
	x := c.mu.flying[at]
	i := slices.IndexFunc(x.asked, func(d *asked) bool { return d.storeID == from })
	if i < 0 || x.asked[i].answered {
		return
	}
	x.asked[i].answered = true
	for k, rd := range x.asked[i].reads {
		if rd.left--; rd.over {
			continue
		}
		if granted(answer, k) {
			rd.votes++
		}
		switch {
		case rd.votes >= rd.anchor.need:
			c.confirmedLocked(rd, out)
		case rd.left == 0:
			out.back = append(out.back, fallback{rd, "denied"})
		default:
			continue
		}
		rd.over = true
		x.open--
	}
	if x.open == 0 {
		c.mu.flying = slices.Delete(c.mu.flying, at, at+1)
		c.beginLocked(time.Now(), out)
	}
}

// confirmedLocked lets a read go on, now or when everything is applied. It counts
// itself before it looks, and apply moves before it looks for who waits.
func (c *confirmer) confirmedLocked(x *read, out *outgoing) {
	x.r.awaited.Add(1)
	if x.r.applied.Load() < x.index {
		c.mu.applying = append(c.mu.applying, x)
		return
	}
	x.r.awaited.Add(-1)
	out.ready = append(out.ready, x)
}

// lookAppliedLocked lets the reads go on whose index is applied.
func (c *confirmer) lookAppliedLocked(now time.Time, out *outgoing) {
	c.mu.applying = slices.DeleteFunc(c.mu.applying, func(x *read) bool {
		switch {
		case x.r.applied.Load() >= x.index:
			out.ready = append(out.ready, x)
		case now.Sub(x.since) > confirmApply:
			out.back = append(out.back, fallback{x, "apply"})
		default:
			return false
		}
		x.r.awaited.Add(-1)
		return true
	})
}

// expireLocked ends the rounds without a majority in time. Whoever has not answered
// is not asked again until it does.
func (c *confirmer) expireLocked(now time.Time, out *outgoing) {
	c.mu.flying = slices.DeleteFunc(c.mu.flying, func(x *round) bool {
		if now.Sub(x.begun) < confirmPatience {
			return false
		}
		for _, d := range x.asked {
			if !d.answered {
				c.peerLocked(d.storeID).speaks = false
			}
			for _, rd := range d.reads {
				if !rd.over {
					rd.over = true
					out.back = append(out.back, fallback{rd, "lost"})
				}
			}
		}
		return true
	})
}

// probeLocked asks those who would be asked if they spoke whether they do.
func (c *confirmer) probeLocked(now time.Time, out *outgoing) (next time.Duration) {
	for storeID, p := range c.mu.peers {
		if !p.wanted {
			continue
		}
		if wait := p.probed.Add(confirmProbe).Sub(now); wait > 0 {
			next = max(next, wait)
			continue
		}
		p.wanted, p.probed = false, now
		out.messages = append(out.messages, c.message(storeID, kindQuestion, 0, nil))
	}
	return next
}

// act does what was found to do.
func (c *confirmer) act(out *outgoing) {
	for _, m := range out.messages {
		c.deliver(m.To, m)
	}
	c.metrics.confirmed.Add(float64(len(out.ready)))
	c.done.add(out.ready)
	for _, f := range out.back {
		c.metrics.fallbacks.inc(f.reason)
		c.plain(f.x)
	}
}

// look has the loop look for what waits until it is applied.
func (c *confirmer) look() { ring(c.bell) }

// close ends all reads.
func (c *confirmer) close() {
	c.mu.Lock()
	c.mu.open = false
	reads := slices.Concat(c.mu.waiting, c.mu.applying)
	for _, x := range c.mu.flying {
		for _, d := range x.asked {
			for _, rd := range d.reads {
				if !rd.over {
					rd.over = true
					reads = append(reads, rd)
				}
			}
		}
	}
	c.mu.waiting, c.mu.applying, c.mu.flying = nil, nil, nil
	c.mu.Unlock()
	for _, x := range reads {
		x.done(ErrClosed)
	}
	c.done.close()
}
