package raft

import (
	"encoding/binary"
	"slices"

	"github.com/lni/dragonboat/v4/raftio"
	pb "github.com/lni/dragonboat/v4/raftpb"
)

// Questions and answers travel between stores as messages of Raft, to a range that no
// store has, so that stores of older releases drop them:
//
//	range 0, replicas: the stores, NoOP, Hint: round, HintHigh: kind, one entry: content
//
// A question is (range, replica, term) for each replica asked about, as uvarints; the
// answer has a bit for each, in the same order.
const (
	storesRange  = 0
	kindQuestion = 1
	kindAnswer   = 2
	// maxQuestions is how many replicas one message asks about.
	maxQuestions = 1024
)

// question asks whether a replica has promised no later term.
type question struct{ rangeID, replicaID, term uint64 }

func appendQuestion(b []byte, q question) []byte {
	b = binary.AppendUvarint(b, q.rangeID)
	b = binary.AppendUvarint(b, q.replicaID)
	return binary.AppendUvarint(b, q.term)
}

// decodeQuestions reports false for what appendQuestion did not write.
func decodeQuestions(b []byte) (of []raftio.NodeInfo, terms []uint64, ok bool) {
	for len(b) > 0 {
		var v [3]uint64
		for i := range v {
			x, n := binary.Uvarint(b)
			if n <= 0 {
				return nil, nil, false
			}
			v[i], b = x, b[n:]
		}
		if len(of) == maxQuestions {
			return nil, nil, false
		}
		of, terms = append(of, raftio.GetNodeInfo(v[0], v[1])), append(terms, v[2])
	}
	return of, terms, true
}

func (c *confirmer) message(storeID, kind, round uint64, content []byte) pb.Message {
	m := pb.Message{
		Type: pb.NoOP, ShardID: storesRange, From: c.storeID, To: storeID,
		Hint: round, HintHigh: kind,
	}
	if len(content) > 0 {
		m.Entries = []pb.Entry{{Cmd: content}}
	}
	return m
}

// receive takes the messages between stores out of ms, and answers them. What
// reads the connection calls it.
func (c *confirmer) receive(ms []pb.Message) []pb.Message {
	return slices.DeleteFunc(ms, func(m pb.Message) bool {
		if m.ShardID != storesRange {
			return false
		}
		if m.Type == pb.NoOP && m.To == c.storeID && m.From != 0 && m.From != c.storeID {
			c.heard(&m)
		}
		return true
	})
}

func (c *confirmer) heard(m *pb.Message) {
	var content []byte
	if len(m.Entries) > 0 {
		content = m.Entries[0].Cmd
	}
	switch m.HintHigh {
	case kindQuestion:
		if answer, ok := c.answer(content); ok {
			c.deliver(m.From, c.message(m.From, kindAnswer, m.Hint, answer))
		}
	case kindAnswer:
		c.answered(m.From, m.Hint, content)
	}
}

// answer looks up what was promised, now that the question is here. A log that cannot
// tell does not answer: the asker then asks Dragonboat, and not here first.
func (c *confirmer) answer(content []byte) (bits []byte, ok bool) {
	promised := c.promised.Load()
	of, terms, ok := decodeQuestions(content)
	if promised == nil || !ok {
		return nil, false
	}
	bits = make([]byte, (len(of)+7)/8)
	for i, term := range (*promised)(of) {
		if term != 0 && term <= terms[i] {
			bits[i/8] |= 1 << (i % 8)
		}
	}
	return bits, true
}

// granted reads a bit of an answer.
func granted(answer []byte, i int) bool {
	return i/8 < len(answer) && answer[i/8]&(1<<(i%8)) != 0
}
