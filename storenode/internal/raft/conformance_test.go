package raft

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/lni/dragonboat/v4/config"
	"github.com/lni/dragonboat/v4/raftio"
	"github.com/lni/dragonboat/v4/raftpb"
	"pgregory.net/rapid"

	"github.com/ridgekv/ridge/storenode/internal/raft/logstore"
)

// logPair is our log beside Dragonboat's own, which is the model.
type logPair struct {
	dir   string
	ours  *logstore.Store
	model raftio.ILogDB
	// known is what a replica's history so far permits next.
	known map[raftio.NodeInfo]*logHistory
}

type logHistory struct {
	state         raftpb.State
	boot          bool
	snapshot      uint64
	trimmed, last uint64
}

func (p *logPair) open() error {
	var err error
	p.ours, err = logstore.Open(logstore.Options{
		Dir: filepath.Join(p.dir, "ours"), SegmentBytes: 8 << 10, Workers: 1,
	})
	if err != nil {
		return err
	}
	cfg := config.NodeHostConfig{}
	if err := cfg.Prepare(); err != nil {
		return err
	}
	cfg.Expert.LogDB = config.GetTinyMemLogDBConfig()
	cfg.Expert.LogDB.Shards = 1
	cfg.Expert.Engine.ExecShards = 1
	model := filepath.Join(p.dir, "model")
	p.model, err = newDefaultLogDB(cfg, nil, []string{model}, []string{model})
	return err
}

func (p *logPair) close() error { return errors.Join(p.ours.Close(), p.model.Close()) }

// both does the same to both logs.
func (p *logPair) both(f func(raftio.ILogDB) error) error {
	return errors.Join(f(p.ours), f(p.model))
}

// TestLogConformance: any history that Raft can make gives the same answers
// from our log and from Dragonboat's, before and after a restart. RIDGE_LONG=1
// looks at many more histories: the model is slow to open.
func TestLogConformance(t *testing.T) {
	checks := flag.Lookup("rapid.checks").Value
	if before := checks.String(); os.Getenv("RIDGE_LONG") == "" {
		must(t, checks.Set("15"))
		defer func() { must(t, checks.Set(before)) }()
	}
	rapid.Check(t, func(rt *rapid.T) {
		p := &logPair{dir: t.TempDir(), known: map[raftio.NodeInfo]*logHistory{}}
		if err := p.open(); err != nil {
			rt.Fatal(err)
		}
		defer func() {
			if err := p.close(); err != nil {
				rt.Error(err)
			}
		}()
		rt.Repeat(map[string]func(*rapid.T){
			"": func(rt *rapid.T) {
				for of, h := range p.known {
					if err := p.compare(of, h); err != nil {
						rt.Fatalf("replica %v: %v", of, err)
					}
				}
			},
			"update":   p.update,
			"update2":  p.update,
			"snapshot": p.snapshot,
			"trim":     p.trim,
			"import":   p.importSnapshot,
			"remove": func(rt *rapid.T) {
				of, h := p.draw(rt)
				check(rt, p.both(func(l raftio.ILogDB) error {
					return l.RemoveNodeData(of.ShardID, of.ReplicaID)
				}))
				// An id is never used again.
				*h = logHistory{}
				delete(p.known, of)
				p.known[raftio.GetNodeInfo(of.ShardID, of.ReplicaID+100)] = h
			},
			"restart": func(rt *rapid.T) {
				check(rt, p.close())
				check(rt, p.open())
			},
		})
	})
}

func check(rt *rapid.T, err error) {
	if err != nil {
		rt.Fatal(err)
	}
}

// draw picks a replica that was started; the first time it starts it.
func (p *logPair) draw(rt *rapid.T) (raftio.NodeInfo, *logHistory) {
	shard := rapid.Uint64Range(1, 3).Draw(rt, "range")
	for of, h := range p.known {
		if of.ShardID == shard {
			p.boot(rt, of, h)
			return of, h
		}
	}
	of, h := raftio.GetNodeInfo(shard, 1), &logHistory{}
	p.known[of] = h
	p.boot(rt, of, h)
	return of, h
}

