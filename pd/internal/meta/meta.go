// Package meta is PD's replicated truth: its own Raft group over a state
// machine in memory.
//
// Law P1: applying is deterministic. Clocks and randomness enter a command
// before it is proposed, never when it is applied.
package meta

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"log/slog"
	"maps"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/lni/dragonboat/v4"
	"github.com/lni/dragonboat/v4/config"
	"github.com/lni/dragonboat/v4/raftio"
	sm "github.com/lni/dragonboat/v4/statemachine"

	metapb "github.com/ridgekv/ridge/proto/ridge/meta/v1"
	pdpb "github.com/ridgekv/ridge/proto/ridge/pd/v1"
)

const (
	// shardID is PD's only Raft group.
	shardID = 1
	// electionTicks and heartbeatTicks are Raft's times. Followers begin an
	// election after 12 to 24 silent ticks.
	electionTicks  = 12
	heartbeatTicks = 1
	// snapshotEntries is how often Dragonboat writes the whole state to disk.
	snapshotEntries    = 10_000
	compactionOverhead = 1_000
	// maxInMemLogBytes refuses proposals when the group cannot keep up.
	maxInMemLogBytes = 64 << 20

	// callTimeout bounds a proposal or read; a nearer deadline of the caller wins.
	callTimeout = 5 * time.Second
	// retryPause is the wait after a proposal that was refused outright.
	retryPause = 10 * time.Millisecond
)

// ErrUnavailable means that PD's group did not answer in time. A command may
// or may not be applied.
var ErrUnavailable = errors.New("pd's group has no leader or no quorum")

// Options configure the group.
type Options struct {
	Dir      string
	MemberID uint64
	// Members are the Raft addresses, by id, that the group began with. A member
	// that joined has none: it learns them.
	Members map[uint64]string
	// RaftAddress is this member's own. Default: that in Members.
	RaftAddress string
	// DeploymentID is that of the group. Default: made of Members.
	DeploymentID  uint64
	ListenAddress string
	TLS           *TLSFiles
	Tick          time.Duration
	Logger        *slog.Logger
}

// TLSFiles name PEM files.
type TLSFiles struct{ CA, Cert, Key string }

// Meta is this member of PD's group.
type Meta struct {
	o       Options
	host    *dragonboat.NodeHost
	machine *machine
	// bell is rung when the Raft leader, the TSO record or a clock question
	// changed. One reader.
	bell  chan struct{}
	close sync.Once
}

// remedy says what is wrong with a directory that Dragonboat refuses; its errors
// are in an internal package.
func remedy(err error) string {
	switch err.Error() {
	case "hostname changed":
		return ": the directory belongs to a host of another name, and its paths contain the name: " +
			"give this host its old name (a container: set its hostname)"
	case "deployment ID changed":
		return ": the directory belongs to another member of PD, or to one with other members: " +
			"member id and members must be what they were at its first start"
	case "not the owner of the data directory":
		return ": the directory belongs to a PD with another Raft address: a member keeps its own"
	}
	return ""
}

// Open starts the member. Close must be called.
func Open(o Options) (*Meta, error) {
	if len(o.Members) > 0 {
		o.RaftAddress, o.DeploymentID = o.Members[o.MemberID], deploymentID(o.Members)
	}
	machine := newMachine()
	m := &Meta{o: o, machine: machine, bell: machine.bell}
	if err := os.MkdirAll(o.Dir, 0o750); err != nil {
		return nil, fmt.Errorf("meta: %w", err)
	}
	host, err := dragonboat.NewNodeHost(m.hostConfig())
	if err != nil {
		return nil, fmt.Errorf("meta: open %s: %w%s", o.Dir, err, remedy(err))
	}
	m.host = host
	create := func(uint64, uint64) sm.IConcurrentStateMachine { return machine }
	members := map[uint64]dragonboat.Target{}
	for id, address := range o.Members {
		members[id] = address
	}
	// A member that joins knows nobody, so it never campaigns, and never begins a
	// group of its own.
	join := len(members) == 0
	if err := host.StartConcurrentReplica(members, join, create, m.groupConfig()); err != nil {
		host.Close()
		return nil, fmt.Errorf("meta: start member %d: %w", o.MemberID, err)
	}
	return m, nil
}

