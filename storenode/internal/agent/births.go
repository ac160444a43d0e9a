package agent

import (
	"context"
	"time"

	"github.com/ridgekv/ridge/client/storeclient"
	metapb "github.com/ridgekv/ridge/proto/ridge/meta/v1"
	storepb "github.com/ridgekv/ridge/proto/ridge/store/v1"
)

// birthTimeout bounds telling one store. A lost notice costs an election
// timeout, nothing else.
const birthTimeout = 500 * time.Millisecond

// birth is a child that was started here.
type birth struct {
	rangeID uint64
	members []*metapb.Replica
}

// ChildBorn takes note that a child was started here. It never blocks.
func (a *Agent) ChildBorn(rangeID uint64, members []*metapb.Replica) {
	select {
	case a.births <- birth{rangeID, members}:
	default:
	}
	a.Kick()
}

// tellBirths tells the other stores of each child, so that the one that led the
// parent knows when a quorum runs.
func (a *Agent) tellBirths(ctx context.Context) error {
	for {
		var b birth
		select {
		case b = <-a.births:
		case <-ctx.Done():
			return nil
		}
		for _, p := range b.members {
			store, ok := a.d.Book.Store(p.GetStoreId())
			if p.GetStoreId() == a.d.Self.GetStoreId() || !ok || a.watch.isSilent(p.GetStoreId()) {
				continue
			}
			one, cancel := context.WithTimeout(ctx, birthTimeout)
			_, err := a.d.Pool.Store(store.GetGrpcAddress()).ChildStarted(
				storeclient.WithStoreID(one, p.GetStoreId()), &storepb.ChildStartedRequest{
					ClusterId: a.d.ClusterID, RangeId: b.rangeID, StoreId: a.d.Self.GetStoreId(),
				})
			cancel()
			if err != nil {
				a.o.Logger.Debug("notice of a birth lost", "range", b.rangeID, "error", err)
			}
		}
	}
}
