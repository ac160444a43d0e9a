package evaluate

import (
	kvpb "github.com/ridgekv/ridge/proto/ridge/kv/v1"
)

// Submission is a request and who is told its answer.
type Submission struct {
	Request *kvpb.Request
	To      Responder
}

// callsInPiece are allocated together. They are few, as the last one that is
// answered keeps the memory of all.
const callsInPiece = 32

// SubmitAll is Submit for requests that came together. Of each range the
// linearizable reads among them join one round, and its worker is woken once,
// so that the writes become one entry.
func (ev *Evaluator) SubmitAll(all []Submission) {
	var t together
	defer t.begin()
	var piece []call
	for i, s := range all {
		if len(piece) == 0 {
			piece = make([]call, min(len(all)-i, callsInPiece))
		}
		c := &piece[0]
		piece = piece[1:]
		c.take(s.Request, s.To)
		ev.submit(c, &t)
	}
}

// together holds back what requests that came together would have begun one by
// one.
type together struct{ parts []part }

// part is what waits at one worker.
type part struct {
	w     *worker
	reads []*readOp
	wake  bool
}

func (t *together) of(w *worker) *part {
	for i := len(t.parts) - 1; i >= 0; i-- {
		if t.parts[i].w == w {
			return &t.parts[i]
		}
	}
	t.parts = append(t.parts, part{w: w})
	return &t.parts[len(t.parts)-1]
}

// ring wakes w when all are there; at once without t.
func (t *together) ring(w *worker) {
	if t == nil {
		w.ring()
		return
	}
	t.of(w).wake = true
}

// join lets op join the next round of w when all are there; at once without t.
func (t *together) join(w *worker, op *readOp) {
	if t == nil {
		w.reads.join(op)
		return
	}
	p := t.of(w)
	p.reads = append(p.reads, op)
}

func (t *together) begin() {
	for _, p := range t.parts {
		if p.wake {
			p.w.ring()
		}
		if len(p.reads) > 0 {
			p.w.reads.join(p.reads...)
		}
	}
}
