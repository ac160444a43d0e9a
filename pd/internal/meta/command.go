package meta

import (
	"errors"
	"fmt"

	"google.golang.org/protobuf/proto"

	pdpb "github.com/ridgekv/ridge/proto/ridge/pd/v1"
)

// commandFormat and stateFormat are the first bytes of what is written to the
// log and to snapshots.
const (
	commandFormat = 1
	stateFormat   = 1
)

// errUnknown is a command or snapshot of a newer binary.
var errUnknown = errors.New("written by a newer version: upgrade this PD node")

// EncodeCommand renders a command for the log. It fails only on strings that are
// not text.
func EncodeCommand(c *pdpb.Command) ([]byte, error) {
	b, err := encode(commandFormat, c)
	if err != nil {
		return nil, fmt.Errorf("meta: encode command: %w", err)
	}
	return b, nil
}

// DecodeCommand reads what EncodeCommand wrote.
func DecodeCommand(b []byte) (*pdpb.Command, error) {
	var c pdpb.Command
	if err := decode(commandFormat, b, &c); err != nil {
		return nil, fmt.Errorf("decode command: %w", err)
	}
	if c.GetCommand() == nil {
		return nil, fmt.Errorf("decode command: %w", errUnknown)
	}
	return &c, nil
}

// EncodeState renders the state for a snapshot.
func EncodeState(s *pdpb.MetaState) []byte { return mustEncode(stateFormat, s) }

// DecodeState reads what EncodeState wrote.
func DecodeState(b []byte) (*pdpb.MetaState, error) {
	var s pdpb.MetaState
	if err := decode(stateFormat, b, &s); err != nil {
		return nil, fmt.Errorf("meta: decode snapshot: %w", err)
	}
	return &s, nil
}

func encodeResult(r *pdpb.CommandResult) []byte { return mustEncode(commandFormat, r) }

func decodeResult(b []byte) (*pdpb.CommandResult, error) {
	var r pdpb.CommandResult
	if err := decode(commandFormat, b, &r); err != nil {
		return nil, fmt.Errorf("meta: decode result: %w", err)
	}
	return &r, nil
}

func encode(format byte, m proto.Message) ([]byte, error) {
	return proto.MarshalOptions{Deterministic: true}.MarshalAppend([]byte{format}, m)
}

// mustEncode renders what was made of decoded commands: its strings are text.
func mustEncode(format byte, m proto.Message) []byte {
	b, err := encode(format, m)
	if err != nil {
		panic(fmt.Sprintf("meta: marshal %T: %v", m, err))
	}
	return b
}

func decode(format byte, b []byte, m proto.Message) error {
	if len(b) == 0 {
		return errors.New("empty")
	}
	if b[0] != format {
		return fmt.Errorf("format %d: %w", b[0], errUnknown)
	}
	return proto.Unmarshal(b[1:], m)
}
