package raft

import (
	"slices"
	"testing"
	"time"

	"github.com/lni/dragonboat/v4"
	"github.com/lni/dragonboat/v4/raftio"
	pb "github.com/lni/dragonboat/v4/raftpb"

	metapb "github.com/ridgekv/ridge/proto/ridge/meta/v1"
)

// script is stores that are nothing but their promises, and a network on which
// messages wait until they are delivered. Store 1 leads range 7 in term 5; the
// replicas of a range have the ids of their stores.
type script struct {
	t      *testing.T
	stores map[uint64]*confirmer
	// promised maps a store to the terms of its replicas, all of range 7.
	promised map[uint64]uint64
	wire     []pb.Message
	now      time.Time
	r        *replica
	// confirmed and plain count how the reads ended.
	confirmed, plain int
}

const scriptTerm = 5

func newScript(t *testing.T, voters int) *script {
	s := &script{
		t: t, stores: map[uint64]*confirmer{}, promised: map[uint64]uint64{},
		now: time.Unix(1, 0),
	}
	for id := uint64(1); id <= uint64(voters); id++ {
		s.promised[id] = scriptTerm
		c := newConfirmer(id, newMetrics(nil, nil))
		promised := func(of []raftio.NodeInfo) []uint64 {
			terms := make([]uint64, len(of))
			for i, o := range of {
				if o == raftio.GetNodeInfo(7, id) {
					terms[i] = s.promised[id]
				}
			}
			return terms
		}
		c.promised.Store(&promised)
		c.deliver = func(_ uint64, m pb.Message) { s.wire = append(s.wire, m) }
		c.plain = func(*read) { s.plain++ }
		c.mu.open = true
		s.stores[id] = c
	}
	s.r = &replica{rangeID: 7, replicaID: 1}
	s.r.leader.Store(&Leader{ReplicaID: 1, StoreID: 1, Term: scriptTerm, Known: true, Self: true})
	m := &members{config: 3}
	for id := uint64(1); id <= uint64(voters); id++ {
		m.replicas = append(m.replicas,
			&metapb.Replica{ReplicaId: id, StoreId: id, Role: metapb.Role_ROLE_VOTER})
	}
	m.replicas = append(m.replicas,
		&metapb.Replica{ReplicaId: 99, StoreId: 99, Role: metapb.Role_ROLE_LEARNER})
	s.r.members.Store(m)
	s.tell(10, pb.Entry{Index: 10}) // the first of the term
	s.r.applied.Store(10)
	s.anchor()
	for id := uint64(2); id <= uint64(voters); id++ {
		s.stores[1].mu.peers[id] = &peer{speaks: true}
	}
	return s
}

// tell is a message with a commit index and entries that leaves.
func (s *script) tell(commit uint64, entries ...pb.Entry) {
	s.r.told.note(&pb.Message{
		Type: pb.Replicate, Term: scriptTerm, Commit: commit, Entries: entries,
	})
}

// anchor is a ReadIndex of Dragonboat.
func (s *script) anchor() {
	if x := s.r.beginAnchor(); x != nil {
		s.r.setAnchor(x, dragonboat.ShardInfo{
			ShardID: 7, ReplicaID: 1, ConfigChangeIndex: s.r.members.Load().config,
		})
	}
}

// read joins. It reports false when Dragonboat is asked at once.
func (s *script) read() bool {
	return s.stores[1].join(s.r, time.Second, func(err error) {
		if err != nil {
			s.t.Errorf("a read ended with %v", err)
		}
		s.confirmed++
	})
}

// turn lets time pass on store 1, and the reads that may go on do.
func (s *script) turn(d time.Duration) {
	s.now = s.now.Add(d)
	s.stores[1].turn(s.now)
	s.finish()
}

func (s *script) finish() {
	f := &s.stores[1].done
	for _, x := range f.reads {
		x.done(nil)
	}
	f.reads = nil
}

// deliver delivers all messages to a store, and returns how many.
func (s *script) deliver(to uint64) int {
	var due []pb.Message
	s.wire = slices.DeleteFunc(s.wire, func(m pb.Message) bool {
		if m.To == to {
			due = append(due, m)
		}
		return m.To == to
	})
	if left := s.stores[to].receive(due); len(left) != 0 {
		s.t.Errorf("%d messages between stores went on to replicas", len(left))
	}
	s.finish()
	return len(due)
}

// settle delivers until nothing is under way.
func (s *script) settle() {
	for delivered := 1; delivered > 0; {
		delivered = 0
		for id := range s.stores {
			delivered += s.deliver(id)
		}
	}
}

func (s *script) want(what string, confirmed, plain int) {
	s.t.Helper()
	if s.confirmed != confirmed || s.plain != plain {
		s.t.Errorf("%s: %d confirmed, %d left to Dragonboat; want %d, %d",
			what, s.confirmed, s.plain, confirmed, plain)
	}
	s.confirmed, s.plain = 0, 0
}