func (p *logPair) boot(rt *rapid.T, of raftio.NodeInfo, h *logHistory) {
	if h.boot {
		return
	}
	h.boot = true
	check(rt, p.both(func(l raftio.ILogDB) error {
		return l.SaveBootstrapInfo(of.ShardID, of.ReplicaID, raftpb.Bootstrap{
			Addresses: map[uint64]string{1: "a", 2: "b"}, Type: raftpb.OnDiskStateMachine,
		})
	}))
}

func (p *logPair) update(rt *rapid.T) {
	var updates []raftpb.Update
	seen := map[raftio.NodeInfo]bool{}
	for range rapid.IntRange(1, 3).Draw(rt, "replicas") {
		of, h := p.draw(rt)
		if !seen[of] {
			seen[of] = true
			updates = append(updates, h.update(rt, of))
		}
	}
	check(rt, p.both(func(l raftio.ILogDB) error { return l.SaveRaftState(updates, 1) }))
}

func (h *logHistory) update(rt *rapid.T, of raftio.NodeInfo) raftpb.Update {
	u := raftpb.Update{ShardID: of.ShardID, ReplicaID: of.ReplicaID}
	if h.state.Term == 0 || rapid.Bool().Draw(rt, "term") {
		h.state.Term++
		h.state.Vote = rapid.Uint64Range(0, 2).Draw(rt, "vote")
	}
	switch rapid.IntRange(0, 9).Draw(rt, "kind") {
	case 0, 1: // no entries
	case 2: // a received image
		h.last += rapid.Uint64Range(1, 20).Draw(rt, "image")
		h.snapshot, h.state.Commit = h.last, h.last
		u.Snapshot = record(of, h.last, h.state.Term)
	default:
		first := rapid.Uint64Range(h.state.Commit+1, h.last+1).Draw(rt, "first")
		for i := range rapid.Uint64Range(1, 12).Draw(rt, "count") {
			u.EntriesToSave = append(u.EntriesToSave, raftpb.Entry{
				Index: first + i, Term: h.state.Term, Key: i,
				Cmd: bytes.Repeat([]byte{byte(first + i), byte(h.state.Term)},
					rapid.IntRange(0, 400).Draw(rt, "size")),
			})
		}
		h.last = first + uint64(len(u.EntriesToSave)) - 1
	}
	h.state.Commit = rapid.Uint64Range(h.state.Commit, h.last).Draw(rt, "commit")
	u.State = h.state
	return u
}

func record(of raftio.NodeInfo, index, term uint64) raftpb.Snapshot {
	return raftpb.Snapshot{
		ShardID: of.ShardID, Index: index, Term: term, Type: raftpb.OnDiskStateMachine, Dummy: true,
		OnDiskIndex: index, Membership: raftpb.Membership{
			ConfigChangeId: term, Addresses: map[uint64]string{1: "a", of.ReplicaID: "b"},
		},
	}
}

func (p *logPair) snapshot(rt *rapid.T) {
	of, h := p.draw(rt)
	if h.state.Commit == h.snapshot {
		return
	}
	h.snapshot = rapid.Uint64Range(h.snapshot+1, h.state.Commit).Draw(rt, "index")
	check(rt, p.both(func(l raftio.ILogDB) error {
		return l.SaveSnapshots([]raftpb.Update{{
			ShardID: of.ShardID, ReplicaID: of.ReplicaID, Snapshot: record(of, h.snapshot, 1),
		}})
	}))
}

func (p *logPair) trim(rt *rapid.T) {
	of, h := p.draw(rt)
	if h.snapshot <= h.trimmed+1 {
		return
	}
	// Raft keeps the entry of the snapshot itself.
	h.trimmed = rapid.Uint64Range(h.trimmed+1, h.snapshot-1).Draw(rt, "index")
	check(rt, p.both(func(l raftio.ILogDB) error {
		if err := l.RemoveEntriesTo(of.ShardID, of.ReplicaID, h.trimmed); err != nil {
			return err
		}
		_, err := l.CompactEntriesTo(of.ShardID, of.ReplicaID, h.trimmed)
		return err
	}))
}

