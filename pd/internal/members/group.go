// Package members is who PD's nodes are: how one joins, how one is taken out,
// and how each knows what it is.
//
// Raft's membership decides who votes. Beside it the replicated state lists the
// nodes with their addresses and gives the ids; the two are brought together by
// the leader, again and again (Group.Run), so a crash between any two steps is
// mended by whoever leads next. Every change of Raft's membership names the
// config-change index it was judged at, and Raft takes no id in that it has
// removed: what a deposed leader still wants comes to nothing.
//
// A node joins: it draws the id of its directory and keeps it, asks, keeps the
// member id it was given, and only then opens its Raft log, as a learner that
// knows nobody and can begin nothing. It gets its vote when it has answered a
// question asked through the log: then it is alive and has applied everything.
//
// A node is taken out of Raft first and of the list afterwards. So who is not
// listed although his id was given is no member for ever, whoever says so and
// however old his word is; a node that hears of no leader asks the others, and
// stops when it hears that.
package members

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/ridgekv/ridge/pd/internal/meta"
	pdpb "github.com/ridgekv/ridge/proto/ridge/pd/v1"
)

const (
	// aliveWait is how long members have to answer before they count as silent.
	aliveWait = time.Second
	// reconcileEvery is how often the leader looks while a member joins, lookEvery
	// how often otherwise.
	reconcileEvery = 200 * time.Millisecond
	lookEvery      = 5 * time.Second
	// silentRest is how long a learner that did not answer is left alone: each
	// question is an entry in the log.
	silentRest = 2 * time.Second
	// handAwayWait is how long leadership may take to be elsewhere; it is looked at
	// every askHeirEvery, and each heir is given asksPerHeir of these.
	handAwayWait = 3 * time.Second
	askHeirEvery = 10 * time.Millisecond
	asksPerHeir  = 50
	// tries bounds the attempts of one removal against other changes.
	tries = 3
)

// Refusal is a change of members that is not made, and why.
type Refusal struct {
	Reason  pdpb.PDErrorReason
	Message string
}

func (r Refusal) Error() string { return r.Message }

func refuse(reason pdpb.PDErrorReason, format string, args ...any) error {
	return Refusal{Reason: reason, Message: fmt.Sprintf(format, args...)}
}

func refused(format string, args ...any) error {
	return refuse(pdpb.PDErrorReason_PD_ERROR_REASON_REFUSED, format, args...)
}

// ErrHandedAway means that this node gave its leadership away, so that the next
// leader can remove it.
var ErrHandedAway = errors.New("members: leadership was handed away")

// Group changes who PD's nodes are, while this node leads.
type Group struct {
	meta *meta.Meta
	log  *slog.Logger
	// wake is rung when the group's bell was.
	wake <-chan struct{}
	// nonce draws the name of a question.
	nonce func() uint64

	// mu is held by whoever judges and changes: there is one question and one
	// change at a time.
	mu sync.Mutex
	// rest says until when a learner that did not answer is left alone. Bounded by
	// the ids given while this node leads.
	rest map[uint64]time.Time
}

// NewGroup returns the group as this node, which leads, may change it.
func NewGroup(
	m *meta.Meta, log *slog.Logger, wake <-chan struct{}, nonce func() uint64,
) *Group {
	return &Group{meta: m, log: log, wake: wake, nonce: nonce, rest: map[uint64]time.Time{}}
}

// Admit gives a new node its id. The rest is done by Run.
func (g *Group) Admit(ctx context.Context, c *pdpb.AdmitMember) (*pdpb.Member, error) {
	list, _ := g.meta.Members()
	if err := judgeAddress(list, c.GetRaftAddress()); err != nil {
		return nil, err
	}
	r, err := g.meta.Propose(ctx, &pdpb.Command{
		Command: &pdpb.Command_AdmitMember{AdmitMember: c},
	})
	if err != nil {
		return nil, err
	}
	if r.GetReason() != pdpb.PDErrorReason_PD_ERROR_REASON_UNSPECIFIED {
		return nil, Refusal{Reason: r.GetReason(), Message: r.GetMessage()}
	}
	return r.GetMember(), nil
}

// judgeAddress refuses a node that could not speak to those there are: they would
// be one group in which nobody hears the other.
func judgeAddress(list []*pdpb.Member, address string) error {
	if Wildcard(address) {
		return refuse(pdpb.PDErrorReason_PD_ERROR_REASON_INVALID_ARGUMENT,
			"nobody can dial %s: name the host", address)
	}
	for _, m := range list {
		a := m.GetRaftAddress()
		if Wildcard(a) || onLoopback(a) && !onLoopback(address) {
			return refused("PD node %d has the Raft address %s for ever, which %s cannot dial: a "+
				"cluster grows from a PD that began with an address for others (--raft-advertise)",
				m.GetMemberId(), a, address)
		}
	}
	return nil
}

