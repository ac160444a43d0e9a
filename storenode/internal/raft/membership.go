package raft

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/lni/dragonboat/v4"
	pb "github.com/lni/dragonboat/v4/raftpb"

	metapb "github.com/ridgekv/ridge/proto/ridge/meta/v1"
)

const (
	// memberQueryTimeout bounds one question for the members of a range.
	memberQueryTimeout = 2 * time.Second
	// memberQueries is how many such questions are under way at most.
	memberQueries = 32
	// changeTimeout bounds one attempt at a membership change.
	changeTimeout = 5 * time.Second
	// caughtUpTimeout bounds the wait for a learner's own read.
	caughtUpTimeout = time.Second
	// transferPatience is how long a leader waits for its heir, transferRest how
	// long it then goes on before it is asked again.
	transferPatience = 250 * time.Millisecond
	transferRest     = 500 * time.Millisecond
	// heartbeatAnswers is how long the answers to heartbeats are waited for.
	heartbeatAnswers = 100 * time.Millisecond
)

// Membership returns the members of a range and the config-change index they
// belong to, from memory. It may be older than what has been applied, but the
// two always fit together. ok is false until they have been learned once.
func (h *Host) Membership(rangeID uint64) (replicas []*metapb.Replica, config uint64, ok bool) {
	r, found := h.replica(rangeID)
	if !found {
		return nil, 0, false
	}
	m := r.members.Load()
	if m == nil {
		return nil, 0, false
	}
	return m.replicas, m.config, true
}

// ConfigIndex is the config-change index of a range exactly as of the entry
// being applied, for apply and for nobody else: it looks at all replicas. It is
// unknown while the host closes and when NodeHost does not list the replica.
func (h *Host) ConfigIndex(rangeID uint64) (index uint64, known bool) {
	_ = h.call(func() error {
		info := h.nh.GetNodeHostInfo(dragonboat.NodeHostInfoOption{SkipLogInfo: true})
		if info == nil {
			return nil
		}
		for _, s := range info.ShardInfoList {
			if s.ShardID == rangeID && !s.Pending {
				index, known = s.ConfigChangeIndex, true
			}
		}
		return nil
	})
	return index, known
}

// AddLearner makes the replica a member that does not count. The caller then
// has the store create it (CreateLearner there).
func (h *Host) AddLearner(
	ctx context.Context, rangeID, replicaID, storeID, expectedConfig uint64,
) error {
	return h.change(ctx, rangeID, memberChange{
		op: "add learner", replicaID: replicaID, role: metapb.Role_ROLE_LEARNER,
		ask: func(timeout time.Duration) (*dragonboat.RequestState, error) {
			return h.nh.RequestAddNonVoting(rangeID, replicaID, target(storeID),
				expectedConfig, timeout)
		},
	})
}

// Promote makes a learner a voter. Its own reads should succeed before
// (CaughtUp on its store), or the range waits for it.
func (h *Host) Promote(
	ctx context.Context, rangeID, replicaID, storeID, expectedConfig uint64,
) error {
	return h.change(ctx, rangeID, memberChange{
		op: "promote", replicaID: replicaID, role: metapb.Role_ROLE_VOTER,
		ask: func(timeout time.Duration) (*dragonboat.RequestState, error) {
			return h.nh.RequestAddReplica(rangeID, replicaID, target(storeID),
				expectedConfig, timeout)
		},
	})
}

// RemoveReplica takes a replica out of the membership, for ever. It refuses
// to remove the leader: transfer first.
func (h *Host) RemoveReplica(
	ctx context.Context, rangeID, replicaID, expectedConfig uint64,
) error {
	if r, ok := h.replica(rangeID); ok && r.replicaID == replicaID {
		return fmt.Errorf("raft: remove replica %d of range %d: it leads, transfer first",
			replicaID, rangeID)
	}
	return h.change(ctx, rangeID, memberChange{
		op: "remove", replicaID: replicaID, role: metapb.Role_ROLE_UNSPECIFIED,
		ask: func(timeout time.Duration) (*dragonboat.RequestState, error) {
			return h.nh.RequestDeleteReplica(rangeID, replicaID, expectedConfig, timeout)
		},
	})
}

// memberChange is one change of one member.
type memberChange struct {
	op        string
	replicaID uint64
	// role is what the member shall be; unspecified: no member.
	role metapb.Role
	ask  func(timeout time.Duration) (*dragonboat.RequestState, error)
}