// TestPromises: a read is confirmed when a majority has promised nothing above the
// leader's term, and by nothing less.
func TestPromises(t *testing.T) {
	const unknown, old, same, above = 0, 4, 5, 6
	for _, c := range []struct {
		name     string
		promised []uint64 // of store 1 and on
		ok       bool
	}{
		{"all in the term", []uint64{same, same, same}, true},
		{"one votes for another", []uint64{same, same, above}, true},
		{"one is behind, one votes", []uint64{same, above, old}, true},
		{"both vote for another", []uint64{same, above, above}, false},
		{"the leader itself has", []uint64{above, same, same}, false},
		{"the leader does not know", []uint64{unknown, same, same}, false},
		{"replicas that forgot", []uint64{same, unknown, unknown}, false},
		{"one forgot, one votes", []uint64{same, unknown, above}, false},
		{"two voters", []uint64{same, same}, true},
		{"two voters, one votes", []uint64{same, above}, false},
		{"three of four vote", []uint64{same, same, above, above}, false},
		{"two of four", []uint64{same, same, same, above}, true},
		{"two of five", []uint64{same, same, same, above, above}, true},
		{"three of five", []uint64{same, same, above, above, above}, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := newScript(t, len(c.promised))
			for i, term := range c.promised {
				s.promised[uint64(i+1)] = term
			}
			if !s.read() {
				t.Fatal("it took no part")
			}
			s.turn(0)
			s.settle()
			if c.ok {
				s.want(c.name, 1, 0)
			} else {
				s.want(c.name, 0, 1)
			}
		})
	}
}

// TestAnswersComeAfterQuestions: a promise counts as it is when the question comes,
// not as it was when the round began, and a read that came after a round began
// waits for the next.
func TestAnswersComeAfterQuestions(t *testing.T) {
	s := newScript(t, 3)
	s.read()
	s.turn(0)
	s.promised[2], s.promised[3] = 6, 6
	s.settle()
	s.want("elected while the question was under way", 0, 1)

	s = newScript(t, 3)
	s.read()
	s.turn(0)
	s.deliver(2) // Its answer is under way.
	s.promised[2], s.promised[3] = 6, 6
	s.read()
	s.deliver(1)
	s.want("the first was asked about in time, the second was not", 1, 0)
	s.turn(0)
	s.settle()
	s.want("the second", 0, 1)
}

// TestVotesCountOnce: answers count once, of stores that were asked, for the round
// they belong to.
func TestVotesCountOnce(t *testing.T) {
	s := newScript(t, 5)
	s.read()
	s.turn(0)
	s.deliver(2)
	answer := s.wire[len(s.wire)-1]
	for range 3 {
		s.stores[1].receive([]pb.Message{answer})
	}
	stranger := answer
	stranger.From = 99
	other := answer
	other.From, other.Hint = 3, answer.Hint+1
	empty := answer
	empty.From, empty.Entries = 4, nil
	s.stores[1].receive([]pb.Message{stranger, other, empty})
	s.finish()
	s.want("one of five", 0, 0)
	s.settle()
	s.want("all but one of five", 1, 0)
}

// TestReadsWaitForWhatWasTold: a read goes on when all is applied that another store
// may know to be committed.
func TestReadsWaitForWhatWasTold(t *testing.T) {
	s := newScript(t, 3)
	s.tell(10, pb.Entry{Index: 11, Cmd: []byte("x")})
	s.tell(11)
	s.tell(9) // A follower that is behind.
	s.read()
	s.turn(0)
	s.tell(12) // After the round began: it need not wait for that.
	s.settle()
	s.want("told 11, applied 10", 0, 0)
	(&Host{confirms: s.stores[1]}).reached(s.r, 11)
	select {
	case <-s.stores[1].bell:
	default:
		t.Error("apply woke nobody")
	}
	s.turn(0)
	s.want("applied", 1, 0)
	if s.r.awaited.Load() != 0 {
		t.Error("still awaited")
	}
	s.read()
	s.turn(0)
	s.settle()
	s.want("told 12, applied 11", 0, 0)
	s.turn(2 * confirmApply)
	s.want("not applied in time", 0, 1)
}

