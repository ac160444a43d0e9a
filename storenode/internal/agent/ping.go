package agent

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/ridgekv/ridge/client/storeclient"
	"github.com/ridgekv/ridge/proto/errs"
	metapb "github.com/ridgekv/ridge/proto/ridge/meta/v1"
	storepb "github.com/ridgekv/ridge/proto/ridge/store/v1"
)

// peersPeriod is how often the list of stores to ping is looked at.
const peersPeriod = 500 * time.Millisecond

// watch knows which other stores are heard.
type watch struct {
	silenceAfter time.Duration
	mu           struct {
		sync.Mutex
		heard  map[uint64]time.Time
		silent map[uint64]bool
	}
}

func newWatch(silenceAfter time.Duration) *watch {
	w := &watch{silenceAfter: silenceAfter}
	w.mu.heard = map[uint64]time.Time{}
	w.mu.silent = map[uint64]bool{}
	return w
}

// hear notes a sign of life and reports whether the store was silent.
func (w *watch) hear(storeID uint64, now time.Time) (back bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.mu.heard[storeID] = now
	back = w.mu.silent[storeID]
	delete(w.mu.silent, storeID)
	return back
}

// look reports whether the store has just fallen silent.
func (w *watch) look(storeID uint64, now time.Time) (fell bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	last, ok := w.mu.heard[storeID]
	if !ok {
		w.mu.heard[storeID] = now
		return false
	}
	if now.Sub(last) <= w.silenceAfter || w.mu.silent[storeID] {
		return false
	}
	w.mu.silent[storeID] = true
	return true
}

// lose makes a store silent at once and reports whether it was not.
func (w *watch) lose(storeID uint64) (fell bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	fell = !w.mu.silent[storeID]
	w.mu.silent[storeID] = true
	return fell
}

// pardon gives every store a new chance, after this process itself has slept.
func (w *watch) pardon(now time.Time) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for id := range w.mu.heard {
		w.mu.heard[id] = now
	}
}

func (w *watch) forget(storeID uint64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.mu.heard, storeID)
	delete(w.mu.silent, storeID)
}

func (w *watch) isSilent(storeID uint64) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.mu.silent[storeID]
}

func (w *watch) silentIDs() []uint64 {
	w.mu.Lock()
	defer w.mu.Unlock()
	var out []uint64
	for id := range w.mu.silent {
		out = append(out, id)
	}
	return out
}

// Pong answers a ping of another store, which is a sign of its life too.
func (a *Agent) Pong(m *storepb.PingRequest) *storepb.PingResponse {
	out := &storepb.PingResponse{StoreId: a.d.Self.GetStoreId(), Seq: m.GetSeq()}
	if m.GetClusterId() != a.d.ClusterID {
		out.Error = errs.ToProto(errs.ClusterMismatch{Want: m.GetClusterId(), Have: a.d.ClusterID})
		return out
	}
	if _, known := a.d.Book.Store(m.GetFromStoreId()); known {
		a.heard(m.GetFromStoreId(), m.GetDiskState())
	}
	out.SilentStoreIds = a.watch.silentIDs()
	out.DiskState = a.d.Engine.Disk().State
	return out
}

func (a *Agent) heard(storeID uint64, disk metapb.DiskState) {
	if disk != metapb.DiskState_DISK_STATE_UNSPECIFIED {
		a.d.Book.SetDisk(storeID, disk)
	}
	if a.watch.hear(storeID, time.Now()) {
		a.o.Logger.Info("store is heard again", "store", storeID)
		a.d.Host.Suspect(storeID, false)
	}
}

func (a *Agent) fell(storeID uint64, why string) {
	a.o.Logger.Warn("store is silent", "store", storeID, "why", why)
	a.metrics.suspicions.Inc()
	a.d.Host.Suspect(storeID, true)
}