// Wildcard reports whether address names no host.
func Wildcard(address string) bool {
	host, _, err := net.SplitHostPort(address)
	return err != nil || host == "" || net.ParseIP(host).IsUnspecified()
}

func onLoopback(address string) bool {
	host, _, err := net.SplitHostPort(address)
	return err == nil && (host == "localhost" || net.ParseIP(host).IsLoopback())
}

// Warnings say what n nodes mean.
func Warnings(n int) []string {
	switch {
	case n == 2:
		return []string{"with 2 PD nodes the loss of either stops PD: add a third"}
	case n > 0 && n%2 == 0:
		return []string{fmt.Sprintf("%d PD nodes survive the loss of %d, no more than %d do: "+
			"an odd number is better", n, (n-1)/2, n-1)}
	}
	return nil
}

// Run brings Raft's membership and the list together until ctx ends.
func (g *Group) Run(ctx context.Context) error {
	ticker := time.NewTicker(reconcileEvery)
	defer ticker.Stop()
	var looked time.Time
	var said string
	for {
		if g.joining() || time.Since(looked) > lookEvery {
			looked = time.Now()
			err := g.reconcile(ctx)
			if text := fmt.Sprint(err); err != nil && ctx.Err() == nil && text != said {
				g.log.Warn("PD members are not as listed yet", "err", err)
				said = text
			}
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-ticker.C:
		}
	}
}

func (g *Group) joining() bool {
	list, _ := g.meta.Members()
	return slices.ContainsFunc(list, (*pdpb.Member).GetJoining)
}

// reconcile makes at most one change of Raft's membership, and notes all that
// were made.
func (g *Group) reconcile(ctx context.Context) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	list, _ := g.meta.Members()
	ms, err := g.meta.Membership(ctx)
	if err != nil {
		return err
	}
	var held error
	for _, m := range list {
		changed, err := g.bring(ctx, ms, m)
		_, waits := errors.AsType[Refusal](err)
		if changed || err != nil && !waits {
			return err
		}
		held = errors.Join(held, err)
	}
	return held
}

// bring takes the next step for one member of the list. It reports whether
// Raft's membership was changed: then it must be read anew.
func (g *Group) bring(ctx context.Context, ms meta.Membership, m *pdpb.Member) (bool, error) {
	id, address := m.GetMemberId(), m.GetRaftAddress()
	_, votes := ms.Voters[id]
	_, learns := ms.Learners[id]
	switch {
	case ms.Removed(id):
		return false, g.propose(ctx, &pdpb.Command{Command: &pdpb.Command_DropMember{
			DropMember: &pdpb.DropMember{MemberId: id},
		}})
	case votes && m.GetJoining():
		g.log.Info("PD node has joined", "member", id)
		return false, g.propose(ctx, &pdpb.Command{Command: &pdpb.Command_PutMember{
			PutMember: &pdpb.PutMember{MemberId: id, Voter: true},
		}})
	case votes:
		return false, nil
	case learns:
		return g.promote(ctx, ms, id, address)
	}
	return true, g.meta.AddLearner(ctx, id, address, ms.Config)
}

func (g *Group) propose(ctx context.Context, c *pdpb.Command) error {
	_, err := g.meta.Propose(ctx, c)
	return err
}

// promote gives a learner its vote if it has caught up, is alive, and the group
// that it becomes part of has a majority that is.
func (g *Group) promote(
	ctx context.Context, ms meta.Membership, id uint64, address string,
) (changed bool, err error) {
	if time.Now().Before(g.rest[id]) {
		return false, nil
	}
	voters := slices.Collect(maps.Keys(ms.Voters))
	alive, err := g.alive(ctx, append(slices.Clone(voters), id))
	if err == nil {
		err = judgePromotion(voters, alive, id)
	}
	if err != nil {
		g.rest[id] = time.Now().Add(silentRest)
		return false, err
	}
	return true, g.meta.Promote(ctx, id, address, ms.Config)
}

// judgePromotion refuses a vote to a learner that did not answer, or that would
// make a group without a majority that answers.
func judgePromotion(voters []uint64, alive map[uint64]bool, id uint64) error {
	if !alive[id] {
		return refused("PD node %d has not caught up or does not run", id)
	}
	after := append(slices.Clone(voters), id)
	if n := count(after, alive); n < quorum(len(after)) {
		return refused("PD node %d waits for its vote: of %d nodes only %d would answer",
			id, len(after), n)
	}
	return nil
}

