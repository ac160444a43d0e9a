package apply

import (
	"bytes"
	"encoding/hex"
	"errors"
	"testing"

	logpb "github.com/ridgekv/ridge/proto/ridge/log/v1"
	metapb "github.com/ridgekv/ridge/proto/ridge/meta/v1"
	"github.com/ridgekv/ridge/storenode/internal/engine"
)

func smallImage(t testing.TB) []byte {
	t.Helper()
	var out bytes.Buffer
	w := newImageWriter(&out, nil, nil)
	err := errors.Join(
		w.header(&logpb.ImageHeader{
			Format: imageFormat, AppliedIndex: 9, LastNumber: 3, MaxCommitTs: 7,
			State: &logpb.RangeState{RangeId: 1, Span: &metapb.Span{}, SpanEpoch: 1},
		}),
		w.row(engine.VersionRow{
			Kind: logpb.ImageKind_IMAGE_KIND_DATA, Key: []byte("a"), EncodedRow: []byte("row"),
		}),
		w.row(engine.VersionRow{
			Kind: logpb.ImageKind_IMAGE_KIND_DATA, Key: []byte("b"), EncodedRow: []byte("gone"),
			DeleteMark: true,
		}),
		w.end(),
	)
	if err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// TestImageGolden: stores of one cluster exchange these bytes.
func TestImageGolden(t *testing.T) {
	const golden = "01" + // format
		"10" + "0801" + "1009" + "1803" + "2007" + "2a06" + "0801" + "1200" + "1801" + // header
		"29" + // the only chunk
		"0a0a" + "0801" + "120161" + "1a03726f77" +
		"0a0d" + "0801" + "120162" + "1a04676f6e65" + "2001" +
		"1001" + "18c2f2e698dab5e4ef53" + "2002"
	if got := hex.EncodeToString(smallImage(t)); got != golden {
		t.Errorf("encoded %s\nwant    %s", got, golden)
	}
}

// readImage reads an image as a receiver does.
func readImage(b []byte) (rows int, err error) {
	in := newImageReader(bytes.NewReader(b))
	if _, err := in.header(1); err != nil {
		return 0, err
	}
	for {
		c, err := in.next()
		if err != nil || c == nil {
			return rows, err
		}
		rows += len(c.GetRows())
	}
}

func TestImageCutAnywhere(t *testing.T) {
	img := smallImage(t)
	if n, err := readImage(img); n != 2 || err != nil {
		t.Fatalf("%d rows, %v", n, err)
	}
	for i := range img {
		if _, err := readImage(img[:i]); !errors.Is(err, errImage) {
			t.Errorf("cut at %d: %v", i, err)
		}
	}
}

func FuzzReadImage(f *testing.F) {
	f.Add(smallImage(f))
	f.Fuzz(func(t *testing.T, b []byte) {
		if _, err := readImage(b); err != nil && !errors.Is(err, errImage) {
			t.Fatal(err)
		}
	})
}