// done reports whether m is as the change wants it.
func (c memberChange) done(m *members) bool {
	r, ok := m.find(c.replicaID)
	if c.role == metapb.Role_ROLE_UNSPECIFIED {
		return !ok
	}
	return ok && r.GetRole() == c.role
}

// change asks for a change once. The expected config index makes a second
// attempt harmless; an unclear end is cleared up by looking at the members.
func (h *Host) change(ctx context.Context, rangeID uint64, c memberChange) error {
	err := h.tryChange(ctx, rangeID, c)
	h.metrics.changes.inc(changeName(err))
	if err != nil {
		return fmt.Errorf("raft: %s %d of range %d: %w", c.op, c.replicaID, rangeID, err)
	}
	h.log.Info("members changed", "op", c.op, "range", rangeID, "replica", c.replicaID)
	h.events.noteMembers(rangeID)
	return nil
}

func changeName(err error) string {
	if errors.Is(err, ErrConfigMoved) || errors.Is(err, ErrUnborn) || errors.Is(err, ErrNotLeader) {
		return "refused"
	}
	return outcomeName(err)
}

func (h *Host) tryChange(ctx context.Context, rangeID uint64, c memberChange) error {
	r, ok := h.replica(rangeID)
	switch {
	case !ok:
		return ErrNotFound
	case !r.leading().Self:
		return ErrNotLeader
	}
	if cr, ok := h.catalog.Replica(rangeID); ok && len(cr.State().Unborn()) > 0 {
		return ErrUnborn
	}
	timeout := h.timeoutOf(ctx, changeTimeout)
	rs, err := h.request(func() (*dragonboat.RequestState, error) { return c.ask(timeout) })
	if err != nil {
		return fmt.Errorf("%w: %w", ErrNotProposed, err)
	}
	res, ok := await(rs, timeout)
	if ok && res.Completed() {
		return nil
	}
	if ok && res.Dropped() {
		return fmt.Errorf("%w: dropped by the leader", ErrNotProposed)
	}
	// Rejected, or unclear. Either may hide that the change was made, by this
	// attempt or an earlier one.
	m, err := h.askMembers(rangeID, h.timeoutOf(ctx, memberQueryTimeout))
	switch {
	case err != nil:
		return fmt.Errorf("%w: %w", ErrUnknown, err)
	case c.done(m):
		return nil
	case ok && res.Rejected():
		return fmt.Errorf("%w: at %d", ErrConfigMoved, m.config)
	}
	return fmt.Errorf("%w: no answer in %s", ErrUnknown, timeout)
}

// TransferLeader hands leadership to a voter and waits until it leads. It
// asks again as long as ctx lasts: a target that has entries to apply ignores
// the call. The leader takes no proposals while it waits for an heir, so it
// never waits long, and others write before it is asked again. It does not ask
// for a target whose store is silent.
func (h *Host) TransferLeader(ctx context.Context, rangeID, replicaID uint64) (err error) {
	r, ok := h.replica(rangeID)
	if !ok {
		return fmt.Errorf("raft: transfer range %d: %w", rangeID, ErrNotFound)
	}
	asked, next := false, time.Time{} // next is when to ask, or to give up
	defer func() {
		if err != nil && asked {
			h.endTransfer(r)
		}
	}()
	for {
		changes := r.changes()
		l := r.leading()
		if l.ReplicaID == replicaID && l.Known {
			return nil
		}
		switch {
		case !l.Self:
			asked, next = false, time.Now().Add(transferRest)
		case h.silentReplica(r, replicaID):
			return fmt.Errorf("raft: transfer range %d to replica %d: %w",
				rangeID, replicaID, ErrSilent)
		case time.Now().Before(next): // something else has changed
		case asked:
			h.endTransfer(r)
			asked, next = false, time.Now().Add(transferRest)
		default:
			err := h.call(func() error { return h.nh.RequestLeaderTransfer(rangeID, replicaID) })
			if err != nil && !errors.Is(err, dragonboat.ErrSystemBusy) {
				return fmt.Errorf("raft: transfer range %d: %w", rangeID, err)
			}
			asked, next = true, time.Now().Add(transferPatience)
		}
		timer := time.NewTimer(time.Until(next))
		select {
		case <-changes:
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return fmt.Errorf("raft: transfer range %d to replica %d: %w",
				rangeID, replicaID, context.Cause(ctx))
		}
		timer.Stop()
		if l := r.leading(); l.Known && !l.Self && l.ReplicaID != replicaID {
			return fmt.Errorf("raft: transfer range %d to replica %d: replica %d leads: %w",
				rangeID, replicaID, l.ReplicaID, ErrNotLeader)
		}
	}
}

