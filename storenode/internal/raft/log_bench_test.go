package raft

import (
	"context"
	"fmt"
	"io"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/lni/dragonboat/v4"
	"github.com/lni/dragonboat/v4/config"
	"github.com/lni/dragonboat/v4/raftio"
	"github.com/lni/dragonboat/v4/raftpb"
	"github.com/lni/dragonboat/v4/statemachine"

	"github.com/ridgekv/ridge/storenode/internal/raft/logstore"
)

const (
	benchRanges  = 16
	benchCommand = 128
)

// BenchmarkLog is what a log costs: three NodeHosts in one process, 16 ranges
// on each, a state machine that does nothing, commands of 128 bytes.
//
//	go test -run '^$' -bench Log -benchtime 2s ./storenode/internal/raft
func BenchmarkLog(b *testing.B) {
	for _, c := range []struct {
		kind       string
		logs, exec int
	}{
		{LogKindPebble, 4, 4},
		{LogKindPebble, 1, 4},
		{LogKindPebble, 1, 1},
		{LogKindRidge, 1, 1},
		{LogKindRidge, 1, 2},
		{LogKindRidge, 1, 4},
	} {
		b.Run(fmt.Sprintf("%s/logs=%d/exec=%d", c.kind, c.logs, c.exec), func(b *testing.B) {
			cl := startBenchCluster(b, c.kind, c.logs, c.exec)
			for _, load := range []struct{ commands, callers int }{
				{1, 64}, {1, 256}, {1, 1024}, {64, 64},
			} {
				b.Run(fmt.Sprintf("per=%d/callers=%d", load.commands, load.callers),
					func(b *testing.B) { cl.run(b, load.commands, load.callers) })
			}
		})
	}
}

type benchCluster struct {
	hosts [3]*dragonboat.NodeHost
	logs  [3]*countedLog
}

// countedLog counts what Dragonboat's log writes: one sync each.
type countedLog struct {
	capturedLog
	raftio.ILogDB
	writes atomic.Uint64
}

func (c *countedLog) Name() string { return c.kind }

func (c *countedLog) Create(
	cfg config.NodeHostConfig, callback config.LogDBCallback, dirs, low []string,
) (raftio.ILogDB, error) {
	var err error
	c.ILogDB, err = c.capturedLog.Create(cfg, callback, dirs, low)
	return c, err
}

func (c *countedLog) SaveRaftState(updates []raftpb.Update, worker uint64) error {
	for i := range updates {
		if u := &updates[i]; !raftpb.IsEmptyState(u.State) || len(u.EntriesToSave) > 0 {
			c.writes.Add(1)
			break
		}
	}
	return c.ILogDB.SaveRaftState(updates, worker)
}

func (c *countedLog) syncs() uint64 {
	if s, ok := c.ILogDB.(*logstore.Store); ok {
		return s.Stats().Syncs
	}
	return c.writes.Load()
}

func startBenchCluster(b *testing.B, kind string, logs, exec int) *benchCluster {
	cl := &benchCluster{}
	members := map[uint64]dragonboat.Target{}
	for i := range cl.hosts {
		listener, err := net.Listen("tcp", "127.0.0.1:0")
		must(b, err)
		members[uint64(i+1)] = listener.Addr().String()
		must(b, listener.Close())
	}
	for i := range cl.hosts {
		cl.logs[i] = &countedLog{capturedLog: capturedLog{kind: kind}}
		cfg := config.NodeHostConfig{
			DeploymentID: 1, NodeHostDir: b.TempDir(), RTTMillisecond: 50,
			RaftAddress: members[uint64(i+1)],
		}
		cfg.Expert.LogDBFactory = cl.logs[i]
		cfg.Expert.LogDB = config.GetSmallMemLogDBConfig()
		cfg.Expert.LogDB.Shards = uint64(logs)
		cfg.Expert.Engine = config.EngineConfig{
			ExecShards: uint64(exec), CommitShards: 1, ApplyShards: 8, SnapshotShards: 4, CloseShards: 4,
		}
		var err error
		cl.hosts[i], err = dragonboat.NewNodeHost(cfg)
		must(b, err)
		b.Cleanup(cl.hosts[i].Close)
	}
	for r := range uint64(benchRanges) {
		for i, h := range cl.hosts {
			must(b, h.StartOnDiskReplica(members, false, newNoMachine, config.Config{
				ShardID: r + 1, ReplicaID: uint64(i + 1), CheckQuorum: true, PreVote: true,
				HeartbeatRTT: 2, ElectionRTT: 10, OrderedConfigChange: true,
			}))
		}
	}
	for r := range uint64(benchRanges) {
		cl.lead(b, r+1, r%3)
	}
	return cl
}

