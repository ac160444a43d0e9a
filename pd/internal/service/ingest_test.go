package service

import (
	"encoding/binary"
	"fmt"
	"os"
	"runtime"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/ridgekv/ridge/pd/internal/operator"
	"github.com/ridgekv/ridge/pd/internal/topology"
	metapb "github.com/ridgekv/ridge/proto/ridge/meta/v1"
	pdpb "github.com/ridgekv/ridge/proto/ridge/pd/v1"
)

// completeReport is what a store says of all it holds: it leads every third of
// its replicas. The ranges are spread over the stores in turn.
func completeReport(store, stores, ranges int) *pdpb.RangeHeartbeatRequest {
	m := &pdpb.RangeHeartbeatRequest{StoreId: uint64(store + 1), Complete: true}
	key := func(i int) []byte {
		if i == 0 || i == ranges {
			return nil
		}
		return binary.BigEndian.AppendUint64([]byte("table/row/"), uint64(i))
	}
	for k := range 3 {
		for i := (store - k + stores) % stores; i < ranges; i += stores {
			id := uint64(i + 1)
			m.Replicas = append(m.Replicas, &pdpb.LocalReplica{
				RangeId: id, ReplicaId: 10*id + uint64(k), ConfigEpoch: 1005, Led: true,
				Role: metapb.Role_ROLE_VOTER,
			})
			if k != 0 {
				continue
			}
			r := &metapb.Range{
				RangeId: id, Epoch: &metapb.Epoch{Config: 1005, Span: 7},
				Span: &metapb.Span{Start: key(i), End: key(i + 1)},
			}
			report := &pdpb.RangeReport{
				Range: r, Leader: &metapb.Leader{ReplicaId: 10 * id, StoreId: uint64(store + 1), Term: 3},
				SizeBytes: 64 << 20, KeyCount: 100_000, ReadOps: 1e6, WriteOps: 1e6, AppliedIndex: 1e6,
			}
			for j := range 3 {
				r.Replicas = append(r.Replicas, &metapb.Replica{
					ReplicaId: 10*id + uint64(j), StoreId: uint64((i+j)%stores + 1),
					Role: metapb.Role_ROLE_VOTER,
				})
				report.Health = append(report.Health, &pdpb.ReplicaHealth{ReplicaId: 10*id + uint64(j)})
			}
			m.Ranges = append(m.Ranges, report)
		}
	}
	return m
}

// BenchmarkIngest measures how many reports of ranges one core of PD takes in,
// from bytes of a message to the map, and what a range costs in memory. The
// long form has a million ranges on a thousand stores.
func BenchmarkIngest(b *testing.B) {
	sizes := [][2]int{{100, 10_000}}
	if os.Getenv("RIDGE_LONG") != "" {
		sizes = append(sizes, [2]int{1000, 1_000_000})
	}
	for _, s := range sizes {
		stores, ranges := s[0], s[1]
		b.Run(fmt.Sprintf("stores=%d/ranges=%d", stores, ranges), func(b *testing.B) {
			l := &Leading{
				Topology:  topology.New(began, nil, nil),
				Operators: operator.NewController(operator.Limits{}, 1),
			}
			l.streams.init()
			l.stale.init()
			messages := make([][]byte, stores)
			for i := range messages {
				var err error
				if messages[i], err = proto.Marshal(completeReport(i, stores, ranges)); err != nil {
					b.Fatal(err)
				}
			}
			before := heap()
			take := func(store int, now time.Time) {
				m := &pdpb.RangeHeartbeatRequest{}
				if err := proto.Unmarshal(messages[store], m); err != nil {
					b.Fatal(err)
				}
				if orders := l.Ingest(m.GetStoreId(), m, now); len(orders) > 0 {
					b.Fatal(orders)
				}
			}
			for i := range messages {
				take(i, began)
			}
			memory := heap() - before
			if v := l.Topology.View(began); len(v.Ranges) != ranges {
				b.Fatalf("%d ranges", len(v.Ranges))
			}
			n, reports := 0, 0
			for b.Loop() {
				take(n%stores, began.Add(time.Duration(n)*time.Millisecond))
				reports += ranges / stores
				n++
			}
			b.ReportMetric(float64(reports)/b.Elapsed().Seconds(), "reports/s")
			b.ReportMetric(float64(memory)/float64(ranges), "bytes/range")
		})
	}
}

func heap() uint64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}
