package command

import (
	"bytes"
	"encoding/base64"
	"errors"
	"io"
	"strings"
	"testing"

	"github.com/ridgekv/ridge/client"
	"github.com/ridgekv/ridge/proto/keys"
)

func TestParseRow(t *testing.T) {
	for _, c := range []struct{ line, key, value, fault string }{
		{`{"key":"k","value":"v"}`, "k", "v", ""},
		{` {"value":"","key":"k"} `, "k", "", ""},
		{`{"key_b64":"/w==","value_b64":"AAE="}`, "\xff", "\x00\x01", ""},
		{`{"key":"k","value":"\ufffd"}`, "k", "\ufffd", ""},
		{`{"key":"k","value":"v","commit_ts":7}`, "k", "v", ""},
		{`{"key":"k","value":"v"`, "", "", "cut off"},
		{`{"key":"k","val`, "", "", "cut off"},
		{`{"key":"k"}`, "", "", "neither value nor value_b64"},
		{`{"value":"v"}`, "", "", "neither key nor key_b64"},
		{`{"key":"k","key_b64":"aw==","value":"v"}`, "", "", "both key and key_b64"},
		{`{"key":"","value":"v"}`, "", "", "the key is empty"},
		{`{"key":"k","vlaue":"v"}`, "", "", "unknown field"},
		{`{"key":1,"value":"v"}`, "", "", "not a JSON object"},
		{`{"key":"k","value":null}`, "", "", "neither value"},
		{`[1]`, "", "", "not a JSON object"},
		{`{"key":"k","value":"v"}{"key":"l","value":"v"}`, "", "", "more than one"},
		{"{\"key\":\"\xff\",\"value\":\"v\"}", "", "", "not valid UTF-8"},
		{`{"key":"k","value":"\ud800"}`, "", "", "surrogate"},
		{`{"key":"k","value_b64":"?"}`, "", "", "value_b64"},
		{`{"key":"` + strings.Repeat("k", keys.MaxKeySizeBytes+1) + `","value":"v"}`, "", "", "at most"},
		{`{"key":"k","value":"` + strings.Repeat("v", keys.MaxValueSizeBytes+1) + `"}`, "", "", "at most"},
	} {
		key, value, _, err := parseRow([]byte(c.line))
		if c.fault != "" {
			if err == nil || !strings.Contains(err.Error(), c.fault) {
				t.Errorf("%.60s: got %v, want %s", c.line, err, c.fault)
			}
			continue
		}
		if err != nil || string(key) != c.key || string(value) != c.value {
			t.Errorf("%.60s: %q %q %v", c.line, key, value, err)
		}
	}
}

// FuzzRoundTrip: what dump writes, load reads, byte for byte.
func FuzzRoundTrip(f *testing.F) {
	f.Add([]byte("k"), []byte("v"))
	f.Add([]byte{0xff, 0}, []byte("\u2028<&>\"\\\n"))
	f.Fuzz(func(t *testing.T, key, value []byte) {
		if checkKey(key) != nil || checkValue(value) != nil {
			t.Skip()
		}
		line, err := encodeLine(jsonRowOf(client.Row{Key: key, Value: value}))
		if err != nil || bytes.Count(line, []byte("\n")) != 1 {
			t.Fatalf("%q: %v", line, err)
		}
		k, v, _, err := parseRow(bytes.TrimSuffix(line, []byte("\n")))
		if err != nil || !bytes.Equal(k, key) || !bytes.Equal(v, value) {
			t.Fatalf("%s: %q %q %v", line, k, v, err)
		}
	})
}

func FuzzParseRow(f *testing.F) {
	f.Add([]byte(`{"key":"k","value":"v"}`))
	f.Fuzz(func(t *testing.T, line []byte) {
		key, value, _, err := parseRow(line)
		if err == nil && (checkKey(key) != nil || checkValue(value) != nil) {
			t.Fatalf("%q passes", line)
		}
	})
}

func TestLineReader(t *testing.T) {
	long := strings.Repeat("x", 3<<20)
	text := "a\r\n\n" + long + "\nlast"
	r := newLineReader(strings.NewReader(text))
	for _, want := range []string{"a", "", long, "last"} {
		line, err := r.next()
		if err != nil || string(line) != want {
			t.Fatalf("line %d: %.20q %v", r.line, line, err)
		}
	}
	if _, err := r.next(); !errors.Is(err, io.EOF) || r.offset != int64(len(text)) || r.line != 4 {
		t.Errorf("at the end: %v, offset %d, line %d", err, r.offset, r.line)
	}
	endless := newLineReader(strings.NewReader(strings.Repeat("x", maxLineBytes+1)))
	if _, err := endless.next(); err == nil || !strings.Contains(err.Error(), "line 1") {
		t.Errorf("an endless line: %v", err)
	}
}

func TestPlain(t *testing.T) {
	for in, want := range map[string]string{
		"abc": "abc", "a b": "a b", "": `""`, "a\tb": `"a\tb"`, `"q"`: `"\"q\""`, "\xff": `"\xff"`,
		"ü/π": "ü/π", `c:\d`: `c:\d`,
	} {
		if got := plain([]byte(in)); got != want {
			t.Errorf("%q: got %s, want %s", in, got, want)
		}
	}
	object := map[string]any{}
	putBytes(object, "key", []byte{0xff})
	if object["key_b64"] != base64.StdEncoding.EncodeToString([]byte{0xff}) {
		t.Errorf("%v", object)
	}
}
