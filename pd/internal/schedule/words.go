package schedule

import (
	"fmt"
	"slices"
	"strings"

	"github.com/ridgekv/ridge/pd/internal/topology"
	metapb "github.com/ridgekv/ridge/proto/ridge/meta/v1"
)

// stateText turns STORE_STATE_LEAVING into leaving.
func stateText(s metapb.StoreState) string {
	return strings.ToLower(strings.TrimPrefix(s.String(), "STORE_STATE_"))
}

// storesOf names the stores of a range's replicas.
func storesOf(r *topology.Range) string {
	var ids []uint64
	for _, m := range r.Range.GetReplicas() {
		ids = append(ids, m.GetStoreId())
	}
	slices.Sort(ids)
	return list("store", ids)
}

// list writes "store 3", "stores 1, 2 and 4", or the first few of many.
func list(noun string, ids []uint64) string {
	const most = 8
	var parts []string
	for _, id := range ids[:min(len(ids), most)] {
		parts = append(parts, fmt.Sprint(id))
	}
	switch n := len(ids); {
	case n == 0:
		return "no " + noun
	case n == 1:
		return noun + " " + parts[0]
	case n > most:
		return fmt.Sprintf("%ss %s and %d more", noun, strings.Join(parts, ", "), n-most)
	default:
		return fmt.Sprintf("%ss %s and %s", noun, strings.Join(parts[:n-1], ", "), parts[n-1])
	}
}
