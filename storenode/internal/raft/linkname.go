package raft

import (
	"math"
	"net"
	"path/filepath"
	"time"
	"unsafe" // for go:linkname too

	"github.com/lni/dragonboat/v4"
	"github.com/lni/dragonboat/v4/config"
	"github.com/lni/dragonboat/v4/raftio"
	"github.com/lni/dragonboat/v4/raftpb"

	"github.com/ridgekv/ridge/storenode/internal/raft/logstore"
)

// This file is the only one that reaches past Dragonboat's public interface.
// Each name below has a test that fails when a new version of Dragonboat moves
// it. linkname.s is empty: it lets the compiler accept functions without a
// body.

// newDefaultLogDB is Dragonboat's own Pebble log. Wrapping it keeps the handle
// that births (Law 4) and the boot pre-flight need.
//
//go:linkname newDefaultLogDB github.com/lni/dragonboat/v4/internal/logdb.NewDefaultLogDB
func newDefaultLogDB(
	cfg config.NodeHostConfig, callback config.LogDBCallback, dirs, lowLatencyDirs []string,
) (raftio.ILogDB, error)

// newTCPTransport is Dragonboat's own transport. Wrapping it keeps the message
// handler that campaigns need, and resolves stores when it dials.
//
//go:linkname newTCPTransport github.com/lni/dragonboat/v4/internal/transport.NewTCPTransport
func newTCPTransport(
	cfg config.NodeHostConfig, handler raftio.MessageHandler, chunks raftio.ChunkHandler,
) raftio.ITransport

// serveConn is how Dragonboat's transport, a *transport.TCP, reads a connection, until
// it ends or something comes that is none of Dragonboat's messages.
//
//go:linkname serveConn github.com/lni/dragonboat/v4/internal/transport.(*TCP).serveConn
func serveConn(t unsafe.Pointer, conn net.Conn)

// sendMessage is how Dragonboat's replicas send. It never blocks.
//
//go:linkname sendMessage github.com/lni/dragonboat/v4.(*NodeHost).sendMessage
func sendMessage(nh *dragonboat.NodeHost, m raftpb.Message)

// The soft settings. Dragonboat reads them from a JSON file in the working
// directory, which one binary cannot ship, into these variables.

//go:linkname syncTaskInterval github.com/lni/dragonboat/v4.syncTaskInterval
var syncTaskInterval uint64

//go:linkname incomingProposalsMaxLen github.com/lni/dragonboat/v4.incomingProposalsMaxLen
var incomingProposalsMaxLen uint64

//go:linkname incomingReadIndexMaxLen github.com/lni/dragonboat/v4.incomingReadIndexMaxLen
var incomingReadIndexMaxLen uint64

//go:linkname receiveQueueLen github.com/lni/dragonboat/v4.receiveQueueLen
var receiveQueueLen uint64

//go:linkname pendingProposalShards github.com/lni/dragonboat/v4.pendingProposalShards
var pendingProposalShards uint64

//go:linkname entrySliceSize github.com/lni/dragonboat/v4/internal/raft.entrySliceSize
var entrySliceSize uint64

//go:linkname minEntrySliceSize github.com/lni/dragonboat/v4/internal/raft.minEntrySliceSize
var minEntrySliceSize uint64

//go:linkname inMemGCTicks github.com/lni/dragonboat/v4/internal/raft.inMemGcTimeout
var inMemGCTicks uint64

//go:linkname sendQueueLen github.com/lni/dragonboat/v4/internal/transport.sendQueueLen
var sendQueueLen uint64

//go:linkname nodeReloadInterval github.com/lni/dragonboat/v4.nodeReloadInterval
var nodeReloadInterval time.Duration

//go:linkname dialTimeoutSecond github.com/lni/dragonboat/v4/internal/transport.dialTimeoutSecond
var dialTimeoutSecond uint64

// Package variables are initialised after those of imported packages and
// before main, so this comes before the first NodeHost of the process and
// races with none: not with that of a PD in the same process either.
//
// softDefaults are the values found: a name that Dragonboat has moved would
// have left a variable of our own, which is zero (tested).
var softDefaults = setSoftSettings()

// setSoftSettings cuts the memory of a replica from 1.1 MiB to below 200 KiB
// and stops the periodic Sync, which blocks apply workers and which nothing
// reads.
func setSoftSettings() map[string]uint64 {
	found := make(map[string]uint64)
	set := func(name string, p *uint64, value uint64) {
		found[name] = *p
		*p = value
	}
	// Due when now - x >= interval for a random x below interval, in unsigned
	// arithmetic: with the largest value it is never due, not even once.
	set("SyncTaskInterval", &syncTaskInterval, math.MaxUint64)
	set("IncomingProposalQueueLength", &incomingProposalsMaxLen, 256)
	set("IncomingReadIndexQueueLength", &incomingReadIndexMaxLen, 512)
	// Must hold a burst of ticks: see maxElectionTicks.
	set("ReceiveQueueLength", &receiveQueueLen, 128)
	set("PendingProposalShards", &pendingProposalShards, 4)
	// Entries that are applied stay in memory until the slice that they are in is
	// made anew: when it is nearly used up, when one entry is left, and at ticks. A
	// range with a backlog would keep 96 of up to 4 MiB for 50 s.
	set("InMemEntrySliceSize", &entrySliceSize, 32)
	set("MinEntrySliceFreeSize", &minEntrySliceSize, 8)
	set("InMemGCTimeout", &inMemGCTicks, 1)
	// Thousands of heartbeats of one tick go to a store at once.
	set("SendQueueLength", &sendQueueLen, 8192)
	// A stop waits for attempts to dial a host that does not answer.
	set("GetConnectedTimeoutSecond", &dialTimeoutSecond, 2)
	// Each worker visits all its replicas this often, in case a bell was missed:
	// most of what idle ranges cost. Replicas come and go by a bell of their own.
	found["NodeReloadMillisecond"] = uint64(nodeReloadInterval.Milliseconds())
	nodeReloadInterval = 500 * time.Millisecond
	return found
}

// capturedLog is a factory that keeps the log it made.
type capturedLog struct {
	kind string
	// early is passed on to a log of ours.
	early func(*raftpb.Update)
	db    raftio.ILogDB
}

// Name must be what Dragonboat's own factory would write into its flag file.
func (c *capturedLog) Name() string { return c.kind }

// Create returns a log of Pebble unwrapped: Dragonboat asserts its type.
func (c *capturedLog) Create(
	cfg config.NodeHostConfig, callback config.LogDBCallback, dirs, lowLatencyDirs []string,
) (raftio.ILogDB, error) {
	var err error
	if c.kind == LogKindPebble {
		c.db, err = newDefaultLogDB(cfg, callback, dirs, lowLatencyDirs)
		return c.db, err
	}
	s, err := logstore.Open(logstore.Options{
		Dir: filepath.Join(dirs[0], "raftlog"), Workers: int(cfg.Expert.Engine.ExecShards),
		Early: c.early,
	})
	if err != nil {
		return nil, err
	}
	c.db = s
	return s, nil
}
