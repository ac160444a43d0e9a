package pd

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/ridgekv/ridge/pd/internal/members"
	"github.com/ridgekv/ridge/pd/internal/meta"
	"github.com/ridgekv/ridge/pd/internal/operator"
	"github.com/ridgekv/ridge/pd/internal/safepoint"
	"github.com/ridgekv/ridge/pd/internal/service"
	"github.com/ridgekv/ridge/pd/internal/topology"
	"github.com/ridgekv/ridge/pd/internal/tso"
	pdpb "github.com/ridgekv/ridge/proto/ridge/pd/v1"
)

const (
	// probeWait is how long a new leader waits for the other members' clocks.
	probeWait = 300 * time.Millisecond
	// maxClockSkew is how far this member's wall clock may be ahead of all others
	// before it declines to lead: it would carry the timestamps away for good.
	maxClockSkew = time.Hour
	// lookAgain is how often leadership is looked at without a bell.
	lookAgain = 200 * time.Millisecond
	// leaderless is how long the group may be without a leader before this member
	// stops answering as PD's.
	leaderless = 3 * time.Second
	// declineFor is how long a member with a wrong clock stands back.
	declineFor = 5 * time.Second
)

// leadership starts what runs while this PD leads, and stops it. PD's leader is
// whoever the TSO record names; that Raft made this member its leader is only
// the hint to take the record over.
type leadership struct {
	s *Server
	m *meta.Meta
	// wake passes the bell of the group on to whoever waits in run, or asks
	// through the log while this node leads.
	wake chan struct{}
	// founders are whom the list of members begins with.
	founders []*pdpb.Member
}

func newLeadership(s *Server, m *meta.Meta, founders []*pdpb.Member) *leadership {
	return &leadership{s: s, m: m, wake: make(chan struct{}, 1), founders: founders}
}

// listen answers questions for this member's clock and passes the bell on.
func (l *leadership) listen(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-l.m.Bell():
		}
		if err := l.m.AnswerClock(ctx); err != nil && ctx.Err() == nil {
			l.s.o.Logger.Warn("clock question not answered", "err", err)
		}
		select {
		case l.wake <- struct{}{}:
		default:
		}
	}
}

// run leads whenever Raft says so, until ctx ends.
func (l *leadership) run(ctx context.Context) error {
	ticker := time.NewTicker(lookAgain)
	defer ticker.Stop()
	var standBack time.Time
	for {
		if l.m.Leader() == l.s.o.MemberID && time.Now().After(standBack) {
			err := l.lead(ctx)
			if ctx.Err() == nil && err != nil {
				l.s.o.Logger.Warn("leadership ended", "member", l.s.o.MemberID, "err", err)
			}
			if errors.Is(err, errSkew) {
				standBack = time.Now().Add(declineFor)
				l.handAway()
			}
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-ticker.C:
		case <-l.wake:
		}
	}
}

var errSkew = errors.New("the wall clock is more than an hour ahead of every member that answers")

// known are the members of the list, or those it will begin with.
func (l *leadership) known() []*pdpb.Member {
	if list, _ := l.m.Members(); len(list) > 0 {
		return list
	}
	return l.founders
}

// handAway asks Raft for another leader, whose clock may be right.
func (l *leadership) handAway() {
	for _, m := range l.known() {
		id := m.GetMemberId()
		if id != l.s.o.MemberID && !m.GetJoining() && l.m.Transfer(id) == nil {
			return
		}
	}
}

// checkClock compares this member's wall clock with those that answer. Only one
// that is ahead of them all declines: one that is behind does no harm, since
// time goes on from the old bound. So of two that disagree one can always lead.
func (l *leadership) checkClock(ctx context.Context) error {
	n := len(l.known())
	if n == 1 {
		return nil
	}
	ahead, err := l.m.ProbeClocks(ctx, randomID(), probeWait, l.wake,
		func(answers map[uint64]time.Duration) bool { return len(answers) >= n/2 })
	if err != nil {
		return fmt.Errorf("probe clocks: %w", err)
	}
	if aheadOfAll(ahead) {
		return errSkew
	}
	return nil
}

// aheadOfAll judges how far each other member's clock is ahead of this one's.
func aheadOfAll(others map[uint64]time.Duration) bool {
	for _, d := range others {
		if d > -maxClockSkew {
			return false
		}
	}
	return len(others) > 0
}

