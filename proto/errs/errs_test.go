package errs

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/testing/protocmp"

	kvpb "github.com/ridgekv/ridge/proto/ridge/kv/v1"
	metapb "github.com/ridgekv/ridge/proto/ridge/meta/v1"
)

// samples holds one value of every error type.
func samples() []error {
	r := &metapb.Range{RangeId: 7, Epoch: &metapb.Epoch{Span: 2}}
	return []error{
		NotLeader{RangeID: 7, Leader: &metapb.Leader{StoreId: 3}},
		EpochMismatch{RangeID: 7, Current: []*metapb.Range{r}},
		RangeNotFound{RangeID: 7},
		KeyNotInRange{Key: []byte("k"), Range: r},
		StoreMismatch{Want: 1, Have: 2},
		ClusterMismatch{Want: 1, Have: 2},
		Busy{Reason: "stream", RetryAfter: 20 * time.Millisecond},
		DiskFull{StoreID: 3},
		TooLarge{What: "key", SizeBytes: 5000, Limit: 4096},
		InvalidArgument{Field: "key", Reason: "empty"},
		Conflict{Key: []byte("k"), CommitTS: 9},
		Locked{Key: []byte("k"), Primary: []byte("p"), StartTS: 4},
		TooOld{Requested: 1, Floor: 2, ResumeKey: []byte("r")},
		Unavailable{Part: "pd"},
		UnknownOutcome{RangeID: 7},
	}
}

func TestEveryErrorSurvivesTheWire(t *testing.T) {
	details := (&kvpb.Error{}).ProtoReflect().Descriptor().Oneofs().ByName("detail").Fields().Len()
	if len(samples()) != details {
		t.Fatalf("%d samples for %d details", len(samples()), details)
	}
	for _, want := range samples() {
		p := ToProto(fmt.Errorf("room: %w", want))
		if p.GetClass() == kvpb.ErrorClass_ERROR_CLASS_UNSPECIFIED || p.GetApplied() == kvpb.Applied_APPLIED_UNSPECIFIED {
			t.Errorf("%T: class or applied missing: %v", want, p)
		}
		b, err := proto.Marshal(p)
		if err != nil {
			t.Fatal(err)
		}
		var back kvpb.Error
		if err := proto.Unmarshal(b, &back); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, FromProto(&back), protocmp.Transform()); diff != "" {
			t.Errorf("%T changed on the wire:\n%s", want, diff)
		}
	}
}

func TestAnUnknownDetailIsNeverResent(t *testing.T) {
	if got := FromProto(&kvpb.Error{Applied: kvpb.Applied_APPLIED_UNKNOWN}); got != error(UnknownOutcome{}) {
		t.Fatalf("got %T", got)
	}
	if got := FromProto(&kvpb.Error{Applied: kvpb.Applied_APPLIED_NO, Message: "new"}); got != error(Unavailable{Part: "new"}) {
		t.Fatalf("got %T", got)
	}
}

// Whatever else went wrong: what may have happened is never reported as not
// applied.
func TestNothingHidesAnUnknownOutcome(t *testing.T) {
	for _, other := range samples() {
		for _, err := range []error{
			errors.Join(other, UnknownOutcome{RangeID: 7}),
			errors.Join(fmt.Errorf("room: %w", UnknownOutcome{RangeID: 7}), other),
		} {
			if got := ToProto(err).GetApplied(); got != kvpb.Applied_APPLIED_UNKNOWN {
				t.Errorf("with %T: %v", other, got)
			}
		}
	}
}
