package agent

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"

	"google.golang.org/protobuf/proto"

	metapb "github.com/ridgekv/ridge/proto/ridge/meta/v1"
	pdpb "github.com/ridgekv/ridge/proto/ridge/pd/v1"
	"github.com/ridgekv/ridge/storenode/internal/engine"
)

const (
	// bookRecord is the record x|stores.
	bookRecord = "stores"
	bookFormat = 1
)

// Book is what this store knows of the other stores: where they are and how
// full their disks are. The addresses are kept on disk, so that a store finds
// the others after a restart while PD is away.
type Book struct {
	engine *engine.Engine
	mu     struct {
		sync.Mutex
		stores map[uint64]*metapb.Store
		// disks is newer than what the stores say: it comes with every ping.
		disks map[uint64]metapb.DiskState
		// full are the stores that refuse growth, nil for none.
		full map[uint64]bool
	}
}

// OpenBook reads the last known addresses.
func OpenBook(e *engine.Engine) (*Book, error) {
	b := newBook()
	b.engine = e
	v, ok, err := e.Store(bookRecord)
	if err != nil {
		return nil, fmt.Errorf("agent: read addresses: %w", err)
	}
	if !ok {
		return b, nil
	}
	stores, err := decodeBook(v)
	if err != nil {
		return nil, err
	}
	for _, s := range stores {
		b.mu.stores[s.GetStoreId()] = s
	}
	return b, nil
}

func newBook() *Book {
	b := &Book{}
	b.mu.stores = map[uint64]*metapb.Store{}
	b.mu.disks = map[uint64]metapb.DiskState{}
	return b
}

// Resolve finds the Raft address of a store.
func (b *Book) Resolve(storeID uint64) (address string, ok bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	s, ok := b.mu.stores[storeID]
	return s.GetRaftAddress(), ok && s.GetRaftAddress() != ""
}

// Store finds what is known of a store. It must not be changed.
func (b *Book) Store(storeID uint64) (*metapb.Store, bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	s, ok := b.mu.stores[storeID]
	return s, ok
}

// Stores lists all that are not gone, by id.
func (b *Book) Stores() []*metapb.Store {
	b.mu.Lock()
	defer b.mu.Unlock()
	var out []*metapb.Store
	for _, id := range slices.Sorted(maps.Keys(b.mu.stores)) {
		if s := b.mu.stores[id]; s.GetState() != metapb.StoreState_STORE_STATE_GONE {
			out = append(out, s)
		}
	}
	return out
}

// Learn takes over what PD says about stores, and keeps it on disk when an address
// is new. PD names those that changed; of the others its word still holds, so how
// full a disk is is what PD knew last, until the next ping.
func (b *Book) Learn(changed []*metapb.Store) error {
	b.mu.Lock()
	moved := false
	for _, s := range changed {
		old := b.mu.stores[s.GetStoreId()]
		moved = moved || old.GetGrpcAddress() != s.GetGrpcAddress() ||
			old.GetRaftAddress() != s.GetRaftAddress()
		b.mu.stores[s.GetStoreId()] = s
	}
	for _, s := range b.mu.stores {
		if s.GetDiskState() != metapb.DiskState_DISK_STATE_UNSPECIFIED {
			b.setDiskLocked(s.GetStoreId(), s.GetDiskState())
		}
	}
	var record []byte
	if moved {
		record = encodeBook(slices.Collect(maps.Values(b.mu.stores)))
	}
	b.mu.Unlock()
	if !moved || b.engine == nil {
		return nil
	}
	w := &engine.WriteSet{}
	w.SetStore(bookRecord, record)
	if err := b.engine.Commit(w); err != nil {
		return fmt.Errorf("agent: keep addresses: %w", err)
	}
	return nil
}

// SetDisk notes how full the disk of a store is.
func (b *Book) SetDisk(storeID uint64, d metapb.DiskState) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.setDiskLocked(storeID, d)
}

func (b *Book) setDiskLocked(storeID uint64, d metapb.DiskState) {
	if b.mu.disks[storeID] == d {
		return
	}
	b.mu.disks[storeID] = d
	full := map[uint64]bool{}
	for id, d := range b.mu.disks {
		if tight(d) {
			full[id] = true
		}
	}
	b.mu.full = full
	if len(full) == 0 {
		b.mu.full = nil
	}
}

// Full is the set of stores that refuse growing writes, nil for none. It must
// not be changed.
func (b *Book) Full() map[uint64]bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.mu.full
}

func encodeBook(stores []*metapb.Store) []byte {
	list := &pdpb.ListStoresResponse{}
	for _, s := range stores {
		list.Stores = append(list.Stores, &pdpb.StoreInfo{Store: s})
	}
	out, err := proto.MarshalOptions{Deterministic: true}.MarshalAppend([]byte{bookFormat}, list)
	if err != nil {
		panic(fmt.Sprintf("agent: encode addresses: %v", err))
	}
	return out
}

func decodeBook(b []byte) ([]*metapb.Store, error) {
	if len(b) == 0 || b[0] != bookFormat {
		return nil, errors.New("agent: record x|stores has an unknown format")
	}
	list := &pdpb.ListStoresResponse{}
	if err := proto.Unmarshal(b[1:], list); err != nil {
		return nil, fmt.Errorf("agent: record x|stores: %w", err)
	}
	var out []*metapb.Store
	for _, s := range list.GetStores() {
		if s.GetStore().GetStoreId() != 0 {
			out = append(out, s.GetStore())
		}
	}
	return out, nil
}
