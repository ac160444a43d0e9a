// Package linearizability checks histories of real clients against real store
// processes under kill -9, pauses and splits.
//
// Keys come in groups of GroupSize neighbours that a split never separates, so
// that a BatchGet or BatchWrite of one group must be atomic. Linearizability
// is local: each group is checked alone.
package linearizability

import (
	"fmt"
	"strings"

	"github.com/anishathalye/porcupine"
)

// GroupSize is the number of neighbouring keys that share a range for ever.
const GroupSize = 3

// Kind is the kind of an operation.
type Kind int

// The operations of a history.
const (
	Get Kind = iota
	Put
	Delete
	CompareAndSwap
	BatchGet
	BatchWrite
)

// Input is what a client asked. Slot names the key within its group; the
// batch kinds touch all slots. Values are never empty: "" means absent.
type Input struct {
	Kind     Kind
	Group    int
	Slot     int
	Value    string
	Expected string
	Values   [GroupSize]string
}

// Output is what the client was told. With Unknown the rest is meaningless.
type Output struct {
	Unknown bool
	Swapped bool
	Value   string
	Values  [GroupSize]string
}

// state is the content of one group.
type state [GroupSize]string

// Model is the sequential specification of one group.
func Model() porcupine.Model {
	return porcupine.Model{
		Partition: byGroup,
		Init:      func() any { return state{} },
		Step: func(s, in, out any) (bool, any) {
			ok, next := step(s.(state), in.(Input), out.(Output))
			return ok, next
		},
		DescribeOperation: func(in, out any) string { return describe(in.(Input), out.(Output)) },
		DescribeState:     func(s any) string { return fmt.Sprint(s) },
	}
}

func step(s state, in Input, out Output) (bool, state) {
	switch in.Kind {
	case Get:
		return out.Unknown || out.Value == s[in.Slot], s
	case BatchGet:
		return out.Unknown || out.Values == s, s
	case Put:
		s[in.Slot] = in.Value
	case Delete:
		s[in.Slot] = ""
	case BatchWrite:
		s = in.Values
	case CompareAndSwap:
		match := s[in.Slot] == in.Expected
		if !out.Unknown && match != out.Swapped {
			return false, s
		}
		if !match {
			return out.Unknown || out.Value == s[in.Slot], s
		}
		s[in.Slot] = in.Value
	}
	return true, s
}

func byGroup(history []porcupine.Operation) [][]porcupine.Operation {
	groups := map[int][]porcupine.Operation{}
	for _, op := range history {
		g := op.Input.(Input).Group
		groups[g] = append(groups[g], op)
	}
	out := make([][]porcupine.Operation, 0, len(groups))
	for _, ops := range groups {
		out = append(out, ops)
	}
	return out
}

func describe(in Input, out Output) string {
	var b strings.Builder
	switch in.Kind {
	case Get:
		fmt.Fprintf(&b, "get(%d.%d) -> %q", in.Group, in.Slot, out.Value)
	case Put:
		fmt.Fprintf(&b, "put(%d.%d, %q)", in.Group, in.Slot, in.Value)
	case Delete:
		fmt.Fprintf(&b, "delete(%d.%d)", in.Group, in.Slot)
	case CompareAndSwap:
		fmt.Fprintf(&b, "cas(%d.%d, %q, %q) -> %v %q",
			in.Group, in.Slot, in.Expected, in.Value, out.Swapped, out.Value)
	case BatchGet:
		fmt.Fprintf(&b, "batchget(%d) -> %q", in.Group, out.Values)
	case BatchWrite:
		fmt.Fprintf(&b, "batchwrite(%d, %q)", in.Group, in.Values)
	}
	if out.Unknown {
		b.WriteString(" ?")
	}
	return b.String()
}