func (m *Meta) hostConfig() config.NodeHostConfig {
	c := config.NodeHostConfig{
		DeploymentID:        m.o.DeploymentID,
		NodeHostDir:         m.o.Dir,
		RTTMillisecond:      uint64(m.o.Tick.Milliseconds()),
		RaftAddress:         m.o.RaftAddress,
		ListenAddress:       m.o.ListenAddress,
		RaftEventListener:   (*listener)(m),
		MaxSendQueueSize:    64 << 20,
		MaxReceiveQueueSize: 64 << 20,
	}
	if m.o.TLS != nil {
		c.MutualTLS = true
		c.CAFile, c.CertFile, c.KeyFile = m.o.TLS.CA, m.o.TLS.Cert, m.o.TLS.Key
	}
	c.Expert.LogDB = config.GetTinyMemLogDBConfig()
	c.Expert.LogDB.Shards = 1
	c.Expert.Engine = config.EngineConfig{
		ExecShards: 1, CommitShards: 1, ApplyShards: 1, SnapshotShards: 2, CloseShards: 1,
	}
	return c
}

func (m *Meta) groupConfig() config.Config {
	return config.Config{
		ShardID: shardID, ReplicaID: m.o.MemberID,
		CheckQuorum: true, PreVote: true, OrderedConfigChange: true,
		ElectionRTT: electionTicks, HeartbeatRTT: heartbeatTicks,
		SnapshotEntries: snapshotEntries, CompactionOverhead: compactionOverhead,
		MaxInMemLogSize: maxInMemLogBytes,
		// The log tells whether one that joined has its vote: it reads there that
		// it was a learner, which one that starts as a voter must not.
		IsNonVoting: len(m.o.Members) == 0,
	}
}

// deploymentID keeps apart groups that were configured apart: Dragonboat drops
// messages of another deployment. The cluster id cannot serve, since it is
// chosen by the group itself.
func deploymentID(members map[uint64]string) uint64 {
	var parts []string
	for id, address := range members {
		parts = append(parts, fmt.Sprintf("%d=%s", id, address))
	}
	slices.Sort(parts)
	h := fnv.New64a()
	h.Write([]byte(strings.Join(parts, ",")))
	return max(h.Sum64(), 1)
}

// Close stops the member. It is idempotent.
func (m *Meta) Close() { m.close.Do(m.host.Close) }

// Bell is rung when the Raft leader or the TSO record may have changed, or
// when a clock is asked or told. It has one reader.
func (m *Meta) Bell() <-chan struct{} { return m.bell }

// Leader is the Raft leader as this member knows it; 0 when unknown. It is a
// hint: only the TSO record, read through the log, tells who leads PD.
func (m *Meta) Leader() uint64 {
	id, _, ok, err := m.host.GetLeaderID(shardID)
	if err != nil || !ok {
		return 0
	}
	return id
}

// Transfer asks Raft to make target the leader. It is not guaranteed.
func (m *Meta) Transfer(target uint64) error {
	if err := m.host.RequestLeaderTransfer(shardID, target); err != nil {
		return fmt.Errorf("meta: transfer to %d: %w", target, err)
	}
	return nil
}

// Propose replicates c and returns what applying it decided. An error means
// that the outcome is unknown; every command may be proposed again.
func (m *Meta) Propose(ctx context.Context, c *pdpb.Command) (*pdpb.CommandResult, error) {
	body, err := EncodeCommand(c)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	session := m.host.GetNoOPSession(shardID)
	for {
		r, err := m.host.SyncPropose(ctx, session, body)
		if err == nil {
			return decodeResult(r.Data)
		}
		if !retriable(err) || !pause(ctx) {
			return nil, fmt.Errorf("meta: propose: %w (%w)", ErrUnavailable, err)
		}
	}
}