// TestHiddenEntries: entries that may change the members, or that move no applied
// index, were known to the anchor, or the read is left to Dragonboat.
func TestHiddenEntries(t *testing.T) {
	for name, e := range map[string]pb.Entry{
		"members":         {Index: 11, Type: pb.ConfigChangeEntry, Cmd: []byte("x")},
		"without command": {Index: 11},
	} {
		t.Run(name, func(t *testing.T) {
			s := newScript(t, 3)
			s.read()
			s.tell(10, e)
			s.turn(0)
			s.want("sent before the round", 0, 1)
			if s.read() {
				t.Error("it took part after one was sent")
			}
			s.anchor()
			if s.read() {
				t.Error("it took part before the entry was known to be committed")
			}
			s.tell(11)
			s.anchor() // The entry was refused: the members are as before.
			if !s.read() {
				t.Fatal("it took no part although all is known")
			}
			s.turn(0)
			s.settle()
			s.want("a new anchor", 1, 0)
		})
	}
}

// TestAnchors: there is none without the first entry of the term, with members that
// Raft does not count by, for a single voter, or of another term.
func TestAnchors(t *testing.T) {
	s := newScript(t, 3)
	led := func(term uint64) {
		s.r.leader.Store(&Leader{ReplicaID: 1, Term: term, Known: true, Self: true})
	}
	led(scriptTerm + 1)
	if s.read() {
		t.Error("an anchor of an earlier term")
	}
	s.anchor()
	if s.read() {
		t.Error("an anchor before the first entry of the term was sent")
	}
	s.r.told.note(&pb.Message{
		Type: pb.Replicate, Term: scriptTerm + 1, Commit: 11, Entries: []pb.Entry{{Index: 11}},
	})
	x := s.r.beginAnchor()
	s.r.setAnchor(x, dragonboat.ShardInfo{ReplicaID: 1, ConfigChangeIndex: 11})
	if s.read() {
		t.Error("an anchor with members Raft does not count by any more")
	}
	s.anchor()
	if !s.read() {
		t.Error("no anchor")
	}
	s.r.leader.Store(&Leader{ReplicaID: 2, Term: scriptTerm + 1, Known: true})
	if s.read() {
		t.Error("a follower took part")
	}
	alone := newScript(t, 1)
	if alone.read() || alone.r.beginAnchor() != nil {
		t.Error("a single voter took part")
	}
}

// TestAnchorsRestOnWhatWasBefore: an anchor vouches for what was told before its
// ReadIndex began, and for nothing if that failed. Whoever makes it may wait for the
// disk, so rounds do not wait for that.
func TestAnchorsRestOnWhatWasBefore(t *testing.T) {
	s := newScript(t, 3)
	const term = scriptTerm + 1
	s.r.leader.Store(&Leader{ReplicaID: 1, Term: term, Known: true, Self: true})
	for id := range s.promised {
		s.promised[id] = term
	}
	tell := func(commit uint64, entries ...pb.Entry) {
		s.r.told.note(&pb.Message{Type: pb.Replicate, Term: term, Commit: commit, Entries: entries})
	}
	tell(11, pb.Entry{Index: 11})
	s.r.applied.Store(11)
	c := s.stores[1]
	c.infos = func() map[uint64]dragonboat.ShardInfo {
		return map[uint64]dragonboat.ShardInfo{7: {ReplicaID: 1, ConfigChangeIndex: 3}}
	}
	c.endAnchor(s.r.beginAnchor(), false)
	c.makeAnchors()
	if s.read() {
		t.Error("a ReadIndex that failed has made an anchor")
	}
	c.endAnchor(s.r.beginAnchor(), true)
	tell(12)
	s.turn(time.Hour)
	if s.read() {
		t.Error("a round has made the anchor")
	}
	c.makeAnchors()
	if !s.read() {
		t.Fatal("no anchor")
	}
	s.turn(0)
	s.settle()
	s.want("told 12 while the anchor was made, applied 11", 0, 0)
	(&Host{confirms: c}).reached(s.r, 12)
	s.turn(0)
	s.want("applied", 1, 0)
}

// TestConfirmedAtTheEnd: a read that is confirmed while the loop ends is answered.
func TestConfirmedAtTheEnd(t *testing.T) {
	c := newConfirmer(1, newMetrics(nil, nil))
	c.close()
	var got error
	c.done.add([]*read{{done: func(err error) { got = err }}})
	if got != ErrClosed {
		t.Errorf("it ended with %v", got)
	}
}

// TestSilence: stores that do not answer are not asked again until they do; an empty
// question finds out, and only if somebody reads.
func TestSilence(t *testing.T) {
	s := newScript(t, 3)
	s.read()
	s.turn(0)
	s.turn(confirmPatience)
	s.want("no answer", 0, 1)
	s.wire = nil
	s.turn(time.Minute)
	if len(s.wire) != 0 {
		t.Error("asked although nobody reads")
	}
	for range 3 {
		if s.read() {
			t.Error("it took part although nobody answers")
		}
		s.turn(0)
	}
	if len(s.wire) != 2 {
		t.Errorf("%d empty questions at once, want one to each store", len(s.wire))
	}
	s.turn(confirmProbe)
	if len(s.wire) != 4 {
		t.Errorf("%d empty questions, want a second one to each store", len(s.wire))
	}
	s.settle()
	if !s.read() {
		t.Fatal("it took no part although all answer")
	}
	s.turn(0)
	s.settle()
	s.want("answered again", 1, 0)
}

