package raft

import (
	"errors"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/lni/dragonboat/v4/raftio"
	pb "github.com/lni/dragonboat/v4/raftpb"
)

// fakeSocket fails once broken.
type fakeSocket struct {
	mu             sync.Mutex
	sent           int
	broken, closed bool
}

func (s *fakeSocket) SendMessageBatch(pb.MessageBatch) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.broken || s.closed {
		return errors.New("broken")
	}
	s.sent++
	return nil
}

func (s *fakeSocket) Close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
}

func (s *fakeSocket) breakIt() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.broken = true
}

// A line drops messages while the store is away, dials at a bounded rate, and
// is up again as soon as the store is.
func TestLineOutlivesItsSockets(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var dials sync.WaitGroup
		var mu sync.Mutex
		var sockets []*fakeSocket
		attempts, away := 0, false
		l := &line{dials: &dials, forget: func() {}, leaving: func([]pb.Message) {}, dial: func() (raftio.IConnection, error) {
			mu.Lock()
			defer mu.Unlock()
			attempts++
			if away {
				return nil, errors.New("refused")
			}
			s := &fakeSocket{}
			sockets = append(sockets, s)
			return s, nil
		}}
		send := func() {
			if err := l.SendMessageBatch(pb.MessageBatch{}); err != nil {
				t.Errorf("a line failed: %v", err)
			}
			synctest.Wait()
		}
		send() // Dials.
		send()
		if len(sockets) != 1 || sockets[0].sent != 1 {
			t.Fatalf("%d sockets", len(sockets))
		}
		away = true
		sockets[0].breakIt()
		before := attempts
		for range 1000 {
			send()
			time.Sleep(time.Millisecond)
		}
		if n := attempts - before; n < 15 || n > 25 || !sockets[0].closed {
			t.Errorf("%d attempts in a second", n)
		}
		away = false
		l.renew()
		synctest.Wait()
		send()
		if len(sockets) != 2 || sockets[1].sent != 1 {
			t.Fatalf("not up again: %d sockets", len(sockets))
		}
		l.Close()
		l.renew()
		dials.Wait()
		if !sockets[1].closed || len(sockets) != 2 {
			t.Error("a closed line dialled")
		}
	})
}