// pings keeps one pinger per other store.
func (a *Agent) pings(ctx context.Context) error {
	type pinger struct {
		address string
		cancel  context.CancelFunc
	}
	running := map[uint64]pinger{}
	var wg sync.WaitGroup
	defer wg.Wait()
	defer func() {
		for _, p := range running {
			p.cancel()
		}
	}()
	return every(ctx, peersPeriod, func(ctx context.Context) error {
		wanted := map[uint64]string{}
		for _, s := range a.d.Book.Stores() {
			if s.GetStoreId() != a.d.Self.GetStoreId() && s.GetGrpcAddress() != "" {
				wanted[s.GetStoreId()] = s.GetGrpcAddress()
			}
		}
		for id, p := range running {
			if wanted[id] != p.address {
				p.cancel()
				delete(running, id)
				a.watch.forget(id)
			}
		}
		for id, address := range wanted {
			if _, ok := running[id]; !ok {
				one, cancel := context.WithCancel(ctx)
				running[id] = pinger{address, cancel}
				wg.Go(func() { a.ping(one, id, address) })
			}
		}
		return nil
	})
}

// ping watches one store. A broken stream that cannot be opened again at once
// is a quick suspicion; otherwise silence is.
func (a *Agent) ping(ctx context.Context, storeID uint64, address string) {
	a.watch.look(storeID, time.Now())
	worked := false
	for ctx.Err() == nil {
		answered, err := a.pingStream(ctx, storeID, address)
		if ctx.Err() != nil {
			return
		}
		if !answered && worked && a.watch.lose(storeID) {
			a.fell(storeID, fmt.Sprintf("unreachable: %v", err))
		}
		worked = answered
		if !answered && !sleep(ctx, a.o.PingInterval) {
			return
		}
		if a.watch.look(storeID, time.Now()) {
			a.fell(storeID, fmt.Sprintf("silent: %v", err))
		}
	}
}

// pingStream pings until the stream breaks. It reports whether any answer came.
func (a *Agent) pingStream(
	ctx context.Context, storeID uint64, address string,
) (answered bool, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := a.d.Pool.Store(address).Ping(storeclient.WithStoreID(ctx, storeID))
	if err != nil {
		return false, err
	}
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	got := make(chan error, 1)
	heard := make(chan struct{})
	wg.Go(func() { got <- a.receivePongs(stream, storeID, heard) })
	ticker := time.NewTicker(a.o.PingInterval)
	defer ticker.Stop()
	last := time.Now()
	for seq := uint64(1); ; seq++ {
		err := stream.Send(&storepb.PingRequest{
			ClusterId: a.d.ClusterID, FromStoreId: a.d.Self.GetStoreId(), Seq: seq,
			SilentStoreIds: a.watch.silentIDs(), DiskState: a.d.Engine.Disk().State,
		})
		if err != nil {
			break
		}
		select {
		case err = <-got:
			return isClosed(heard), err
		case now := <-ticker.C:
			if now.Sub(last) > a.o.SilenceAfter/2 {
				a.watch.pardon(now) // It was this process that slept.
			}
			last = now
			if a.watch.look(storeID, now) {
				a.fell(storeID, "silent")
			}
		case <-ctx.Done():
			return isClosed(heard), ctx.Err()
		}
	}
	return isClosed(heard), <-got
}

func isClosed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

// receivePongs notes signs of life until the stream breaks, and closes heard at
// the first.
func (a *Agent) receivePongs(
	stream storepb.StoreService_PingClient, storeID uint64, heard chan<- struct{},
) error {
	first := true
	for {
		m, err := stream.Recv()
		if err != nil {
			return err
		}
		if err := errs.FromProto(m.GetError()); err != nil {
			return err
		}
		if m.GetStoreId() != storeID {
			return errs.StoreMismatch{Want: storeID, Have: m.GetStoreId()}
		}
		if first {
			close(heard)
			first = false
		}
		a.heard(storeID, m.GetDiskState())
	}
}
