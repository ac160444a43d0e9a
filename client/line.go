package client

import (
	"cmp"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// line is the writes that a store had no room for, for all calls. Room comes when
// the store answers a write, so that is when the next one is sent: the one whose
// call began first. While there is a line, calls that have just begun stand in it
// before they send: else they would always take the room, as they need not be
// woken, and the oldest would wait until their deadlines. The callers bound its
// length.
//
// Who is in line is woken by an answer to a write that was in flight after it had
// joined, and does not wait if there is none. Should the answers not come, it waits
// for a time; a store that breaks loses its line.
type line struct {
	mu     sync.Mutex
	stores map[uint64]*queue
	// length is of all lines: nearly always 0, and then nobody locks.
	length atomic.Int32
}

// queue is the line at one store. It exists while somebody stands in it.
type queue struct {
	places []*place // the oldest call first
	// moved is when the last one was let go, turns how often.
	moved time.Time
	turns int
}

// place is one write in line.
type place struct {
	// began is when its call did; turn is closed when its turn has come.
	began time.Time
	turn  chan struct{}
}

const (
	// lineTimeout is after how long without an answer to a write everybody in line
	// sends, to see whether there is room.
	lineTimeout = time.Second
	// extraTurn lets two go at every eighth answer: so more is sent if a store takes
	// more, and little is refused if it does not.
	extraTurn = 8
)

// waits reports whether there is a line at store.
func (l *line) waits(store uint64) bool {
	if l.length.Load() == 0 {
		return false
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.stores[store] != nil
}

// join stands in line at store.
func (l *line) join(store uint64, began time.Time) *place {
	p := &place{began: began, turn: make(chan struct{})}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.stores == nil {
		l.stores = map[uint64]*queue{}
	}
	q := l.stores[store]
	if q == nil {
		q = &queue{moved: time.Now()}
		l.stores[store] = q
	}
	i, _ := slices.BinarySearchFunc(q.places, p, func(a, b *place) int {
		return cmp.Or(a.began.Compare(b.began), -1)
	})
	q.places = slices.Insert(q.places, i, p)
	l.length.Add(1)
	return p
}

// stay reports whether p shall wait on, because its line moves.
func (l *line) stay(store uint64, p *place) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	q := l.stores[store]
	return q != nil && slices.Contains(q.places, p) && time.Since(q.moved) < lineTimeout
}

// leave ends the wait of p, if its turn has not.
func (l *line) leave(store uint64, p *place) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if q := l.stores[store]; q != nil {
		if i := slices.Index(q.places, p); i >= 0 {
			l.removeLocked(store, q, i)
		}
	}
}

// next lets those go who wait longest: the store has answered a write.
func (l *line) next(store uint64) {
	if l.length.Load() == 0 {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	q := l.stores[store]
	if q == nil {
		return
	}
	n := 1
	if q.turns++; q.turns%extraTurn == 0 {
		n = 2
	}
	q.moved = time.Now()
	for ; len(q.places) > 0 && n > 0; n-- {
		close(q.places[0].turn)
		l.removeLocked(store, q, 0)
	}
}

// disband lets all go that wait for store: it is gone.
func (l *line) disband(store uint64) {
	if l.length.Load() == 0 {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if q := l.stores[store]; q != nil {
		for len(q.places) > 0 {
			close(q.places[0].turn)
			l.removeLocked(store, q, 0)
		}
	}
}

func (l *line) removeLocked(store uint64, q *queue, i int) {
	l.length.Add(-1)
	if q.places = slices.Delete(q.places, i, i+1); len(q.places) == 0 {
		delete(l.stores, store)
	}
}