// judgeRemoval refuses to take a voter out when those left would be none, or
// would have no majority that answers.
func judgeRemoval(voters []uint64, alive map[uint64]bool, id uint64) error {
	var after, silent []uint64
	for _, v := range voters {
		if v == id {
			continue
		}
		after = append(after, v)
		if !alive[v] {
			silent = append(silent, v)
		}
	}
	if len(after) == 0 {
		return refused("PD node %d is the only one that votes: join another first", id)
	}
	if n := count(after, alive); n < quorum(len(after)) {
		return refused("without PD node %d there would be %d PD nodes of which %d answer, no "+
			"majority: start PD node %s, or remove a silent one first, or join another",
			id, len(after), n, words(silent))
	}
	return nil
}

func quorum(n int) int { return n/2 + 1 }

func count(ids []uint64, alive map[uint64]bool) int {
	n := 0
	for _, id := range ids {
		if alive[id] {
			n++
		}
	}
	return n
}

func words(ids []uint64) string {
	slices.Sort(ids)
	var out []string
	for _, id := range ids {
		out = append(out, fmt.Sprint(id))
	}
	return strings.Join(out, ", ")
}

// alive asks through the log which of the members are alive and have applied it.
// This one is.
func (g *Group) alive(ctx context.Context, ids []uint64) (map[uint64]bool, error) {
	self := g.meta.MemberID()
	out := map[uint64]bool{self: true}
	answers, err := g.meta.ProbeClocks(ctx, g.nonce(), aliveWait, g.wake,
		func(answers map[uint64]time.Duration) bool {
			return !slices.ContainsFunc(ids, func(id uint64) bool {
				_, ok := answers[id]
				return !ok && id != self
			})
		})
	for id := range answers {
		out[id] = true
	}
	return out, err
}

// Remove takes a member out, for ever.
func (g *Group) Remove(ctx context.Context, id uint64) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	var err error
	for range tries {
		if err = g.remove(ctx, id); !errors.Is(err, meta.ErrMoved) {
			return err
		}
	}
	return err
}

func (g *Group) remove(ctx context.Context, id uint64) error {
	list, last := g.meta.Members()
	if g.meta.Member(id) == nil {
		if id != 0 && id <= last {
			return nil // it is removed already
		}
		var ids []uint64
		for _, m := range list {
			ids = append(ids, m.GetMemberId())
		}
		return refuse(pdpb.PDErrorReason_PD_ERROR_REASON_NOT_FOUND,
			"there is no PD node %d; there are %s", id, words(ids))
	}
	ms, err := g.meta.Membership(ctx)
	if err != nil {
		return err
	}
	if !ms.Removed(id) {
		if _, votes := ms.Voters[id]; votes {
			if err := g.mayLose(ctx, ms, id); err != nil {
				return err
			}
		}
		// An id that Raft has not seen yet is noted too: it cannot come any more.
		if err := g.meta.Remove(ctx, id, ms.Config); err != nil {
			return err
		}
	}
	return g.propose(ctx, &pdpb.Command{Command: &pdpb.Command_DropMember{
		DropMember: &pdpb.DropMember{MemberId: id},
	}})
}

// mayLose refuses to remove a voter that cannot be spared. This node, which
// leads, hands its leadership away first.
func (g *Group) mayLose(ctx context.Context, ms meta.Membership, id uint64) error {
	voters := slices.Sorted(maps.Keys(ms.Voters))
	others := slices.DeleteFunc(slices.Clone(voters), func(v uint64) bool { return v == id })
	alive, err := g.alive(ctx, others)
	if err != nil {
		return err
	}
	if err := judgeRemoval(voters, alive, id); err != nil {
		return err
	}
	if id != g.meta.MemberID() {
		return nil
	}
	others = slices.DeleteFunc(others, func(v uint64) bool { return !alive[v] })
	return g.handAway(ctx, others)
}

// handAway gives the leadership to one of the others. Raft may ignore a request,
// as when the other has something to apply: so each is asked in turn.
func (g *Group) handAway(ctx context.Context, others []uint64) error {
	ticker := time.NewTicker(askHeirEvery)
	defer ticker.Stop()
	began := time.Now()
	for i := 0; time.Since(began) < handAwayWait; i++ {
		if i%asksPerHeir == 0 {
			// Refused while the last request is under way.
			_ = g.meta.Transfer(others[i/asksPerHeir%len(others)])
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-ticker.C:
		}
		if l := g.meta.Leader(); l != 0 && l != g.meta.MemberID() {
			return ErrHandedAway
		}
	}
	return refuse(pdpb.PDErrorReason_PD_ERROR_REASON_UNAVAILABLE,
		"no other PD node has taken the leadership over yet: try again")
}
