package agent

import (
	"errors"
	"fmt"
	"slices"

	"google.golang.org/protobuf/proto"

	pdpb "github.com/ridgekv/ridge/proto/ridge/pd/v1"
	"github.com/ridgekv/ridge/storenode/internal/engine"
)

const (
	// pdRecord is the record x|pd.
	pdRecord = "pd"
	pdFormat = 1
)

// KnownPDs are the addresses of PD's nodes as this store last heard them; none if
// it never did. A store that was away while all PDs it is configured with were
// replaced finds the others by them.
func KnownPDs(e *engine.Engine) ([]string, error) {
	v, ok, err := e.Store(pdRecord)
	if err != nil || !ok {
		return nil, err
	}
	return decodePDs(v)
}

func decodePDs(b []byte) ([]string, error) {
	if len(b) == 0 || b[0] != pdFormat {
		return nil, errors.New("agent: record x|pd has an unknown format")
	}
	var list pdpb.MembersResponse
	if err := proto.Unmarshal(b[1:], &list); err != nil {
		return nil, fmt.Errorf("agent: record x|pd: %w", err)
	}
	var out []string
	for _, m := range list.GetMembers() {
		if a := m.GetGrpcAddress(); a != "" {
			out = append(out, a)
		}
	}
	return out, nil
}

func encodePDs(addresses []string) ([]byte, error) {
	list := &pdpb.MembersResponse{}
	for _, a := range addresses {
		list.Members = append(list.Members, &pdpb.Member{GrpcAddress: a})
	}
	return proto.MarshalOptions{Deterministic: true}.MarshalAppend([]byte{pdFormat}, list)
}

// keepPDs writes the addresses of PD's nodes down when they are not those that
// were written last, and returns what is written.
func keepPDs(e *engine.Engine, written, addresses []string) ([]string, error) {
	if slices.Equal(written, addresses) {
		return written, nil
	}
	record, err := encodePDs(addresses)
	if err != nil {
		return written, fmt.Errorf("agent: keep PD's addresses: %w", err)
	}
	w := &engine.WriteSet{}
	w.SetStore(pdRecord, record)
	if err := e.Commit(w); err != nil {
		return written, fmt.Errorf("agent: keep PD's addresses: %w", err)
	}
	return addresses, nil
}
