package ceiling

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"strings"
	"time"

	"github.com/lni/dragonboat/v4"
	"github.com/lni/dragonboat/v4/client"
	"github.com/lni/dragonboat/v4/config"
	"github.com/lni/dragonboat/v4/logger"
	"github.com/lni/dragonboat/v4/statemachine"

	"github.com/ridgekv/ridge/tests/harness"
)

// nothing is a state machine that does nothing.
type nothing struct{}

func (nothing) Update(statemachine.Entry) (r statemachine.Result, _ error) { return r, nil }
func (nothing) Lookup(any) (any, error)                                    { return nil, nil }
func (nothing) Close() error                                               { return nil }

func (nothing) SaveSnapshot(
	io.Writer, statemachine.ISnapshotFileCollection, <-chan struct{},
) error {
	return nil
}

func (nothing) RecoverFromSnapshot(
	io.Reader, []statemachine.SnapshotFile, <-chan struct{},
) error {
	return nil
}

const shards, hosts = 16, 3

// proposals proposes commands at the leaders, perEntry of them in one entry.
func proposals(
	ctx context.Context, dir string, callers, perEntry int, d time.Duration,
) (float64, error) {
	for _, name := range strings.Fields("raft rsm transport grpc logdb dragonboat config") {
		logger.GetLogger(name).SetLevel(logger.CRITICAL)
	}
	all, err := startHosts(dir)
	defer func() {
		for _, h := range all {
			h.Close()
		}
	}()
	if err != nil {
		return 0, err
	}
	var sessions [shards]*client.Session
	var leaders [shards]*dragonboat.NodeHost
	err = harness.Eventually(ctx, 30*time.Second, "every shard has a leader",
		func(context.Context) error {
			for s := range uint64(shards) {
				id, _, ok, err := all[0].GetLeaderID(s + 1)
				if err != nil || !ok || id == 0 {
					return errors.Join(err, fmt.Errorf("shard %d has none", s+1))
				}
				leaders[s], sessions[s] = all[id-1], all[id-1].GetNoOPSession(s+1)
			}
			return nil
		})
	if err != nil {
		return 0, err
	}
	command := make([]byte, perEntry*(keyBytes+valueBytes))
	return closedLoop(ctx, callers, d, func(n int) step {
		return func() (int, error) {
			s := n % shards
			state, err := leaders[s].Propose(sessions[s], command, 10*time.Second)
			if err != nil {
				return 0, err
			}
			defer state.Release()
			if r := <-state.ResultC(); !r.Completed() {
				return 0, fmt.Errorf("a proposal was not completed: timeout %t, dropped %t",
					r.Timeout(), r.Dropped())
			}
			return perEntry, nil
		}
	})
}

func startHosts(dir string) ([]*dragonboat.NodeHost, error) {
	members := map[uint64]dragonboat.Target{}
	for id := range uint64(hosts) {
		address, err := harness.FreeAddress()
		if err != nil {
			return nil, err
		}
		members[id+1] = address
	}
	var all []*dragonboat.NodeHost
	for id := range uint64(hosts) {
		h, err := dragonboat.NewNodeHost(config.NodeHostConfig{
			NodeHostDir: filepath.Join(dir, fmt.Sprint(id)), RTTMillisecond: 50,
			RaftAddress: members[id+1],
		})
		if err != nil {
			return all, err
		}
		all = append(all, h)
		for s := range uint64(shards) {
			err := h.StartReplica(members, false,
				func(uint64, uint64) statemachine.IStateMachine { return nothing{} },
				config.Config{
					ReplicaID: id + 1, ShardID: s + 1, ElectionRTT: 10, HeartbeatRTT: 1,
					CheckQuorum: true, PreVote: true,
				})
			if err != nil {
				return all, err
			}
		}
	}
	return all, nil
}