// lead makes a host lead a range.
func (cl *benchCluster) lead(b *testing.B, rangeID, host uint64) {
	eventually(b, "leader", func() error {
		leader, _, ok, err := cl.hosts[host].GetLeaderID(rangeID)
		if err != nil || !ok {
			return fmt.Errorf("no leader: %v", err)
		}
		if leader != host+1 {
			_ = cl.hosts[leader-1].RequestLeaderTransfer(rangeID, host+1)
			return fmt.Errorf("led by %d", leader)
		}
		return nil
	})
}

func (cl *benchCluster) run(b *testing.B, commands, callers int) {
	cmd := make([]byte, commands*benchCommand)
	proposals := int64((b.N + commands - 1) / commands)
	took := make([][]time.Duration, callers)
	syncs, cpu := cl.syncs(), cpuTime()
	var left atomic.Int64
	left.Store(proposals)
	var wg sync.WaitGroup
	b.ResetTimer()
	began := time.Now()
	for c := range callers {
		wg.Go(func() {
			rangeID := uint64(c%benchRanges) + 1
			host := cl.hosts[(rangeID-1)%3]
			session := host.GetNoOPSession(rangeID)
			for left.Add(-1) >= 0 {
				ctx, cancel := context.WithTimeout(b.Context(), 10*time.Second)
				start := time.Now()
				_, err := host.SyncPropose(ctx, session, cmd)
				took[c] = append(took[c], time.Since(start))
				cancel()
				if err != nil {
					b.Errorf("range %d: %v", rangeID, err)
					return
				}
			}
		})
	}
	wg.Wait()
	elapsed := time.Since(began)
	b.StopTimer()
	all := slices.Sorted(slices.Values(slices.Concat(took...)))
	done := float64(proposals) * float64(commands)
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(done/elapsed.Seconds(), "commands/s")
	b.ReportMetric(float64(all[len(all)/2].Microseconds())/1000, "p50-ms")
	b.ReportMetric(float64(all[len(all)*99/100].Microseconds())/1000, "p99-ms")
	b.ReportMetric(float64(cl.syncs()-syncs)/elapsed.Seconds(), "syncs/s")
	b.ReportMetric(float64((cpuTime()-cpu).Nanoseconds())/1000/done, "cpu-us/command")
}

func (cl *benchCluster) syncs() (n uint64) {
	for _, l := range cl.logs {
		n += l.syncs()
	}
	return n
}

func cpuTime() time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// noMachine applies nothing.
type noMachine struct{}

func newNoMachine(uint64, uint64) statemachine.IOnDiskStateMachine { return noMachine{} }

func (noMachine) Open(<-chan struct{}) (uint64, error) { return 0, nil }

func (noMachine) Update(entries []statemachine.Entry) ([]statemachine.Entry, error) {
	return entries, nil
}

func (noMachine) Lookup(any) (any, error)                              { return nil, nil }
func (noMachine) Sync() error                                          { return nil }
func (noMachine) PrepareSnapshot() (any, error)                        { return nil, nil }
func (noMachine) SaveSnapshot(any, io.Writer, <-chan struct{}) error   { return nil }
func (noMachine) RecoverFromSnapshot(io.Reader, <-chan struct{}) error { return nil }
func (noMachine) Close() error                                         { return nil }