// TestOneRoundForAll: ranges share a question, and what comes while as many rounds
// as may be are under way shares the next.
func TestOneRoundForAll(t *testing.T) {
	s := newScript(t, 3)
	for range confirmRounds {
		s.read()
		s.read()
		s.turn(0)
	}
	if len(s.wire) != 2*confirmRounds {
		t.Errorf("%d messages for %d rounds", len(s.wire), confirmRounds)
	}
	for range 5 {
		s.read()
	}
	s.turn(0)
	if len(s.wire) != 2*confirmRounds {
		t.Error("another round began while there was no room")
	}
	s.turn(confirmYoung)
	if len(s.wire) != 2*confirmRounds+2 {
		t.Error("no round began although those under way are old")
	}
	s.settle()
	s.want("all", 2*confirmRounds+5, 0)
	s.turn(0)
	if len(s.wire) != 0 || len(s.stores[1].mu.flying) != 0 {
		t.Error("something is under way when nobody reads")
	}
}

// TestLogsThatCannotTell: Dragonboat's log keeps no terms in memory. Such a store
// neither asks nor answers.
func TestLogsThatCannotTell(t *testing.T) {
	s := newScript(t, 3)
	s.stores[2].promised.Store(nil)
	s.stores[3].promised.Store(nil)
	s.read()
	s.turn(0)
	s.settle()
	s.turn(confirmPatience)
	s.want("nobody can tell", 0, 1)
	s.stores[1].promised.Store(nil)
	if s.read() {
		t.Error("it took part without knowing its own promise")
	}
}

func FuzzQuestions(f *testing.F) {
	f.Add(appendQuestion(appendQuestion(nil, question{1, 2, 3}), question{1 << 60, 2, 1}))
	f.Add([]byte{0x80})
	f.Fuzz(func(t *testing.T, b []byte) {
		of, terms, ok := decodeQuestions(b)
		if !ok {
			return
		}
		var again []byte
		for i, o := range of {
			again = appendQuestion(again, question{o.ShardID, o.ReplicaID, terms[i]})
		}
		if of2, terms2, ok := decodeQuestions(again); !ok || !slices.Equal(of, of2) ||
			!slices.Equal(terms, terms2) {
			t.Errorf("%v %v became %v %v", of, terms, of2, terms2)
		}
	})
}

// toldSocket looks at what is noted of a replica when a message passes.
type toldSocket struct {
	t    *testing.T
	told *told
	sent int
}

func (s *toldSocket) SendMessageBatch(batch pb.MessageBatch) error {
	for _, m := range batch.Requests {
		s.sent++
		if got := s.told.commit.Load(); got < m.Commit {
			s.t.Errorf("a message with commit index %d left when %d was noted", m.Commit, got)
		}
		for _, e := range m.Entries {
			if p := s.told.hidden.Load(); len(e.Cmd) == 0 && (p == nil || p.index < e.Index) {
				s.t.Errorf("entry %d left when %v was noted", e.Index, p)
			}
		}
	}
	return nil
}

func (s *toldSocket) Close() {}

// TestToldBeforeItLeaves: what a message says is noted before it leaves, for the
// replica that says it and no other.
func TestToldBeforeItLeaves(t *testing.T) {
	h := &Host{}
	r := &replica{rangeID: 7, replicaID: 1}
	h.replicas.Store(uint64(7), r)
	socket := &toldSocket{t: t, told: &r.told}
	l := &line{leaving: h.noteTold}
	l.mu.conn = socket
	send := func(m pb.Message) {
		m.ShardID, m.From = 7, 1
		must(t, l.SendMessageBatch(pb.MessageBatch{Requests: []pb.Message{m}}))
	}
	send(pb.Message{Type: pb.Replicate, Term: 2, Commit: 4, Entries: []pb.Entry{{Index: 5}}})
	send(pb.Message{Type: pb.Heartbeat, Term: 2, Commit: 6})
	send(pb.Message{Type: pb.Replicate, Term: 3, Entries: []pb.Entry{{Index: 5}, {Index: 6}}})
	if socket.sent != 3 {
		t.Errorf("%d messages left", socket.sent)
	}
	h.noteTold([]pb.Message{{Type: pb.Replicate, ShardID: 7, From: 2, Term: 9, Commit: 9}})
	if got := r.told.commit.Load(); got != 6 {
		t.Errorf("told %d, another replica's word", got)
	}
	if p := r.told.hidden.Load(); *p != (position{term: 3, index: 6}) {
		t.Errorf("hidden %v", *p)
	}
}