func randomID() uint64 {
	var b [8]byte
	_, _ = rand.Read(b[:]) // never fails
	return binary.LittleEndian.Uint64(b[:])>>1 | 1
}

// lead takes the record over and works until another run has it, Raft names
// another leader, or ctx ends.
func (l *leadership) lead(ctx context.Context) error {
	if err := l.checkClock(ctx); err != nil {
		return err
	}
	record, err := l.m.ReadTSO(ctx)
	if err != nil {
		return err
	}
	oracle := tso.New(l.m, l.s.o.MemberID)
	if err := oracle.TakeOver(ctx, record.GetEpoch(), time.Now()); err != nil {
		return err
	}
	if err := l.agreeOnCluster(ctx); err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	d := newDriver(l.s, l.m, topology.New(time.Now(), l.m.Stores(), l.m.Ranges()),
		operator.NewController(limits(inForce(l.s.o, l.m)), oracle.Epoch()<<32), oracle)
	group := members.NewGroup(l.m, l.s.o.Logger, l.wake, randomID)
	leading := d.leading(ctx)
	leading.Group = group
	l.s.service.Lead(leading)
	l.s.metrics.leads.Set(1)
	l.s.o.Logger.Info("this PD leads", "member", l.s.o.MemberID, "epoch", oracle.Epoch())
	var wg sync.WaitGroup
	errc := make(chan error, 6)
	wg.Go(func() { errc <- oracle.Run(ctx) })
	wg.Go(func() { errc <- d.run(ctx) })
	wg.Go(func() { errc <- safepoint.Run(ctx, l.m, oracle.Now, d.retention) })
	wg.Go(func() { errc <- d.journal.run(ctx) })
	wg.Go(func() { errc <- l.watchRaft(ctx) })
	wg.Go(func() { errc <- group.Run(ctx) })
	err = <-errc
	l.s.service.Lead(nil)
	l.s.metrics.leads.Set(0)
	cancel()
	wg.Wait()
	return err
}

// agreeOnCluster names the cluster, once, and brings this member's settings
// into force.
func (l *leadership) agreeOnCluster(ctx context.Context) error {
	config := inForce(l.s.o, l.m).Config()
	commands := []*pdpb.Command{
		{Command: &pdpb.Command_InitCluster{
			InitCluster: &pdpb.InitCluster{ClusterId: randomID(), Config: config},
		}},
		{Command: &pdpb.Command_PutConfig{PutConfig: &pdpb.PutConfig{Config: config}}},
	}
	if _, last := l.m.Members(); last == 0 && len(l.founders) > 0 {
		commands = append(commands, &pdpb.Command{Command: &pdpb.Command_SeedMembers{
			SeedMembers: &pdpb.SeedMembers{Members: l.founders},
		}})
	}
	for _, c := range commands {
		if _, err := l.m.Propose(ctx, c); err != nil {
			return err
		}
	}
	return nil
}

// watchRaft ends leadership when Raft has another leader, or none that this
// member knows for a while: the record would name this run until another takes
// it over, and whoever asks here would wait in vain.
func (l *leadership) watchRaft(ctx context.Context) error {
	ticker := time.NewTicker(lookAgain)
	defer ticker.Stop()
	led := time.Now()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-ticker.C:
		}
		switch id := l.m.Leader(); {
		case id == l.s.o.MemberID:
			led = time.Now()
		case id != 0:
			return fmt.Errorf("raft is led by member %d", id)
		case time.Since(led) > leaderless:
			return fmt.Errorf("raft has had no leader for %s", leaderless)
		}
	}
}

// leading is what the service answers with.
func (d *driver) leading(ctx context.Context) *service.Leading {
	l := &service.Leading{
		Oracle: d.oracle, Topology: d.topology, Operators: d.operators,
		Verdicts: d.verdictList, Waiting: d.waiting, Split: d.split,
		Settings: d.settings, Given: d.s.o.given(), View: d.view, Begin: d.begin,
		Apply: d.apply, Progress: d.planProgress, StopPlan: d.stopPlan,
		Note: d.journal.add, Journal: d.journal.list, Done: ctx.Done(),
	}
	d.send = l.SendOrders
	return l
}
