package linearizability

import (
	"math"
	"testing"

	"github.com/anishathalye/porcupine"
)

// op builds an operation on group 0.
func op(client int, call, end int64, in Input, out Output) porcupine.Operation {
	return porcupine.Operation{ClientId: client, Input: in, Output: out, Call: call, Return: end}
}

func TestModelTellsGoodFromBad(t *testing.T) {
	put := func(call, end int64, v string) porcupine.Operation {
		return op(0, call, end, Input{Kind: Put, Value: v}, Output{})
	}
	get := func(call, end int64, v string) porcupine.Operation {
		return op(1, call, end, Input{Kind: Get}, Output{Value: v})
	}
	cas := func(call, end int64, old, v string, out Output) porcupine.Operation {
		return op(2, call, end, Input{Kind: CompareAndSwap, Expected: old, Value: v}, out)
	}
	lost := op(3, 1, math.MaxInt64, Input{Kind: Put, Value: "lost"}, Output{Unknown: true})
	batch := op(4, 3, 4, Input{Kind: BatchWrite, Values: [GroupSize]string{"a", "b", "c"}}, Output{})
	torn := op(5, 5, 6, Input{Kind: BatchGet}, Output{Values: [GroupSize]string{"a", "", "c"}})
	tests := []struct {
		name string
		ops  []porcupine.Operation
		good bool
	}{
		{"read what was written", []porcupine.Operation{put(1, 2, "x"), get(3, 4, "x")}, true},
		{"stale read", []porcupine.Operation{put(1, 2, "x"), put(3, 4, "y"), get(5, 6, "x")}, false},
		{"lost write", []porcupine.Operation{put(1, 2, "x"), get(3, 4, "")}, false},
		{"unknown write seen late", []porcupine.Operation{lost, get(5, 6, ""), get(7, 8, "lost")}, true},
		{"unknown write seen, then gone", []porcupine.Operation{lost, get(5, 6, "lost"), get(7, 8, "")}, false},
		{"1 2 1 from one put", []porcupine.Operation{put(1, 9, "1"), put(3, 4, "2"), get(2, 3, "1"), get(5, 6, "2"), get(7, 8, "1")}, false},
		{"swap of what is there", []porcupine.Operation{put(1, 2, "x"), cas(3, 4, "x", "y", Output{Swapped: true}), get(5, 6, "y")}, true},
		{"swap of what is not there", []porcupine.Operation{put(1, 2, "x"), cas(3, 4, "z", "y", Output{Swapped: true})}, false},
		{"refused swap shows the current value", []porcupine.Operation{put(1, 2, "x"), cas(3, 4, "z", "y", Output{Value: "w"})}, false},
		{"torn batch", []porcupine.Operation{batch, torn}, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := porcupine.CheckOperations(Model(), tt.ops); got != tt.good {
				t.Fatalf("linearizable: %v, want %v", got, tt.good)
			}
		})
	}
}