// ReadTSO returns the TSO record as of now: whatever was committed before the
// call is seen.
func (m *Meta) ReadTSO(ctx context.Context) (*pdpb.TSORecord, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	for {
		r, err := m.host.SyncRead(ctx, shardID, nil)
		if err == nil {
			return r.(*pdpb.TSORecord), nil
		}
		if !retriable(err) || !pause(ctx) {
			return nil, fmt.Errorf("meta: read: %w (%w)", ErrUnavailable, err)
		}
	}
}

// retriable tells errors that say "not now" from the rest.
func retriable(err error) bool {
	return errors.Is(err, dragonboat.ErrShardNotReady) ||
		errors.Is(err, dragonboat.ErrSystemBusy) ||
		errors.Is(err, dragonboat.ErrShardNotInitialized)
}

func pause(ctx context.Context) bool {
	t := time.NewTimer(retryPause)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}

// ClusterID is 0 until the cluster was named.
func (m *Meta) ClusterID() uint64 {
	m.machine.mu.RLock()
	defer m.machine.mu.RUnlock()
	return m.machine.mu.state.clusterID
}

// Config is the configuration that is in force; nil before the first leader.
func (m *Meta) Config() *pdpb.ClusterConfig {
	m.machine.mu.RLock()
	defer m.machine.mu.RUnlock()
	return m.machine.mu.state.config
}

// TSO is the record as applied here, which may be old.
func (m *Meta) TSO() *pdpb.TSORecord { return m.machine.tso() }

// Stores lists all stores that ever registered, by id.
func (m *Meta) Stores() []*pdpb.StoreRecord { return m.machine.storeRecords() }

// Store is a store that registered, if it did.
func (m *Meta) Store(id uint64) (*pdpb.StoreRecord, bool) {
	m.machine.mu.RLock()
	defer m.machine.mu.RUnlock()
	rec := m.machine.mu.state.stores[id]
	return rec, rec != nil
}

// Ranges lists the remembered descriptors, by id.
func (m *Meta) Ranges() []*metapb.Range { return m.machine.ranges() }

// Rules lists the placement rules, by id.
func (m *Meta) Rules() []*pdpb.PlacementRule {
	m.machine.mu.RLock()
	defer m.machine.mu.RUnlock()
	rules := m.machine.mu.state.rules
	out := make([]*pdpb.PlacementRule, 0, len(rules))
	for _, id := range slices.Sorted(maps.Keys(rules)) {
		out = append(out, rules[id])
	}
	return out
}

// FirstRange is the choice of bootstrap, and whether the range was ever
// reported; nil before the first store.
func (m *Meta) FirstRange() (first *metapb.Range, born bool) {
	m.machine.mu.RLock()
	defer m.machine.mu.RUnlock()
	return m.machine.mu.state.firstRange, m.machine.mu.state.firstRangeBorn
}

// SafePoints returns both points and the holds, by id.
func (m *Meta) SafePoints() (gc, txn uint64, holds []*pdpb.Hold) {
	m.machine.mu.RLock()
	defer m.machine.mu.RUnlock()
	s := m.machine.mu.state
	for _, id := range slices.Sorted(maps.Keys(s.holds)) {
		holds = append(holds, s.holds[id])
	}
	return s.gcSafePoint, s.txnSafePoint, holds
}

// listener takes Raft's events. Its methods only ring: Dragonboat calls them
// with locks held.
type listener Meta

var _ raftio.IRaftEventListener = (*listener)(nil)

// LeaderUpdated rings the bell.
func (l *listener) LeaderUpdated(raftio.LeaderInfo) { l.machine.ring() }
