package agent

import (
	"testing"
	"time"

	metapb "github.com/ridgekv/ridge/proto/ridge/meta/v1"
	storepb "github.com/ridgekv/ridge/proto/ridge/store/v1"
	"github.com/ridgekv/ridge/storenode/internal/engine"
)

func TestWatch(t *testing.T) {
	w := newWatch(500 * time.Millisecond)
	now := time.Unix(100, 0)
	after := func(d time.Duration) time.Time { return now.Add(d) }
	if w.look(2, now) || w.look(2, after(500*time.Millisecond)) {
		t.Error("silent before its time")
	}
	if !w.look(2, after(501*time.Millisecond)) || w.look(2, after(time.Second)) {
		t.Error("silence is told once")
	}
	if !w.isSilent(2) || len(w.silentIDs()) != 1 {
		t.Error("not silent")
	}
	if !w.hear(2, after(2*time.Second)) || w.hear(2, after(2*time.Second)) || w.isSilent(2) {
		t.Error("coming back is told once")
	}
	w.pardon(after(9 * time.Second))
	if w.look(2, after(9*time.Second)) {
		t.Error("blamed for this process's own sleep")
	}
	if !w.lose(2) || w.lose(2) {
		t.Error("a loss is told once")
	}
}

// A ping is a sign of life and carries the disk's state.
func TestPong(t *testing.T) {
	a, h := newTestAgent(t)
	if err := a.d.Book.Learn([]*metapb.Store{{StoreId: 2, GrpcAddress: "b:1"}}); err != nil {
		t.Fatal(err)
	}
	a.watch.lose(2)
	high := metapb.DiskState_DISK_STATE_HIGH
	out := a.Pong(&storepb.PingRequest{ClusterId: 7, FromStoreId: 2, Seq: 4, DiskState: high})
	if out.GetError() != nil || out.GetSeq() != 4 || out.GetStoreId() != 1 {
		t.Errorf("pong %v", out)
	}
	if silent, told := h.suspect[2]; silent || !told || a.watch.isSilent(2) {
		t.Error("a store that pings is still suspected")
	}
	if id, full := a.DiskFull(1); id != 2 || !full {
		t.Errorf("the full disk of a voter: %d, %v", id, full)
	}
	a.Pong(&storepb.PingRequest{
		ClusterId: 7, FromStoreId: 2, DiskState: metapb.DiskState_DISK_STATE_OK,
	})
	if _, full := a.DiskFull(1); full {
		t.Error("still full")
	}
	if out := a.Pong(&storepb.PingRequest{ClusterId: 8}); out.GetError().GetClusterMismatch() == nil {
		t.Errorf("another cluster: %v", out)
	}
}

// A learner's store does not stop growth: it is not a voter.
func TestDiskFullOfALearner(t *testing.T) {
	a, _ := newTestAgent(t)
	a.d.Book.SetDisk(3, metapb.DiskState_DISK_STATE_HIGH)
	if _, full := a.DiskFull(1); full {
		t.Error("a learner's disk stopped growth")
	}
}

// A store that died is as full as PD knew last, whatever its last ping said, even
// when PD has nothing new to tell of it.
func TestWordOfPDHolds(t *testing.T) {
	b := newBook()
	if err := b.Learn([]*metapb.Store{
		{StoreId: 2, DiskState: metapb.DiskState_DISK_STATE_OK},
		{StoreId: 3, DiskState: metapb.DiskState_DISK_STATE_FULL},
	}); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		b.SetDisk(2, metapb.DiskState_DISK_STATE_FULL)
		b.SetDisk(3, metapb.DiskState_DISK_STATE_OK)
		if err := b.Learn(nil); err != nil {
			t.Fatal(err)
		}
		if full := b.Full(); full[2] || !full[3] {
			t.Errorf("full are %v", full)
		}
	}
}

// Addresses outlive the process.
func TestBookIsKept(t *testing.T) {
	dir := t.TempDir()
	o := engine.Options{Dir: dir, MemTableSizeBytes: 32 << 20}
	for run := range 2 {
		e, err := engine.Open(o)
		if err != nil {
			t.Fatal(err)
		}
		b, err := OpenBook(e)
		if err != nil {
			t.Fatal(err)
		}
		address, ok := b.Resolve(2)
		if known := run == 1; ok != known || known && address != "b:2" {
			t.Errorf("run %d: %q, %v", run, address, ok)
		}
		seq := e.Visible()
		for range 3 {
			err = b.Learn([]*metapb.Store{{StoreId: 2, GrpcAddress: "b:1", RaftAddress: "b:2"}})
			if err != nil {
				t.Fatal(err)
			}
		}
		if wrote := e.Visible() - seq; run == 1 && wrote != 0 || wrote > 1 {
			t.Errorf("run %d: %d commits for the same addresses", run, wrote)
		}
		if err := e.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

func FuzzDecodeBook(f *testing.F) {
	f.Add(encodeBook([]*metapb.Store{{StoreId: 2, RaftAddress: "x"}}))
	f.Add([]byte{bookFormat, 9, 9})
	f.Fuzz(func(t *testing.T, b []byte) {
		stores, err := decodeBook(b)
		for _, s := range stores {
			if err != nil || s.GetStoreId() == 0 {
				t.Fatalf("accepted %v, %v", s, err)
			}
		}
	})
}
