package raft

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync"

	"github.com/lni/dragonboat/v4/config"
	"github.com/lni/dragonboat/v4/raftio"
	pb "github.com/lni/dragonboat/v4/raftpb"
)

// errUnresolved is returned for a store whose address nobody knows yet.
var errUnresolved = errors.New("raft: the address of the store is not known")

// target is how a store is named in Dragonboat's memberships. It is no
// address: addresses may change, memberships live for ever. The store's own
// RaftAddress has this form too, so that a message tells a joiner where the
// sender lives without binding it to an address.
func target(storeID uint64) string { return "s" + strconv.FormatUint(storeID, 10) }

// parseTarget is the inverse of target.
func parseTarget(t string) (storeID uint64, ok bool) {
	digits, ok := strings.CutPrefix(t, "s")
	if !ok {
		return 0, false
	}
	storeID, err := strconv.ParseUint(digits, 10, 64)
	return storeID, err == nil && target(storeID) == t
}

// door is the transport: Dragonboat's own one over TCP, which dials whatever
// address the store has at that moment, with the message handler in reach.
// (A NodeRegistryFactory would be the official way to names instead of
// addresses, but Dragonboat then refuses every name that is not a UUID.)
type door struct {
	raftio.ITransport
	resolve func(storeID uint64) (address string, ok bool)
	// admit says which of the messages that arrive go on to the replicas.
	admit func([]pb.Message) []pb.Message
	// receive takes out what stores say to each other.
	receive func([]pb.Message) []pb.Message
	// leaving sees every message before it leaves, images excepted.
	leaving func([]pb.Message)
	// dials are attempts of lines under way.
	dials sync.WaitGroup

	mu struct {
		sync.RWMutex
		deploymentID uint64
		cfg          config.NodeHostConfig
		// lines are the connections in use, by target.
		lines map[string]map[*line]struct{}
		// handler is nil before the start and after Close: calling it on a
		// closed NodeHost is a nil dereference.
		handler raftio.MessageHandler
	}
}

// Create implements config.TransportFactory.
func (d *door) Create(
	cfg config.NodeHostConfig, handler raftio.MessageHandler, chunks raftio.ChunkHandler,
) raftio.ITransport {
	deploymentID := cfg.GetDeploymentID()
	d.ITransport = newReceiver(cfg, newTCPTransport(cfg, func(batch pb.MessageBatch) {
		if batch.DeploymentId == deploymentID && batch.BinVer == raftio.TransportBinVersion {
			batch.Requests = d.receive(batch.Requests)
		}
		if batch.Requests = d.admit(batch.Requests); len(batch.Requests) > 0 {
			handler(batch)
		}
	}, chunks))
	d.mu.Lock()
	defer d.mu.Unlock()
	d.mu.deploymentID, d.mu.cfg, d.mu.handler = cfg.GetDeploymentID(), cfg, handler
	return d
}

// Validate implements config.TransportFactory: targets and listen addresses.
func (d *door) Validate(address string) bool {
	_, ok := parseTarget(address)
	return ok || config.IsValidAddress(address)
}

// Close fences inject, then closes the transport. NodeHost closes its
// transport before anything that the handler needs.
func (d *door) Close() error {
	d.fence()
	err := d.ITransport.Close()
	d.dials.Wait()
	return err
}

func (d *door) fence() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.mu.handler = nil
}

// inject hands messages to local replicas as if they had arrived. It reports
// false when the fence is down. Each message must name its range and replica
// (To = 0 panics); the source address stays empty (another value would be
// entered into Dragonboat's registry).
func (d *door) inject(messages []pb.Message) bool {
	d.mu.RLock()
	defer d.mu.RUnlock()
	if d.mu.handler == nil {
		return false
	}
	d.mu.handler(pb.MessageBatch{
		Requests:     messages,
		DeploymentId: d.mu.deploymentID,
		BinVer:       raftio.TransportBinVersion,
	})
	return true
}

// introduce tells Dragonboat's transport where messages to a store go that are for no
// replica. It learns that from what arrives.
func (d *door) introduce(self, storeID uint64) {
	d.mu.RLock()
	defer d.mu.RUnlock()
	if d.mu.handler == nil {
		return
	}
	d.mu.handler(pb.MessageBatch{
		Requests: []pb.Message{{
			Type: pb.NoOP, ShardID: storesRange, From: storeID, To: self,
		}},
		SourceAddress: target(storeID),
		DeploymentId:  d.mu.deploymentID,
		BinVer:        raftio.TransportBinVersion,
	})
}

// GetSnapshotConnection dials the store behind the target, for an image.
func (d *door) GetSnapshotConnection(
	ctx context.Context, t string,
) (raftio.ISnapshotConnection, error) {
	address, err := d.address(t)
	if err != nil {
		return nil, err
	}
	return d.ITransport.GetSnapshotConnection(ctx, address)
}

func (d *door) address(t string) (string, error) {
	storeID, ok := parseTarget(t)
	if !ok {
		return "", fmt.Errorf("raft: target %q names no store", t)
	}
	address, ok := d.resolve(storeID)
	if !ok || !config.IsValidAddress(address) {
		return "", fmt.Errorf("%w: store %d", errUnresolved, storeID)
	}
	return address, nil
}