// importSnapshot bears a replica, which must be new.
func (p *logPair) importSnapshot(rt *rapid.T) {
	of, h := p.draw(rt)
	if h.last > 0 || h.state.Term > 0 {
		return
	}
	index := rapid.Uint64Range(1, 9).Draw(rt, "index")
	h.snapshot, h.trimmed, h.last = index, index, index
	h.state = raftpb.State{Term: 5, Commit: index}
	check(rt, p.both(func(l raftio.ILogDB) error {
		return l.ImportSnapshot(record(of, index, 5), of.ReplicaID)
	}))
}

// compare asks both everything that Raft asks.
func (p *logPair) compare(of raftio.NodeInfo, h *logHistory) error {
	shard, id := of.ShardID, of.ReplicaID
	var boots [2]raftpb.Bootstrap
	var snapshots [2]raftpb.Snapshot
	var states [2]raftio.RaftState
	for i, l := range []raftio.ILogDB{p.ours, p.model} {
		var err error
		if boots[i], err = l.GetBootstrapInfo(shard, id); err != nil &&
			!errors.Is(err, raftio.ErrNoBootstrapInfo) {
			return err
		}
		if snapshots[i], err = l.GetSnapshot(shard, id); err != nil {
			return err
		}
		states[i], err = l.ReadRaftState(shard, id, snapshots[i].Index)
		if errors.Is(err, raftio.ErrNoSavedLog) != (h.state.Term == 0) {
			return fmt.Errorf("%s: state %v", l.Name(), err)
		}
		states[i] = visible(states[i], snapshots[i].Index)
		// A snapshot holds only what is committed.
		states[i].State.Commit = max(states[i].State.Commit, snapshots[i].Index)
	}
	if got, want := fmt.Sprint(boots[0]), fmt.Sprint(boots[1]); got != want {
		return fmt.Errorf("bootstrap %s, want %s", got, want)
	}
	if got, want := fmt.Sprintf("%+v", snapshots[0]), fmt.Sprintf("%+v", snapshots[1]); got != want {
		return fmt.Errorf("snapshot %s, want %s", got, want)
	}
	if states[0] != states[1] {
		return fmt.Errorf("state %+v, want %+v", states[0], states[1])
	}
	low := max(h.trimmed, snapshots[0].Index) + 1
	for _, maxSize := range []uint64{0, 500, 1 << 30} {
		for _, high := range []uint64{low + 1, low + 5, h.last + 1} {
			if high <= low || low > h.last || high > h.last+1 {
				continue
			}
			if err := p.compareEntries(of, low, high, maxSize); err != nil {
				return err
			}
		}
	}
	return nil
}

// visible is what Raft sees of a log that may still hold older entries.
func visible(s raftio.RaftState, snapshot uint64) raftio.RaftState {
	last := s.FirstIndex + s.EntryCount
	if s.FirstIndex <= snapshot && s.EntryCount > 0 {
		s.FirstIndex = snapshot + 1
		s.EntryCount = last - s.FirstIndex
	}
	if s.EntryCount == 0 {
		s.FirstIndex = snapshot
	}
	return s
}

func (p *logPair) compareEntries(of raftio.NodeInfo, low, high, maxSize uint64) error {
	got, size, err := p.ours.IterateEntries(nil, 0, of.ShardID, of.ReplicaID, low, high, maxSize)
	if err != nil {
		return err
	}
	want, wantSize, err := p.model.IterateEntries(nil, 0, of.ShardID, of.ReplicaID, low, high,
		maxSize)
	if err != nil {
		return err
	}
	if fmt.Sprint(got) != fmt.Sprint(want) || size != wantSize {
		return fmt.Errorf("entries [%d, %d) of %d bytes: %d of %d bytes, want %d of %d", low, high,
			maxSize, len(got), size, len(want), wantSize)
	}
	return nil
}