// endTransfer makes the leader here give up a transfer: it does so when an
// election timeout of ticks has passed since it was asked, and takes no
// proposals until then. That is also when it counts the voters it has heard, so
// the first ticks send heartbeats, and the others wait for the answers.
func (h *Host) endTransfer(r *replica) {
	if !r.leading().Self {
		return
	}
	h.metrics.injections.inc("transfer")
	beat := h.opts.HeartbeatTicks
	if !h.door.inject(h.ticksFor(nil, r, beat)) {
		return // closing
	}
	timer := time.NewTimer(heartbeatAnswers)
	defer timer.Stop()
	<-timer.C
	if r.leading().Self {
		h.door.inject(h.ticksFor(nil, r, h.opts.ElectionTicks-beat))
	}
}

// silentReplica reports whether the store of a member is not heard.
func (h *Host) silentReplica(r *replica, replicaID uint64) bool {
	m, ok := r.members.Load().find(replicaID)
	_, silent := h.deaths.silent()[m.GetStoreId()]
	return ok && silent
}

// CaughtUp succeeds when the replica here can answer a read of its own. It is
// asked again and again: a replica without its image is refused at once, and
// a question lost on the way costs a second.
func (h *Host) CaughtUp(ctx context.Context, rangeID uint64) error {
	cr, ok := h.catalog.Replica(rangeID)
	if !ok {
		return fmt.Errorf("raft: range %d: %w", rangeID, ErrNotFound)
	}
	if s := cr.State(); !s.Serving() {
		return fmt.Errorf("raft: range %d is not caught up: it is %s", rangeID, s.Status())
	}
	timeout := h.timeoutOf(ctx, caughtUpTimeout)
	rs, err := h.request(func() (*dragonboat.RequestState, error) {
		return h.nh.ReadIndex(rangeID, timeout)
	})
	if err == nil {
		err = confirmed(await(rs, timeout))
	}
	if err != nil {
		return fmt.Errorf("raft: range %d is not caught up: %w", rangeID, err)
	}
	return nil
}

// refreshMembers learns the members of ranges whose members have changed.
func (h *Host) refreshMembers(ctx context.Context) error {
	ticker := time.NewTicker(time.Second)
	defer ticker.Stop()
	pending := make(map[uint64]struct{})
	slots := make(chan struct{}, memberQueries)
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-h.events.memberBell:
		case <-ticker.C:
		}
		for rangeID := range h.events.takeMembers() {
			pending[rangeID] = struct{}{}
		}
		if len(pending) == 0 {
			continue
		}
		infos := h.shardInfos()
		for rangeID := range pending {
			if err := h.refresh(rangeID, infos[rangeID], slots); err == nil {
				delete(pending, rangeID)
			}
		}
	}
}

var errLater = errors.New("raft: later")

// refresh brings the members of one range up to what is applied: from memory
// or the log when they carry the same index, else by a question to the range.
func (h *Host) refresh(rangeID uint64, info dragonboat.ShardInfo, slots chan struct{}) error {
	r, ok := h.replica(rangeID)
	if !ok {
		return nil
	}
	if info.ConfigChangeIndex == 0 || info.ReplicaID != r.replicaID {
		return errLater // it has not read its log yet
	}
	if m := r.members.Load(); m != nil && m.config >= info.ConfigChangeIndex {
		return h.noteRole(r, m)
	}
	if m := h.membersInLog(rangeID); m != nil && m.config == info.ConfigChangeIndex {
		return h.setMembers(r, m)
	}
	select {
	case slots <- struct{}{}:
	default:
		return errLater
	}
	started := h.future(func() {
		defer func() { <-slots }()
		m, err := h.askMembers(rangeID, memberQueryTimeout)
		if err == nil {
			err = h.setMembers(r, m)
		}
		if err != nil {
			time.AfterFunc(time.Second, func() { h.events.noteMembers(rangeID) })
		}
	})
	if !started {
		<-slots
	}
	return nil
}

