package raft

import (
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/lni/dragonboat/v4"
	"github.com/lni/dragonboat/v4/config"
	"github.com/lni/dragonboat/v4/logger"
	"github.com/lni/dragonboat/v4/raftio"

	"github.com/ridgekv/ridge/storenode/internal/raft/logstore"
)

// Dragonboat's loggers speak printf to stderr, one line per replica and event;
// what matters is logged here. Like the soft settings they are set before any
// NodeHost of the process runs: a level may not change under one.
var _ = quietLoggers()

func quietLoggers() struct{} {
	for _, name := range []string{
		"dragonboat", "raft", "rsm", "transport", "logdb", "config", "server", "settings",
		"registry", "pebblekv", "utils", "order", "fileutil", "raftpb",
	} {
		logger.GetLogger(name).SetLevel(logger.CRITICAL)
	}
	return struct{}{}
}

func (h *Host) openNodeHost() error {
	if err := os.MkdirAll(h.opts.Dir, 0o700); err != nil {
		return fmt.Errorf("raft: open log: %w", err)
	}
	captured := &capturedLog{kind: h.opts.LogKind, early: h.early}
	nh, err := newNodeHost(h.nodeHostConfig(captured))
	if err != nil {
		return fmt.Errorf("raft: open log in %s: %w", h.opts.Dir, err)
	}
	h.nh, h.logDB, h.opened = nh, captured.db, time.Now()
	if s, ok := captured.db.(*logstore.Store); ok {
		promised := func(of []raftio.NodeInfo) []uint64 { return h.promised(s, of) }
		h.confirms.promised.Store(&promised)
	}
	return nil
}

// promised is what the replicas that run here have promised, 0 for all others. The
// log knows more of them, but a log that was put back knows what it knew then:
// preflight keeps those from starting.
func (h *Host) promised(s *logstore.Store, of []raftio.NodeInfo) []uint64 {
	terms := s.Terms(of)
	for i, o := range of {
		r, ok := h.replica(o.ShardID)
		if !ok || r.replicaID != o.ReplicaID || !r.started.Load() {
			terms[i] = 0
		}
	}
	return terms
}

// newNodeHost turns panics of the start, such as a directory that cannot be
// written, into errors.
func newNodeHost(cfg config.NodeHostConfig) (nh *dragonboat.NodeHost, err error) {
	perr := guard("start", func() { nh, err = dragonboat.NewNodeHost(cfg) })
	return nh, errors.Join(perr, err)
}

func (h *Host) nodeHostConfig(captured *capturedLog) config.NodeHostConfig {
	o := h.opts
	cfg := config.NodeHostConfig{
		DeploymentID:        o.ClusterID,
		NodeHostDir:         o.Dir,
		RTTMillisecond:      uint64(o.Tick.Milliseconds()),
		RaftAddress:         target(o.StoreID),
		ListenAddress:       o.ListenAddress,
		RaftEventListener:   h.events,
		SystemEventListener: h.events,
		MaxSendQueueSize:    o.SendQueueBytes,
		MaxReceiveQueueSize: 64 << 20,
	}
	if o.TLS != nil {
		cfg.MutualTLS = true
		cfg.CAFile, cfg.CertFile, cfg.KeyFile = o.TLS.CA, o.TLS.Cert, o.TLS.Key
	}
	cfg.Expert.LogDBFactory = captured
	cfg.Expert.TransportFactory = h.door
	cfg.Expert.LogDB = config.GetSmallMemLogDBConfig()
	cfg.Expert.LogDB.Shards = uint64(o.LogShards)
	cfg.Expert.Engine = config.EngineConfig{
		ExecShards:     uint64(o.ExecShards),
		CommitShards:   1, // unused without NotifyCommit
		ApplyShards:    8,
		SnapshotShards: 16,
		CloseShards:    4,
	}
	return cfg
}

// replicaConfig is equal on all replicas of a range but for the role.
func (h *Host) replicaConfig(rangeID, replicaID uint64, learner bool) config.Config {
	return config.Config{
		ShardID:                rangeID,
		ReplicaID:              replicaID,
		CheckQuorum:            true,
		PreVote:                true,
		OrderedConfigChange:    true,
		HeartbeatRTT:           uint64(h.opts.HeartbeatTicks),
		ElectionRTT:            uint64(h.opts.ElectionTicks),
		SnapshotEntries:        0, // the store decides: see logcut.go
		CompactionOverhead:     0, // said with each request
		MaxInMemLogSize:        0, // off: see intake.go
		DisableAutoCompactions: true,
		IsNonVoting:            learner,
		Quiesce:                false,
	}
}
