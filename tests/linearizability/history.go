package linearizability

import (
	"math"
	"sync"
	"time"

	"github.com/anishathalye/porcupine"
)

// History records operations of concurrent clients. Its methods may be called
// from many goroutines.
type History struct {
	start time.Time
	mu    struct {
		sync.Mutex
		ops     []porcupine.Operation
		unknown int
	}
}

// NewHistory starts the clock of a history.
func NewHistory() *History { return &History{start: time.Now()} }

// Now is the time since the history began, in nanoseconds.
func (h *History) Now() int64 { return time.Since(h.start).Nanoseconds() }

// Add records an operation that began at call and has just ended. A read
// without an answer says nothing and is dropped; a write without a known
// outcome may take effect at any later time, so its interval never closes.
func (h *History) Add(client int, in Input, out Output, call int64) {
	end := h.Now()
	if out.Unknown {
		if in.Kind == Get || in.Kind == BatchGet {
			return
		}
		end = math.MaxInt64
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if out.Unknown {
		h.mu.unknown++
	}
	h.mu.ops = append(h.mu.ops, porcupine.Operation{
		ClientId: client, Input: in, Output: out, Call: call, Return: end,
	})
}

// Operations returns what was recorded so far, and how much of it is open.
func (h *History) Operations() (ops []porcupine.Operation, unknown int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return append([]porcupine.Operation(nil), h.mu.ops...), h.mu.unknown
}