// setMembers publishes members unless newer ones are known.
func (h *Host) setMembers(r *replica, m *members) error {
	for {
		old := r.members.Load()
		if old != nil && old.config >= m.config {
			return nil
		}
		if r.members.CompareAndSwap(old, m) {
			break
		}
	}
	r.announce()
	h.events.noteLeader(r.rangeID, nil) // its store may be known now
	if len(m.replicas) == 1 && !r.leading().Known {
		// Nobody else can lead: a store of one need not wait for an election.
		h.births.addAlone(r.rangeID, r.replicaID)
	}
	return h.noteRole(r, m)
}

// noteRole records a promotion. The record of a learner that is a voter is
// harmless; the other way round Dragonboat would panic at the next start.
func (h *Host) noteRole(r *replica, m *members) error {
	self, ok := m.find(r.replicaID)
	cr, here := h.catalog.Replica(r.rangeID)
	if !ok || !here || self.GetRole() == cr.State().Role() ||
		self.GetRole() != metapb.Role_ROLE_VOTER {
		return nil
	}
	return h.catalog.SetRole(r.rangeID, r.replicaID, metapb.Role_ROLE_VOTER)
}

func (h *Host) shardInfos() map[uint64]dragonboat.ShardInfo {
	out := make(map[uint64]dragonboat.ShardInfo)
	_ = h.call(func() error {
		info := h.nh.GetNodeHostInfo(dragonboat.NodeHostInfoOption{SkipLogInfo: true})
		if info == nil {
			return nil
		}
		for _, s := range info.ShardInfoList {
			if !s.Pending {
				out[s.ShardID] = s
			}
		}
		return nil
	})
	return out
}

// membersInLog are the members as of the newest log snapshot.
func (h *Host) membersInLog(rangeID uint64) (m *members) {
	_ = h.call(func() error {
		lr, err := h.nh.GetLogReader(rangeID)
		if err != nil {
			return err
		}
		_, ms := lr.NodeState()
		m = membersOf(ms.ConfigChangeId, ms.Addresses, ms.NonVotings)
		return nil
	})
	return m
}

// askMembers asks the range: a ReadIndex, so it needs a quorum.
func (h *Host) askMembers(rangeID uint64, timeout time.Duration) (*members, error) {
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	var ms *dragonboat.Membership
	err := h.call(func() (err error) {
		ms, err = h.nh.SyncGetShardMembership(ctx, rangeID)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("raft: members of range %d: %w", rangeID, err)
	}
	return membersOf(ms.ConfigChangeID, ms.Nodes, ms.NonVotings), nil
}

func membersOf(config uint64, voters, learners map[uint64]string) *members {
	m := &members{config: config}
	add := func(targets map[uint64]string, role metapb.Role) {
		for replicaID, t := range targets {
			storeID, _ := parseTarget(t)
			m.replicas = append(m.replicas,
				&metapb.Replica{ReplicaId: replicaID, StoreId: storeID, Role: role})
		}
	}
	add(voters, metapb.Role_ROLE_VOTER)
	add(learners, metapb.Role_ROLE_LEARNER)
	slices.SortFunc(m.replicas, func(a, b *metapb.Replica) int {
		return cmp.Compare(a.GetReplicaId(), b.GetReplicaId())
	})
	return m
}

// membership is what a born range's log begins with.
func membership(replicas []*metapb.Replica, config uint64) pb.Membership {
	m := pb.Membership{
		ConfigChangeId: config, // 0 panics
		Addresses:      make(map[uint64]string),
		NonVotings:     make(map[uint64]string),
		Witnesses:      make(map[uint64]string),
		Removed:        make(map[uint64]bool),
	}
	for _, r := range replicas {
		m.Addresses[r.GetReplicaId()] = target(r.GetStoreId())
	}
	return m
}

// request makes a call that answers later, unless the host is closing.
func (h *Host) request(
	f func() (*dragonboat.RequestState, error),
) (rs *dragonboat.RequestState, err error) {
	err = h.call(func() error {
		rs, err = f()
		return err
	})
	return rs, err
}

// timeoutOf is the time left in ctx, at most d.
func (h *Host) timeoutOf(ctx context.Context, d time.Duration) time.Duration {
	if deadline, ok := ctx.Deadline(); ok {
		d = min(d, time.Until(deadline))
	}
	return h.atLeastTicks(d)
}
